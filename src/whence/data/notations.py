"""Numbers and days as people write them: decimal commas, thousands, dates."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from whence.data.values import DECIMAL_COMMA, as_number

__all__ = ["NOTATIONS", "Notation", "number_in"]

Array: TypeAlias = "np.ndarray[Any, Any]"

WHOLE = re.compile(r"[+-]?([0-9]{1,3}(\.[0-9]{3})+|[0-9]+)")
THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]+)?")
CLOCK = r"(?:[T ]+(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d{1,9})?))?\s*(Z|[+-]\d{2}:?\d{2})?)?"
ISO = re.compile(rf"(\d{{4}})-(\d{{1,2}})-(\d{{1,2}}){CLOCK}")
DOTTED = re.compile(rf"(\d{{1,2}})\.\s?(\d{{1,2}})\.\s?(\d{{4}}){CLOCK}")
SLASHED = re.compile(rf"(\d{{1,2}})/(\d{{1,2}})/(\d{{4}}){CLOCK}")
EPOCH = datetime.date(1970, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Notation:
    """A way to write numbers.

    Args:
        name: For notes: what the values were taken for.
        values: Texts to numbers [M], NaN where one is none in this notation.
    """

    name: str
    values: Callable[[Sequence[str]], Array]


def _decimal_comma(texts: Sequence[str]) -> Array:
    """16,19 and 1.234,56; whole numbers beside them."""
    if not any(DECIMAL_COMMA.fullmatch(text) for text in texts):
        return np.full(len(texts), np.nan)
    return np.array([_comma(text) for text in texts])


def _comma(text: str) -> float:
    if DECIMAL_COMMA.fullmatch(text) is None and WHOLE.fullmatch(text) is None:
        return math.nan
    return as_number(text.replace(".", "").replace(",", "."))


def _thousands(texts: Sequence[str]) -> Array:
    """1,234 and 1,234.50; plain numbers beside them. All texts with a comma must be of this form."""
    joined = [text for text in texts if "," in text and text[-1:].isdigit()]
    if not joined or not all(THOUSANDS.fullmatch(text) for text in joined):
        return np.full(len(texts), np.nan)
    return np.array([as_number(text.replace(",", "") if THOUSANDS.fullmatch(text) else text) for text in texts])


def _iso(texts: Sequence[str]) -> Array:
    return np.array([_day(ISO.fullmatch(text), (0, 1, 2)) for text in texts])


def _dotted(texts: Sequence[str]) -> Array:
    return np.array([_day(DOTTED.fullmatch(text), (2, 1, 0)) for text in texts])


def _day_first(texts: Sequence[str]) -> Array:
    return np.array([_day(SLASHED.fullmatch(text), (2, 1, 0)) for text in texts])


def _month_first(texts: Sequence[str]) -> Array:
    return np.array([_day(SLASHED.fullmatch(text), (2, 0, 1)) for text in texts])


def _day(match: re.Match[str] | None, order: tuple[int, int, int]) -> float:
    """Days since 1970-01-01 of year, month and day at these places, with the time of the day; NaN for no such day."""
    if match is None:
        return math.nan
    parts = match.groups()
    try:
        days = (datetime.date(*(int(parts[place]) for place in order)) - EPOCH).days
    except ValueError:
        return math.nan
    hours, minutes, seconds = (float(part or 0) for part in parts[3:6])
    if hours > 24 or minutes > 59 or seconds >= 61:
        return math.nan
    zone = parts[6]
    ahead = 0 if zone in (None, "Z") else int(f"{zone[0]}1") * (int(zone[1:3]) * 60 + int(zone[-2:]))
    return days + (hours * 60 + minutes - ahead + seconds / 60) / 1440


_DAYS = "as days since 1970-01-01"
# tried in this order: of readings that fit equally well the first is taken
NOTATIONS = (
    Notation(name="numbers with commas between thousands", values=_thousands),
    Notation(name="numbers with a decimal comma", values=_decimal_comma),
    Notation(name=f"dates (year-month-day) {_DAYS}", values=_iso),
    Notation(name=f"dates (day.month.year) {_DAYS}", values=_dotted),
    Notation(name=f"dates (month/day/year) {_DAYS}", values=_month_first),
    Notation(name=f"dates (day/month/year) {_DAYS}", values=_day_first),
)


def number_in(text: str) -> float:
    """Return one number or day as people write it, plain notation first; NaN where it is none.

    A single text does not tell a comma between thousands from a decimal comma: 1,234 is 1234.
    """
    plain = as_number(text)
    readings = (plain, *(float(notation.values([text])[0]) for notation in NOTATIONS))
    return next((value for value in readings if not math.isnan(value)), math.nan)
