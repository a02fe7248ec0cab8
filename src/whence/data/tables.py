"""From a table file (csv, tsv, parquet, jsonl) to a DataFrame, with errors a person can act on."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from whence.data.textfiles import read_text
from whence.data.values import repaired
from whence.errors import DataError

__all__ = ["read_csv", "read_jsonl", "read_parquet", "separator_of"]


def read_csv(
    path: Path, separator: str | None, encoding: str | None = None
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read a table of text cells with a header line.

    Every cell stays text as it is in the file (nothing is parsed as missing), so "NA" survives in text.

    Args:
        path: .csv or .tsv, plain or compressed (.gz, .xz, .bz2).
        separator: one character, or None to take "," unless only ";" or a tab is in the header.
        encoding: as Python names it; None for UTF-8, or Windows-1252 where the file is not UTF-8 (then a note).

    Returns:
        The table and notes.

    Raises:
        DataError: unreadable, damaged or empty file, another encoding (the byte position is named), a row with
            too many fields, an unclosed quote, a repeated column name.

    Cost: one pass; about three times the file's unpacked size in memory.
    """
    file = read_text(path, encoding, detect=True)
    notes = () if file.note is None else (file.note,)
    if separator is None:
        separator = separator_of(file.text)
        notes = notes if separator == "," else (*notes, f"fields are separated by {separator!r}")
    try:
        cells = pd.read_csv(
            io.StringIO(file.text),
            sep=separator,
            header=None,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            low_memory=False,
        )
    except pd.errors.EmptyDataError as error:
        raise _empty(path) from error
    except (pd.errors.ParserError, ValueError, OverflowError) as error:
        reason = str(error).replace("Error tokenizing data. C error: ", "").strip().rstrip(".")
        raise DataError(f"{path} must be a well-formed table, got: {reason}. Repair that line.") from error
    header = [str(name).strip() or f"unnamed: {column}" for column, name in enumerate(cells.iloc[0].tolist())]
    twice = sorted({name for name in header if header.count(name) > 1}) if len(set(header)) < len(header) else []
    if twice:
        raise DataError(f"{path} must have unique column names, got {', '.join(twice)} more than once. Rename them.")
    frame = cells.iloc[1:].reset_index(drop=True)
    frame.columns = pd.Index(header, dtype=object)
    if len(frame) == 0:
        raise DataError(f"{path} must have rows below its header, got none. Choose another file.")
    return frame, notes


def read_jsonl(path: Path, encoding: str | None = None) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read one JSON object per line; a key that a line lacks is missing in that row.

    Args:
        path: .jsonl, plain or compressed.
        encoding: as Python names it; None for UTF-8.

    Returns:
        The table (object columns) and notes, among them how many rows lack a key.

    Raises:
        DataError: unreadable, damaged or empty file, a line that is not a JSON object (it is named).

    Cost: one pass; several times the file's unpacked size in memory.
    """
    rows: list[dict[str, Any]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(read_text(path, encoding).text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _json_object(line, path, number)
        columns.update(dict.fromkeys(row))
        rows.append(row)
    if not rows:
        raise _empty(path)
    if not columns:
        raise DataError(f"{path} must hold JSON objects with keys, got only empty ones. Choose another file.")
    ragged = sum(len(row) < len(columns) for row in rows)
    notes = (f"{ragged} of {len(rows)} rows lack a key that others have (taken as missing)",) if ragged else ()
    cells = {name: pd.Series([row.get(name) for row in rows], dtype=object) for name in columns}
    return pd.DataFrame(cells), notes


def read_parquet(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read a parquet file; index columns that pandas stored are ordinary columns.

    Raises:
        DataError: unreadable or damaged file, no rows, a repeated column name.

    Cost: one pass; about twice the table's size in memory.
    """
    try:
        table = pq.ParquetFile(path).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:160].rstrip(".") if str(error) else type(error).__name__
        raise DataError(f"{path} must be a readable parquet file, got: {reason}. Save it again.") from error
    return frame_of(table, path), ()


def frame_of(table: pa.Table, path: Path) -> pd.DataFrame:
    """A pandas table whose integers with gaps and dictionaries stay what they are."""
    names = [str(name) for name in table.column_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} must have unique column names, got {', '.join(twice)} more than once. Rename them.")
    if table.num_rows == 0:
        raise DataError(f"{path} must have at least one row, got none. Choose another file.")
    columns: dict[str, Any] = {}
    for name, column in zip(names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        exact = pa.types.is_integer(column.type) and column.null_count > 0
        if exact or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            columns[name] = pd.Series(column.to_pylist(), dtype=object)
        else:
            columns[name] = column.to_pandas(ignore_metadata=True)
    return pd.DataFrame(columns)


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    """One line as a dict, or the error that names the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).split(": line")[0]
        raise DataError(
            f"{path} line {number} must be a JSON object, got: {reason}. Repair or remove the line."
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{path} line {number} must be a JSON object, got {type(row).__name__}. "
            'Write one object a line: {"text": "...", "label": "..."}.'
        )
    if "\\ud" in line.lower():
        row = {repaired(key): repaired(value) if isinstance(value, str) else value for key, value in row.items()}
    return row


def separator_of(text: str) -> str:
    """The separator of the header line: a comma, unless only a semicolon or a tab is there."""
    head = text[:1_000_000].lstrip("\r\n")
    line = head.replace("\r", "\n").partition("\n")[0]
    fields = next(csv.reader([line], strict=False), [line]) if len(line) < 100_000 else line.split(",")
    if len(fields) > 1:
        return ","
    return next((mark for mark in ("\t", ";") if mark in line), ",")


def _empty(path: Path) -> DataError:
    """The error of a file without content."""
    return DataError(f"{path} must not be empty, got no rows. Choose another file.")
