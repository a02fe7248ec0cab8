"""Wrong labels found by every method of the library: one table a regime, and what follows from GEX.

    python benchmarks/detectors.py [--parts mnist_memorised mnist_early cifar10n sms ag_news
        class_mnist class_fashion class_sms class_ag_news class_trec class_cifar10 class_imdb class_mean
        class_stability relabel prune sources linearised circles hills reference]
        [--cache runs/detectors] [--threads 2] [--tiny]

One result file a part; values of methods and weights are kept in the cache, so that an interrupted part resumes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detector_classes
import detector_gex
import detector_methods
import detector_reference
import detector_uses
import support
import tables
import whence as wh
from detector_settings import SETTINGS, Setting, subject_of

RIVALS = ("TracIn-RP", "Arnoldi", "EK-FAC", "loss")
LEAST = {"auc": 0.99, "average_precision": 0.9}


CLASSES = tuple(f"class_{name}" for name in detector_classes.NAMES)
USES = {
    "relabel": detector_uses.relabelled, "prune": detector_uses.pruned, "sources": detector_uses.separated,
    "linearised": detector_gex.linearised, "circles": detector_gex.circles, "hills": detector_gex.hills,
    "reference": detector_reference.referred,
}  # fmt: skip
MEAN, STABLE = "class_mean", "class_stability"
PARTS = (*SETTINGS, *CLASSES, MEAN, STABLE, *USES)


def main() -> None:
    made = support.parser("Every method as a detector of wrong labels", threads=2)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=None, metavar="PART")
    made.add_argument("--methods", nargs="+", choices=detector_methods.METHODS, default=list(detector_methods.METHODS))
    made.add_argument("--cache", type=Path, default=None, help="where weights and values are kept")
    arguments = made.parse_args()
    support.limit_threads(arguments.threads)
    folder, failed = support.results_folder(arguments), 0
    tiny_parts = ("mnist_memorised", "class_sms", MEAN, STABLE, *USES)
    parts = arguments.parts or (tiny_parts if arguments.tiny else PARTS)
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or Path(temporary)
        for part in parts:
            report = support.Report(f"detectors_{part}", {}, judged=not arguments.tiny)
            print(f"{part}", flush=True)
            make(part)(report, cache / part, arguments)
            report.close(folder, arguments.threads, strict=False)
            failed += report.failed
    tables.renew(folder)
    if arguments.strict and failed:
        raise SystemExit(1)


def make(part: str) -> Callable[[support.Report, Path, argparse.Namespace], None]:
    """Return what measures a part."""
    if part in SETTINGS:
        return lambda report, cache, arguments: regime(SETTINGS[part], report, cache, arguments)
    if part == MEAN:
        return lambda report, cache, arguments: detector_classes.mean(report, support.results_folder(arguments))
    if part == STABLE:
        return lambda report, cache, arguments: detector_classes.stable(report, arguments.tiny)
    if part in CLASSES:
        name = part.removeprefix("class_")
        return lambda report, cache, arguments: detector_classes.measure(name, report, arguments.tiny)
    return lambda report, cache, arguments: USES[part](report, cache, arguments)


def regime(setting: Setting, report: support.Report, cache: Path, arguments: argparse.Namespace) -> None:
    """Measure every method on one regime, and hold GEX against its rivals where the model has memorised its labels."""
    subject = subject_of(setting, cache, arguments.tiny)
    task = subject.task
    found = detector_methods.measured(subject, arguments.methods)
    train, wrong = subject.rows.train, subject.rows.wrong
    signals = {
        name: wh.Signal(values=entry["values"], ids=train.ids, name=name, unit=None) for name, entry in found.items()
    }
    judged = wh.detection(wrong, signals, shares=(float(wrong.mean()), 0.2), resamples=20 if arguments.tiny else 200)
    figures = {}
    for name, detector in judged.detectors.items():
        figures[name] = {
            "auc": detector.auc.value, "average_precision": detector.average_precision.value,
            "interval": [detector.average_precision.low, detector.average_precision.high],
            "precision": next(iter(detector.precision.values())).value,
            "top_20": detector.precision[0.2].value,
            **{key: found[name][key] for key in ("seconds", "cpu_seconds", "memory_mb")},
        }  # fmt: skip
    accuracy = detector_uses.accuracy(task, train)
    inputs, labels = subject.rows.test(0)
    report.settings |= {
        "regime": setting.name, "rows": len(train), "wrong": int(wrong.sum()), "network": setting.kind,
        "epochs": setting.epochs, "members": subject.gex.members, "steps": subject.gex.steps,
        "learning_rate": subject.gex.learning_rate, "clip": subject.gex.clip, "folds": subject.folds,
    }  # fmt: skip
    report.figures |= {
        "methods": figures, "training_accuracy": accuracy,
        "test_accuracy": detector_uses.accuracy(task, wh.as_examples((inputs, labels))),
        "training_seconds": subject.training_seconds,
    }  # fmt: skip
    if "GEX" in found:
        report.figures["diagnosis"] = subject.fitted_gex.diagnosis.to_dict()
        print(f"  {subject.fitted_gex.diagnosis}", flush=True)
    _judge(setting, report, figures, accuracy)


def _judge(setting: Setting, report: support.Report, figures: dict[str, Any], accuracy: float) -> None:
    """Gates of the memorised regime on MNIST; elsewhere that everything is above chance and told apart."""
    if setting.name.startswith("MNIST"):
        low, high = (0.99, None) if setting.memorised else (None, 0.99)
        report.gate(f"{setting.name}: training accuracy", accuracy, low=low, high=high)
    if "GEX" not in figures:
        return
    own = figures["GEX"]
    if setting.name == "MNIST, memorised":
        for figure, least in LEAST.items():
            report.gate(f"{setting.name}: {figure} of GEX", own[figure], low=least)
            for rival in RIVALS:
                gain = own[figure] - figures[rival][figure] if rival in figures else None
                report.gate(f"{setting.name}: {figure}, GEX over {rival}", gain, low=0)
    else:
        report.gate(f"{setting.name}: AUC of GEX", own["auc"], low=0.5)
    best = max(figures, key=lambda name: figures[name]["average_precision"])
    print(f"  best: {best} ({figures[best]['average_precision']:.4f}); GEX {own['average_precision']:.4f}")


if __name__ == "__main__":
    main()
