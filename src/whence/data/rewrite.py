"""Writing a data set back with rows left out or relabelled, every other cell as the user had it."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from whence.data.arrays import read_arrays
from whence.data.labelled import LabelledData
from whence.data.readers import read_table
from whence.data.targets import parse_labels
from whence.errors import ConfigError, DataError

__all__ = ["ENDINGS", "cells_of", "check_ending", "rewrite"]

Array: TypeAlias = "np.ndarray[Any, Any]"

ENDINGS = (".csv", ".csv.gz", ".parquet", ".jsonl", ".npz")
_EXACT_INTEGER = 2**63
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def check_ending(data: LabelledData, path: Path) -> str:
    """Return the ending of a file that these data can be written to.

    Raises:
        ConfigError: It is none of them.
    """
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
    tables = data.kind != "image" or _is_table(data)
    fitting = [*(ENDINGS[:-1] if tables else ()), *((".npz",) if data.kind == "image" or _is_npz(data) else ())]
    if ending not in fitting:
        raise ConfigError(f"output must end in {', '.join(fitting)} for {data.kind} data, got {path.name!r}.")
    assert ending is not None
    return ending


def rewrite(
    data: LabelledData, path: Path, ending: str, *, labels: Array, kept: Array, guarded: bool = False
) -> None:  # fmt: skip
    """Write the rows that are kept, with their labels, to a new file.

    A file of a table or of arrays is read again, and its columns, cells and types are written as they are; a label that
    changes takes the form of the first row that has it. From csv to parquet or jsonl, columns become numbers where
    every cell reads back as the same text. Other sources (folders) are written as ids, content and labels.

    Args:
        data: What was read, whole.
        path: The new file.
        ending: One of ``ENDINGS``.
        labels: Class positions [N].
        kept: Which rows to write [N], bools.
        guarded: In CSV, put an apostrophe before text that a spreadsheet would run as a formula: text that begins with
            =, +, -, @, a tab or a carriage return and is no number.

    Raises:
        DataError: The file that was read is no longer what it was.
        OSError: The new file cannot be written.

    Cost: reads the source once.
    """
    changed = labels != data.labels
    if ending == ".npz":
        _write_npz(data, path, labels, kept)
    elif _is_parquet(data) and ending == ".parquet":
        _write_parquet(data, path, labels, kept)
    else:
        frame = _frame(data)
        forms = _forms(data, frame[data.label_name].tolist())
        cells = frame[data.label_name].tolist()
        for row in np.flatnonzero(changed).tolist():
            cells[row] = forms(int(labels[row]))
        frame[data.label_name] = pd.Series(cells, dtype=frame[data.label_name].dtype if not changed.any() else object)
        text = any(part in (".csv", ".tsv") for part in Path(data.source.lower()).suffixes)
        _write_table(frame[kept], path, ending, typed=text, guarded=guarded)


def cells_of(data: LabelledData, name: str) -> list[Any]:
    """Return the cells of a column (or one-dimensional array) of the file that was read, one a row.

    Raises:
        DataError: There is no such column.
    """
    if _is_npz(data):
        columns = {k: v[_present(data, v)].tolist() for k, v in _arrays(data).items() if v.ndim == 1}
    elif _is_table(data):
        columns = {str(k): column.tolist() for k, column in _frame(data).items()}
    else:
        raise DataError(f"{data.source or 'the data'} must be a table to have a column {name!r}, got a folder.")
    if name not in columns:
        raise DataError(f"column must be one of {', '.join(map(str, list(columns)[:20]))}, got {name!r}.")
    return [str(cell) for cell in columns[name]]


def _frame(data: LabelledData) -> pd.DataFrame:
    """Return the table that was read, of the rows that have a label, with cells as they are in the file."""
    if not _is_table(data):
        return _content_frame(data)
    table = read_table(Path(data.source))
    assert table is not None
    _check_column(data, table)
    frame = table[parse_labels(table[data.label_name], data.label_name).kept].reset_index(drop=True)
    _check_rows(data, len(frame))
    return frame


def _content_frame(data: LabelledData) -> pd.DataFrame:
    """Return content that lies in no table as a frame: id, content columns, label, and split where there is one."""
    content = data.content
    frame = content.reset_index(drop=True) if isinstance(content, pd.DataFrame) else pd.DataFrame({"text": content})
    if "id" not in frame:
        frame.insert(0, "id", data.ids)
    frame[data.label_name] = [data.classes[label] for label in data.labels.tolist()]
    return frame if data.split is None else frame.assign(split=data.split)


def _forms(data: LabelledData, cells: list[Any]) -> Callable[[int], Any]:
    """Return what gives a class as the first row of it is written."""
    first: dict[int, Any] = {}
    for cell, label in zip(cells, data.labels.tolist(), strict=True):
        first.setdefault(label, cell)
    return lambda label: first.get(label, data.classes[label])


def _write_table(frame: pd.DataFrame, path: Path, ending: str, *, typed: bool, guarded: bool) -> None:
    """Write cells as they are; ``typed``: text that came from a format without types may become numbers."""
    if ending in (".parquet", ".jsonl"):
        columns = {str(name): _typed(column) if typed else column.tolist() for name, column in frame.items()}
    if ending == ".parquet":
        pq.write_table(pa.table({name: pa.array(cells, from_pandas=True) for name, cells in columns.items()}), path)
    elif ending == ".jsonl":
        names = list(columns)
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for row in zip(*columns.values(), strict=True):
                file.write(json.dumps(dict(zip(names, map(_plain, row), strict=True)), ensure_ascii=False) + "\n")
    else:
        opened = gzip.open if ending == ".csv.gz" else open
        with opened(path, "wt", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            written = _guarded if guarded else _cell
            writer.writerow([written(str(name)) for name in frame.columns])
            writer.writerows([written(cell) for cell in row] for row in frame.itertuples(index=False, name=None))


def _write_parquet(data: LabelledData, path: Path, labels: Array, kept: Array) -> None:
    """Write the user's parquet file with rows taken and labels replaced, its types and metadata kept."""
    table = pq.ParquetFile(data.source).read()
    column = table.column(data.label_name)
    cells = column.to_pylist()
    named = parse_labels(pd.Series(cells, dtype=object), data.label_name)
    rows = np.flatnonzero(named.kept)
    _check_rows(data, len(rows))
    forms = _forms(data, [cells[row] for row in rows.tolist()])
    for row in np.flatnonzero(labels != data.labels).tolist():
        cells[rows[row]] = forms(int(labels[row]))
    place = table.column_names.index(data.label_name)
    table = table.set_column(place, table.schema.field(place), pa.chunked_array([pa.array(cells, type=column.type)]))
    pq.write_table(table.take(pa.array(rows[kept])), path)


def _write_npz(data: LabelledData, path: Path, labels: Array, kept: Array) -> None:
    """Write the user's arrays with rows taken and labels replaced; of a folder its images, class names and paths."""
    if not _is_npz(data):
        names = np.array(data.classes)[labels]
        np.savez_compressed(path, x=np.asarray(data.content)[kept], y=names[kept], ids=data.ids[kept])
        return
    arrays = _arrays(data)
    given = arrays[data.label_name]
    present = _present(data, given)
    forms, answers = _forms(data, given[present].tolist()), given[present].copy()
    for row in np.flatnonzero(labels != data.labels).tolist():
        answers[row] = forms(int(labels[row]))
    taken = np.flatnonzero(present)[kept]
    written = {name: values[taken] if len(values) == len(given) else values for name, values in arrays.items()
               if values.ndim}  # fmt: skip
    written[data.label_name] = answers.reshape(len(answers), *given.shape[1:])[kept]
    np.savez_compressed(path, **written)  # type: ignore[arg-type]  # numpy types its own options among the arrays


def _arrays(data: LabelledData) -> dict[str, Array]:
    """Return the arrays of the file that was read."""
    arrays = read_arrays(Path(data.source))
    if data.label_name not in arrays:
        raise DataError(f"{data.source} must hold the array {data.label_name!r} that was read, got none.")
    return arrays


def _present(data: LabelledData, values: Array) -> Array:
    """Return which rows of an array have a label [N]."""
    label = _arrays(data)[data.label_name].reshape(-1)
    kept = parse_labels(pd.Series(label.tolist(), dtype=object), data.label_name).kept
    _check_rows(data, int(kept.sum()))
    return kept if len(values) == len(kept) else np.zeros(len(values), dtype=bool)


def _typed(column: pd.Series[Any]) -> list[Any]:
    """Return a column of text as numbers where every cell reads back as the same text, else as it is."""
    cells = column.tolist()
    for kind in (int, float):
        try:
            numbers = [kind(cell) for cell in cells]
        except (TypeError, ValueError):
            continue
        exact = kind is float or all(abs(number) < _EXACT_INTEGER for number in numbers)
        if exact and all(str(number) == cell for number, cell in zip(numbers, cells, strict=True)):
            return numbers
    return cells


def _cell(cell: Any) -> Any:
    """Return a cell as CSV holds it: missing is empty."""
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and np.isnan(cell)):
        return ""
    return cell


def _guarded(cell: Any) -> Any:
    """Return a cell as CSV holds it, text that a spreadsheet would run as a formula made text."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULA):
        return _cell(cell)
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _plain(cell: Any) -> Any:
    """Return a cell as JSON holds it: missing is null, what JSON does not know is text."""
    if isinstance(cell, (str, bool, int, list, dict)) or cell is None:
        return cell
    if isinstance(cell, np.generic | np.ndarray):
        return _plain(cell.tolist())
    if isinstance(cell, float):
        return cell if np.isfinite(cell) else None
    return None if pd.isna(cell) else str(cell)


def _check_column(data: LabelledData, table: pd.DataFrame) -> None:
    """Raise unless the label column is there."""
    if data.label_name not in table:
        raise DataError(f"{data.source} must have the column {data.label_name!r} that was read, got none.")


def _check_rows(data: LabelledData, found: int) -> None:
    """Raise unless there are as many rows as were read."""
    if found != len(data):
        raise DataError(f"{data.source} must have the {len(data)} rows that were read, got {found}. Audit it again.")


def _is_table(data: LabelledData) -> bool:
    path = Path(data.source)
    return path.is_file() and not _is_npz(data)


def _is_parquet(data: LabelledData) -> bool:
    return _is_table(data) and data.source.lower().endswith(".parquet")


def _is_npz(data: LabelledData) -> bool:
    return data.source.lower().endswith(".npz") and Path(data.source).is_file()
