"""Every row as a point between two signals, packed for a browser to draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from whence.explorer.opened import Opened
from whence.explorer.problems import Problem
from whence.explorer.site import Site

__all__ = ["points", "scatter_page"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_LEAST = 1e-300  # below and above its inverse the powers of ten that round would overflow
_DECADES = 30.0


def scatter_page(site: Site, given: Mapping[str, str]) -> dict[str, Any]:
    """Return which signals are drawn; the points themselves come from `points`."""
    across, up = _signals(site.opened, given)
    return {"x": across, "y": up, "signals": list(site.opened.signals), "classes": list(site.opened.data.classes)}


def points(site: Site, given: Mapping[str, str]) -> dict[str, Any]:
    """Return every row's two values, class and whether it is a suspect, in the order of the data, JSON-able.

    ``scale`` says how an axis is best drawn: "log" for positive values over decades, "root" for values of both signs
    with long tails, else "linear". A missing value is null.
    """
    across, up = _signals(site.opened, given)
    opened = site.opened
    return {
        "x": _axis(opened.column(across), across),
        "y": _axis(opened.column(up), up),
        "suspect": opened.flagged.astype(int).tolist(),
        "given": opened.given.tolist(),
        "decided": [opened.positions[name] for name in site.decisions.all() if name in opened.positions],
    }


def _signals(opened: Opened, given: Mapping[str, str]) -> tuple[str, str]:
    """Return the signals of both axes: self-influence and loss unless others are asked for."""
    names = opened.signals
    across = given.get("x") or ("self_influence" if "self_influence" in names else names[0])
    up = given.get("y") or ("loss" if "loss" in names else names[-1])
    for name in (across, up):
        if name not in names:
            raise Problem(400, "bad_request", f"an axis must be one of {', '.join(names)}, got {name[:80]!r}.")
    return across, up


def _axis(values: Array, name: str) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    scale = "linear"
    if known.size and known.max() > 0 and np.quantile(known, 0.75) < known.max() / _DECADES:
        scale = "log" if (known > 0).mean() > 0.98 else "root"
    rounded: list[float | None] = _rounded(values).tolist()
    for place in np.flatnonzero(~np.isfinite(values)).tolist():
        rounded[place] = None
    return {"name": name, "scale": scale, "values": rounded}


def _rounded(values: Array) -> Array:
    """Return values to four significant digits, all at once: text of each would take most of a request's time."""
    sizes = np.abs(values)
    usual = np.isfinite(values) & (sizes > _LEAST) & (sizes < 1 / _LEAST)
    shift = 10.0 ** np.abs(3 - np.floor(np.log10(np.where(usual, sizes, 1.0))))
    found: Array = np.where(sizes < 1e4, np.round(values * shift) / shift, np.round(values / shift) * shift)
    return np.where(usual, found, np.where(sizes > _LEAST, values, 0.0))
