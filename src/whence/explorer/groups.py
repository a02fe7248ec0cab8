"""Rows grouped by class, split, source or a column: where the suspects are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from whence.explorer.opened import Opened, finite
from whence.explorer.problems import Problem
from whence.explorer.sources import sources_of

__all__ = ["TITLES", "columns_of", "groups_page", "rows_of_group"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_BINS = 5
_LISTED = 60
_MISSING = "missing"
_CLASS, _SUGGESTED, _SPLIT, _COPIES = "(label)", "(suggested label)", "(split)", "(copies)"
TITLES = {_CLASS: "given label", _SUGGESTED: "suggested label", _SPLIT: "split", _COPIES: "copies"}


@dataclass(frozen=True, eq=False)
class _Grouping:
    """Which group every row is in: a position in ``names`` [N]."""

    codes: Array
    names: list[str]


def columns_of(opened: Opened) -> list[str]:
    """Return what rows can be grouped by."""
    found = [_CLASS, _SUGGESTED]
    if opened.data.split is not None:
        found.append(_SPLIT)
    if "duplicate_of" in opened.frame:
        found.append(_COPIES)
    if isinstance(opened.data.content, pd.DataFrame):
        found += [str(name) for name in opened.data.content.columns]
    return found


def rows_of_group(opened: Opened, column: str, value: str) -> Array:
    """Return which rows are in a group [N].

    Raises:
        Problem: There is no such column or group.
    """
    grouping = _grouping(opened, column)
    if value not in grouping.names:
        raise Problem(400, "bad_request", f"value must be a group of {column[:80]!r}, got {value[:80]!r}.")
    inside: Array = grouping.codes == grouping.names.index(value)
    return inside


def groups_page(opened: Opened, column: str) -> dict[str, Any]:
    """Return every group with its rows, suspects and mean signals, JSON-able; most suspect first."""
    grouping = _grouping(opened, column or _CLASS)
    size = len(grouping.names)
    rows = np.bincount(grouping.codes, minlength=size)
    flagged = np.bincount(grouping.codes[opened.flagged], minlength=size)
    means = {name: _means(opened.column(name), grouping, rows) for name in ("loss", "self_influence", "suspicion")
             if name in opened.frame}  # fmt: skip
    share = flagged / np.maximum(rows, 1)
    order = [int(place) for place in np.lexsort((-rows, -share)) if rows[place]]
    return {
        "column": column or _CLASS,
        "columns": columns_of(opened),
        "groups": [
            {"value": grouping.names[place], "rows": int(rows[place]), "suspects": int(flagged[place]),
             "share": finite(share[place]), **{name: finite(values[place]) for name, values in means.items()}}
            for place in order[:_LISTED]
        ],
        "more": max(0, len(order) - _LISTED),
        "share": finite(opened.flagged.mean()),
        "largest": finite(share.max(initial=0)) or 1.0,
        "sources": sources_of(opened),
    }  # fmt: skip


def _means(values: Array, grouping: _Grouping, rows: Array) -> Array:
    """Return the mean of a column over every group, missing values left out."""
    there = np.isfinite(values)
    total = np.bincount(grouping.codes[there], weights=values[there], minlength=len(rows))
    counted = np.bincount(grouping.codes[there], minlength=len(rows))
    return np.where(counted > 0, total / np.maximum(counted, 1), np.nan)


def _grouping(opened: Opened, column: str) -> _Grouping:
    if column == _CLASS:
        return _Grouping(opened.given, list(opened.data.classes))
    if column == _SUGGESTED:
        return _Grouping(opened.suggested + 1, ["none", *opened.data.classes])
    if column == _SPLIT and opened.data.split is not None:
        return _named(opened.data.split.astype(str))
    if column == _COPIES and "duplicate_of" in opened.frame:
        copied = opened.frame["duplicate_of"].notna().to_numpy(dtype=bool)
        return _Grouping(copied.astype(np.int64), ["no copy", "a copy of another row"])
    content = opened.data.content
    if isinstance(content, pd.DataFrame):
        for place, name in enumerate(content.columns):
            if str(name) == column:
                return _of_column(content.iloc[:, place])
    raise Problem(400, "bad_request", f"column must be one of those of the data, got {column[:80]!r}.")


def _of_column(cells: pd.Series[Any]) -> _Grouping:
    """Return the groups of a column: its values, or bins of as many rows where they are numbers."""
    if cells.dtype.kind != "f":
        return _named(cells.fillna(_MISSING).astype(str).to_numpy())
    values = cells.to_numpy(dtype=np.float64)
    there = np.isfinite(values)
    distinct = np.unique(values[there])
    if len(distinct) <= 2 * _BINS:
        return _named(np.array([f"{value:.6g}" if np.isfinite(value) else _MISSING for value in values.tolist()]))
    edges = np.unique(np.quantile(values[there], np.linspace(0, 1, _BINS + 1)))
    codes = np.searchsorted(edges[1:-1], values, side="right")
    names = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges.tolist())]
    codes[~there] = len(names)
    return _Grouping(codes, [*names, _MISSING])


def _named(values: Array) -> _Grouping:
    names, codes = np.unique(values, return_inverse=True)
    return _Grouping(codes.reshape(-1), [str(name) for name in names.tolist()])
