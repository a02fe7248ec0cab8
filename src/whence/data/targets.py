"""From a column of labels to classes and positions, refusing what is not one class per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from whence.data.values import as_number, is_nested, missing_mask, quoted, to_texts
from whence.errors import DataError

__all__ = ["Targets", "parse_labels"]

Array: TypeAlias = "np.ndarray[Any, Any]"

MAX_CLASSES = 10_000
MISSING_SHARE = 0.01
CONTINUOUS_DISTINCT = 20
SPARSE_DISTINCT = 100
SUPPORTED = "whence audits classification with one class per row"


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Labels as positions in sorted class names; rows without a label are marked, not encoded."""

    labels: Array  # [M] int64, M = kept rows
    classes: tuple[str, ...]
    kept: Array  # [N] bool
    notes: tuple[str, ...]


def parse_labels(values: pd.Series[Any], name: str) -> Targets:
    """Turn a column into classes.

    Strings are stripped of surrounding white space; numbers that are all integral are written without
    a fraction; classes sort by value if all are numbers, else as text. Up to 1 % of rows without a label
    are left out with a note.

    Args:
        values: [N] the column.
        name: its name, for messages.

    Raises:
        DataError: no row, missing labels in more than 1 % of the rows, several labels per row, a
            continuous target, more than 10,000 classes, or a single class.
    """
    if len(values) == 0:
        raise DataError("the data must have at least one row, got none. Choose another file.")
    _refuse_several(values, name)
    missing = missing_mask(values)
    notes: list[str] = []
    if missing.any():
        notes.append(_missing_note(int(missing.sum()), len(values), name))
    present = values[~missing]
    numbers = _numbers(present)
    names = _class_texts(present, numbers)
    distinct = sorted(set(names))
    notes += _merged_note(present)
    _refuse_continuous(numbers, len(distinct), len(names), name)
    if len(distinct) > MAX_CLASSES:
        raise DataError(
            f"label column {name!r} must hold at most {MAX_CLASSES} classes, got {len(distinct)} different values. "
            "Choose the column that holds the class."
        )
    if len(distinct) < 2:
        raise DataError(
            f"label column {name!r} must hold at least two classes, got only {distinct[0]!r}. "
            "Choose another column, or add rows of another class."
        )
    _refuse_separated(names, distinct, name)
    if numbers is not None:
        distinct.sort(key=lambda text: (float(text), text))
    codes = {text: position for position, text in enumerate(distinct)}
    labels = np.fromiter((codes[text] for text in names), dtype=np.int64, count=len(names))
    alone = np.flatnonzero(np.bincount(labels, minlength=len(distinct)) == 1)
    if len(alone):
        which = quoted((distinct[position] for position in alone), limit=5)
        notes.append(f"{len(alone)} of {len(distinct)} classes have a single row: {which}")
    return Targets(labels=labels, classes=tuple(distinct), kept=~missing, notes=tuple(notes))


def _missing_note(count: int, rows: int, name: str) -> str:
    """The note for few missing labels; the error for many."""
    if count == rows or count > max(MISSING_SHARE * rows, 0):
        raise DataError(
            f"label column {name!r} must name a class in (nearly) every row, got {count} of {rows} rows without "
            "one (empty, '?', 'NA', 'nan' and the like count as none). Remove these rows, or choose another column."
        )
    return f"{count} rows without a label left out"


def _merged_note(present: pd.Series[Any]) -> list[str]:
    """The note for labels that differ by white space around them alone."""
    spellings = {value for value in present.tolist() if isinstance(value, str)}
    around = sorted(value for value in spellings if value != value.strip() and value.strip() in spellings)
    if not around:
        return []
    rows = int(present.isin(around).sum())
    shown = quoted((f"{value!r} is {value.strip()!r}" for value in around), limit=3)
    return [f"{rows} rows with spaces around their label merged ({shown})"]


def _numbers(present: pd.Series[Any]) -> Array | None:
    """[M] float64 if every label is a finite number, else None."""
    if pd.api.types.is_bool_dtype(present.dtype) or any(
        isinstance(value, (bool, np.bool_)) for value in present.tolist()
    ):
        return None
    if pd.api.types.is_datetime64_any_dtype(present.dtype):
        return None
    values = np.array([as_number(value) for value in present.tolist()], dtype=np.float64)
    return values if bool(np.isfinite(values).all()) else None


def _class_texts(present: pd.Series[Any], numbers: Array | None) -> list[str]:
    """[M] class names: stripped text; integral numbers without a fraction."""
    texts = [text.strip() for text in to_texts(present.tolist())]
    if numbers is None or not any("." in text or "e" in text.lower() for text in texts):
        return texts
    if bool((numbers == np.round(numbers)).all()) and bool((np.abs(numbers) < 2**53).all()):
        return [str(int(number)) for number in numbers]
    return [repr(float(number)) for number in numbers]


def _refuse_several(values: pd.Series[Any], name: str) -> None:
    """Lists, arrays and objects in the label column are several labels a row."""
    if values.dtype != object:
        return
    for row, value in enumerate(values.tolist()):
        if is_nested(value):
            kind = "an object" if isinstance(value, dict) else "a list"
            raise DataError(
                f"label column {name!r} must hold one class per row, got {kind} in row {row}: {_short(value)}. "
                f"{SUPPORTED}; make one label column per question and audit each."
            )


def _refuse_separated(names: list[str], distinct: list[str], name: str) -> None:
    """Strings like "a;b" beside "a" and "b", or "[0, 1]", are several labels a row."""
    known = set(distinct)
    example = None
    if all(text.startswith("[") and text.endswith("]") for text in distinct):
        example = distinct[0]
    for separator in (";", "|", ","):
        joined = [text for text in distinct if separator in text.strip(separator)]
        parts = {part.strip() for text in joined for part in text.split(separator)}
        if joined and parts <= known:
            example = joined[0]
        elif len(joined) >= 5 and len(parts) < len(joined):
            varies = len({text.count(separator) for text in distinct}) > 1
            example = joined[0] if varies else example
    if example is not None:
        row = names.index(example)
        raise DataError(
            f"label column {name!r} must hold one class per row, got several in row {row}: {_short(example)}. "
            f"{SUPPORTED}; make one label column per question and audit each."
        )


def _refuse_continuous(numbers: Array | None, distinct: int, rows: int, name: str) -> None:
    """Measurements and identifiers are not classes."""
    reason = None
    if numbers is not None:
        integral = bool((numbers == np.round(numbers)).all())
        span = float(numbers.max() - numbers.min()) + 1
        if not integral and distinct > CONTINUOUS_DISTINCT:
            reason = f"{distinct} different fractional numbers"
        elif integral and distinct > SPARSE_DISTINCT and span > 2 * distinct:
            reason = f"{distinct} different numbers between {numbers.min():g} and {numbers.max():g}"
    if reason is None and distinct > max(rows / 2, 10):
        reason = f"{distinct} different values in {rows} rows"
    if reason is not None:
        raise DataError(
            f"label column {name!r} must hold classes, got {reason}. {SUPPORTED}: choose another column, "
            "or cut a continuous target into classes first."
        )


def _short(value: object) -> str:
    """A value for a message, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
