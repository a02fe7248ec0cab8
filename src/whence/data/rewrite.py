"""Writing a data set back with rows left out or relabelled, every other cell as the user had it."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from whence.data.arrays import read_arrays
from whence.data.cells import guarded_cell, json_cell, plain_cell, runs_as_formula
from whence.data.image_folders import check_image_folder, is_image_folder, write_image_folder
from whence.data.labelled import LabelledData
from whence.data.readers import ending_of, read_table
from whence.data.records import Delimited, JsonLines
from whence.data.tables import separator_of
from whence.data.targets import parse_labels
from whence.data.textfiles import TextFile, read_text
from whence.errors import ConfigError, DataError

__all__ = ["ENDINGS", "cells_of", "check_ending", "rewrite", "rows_named"]

Array: TypeAlias = "np.ndarray[Any, Any]"

ENDINGS = (".csv", ".csv.gz", ".tsv", ".parquet", ".jsonl", ".npz")
_SAME_TEXT = frozenset({(".csv", ".csv"), (".csv", ".csv.gz"), (".tsv", ".tsv")})
_SAME_LINES = frozenset({(".jsonl", ".jsonl"), (".ndjson", ".jsonl")})
_EXACT_INTEGER = 2**63


def check_ending(data: LabelledData, path: Path) -> str:
    """Return the ending of a file that these data can be written to; empty for a folder that takes a folder of images.

    Raises:
        ConfigError: It is none of them.
    """
    folder = is_image_folder(data)
    if folder and not path.suffix:
        check_image_folder(data, path)
        return ""
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
    tables = data.kind != "image" or folder or _is_table(data)
    fitting = [*(ENDINGS[:-1] if tables else ()), *((".npz",) if data.kind == "image" or _is_npz(data) else ())]
    if not _is_tsv(data) and ".tsv" in fitting:
        fitting.remove(".tsv")
    if ending not in fitting:
        more = ", or name a folder" if folder else ""
        raise ConfigError(f"output must end in {', '.join(fitting)} for {data.kind} data{more}, got {path.name!r}.")
    assert ending is not None
    return ending


def rewrite(
    data: LabelledData, path: Path, ending: str, *, labels: Array, kept: Array, guarded: bool = False
) -> int:  # fmt: skip
    """Write the rows that are kept, with their labels, to a new file.

    What was read is read again. Where the format stays (csv, tsv, jsonl), every row is written as it stands in the
    file, byte for byte, with its separator, quotes, line ends and encoding, but for the cell of a label that changes;
    in parquet and npz, columns, cells and types stay. A label that changes takes the spelling that most rows of the
    class have. From csv to parquet or jsonl, columns become numbers where every cell reads back as the same text. A
    folder of images is copied file by file into folders by class, or listed: its paths and labels. Rows without a label
    were not judged and are written as they are.

    Args:
        data: What was read, whole.
        path: The new file or folder.
        ending: As `check_ending` returns it.
        labels: Class positions [N].
        kept: Which rows to write [N], bools.
        guarded: In CSV, put an apostrophe before text that a spreadsheet would run as a formula: text that begins with
            =, +, -, @, a tab or a carriage return and is no number.

    Returns:
        How many rows without a label were written too.

    Raises:
        DataError: The file that was read is no longer what it was.
        OSError: The new file cannot be written.

    Cost: reads the source once (text that keeps its format, twice).
    """
    if ending == "":
        write_image_folder(data, path, labels=labels, kept=kept)
        return 0
    if ending == ".npz":
        return _write_npz(data, path, labels, kept)
    if _is_parquet(data) and ending == ".parquet":
        return _write_parquet(data, path, labels, kept)
    frame, labelled = _frame(data)
    column = frame[data.label_name]
    places = np.flatnonzero(labelled)
    forms = _forms(data, column[labelled].tolist())
    changed = {int(places[row]): forms(int(labels[row])) for row in np.flatnonzero(labels != data.labels).tolist()}
    written = np.ones(len(frame), dtype=bool)
    written[places] = kept
    if not _write_records(data, path, ending, column, (changed, written), guarded=guarded):
        cells = column.tolist()
        for row, cell in changed.items():
            cells[row] = cell
        frame[data.label_name] = pd.Series(cells, dtype=object if changed else column.dtype)
        text = any(part in (".csv", ".tsv") for part in Path(data.source.lower()).suffixes)
        _write_table(frame[written], path, ending, typed=text, guarded=guarded)
    return int((~labelled).sum())


def cells_of(data: LabelledData, name: str) -> list[Any]:
    """Return the cells of a column (or one-dimensional array) of the file that was read, one a row.

    Raises:
        DataError: There is no such column.
    """
    if _is_npz(data):
        columns = {k: v[_present(data, v)].tolist() for k, v in _arrays(data).items() if v.ndim == 1}
    elif _is_table(data):
        frame, labelled = _frame(data)
        columns = {str(k): column.tolist() for k, column in frame[labelled].items()}
    else:
        raise DataError(f"{data.source or 'the data'} must be a table to have a column {name!r}, got a folder.")
    if name not in columns:
        raise DataError(f"column must be one of {', '.join(map(str, list(columns)[:20]))}, got {name!r}.")
    return [str(cell) for cell in columns[name]]


def rows_named(data: LabelledData, value: str) -> tuple[str, str] | None:
    """Return the column of the file in which a value stands once while the column names every row, and that row's id.

    Args:
        data: What was read.
        value: A cell.

    Returns:
        Name and id; None where there is no such column, or the file is not what it was.
    """
    try:
        if not _is_table(data):
            return None
        frame, labelled = _frame(data)
    except DataError:
        return None
    for name, column in frame[labelled].items():
        cells = column.astype(str).str.strip()
        found = np.flatnonzero((cells == value).to_numpy())
        if len(found) == 1 and str(name) != data.label_name and cells.is_unique:
            return str(name), str(data.ids[found[0]])
    return None


def _frame(data: LabelledData) -> tuple[pd.DataFrame, Array]:
    """Return the table that was read, cells as they are in the file [M, F], and which rows have a label [M]."""
    if not _is_table(data):
        return _content_frame(data), np.ones(len(data), dtype=bool)
    table = read_table(Path(data.source), data.encoding)
    assert table is not None
    _check_column(data, table)
    labelled = parse_labels(table[data.label_name], data.label_name).kept
    _check_rows(data, int(labelled.sum()))
    return table.reset_index(drop=True), labelled


def _content_frame(data: LabelledData) -> pd.DataFrame:
    """Return content that lies in no table as a frame: id, content columns, label, and split where there is one."""
    content = data.content
    if is_image_folder(data):
        frame = pd.DataFrame({"file": data.ids})
    else:
        frame = content.reset_index(drop=True) if isinstance(content, pd.DataFrame) else pd.DataFrame({"text": content})
    if "id" not in frame and "file" not in frame:
        frame.insert(0, "id", data.ids)
    frame[data.label_name] = [data.classes[label] for label in data.labels.tolist()]
    return frame if data.split is None else frame.assign(split=data.split)


def _forms(data: LabelledData, cells: list[Any]) -> Callable[[int], Any]:
    """Return what gives a class as most rows of it are written, of equally frequent spellings the first."""
    spelled: dict[int, Counter[Any]] = {}
    for cell, label in zip(cells, data.labels.tolist(), strict=True):
        spelled.setdefault(label, Counter())[cell] += 1
    most = {label: counted.most_common(1)[0][0] for label, counted in spelled.items()}
    return lambda label: most.get(label, data.classes[label])


def _write_records(
    data: LabelledData, path: Path, ending: str, column: pd.Series[Any], rows: tuple[dict[int, Any], Array], *,
    guarded: bool,
) -> bool:  # fmt: skip
    """Write rows as they stand in a text file, but for labels that change; False where the format changes.

    ``column``: the label cells as they were read, ``rows``: the new ones by row, and which rows are written [M].
    """
    told = ending_of(Path(data.source)) if _is_table(data) else ""
    if (told, ending) not in (_SAME_TEXT | _SAME_LINES):
        return False
    file = read_text(Path(data.source), data.encoding, detect=told in (".csv", ".tsv"))
    if (told, ending) in _SAME_LINES:
        records = _lines(data, file, rows)
    else:
        table = Delimited(text=file.text, separator="\t" if told == ".tsv" else separator_of(file.text))
        records = _records(data, table, column, rows, guarded)
    if records is None:
        return False
    opened = gzip.open if ending.endswith(".gz") else open
    with opened(path, "wb") as out:
        out.write(file.encoded("".join(_ended(records))))
    return True


def _lines(data: LabelledData, file: TextFile, rows: tuple[dict[int, Any], Array]) -> list[str] | None:
    """Return the lines of a jsonl text that are written."""
    lines, (changed, written) = JsonLines(text=file.text), rows
    if len(lines.records) != len(written):
        return None
    new = {row: lines.replaced(row, data.label_name, cell) for row, cell in changed.items()}
    return [new.get(row, line) for row, line in enumerate(lines.records) if written[row]]


def _records(
    data: LabelledData, table: Delimited, column: pd.Series[Any], rows: tuple[dict[int, Any], Array], guarded: bool
) -> list[str] | None:
    """Return the records of a csv text that are written, its header first; None where they were read differently."""
    names = [name.strip() or f"unnamed: {place}" for place, name in enumerate(table.names)]
    place = names.index(data.label_name) if data.label_name in names else 0
    if table.cells(place)[1:] != column.tolist():  # odd mixtures of line ends
        return None
    changed, written = rows
    if guarded:
        text = "".join(table.guarded(row, runs_as_formula) for row in range(len(table.records)))
        table = Delimited(text=text, separator=table.separator)
    form = guarded_cell if guarded else plain_cell
    new = {row: table.replaced(row + 1, place, form(cell)) for row, cell in changed.items()}
    header, *others = table.records
    return [header, *(new.get(row, record) for row, record in enumerate(others) if written[row])]


def _ended(records: list[str]) -> list[str]:
    """Return records each of which ends its line, but for the last, which may not."""
    end = "\r\n" if records[0].endswith("\r\n") else "\r" if records[0].endswith("\r") else "\n"
    return [record if record.endswith(("\r", "\n")) else record + end for record in records[:-1]] + records[-1:]


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
                file.write(json.dumps(dict(zip(names, map(json_cell, row), strict=True)), ensure_ascii=False) + "\n")
    else:
        opened = gzip.open if ending == ".csv.gz" else open
        with opened(path, "wt", encoding="utf-8", newline="") as file:
            mark, put = "\t" if ending == ".tsv" else ",", guarded_cell if guarded else plain_cell
            plain = csv.writer(file, delimiter=mark, lineterminator="\n")
            quoted = csv.writer(file, delimiter=mark, lineterminator="\n", quoting=csv.QUOTE_ALL)
            rows: list[tuple[Any, ...]] = [tuple(map(str, frame.columns)), *frame.itertuples(index=False, name=None)]
            for row in rows:
                cells = [put(cell) for cell in row]
                # Python before 3.13 leaves a carriage return bare, where readers see the end of a line
                writer = quoted if any(isinstance(cell, str) and "\r" in cell for cell in cells) else plain
                writer.writerow(cells)


def _write_parquet(data: LabelledData, path: Path, labels: Array, kept: Array) -> int:
    """Write the user's parquet file with rows taken and labels replaced, its types and metadata kept.

    Returns:
        How many rows without a label were written.
    """
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
    written = np.ones(len(cells), dtype=bool)
    written[rows] = kept
    pq.write_table(table.filter(pa.array(written)), path)
    return len(cells) - len(rows)


def _write_npz(data: LabelledData, path: Path, labels: Array, kept: Array) -> int:
    """Write the user's arrays with rows taken and labels replaced; of a folder its images, class names and paths.

    Returns:
        How many rows without a label were written.
    """
    if not _is_npz(data):
        names = np.array(data.classes)[labels]
        np.savez_compressed(path, x=np.asarray(data.content)[kept], y=names[kept], ids=data.ids[kept])
        return 0
    arrays = _arrays(data)
    given = arrays[data.label_name]
    present = _present(data, given)
    forms, answers, places = _forms(data, given[present].tolist()), given.reshape(-1).copy(), np.flatnonzero(present)
    for row in np.flatnonzero(labels != data.labels).tolist():
        answers[places[row]] = forms(int(labels[row]))
    taken = np.ones(len(given), dtype=bool)
    taken[places] = kept
    written = {name: values[taken] if len(values) == len(given) else values for name, values in arrays.items()
               if values.ndim}  # fmt: skip
    written[data.label_name] = answers.reshape(given.shape)[taken]
    np.savez_compressed(path, **written)  # type: ignore[arg-type]  # numpy types its own options among the arrays
    return int((~present).sum())


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


def _is_tsv(data: LabelledData) -> bool:
    return _is_table(data) and ending_of(Path(data.source)) == ".tsv"
