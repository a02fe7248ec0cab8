"""Three solvers of one system, softmax regression without damping: the direct inverse, conjugate gradients, LiSSA.

    python benchmarks/influence_linear.py [--threads 1] [--tiny]

10,000 MNIST rows, weight decay .01, the queries of `oracle_gates.py --parts loo`, whose real refits (top-30 and 30
random rows a query) are judged there; their intercepts are judged here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

import oracle_gates
import support
import tables
import whence as wh

SOLVERS = {
    "CG": wh.CG(damping=0.0, tolerance=1e-9, max_steps=5_000),
    "LiSSA, one run": wh.LiSSA(damping=0.0, depth=5_000, batch=256, repeats=1, require_convergence=False),
    "LiSSA, mean of four": wh.LiSSA(damping=0.0, depth=5_000, batch=256, repeats=4, require_convergence=False),
}


def main() -> None:
    """Train once, solve with each, compare."""
    arguments = support.parser(__doc__.splitlines()[0], threads=1).parse_args()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    rows = support.images(arguments.tiny)
    if arguments.tiny:
        rows = {name: a.reshape(-1, 28, 28)[:, 3::7, 3::7].reshape(len(a), -1) if a.ndim == 2 else a
                for name, a in rows.items()}  # fmt: skip
    settings = {
        "tiny": arguments.tiny, "threads": arguments.threads, "rows": len(rows["x"]),
        "weight_decay": oracle_gates.WEIGHT_DECAY, "published": "on the diagonal (Koh & Liang 2017, figure 2)",
    }  # fmt: skip
    report = support.Report("influence_linear", settings, judged=not arguments.tiny)
    folder = support.results_folder(arguments)
    with support.Clock() as clock:
        solvers(report, rows)
        intercepts(report, support.read_json((folder or support.RESULTS) / "oracle_loo.json"))
    report.figures["seconds"] = clock.wall
    report.close(folder, arguments.threads, arguments.strict)
    tables.renew(folder)


def solvers(report: support.Report, rows: dict[str, np.ndarray]) -> None:
    """Compare the scores of the chosen queries."""
    width = rows["x"].shape[1]
    recipe = wh.Recipe(
        build=lambda: nn.Linear(width, 10), optimizer="lbfgs", weight_decay=oracle_gates.WEIGHT_DECAY,
        gradient_norm=oracle_gates.GRADIENT_NORM,
    )  # fmt: skip
    examples = wh.as_examples((rows["x"].astype(np.float64), rows["y"]))
    base = recipe.train(examples)
    chosen = oracle_gates.choose_queries(base, rows, 2)
    queries = torch.from_numpy(rows["xt"][chosen]).double(), torch.from_numpy(rows["yt"][chosen])
    found: dict[str, np.ndarray] = {}
    for name, curvature in {"direct": wh.Exact(damping=0), **SOLVERS}.items():
        if name.startswith("LiSSA") and report.settings["tiny"]:
            curvature = dataclasses.replace(curvature, depth=20)
        with support.Clock() as clock:
            attribution = wh.Influence(curvature=curvature, dtype=torch.float64).fit(recipe.task(base), examples)
            found[name] = attribution.scores(queries).values.numpy()
        report.figures[name] = {"seconds": clock.wall, **compared(found[name], found["direct"])}
        report.figures[name] |= {key: value for key, value in attribution.summary()["curvature"].items()
                                 if key in ("effective_damping", "scale", "damp", "converged", "residual")}  # fmt: skip
        print(f"  {name}: {report.figures[name]}", flush=True)
    report.gate("CG against the direct solve, relative error", report.figures["CG"]["relative_error"], high=1e-6)
    r = compared(found["LiSSA, mean of four"], found["CG"])["r_least"]
    report.gate("LiSSA (mean of four) against CG, least r of a query", r, low=0.99)


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Return r over queries and the relative error of the norm."""
    r = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(ours, theirs, strict=True)]
    return {
        "r_mean": float(np.mean(r)), "r_least": min(r),
        "relative_error": float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)),
    }  # fmt: skip


def intercepts(report: support.Report, loo: Any) -> None:
    """Judge the intercepts of real refits on predictions, where they have been measured."""
    lines = [] if loo is None else [
        (name, one) for name, one in loo["figures"].items() if isinstance(one, dict) and name.endswith("corrected; all")
    ]  # fmt: skip
    worst = max((abs(one["intercept"]) / one["largest_actual"] for _, one in lines), default=None)
    report.gate("real refits on leverage-corrected scores: |intercept| over the largest change", worst, high=0.01)


if __name__ == "__main__":
    main()
