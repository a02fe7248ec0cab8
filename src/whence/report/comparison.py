"""The page of ``whence compare``: a table, and accuracy against cost."""

from __future__ import annotations

from typing import Any

from whence.report.formats import number
from whence.report.html import whole_page
from whence.report.plots import Axis, Dot, Plot, axis

__all__ = ["render_comparison"]


def render_comparison(found: dict[str, Any]) -> str:
    """The page of a comparison of methods.

    Args:
        found: A dict of format 1: ``data``, ``model``, ``truth`` (with ``kind``, ``figure``, ``what``, ``rows``,
            ``queries``, ``seeds``, ``count`` and ``ceiling``), ``entries`` (with ``name``, ``baseline``, ``accuracy``
            as [value, low, high] or None, ``equal``, ``passes``, ``seconds`` and ``note``, most accurate first),
            ``recommended``, ``reason``, ``said``, ``seed``, ``seconds``, ``pass_seconds``, ``whence`` and ``created``.

    Returns:
        A whole page, as self-contained as that of an audit.
    """
    ranked = [entry for entry in found["entries"] if entry["accuracy"] is not None]
    ceiling = found["truth"]["ceiling"]
    plot = _plot(ranked, ceiling, found["recommended"])
    bounds = [bound for entry in ranked for bound in entry["accuracy"]]
    values = {
        "found": found,
        "ranked": ranked,
        "unfit": [entry for entry in found["entries"] if entry["accuracy"] is None],
        "axis": axis([*bounds, *([] if ceiling is None else [ceiling])]),
        "plot": plot,
        "ceiling": None if ceiling is None else plot.y.place(ceiling),
    }
    return whole_page("comparison.html", "", values, plots=True)


def _plot(ranked: list[dict[str, Any]], ceiling: float | None, recommended: str | None) -> Plot:
    """Every method as a numbered bead with its interval."""
    x = axis([entry["passes"] for entry in ranked], log=True)
    y = axis([bound for entry in ranked for bound in entry["accuracy"]], include=[] if ceiling is None else [ceiling])
    return Plot(x=x, y=y, dots=tuple(_bead(x, y, place, entry, recommended) for place, entry in enumerate(ranked, 1)))


def _bead(x: Axis, y: Axis, place: int, entry: dict[str, Any], recommended: str | None) -> Dot:
    value, low, high = entry["accuracy"]
    kind = "chosen" if entry["name"] == recommended else "humble" if entry["baseline"] else ""
    return Dot(
        x=x.place(entry["passes"]),
        y=y.place(value),
        low=None if low is None else y.place(low),
        high=None if high is None else y.place(high),
        text=str(place),
        title=f"{entry['name']}: {number(value)} for {number(entry['passes'], 2)} passes",
        kind=kind,
    )
