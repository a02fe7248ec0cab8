"""What is written back stands as it stood in the file, but for the cells that change."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from whence.data import LabelledData, ReadOptions, read
from whence.data.records import Delimited, JsonLines
from whence.data.rewrite import check_ending, rewrite
from whence.data.values import is_number
from whence.errors import ConfigError

QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(data: LabelledData, out: Path, flips: tuple[int, ...] = (), dropped: tuple[int, ...] = (),
            guarded: bool = False) -> tuple[bytes, int]:  # fmt: skip
    labels, kept = data.labels.copy(), np.ones(len(data), dtype=bool)
    labels[list(flips)] = 1 - labels[list(flips)]
    kept[list(dropped)] = False
    count = rewrite(data, out, check_ending(data, out), labels=labels, kept=kept, guarded=guarded)
    return out.read_bytes(), count


PIECES = st.lists(st.sampled_from([",", ";", "\t", '"', '""', "\n", "\r\n", " ", "a", "label", "1", "\u2028"]),
                  max_size=40).map("".join)  # fmt: skip


@QUICK
@example(',\n","', ",")
@given(PIECES, st.sampled_from([",", ";", "\t"]))
def test_records_are_those_that_pandas_reads(text: str, separator: str) -> None:
    try:
        table = pd.read_csv(io.StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False,
                            na_filter=False, low_memory=False)  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError):
        return
    rows = Delimited(text=text, separator=separator)
    assert "".join(rows.records).rstrip() == text.rstrip() or not text.strip()
    assert len(rows.records) == len(table)
    for place in range(table.shape[1]):
        assert rows.cells(place) == table[place].tolist()


def test_what_is_read_differently_is_written_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.csv").write_bytes(b"a,label\r1,x\r2,y\r\r3,x\r4,y")
    same, _ = written(read(tmp_path / "old.csv"), tmp_path / "same.csv")
    assert same == (tmp_path / "old.csv").read_bytes()
    monkeypatch.setattr(Delimited, "cells", lambda self, place: ["label", "read", "otherwise"])
    by_cell, _ = written(read(tmp_path / "old.csv"), tmp_path / "new.csv", flips=(0,))
    assert by_cell == b"a,label\n1,y\n2,y\n3,x\n4,y\n"


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@QUICK
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5), CELL, st.booleans())
def test_a_replaced_cell_reads_back_and_nothing_else_moves(
    rows: list[tuple[str, str]], cell: str, quoted: bool
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=";", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerows([("x", "y", "z"), *((a, b, "end") for a, b in rows)])
    table = Delimited(text=buffer.getvalue(), separator=";")
    assert table.names == ["x", "y", "z"] and len(table.records) == len(rows) + 1
    new = [table.replaced(row + 1, 1, cell) for row in range(len(rows))]
    found = list(csv.reader(io.StringIO("".join(new), newline=""), delimiter=";"))
    assert found == [[a, cell, "end"] for a, _ in rows]


@QUICK
@given(st.lists(st.tuples(CELL, st.sampled_from(["=1+1", "-2,5", "@x", "+3", "plain", "\tt"])), min_size=1, max_size=5))
def test_guarded_cells_are_the_dangerous_ones(rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=";").writerows([("x", "y"), *rows])
    table = Delimited(text=buffer.getvalue(), separator=";")

    def runs(cell: str) -> bool:
        return cell.startswith(("=", "+", "-", "@", "\t")) and not is_number(cell)

    text = "".join(table.guarded(row, runs) for row in range(len(table.records)))
    found = list(csv.reader(io.StringIO(text, newline=""), delimiter=";"))
    assert found[1:] == [[f"'{cell}" if runs(cell) else cell for cell in row] for row in rows]


JSON_ROW = st.dictionaries(st.text(max_size=4), st.none() | st.booleans() | st.integers() | st.text(max_size=6)
                           | st.lists(st.text(max_size=3), max_size=2), max_size=4)  # fmt: skip


@QUICK
@given(JSON_ROW, st.text(max_size=5), st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]))
def test_one_value_of_a_json_line_is_replaced(
    row: dict[str, object], value: str, ascii_only: bool, marks: tuple[str, str]
) -> None:
    row = {"first": 1, **row, "label": "old", "last": {"label": "inner"}}
    text = json.dumps(row, ensure_ascii=ascii_only, separators=marks).replace("\r", "\\r") + "\n"
    lines = JsonLines(text=text)
    new = lines.replaced(0, "label", value)
    assert json.loads(new) == {**row, "label": value}
    assert len(new) - len(json.dumps(value, ensure_ascii=text.isascii())) == len(text) - len('"old"')
    assert json.loads(lines.replaced(0, "missing", value)) == {**row, "missing": value}


GERMAN = [("", "Größe", "Lohn", "Klasse"), ("0", "1,5", "16,19", "gut"), ("1", "2,25", '"12,65"', " schlecht "),
          ("2", "", "9", "gut"), ("3", "4,5", "=1+1", "schlecht"), ("4", "7,5", "-3,5", "schlecht")]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_german_table_comes_back_line_by_line(tmp_path: Path, encoding: str, end: str) -> None:
    lines = [";".join(row) for row in [GERMAN[0], *GERMAN[1:] * 5]]
    (tmp_path / "t.csv").write_bytes(end.join([*lines, ""]).encode(encoding))
    data = read(tmp_path / "t.csv", ReadOptions(label="Klasse", encoding="utf-16" if encoding == "utf-16" else None))
    assert data.classes == ("gut", "schlecht")
    same, unlabelled = written(data, tmp_path / "same.csv")
    assert same == (tmp_path / "t.csv").read_bytes() and unlabelled == 0
    with gzip.open(tmp_path / "t.csv.gz", "wb") as file:
        file.write(same)
    packed, _ = written(data, tmp_path / "same.csv.gz")
    assert gzip.decompress(packed) == same
    new, _ = written(data, tmp_path / "new.csv", flips=(0, 1), dropped=(2,))
    expected = [lines[0], lines[1].replace("gut", "schlecht"), lines[2].replace(" schlecht ", "gut"), *lines[4:], ""]
    assert new.decode(encoding) == end.join(expected)
    safe, _ = written(data, tmp_path / "safe.csv", guarded=True)
    assert safe.decode(encoding) == same.decode(encoding).replace("=1+1", "'=1+1")


def test_rows_without_a_label_are_kept_as_they_are(tmp_path: Path) -> None:
    lines = ["text\tlabel", *(f"message {i} of them\t{'ab'[i % 2]}" for i in range(120)), "no label here\t"]
    lines.append("last one\ta")
    (tmp_path / "t.tsv").write_text("\n".join(lines), encoding="utf-8")
    data = read(tmp_path / "t.tsv")
    new, unlabelled = written(data, tmp_path / "new.tsv", flips=(1,), dropped=(0, 120))
    assert new.decode() == "\n".join([lines[0], lines[2].replace("\tb", "\ta"), *lines[3:-1]]) + "\n"
    assert unlabelled == 1
    as_commas, _ = written(data, tmp_path / "new.csv", dropped=(0,))
    assert as_commas.decode().splitlines()[-2:] == ["no label here,", "last one,a"]
    frame = pd.DataFrame({"text": [line.split("\t")[0] for line in lines[1:]], "label": [*"ab" * 60, None, "a"]})
    frame.to_parquet(tmp_path / "t.parquet")
    _, unlabelled = written(read(tmp_path / "t.parquet"), tmp_path / "new.parquet", flips=(1,), dropped=(0,))
    assert unlabelled == 1 and pd.read_parquet(tmp_path / "new.parquet")["label"].fillna("").tolist() == [
        "a", *"ab" * 59, "", "a",
    ]  # fmt: skip
    labels = np.array([*"ab" * 60, "", "a"])
    np.savez(tmp_path / "t.npz", x=np.random.default_rng(0).random((122, 3)), y=labels)
    _, unlabelled = written(read(tmp_path / "t.npz"), tmp_path / "new.npz", flips=(1,), dropped=(0,))
    with np.load(tmp_path / "new.npz") as found:
        assert unlabelled == 1 and found["y"].tolist() == ["a", *"ab" * 59, "", "a"]
    (tmp_path / "t.jsonl").write_text("".join(
        json.dumps({"text": text, "label": None if pd.isna(label) else label}) + "\n"
        for text, label in frame.itertuples(index=False)), encoding="utf-8")  # fmt: skip
    new, unlabelled = written(read(tmp_path / "t.jsonl"), tmp_path / "new.jsonl", dropped=(0,))
    assert unlabelled == 1 and new == (tmp_path / "t.jsonl").read_bytes().split(b"\n", 1)[1]


def test_a_new_label_takes_the_spelling_of_most_rows(tmp_path: Path) -> None:
    cells = ["no ", "no", "no", "yes", "yes", "yes"]
    (tmp_path / "t.csv").write_text("n,label\n" + "".join(f"{i * 2.5},{cell}\n" for i, cell in enumerate(cells * 5)))
    new, _ = written(read(tmp_path / "t.csv"), tmp_path / "new.csv", flips=(3,))
    assert new.decode().splitlines()[4] == "7.5,no"


def test_tab_separated_output_is_for_tab_separated_input(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("n,label\n" + "".join(f"{i * 2.5},{'ab'[i % 2]}\n" for i in range(30)))
    with pytest.raises(ConfigError, match="must end in"):
        check_ending(read(tmp_path / "t.csv"), tmp_path / "new.tsv")
