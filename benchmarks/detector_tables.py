"""Turn the results of the detector benchmark into tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from detector_classes import LAYERS, METHODS, NAMES, STOPS, judged
from pieces import machine, table

REGIMES = ("mnist_memorised", "mnist_early", "cifar10n", "sms", "ag_news")


def detectors(results: dict[str, Any]) -> Iterable[str]:
    """Return the lines of all tables, for the results that are there."""
    found = {name: results[f"detectors_{name}"] for name in REGIMES if f"detectors_{name}" in results}
    if found:
        yield from _regimes(found)
    classes = {name: results[f"detectors_class_{name}"] for name in NAMES if f"detectors_class_{name}" in results}
    if classes:
        yield from _classes(classes, results)
    if stability := results.get("detectors_class_stability"):
        yield "Rank correlation of scores over three trainings on the same rows, mean over queries [95 %]:\n"
        kinds = ("same class", "different class")
        yield table(["", *kinds], [
            [name, *(f"{found[kind][0]:.3f} [{found[kind][1]:.3f}, {found[kind][2]:.3f}]" for kind in kinds)]
            for name, found in stability["figures"].items()
        ])  # fmt: skip
        yield ""
    yield from _uses(results)


def _regimes(found: dict[str, Any]) -> Iterable[str]:
    """One row a method, AUC / average precision / share found wrong in the first 20 % by regime, then cost."""
    first = next(iter(found.values()))
    yield "## Every method as a detector of wrong labels\n"
    yield (
        "10 % of the labels flipped to another class (CIFAR-10N: people's), a VGG-like network or a perceptron of one "
        "hidden layer; AUC / average precision / share wrong among the first 20 %. Memorised: the network fits its "
        "wrong labels. Published for MNIST, memorised (Kim et al. 2023, AUC/AP): GEX .9999/.9991, TracIn-RP "
        ".9719/.7056, Arnoldi .6908/.1900. * uses 50 clean references a class, the others none. Confident learning "
        "and out-of-fold loss share their fits, which are counted once. Arnoldi on images takes the linear layers. "
        "Processor seconds and added memory are those of the first column's regime. "
        f"{machine(first)}\n"
    )
    header = ["", *(r["settings"]["regime"] for r in found.values()), "processor s", "MB"]
    names = list(dict.fromkeys(name for r in found.values() for name in r["figures"]["methods"]))
    lead = first["figures"]["methods"]
    names.sort(key=lambda name: -lead.get(name, {"average_precision": -1})["average_precision"])
    rows = []
    for name in names:
        cells = []
        for result in found.values():
            entry = result["figures"]["methods"].get(name)
            cells.append("" if entry is None else
                         f"{entry['auc']:.4f} / {entry['average_precision']:.4f} / {entry['top_20']:.3f}")  # fmt: skip
        own = lead.get(name)
        rows.append([name, *cells, *(["", ""] if own is None else
                                     [f"{own['cpu_seconds']:.1f}", f"{own['memory_mb']:.0f}"])])  # fmt: skip
    rows.append(["*training / test accuracy*", *(
        f"{r['figures']['training_accuracy']:.3f} / {r['figures']['test_accuracy']:.3f}" for r in found.values()
    ), "", ""])  # fmt: skip
    yield table(header, rows)
    yield ""


def _classes(classes: dict[str, Any], results: dict[str, Any]) -> Iterable[str]:
    """One row a method and layers, plain -> class-based by set; a table for either stop."""
    first = next(iter(classes.values()))
    seeds, references = len(first["settings"]["seeds"]), first["settings"]["references per class"]
    yield "## Class-based influence\n"
    yield (
        "20 % of the labels flipped to another class, perceptron of one hidden layer (on CIFAR-10 it learns little), "
        f"{references} clean references a class, mean of {seeds} seeds: share wrong among the first 20 %, plain sum → "
        "class-based (→ ranks of class-based and loss added). IF is a true inverse (EK-FAC). Published (Nguyen-Duc et "
        "al. 2023), IMDB: IF 51.0 → 72.4, GD 49.6 → 72.1, TracIn 45.9 → 73.6, GC 71.6 → 52.4; SNLI: IF 60.9 → 76.0; "
        f"BigCloneBench 57.1 → 87.3. {machine(first)}\n"
    )
    gains = judged(results)
    notes = {
        "best epoch": "At the epoch that does best on clean rows, as the authors' code does it; TracIn adds every "
        "epoch up to it. Last layer is the authors' choice.",
        "last epoch": "The same trainings at their end, where most wrong labels are learned; TracIn of five epochs.",
    }
    for stop in STOPS:
        yield notes[stop] + "\n"
        rows = []
        for layers in LAYERS:
            for method in METHODS:
                key, cells = f"{stop}/{method}/{layers}", []
                for result in classes.values():
                    ways = [result["figures"][f"{key}/{way}"]["mean"] for way in ("mean", "class", "class and loss")]
                    cells.append(" → ".join(f"{100 * way:.1f}" for way in ways))
                rows.append([f"{method}, {layers} layers", *cells, f"{100 * gains[stop, method, layers]:+.1f}"])
        for what, key in (("loss", "loss"), ("*accuracy on clean rows*", "clean accuracy")):
            rows.append([what, *(f"{100 * r['figures'][f'{stop}/{key}']['mean']:.1f}" for r in classes.values()), ""])
        yield table(["", *classes, "mean gain"], rows)
        yield ""


def _uses(results: dict[str, Any]) -> Iterable[str]:
    """Relabel, prune, sources."""
    parts = {name: results[f"detectors_{name}"] for name in ("relabel", "prune", "sources")
             if f"detectors_{name}" in results}  # fmt: skip
    if not parts:
        return
    yield "## What follows from GEX\n"
    if found := parts.get("relabel"):
        f = found["figures"]
        yield (
            f"Relabel (MNIST, memorised, {f['linear']['wrong before']} of {found['settings']['rows']:,} labels wrong): "
            f"{f['linear']['above']} rows above Otsu's threshold, {f['linear']['corrected']} corrected, "
            f"{f['linear']['spoiled']} spoiled (threshold on logarithms: {f['log']['above']}, {f['log']['corrected']}, "
            f"{f['log']['spoiled']}); test accuracy {f['noisy']:.4f} → {f['linear']['test accuracy']:.4f}.\n"
        )
    if found := parts.get("prune"):
        shares = [key for key in found["figures"] if key != "all"]
        yield (
            f"Prune ({found['settings']['rows']:,} clean MNIST rows, {found['figures']['all']:.4f} with all of them, "
            "the same number of steps): test accuracy by share dropped, lowest self-influence first.\n"
        )
        ways = ("GEX", "GEX, balanced", "random")
        yield table(["", *shares], [[way, *(f"{found['figures'][s][way]:.4f}" for s in shares)] for way in ways])
        yield ""
    if found := parts.get("sources"):
        told = ", ".join(f"{name} {value:.3f}" for name, value in found["figures"].items() if np.isfinite(value))
        mnist, other = found["settings"]["rows"]
        yield f"Sources ({mnist:,} MNIST, {other} Fashion-MNIST rows): AUC of cross-influence on MNIST rows: {told}.\n"
