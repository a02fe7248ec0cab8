"""Class-based influence against its plain sum: 20 % of the labels flipped, last layer and all layers, three seeds.

The paper's authors measure the epoch that does best on clean validation rows, the last layer, 100 references a class
and, for TracIn, every epoch up to that one. So it is done here; beside it stands the same network trained to the end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

import detector_sets
import support
import whence as wh

NAMES = ("mnist", "fashion", "sms", "ag_news", "trec", "cifar10", "imdb")
RATE, SHARE, PER_CLASS, EPOCHS, SEEDS = 0.2, 0.2, 100, 15, (0, 1, 2)
ROWS = {"cifar10": 5_000, "imdb": 4_000, "sms": 4_000, "trec": 4_000}
STOPS = ("best epoch", "last epoch")
METHODS = ("GD", "IF", "TracIn", "GC")
LAYERS = ("last", "all")
_CURVATURE = wh.EKFAC(damping=wh.Relative(0.1))
LEAST = {"GD": 10.0, "TracIn": 10.0, "IF": 0.0}  # points


def measure(name: str, report: support.Report, tiny: bool) -> None:
    """Measure one set; the mean over sets is judged where the tables are made."""
    rows = detector_sets.load(name, ROWS.get(name, 5_000), tiny)
    seeds = SEEDS[:1] if tiny else SEEDS
    with support.Clock() as clock:
        runs = [_run(rows, seed, tiny) for seed in seeds]
    report.settings |= {
        "set": name, "rows": len(rows.labels) - rows.held, "seeds": list(seeds), "rate": RATE,
        "references per class": PER_CLASS, "epochs": EPOCHS, "network": "perceptron",
    }  # fmt: skip
    keys = sorted({key for run in runs for key in run})
    report.figures |= {key: {"mean": float(np.mean([run[key] for run in runs])), "runs": [run[key] for run in runs]}
                       for key in keys}  # fmt: skip
    report.figures |= {"seconds": clock.wall, "cpu_seconds": clock.cpu}
    for stop in STOPS:
        for layers in LAYERS:
            for method in METHODS:
                key = f"{stop}/{method}/{layers}"
                plain, classes = (report.figures[f"{key}/{way}"]["mean"] for way in ("mean", "class"))
                print(f"  {key}: {plain:.3f} -> {classes:.3f}", flush=True)
        print(f"  {stop}, loss: {report.figures[f'{stop}/loss']['mean']:.3f}", flush=True)
    found = report.figures
    gain = found[f"{STOPS[0]}/GD/last/class"]["mean"] - found[f"{STOPS[0]}/GD/last/mean"]["mean"]
    report.gate(f"{name}: points gained by classes, gradient dot, last layer, best epoch", 100 * gain, low=0)


def mean(report: support.Report, folder: Path | None) -> None:
    """Hold the mean over the sets that a folder of results has against the gates."""
    paths = {} if folder is None else {name: folder / f"detectors_class_{name}.json" for name in NAMES}
    results = {path.stem: support.read_json(path) for path in paths.values() if path.is_file()}
    report.settings |= {"sets": [name for name in NAMES if f"detectors_class_{name}" in results]}
    gains = judged(results)
    report.figures |= {", ".join(key): 100 * gain for key, gain in gains.items()}
    for stop in STOPS:
        for method, least in LEAST.items():
            for layers in LAYERS:
                gain = 100 * gains[stop, method, layers]
                which = f"{method}, {layers} layers, {stop}"
                what = f"points gained by classes in the mean over {len(results)} sets, {which}"
                report.gate(what, gain if results else None, low=least)
    _beside(report, results)


def _beside(report: support.Report, results: dict[str, Any]) -> None:
    """Report a true inverse against gradient dots, and the best of them against the loss."""
    parts = [result["figures"] for result in results.values()]
    pairs = {
        "IF by classes over GD by classes": ("IF/last/class", "GD/last/class"),
        "TracIn by classes over loss": ("TracIn/last/class", "loss"),
        "TracIn by classes and loss over loss": ("TracIn/last/class and loss", "loss"),
    }
    for what, (one, other) in pairs.items():
        gain = [part[f"{STOPS[0]}/{one}"]["mean"] - part[f"{STOPS[0]}/{other}"]["mean"] for part in parts]
        value = 100 * float(np.mean(gain)) if gain else float("nan")
        report.figures[what] = value
        print(f"  {what}: {value:+.1f} points", flush=True)


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
    recipe = detector_sets.recipe(rows, 2 if tiny else EPOCHS, "perceptron")
    references = noisy.references(10 if tiny else PER_CLASS, seed)
    run, accuracies = _trained(recipe, noisy, references, seed)
    found: dict[str, float] = {}
    for stop in STOPS:
        epoch = int(np.argmax(accuracies)) if stop == STOPS[0] else len(run) - 1
        if stop == STOPS[0]:
            traced = _part(run, range(epoch + 1), weighted=False)
        else:
            traced = _part(run, sorted({round(e) - 1 for e in np.linspace(0, len(run), 6)[1:]}), weighted=True)
        model = copy.deepcopy(run.model)
        model.load_state_dict(run.weights[epoch])
        task = wh.Task(model.eval())
        of_task = _detected(task, traced, noisy, references, seed)
        found |= {f"{stop}/{key}": value for key, value in of_task.items()}
        found |= {f"{stop}/epoch": epoch + 1, f"{stop}/clean accuracy": accuracies[epoch]}
    return found


def _trained(
    recipe: wh.Recipe, noisy: detector_sets.Noisy, references: wh.Examples, seed: int
) -> tuple[wh.Checkpoints, list[float]]:
    """Train, keep every epoch, and its accuracy on clean rows that are not among the references."""
    inputs, labels = noisy.test(0, used=references)
    weights: list[dict[str, Tensor]] = []
    accuracies: list[float] = []

    def keep(epoch: int, model: nn.Module, loss: float) -> None:
        weights.append({name: value.detach().clone() for name, value in model.state_dict().items()})
        with torch.no_grad():
            accuracies.append(float((model(inputs).argmax(1) == labels).double().mean()))

    model = recipe.train(noisy.train, seed=seed, on_epoch=keep)
    rates = tuple(recipe.learning_rate * recipe.rate((e + 0.5) / len(weights)) for e in range(len(weights)))
    epochs = tuple(range(1, len(weights) + 1))
    return wh.Checkpoints(weights=tuple(weights), learning_rates=rates, epochs=epochs, model=model), accuracies


def _part(run: wh.Checkpoints, places: Sequence[int], weighted: bool) -> wh.Checkpoints:
    """Return some of the epochs; the authors' TracIn has no step sizes."""
    return wh.Checkpoints(
        weights=tuple(run.weights[e] for e in places), epochs=tuple(run.epochs[e] for e in places), model=run.model,
        learning_rates=tuple(run.learning_rates[e] if weighted else 1.0 for e in places),
    )  # fmt: skip


def _detected(
    task: wh.Task, traced: wh.Checkpoints, noisy: detector_sets.Noisy, references: wh.Examples, seed: int
) -> dict[str, float]:
    """Return detection accuracy at the top 20 % by method, layers and reduction."""
    loss = np.asarray(wh.LossBaseline().fit(task, noisy.train).suspicion().values)
    found = {"loss": _found(loss, noisy.wrong), "training accuracy": 1 - float(np.mean(loss > math.log(2)))}
    labels = references.targets
    assert labels is not None
    for layers in LAYERS:
        for method, config in _methods(traced, "last" if layers == "last" else None, seed).items():
            scores = config.fit(task, noisy.train).scores(references)
            for way in ("mean", "class"):
                harm = np.asarray(wh.class_based(scores, labels=labels.numpy(), reduction=way).values)
                found[f"{method}/{layers}/{way}"] = _found(harm, noisy.wrong)
            found[f"{method}/{layers}/class and loss"] = _found(rankdata(harm) + rankdata(loss), noisy.wrong)
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


def judged(results: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """Return what classes gain in the mean over the sets that were measured, by stop, method and layers."""
    parts = [results[f"detectors_class_{name}"]["figures"] for name in NAMES if f"detectors_class_{name}" in results]
    gains = {}
    for stop in STOPS:
        for method in METHODS:
            for layers in LAYERS:
                key = f"{stop}/{method}/{layers}"
                change = [part[f"{key}/class"]["mean"] - part[f"{key}/mean"]["mean"] for part in parts]
                gains[stop, method, layers] = float(np.mean(change)) if change else float("nan")
    return gains
