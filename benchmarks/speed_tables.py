"""Turn the speed benchmark's results into tables and a chart."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

import peers
from pieces import machine, table

STEPS, FEATURES = ("fit", "pairwise", "self"), "features"
TITLES = {
    "mlp": "MLP {widths}",
    "cnn": "CNN of two convolutions and two linear layers",
    "transformer": "Transformer of 4 layers, next characters of Shakespeare, loss per sequence",
}
DATA = {"mlp": "MNIST rows", "cnn": "MNIST rows", "transformer": "sequences of 64 characters"}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .head { font-weight: 600 } .axis { fill: #6e7781 }
.peer { fill: #a8b1bb } .ours { fill: #0a7d6b } line { stroke: #d0d7de }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .axis { fill: #9198a1 } line { stroke: #3d444d }
  .peer { fill: #59636e } .ours { fill: #2fb8a0 }
}"""


def speed(results: dict[str, Any], folder: Path) -> Iterable[str]:
    """Tables of every number of threads, each with a chart that is written to the folder."""
    for name, result in results.items():
        if not name.startswith("speed-"):
            continue
        figures, threads = result["figures"], result["settings"]["threads"]
        (folder / f"{name}.svg").write_text(chart(figures, threads), "utf-8")
        yield f"## Speed, {threads} thread{'s' if threads > 1 else ''}\n"
        yield (
            "Fit, scores of the queries and self-scores on the same weights and rows, each contender in a process of "
            f"its own. {machine(result)}\n"
        )
        yield f"![Seconds of every contender, log scale]({folder.name}/{name}.svg)\n"
        for model, entries in figures["contenders"].items():
            yield from _model(model, figures["models"][model], entries)
        yield _explanation(result)


def _model(model: str, described: dict[str, Any], entries: dict[str, Any]) -> Iterable[str]:
    """One model's table."""
    yield f"### {_title(model)}\n"
    plain = [entry["pass"] for entry in entries.values() if "pass" in entry]
    quick, slow = (choose((p["seconds"] for p in plain), default=0.0) for choose in (min, max))
    yield (
        f"{described['parameters']:,} parameters, {described['rows']:,} {DATA[model]}, {described['queries']} queries. "
        f"A plain pass took {quick:.3g} – {slow:.3g} s in the contenders' processes.\n"
    )
    header = ["", "fit s", "queries s", "self s", "all s", "in passes", "MB added",
              "r exact", "r at 1e-8", "r dot", "runs"]  # fmt: skip
    rows, notes = [], []
    for name, entry in entries.items():
        label = peers.CONTENDERS[name].label
        if failed := entry.get("failed"):
            notes.append(f"{label}: {failed['error']}")
        if FEATURES in entry["seconds"]:
            passes = entry["seconds"][FEATURES] / entry["pass"]["seconds"]
            notes.append(f"{label}: the features of the training examples alone in {passes:.2f} passes")
        agreement = [entry["agreement"].get(f"{what}/pairwise") for what in ("exact", "low", "dot")]
        rows.append([
            f"**{label}**" if peers.CONTENDERS[name].ours else label,
            *(_step(entry, step) for step in STEPS), _total(entry), _passes(entry),
            "" if entry["memory_mb"] is None else f"{entry['memory_mb']:.0f}",
            *("" if value is None else f"{value:.4f}" for value in agreement), str(entry["repeats"]),
        ])  # fmt: skip
    yield table(header, rows) + "\n"
    yield from (f"- {note}\n" for note in notes)


def _explanation(result: dict[str, Any]) -> str:
    """What the columns are."""
    entries = [entry for part in result["figures"]["contenders"].values() for entry in part.values()]
    codes = sorted({entry["code"] for entry in entries if "code" in entry})
    measured = sorted(
        {
            f"{peers.CONTENDERS[name].library} {entry['version']}"
            for part in result["figures"]["contenders"].values()
            for name, entry in part.items()
            if "version" in entry
        }
    )
    settings = result["settings"]
    return (
        "Medians of the runs; `>`: stopped there, a contender had "
        f"{settings['limit']:g} s a model; empty: the library has no such step. *In passes*: fit / queries / self over "
        "a plain forward+backward pass with weight gradients over the same rows, at its best batch size, measured in "
        "the same process. *MB added*: peak resident memory above what was resident before fitting. *r exact*: median "
        "over queries of the correlation with EK-FAC on the whole eigen-grid (0.1 of the mean eigenvalue as damping) "
        "on the layers that the contender attributes; *r at 1e-8*: the same at that damping, kronfluence's default; "
        "*r dot*: with gradient dot products. On the transformer kronfluence and captum attribute the linear layers "
        "only; captum's last layer leaves the bias out. *Fastest* of kronfluence: batch 32, rank-32 query gradients, "
        "its heuristic damping. Self-scores and queries of whence reuse the factors that fitting kept in memory, save "
        "where nothing is kept. "
        f"Measured: {', '.join(measured)}; whence's source {', '.join(codes)}.\n"
    )


def _step(entry: dict[str, Any], step: str) -> str:
    """Seconds of a step."""
    stopped = entry.get("stopped", {})
    if step in entry["seconds"]:
        return f"{entry['seconds'][step]:.3g}"
    return f"> {stopped['seconds']:.0f}" if stopped.get("step") == step else ""


def _total(entry: dict[str, Any]) -> str:
    """Seconds of all steps."""
    value, complete = seconds(entry)
    return "" if value == 0 else f"{value:.3g}" if complete else f"> {value:.0f}"


def seconds(entry: dict[str, Any]) -> tuple[float, bool]:
    """Return the seconds of all steps that were done or begun, and whether none was stopped."""
    stopped = entry.get("stopped")
    if stopped is None:
        return entry.get("total", 0.0), True
    return sum(entry["seconds"].get(step, 0.0) for step in STEPS) + stopped["seconds"], False


def _passes(entry: dict[str, Any]) -> str:
    """Steps over a plain pass."""
    if "pass" not in entry:
        return ""
    ratios = [entry["seconds"][step] / entry["pass"]["seconds"] for step in STEPS if step in entry["seconds"]]
    return " / ".join(f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}" for ratio in ratios)


def _title(model: str) -> str:
    return TITLES[model].format(widths="784-256-256-10")


# --- chart ---------------------------------------------------------------------------------------------------------

_LEFT, _RIGHT, _WIDTH, _ROW = 260, 150, 900, 20


def chart(figures: dict[str, Any], threads: int) -> str:
    """Return an SVG: seconds of all steps, a bar a contender on a log scale, a panel a model."""
    bars = {
        model: [(name, seconds(entry)[0], entry) for name, entry in entries.items() if "failed" not in entry]
        for model, entries in figures["contenders"].items()
    }
    values = [value for panel in bars.values() for _, value, _ in panel if value > 0] or [1.0]
    low, high = floor(log10(min(values))), max(ceil(log10(max(values))), floor(log10(min(values))) + 1)
    body: list[str] = []
    top = 24
    for model, panel in bars.items():
        body.append(f'<text class="head" x="8" y="{top}">{escape(_title(model))}</text>')
        panel_top, top = top + 8, top + 10
        rows: list[str] = []
        for name, value, entry in sorted(panel, key=lambda bar: bar[1]):
            rows += _bar(name, entry, top, _x(value, low, high))
            top += _ROW
        body += [*_grid(low, high, panel_top, top), *rows]
        top += 44
    title = f"Fit, queries and self-scores together, {threads} thread{'s' if threads > 1 else ''}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top - 20}" role="img">'
        f"<title>{title}</title><style>{STYLE}</style>{''.join(body)}</svg>\n"
    )


def _x(value: float, low: int, high: int) -> float:
    """Horizontal position of a number of seconds."""
    share = (log10(max(value, 10**low)) - low) / (high - low)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _bar(name: str, entry: dict[str, Any], top: int, end: float) -> list[str]:
    """One contender's label, bar and figure."""
    contender, shown = peers.CONTENDERS[name], f"{_total(entry)} s"
    kind = "ours" if contender.ours else "peer"
    if "self" not in entry["seconds"] and "stopped" not in entry:
        shown += ", no self-scores"
    return [
        f'<text x="{_LEFT - 8}" y="{top + 14}" text-anchor="end">{escape(contender.label)}</text>',
        f'<rect class="{kind}" x="{_LEFT}" y="{top + 3}" width="{max(1.0, end - _LEFT):.1f}" height="{_ROW - 6}"/>',
        f'<text x="{end + 6:.1f}" y="{top + 14}">{escape(shown)}</text>',
    ]


def _grid(low: int, high: int, top: int, bottom: int) -> list[str]:
    """Lines and labels at the powers of ten."""
    parts = []
    for power in range(low, high + 1):
        x = _x(10.0**power, low, high)
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{10.0**power:g} s</text>')
    return parts
