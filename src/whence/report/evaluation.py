"""The page of ``whence evaluate``: what was predicted against what happened."""

from __future__ import annotations

from typing import Any

from whence.report.html import whole_page
from whence.report.plots import Axis, Dot, Line, Plot, axis, band, curve

__all__ = ["render_evaluation"]

_KINDS = ("", "second", "third", "fourth")


def render_evaluation(found: dict[str, Any]) -> str:
    """The page of an evaluation of a run.

    Args:
        found: A dict of format 1: ``data``, ``model``, ``method``, ``seconds``, ``whence``, ``created``,
            and any of ``loo``, ``lds``, ``detection``, ``removal`` and ``fix``; each but the last two with
            ``sentence``, ``level`` and ``good``, those with a list of such ``sentences``. Intervals are lists of
            value, low and high (None where not known).

    Returns:
        A whole page, as self-contained as that of an audit.
    """
    sections = {name: found.get(name) for name in ("loo", "lds", "detection", "removal", "fix")}
    told: dict[str, Any] = {}  # what was held out is said once, where it first holds
    for section in sections.values():
        for sentence in (section or {}).get("said", []):
            told.setdefault(sentence, section)
    values = {
        "found": found,
        **sections,
        "told_by": told,
        "scatter": _scatter(found["loo"]) if found.get("loo") else None,
        "bars": _bars(found["lds"]) if found.get("lds") else None,
        "curves": _detection(found["detection"]) if found.get("detection") else None,
        "treated": [
            (name, title, rail, sections[name], _treatment(sections[name]))
            for name, title, rail in (
                ("removal", "Removing rows", "Rows are removed in the order that the run gives, and the model is "
                 "trained again; beside it as many rows drawn at random."),
                ("fix", "Correcting labels", "The most suspect rows get the label that the run suggests, and the model "
                 "is trained again; beside it as many rows drawn at random."),
            )
            if sections[name]
        ],
    }  # fmt: skip
    return whole_page("evaluation.html", "", values, plots=True)


def _scatter(section: dict[str, Any]) -> Plot:
    """Predicted against actual changes, the line of slope 1 and the fitted one."""
    across, up = zip(*section["points"], strict=True)
    x, y = axis(across), axis(up)
    slope, intercept = section["slope"][0], section["intercept"][0]
    dots = tuple(Dot(x=x.place(a), y=y.place(b)) for a, b in section["points"])
    lines = (
        _straight(x, y, 1.0, 0.0, kind="ideal", name="predicted = actual"),
        _straight(x, y, slope, intercept, kind="second", name="least squares"),
    )
    return Plot(x=x, y=y, dots=dots, lines=tuple(line for line in lines if line is not None))


def _straight(x: Axis, y: Axis, slope: float, intercept: float, *, kind: str, name: str) -> Line | None:
    """The part of a straight line that lies inside the plot."""
    ends = [x.low, x.high]
    if slope:
        crossing = sorted((bound - intercept) / slope for bound in (y.low, y.high))
        ends = [max(x.low, crossing[0]), min(x.high, crossing[1])]
    if ends[0] >= ends[1] or not y.low <= intercept + slope * sum(ends) / 2 <= y.high:
        return None
    return curve(x, y, ends, [intercept + slope * end for end in ends], kind=kind, name=name)


def _bars(section: dict[str, Any]) -> Axis:
    """The axis of linear datamodelling scores."""
    bounds = [bound for bar in section["bars"] for bound in bar["value"] if bound is not None]
    ceiling = section["ceiling"]
    return axis([*bounds, *([] if ceiling is None else [ceiling])], include=[0.0])


def _detection(section: dict[str, Any]) -> Plot:
    """Share of errors found against share of rows inspected, for the best few signals and chance."""
    x = y = Axis(low=0.0, high=1.0)
    own = [one for one in section["signals"] if one["name"] == "suspicion"]
    others = sorted(
        (one for one in section["signals"] if one["name"] != "suspicion"), key=lambda one: -one["average_precision"][0]
    )
    lines = [curve(x, y, [0, 1], [0, 1], kind="chance", name="random order")]
    for kind, one in list(zip(_KINDS, [*own, *others], strict=False))[::-1]:  # the run's own on top
        shares, shown = zip(*one["curve"], strict=True)
        lines.append(curve(x, y, shares, shown, kind=kind, name=one["name"]))
    return Plot(x=x, y=y, lines=tuple(lines))


def _treatment(section: dict[str, Any] | None) -> list[tuple[dict[str, Any], Plot]]:
    """One plot a measurement: change by share treated, with predictions and the random control."""
    return [(measurement, _change(measurement)) for measurement in (section or {"measurements": []})["measurements"]]


def _change(measurement: dict[str, Any]) -> Plot:
    """Change of one measurement under every ranking."""
    scale = 100.0 if measurement["name"] == "accuracy" else 1.0
    rankings = measurement["rankings"]
    points = [point for ranking in rankings for point in ranking["points"]]
    changes = [
        scale * value
        for point in points
        for value in (*point["change"], *point["control"], point["predicted"])
        if value is not None
    ]
    x = axis([0.0, *(100 * point["share"] for point in points)], pad=0.02)
    y = axis(changes, include=[0.0])
    lines = []
    for kind, ranking in zip(_KINDS, rankings, strict=False):
        lines += _pair(x, y, ranking, kind, scale)
    control = rankings[0]["points"]
    shares = [0.0, *(100 * point["share"] for point in control)]
    lines.append(_with_band(x, y, shares, [point["control"] for point in control], "chance", "random rows", scale))
    return Plot(x=x, y=y, lines=tuple(lines))


def _pair(x: Axis, y: Axis, ranking: dict[str, Any], kind: str, scale: float) -> list[Line]:
    """What happened under a ranking, and what was predicted."""
    points = ranking["points"]
    shares = [0.0, *(100 * point["share"] for point in points)]
    lines = [_with_band(x, y, shares, [point["change"] for point in points], kind, ranking["name"], scale)]
    if all(point["predicted"] is not None for point in points):
        heights = [0.0, *(scale * point["predicted"] for point in points)]
        name = f"{ranking['name']}, predicted"
        lines.append(curve(x, y, shares, heights, kind=f"{kind} predicted".strip(), name=name))
    return lines


def _with_band(
    x: Axis, y: Axis, shares: list[float], values: list[list[float | None]], kind: str, name: str, scale: float
) -> Line:
    """A curve that starts at no change, with a band where every point has an interval."""
    heights = [0.0, *(scale * (value[0] or 0.0) for value in values)]
    made = curve(x, y, shares, heights, kind=kind, name=name)
    if any(value[1] is None or value[2] is None for value in values):
        return made
    low, high = ([0.0, *(scale * (value[place] or 0.0) for value in values)] for place in (1, 2))
    return Line(points=made.points, kind=kind, name=name, band=band(x, y, shares, low, high))
