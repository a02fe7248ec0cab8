"""Data written back: nothing but what changed differs from what the user had."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whence.data import ReadOptions, read
from whence.data.rewrite import cells_of, check_ending, rewrite
from whence.errors import ConfigError, DataError

CELLS = [("007", "1", "?", "no"), ("2", "2.50", "NA", "yes"), ("-3", "1e3", "x,y", "yes "), ("4", "5", "", "no"),
         ("6", "7", '"q"', "")]  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Path:
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("n", "v", "odd", "label"), *(CELLS[:4] * 30), CELLS[4]])
    return tmp_path / "t.csv"


def write(path: Path, out: Path, flips: tuple[int, ...] = (), dropped: tuple[int, ...] = ()) -> None:
    data = read(path, ReadOptions(label="label"))
    labels, kept = data.labels.copy(), np.ones(len(data), dtype=bool)
    labels[list(flips)] = 1 - labels[list(flips)]
    kept[list(dropped)] = False
    rewrite(data, out, check_ending(data, out), labels=labels, kept=kept)


def test_every_cell_of_a_csv_stays(table: Path, tmp_path: Path) -> None:
    write(table, tmp_path / "same.csv")
    lines = table.read_text().splitlines()
    assert (tmp_path / "same.csv").read_text().splitlines() == lines, "the row without a label was not judged: it stays"
    write(table, tmp_path / "new.csv", flips=(0, 2), dropped=(1,))
    new = (tmp_path / "new.csv").read_text().splitlines()
    assert new[1] == lines[1].replace("no", "yes") and new[2] == lines[3].replace("yes ", "no")
    assert new[3:] == lines[4:]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12), min_size=4, max_size=8))
def test_any_text_survives(tmp_path: Path, texts: list[str]) -> None:
    rows = [(str(i), text, "ab"[i % 2]) for i, text in enumerate(texts)]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([("number", "words", "label"), *rows])
    (tmp_path / "t.csv").write_text(buffer.getvalue(), encoding="utf-8")
    data = read(tmp_path / "t.csv", ReadOptions(label="label", text="number"))
    for ending in (".csv", ".csv.gz", ".jsonl"):
        out = tmp_path / f"new{ending}"
        rewrite(data, out, ending, labels=data.labels, kept=np.ones(len(rows), dtype=bool))
    with (tmp_path / "new.csv").open(newline="", encoding="utf-8") as file:
        assert [tuple(row) for row in csv.reader(file)][1:] == rows
    again = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["number"] for one in again] == list(range(len(rows)))
    assert cells_of(data, "words") == texts


def test_parquet_keeps_its_types_and_csv_gets_exact_ones(table: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({
        "i": np.arange(40, dtype=np.int16), "f": np.linspace(0, 1, 40), "gap": pd.array([1, None] * 20, dtype="Int64"),
        "day": pd.date_range("2020-01-01", periods=40), "label": np.array([3, 7] * 20, dtype=np.uint8),
    })  # fmt: skip
    frame.to_parquet(tmp_path / "p.parquet", index=False)
    write(tmp_path / "p.parquet", tmp_path / "q.parquet", flips=(1,), dropped=(0,))
    found = pd.read_parquet(tmp_path / "q.parquet")
    expected = frame.drop(index=0).reset_index(drop=True)
    expected.loc[0, "label"] = 3
    pd.testing.assert_frame_equal(found, expected)
    write(table, tmp_path / "t.parquet")
    typed = pd.read_parquet(tmp_path / "t.parquet")
    assert typed["n"].tolist()[:2] == ["007", "2"] and typed["v"].tolist()[:3] == ["1", "2.50", "1e3"]
    plain = tmp_path / "plain.csv"
    pd.DataFrame({"i": [1, 2, 30, 4], "f": [0.5, 1.25, 2.0, -3.5], "label": list("abab")}).to_csv(plain, index=False)
    write(plain, tmp_path / "plain.parquet")
    assert [str(kind) for kind in pd.read_parquet(tmp_path / "plain.parquet").dtypes[:2]] == ["int64", "float64"]


def test_lines_of_json_keep_lists_and_numbers(tmp_path: Path) -> None:
    rows = [{"x": i, "y": i / 3, "tags": ["a", i], "label": bool(i % 2)} for i in range(30)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "r.jsonl", tmp_path / "s.jsonl", flips=(4,))
    found = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    rows[4]["label"] = True
    assert found == rows


def test_arrays_keep_types_and_names(tmp_path: Path) -> None:
    images = np.arange(6 * 64, dtype=np.int32).reshape(6, 8, 8) % 256
    arrays = {"images": images, "labels": np.array([5, 9] * 3, np.int8), "split": np.array(["train"] * 6),
              "scale": np.array([1.5])}  # fmt: skip
    np.savez(tmp_path / "a.npz", **arrays)
    data = read(tmp_path / "a.npz")
    kept, labels = np.array([True] * 5 + [False]), data.labels.copy()
    labels[0] = 1
    rewrite(data, tmp_path / "b.npz", ".npz", labels=labels, kept=kept)
    with np.load(tmp_path / "b.npz", allow_pickle=False) as found:
        assert {name: (found[name].dtype, found[name].shape) for name in found.files} == {
            "images": (np.int32, (5, 8, 8)), "labels": (np.int8, (5,)), "split": (arrays["split"].dtype, (5,)),
            "scale": (np.float64, (1,)),
        }  # fmt: skip
        assert found["labels"].tolist() == [9, 9, 5, 9, 5]
    assert cells_of(data, "split") == ["train"] * 6


def test_refusals(table: Path, tmp_path: Path) -> None:
    data = read(table, ReadOptions(label="label"))
    for name in ("x.npz", "x.txt", "x"):
        with pytest.raises(ConfigError, match="must end in"):
            check_ending(data, tmp_path / name)
    with pytest.raises(DataError, match="column must be one of n, v, odd"):
        cells_of(data, "nope")
    table.write_text("n,v,odd,label\n1,2,3,no\n1,2,4,yes\n")
    with pytest.raises(DataError, match="must have the 120 rows that were read, got 2"):
        rewrite(data, tmp_path / "x.csv", ".csv", labels=data.labels, kept=np.ones(120, dtype=bool))
