from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whence.data import ReadOptions, read
from whence.errors import ConfigError, DataError

Write = Callable[[str, "str | bytes"], Path]
MAILS = "text,label\nsee you at noon,ham\nyou won a big prize,spam\n"


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("m.csv", lambda raw: raw),
        ("m.CSV", lambda raw: raw),
        ("m.csv.gz", gzip.compress),
        ("m.csv.xz", lzma.compress),
        ("m.tsv", lambda raw: raw.replace(b",", b"\t")),
        ("semicolon.csv", lambda raw: raw.replace(b",", b";")),
        ("bom.csv", lambda raw: b"\xef\xbb\xbf" + raw),
        ("crlf.csv", lambda raw: raw.replace(b"\n", b"\r\n")),
        ("unended.csv", lambda raw: raw.rstrip()),
        ("blank.csv", lambda raw: b"\n" + raw + b"\n\n"),
    ],
)
def test_csv_in_many_clothes(write: Write, name: str, pack: Callable[[bytes], bytes]) -> None:
    data = read(write(name, pack(MAILS.encode())))
    assert data.kind == "text" and data.content == ["see you at noon", "you won a big prize"]
    assert data.classes == ("ham", "spam") and data.ids.tolist() == ["0", "1"]
    assert data.label_name == "label" and data.source.endswith(name)


def test_quotes_line_breaks_and_na_in_text_survive(write: Write) -> None:
    body = 'text,label\n"two\nlines, one ""cell""",a\nNA,b\nnan,a\n"",b\n?,a\n'
    data = read(write("t.csv", body), ReadOptions(text="text"))
    assert data.content == ['two\nlines, one "cell"', "NA", "nan", "", "?"]
    assert "1 rows have empty text" in data.notes


def test_markers_are_missing_in_tables(write: Write) -> None:
    rows = ["1,u", "?,NA", ",", "nan,?", "2.5,v", "-3e2,v"]
    data = read(write("t.csv", "x,c,label\n" + "".join(f"{row},{'ab'[i % 2]}\n" for i, row in enumerate(rows))))
    assert isinstance(data.content, pd.DataFrame)
    np.testing.assert_array_equal(data.content["x"], [1, np.nan, np.nan, np.nan, 2.5, -300])
    assert data.content["c"].tolist() == ["u", None, None, None, "v", "v"]
    assert data.content["x"].dtype == np.float64 and data.content["c"].dtype == object
    assert data.notes[0] == "features: 1 numeric, 1 categorical, 6 missing values"


def test_cell_of_ten_megabytes(write: Write) -> None:
    data = read(write("big.csv", f"text,label\n{'word ' * 2_000_000},a\nshort one here,b\n"))
    assert isinstance(data.content, list) and len(data.content[0]) == 10_000_000


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("e.csv", b"", r"e\.csv must not be empty, got 0 bytes"),
        ("e.csv", b"\n \n", r"must not be empty, got no rows"),
        ("e.csv", b"text,label\n", r"must have rows below its header, got none"),
        ("e.csv", b"a,label\n1,x\n2,y,3\n", r"well-formed table, got: Expected 2 fields in line 3, saw 3\. Repair"),
        ("e.csv", b'a,label\n1,"x\n2,y\n', r"well-formed table, got: EOF inside string starting at row 1"),
        ("e.csv", b"a,a,label\n1,2,x\n", r"unique column names, got a more than once"),
        ("e.csv", b"a,label\n\xe9t\x81,x\n", r"must be UTF-8, got byte 0xe9 at position 8 \(line 2\)"),
        ("e.csv", "é,label\nß\n".encode() + b"\xe9,x\n", r"got byte 0xe9 at position 12 \(line 3\)\. Save it as"),
        ("e.jsonl", b'{"a": "\xe9", "label": "x"}\n', r"must be UTF-8, got byte 0xe9 at position 7"),
        ("e.csv", b"\xef\xbb\xbfa,label\nu\xff,x\n", r"got byte 0xff at position 12 \(line 2\)"),
        ("e.csv", "a,label\n1,x\n".encode("utf-16"), r"must be UTF-8, got UTF-16"),
        ("e.csv", "a,label\n1,x\n".encode("utf-16-le"), r"must be text, got a zero byte at position 1"),
        ("e.csv.gz", gzip.compress(MAILS.encode())[:-12], r"must be a whole compressed file, got: Compressed file end"),
        ("e.csv.gz", MAILS.encode(), r"must be a whole compressed file, got: Not a gzipped file"),
        ("e.csv.xz", lzma.compress(MAILS.encode())[:-20], r"must be a whole compressed file"),
        ("e.csv.xz", b"nonsense", r"must be a whole compressed file"),
        ("e.jsonl", b'{"a": 1, "label": "x"}\n[1]\n', r"line 2 must be a JSON object, got list"),
        ("e.jsonl", b'{"a": 1, "label": "x"}\n\n{"a": \n', r"line 3 must be a JSON object, got: Expecting value"),
        ("e.jsonl", b"{}\n{}\n", r"JSON objects with keys, got only empty ones"),
        ("e.jsonl", b"[" * 100_000, r"line 1 must be a JSON object, got: (nested too deeply|Expecting)"),
        ("e.jsonl", b'{"a": ' + b"9" * 5_000 + b"}", r"line 1 must be a JSON object, got: Exceeds"),
        ("e.parquet", b"PAR1 not really", r"readable parquet file, got: "),
        ("e.xlsx", b"PK", r"must be one of \.csv, .* got '\.xlsx'\. Convert or rename"),
        ("e.json", b"[]", r"got '\.json'"),
        ("e.npz.gz", b"x", r"got '\.gz'"),
        ("noending", b"x", r"got 'no ending'"),
    ],
)
def test_hostile_files_are_one_line_errors(write: Write, name: str, raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write(name, raw))
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv must exist, got no such file or folder"):
        read(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match=r"must hold images in one folder per class, got no image"):
        read(tmp_path)


def test_short_csv_rows_are_missing_values(write: Write) -> None:
    data = read(write("t.csv", "label,x,y\na,1,2\nb,3\na,5,6\nb,7,9\n"))
    assert isinstance(data.content, pd.DataFrame)
    np.testing.assert_array_equal(data.content["y"], [2, np.nan, 6, 9])


def test_ragged_jsonl_is_missing_values_with_a_note(write: Write) -> None:
    lines = ['{"x": 1, "c": "u", "label": "a"}', '{"x": 2.5, "label": "b"}', '{"c": "v", "x": null, "label": "a"}']
    data = read(write("t.jsonl", "\n".join(lines)))
    assert isinstance(data.content, pd.DataFrame)
    np.testing.assert_array_equal(data.content["x"], [1, 2.5, np.nan])
    assert data.content["c"].tolist() == ["u", None, "v"]
    assert data.notes[0] == "1 of 3 rows lack a key that others have (taken as missing)"


def test_jsonl_surrogates_separators_and_nesting(write: Write) -> None:
    lines = [
        '{"text": "half \\ud800 a pair of words", "meta": {"k": [1]}, "label": 1}',
        '{"text": "line\u2028separator inside of it", "meta": {"k": [2]}, "label": 0}',
    ]
    data = read(write("t.jsonl", "\n".join(lines)))
    assert data.content == ["half \ufffd a pair of words", "line\u2028separator inside of it"]
    assert data.classes == ("0", "1") and len(data.fingerprint) == 64


def test_nested_jsonl_columns_are_left_out_of_tables(write: Write) -> None:
    rows = "\n".join(f'{{"x": {i * i}, "tags": ["a"], "label": {i % 2}}}' for i in range(6))
    assert "column tags left out: holds lists or objects" in read(write("t.jsonl", rows)).notes


def test_parquet_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "count": pa.array([1, None, 3, 4], pa.int64()),
            "share": pa.array([0.5, None, 1.5, 2.5], pa.float32()),
            "flag": pa.array([True, None, False, True]),
            "money": pa.array([1, 2, None, 4], pa.decimal128(5, 2)),
            "day": pa.array([0, 1, None, 3], pa.date32()),
            "time": pa.array([0, 86_400_000, None, 1], pa.timestamp("ms", tz="UTC")),
            "code": pa.array(["u", "v", None, "u"]).dictionary_encode(),
            "list": pa.array([[1], [2], [3], [4]]),
            "label": pa.array(["a", "b", "a", "b"]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    data = read(tmp_path / "t.parquet")
    frame = data.content
    assert isinstance(frame, pd.DataFrame)
    np.testing.assert_array_equal(frame["count"], [1, np.nan, 3, 4])
    np.testing.assert_array_equal(frame["flag"], [1, np.nan, 0, 1])
    np.testing.assert_array_equal(frame["money"], [1, 2, np.nan, 4])
    np.testing.assert_allclose(frame["time"], [0, 1, np.nan, 1 / 86_400_000])
    assert frame["code"].tolist() == ["u", "v", None, "u"]
    assert frame["day"].tolist() == ["1970-01-01", "1970-01-02", None, "1970-01-04"]
    assert "column list left out: holds lists or objects" in data.notes


def test_parquet_without_rows(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"x": pa.array([], pa.int64()), "label": pa.array([], pa.string())}), tmp_path / "t.parquet"
    )
    with pytest.raises(DataError, match=r"at least one row, got none"):
        read(tmp_path / "t.parquet")


def test_truncated_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": list(range(1000)), "label": ["a", "b"] * 500}), tmp_path / "t.parquet")
    raw = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"readable parquet file"):
        read(tmp_path / "t.parquet")


def test_pandas_index_in_parquet_is_a_row_number_not_a_feature(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(30) ** 2, "label": ["a", "b"] * 15}, index=np.arange(5, 35))
    frame.to_parquet(tmp_path / "t.parquet")
    data = read(tmp_path / "t.parquet")
    assert isinstance(data.content, pd.DataFrame) and list(data.content.columns) == ["x"]


def test_western_files_are_read_with_a_note_and_any_encoding_by_name(tmp_path: Path) -> None:
    text = "Größe,Preis,label\n" + "".join(f"{i * 1.5},{i % 3} €,{'grün' if i % 2 else 'blau'}\n" for i in range(20))
    (tmp_path / "t.csv").write_bytes(text.encode("cp1252"))
    data = read(tmp_path / "t.csv", ReadOptions(label="label"))
    assert data.classes == ("blau", "grün") and list(data.content) == ["Größe", "Preis"]
    assert "encoding: Windows-1252, as the file is not UTF-8 (--encoding names another)" in data.notes
    by_name = read(tmp_path / "t.csv", ReadOptions(label="label", encoding="cp1252"))
    assert by_name.fingerprint == data.fingerprint and not any("encoding" in note for note in by_name.notes)
    for encoding in ("utf-16", "utf-16-le", "utf-8-sig", "mac-roman"):
        (tmp_path / "u.csv").write_bytes(text.encode(encoding))
        found = read(tmp_path / "u.csv", ReadOptions(label="label", encoding=encoding))
        assert found.fingerprint == data.fingerprint
    with pytest.raises(DataError, match=r"must be ascii, got byte 0xf6 at position 2 \(line 1\)\. Name another --enc"):
        read(tmp_path / "t.csv", ReadOptions(label="label", encoding="ascii"))
    for encoding in ("nonsense", "rot13", ""):
        with pytest.raises(ConfigError, match="encoding must be one that Python knows"):
            ReadOptions(encoding=encoding)
