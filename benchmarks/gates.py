"""What the speed benchmark's figures must be."""

from __future__ import annotations

from typing import Any

import peers
import support

Entries = dict[str, dict[str, Any]]
STEPS = ("fit", "pairwise", "self")
TIMES_FASTER = {"mlp": 100, "cnn": 15, "transformer": 3}
PASSES = {
    "mlp": {
        "whence-kfac": {"fit": 3},
        "whence-ekfac": {"fit": 5, "self": 2.5, "pairwise": 3.5},
        "whence-nothing-kept": {"self": 3, "pairwise": 4},
    },
    "cnn": {"whence-ekfac": {"fit": 6, "self": 4, "pairwise": 4}},
    "transformer": {"whence-projected": {"features": 1.3}},
}
MEMORY = {"mlp": 350}
SAME = 0.005  # correlations that close are the same


def judge(report: support.Report, contenders: dict[str, Entries]) -> None:
    """Hold the figures of all models against what the library promises."""
    for model, entries in contenders.items():
        if "whence-ekfac" not in entries:
            continue
        against_kronfluence(report, model, entries)
        against_every_peer(report, model, entries)
        against_the_limit(report, model, entries)


def against_kronfluence(report: support.Report, model: str, entries: Entries) -> None:
    """EK-FAC in total, over the faster of kronfluence's two settings; on the MLP also step by step."""
    rivals = [entries.get(f"kronfluence-ekfac{suffix}") for suffix in ("", "-fastest")]
    low = TIMES_FASTER[model]
    ratios = [ratio(rival, entries["whence-ekfac"], STEPS, low) for rival in rivals if rival]
    least = min((r for r in ratios if r is not None), default=None) if None not in ratios else None
    report.gate(f"{model}: times faster than kronfluence's EK-FAC, faster setting, in total", least, low=low)
    if model == "mlp":
        for step, bound in (("fit", 50), ("self", 50), ("pairwise", 20)):
            value = None if rivals[0] is None else ratio(rivals[0], entries["whence-ekfac"], (step,), bound)
            report.gate(f"mlp: times faster than kronfluence's EK-FAC, defaults, {step}", value, low=bound)


def against_every_peer(report: support.Report, model: str, entries: Entries) -> None:
    """Each peer's steps together against the fastest setting of whence that correlates as well; and memory."""
    ours = {n: e for n, e in entries.items() if peers.CONTENDERS[n].ours and peers.CONTENDERS[n].layers != "last"}
    exact = entries["whence-ekfac"]["agreement"]["exact/pairwise"]
    report.gate(f"{model}: r of EK-FAC with the full eigen-grid, median over queries", exact, low=0.999)
    for name, entry in entries.items():
        contender = peers.CONTENDERS[name]
        if contender.ours or contender.layers == "last" or "failed" in entry:
            continue
        theirs = max(entry["agreement"].get(f"{what}/pairwise", 1.0) for what in ("exact", "low"))  # at their damping
        equals = {n: e for n, e in ours.items() if e["agreement"]["exact/pairwise"] >= min(theirs - SAME, exact)}
        begun = {*entry["seconds"], entry.get("stopped", {}).get("step")}
        steps = tuple(step for step in STEPS if step in begun)
        best = min(equals, key=lambda n: sum(equals[n]["seconds"][step] for step in steps))
        what = f"{model}: {contender.label} (r {theirs:.3f}) over {peers.CONTENDERS[best].label}, {' + '.join(steps)}"
        report.gate(what, ratio(entry, equals[best], steps, 1), low=1)
    if "captum-last" in entries and "whence-last" in entries:
        value = ratio(entries["captum-last"], entries["whence-last"], STEPS, 1)
        report.gate(f"{model}: captum's last-layer TracIn over whence's last layer, in total", value, low=1)
    added = added_memory(entries)
    if model in MEMORY:
        report.gate(f"{model}: MB added at the peak", added[0], high=MEMORY[model])
    else:
        share = None if added[1] is None else added[0] / added[1]
        report.gate(f"{model}: MB added at the peak over the least of all peers'", share, high=1)


def added_memory(entries: Entries) -> tuple[float, float | None]:
    """Return our added memory, and the least of the peers' that attribute all layers."""
    rivals = [e for n, e in entries.items() if not peers.CONTENDERS[n].ours and peers.CONTENDERS[n].layers != "last"]
    theirs = [e["memory_mb"] for e in rivals if "failed" not in e and e["memory_mb"]]
    return entries["whence-ekfac"]["memory_mb"], min(theirs, default=None)


def against_the_limit(report: support.Report, model: str, entries: Entries) -> None:
    """Steps in plain forward+backward passes."""
    for name, bounds in PASSES.get(model, {}).items():
        entry = entries.get(name)
        for step, high in bounds.items():
            value = None if entry is None else entry["seconds"][step] / entry["pass"]["seconds"]
            report.gate(f"{model}: plain passes, {peers.CONTENDERS[name].label}, {step}", value, high=high)


def ratio(theirs: dict[str, Any], ours: dict[str, Any], steps: tuple[str, ...], low: float) -> float | None:
    """Return their seconds over ours in some steps.

    Where they were stopped by the time limit it is a lower bound: given only if it reaches ``low``.
    """
    stopped = theirs.get("stopped", {})
    done = [step for step in steps if step in theirs["seconds"]]
    seconds = sum(theirs["seconds"][step] for step in done)
    if stopped.get("step") in steps:
        seconds += stopped["seconds"]
    elif not done or "failed" in theirs:
        return None
    value: float = seconds / sum(ours["seconds"][step] for step in steps)
    complete = len(done) == len(steps)
    return value if complete or (stopped and value >= low) else None
