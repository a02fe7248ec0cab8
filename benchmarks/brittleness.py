"""How few training rows must go for a prediction to flip, in the order of several scores, verified by retraining.

    python benchmarks/brittleness.py --cache FOLDER [--threads 1] [--tiny]

The network of lds.py, MLP 49-32-32-10, on 1,000 MNIST images (7×7); queries that every seed predicts rightly, those of
the smallest margin among 200. A set counts where the mean margin over the seeds is not positive after training without
it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lds
import support
import tables
import whence as wh
from whence.audit.bench import stack_of
from whence.evaluate import Brittleness, FlipSearch, Margin, Retraining, brittleness

LARGEST = 0.2


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a run is: training rows, queries, rows to choose queries from, seeds of every training."""

    rows: int = 1_000
    queries: int = 24
    pool: int = 200
    seeds: int = 2
    epochs: int = 30


TINY = Size(rows=60, queries=3, pool=30, seeds=1, epochs=20)


def main() -> None:
    """Search for the smallest sets in every order, and compare them with each other and with chance."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    size = TINY if arguments.tiny else Size()
    report = support.Report("brittleness", {"tiny": arguments.tiny, "threads": arguments.threads, **vars(size)},
                            judged=not arguments.tiny)  # fmt: skip
    base = replace(lds.TINY if arguments.tiny else lds.Size(), rows=size.rows, queries=size.pool, epochs=size.epochs)
    (train, pool), recipe = lds.data(base, arguments.tiny), lds.make_recipe(base)
    seeds = tuple(range(lds.FIRST_SEED, lds.FIRST_SEED + size.seeds))
    retraining = Retraining(recipe=recipe, seeds=seeds, stack=stack_of(recipe), cache=arguments.cache)
    queries = chosen(retraining, train, pool, size.queries)
    report.figures |= {"queries": len(queries), "largest": LARGEST, "orders": {}}
    found = {}
    for name, scores, search in orders(recipe.task(recipe.train(train, seed=0)), train, queries):
        with support.Clock() as clock:
            found[name] = brittleness(retraining, train, queries, scores, search=search)
        report.figures["orders"][name] = {**figures(found[name]), "seconds": clock.wall}
        print(f"  {name}: {report.figures['orders'][name]}", flush=True)
    judge(report, found)
    report.close(support.results_folder(arguments), arguments.threads, arguments.strict)
    tables.renew(support.results_folder(arguments))


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=1)
    made.add_argument("--cache", type=Path, default=None, help="folder for the results of retraining")
    return made.parse_args()


def chosen(retraining: Retraining, train: wh.Examples, pool: wh.Examples, count: int) -> wh.Examples:
    """Return the rows of smallest positive margin, of those that every seed predicts rightly."""
    margins = replace(retraining, measurement=Margin()).measure(train, pool, [[]])[0].numpy()  # [S, Q]
    right = np.flatnonzero((margins > 0).all(0))
    return pool.select(np.sort(right[np.argsort(margins.mean(0)[right], kind="stable")[:count]]))


def orders(task: wh.Task, train: wh.Examples, queries: wh.Examples) -> list[tuple[str, wh.Scores, FlipSearch]]:
    """Return scores of the queries' margins, or of their losses where a baseline gives those."""
    margin = replace(task, measurement=Margin())
    of_margin, of_loss = FlipSearch(largest=LARGEST), FlipSearch(of="loss", largest=LARGEST)
    humble: dict[str, Any] = {"feature similarity": wh.Similarity(), "random": wh.RandomBaseline()}
    ekfac = wh.Influence(curvature=wh.EKFAC()).fit(margin, train).scores(queries)
    return [
        ("whence EK-FAC", ekfac, of_margin),
        *((name, baseline.fit(task, train).scores(queries), of_loss) for name, baseline in humble.items()),
    ]


def figures(found: Brittleness) -> dict[str, Any]:
    """Return how many predictions flipped, with how few rows, and what as many random rows do."""
    sizes = np.array([np.inf if one.size is None else one.size for one in found.queries])
    shares = {f"{share:g}": float((sizes <= share * found.largest / LARGEST).mean()) for share in (0.005, 0.01, 0.02)}
    median = float(np.median(sizes))
    predicted = [one.found.predicted for one in found.queries]
    return {
        "flipped": float(np.isfinite(sizes).mean()),
        "median": median if np.isfinite(median) else None,
        "within": shares,
        "sizes": [None if one.size is None else one.size for one in found.queries],
        "random_flipped": float(np.mean([one.random_flipped for one in found.queries])),
        "margin": float(np.mean([one.margin.value for one in found.queries])),
        "after": float(np.mean([one.found.actual.value for one in found.queries])),
        "predicted": None if None in predicted else float(np.mean(predicted)),
        "random_after": float(np.mean([one.random.value for one in found.queries])),
    }


def judge(report: support.Report, found: dict[str, Brittleness]) -> None:
    """Influence must flip more than similarity, and similarity's and chance's sets must be larger."""
    kept = report.figures["orders"]
    ours = kept["whence EK-FAC"]
    report.gate("share of predictions flipped in the order of EK-FAC", ours["flipped"], low=0.9)
    for name in ("feature similarity", "random"):
        report.gate(f"share flipped within 1 % of the rows, EK-FAC minus {name}",
                    ours["within"]["0.01"] - kept[name]["within"]["0.01"], low=0.0)  # fmt: skip
    report.gate("share of trainings without as many random rows that flip", ours["random_flipped"], high=0.1)


if __name__ == "__main__":
    main()
