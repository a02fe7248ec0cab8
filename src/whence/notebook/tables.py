"""Scores, signals and fitted attributions as HTML, from their plain parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from whence.notebook.html import bar, card, facts, listing, number, readable

__all__ = ["attribution_html", "fitted_html", "frame_html", "scores_html", "signal_html"]

_BARS = 24
_ROWS = 30
_DOUBT = 'Name the weight decay that the model was trained with, or use damping="auto"; check a few by leave_one_out.'
_ASK = "Ask it: .scores(queries), .self_scores(), whence.find_label_errors(it)."
_LAYERS = 12


def scores_html(
    top: pd.DataFrame, bottom: pd.DataFrame, *, counts: tuple[int, int], unit: str | None, doubt: str | None = None
) -> str:
    """Return the examples that raise and lower the measurement of a few queries the most.

    Args:
        top: Of the queries that are shown, with columns ``query, rank, id, score``.
        bottom: The same of the other side.
        counts: Numbers of all queries and examples.
        unit: Of the scores.
        doubt: Why their sizes are not to be believed.
    """
    queries = list(dict.fromkeys(top["query"].tolist()))
    parts: list[Markup] = []
    for query in queries:
        sides = (("raises it", top), ("lowers it", bottom))
        shown = [(name, frame[frame["query"] == query]) for name, frame in sides]
        sizes = np.concatenate([frame["score"].abs().to_numpy(float) for _, frame in shown])
        largest = float(sizes[np.isfinite(sizes)].max(initial=0.0))
        tables = Markup("").join(_ranked(frame, f"removal {name} most", largest) for name, frame in shown)
        parts.append(Markup("<p>query <b>{}</b></p><div>{}</div>").format(readable(query), tables))
    meaning = "A score predicts the change of the query's measurement if the example is removed"
    notes = [f"{meaning}, in {unit}." if unit else "These scores rank only: they have no unit."]
    if doubt:
        notes.append(f"{doubt.capitalize()}. {_DOUBT}")
    if len(queries) < counts[0]:
        notes.append(f"The first {len(queries)} of {counts[0]:,} queries; scores.plot(query) shows any other.")
    title = f"Scores · {counts[0]:,} queries × {counts[1]:,} examples · {unit or 'no unit'}"
    return card(title, parts, notes)


def _ranked(frame: pd.DataFrame, caption: str, largest: float) -> Markup:
    """Return one side of a query."""
    errors = frame["standard_error"].tolist() if "standard_error" in frame else None
    columns = ["rank", "id", "score", *(["± s.e."] if errors else []), ""]
    rows = [
        [rank, readable(id_), number(score, signed=True), *([number(errors[i])] if errors else []), bar(score, largest)]
        for i, (rank, id_, score) in enumerate(
            zip(frame["rank"].tolist(), frame["id"].tolist(), frame["score"].tolist(), strict=True)
        )
    ]
    return listing(columns, rows, caption=caption)


def signal_html(
    values: np.ndarray, ids: np.ndarray, *, name: str, unit: str | None, errors: np.ndarray | None,
    doubt: str | None = None, k: int = 5,
) -> str:  # fmt: skip
    """Return how values are spread, and the largest and smallest with their ids."""
    finite = values[np.isfinite(values)]
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
    parts = [_spread(finite)] if finite.size else []
    for caption, kept in (("largest", order[:k]), ("smallest", order[::-1][:k])):
        columns = ["id", readable(name, 40), *(["± s.e."] if errors is not None else [])]
        rows = [
            [readable(ids[i]), number(values[i]), *([number(errors[i])] if errors is not None else [])] for i in kept
        ]
        parts.append(listing(columns, rows, caption=caption))
    lost = len(values) - len(finite)
    notes = [f"{lost:,} values are not finite."] if lost else []
    if doubt:
        notes.append(f"{doubt.capitalize()}. {_DOUBT}")
    return card(f"{readable(name)} · {len(values):,} examples · {unit or 'no unit'}", parts, notes)


def _spread(values: np.ndarray) -> Markup:
    """Return a histogram as an SVG of a few hundred characters."""
    counts, edges = np.histogram(values, bins=_BARS)
    tall = 40 * counts / counts.max()
    bars = Markup("").join(
        Markup('<rect x="{}" y="{:.1f}" width="9" height="{:.1f}"><title>{} to {}: {:,}</title></rect>').format(
            10 * i, 40 - high, high, number(edges[i]), number(edges[i + 1]), int(counts[i])
        )
        for i, high in enumerate(tall.tolist())
    )
    return Markup(
        '<svg class="good" role="img" aria-label="histogram" width="{0}" height="42" fill="currentColor">{1}</svg>'
        "<p>{2} to {3}</p>"
    ).format(10 * _BARS, bars, number(values.min()), number(values.max()))


def attribution_html(title: str, summary: Mapping[str, Any]) -> str:
    """Return what was fitted: curvature with damping and residuals, the share attributed, what is missed."""
    curvature = dict(summary["curvature"])
    layers: Mapping[str, Mapping[str, Any]] = curvature.pop("layers", {})
    values = {"curvature": curvature.pop("curvature", "unknown")}
    told = {name.replace("_", " "): value for name, value in curvature.items()}
    values |= {name: value for name, value in told.items() if isinstance(value, (str, int, float))}
    values["examples"] = summary["examples"]
    if summary.get("effective_parameters") is not None:
        values["effective parameters"] = summary["effective_parameters"]
    attributed = f"{summary['attributed_share']:.1%} of the parameters ({summary['attributed_parameters']:,})"
    values["attributed"] = attributed
    values["weight decay"] = summary["weight_decay"]
    parts = [facts(values)]
    if layers:
        parts.append(_layers(layers))
    notes = []
    if summary["missed"]:
        named = ", ".join(f"{readable(name, 60)} ({count:,})" for name, count in summary["missed"])
        notes.append(f"Not attributed: {named}.")
    if len(layers) > _LAYERS:
        notes.append(f"The first {_LAYERS} of {len(layers)} layers.")
    return card(title, parts, notes)


def fitted_html(title: str, values: Mapping[str, Any], *notes: str) -> str:
    """Return what a fitted method is in a few facts, and what can be asked of it."""
    return card(title, [facts(values)], [*notes, _ASK])


def frame_html(title: str, frame: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """Return a frame of results, its index first."""
    columns = ["", *map(str, frame.columns)]
    shown = frame.head(_ROWS)
    rows = [[readable(id_, 60), *row] for id_, row in zip(shown.index, shown.itertuples(index=False), strict=True)]
    left = [f"The first {_ROWS} of {len(frame):,} rows."] if len(frame) > _ROWS else []
    return card(title, [listing([name.replace("_", " ") for name in columns], rows)], [*left, *notes])


def _layers(layers: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Return what was fitted of every layer."""
    shown = list(layers.items())[:_LAYERS]
    columns: Sequence[str] = list(dict.fromkeys(name for _, held in shown for name in held))
    rows = [
        [readable(name, 60), *(number(value) if isinstance(value := held.get(key), (int, float)) else readable(value)
                               for key in columns)]
        for name, held in shown
    ]  # fmt: skip
    return listing(["layer", *(name.replace("_", " ") for name in columns)], rows)
