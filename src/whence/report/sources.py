"""The page of ``whence sources``: what sources do to one another, or which rows came from elsewhere."""

from __future__ import annotations

from typing import Any

from whence.report.charts import histogram
from whence.report.html import whole_page

__all__ = ["render_sources"]


def render_sources(found: dict[str, Any]) -> str:
    """The page of a run's sources.

    Args:
        found: A dict of format 1: ``data``, ``model``, ``rows``, ``unit``, ``said``, ``way`` ("groups", "known" or
            "automatic"), ``whence`` and ``created``. Of groups: ``column`` and ``groups`` (``name``, ``rows``,
            ``suspects``, ``auc``, ``effects``: one number a group). Else ``changed``, ``threshold``, ``histogram``,
            ``listed``, and ``known`` and ``others`` or ``certain``, ``dip`` and ``p``.

    Returns:
        A whole page, as self-contained as that of an audit.
    """
    values: dict[str, Any] = {"found": found, "bars": None, "top": 0.0}
    if found["way"] == "groups":
        values["top"] = max((abs(value) for group in found["groups"] for value in group["effects"]), default=0.0) or 1.0
    else:
        bars = found["histogram"]
        values["bars"] = histogram(bars["edges"], bars["all"], bars["marked"], found["threshold"])
    return whole_page("sources.html", "", values, plots=True)
