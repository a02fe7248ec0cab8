"""The page of ``whence curves``: loss of what has been seen and what has not, by epoch."""

from __future__ import annotations

from typing import Any

from whence.report.html import whole_page
from whence.report.plots import Plot, axis, curve

__all__ = ["render_learning"]

_LINES = (
    ("seen", "", "sub-networks that saw the row"),
    ("unseen", "second", "sub-networks that did not"),
    ("test_parts", "second predicted", "sub-networks, held-out rows"),
    ("test", "fourth", "whole network, held-out rows"),
)


def render_learning(found: dict[str, Any]) -> str:
    """The page of learning curves.

    Args:
        found: A dict of format 1: ``data``, ``model``, ``rows``, ``measured``, ``held_out``, ``said``, ``epochs``,
            ``curves`` (``epoch``, ``seen``, ``unseen``, ``test``, ``test_parts``: lists), ``verdict``, ``lowest``,
            ``test_lowest``, ``gap``, ``follows``, ``whence`` and ``created``.

    Returns:
        A whole page, as self-contained as that of an audit.
    """
    curves = found["curves"]
    shown = [line for line in _LINES if line[0] in curves]
    x = axis([0, *curves["epoch"]], pad=0.02)
    y = axis([value for name, _, _ in shown for value in curves[name]], include=[0.0])
    lines = tuple(curve(x, y, curves["epoch"], curves[name], kind=kind, name=told) for name, kind, told in shown)
    values = {"found": found, "plot": Plot(x=x, y=y, lines=lines), "lowest": x.place(found["lowest"]),
              "columns": [(name, told) for name, _, told in shown]}  # fmt: skip
    return whole_page("learning.html", "", values, plots=True)
