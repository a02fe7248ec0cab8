"""The pages of ``whence relabel``, ``prune`` and ``cleanse``: what changes, and what training again says of it."""

from __future__ import annotations

from typing import Any

from whence.report.charts import histogram
from whence.report.html import whole_page
from whence.report.plots import Axis, Plot, axis, band, curve
from whence.report.plots import Line as _Line

__all__ = ["render_treated"]


def render_treated(found: dict[str, Any]) -> str:
    """The page of rows relabelled, pruned or cleansed.

    Args:
        found: A dict of format 1: ``kind`` ("relabel", "prune" or "cleanse"), ``data``, ``model``, ``rows``,
            ``held_out``, ``seeds``, ``said``, ``verdict`` (``sentence``, ``good``, ``level``), ``ways`` (a list of
            ``name``, ``kind``, ``removed``, ``relabelled``, and ``accuracy`` and ``change`` with their intervals),
            ``after`` (place of the way that the command went), ``signal`` (``name``, ``unit``, ``histogram``),
            ``changed``, ``of``, ``listed``, ``whence`` and ``created``; of relabelled rows also ``counts``, of pruned
            ones ``points`` and ``classes``, of cleansed ones ``parts``.

    Returns:
        A whole page, as self-contained as that of an audit.
    """
    bars = found["signal"]["histogram"]
    values = {
        "found": {"against": None, "counts": [], **found},
        "bars": histogram(bars["edges"], bars["all"], bars["marked"], found["signal"].get("threshold")),
        "reach": axis([100 * bound for way in found["ways"] for bound in way["change"]], include=[0.0]),
        "plot": _shares(found) if found["kind"] == "prune" else None,
        "largest": max((row["rows"] for row in found.get("classes", [])), default=1),
    }
    return whole_page("treated.html", "", values, plots=True)


def _shares(found: dict[str, Any]) -> Plot:
    """Change of accuracy by the share that was pruned, beside random rows."""
    ways, points = found["ways"], found["points"]
    shares = [0.0, *(100 * point["share"] for point in points)]
    sides = {
        name: [[0.0, 0.0, 0.0], *([100 * bound for bound in ways[point[key]]["change"]] for point in points)]
        for key, name in (("random", "random rows"), ("own", "lowest self-influence"))
    }
    x = axis(shares, pad=0.02)
    y = axis([bound for side in sides.values() for one in side for bound in one])
    lines = [_banded(x, y, shares, side, name) for name, side in sides.items()]
    return Plot(x=x, y=y, lines=tuple(lines))


def _banded(x: Axis, y: Axis, shares: list[float], values: list[list[float]], name: str) -> _Line:
    """A curve with the band of its intervals."""
    middle, low, high = (list(side) for side in zip(*values, strict=True))
    kind = "chance" if name.startswith("random") else ""
    made = curve(x, y, shares, middle, kind=kind, name=name)
    return _Line(points=made.points, kind=kind, name=name, band=band(x, y, shares, low, high))
