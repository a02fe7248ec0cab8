"""What GEX is held against besides its rivals: ordinary influence in its linear limit, two circles, one hill or two."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_circles
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

import detector_methods
import support
import whence as wh
from detector_settings import SETTINGS, subject_of
from whence.data import other_class_noise
from whence.evaluate.unimodality import unimodality

PUBLISHED = {"leave-one-out": (1.0, 1.0), "GEX": (1.0, 1.0), "influence": (0.995, 0.977)}  # AUC, AP; Kim et al. (2023)
MEMBERS = (8, 32, 128, 512)
SEEDS = (0, 1, 2)
BILINEAR = ("gradient dot", "EK-FAC")


def linearised(report: support.Report, cache: Path, arguments: argparse.Namespace) -> None:
    """Linearised deviations of exact Laplace members against (1/N) gᵀH⁻¹g′ by dense float64 algebra: rate and error."""
    tiny = arguments.tiny
    data, rows, decay = support.images(tiny), 200 if tiny else 2_000, 0.01
    small = torch.from_numpy(data["x"][:rows]).double().reshape(-1, 7, 4, 7, 4).mean((2, 4)).flatten(1)
    train = wh.as_examples((small, torch.from_numpy(data["y"][:rows])))
    recipe = wh.Recipe(build=functools.partial(_softmax, 49), optimizer="lbfgs", weight_decay=decay)
    task = wh.Task(recipe.train(train), weight_decay=decay)
    queries = train.select(np.arange(100))
    truth = _dense(task.model, train, decay)[:100]
    report.settings |= {"rows": rows, "parameters": 500, "weight decay": decay, "members": MEMBERS, "seeds": SEEDS}
    counts = MEMBERS[:2] if tiny else MEMBERS
    for members in counts:
        errors = []
        for seed in SEEDS[:1] if tiny else SEEDS:
            posterior = wh.Laplace(curvature=wh.Exact())
            method = wh.GEX(members=members, posterior=posterior, linearised=True, seed=10_000 * seed)
            scores = method.fit(task, train).scores(queries).values.double()
            errors.append(float((scores - truth).norm() / truth.norm()))
        report.figures[str(members)] = {"error": float(np.mean(errors)), "runs": errors}
        print(f"  {members} members: relative error {np.mean(errors):.4f}", flush=True)
    found = [report.figures[str(members)]["error"] for members in counts]
    slope = float(np.polyfit(np.log(counts), np.log(found), 1)[0])
    report.figures["slope"] = slope
    report.gate("linearised GEX: slope of log error on log members (1/√M: -.5)", slope, low=-0.6, high=-0.4)


def _softmax(features: int) -> nn.Module:
    """A linear model in double precision."""
    return nn.Linear(features, 10).double()


def _dense(model: nn.Module, train: wh.Examples, decay: float) -> Tensor:
    """Return (1/N) gᵀ H⁻¹ g′ of all pairs by dense algebra [N, N]; the decay is in H alone."""
    batch = train.batch(np.arange(len(train)))
    x = torch.cat([batch.inputs, torch.ones(len(train), 1, dtype=torch.float64)], 1)
    assert batch.targets is not None
    with torch.no_grad():
        p = model(batch.inputs).softmax(1)
    residual = p - nn.functional.one_hot(batch.targets, p.shape[1])
    g = (residual[:, :, None] * x[:, None]).flatten(1)
    spread = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    hessian = torch.einsum("nab,ni,nj->aibj", spread, x, x).reshape(g.shape[1], -1) / len(x)
    hessian += decay * torch.eye(g.shape[1], dtype=torch.float64)
    return g @ torch.linalg.solve(hessian, g.T) / len(x)


def circles(report: support.Report, cache: Path, arguments: argparse.Namespace) -> None:
    """Two circles with a tenth of the labels wrong, a small network that does not learn them: AUC and AP."""
    tiny = arguments.tiny
    rows, epochs = (60, 20) if tiny else (300, 200)
    recipe = wh.Recipe(
        build=_circle_network, optimizer="adam", learning_rate=0.01, schedule="cosine", epochs=epochs, batch_size=rows
    )
    report.settings |= {"rows": rows, "noise": 0.1, "epochs": epochs, "published": PUBLISHED}
    runs: dict[str, list[tuple[float, float]]] = {}
    accuracies = []
    for seed in SEEDS[:1] if tiny else SEEDS:
        points, true = make_circles(rows, noise=0.05, factor=0.5, random_state=seed)
        noise = other_class_noise(true.astype(np.int64), 0.1, 2, seed)
        train = wh.as_examples((torch.from_numpy(points).float(), torch.from_numpy(noise.labels)))
        task = recipe.task(recipe.train(train, seed=seed))
        accuracies.append(1 - float(np.mean(wh.LossBaseline().fit(task, train).suspicion().values > np.log(2))))
        for name, values in _signals(task, recipe, train, noise.changed, seed, tiny).items():
            runs.setdefault(name, []).append(values)
    for name, values in runs.items():
        auc, precision = np.mean(values, axis=0)
        report.figures[name] = {"auc": float(auc), "average_precision": float(precision)}
        known = f" (published {PUBLISHED[name][0]}/{PUBLISHED[name][1]})" if name in PUBLISHED else ""
        print(f"  {name}: AUC {auc:.4f}, AP {precision:.4f}{known}", flush=True)
    report.figures["training accuracy"] = float(np.mean(accuracies))
    report.gate("two circles: AUC of GEX (published 1)", report.figures["GEX"]["auc"], low=1.0)


def _circle_network() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))


def _signals(
    task: wh.Task, recipe: wh.Recipe, train: wh.Examples, wrong: np.ndarray, seed: int, tiny: bool
) -> dict[str, tuple[float, float]]:
    """Return AUC and AP of every method; leave-one-out on some wrong rows and twice as many right ones."""
    gex = wh.GEX(
        members=4 if tiny else 32, steps=20 if tiny else 100, learning_rate=0.4, schedule="constant", clip=1.0,
        batch_size=32, seed=seed,
    )  # fmt: skip
    methods: dict[str, Any] = {
        "GEX": gex, "influence": wh.Influence(curvature=wh.EKFAC(damping="auto"), seed=seed),
        "gradient dot": wh.GradientDot(),
    }  # fmt: skip
    values = {name: np.asarray(method.fit(task, train).self_scores().values) for name, method in methods.items()}
    values["loss"] = np.asarray(wh.LossBaseline().fit(task, train).suspicion().values)
    found = {name: _told(one, wrong) for name, one in values.items()}
    draw, count = np.random.default_rng(seed), 3 if tiny else 10
    parts = [draw.permutation(np.flatnonzero(rows))[:size] for rows, size in ((wrong, count), (~wrong, 2 * count))]
    left = np.concatenate(parts)
    found["leave-one-out"] = _told(_left_out(task, recipe, train, left, seed), wrong[left])
    return found


def _left_out(task: wh.Task, recipe: wh.Recipe, train: wh.Examples, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return how much the loss of each row rises when the network is trained without it."""
    base, changes = np.asarray(wh.LossBaseline().fit(task, train).suspicion().values), []
    for row in rows:
        model = recipe.train(train, exclude=[train.ids[row]], seed=seed)
        with torch.no_grad():
            loss = float(recipe.task(model).losses(train.batch(np.array([row])))[0])
        changes.append(loss - base[row])
    return np.array(changes)


def _told(values: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """Return AUC and average precision."""
    return float(roc_auc_score(wrong, values)), float(average_precision_score(wrong, values))


def hills(report: support.Report, cache: Path, arguments: argparse.Namespace) -> None:
    """Hartigan's dip of log self-influence in the memorised regime: GEX has two hills, gradients' products have one.

    The latter in double precision: residuals of 1e-7 and less are rounded in float32, which makes hills of its own.
    """
    subject = subject_of(SETTINGS["mnist_memorised"], cache.parent / "mnist_memorised", arguments.tiny)
    double = detector_methods.doubled(subject)
    report.settings |= {"rows": len(subject.rows.train), "wrong": int(subject.rows.wrong.sum())}
    found = detector_methods.measured(subject, ["GEX", "TracIn-RP"]) | detector_methods.measured(double, list(BILINEAR))
    for name, entry in found.items():
        tested = {"all rows": entry["values"], "rows rightly labelled": entry["values"][~subject.rows.wrong]}
        for which, values in tested.items():
            positive = values[values > 0]
            signal = wh.Signal(values=positive, ids=np.arange(len(positive)), name=name, unit=None)
            dip = unimodality(signal)
            report.figures.setdefault(name, {})[which] = {"dip": dip.dip, "p": dip.p_value, "rows": dip.count}
            print(f"  {which}, {dip}", flush=True)
        p = report.figures[name]["all rows"]["p"]
        if name == "GEX":
            report.gate("MNIST, memorised: dip test's p of log self-influence, GEX (two hills)", p, high=0.05)
        else:
            report.gate(f"MNIST, memorised: dip test's p of log self-influence, {name} (one hill)", p, low=0.05)
