"""From a table to labelled data: which column is what, and the content in the form of its kind."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from whence.data.columns import ProfiledColumn, holds_images, profile
from whence.data.images import decode_cells
from whence.data.labelled import Content, Kind, LabelledData
from whence.data.options import ReadOptions
from whence.data.targets import parse_labels
from whence.data.values import missing_mask, quoted, to_texts
from whence.errors import DataError

__all__ = ["find_column", "from_frame"]

Array: TypeAlias = "np.ndarray[Any, Any]"

LABEL_NAMES = (("label", "labels", "target", "class"), ("y", "category"))  # the second only without the first
TRUE = frozenset({"1", "true", "yes", "y", "t"})
FALSE = frozenset({"0", "false", "no", "n", "f", ""})
MANY_CATEGORIES = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """Content of one kind, the notes of finding it."""

    kind: Kind
    content: Content
    notes: tuple[str, ...]


def from_frame(
    frame: pd.DataFrame, options: ReadOptions | None = None, *, source: str = "", folder: Path | None = None
) -> LabelledData:
    """Make labelled data from a DataFrame; columns that ``options`` leaves open are told apart by content.

    Ids are the id column, else the frame's index if it is not the default one and unique, else row
    numbers from 0. Free text makes the data text (several text columns are joined by a line break),
    image files or encoded images make it image, else it is tabular: numbers stay numbers with NaN for
    missing, everything else becomes a category (text or None). '', '?', 'NA', 'nan', 'null' and the like
    are missing in tables, never in text. Constant columns, row numbers and a unique string per row
    are left out. Every such decision is a note.

    Args:
        frame: [N, F] the table.
        options: which column plays which part.
        source: where the table came from, for the report.
        folder: where relative image paths start.

    Returns:
        LabelledData of the rows that have a label.

    Raises:
        DataError: a column that does not exist (the closest is suggested) or occurs twice, no label
            column, labels that are not one class per row, infinite numbers, unreadable images, no feature.

    Cost: a few passes over the table; a second copy of it.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"text": ["win a prize", "see you at noon", "call me back"], "label": list("abb")})
        >>> from_frame(table, ReadOptions(text="text")).classes
        ('a', 'b')
    """
    options = options or ReadOptions()
    names = _checked_names(frame)
    label = _label_column(names, options)
    roles = {part: find_column(names, getattr(options, part), part) for part in ("id", "split", "reference", "image")}
    dropped = {find_column(names, name, "drop") for name in options.drop}
    if roles["split"] is None and "split" in names and label != "split" and "split" not in dropped:
        roles["split"] = "split"
    targets = parse_labels(frame[label], label)
    ids, id_column, notes = _ids(frame, names, roles["id"], dropped | {label})
    used = {label, id_column, roles["split"], roles["reference"]} | dropped
    left = [name for name in names if name not in used]
    kept = frame if targets.kept.all() else frame[targets.kept]
    found = _content(kept, left, roles["image"], options, folder)
    split = None if roles["split"] is None else np.array(to_texts(kept[roles["split"]].tolist()))
    return LabelledData(
        ids=ids[targets.kept],
        kind=found.kind,
        content=found.content,
        labels=targets.labels,
        classes=targets.classes,
        split=split,
        reference=None if roles["reference"] is None else _flags(kept[roles["reference"]], roles["reference"]),
        source=source,
        label_name=label,
        notes=(*notes, *targets.notes, *found.notes),
    )


def find_column(names: list[str], name: str | None, part: str) -> str | None:
    """The column of that name, or the error that suggests the closest one."""
    if name is None or name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    close = close or [other for other in names if other.lower() == name.strip().lower()]
    hint = f"Did you mean {close[0]!r}?" if close else f"Use one of: {quoted(names)}."
    raise DataError(f"{part} column must be in the data, got {name!r}. {hint}")


def _checked_names(frame: pd.DataFrame) -> list[str]:
    """Column names as text, unique, or the error that names the one that occurs twice."""
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"column names must be unique, got {quoted(twice)} more than once. Rename them.")
    if list(frame.columns) != names:
        strange = quoted(repr(name) for name in frame.columns if not isinstance(name, str))
        raise DataError(
            f"column names must be text, got {strange}. "
            "Rename them: frame.columns = [str(name) for name in frame.columns]."
        )
    return names


def _label_column(names: list[str], options: ReadOptions) -> str:
    """The label column: as said, else the only one with an unmistakable name."""
    if options.label is not None:
        found = find_column(names, options.label, "label")
        assert found is not None
        return found
    taken = {options.text, options.image, options.id, options.split, options.reference, *options.drop}
    guesses: list[str] = []
    for usual in LABEL_NAMES:
        guesses = guesses or [name for name in names if name.strip().lower() in usual and name not in taken]
    if len(guesses) == 1:
        return guesses[0]
    got = f"several candidates: {quoted(guesses)}" if guesses else f"the columns {quoted(names)}"
    raise DataError(f"the label column must be known, got {got}. Name it with --label.")


def _ids(
    frame: pd.DataFrame, names: list[str], chosen: str | None, used: set[str | None]
) -> tuple[Array, str | None, list[str]]:
    """Ids of all rows, the column they came from, and what was decided."""
    rows = len(frame)
    if chosen is not None:
        column = frame[chosen]
        empty = missing_mask(column)
        if empty.any():
            raise DataError(
                f"id column {chosen!r} must name every row, got {int(empty.sum())} rows without an id (first: row "
                f"{int(np.argmax(empty))}). Fill them, or leave --id out to use row numbers."
            )
        return np.array(to_texts(column.tolist())), chosen, []
    guess = next((name for name in names if name.lower() == "id" and name not in used), None)
    if guess is not None:
        texts = to_texts(frame[guess].tolist())
        if len(set(texts)) == rows and not missing_mask(frame[guess]).any() and max(map(len, texts)) <= 256:
            return np.array(texts), guess, [f"ids: column {guess}"]
        return _row_numbers(rows), guess, [f"column {guess} left out: repeats or misses values; ids are row numbers"]
    index = frame.index
    default = isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1
    if not default and index.nlevels == 1 and index.is_unique and not index.hasnans:
        return np.array(to_texts(index.tolist())), None, ["ids: the index of the table"]
    return _row_numbers(rows), None, []


def _row_numbers(rows: int) -> Array:
    """Ids "0", "1", …."""
    return np.arange(rows).astype(str)


def _flags(column: pd.Series[Any], name: str) -> Array:
    """[N] bool from 1/0, true/false, yes/no; empty is false."""
    texts = ["" if gone else text.strip().lower() for text, gone in
             zip(to_texts(column.tolist()), missing_mask(column), strict=True)]  # fmt: skip
    strange = [text for text in texts if text not in TRUE and text not in FALSE]
    if strange:
        raise DataError(
            f"reference column {name!r} must hold 1/0, true/false or yes/no, got {strange[0][:40]!r}. "
            "Choose another column."
        )
    return np.array([text in TRUE for text in texts], dtype=bool)


def _content(
    frame: pd.DataFrame, left: list[str], image: str | None, options: ReadOptions, folder: Path | None
) -> _Found:
    """The content of the kind that the user named, or that the columns show."""
    if image is not None:
        return _image_content(frame[image], image, options, folder, [])
    if options.text is not None:
        return _text_content(frame, _text_columns(left, options.text))
    images = [name for name in left if holds_images(frame[name], folder)]
    if images:
        return _image_content(frame[images[0]], images[0], options, folder, left)
    columns = [profile(frame[name], name, folder) for name in left]
    chosen = _free_text(columns)
    if chosen:
        ignored = [column.name for column in columns if column.name not in chosen]
        return _text_content(frame, chosen, ignored)
    return _table_content(columns, len(frame))


def _text_columns(left: list[str], wanted: str) -> list[str]:
    """The columns of --text, split at commas unless that is a column's own name."""
    parts = [wanted] if wanted in left else [part.strip() for part in wanted.split(",")]
    return [name for name in (find_column(left, part, "text") for part in parts) if name is not None]


def _free_text(columns: list[ProfiledColumn]) -> list[str]:
    """Names of the text columns, if they are what the table is about."""
    texts = [column for column in columns if column.part == "text"]
    features = [column for column in columns if column.part in ("numeric", "categorical")]
    if texts and (not features or max(column.characters for column in texts) >= 40):
        return [column.name for column in texts]
    if features or texts:
        varied = [column for column in features if column.distinct > 0.5 * len(column.values)]
        if len(features) == 1 and varied and varied[0].part == "categorical" and not texts:
            return [varied[0].name]
        return []
    strings = [column for column in columns if column.part == "identifier" and column.values.dtype == object]
    return [strings[0].name] if len(strings) == 1 else []


def _text_content(frame: pd.DataFrame, names: list[str], ignored: list[str] | None = None) -> _Found:
    """One string per row; several columns joined by a line break."""
    columns = [to_texts(frame[name].tolist()) for name in names]
    texts = columns[0] if len(columns) == 1 else ["\n".join(filter(None, row)) for row in zip(*columns, strict=True)]
    empty = sum(not text.strip() for text in texts)
    if empty == len(texts):
        raise DataError(
            f"text column {names[0]!r} must hold text, got {empty} empty rows of {len(texts)}. "
            "Choose another column with --text."
        )
    median = int(np.median([len(text) for text in texts]))
    many = len(names) > 1
    notes = [f"text column{'s' * many}: {' + '.join(names)} (median {median} characters)"]
    if empty:
        notes.append(f"{empty} rows have empty text")
    if ignored:
        notes.append(f"columns not used: {quoted(ignored)}")
    return _Found(kind="text", content=texts, notes=tuple(notes))


def _image_content(
    column: pd.Series[Any], name: str, options: ReadOptions, folder: Path | None, left: list[str]
) -> _Found:
    """Images decoded to one common size."""
    images, notes = decode_cells(column.tolist(), name, folder, options.size)
    ignored = [other for other in left if other != name]
    unused = (f"columns not used: {quoted(ignored)}",) if ignored else ()
    return _Found(kind="image", content=images, notes=(f"image column: {name}", *notes, *unused))


def _table_content(columns: list[ProfiledColumn], rows: int) -> _Found:
    """A DataFrame of float64 and object columns."""
    notes = [column.note for column in columns if column.note]
    parts: dict[str, Array] = {}
    for column in columns:
        if column.part in ("numeric", "categorical"):
            parts[column.name] = column.values
        elif column.part == "text":
            notes.append(f"column {column.name} left out: free text; use --text {column.name} to audit it instead")
        if column.part == "categorical" and column.distinct > MANY_CATEGORIES:
            notes.append(f"column {column.name} has {column.distinct} categories")
    if not parts:
        why = f" ({'; '.join(notes[:3])})" if notes else ""
        raise DataError(
            f"the data must have at least one column beside the label that tells rows apart, got none{why}. "
            "Add features, or name a column with --text or --image."
        )
    table = pd.DataFrame({name: pd.Series(values, dtype=values.dtype) for name, values in parts.items()})
    table.index = pd.RangeIndex(rows)
    numeric = sum(values.dtype.kind == "f" for values in parts.values())
    gaps = int(sum(pd.isna(values).sum() for values in parts.values()))
    lead = f"features: {numeric} numeric, {len(parts) - numeric} categorical, {gaps} missing values"
    return _Found(kind="tabular", content=table, notes=(lead, *notes))
