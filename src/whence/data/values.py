"""What one cell or one column of a table is: missing, a number, text, an image, or something nested."""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

__all__ = [
    "MISSING",
    "as_number",
    "is_nested",
    "is_number",
    "is_textual",
    "missing_mask",
    "quoted",
    "repaired",
    "to_numbers",
    "to_texts",
]

Array: TypeAlias = "np.ndarray[Any, Any]"
Column: TypeAlias = "pd.Series[Any]"

NUMBER = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|infinity)", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"[+-]?([0-9]{1,3}(\.[0-9]{3})+|[0-9]*),[0-9]+")
MISSING = frozenset({"", "?", "NA", "N/A", "n/a", "nan", "NaN", "NAN", "null", "NULL", "<NA>", "#N/A"})


def missing_mask(column: Column) -> Array:
    """[N] bool: None, NaN, NaT or one of the markers ``MISSING`` after stripping white space."""
    mask = column.isna().to_numpy(dtype=bool)
    if is_textual(column):
        texts = column.to_numpy(dtype=object)
        mask = mask | np.fromiter(
            (isinstance(text, str) and (len(text) < 16 and text.strip() in MISSING) for text in texts),
            dtype=bool,
            count=len(texts),
        )
    return mask


def is_textual(column: Column) -> bool:
    """Whether the column can hold strings (object, str, category)."""
    return bool(
        column.dtype == object
        or isinstance(column.dtype, pd.CategoricalDtype)
        or pd.api.types.is_string_dtype(column.dtype)
    )


def is_nested(value: object) -> bool:
    """Whether a cell holds several values or an object instead of one value."""
    return isinstance(value, (list, tuple, set, dict, np.ndarray, pd.Series, pd.DataFrame))


def to_numbers(column: Column, missing: Array) -> Array | None:
    """[N] float64 with NaN for the missing, or None when some value is not a number."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        stamps = pd.to_datetime(column, utc=True).dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
        days = stamps.astype(np.int64) / 86_400e6
        days[missing] = np.nan
        return days
    if pd.api.types.is_timedelta64_dtype(column.dtype):
        seconds = column.dt.total_seconds().to_numpy(dtype=np.float64)
        return np.where(missing, np.nan, seconds)
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        if pd.api.types.is_complex_dtype(column.dtype):
            return None
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    numbers = np.array([as_number(value) for value in column.tolist()], dtype=np.float64)
    return None if bool((np.isnan(numbers) & ~missing).any()) else np.where(missing, np.nan, numbers)


def as_number(value: Any) -> float:
    """A number, or a string that is one in plain notation, as float; NaN for everything else."""
    if isinstance(value, str):
        text = value.strip()
        return float(text) if len(text) < 400 and NUMBER.fullmatch(text) else math.nan
    if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating, decimal.Decimal)):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return math.nan


def is_number(text: str) -> bool:
    """Whether a text is a number, be it with a decimal comma.

    Example:
        >>> is_number("-16,19"), is_number("-1e3"), is_number("-1+2")
        (True, True, False)
    """
    return not (math.isnan(as_number(text)) and DECIMAL_COMMA.fullmatch(text.strip()) is None)


def to_texts(values: Iterable[Any]) -> list[str]:
    """Each value as text: a string as it is, an integral float without ".0", None as ""."""
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    """One value as text."""
    if isinstance(value, str):
        return value if value.isascii() else repaired(value)
    if value is None or value is pd.NaT or value is pd.NA:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return "" if np.isnan(number) else str(int(number)) if number.is_integer() else repr(number)
    return str(value)


def repaired(text: str) -> str:
    """The text with lone surrogates (which no file can hold) replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def quoted(names: Iterable[object], limit: int = 12) -> str:
    """Names joined for a message, the rest counted."""
    listed = [str(name) for name in names]
    shown = ", ".join(name if len(name) <= 60 else name[:57] + "..." for name in listed[:limit])
    return shown + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
