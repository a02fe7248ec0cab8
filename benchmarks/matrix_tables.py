"""Turn the matrix into tables, one a task, and a chart of accuracy against cost."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from matrix_tasks import TITLES
from pieces import machine, table
from speed_tables import STYLE
from whence.report.plots import Axis, axis

_HEADER = ["", "method", "LDS", "leave-one-out", "detection", "seconds", "in passes", "MB added"]
_NUMBERS = " .number { font-size: 10px } .light { fill: #fff }"
_WIDTH, _LEFT, _RIGHT, _HIGH, _TOP = 900, 60, 20, 280, 30


def matrix(results: dict[str, Any], folder: Path) -> Iterable[str]:
    """Return the lines of the tables; the chart is written to the folder."""
    result = results.get("matrix")
    if result is None:
        return
    figures = result["figures"]
    (folder / "matrix.svg").write_text(chart(figures), "utf-8")
    yield "## Methods by ground truth and cost\n"
    yield (
        "Every method on the same models, of which a tenth of the training labels are flipped: scores of held-out "
        "queries and a self-score (or suspicion) of every training row, once, in a process of its own. *LDS*: rank "
        "correlation of summed scores with models trained on random halves, mean over queries. *Leave-one-out*: rank "
        "correlation with models trained without single rows, half of them flipped. *Detection*: average precision of "
        "self-scores at finding the flipped labels. All with 95 % bootstrap intervals, of queries or of rows. "
        "*Seconds*: processor seconds of fit, queries and self-scores; `>`: of the steps that were finished in the "
        "time given. *In passes*: those over a plain forward+backward pass over the training rows. *MB added*: peak "
        "memory above what was resident before; not measured for the baselines. Empty: the library has no such step, "
        f"or did not come to it in {result['settings']['limit']:g} s by the clock. Baselines in italics. "
        f"{machine(result)}\n"
    )
    yield f"![LDS against seconds, log scale]({folder.name}/matrix.svg)\n"
    yield "In the chart green is whence, light grey a peer, dark grey a baseline; numbers are rows of the tables.\n"
    for name, cells in figures["cells"].items():
        yield from _task(TITLES[name], figures["tasks"][name], ranked(cells))


def ranked(cells: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the methods, those of the highest LDS first."""
    return sorted(cells.items(), key=lambda pair: -pair[1]["metrics"].get("lds", [-2.0])[0])


def _task(title: str, described: dict[str, Any], cells: list[tuple[str, dict[str, Any]]]) -> Iterable[str]:
    """One task's table."""
    yield f"### {title}\n"
    ceilings = described["ceilings"]
    least = " and ".join(
        f"{ceilings[truth]:.3f} ({words})"
        for truth, words in (("lds", "LDS"), ("loo", "leave-one-out")) if ceilings.get(truth) is not None
    )  # fmt: skip
    yield (
        f"{described['parameters']:,} parameters, {described['rows']:,} training rows, {described['wrong']} of them "
        f"flipped, {described['queries']} queries; {described['subsets']} halves and {described['loo']} single rows, "
        f"{described['seeds']} seeds each. A method without any error would reach about {least}.\n"
    )
    rows = [[str(place), *_row(one)] for place, (_, one) in enumerate(cells, 1)]
    yield table(_HEADER, rows) + "\n"
    yield from (f"- {one['label']}: {one['note']}\n" for _, one in cells if one["note"])


def _row(one: dict[str, Any]) -> list[str]:
    """One method's cells."""
    metrics, mark = one["metrics"], {"ours": "**", "baseline": "*", "peer": ""}[one["kind"]]
    spent, memory = metrics.get("seconds"), metrics.get("memory")
    return [
        f"{mark}{one['label']}{mark}", *(_interval(metrics.get(truth)) for truth in ("lds", "loo", "detection")),
        "" if spent is None else f"{spent:.2g}" if one["complete"] and spent < 10
        else f"{spent:.0f}" if one["complete"] else f"> {spent:.0f}",
        "" if one["passes"] is None else f"{one['passes']:.2g}" if one["passes"] < 10 else f"{one['passes']:.0f}",
        "" if memory is None else f"{memory:.0f}",
    ]  # fmt: skip


def _interval(value: list[float] | None) -> str:
    return "" if value is None else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


# --- chart ---------------------------------------------------------------------------------------------------------


def chart(figures: dict[str, Any]) -> str:
    """Return an SVG: LDS against seconds, a panel a task, a bead with the number of its row in the table a method."""
    body: list[str] = []
    every = [one["metrics"] for cells in figures["cells"].values() for one in cells.values()]
    shown = [metrics for metrics in every if "lds" in metrics and "seconds" in metrics]
    x = axis([metrics["seconds"] for metrics in shown] or [1.0], log=True)
    y = axis([bound for metrics in shown for bound in metrics["lds"]] or [0.0], include=[0.0])
    top = _TOP
    for name, cells in figures["cells"].items():
        body += [f'<text class="head" x="8" y="{top - 10}">{escape(TITLES[name])}</text>', *_frame(x, y, top)]
        for place, (_, one) in enumerate(ranked(cells), 1):
            if "lds" in one["metrics"] and "seconds" in one["metrics"]:
                body += _bead(x, y, top, place, one)
        top += _HIGH + 60
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {max(top - 30, 60)}" role="img">'
        f"<title>LDS against seconds</title><style>{STYLE}{_NUMBERS}</style>"
        f"{''.join(body)}</svg>\n"
    )


def _frame(x: Axis, y: Axis, top: int) -> list[str]:
    """Grid lines and their labels."""
    parts = []
    for tick in x.ticks():
        at = _across(tick.at)
        parts.append(f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{top + _HIGH}"/>')
        place = f'x="{at:.1f}" y="{top + _HIGH + 16}" text-anchor="middle"'
        parts.append(f'<text class="axis" {place}>{tick.text} s</text>')
    for tick in y.ticks():
        at = _up(tick.at, top)
        parts.append(f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}"/>')
        parts.append(f'<text class="axis" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick.text}</text>')
    return parts


def _bead(x: Axis, y: Axis, top: int, place: int, one: dict[str, Any]) -> list[str]:
    """One method with its interval."""
    value, low, high = one["metrics"]["lds"]
    at, centre = _across(x.place(one["metrics"]["seconds"])), _up(y.place(value), top)
    kind = {"ours": "ours", "peer": "peer", "baseline": "axis"}[one["kind"]]
    number = "number" if kind == "peer" else "number light"
    ends = _up(y.place(low), top), _up(y.place(high), top)
    return [
        f'<rect class="{kind}" x="{at - 0.75:.1f}" y="{ends[1]:.1f}" width="1.5" height="{ends[0] - ends[1]:.1f}"/>',
        f'<circle class="{kind}" cx="{at:.1f}" cy="{centre:.1f}" r="8"><title>{escape(one["label"])}: {value:.3f} in '
        f"{one['metrics']['seconds']:.2g} s</title></circle>",
        f'<text class="{number}" x="{at:.1f}" y="{centre + 3.5:.1f}" text-anchor="middle">{place}</text>',
    ]


def _across(share: float) -> float:
    """Horizontal position of a share in per cent."""
    return _LEFT + share / 100 * (_WIDTH - _LEFT - _RIGHT)


def _up(share: float, top: int) -> float:
    """Vertical position of a share in per cent from the bottom of a panel."""
    return top + (1 - share / 100) * _HIGH


# --- brittleness ---------------------------------------------------------------------------------------------------


def brittleness(results: dict[str, Any]) -> Iterable[str]:
    """Return the lines of the table on flipped predictions."""
    result = results.get("brittleness")
    if result is None:
        return
    settings, figures = result["settings"], result["figures"]
    yield "## How few rows flip a prediction\n"
    yield (
        f"MLP 49-32-32-10 on {settings['rows']:,} MNIST images (7×7), {figures['queries']} queries: of "
        f"{settings['pool']} held-out images those of the smallest margin that every seed predicts rightly. Rows are "
        f"removed in the order of their scores, at most {figures['largest']:.0%} of them, and the model is trained "
        f"again with {settings['seeds']} seeds; a prediction is flipped where the mean margin is not positive. *Random "
        f"flips*: trainings without as many random rows that predict another class. {machine(result)}\n"
    )
    header = ["order", "flipped", "median rows", *(f"within {float(share):.1%}" for share in ("0.005", "0.01", "0.02")),
              "mean margin before", "predicted", "after", "after, random rows", "random flips"]  # fmt: skip
    rows = [
        [
            name, f"{one['flipped']:.0%}", "" if one["median"] is None else f"{one['median']:.0f}",
            *(f"{share:.0%}" for share in one["within"].values()), f"{one['margin']:.2f}",
            "" if one["predicted"] is None else f"{one['predicted']:.2f}", f"{one['after']:.2f}",
            f"{one['random_after']:.2f}", f"{one['random_flipped']:.1%}",
        ]
        for name, one in figures["orders"].items()
    ]  # fmt: skip
    yield table(header, rows) + "\n"
