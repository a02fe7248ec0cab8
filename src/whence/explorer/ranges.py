"""Rows between two values of signals, as an address says it: ``loss:0.1:3;margin:-1:0``."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from whence.explorer.opened import Opened
from whence.explorer.problems import Problem

__all__ = ["rows_between"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_MOST = 8


def rows_between(opened: Opened, ranges: str) -> Array:
    """Return which rows lie in all of the ranges, ends included [N].

    Raises:
        Problem: It is no list of ranges, or there is no such signal.
    """
    inside = np.ones(len(opened), dtype=bool)
    parts = ranges.split(";")
    for part in parts[:_MOST]:
        name, _, bounds = part.partition(":")
        low, _, high = bounds.partition(":")
        try:
            first, last = float(low), float(high)
        except ValueError:
            first = last = np.nan
        if name not in opened.signals or not first <= last:
            raise Problem(400, "bad_request", f"ranges must read signal:low:high;…, got {part[:80]!r}.")
        values = opened.column(name)
        inside &= (values >= first) & (values <= last)
    if len(parts) > _MOST:
        raise Problem(400, "bad_request", f"ranges must be at most {_MOST}, got {len(parts)}.")
    return inside
