"""Class by class: which labels are doubted in favour of which, and which classes help and harm each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from whence.explorer.opened import Opened, finite
from whence.explorer.problems import Problem
from whence.explorer.site import Site

__all__ = ["classes_page"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_MATRIX = 20
_LISTED = 40


def classes_page(site: Site, given: Mapping[str, str]) -> dict[str, Any]:
    """Return counts of rows by given and suggested label, and the influence between classes."""
    opened, which = site.opened, given.get("rows", "suspects")
    counts = _counts(opened, which)
    size = len(opened.data.classes)
    pairs = sorted(((int(counts[i, j]), i, j) for i in range(size) for j in range(size) if counts[i, j]), reverse=True)
    names = opened.data.classes
    return {
        "rows": which,
        "classes": list(names),
        "matrix": counts.tolist() if 2 < size <= _MATRIX else None,
        "top": int(counts.max(initial=0)),
        "pairs": [{"given": names[i], "suggested": names[j], "count": count} for count, i, j in pairs[:_LISTED]],
        "more": max(0, len(pairs) - _LISTED),
        "influence": _influence(site) if size <= _MATRIX else None,
        "unit": site.unit,
    }


def _counts(opened: Opened, which: str) -> Array:
    """Return rows by given and suggested label [C, C]."""
    if which == "suspects":
        rows = opened.flagged
    elif which == "disagreed" and "margin" in opened.signals:
        rows = opened.column("margin") < 0
    else:
        raise Problem(400, "bad_request", f"rows must be suspects or disagreed, got {which[:80]!r}.")
    size = len(opened.data.classes)
    counts = np.zeros((size, size), dtype=np.int64)
    there = rows & (opened.suggested >= 0)
    np.add.at(counts, (opened.given[there], opened.suggested[there]), 1)
    return counts


def _influence(site: Site) -> list[list[float | None]] | None:
    """Return, by class helped (row) and class that helps (column), the change of loss without one average row."""
    if site.oracle.missing:
        return None
    return [[finite(value) for value in row] for row in site.oracle.between_classes().tolist()]
