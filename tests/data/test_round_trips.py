"""Hypothesis: what is written is what is read, and no bytes whatsoever end in anything but a one-line error."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whence.data import LabelledData, ReadOptions, from_arrays, read
from whence.data.values import MISSING, as_number
from whence.errors import DataError

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
CLEAN = TEXT.map(lambda text: text.strip().replace("\r", " "))
OPTIONS = ReadOptions(text="text", label="label", id="key")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def texts() -> st.SearchStrategy[list[str]]:
    return st.lists(CLEAN, min_size=2, max_size=8).filter(lambda rows: any(text.strip() for text in rows))


def frame_of(rows: list[str]) -> pd.DataFrame:
    labels = ["a" if row % 2 else "b" for row in range(len(rows))]
    return pd.DataFrame({"key": [f"k{row}" for row in range(len(rows))], "text": rows, "label": labels})


def assert_same(data: LabelledData, rows: list[str]) -> None:
    assert data.content == rows
    assert data.ids.tolist() == [f"k{row}" for row in range(len(rows))]
    assert data.labels.tolist() == [1 - row % 2 for row in range(len(rows))]


@QUICK
@given(texts())
def test_texts_survive_every_table_format(folder: Path, rows: list[str]) -> None:
    frame = frame_of(rows)
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_csv(folder / "t.tsv", index=False, sep="\t")
    frame.to_parquet(folder / "t.parquet")
    with gzip.open(folder / "t.jsonl.gz", "wt", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=bool(len(rows) % 2)) + "\n" for row in frame.to_dict("records"))
    prints = set()
    for name in ("t.csv", "t.tsv", "t.parquet", "t.jsonl.gz"):
        data = read(folder / name, OPTIONS)
        assert_same(data, rows)
        prints.add(data.fingerprint)
    assert len(prints) == 1


NUMBERS = st.floats(allow_nan=True, allow_infinity=False)
CATEGORIES = st.one_of(
    st.none(), CLEAN.filter(lambda text: text not in MISSING and np.isnan(as_number(text)) and len(text.split()) < 2)
)


@QUICK
@given(st.lists(st.tuples(NUMBERS, CATEGORIES), min_size=4, max_size=10))
def test_numbers_and_categories_survive(folder: Path, rows: list[tuple[float, str | None]]) -> None:
    frame = pd.DataFrame(
        {
            "n": pd.Series([*(number for number, _ in rows), 1.5, 2.5], dtype=np.float64),
            "c": pd.Series([*(category for _, category in rows), "left", "right"], dtype=object),
            "label": ["a", "b"] * (len(rows) // 2 + 1) + ["a"] * (len(rows) % 2),
        }
    )
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_parquet(folder / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        data = read(folder / name)
        assert isinstance(data.content, pd.DataFrame)
        np.testing.assert_array_equal(data.content["n"], frame["n"])
        assert data.content["c"].tolist() == [value if isinstance(value, str) else None for value in frame["c"]]


@QUICK
@given(st.integers(2, 6), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]), st.integers(0, 2**31))
def test_arrays_survive_npz(folder: Path, n: int, height: int, width: int, channels: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    y = np.arange(n) % 2
    np.savez_compressed(folder / "t.npz", x=x, y=y)
    data = read(folder / "t.npz")
    assert isinstance(data.content, np.ndarray)
    np.testing.assert_array_equal(data.content, x)
    assert data.fingerprint == from_arrays(x, y).fingerprint


def attempt(path: Path, options: ReadOptions | None = None) -> LabelledData | None:
    """Read; anything but a result or a one-line DataError fails the test."""
    try:
        return read(path, options)
    except DataError as error:
        message = str(error)
        assert "\n" not in message and message.endswith((".", "?")) and len(message) < 2_000
        return None


BYTES = st.one_of(
    st.binary(max_size=200),
    TEXT.map(str.encode),
    st.lists(st.sampled_from([b",", b'"', b"\n", b"\r", b"label", b"x", b"1", b"\xff", b"\xef\xbb\xbf", b";", b" "]),
             max_size=40).map(b"".join),
)  # fmt: skip


@QUICK
@given(BYTES, st.sampled_from(["f.csv", "f.tsv", "f.csv.gz", "f.csv.xz", "f.jsonl", "f.parquet", "f.npz"]))
def test_any_bytes_are_read_or_refused(folder: Path, raw: bytes, name: str) -> None:
    (folder / name).write_bytes(raw)
    attempt(folder / name)


@QUICK
@given(BYTES)
def test_any_bytes_in_a_good_wrapper(folder: Path, raw: bytes) -> None:
    (folder / "f.csv.gz").write_bytes(gzip.compress(b"text,label\n" + raw))
    attempt(folder / "f.csv.gz")
    (folder / "f.csv").write_bytes(b"label,x\na,1\nb,2\n" + raw)
    attempt(folder / "f.csv")
    (folder / "f.jsonl").write_bytes(b'{"x": 1, "label": "a"}\n{"x": 2, "label": "b"}\n' + raw)
    attempt(folder / "f.jsonl")


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@QUICK
@given(st.lists(st.fixed_dictionaries({"x": JSON, "label": JSON, "y": JSON}), min_size=1, max_size=8))
def test_any_json_rows_are_read_or_refused(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "f.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    data = attempt(folder / "f.jsonl")
    if data is not None:
        assert len(data.fingerprint) == 64


@pytest.mark.parametrize("name", ["f.csv.gz", "f.jsonl", "f.parquet", "f.npz"])
@QUICK
@given(data=st.data())
def test_flipped_bytes_are_read_or_refused(folder: Path, name: str, data: st.DataObject) -> None:
    frame = frame_of([f"row {row} of it" for row in range(20)])
    if name == "f.npz":
        np.savez_compressed(folder / name, x=np.arange(400.0).reshape(20, 20), y=np.arange(20) % 2)
    elif name == "f.parquet":
        frame.to_parquet(folder / name)
    elif name == "f.csv.gz":
        frame.to_csv(folder / name, index=False)
    else:
        frame.to_json(folder / name, orient="records", lines=True)
    raw = bytearray((folder / name).read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[position] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(raw)
    attempt(folder / name)
