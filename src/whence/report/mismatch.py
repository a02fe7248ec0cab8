"""The page of ``whence mismatch``: the rows behind a subgroup's errors, their features, and what weight decay does."""

from __future__ import annotations

from typing import Any

from whence.report.html import whole_page
from whence.report.plots import Axis, Dot, Plot, axis

__all__ = ["render_mismatch"]


def render_mismatch(found: dict[str, Any]) -> str:
    """The page of a subgroup's wrong predictions.

    Args:
        found: A dict of format 1: ``data``, ``subgroup`` (``column``, ``value``, ``training``, ``training_rows``,
            ``asked``), ``weight_decay``, ``sweep`` (a list of ``weight_decay``, ``accuracy``, ``wrong``, ``ratio``,
            ``responsible``), ``found`` (None where nothing is wrong; else ``wrong``, ``wrong_labels``, ``ratio``,
            ``median_ratio``, ``rows``, ``features``, ``row_features``, ``responsible``, ``unit``), ``seconds``,
            ``whence`` and ``created``.

    Returns:
        A whole page, as self-contained as that of an audit.
    """
    told = found["found"]
    values: dict[str, Any] = {"found": found, "told": told, "plot": None, "features": None}
    if told is not None:
        values["plot"] = _standing(told["rows"])
        values["features"] = _bars(told["features"])
    return whole_page("mismatch.html", "", values, plots=True)


def _standing(rows: list[dict[str, Any]]) -> Plot:
    """Size of the strongest rows' scores by rank, on a logarithmic axis."""
    sizes = [abs(row["score"]) for row in rows]
    x = Axis(low=0.0, high=len(rows) + 1.0)
    y = axis(sizes, log=True)
    dots = tuple(
        Dot(
            x=x.place(row["rank"]), y=y.place(size), text=str(row["rank"]),
            title=f"{row['id']}: {row['score']:+.3g}", kind="chosen" if row["responsible"] else "humble",
        )
        for row, size in zip(rows, sizes, strict=True)
    )  # fmt: skip
    return Plot(x=x, y=y, dots=dots)


def _bars(features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Features with the width of their bar, in per cent."""
    top = max((one["effect"] for one in features), default=0.0) or 1.0
    return [{**one, "width": round(100 * one["effect"] / top, 2)} for one in features]
