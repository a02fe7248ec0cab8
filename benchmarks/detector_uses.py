"""What follows from GEX: relabelled rows retrained, pruned rows retrained, two sources told apart."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import detector_sets
import support
import whence as wh
from detector_settings import SETTINGS, subject_of

FRACTIONS = (0.2, 0.4, 0.6)


def accuracy(task: wh.Task, examples: wh.Examples) -> float:
    """Return the share of examples that a model predicts as labelled."""
    right = 0
    with torch.no_grad(), task.evaluating():
        for batch in examples.batches(1024):
            assert batch.targets is not None
            right += int((task.forward(task.place(batch)).argmax(1) == batch.targets).sum())
    return right / len(examples)


def probabilities(task: wh.Task, examples: wh.Examples) -> np.ndarray:
    """Return a model's probabilities [N, C]."""
    with torch.no_grad(), task.evaluating():
        parts = [task.forward(task.place(batch)).double().softmax(1) for batch in examples.batches(1024)]
    return torch.cat(parts).numpy()


def relabelled(report: support.Report, cache: Path, arguments: argparse.Namespace) -> None:
    """Relabel above Otsu's threshold on GEX's self-influence in the memorised regime, and train again."""
    setting = SETTINGS["mnist_memorised"]
    subject = subject_of(setting, cache.parent / "mnist_memorised", arguments.tiny)
    rows, task = subject.rows, subject.task
    kept = subject.folder / "GEX.npz"
    values = np.load(kept)["values"] if kept.is_file() else subject.fitted_gex.self_scores().values
    signal = wh.Signal(values=values, ids=rows.train.ids, name="GEX", unit=None)
    inputs, labels = rows.test(0)
    test = wh.as_examples((inputs, labels))
    before = accuracy(task, test)
    report.settings |= {"rows": len(rows.train), "wrong": int(rows.wrong.sum()), "epochs": setting.epochs}
    report.figures |= {"noisy": before}
    for scale in ("linear", "log"):
        frame = wh.relabel(signal, probabilities(task, rows.train), rows.labels, scale=scale)
        new, above = frame["new"].to_numpy(copy=True), frame["above"].to_numpy()
        figures = {
            "above": int(above.sum()), "wrong above": int((above & rows.wrong).sum()),
            "corrected": int((rows.wrong & (new == rows.true)).sum()),
            "spoiled": int((~rows.wrong & (new != rows.true)).sum()),
            "wrong before": int(rows.wrong.sum()), "wrong after": int((new != rows.true).sum()),
        }  # fmt: skip
        if scale == "linear":
            model = subject.recipe.train(rows.train, labels=torch.from_numpy(new), seed=0)
            figures["test accuracy"] = accuracy(subject.recipe.task(model), test)
            report.gate("relabel: points of test accuracy over the noisy labels",
                        100 * (figures["test accuracy"] - before), low=0)  # fmt: skip
        report.figures[scale] = figures
        print(f"  {scale}: {figures}", flush=True)
    report.gate("relabel: wrong labels left, as a share", report.figures["linear"]["wrong after"]
                / max(1, int(rows.wrong.sum())), high=1)  # fmt: skip


def pruned(report: support.Report, cache: Path, arguments: argparse.Namespace) -> None:
    """Prune clean rows by GEX (constant rate, clipped) and at random, and train again."""
    tiny = arguments.tiny
    rows = detector_sets.load("mnist", 5_000, tiny)
    clean = rows.noisy(0.0, 0)
    recipe = detector_sets.recipe(rows, 2 if tiny else 8, "vgg")
    task = recipe.task(recipe.train(clean.train, seed=0))
    steps = 4 if tiny else 160
    gex = wh.GEX(members=2 if tiny else 8, steps=steps, learning_rate=0.05, schedule="constant", clip=1.0)
    signal = gex.fit(task, clean.train).self_scores()
    inputs, labels = clean.test(0)
    test = wh.as_examples((inputs, labels))
    total = recipe.epochs * -(-len(clean.train) // recipe.batch_size)
    report.settings |= {"rows": len(clean.train), "steps of every training": total}
    report.figures["all"] = accuracy(task, test)
    for share in FRACTIONS:
        ways = {
            "GEX": wh.prune(signal, share),
            "GEX, balanced": wh.prune(signal, share, balanced=True, labels=clean.labels),
            **{f"random {seed}": np.random.default_rng(seed).permutation(clean.train.ids)[
                : round(share * len(clean.train))] for seed in (0, 1)},
        }  # fmt: skip
        figures = {}
        for name, dropped in ways.items():
            left = clean.train.select(np.flatnonzero(~np.isin(clean.train.ids, dropped)))
            again = detector_sets.recipe(rows, recipe.epochs, "vgg")
            again.steps = total  # as many steps on fewer rows
            figures[name] = accuracy(recipe.task(again.train(left, seed=1)), test)
        figures["random"] = float(np.mean([value for name, value in figures.items() if name.startswith("random")]))
        report.figures[f"{share:.0%}"] = figures
        print(f"  {share:.0%}: {figures}", flush=True)
        report.gate(f"prune {share:.0%}: points of test accuracy, GEX over random",
                    100 * (figures["GEX"] - figures["random"]), low=0)  # fmt: skip


def separated(report: support.Report, cache: Path, arguments: argparse.Namespace) -> None:
    """Tell MNIST from Fashion-MNIST by cross-influence on some MNIST rows."""
    tiny = arguments.tiny
    first, second = (detector_sets.load(name, count, tiny) for name, count in (("mnist", 4_500), ("fashion", 500)))
    count = 60 if tiny else 500
    inputs = torch.cat([first.inputs[first.held :], second.inputs[second.held :][:count]])
    labels = np.concatenate([first.labels[first.held :], second.labels[second.held :][:count]])
    known = np.arange(len(labels)) < len(first.labels) - first.held
    train = wh.as_examples((inputs, torch.from_numpy(labels)))
    recipe = detector_sets.recipe(first, 2 if tiny else 15, "vgg")
    task = recipe.task(recipe.train(train, seed=0))
    references = wh.as_examples((first.inputs[: first.held][:500], torch.from_numpy(first.labels[: first.held][:500])))
    gex = wh.GEX(members=2 if tiny else 8, steps=4 if tiny else 160, learning_rate=0.4, clip=1.0).fit(task, train)
    methods = {
        "GEX": gex, "gradient dot": wh.GradientDot(layers="last").fit(task, train),
        "gradient cosine": wh.GradientCosine(layers="last").fit(task, train),
        "EK-FAC": wh.Influence(layers="last").fit(task, train),
        "feature similarity": wh.Similarity(signed=False).fit(task, train),
    }  # fmt: skip
    report.settings |= {"rows": [int(known.sum()), int((~known).sum())], "references": len(references)}
    for name, fitted in methods.items():
        found = wh.separate_sources(fitted, references, known=known)
        assert found.auc is not None
        report.figures[name] = found.auc
        print(f"  {name}: {found.auc:.4f}", flush=True)
    report.gate("sources: AUC of GEX's cross-influence", report.figures["GEX"], low=0.5)
