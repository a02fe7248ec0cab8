"""Check-and-fix: a tenth of the labels is flipped; whose order of inspection finds and mends most?

    python benchmarks/influence_mislabels.py [--threads 1] [--sets sms mnist] [--cache FOLDER] [--tiny]

Logistic regression on 500 tf-idf words of SMS messages (4,000 rows), softmax regression on 64 principal components of
MNIST (5,000 rows); 40 draws of the flips. Inspected rows get their right label and the model is trained again.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn

import support
import tables
import whence as wh
from whence.scores import Signal

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)
FLIPPED = 0.1
DECAYS = (1e-4, 1e-3, 1e-2)
SETS = ("sms", "mnist")
MAIN, RIVAL = "self-influence", "loss"


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """One set: features [N, D] in float64, right labels, and held-out rows."""

    x: np.ndarray
    y: np.ndarray
    xt: np.ndarray
    yt: np.ndarray

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.y.max()) + 1


def main() -> None:
    """Run the sets."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    draws = 2 if arguments.tiny else 40
    folder = support.results_folder(arguments)
    for name in arguments.sets:
        rows = {"sms": messages, "mnist": digits}[name](arguments.tiny)
        settings = {
            "tiny": arguments.tiny, "threads": arguments.threads, "rows": len(rows.x), "held_out": len(rows.xt),
            "draws": draws, "flipped": FLIPPED, "decay": decay_of(rows),
        }  # fmt: skip
        report = support.Report(f"influence_mislabels-{name}", settings, judged=not arguments.tiny)
        settings["cached"] = arguments.cache is not None
        with support.Clock() as clock:
            found = [kept(arguments.cache, name, rows, settings["decay"], seed) for seed in range(draws)]
        summarise(report, found, name)
        report.figures["seconds"] = clock.wall
        report.close(folder, arguments.threads, arguments.strict)
    tables.renew(folder)


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=1)
    made.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    made.add_argument("--cache", type=Path, default=None, help="folder of finished draws, so that a run can go on")
    return made.parse_args()


def messages(tiny: bool) -> Rows:
    """Return messages as tf-idf of their 500 most frequent words, in an order drawn once."""
    bundled = support.ROOT / "examples" / "data" / "sms_spam.csv.gz"
    path = bundled if tiny else support.need(support.data_folder() / "sms_spam" / "sms_spam.csv.gz")
    table = pd.read_csv(path, na_filter=False)
    order = np.random.default_rng(0).permutation(len(table))[: 300 if tiny else None]
    texts, labels = table["text"].to_numpy()[order], table["label"].eq("spam").to_numpy()[order].astype(np.int64)
    cut = 200 if tiny else 4_000
    words = TfidfVectorizer(max_features=20 if tiny else 500, sublinear_tf=True).fit(texts[:cut])
    x = words.transform(texts).toarray()
    return Rows(x=x[:cut], y=labels[:cut], xt=x[cut:], yt=labels[cut:])


def digits(tiny: bool) -> Rows:
    """Return images as principal components of the training rows."""
    found = support.images(tiny)
    cut = 100 if tiny else 5_000
    shrink = PCA(8 if tiny else 64, random_state=0).fit(found["x"][:cut])
    x, xt = (shrink.transform(found[name][:cut]).astype(np.float64) for name in ("x", "xt"))
    return Rows(x=x, y=found["y"][:cut], xt=xt, yt=found["yt"][:cut])


def build(width: int, classes: int) -> nn.Module:
    """Return a linear model."""
    return nn.Linear(width, classes, dtype=torch.float64)


def recipe_of(rows: Rows, decay: float) -> wh.Recipe:
    """Return exact training."""
    make = functools.partial(build, rows.x.shape[1], rows.classes)
    return wh.Recipe(build=make, optimizer="lbfgs", weight_decay=decay, gradient_norm=1e-6)


def flip(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Return labels of which a tenth is replaced by another class."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(labels), round(FLIPPED * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[chosen] = (noisy[chosen] + generator.integers(1, classes, len(chosen))) % classes
    return noisy


def decay_of(rows: Rows) -> float:
    """Return the weight decay that predicts held-out noisy labels best: a fifth of the rows, nobody's clean labels."""
    noisy, cut = flip(rows.y, rows.classes, 10_000), len(rows.x) * 4 // 5
    right = []
    for decay in DECAYS:
        model = recipe_of(rows, decay).train(wh.as_examples((rows.x[:cut], noisy[:cut])))
        with torch.no_grad():
            predicted = model(torch.from_numpy(rows.x[cut:])).argmax(1).numpy()
        right.append(float((predicted == noisy[cut:]).mean()))
    return DECAYS[int(np.argmax(right))]


def kept(cache: Path | None, name: str, rows: Rows, decay: float, seed: int) -> dict[str, Any]:
    """Return a finished draw, or make and keep it."""
    path = None if cache is None else cache / f"{name}-{len(rows.x)}-{decay:g}-{seed}.json"
    found = None if path is None else support.read_json(path)
    if found is None:
        found = one_draw(rows, decay, seed)
        if path is not None:
            support.write_json(path, found)
    return found


def one_draw(rows: Rows, decay: float, seed: int) -> dict[str, Any]:
    """Flip, train, rank, inspect and fix; return accuracies and how much each order finds."""
    noisy = flip(rows.y, rows.classes, seed)
    train, queries, recipe = wh.as_examples((rows.x, noisy)), wh.as_examples((rows.xt, rows.yt)), recipe_of(rows, decay)
    base = recipe.train(train)
    attribution = wh.Influence(curvature=wh.Exact()).fit(recipe.task(base), train)
    held = attribution.leave_one_out()

    def signal(values: np.ndarray, name: str) -> Signal:
        return Signal(values=values, ids=train.ids, name=name, unit="nats")

    rankings = {
        MAIN: attribution.self_scores(),
        f"{MAIN}, leverage-corrected": attribution.self_scores(leverage_corrected=True),
        "leave-one-out loss": signal(held.losses, "held"), RIVAL: signal(held.fitted_losses, "loss"),
    }  # fmt: skip
    curve = wh.correction_curve(
        wh.Retraining(recipe=recipe, start=base), train, queries, rankings, labels=torch.from_numpy(rows.y),
        sweep=wh.Sweep(shares=SHARES, controls=1, seed=seed),
    )  # fmt: skip
    found = wh.detection(noisy != rows.y, rankings, shares=SHARES, resamples=2, seed=seed)
    result = {
        name: {
            "accuracy": [p.value.value for p in curve.of(name, "accuracy")],
            "loss": [p.value.value for p in curve.of(name, "loss")],
            "found": [found.detectors[name].found[share].value for share in SHARES],
            "average_precision": found.detectors[name].average_precision.value,
        }
        for name in rankings
    }
    start = {measurement: curve.before[measurement].value for measurement in ("accuracy", "loss")}
    points = curve.of(MAIN, "accuracy"), curve.of(MAIN, "loss")
    result["random"] = {
        "accuracy": [start["accuracy"] + p.control.value for p in points[0]],
        "loss": [start["loss"] + p.control.value for p in points[1]],
        "found": list(SHARES), "average_precision": FLIPPED,
    }  # fmt: skip
    print(f"  draw {seed}: before {start['accuracy']:.4f}; after inspecting {SHARES[1]:.0%}: "
          + ", ".join(f"{name} {one['accuracy'][1]:.4f}" for name, one in result.items()), flush=True)  # fmt: skip
    return {"before": start, "orders": result}


def summarise(report: support.Report, found: list[dict[str, Any]], name: str) -> None:
    """Write every order's curve with intervals over draws, and the paired differences from the rival."""
    orders = list(found[0]["orders"])
    report.figures |= {
        "shares": SHARES, "before": interval([one["before"]["accuracy"] for one in found]),
        "orders": {
            order: {
                key: [interval([one["orders"][order][key][i] for one in found]) for i in range(len(SHARES))]
                for key in ("accuracy", "loss", "found")
            } | {"average_precision": interval([one["orders"][order]["average_precision"] for one in found])}
            for order in orders
        },
    }  # fmt: skip
    area = {order: np.array([np.mean(one["orders"][order]["accuracy"]) for one in found]) for order in orders}
    gains = {}
    for order in orders:
        gains[order] = {
            other: interval((area[order] - area[other]).tolist()) for other in (RIVAL, "random") if other != order
        }
        told = "; ".join(f"over {other} {v['mean']:+.4f} [{v['low']:+.4f}, {v['high']:+.4f}]"
                         for other, v in gains[order].items())  # fmt: skip
        print(f"  {order}: mean accuracy over the curve {area[order].mean():.4f}; {told}", flush=True)
    best = max((order for order in orders if order != "random"), key=lambda order: area[order].mean())
    report.figures |= {"gains": gains, "wins": best, "mean_accuracy": {o: float(a.mean()) for o, a in area.items()}}
    print(f"  {name}: {best} wins")
    report.gate(f"{name}: {MAIN} above random, mean accuracy over the curve, lower end of 95 %",
                gains[MAIN]["random"]["low"], low=0)  # fmt: skip
    report.gate(f"{name}: {MAIN} above loss, mean accuracy over the curve", gains[MAIN][RIVAL]["mean"], low=0)
    corrected = f"{MAIN}, leverage-corrected"
    report.gate(f"{name}: {corrected} above loss, mean accuracy over the curve",
                gains[corrected][RIVAL]["mean"], low=0)  # fmt: skip


def interval(values: list[float]) -> dict[str, float]:
    """Return the mean with a 95 % t-interval."""
    mean, count = float(np.mean(values)), len(values)
    half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half}


if __name__ == "__main__":
    main()
