"""Class-based influence against its plain sum: 20 % of the labels flipped, last layer and all layers, three seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

import detector_sets
import support
import whence as wh

NAMES = ("mnist", "fashion", "sms", "ag_news", "trec", "cifar10", "imdb")
RATE, SHARE, PER_CLASS, SEEDS = 0.2, 0.2, 50, (0, 1, 2)
ROWS = {"cifar10": 5_000, "imdb": 4_000, "sms": 4_000, "trec": 4_000}
METHODS = ("GD", "IF", "TracIn", "GC")
_CURVATURE = wh.EKFAC(damping=wh.Relative(0.1))
LEAST = {"GD": 10.0, "TracIn": 10.0, "IF": 0.0}  # points


def measure(name: str, report: support.Report, tiny: bool) -> None:
    """Measure one set; the mean over sets is judged where the tables are made."""
    rows = detector_sets.load(name, ROWS.get(name, 5_000), tiny)
    seeds = SEEDS[:1] if tiny else SEEDS
    runs = [_run(rows, seed, tiny) for seed in seeds]
    report.settings |= {"set": name, "rows": len(rows.labels) - rows.held, "seeds": list(seeds), "rate": RATE,
                        "references per class": PER_CLASS}  # fmt: skip
    keys = sorted({key for run in runs for key in run})
    report.figures |= {key: {"mean": float(np.mean([run[key] for run in runs])), "runs": [run[key] for run in runs]}
                       for key in keys}  # fmt: skip
    for layers in ("last", "all"):
        for method in METHODS:
            plain, classes = (report.figures[f"{method}/{layers}/{way}"]["mean"] for way in ("mean", "class"))
            print(f"  {method}, {layers} layers: {plain:.3f} -> {classes:.3f}", flush=True)
    print(f"  loss: {report.figures['loss']['mean']:.3f}", flush=True)
    gain = report.figures["GD/last/class"]["mean"] - report.figures["GD/last/mean"]["mean"]
    report.gate(f"{name}: points gained by classes, gradient dot, last layer", 100 * gain, low=0)


def mean(report: support.Report, folder: Path | None) -> None:
    """Hold the mean over the sets that a folder of results has against the gates."""
    paths = {} if folder is None else {name: folder / f"detectors_class_{name}.json" for name in NAMES}
    results = {path.stem: support.read_json(path) for path in paths.values() if path.is_file()}
    report.settings |= {"sets": [name for name in NAMES if f"detectors_class_{name}" in results]}
    gains = dict(judged(results))
    report.figures |= {what: 100 * gain for what, gain in gains.items()}
    for method, least in LEAST.items():
        for layers in ("last", "all"):
            gain = 100 * gains[f"{method}, {layers} layers"]
            what = f"points gained by classes in the mean over {len(results)} sets, {method}, {layers} layers"
            report.gate(what, gain if results else None, low=least)


def stable(report: support.Report, tiny: bool) -> None:
    """Agreement of scores over three trainings on the same noisy rows: same-class against different-class pairs."""
    names = ("sms",) if tiny else ("sms", "ag_news", "mnist")
    for name in names:
        rows = detector_sets.load(name, 2_000, tiny)
        noisy = rows.noisy(RATE, 0)
        references = noisy.references(10, 0)
        assert references.targets is not None
        recipe = detector_sets.recipe(rows, 2 if tiny else 10, "perceptron")
        tasks = [wh.Task(recipe.train(noisy.train, seed=seed)) for seed in SEEDS]
        for method, config in {
            "GD": wh.GradientDot(layers="last"), "IF": wh.Influence(curvature=_CURVATURE, layers="last"),
        }.items():  # fmt: skip
            scores = [config.fit(task, noisy.train).scores(references) for task in tasks]
            found = wh.stability(scores, noisy.labels, references.targets, resamples=200)
            pairs = {"same class": found.same, "different class": found.different}
            report.figures[f"{name}/{method}"] = {
                kind: [pair.spearman.value, pair.spearman.low, pair.spearman.high] for kind, pair in pairs.items()
            }  # fmt: skip
            gain = found.same.spearman.value - found.different.spearman.value
            report.gate(f"{name}, {method}: rank correlation over seeds, same class over different", gain, low=0)


def _run(rows: detector_sets.Rows, seed: int, tiny: bool) -> dict[str, float]:
    """Return detection accuracy at the top 20 % of every method and reduction, for one seed."""
    noisy = rows.noisy(RATE, seed)
    epochs = 2 if tiny else 10
    run = wh.record_checkpoints(
        detector_sets.recipe(rows, epochs, "perceptron"), noisy.train, count=5, seed=seed
    )
    task = wh.Task(run.model)
    references = noisy.references(PER_CLASS, seed)
    loss = np.asarray(wh.LossBaseline().fit(task, noisy.train).suspicion().values)
    found = {"loss": _found(loss, noisy.wrong), "training accuracy": 1 - float(np.mean(loss > np.log(2)))}
    for layers in ("last", "all"):
        which = "last" if layers == "last" else None
        for method, config in _methods(run, which, seed).items():
            scores = config.fit(task, noisy.train).scores(references)
            labels = references.targets
            assert labels is not None
            for way in ("mean", "class"):
                harm = np.asarray(wh.class_based(scores, labels=labels.numpy(), reduction=way).values)
                found[f"{method}/{layers}/{way}"] = _found(harm, noisy.wrong)
                if way == "class":
                    both = rankdata(harm) + rankdata(loss)
                    found[f"{method}/{layers}/class and loss"] = _found(both, noisy.wrong)
    return found


def _methods(run: wh.Checkpoints, layers: str | None, seed: int) -> dict[str, Any]:
    """Return the methods of the paper, influence with a true inverse."""
    return {
        "GD": wh.GradientDot(layers=layers),
        "IF": wh.Influence(curvature=_CURVATURE, layers=layers, seed=seed),
        "TracIn": wh.TracIn(checkpoints=run, layers=layers),
        "GC": wh.GradientCosine(layers=layers),
    }


def _found(suspicion: np.ndarray, wrong: np.ndarray) -> float:
    """Return the share of wrong labels among the 20 % of the highest suspicion."""
    first = np.argsort(-suspicion, kind="stable")[: round(SHARE * len(wrong))]
    return float(wrong[first].mean())


def judged(results: dict[str, Any]) -> list[tuple[str, float]]:
    """Return points gained by classes in the mean over the sets that were measured, by method and layers."""
    parts = [results[f"detectors_class_{name}"]["figures"] for name in NAMES if f"detectors_class_{name}" in results]
    gains = []
    for method in METHODS:
        for layers in ("last", "all"):
            key = f"{method}/{layers}"
            change = [part[f"{key}/class"]["mean"] - part[f"{key}/mean"]["mean"] for part in parts]
            gains.append((f"{method}, {layers} layers", float(np.mean(change)) if change else float("nan")))
    return gains
