"""Tables of the explorer: how fast its pages answer, and what a driven browser went through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pieces import machine, table

_DRIVEN = "explorer_drive-"


def explorers(results: dict[str, Any]) -> Iterable[str]:
    """Pages first, then the journeys."""
    if found := results.get("explorer"):
        figures = found["figures"]
        yield f"## Pages of the explorer at {figures['rows']:,} rows\n"
        yield (
            f"Milliseconds until a whole answer is there, {found['settings']['requests']} requests of every page, "
            "other rows each time; *work* is what a core did meanwhile, which a busy machine does not lengthen. "
            f"{machine(found)}\n"
        )
        header = ["page", "first", "median", "slowest", "work"]
        keys = ("first_ms", "median_ms", "slowest_ms", "work_ms")
        yield table(header, [
            [name, *(f"{page[key]:.0f}" for key in keys)] for name, page in figures["pages"].items()
        ]) + "\n"  # fmt: skip
    driven = {name.removeprefix(_DRIVEN): r for name, r in results.items() if name.startswith(_DRIVEN)}
    if driven:
        yield from _journeys(driven)


def _journeys(driven: dict[str, Any]) -> Iterable[str]:
    yield "## A browser driven through the explorer\n"
    first = next(iter(driven.values()))
    yield (
        "`whence audit`, then `whence serve --edit`, then a headless Chromium: the first suspect and its evidence, "
        f"relabelled, {first['settings']['further']} further suspects decided by keys, the file downloaded and "
        "compared with the source row by row, trained again, a new input asked about. 5 % of the labels were flipped. "
        "*Wrong* counts decided rows whose label was one of these; held-out accuracy is before and after the "
        f"decisions, beside the change that was predicted, in points. {machine(first)}\n"
    )
    header = ["", "rows", "audit, seconds of a core", "its memory, MB", "the explorer's, MB", "decided, wrong",
              "exported not as decided", "console errors", "accuracy", "change (predicted)"]  # fmt: skip
    yield table(header, [[name, *_journey(result)] for name, result in driven.items()]) + "\n"


def _journey(result: dict[str, Any]) -> list[str]:
    """One row: what was measured on the way."""
    figures, gates = result["figures"], {gate["gate"].partition(": ")[2]: gate["value"] for gate in result["gates"]}
    told, audit = figures["retrained"], figures["audit"]
    return [
        f"{figures['rows']:,}", _count(audit.get("cpu_s")), _count(audit.get("peak_mb")),
        _count(figures.get("serve_peak_mb")), f"{figures['decided']}, {figures['decided_wrong']}",
        _count(gates["exported rows that are not as decided"]), _count(gates["errors in the browser's console"]),
        f"{told['Accuracy before']} to {told['Accuracy after']}",
        f"{told['Measured change']} ({told['Predicted change']})",
    ]  # fmt: skip


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
