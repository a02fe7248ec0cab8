"""Turn the results of the detector benchmark into tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from detector_classes import LAYERS, METHODS, NAMES, STOPS, judged
from pieces import machine, table

AUDITS = ("whence audit", "whence audit --model", "find_label_errors")
COSTS = {"mnist_memorised": "MNIST", "ag_news": "AG News"}
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
    yield from _limits(results)
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
        "and out-of-fold loss share their fits, which are counted once. Arnoldi and "
        "turn-over dropout (one mask seed, a training of its own) take the linear layers of networks for images. "
        "Seconds are of the processor, without the training of the model that is judged, for the machine was shared; "
        "MB are added at the peak, MNIST memorised. "
        f"{machine(first)}\n"
    )
    header = ["", *(r["settings"]["regime"] for r in found.values()), *(f"s, {name}" for name in COSTS.values()), "MB"]
    names = list(dict.fromkeys(name for r in found.values() for name in r["figures"]["methods"]))
    lead = first["figures"]["methods"]
    names.sort(key=lambda name: -lead.get(name, {"average_precision": -1})["average_precision"])
    rows = []
    for name in names:
        entries = {regime: r["figures"]["methods"].get(name) for regime, r in found.items()}
        cells = ["" if e is None else f"{e['auc']:.4f} / {e['average_precision']:.4f} / {e['top_20']:.3f}"
                 for e in entries.values()]  # fmt: skip
        costs = [entries.get(regime) for regime in COSTS]
        cells += ["" if e is None else f"{e['cpu_seconds']:.1f}" for e in costs]
        rows.append([name, *cells, "" if lead.get(name) is None else f"{lead[name]['memory_mb']:.0f}"])
    rows.append(["*training / test accuracy*", *(
        f"{r['figures']['training_accuracy']:.3f} / {r['figures']['test_accuracy']:.3f}" for r in found.values()
    ), *([""] * (len(COSTS) + 1))])  # fmt: skip
    yield table(header, rows)
    yield ""
    yield from _followed(found)


def _followed(found: dict[str, Any]) -> Iterable[str]:
    """What `whence audit` makes of the table."""
    rows = []
    for result in found.values():
        methods = {name: entry["average_precision"] for name, entry in result["figures"]["methods"].items()}
        if not set(AUDITS) <= set(methods):
            continue
        best = max((name for name in methods if name not in AUDITS), key=lambda name: methods[name])
        own = [f"{methods[name]:.4f}" for name in AUDITS]
        rows.append([result["settings"]["regime"], *own, f"{best}: {methods[best]:.4f}"])
    if not rows:
        return
    yield (
        "What `whence audit` makes of it, by average precision. Left to itself it trains a model of its own twice and "
        "judges by both (and by naive Bayes on texts). With a model of the user's it judged by that model alone "
        "(`find_label_errors`); where that model sees hardly any wrong label, because it has learned them, it now "
        "judges by both (`whence audit --model`).\n"
    )
    yield table(["", *AUDITS, "best of the others"], rows)
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


def _limits(results: dict[str, Any]) -> Iterable[str]:
    """GEX in its linear limit, on two circles, and its hills; what references add to an audit."""
    parts = {name: results[f"detectors_{name}"]["figures"] for name in ("linearised", "circles", "hills", "reference")
             if f"detectors_{name}" in results}  # fmt: skip
    if parts:
        yield "## GEX beside ordinary influence\n"
    if found := parts.get("linearised"):
        errors = ", ".join(f"{count} members {f['error']:.3f}" for count, f in found.items() if count != "slope")
        yield (
            "Linearised deviations with exact Laplace members against (1/N) gᵀH⁻¹g′ by dense algebra (softmax "
            f"regression on 7×7 MNIST, 500 parameters, mean of 3 seeds), relative error: {errors}; slope of the "
            f"logarithms {found['slope']:.3f} (1/√M: -.5).\n"
        )
    if found := parts.get("circles"):
        known = results["detectors_circles"]["settings"]["published"]
        told = [f"{name} {f['auc']:.4f}/{f['average_precision']:.4f}"
                + (f" (published {known[name][0]:g}/{known[name][1]:g})" if name in known else "")
                for name, f in found.items() if isinstance(f, dict)]  # fmt: skip
        yield (
            "Two circles, 300 points, 10 % wrong, a perceptron that does not learn them (training accuracy "
            f"{found['training accuracy']:.3f}), AUC/AP, mean of 3 seeds: {', '.join(told)}.\n"
        )
    if found := parts.get("hills"):
        yield (
            "Hartigan's dip of log self-influence, MNIST memorised, all rows and rightly labelled ones alone (p: the "
            "chance of as large a dip from one hill). The second hill of GEX is the wrong labels.\n"
        )
        kinds = ("all rows", "rows rightly labelled")
        yield table(["", *kinds], [
            [name, *(f"{f[kind]['dip']:.4f} (p {f[kind]['p']:.2g})" for kind in kinds)] for name, f in found.items()
        ])  # fmt: skip
        yield ""
    if found := parts.get("reference"):
        yield (
            "`whence audit --reference`, 50 clean rows a class, average precision. The suspicion does not use them; "
            "class-based influence does, instead of the rows that the audit trusts most:\n"
        )
        keys = ("suspicion", "class-based", "both")
        yield table(["", "suspicion", "class-based influence", "ranks added"], [
            [f"{name}, {way}", *(f"{f[key]:.4f}" for key in keys)]
            for name, ways in found.items() for way, f in ways.items()
        ])  # fmt: skip
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
