"""Influence on a small convolutional network against real leave-one-out and the proximal Bregman response.

    python benchmarks/retraining.py --cache FOLDER [--threads 1] [--tiny]

A tanh network of 2,656 parameters on 5,500 MNIST images (14×14, average-pooled), trained by Adam and then by L-BFGS
with weight decay to a stated gradient norm; 30 rows, half of them the most influential and half random, are left out
one at a time and the network is trained again from the same weights.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import support
import tables
import whence as wh
from whence.evaluate import Agreement, Retraining, agreement, leave_one_out, pbrf
from whence.methods.dense import inverse_root
from whence.tasks.convex import minimise


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a run is."""

    rows: int = 5_500
    left_out: int = 30
    queries: int = 20
    weight_decay: float = 0.01
    epochs: int = 100
    gradient_norm: float = 1e-6


TINY = Size(rows=60, left_out=6, queries=2, epochs=40, gradient_norm=1e-3)


def main() -> None:
    """Train, leave out, compare."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    size = TINY if arguments.tiny else Size()
    settings = {"tiny": arguments.tiny, "threads": arguments.threads, **vars(size)}
    report = support.Report("retraining", settings, judged=not arguments.tiny)
    train, queries = data(size, arguments.tiny)
    coarse = wh.Recipe(
        build=build, optimizer="adam", learning_rate=3e-3, weight_decay=size.weight_decay, epochs=size.epochs
    )
    recipe = wh.Recipe(
        build=build, optimizer="lbfgs", weight_decay=size.weight_decay, gradient_norm=size.gradient_norm
    )
    with support.Clock() as clock:
        task = recipe.task(coarse.train(train))
        root, every = inverse_root(task, train), torch.ones(len(train))
        model = minimise(task, train, every, gradient_norm=size.gradient_norm, inverse_root=root)
    task = recipe.task(model)
    batch = queries.batch(np.arange(len(queries)))
    report.figures |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_loss": float(mean_loss(task, train)),
        "test_accuracy": float((task.forward(task.place(batch)).argmax(1) == batch.targets).double().mean()),
        "training_seconds": clock.wall,
    }
    print(f"  trained: {report.figures}", flush=True)
    compare(report, recipe, task, (train, queries), size, arguments.cache)
    report.close(support.results_folder(arguments), arguments.threads, arguments.strict)
    tables.renew(support.results_folder(arguments))


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=1)
    made.add_argument("--cache", type=Path, default=None, help="folder for the results of retraining")
    return made.parse_args()


def data(size: Size, tiny: bool) -> tuple[wh.Examples, wh.Examples]:
    """Return training rows and queries, average-pooled to 14×14."""
    rows = support.images(tiny)
    x, xt = (rows[name].reshape(-1, 14, 2, 14, 2).mean((2, 4))[:, None].astype(np.float64) for name in ("x", "xt"))
    train = wh.as_examples((x[: size.rows], rows["y"][: size.rows]))
    return train, wh.as_examples((xt[: size.queries], rows["yt"][: size.queries]))


def build() -> nn.Sequential:
    """Return the network."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.Tanh(), nn.Conv2d(8, 8, 5, stride=2, padding=2), nn.Tanh(),
        nn.Conv2d(8, 10, 3, stride=2, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 10),
    )  # fmt: skip


def mean_loss(task: wh.Task, examples: wh.Examples) -> torch.Tensor:
    """Return the mean training loss."""
    with torch.no_grad():
        return task.losses(task.place(examples.batch(np.arange(len(examples))))).mean()


def compare(
    report: support.Report, recipe: wh.Recipe, task: wh.Task, rows: tuple[wh.Examples, wh.Examples], size: Size,
    cache: Path | None,
) -> None:  # fmt: skip
    """Compare influence with both truths, on rows of which half are the most influential and half are random."""
    train, queries = rows
    methods = {
        "exact Hessian": wh.Influence(curvature=wh.Exact(hessian=True), dtype=torch.float32),
        "exact Gauss-Newton": wh.Influence(curvature=wh.Exact()),
        "EK-FAC, damping auto": wh.Influence(curvature=wh.EKFAC(damping="auto")),
    }
    predicted = {}
    for name, method in methods.items():
        try:
            predicted[name] = method.fit(task, train).scores(queries)
        except wh.NumericalError as error:  # an indefinite Hessian, as after a short training, is a result
            print(f"  {name}: {error}", flush=True)
    print("  predicted", flush=True)
    generator = np.random.default_rng(0)
    first = next(iter(predicted))  # the Hessian, unless it is indefinite
    strongest = np.argsort(-predicted[first].values.square().sum(0).numpy(), kind="stable")[: size.left_out // 2]
    others = np.setdiff1d(np.arange(len(train)), strongest)
    chosen = generator.choice(others, size.left_out - len(strongest), replace=False)
    ids = np.concatenate([strongest, chosen])
    settings = Retraining(
        recipe=recipe, start=task.model, cache=cache,
        progress=lambda done, total: print(f"  {done} of {total} trainings", flush=True) if done % 5 == 0 else None,
    )  # fmt: skip
    with support.Clock() as clock:
        actual = leave_one_out(settings, train, queries, ids)
    report.figures["leave_one_out_seconds"] = clock.wall
    with support.Clock() as clock:
        response = pbrf(task, train, queries, ids, proximity=size.weight_decay, gradient_norm=1e-6)
    report.figures["pbrf_seconds"] = clock.wall
    proximal = wh.Influence(curvature=wh.Exact(damping=size.weight_decay)).fit(wh.Task(task.model), train)
    against = f"{first}, leave-one-out"
    found = {f"{name}, leave-one-out": figures(agreement(scores, actual)) for name, scores in predicted.items()}
    for what, some in (("strongest", strongest), ("random", chosen)):
        found[f"{against}, {what} rows"] = figures(agreement(predicted[first], columns(actual, ids, some)))
    found["exact Gauss-Newton, proximal Bregman response"] = figures(agreement(proximal.scores(queries), response))
    for name, values in found.items():
        print(f"  {name}: {values}", flush=True)
    report.figures["agreement"] = found
    judge(report)


def judge(report: support.Report) -> None:
    """Judge the gates by the report's figures."""
    r = {name: values["pooled_r"] for name, values in report.figures["agreement"].items()}
    loo, same = r.get("exact Hessian, leave-one-out"), r["exact Gauss-Newton, leave-one-out"]
    bregman = r["exact Gauss-Newton, proximal Bregman response"]
    report.gate("exact Hessian, leave-one-out (warm-started): r, all together", loo, low=0.9)
    what = "exact Gauss-Newton: r with the proximal Bregman response minus r with leave-one-out"
    report.gate(what, bregman - same, low=0)
    difference = None if loo is None else bregman - loo
    report.gate("the same minus the exact Hessian's r with leave-one-out", difference, low=0)


def columns(scores: wh.Scores, ids: np.ndarray, some: np.ndarray) -> wh.Scores:
    """Return the scores of some of the examples."""
    places = torch.from_numpy(np.flatnonzero(np.isin(ids, some)))
    return wh.Scores(
        values=scores.values[:, places], query_ids=scores.query_ids, ids=ids[places.numpy()], unit=scores.unit
    )


def figures(found: Agreement) -> dict[str, float]:
    """Return what is reported of one comparison."""
    pooled, lines = found.pooled, list(found.queries.values())
    return {
        "pooled_r": pooled.pearson.value, "pooled_r_low": pooled.pearson.low, "pooled_r_high": pooled.pearson.high,
        "pooled_slope": pooled.slope.value, "pooled_intercept": pooled.intercept.value,
        "median_query_r": float(np.median([line.pearson.value for line in lines])),
        "least_query_r": float(min(line.pearson.value for line in lines)),
        "median_query_slope": float(np.median([line.slope.value for line in lines])), "rows": lines[0].count,
    }  # fmt: skip


if __name__ == "__main__":
    main()
