"""The linear datamodelling score beside an independent one: dattri's metric on the same scores and models.

    python benchmarks/lds_reference.py [--threads 1] [--tiny]

MLP 49-16-10 on 400 MNIST images (7×7, average-pooled), EK-FAC scores of 50 queries, 32 half-subsets × 2 seeds. Both
sides read the same file; scores are rounded too, so that predictions tie.
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import support
import tables
import whence as wh
from whence.evaluate import Retraining, SubsetOutputs, Subsets, sample_subsets, train_subsets

TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a run is."""

    rows: int = 400
    queries: int = 50
    subsets: int = 32
    seeds: int = 2
    epochs: int = 20


TINY = Size(rows=60, queries=6, subsets=8, epochs=2)


def main() -> None:
    """Train, score, write one file, and let both read it."""
    arguments = support.parser(__doc__.splitlines()[0], threads=1).parse_args()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    size = TINY if arguments.tiny else Size()
    settings = {"tiny": arguments.tiny, "threads": arguments.threads, **vars(size)}
    report = support.Report("lds_reference", settings, judged=not arguments.tiny)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "models.npz"
        write(path, size, arguments.tiny)
        for name, steps in (("scores as they are", None), ("scores rounded to 1/20 of the largest, with ties", 20)):
            compare(report, path, name, steps)
    report.close(support.results_folder(arguments), arguments.threads, arguments.strict)
    tables.renew(support.results_folder(arguments))


def build() -> nn.Sequential:
    """Return the network."""
    return nn.Sequential(nn.Linear(49, 16), nn.ReLU(), nn.Linear(16, 10))


def write(path: Path, size: Size, tiny: bool) -> None:
    """Write scores [Q, N], subsets [M, N] and measurements [M, S, Q]."""
    rows = support.images(tiny)
    x, xt = (rows[name].reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(-1, 49) for name in ("x", "xt"))
    train = wh.as_examples((x[: size.rows], rows["y"][: size.rows]))
    queries = wh.as_examples((xt[: size.queries], rows["yt"][: size.queries]))
    recipe = wh.Recipe(
        build=build, optimizer="sgd", learning_rate=0.05, epochs=size.epochs, batch_size=64, weight_decay=1e-3
    )
    subsets = sample_subsets(train, size.subsets)
    retraining = Retraining(recipe=recipe, seeds=tuple(range(1, 1 + size.seeds)), stack=size.subsets)
    outputs = train_subsets(retraining, train, queries, subsets)
    fitted = wh.Influence(curvature=wh.EKFAC()).fit(recipe.task(recipe.train(train)), train)
    scores = fitted.scores(queries).values.double().numpy()
    np.savez(path, scores=scores, kept=subsets.kept, values=outputs.values.numpy())


def compare(report: support.Report, path: Path, name: str, steps: int | None) -> None:
    """Compute both scores from the file; keep the largest difference over queries."""
    with np.load(path, allow_pickle=False) as file:
        scores, kept, values = file["scores"], file["kept"], file["values"]
    if steps is not None:
        scores = np.round(steps * scores / np.abs(scores).max())  # whole numbers, whose sums are exact
    ours = whence_score(scores, kept, values)
    theirs = dattri_score(scores, kept, values)
    report.figures[name] = {"lds": ours.mean(), "distinct": len(np.unique(scores))}
    difference = None if theirs is None else float(np.abs(ours - theirs).max())
    report.gate(f"LDS, {name}: largest difference from dattri's over {len(ours)} queries", difference, high=TOLERANCE)


def whence_score(scores: np.ndarray, kept: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the score of every query [Q]."""
    ids, query_ids = np.arange(kept.shape[1]), np.arange(len(scores))
    found = wh.lds(
        wh.Scores(values=torch.from_numpy(scores), query_ids=query_ids, ids=ids, unit=None),
        Subsets(kept=kept, ids=ids),
        SubsetOutputs(values=torch.from_numpy(values), query_ids=query_ids, unit=None),
    )
    return found.per_query


def dattri_score(scores: np.ndarray, kept: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """Return dattri's [Q], or None where it is not installed. It sums what is kept, so that scores change sign."""
    if importlib.util.find_spec("dattri") is None:
        return None
    metric = importlib.import_module("dattri.metric")
    indices = torch.from_numpy(np.stack([np.flatnonzero(row) for row in kept]))
    truth = torch.from_numpy(values.mean(1)), indices
    found: np.ndarray = metric.lds(torch.from_numpy(-scores.T.copy()), truth)[0].numpy()
    return found


if __name__ == "__main__":
    main()
