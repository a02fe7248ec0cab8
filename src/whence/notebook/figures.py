"""Figures by plotly with one look; plotly is loaded when the first is drawn.

Text from data reaches a figure escaped: plotly reads tags, entities and ``$`` in labels as markup.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whence.errors import MissingExtraError
from whence.notebook.html import readable

__all__ = ["bars", "cloud", "histogram", "intervals", "lines"]

GOOD, ALARM, INK, SOFT, BAR, LINE = "#0a6858", "#b3351a", "#16211d", "#53615b", "#b9c4be", "#dbe1dd"
PAPER = "#fafbf9"
_COLOURS = (GOOD, ALARM, INK, "#7a5c00", "#3b5b92", SOFT)
_MANY = 5_000  # points from which the graphics card draws
_LABEL, _TITLE = 40, 100


def bars(ids: Sequence[Any], values: np.ndarray, errors: np.ndarray | None, *, title: str, axis: str) -> Any:
    """Return horizontal bars, one an id from the top, coloured by sign."""
    go = _graph_objects()
    colours = [GOOD if value >= 0 else ALARM for value in values]
    places = list(range(len(values)))
    trace = go.Bar(
        x=values, y=places, orientation="h", marker_color=colours, customdata=[text(id_) for id_ in ids],
        hovertemplate="%{customdata}<br>%{x:.3g}<extra></extra>",
        error_x=None if errors is None else {"type": "data", "array": errors, "color": SOFT, "thickness": 1},
    )  # fmt: skip
    figure = _figure(go, [trace], title, axis, "", height=140 + 22 * len(places))
    figure.update_yaxes(tickvals=places, ticktext=[text(id_) for id_ in ids], autorange="reversed", showgrid=False,
                        zeroline=False)  # fmt: skip
    return figure


def histogram(values: np.ndarray, *, title: str, axis: str) -> Any:
    """Return how values are spread."""
    go = _graph_objects()
    counts, edges = np.histogram(values[np.isfinite(values)], bins=40)
    middles = (edges[:-1] + edges[1:]) / 2
    trace = go.Bar(x=middles, y=counts, width=np.diff(edges), marker_color=GOOD,
                   hovertemplate="%{x:.3g}: %{y} examples<extra></extra>")  # fmt: skip
    return _figure(go, [trace], title, axis, "examples")


def cloud(
    x: np.ndarray, y: np.ndarray, ids: Sequence[Any], marked: np.ndarray | None = None, *, title: str,
    axes: tuple[str, str], names: tuple[str, str] = ("others", "marked"),
) -> Any:  # fmt: skip
    """Return points, one an id; those that are ``marked`` [N] stand out."""
    go = _graph_objects()
    kind = go.Scattergl if len(x) > _MANY else go.Scatter
    chosen = np.zeros(len(x), dtype=bool) if marked is None else np.asarray(marked, dtype=bool)
    labels = np.array([text(id_) for id_ in ids], dtype=object)
    plain = GOOD if marked is None else BAR
    traces = [
        kind(x=x[rows], y=y[rows], mode="markers", name=name, customdata=labels[rows],
             marker={"color": colour, "size": 6, "opacity": 0.75},
             hovertemplate="%{customdata}<br>%{x:.3g}, %{y:.3g}<extra></extra>")
        for rows, colour, name in ((~chosen, plain, names[0]), (chosen, ALARM, names[1])) if rows.any()
    ]  # fmt: skip
    figure = _figure(go, traces, title, *axes)
    figure.update_layout(showlegend=marked is not None)
    return figure


def intervals(
    names: Sequence[str], x: np.ndarray, y: tuple[np.ndarray, np.ndarray, np.ndarray], chosen: np.ndarray, *,
    title: str, axes: tuple[str, str],
) -> Any:  # fmt: skip
    """Return named points with intervals (value, low, high) over a logarithmic axis; those ``chosen`` are darker."""
    go = _graph_objects()
    value, low, high = y
    trace = go.Scatter(
        x=x, y=value, mode="markers+text", text=[text(name) for name in names], textposition="top center",
        error_y={"type": "data", "array": high - value, "arrayminus": value - low, "color": BAR, "thickness": 1.5},
        marker={"color": [INK if one else GOOD for one in chosen], "size": 9},
        hovertemplate="%{text}<br>%{x:.3g}, %{y:.3g}<extra></extra>", cliponaxis=False,
    )  # fmt: skip
    figure = _figure(go, [trace], title, *axes)
    figure.update_xaxes(type="log")
    return figure


def lines(
    named: Mapping[str, tuple[np.ndarray, ...]], *, title: str, axes: tuple[str, str], dashed: Sequence[str] = ()
) -> Any:  # fmt: skip
    """Return lines, each (x, y) or (x, y, low, high) with its interval as bars; those ``dashed`` are references."""
    go = _graph_objects()
    traces = []
    for place, (name, (x, y, *ends)) in enumerate(named.items()):
        colour = BAR if name in dashed else _COLOURS[place % len(_COLOURS)]
        error = {"type": "data", "array": ends[1] - y, "arrayminus": y - ends[0], "thickness": 1} if ends else None
        traces.append(
            go.Scatter(
                x=x, y=y, name=text(name), mode="lines+markers" if ends else "lines", error_y=error,
                line={"color": colour, "dash": "dash" if name in dashed else "solid"},
                hovertemplate=f"{text(name)}<br>%{{x:.3g}}, %{{y:.3g}}<extra></extra>",
            )
        )  # fmt: skip
    figure = _figure(go, traces, title, *axes)
    figure.update_layout(showlegend=len(traces) > 1, legend={"orientation": "h", "y": 1.01, "yanchor": "bottom"})
    figure.update_layout(margin={"t": 76}, title={"y": 0.95, "yanchor": "top"})
    return figure


def text(value: Any, width: int = _LABEL) -> str:
    """Return a value as plotly shows it unchanged."""
    return html.escape(readable(value, width)).replace("$", "&#36;")


def _figure(go: Any, traces: list[Any], title: str, x: str, y: str, *, height: int = 380) -> Any:
    """Return a figure in our look."""
    grid = {"gridcolor": LINE, "zerolinecolor": BAR, "linecolor": LINE, "ticks": "", "automargin": True}
    return go.Figure(
        data=traces,
        layout={
            "title": {"text": text(title, _TITLE), "x": 0, "xanchor": "left", "pad": {"l": 12}, "font": {"size": 16}},
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
            "paper_bgcolor": PAPER, "plot_bgcolor": PAPER, "colorway": [GOOD, ALARM, INK, SOFT], "height": height,
            "margin": {"l": 60, "r": 20, "t": 60, "b": 50}, "showlegend": False, "bargap": 0.15,
            "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": LINE},
            "xaxis": {"title": {"text": text(x, _TITLE)}, **grid},
            "yaxis": {"title": {"text": text(y, _TITLE)}, **grid},
        },
    )  # fmt: skip


def _graph_objects() -> Any:
    """Return plotly's figures.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise MissingExtraError(
            "plotly must be installed for figures, got none. Install it: pip install 'whence[notebook]'."
        ) from error
    return go
