"""Cross-loss influence on mixtures of Gaussians: which points put a point into its cluster?

    python benchmarks/crossloss_mixture.py [--threads 1] [--tiny]

Deep embedded clustering of 3 × 50 points in the plane, network 2 → 12 → 12, trained on KL to a frozen target
distribution until the gradient vanishes. Measured: −log q of the cluster of new points. Every training point is left
out in turn and the network trained again *on KL* (warm start, the others' targets as they were). Beside it the scores
of a matched loss: the same weights, as if they had been trained on the measurement itself, with the Gauss-Newton matrix
and with its exact Hessian. Of that loss the weights are no minimum: its Hessian takes the least damping of a list that
makes it definite.

ReLUs have kinks: minima lie on them, no gradient vanishes there, and no removal has a derivative. So the activation is
softplus(β) with β = 10, within .07 of a ReLU; β = 50 (within .014) beside it, and the gradient norm at which the same
training stops with true ReLUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import support
import tables
import whence as wh

SEEDS = 5
POINTS, ASKED = 50, 60
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1e-7
FLAT = 1e-6  # damping: rotations of the embedding change nothing, in 21 directions the Hessian is exactly 0
CENTRES = ((0.0, 2.0), (-1.7, -1.0), (1.7, -1.0))
ACTIVATIONS: dict[str, nn.Module] = {
    "softplus, β = 10": nn.Softplus(10.0, threshold=1e9), "softplus, β = 50": nn.Softplus(50.0, threshold=1e9),
}  # fmt: skip
DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
KEYS = ("exact Hessian", "Gauss-Newton", "matched loss", "matched loss, exact Hessian")


@dataclass(frozen=True)
class Draw:
    """One sample of the mixture, clustered."""

    found: wh.Clustering
    queries: wh.Examples


def main() -> None:
    """Cluster, leave out, compare."""
    arguments = support.parser(__doc__.splitlines()[0], threads=1).parse_args()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    seeds = range(1 if arguments.tiny else SEEDS)
    settings = {
        "tiny": arguments.tiny, "threads": arguments.threads, "seeds": len(seeds), "points": 3 * POINTS,
        "queries": ASKED, "weight_decay": WEIGHT_DECAY, "gradient_norm": GRADIENT_NORM,
    }  # fmt: skip
    report = support.Report("crossloss_mixture", settings, judged=not arguments.tiny)
    folder = support.results_folder(arguments)
    with support.Clock() as clock:
        for name, activation in ACTIVATIONS.items():
            drawn = [clustered(seed, activation, 12 if arguments.tiny else POINTS) for seed in seeds]
            runs = [compared(draw, 4 if arguments.tiny else None) for draw in drawn]
            report.figures[name] = {"runs": runs, "rounds": [len(draw.found.moved) for draw in drawn]}
            summarised(report, name, runs)
        report.figures["ReLU, gradient norm"] = [stuck(seed) for seed in seeds]
        print(f"  with true ReLUs training stops at gradient norms {report.figures['ReLU, gradient norm']}")
    report.figures["seconds"] = clock.wall
    report.close(folder, arguments.threads, arguments.strict)
    tables.renew(folder)


def mixture(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Return training points [3·count, 2] and new ones [ASKED, 2] of three unit Gaussians."""
    generator = torch.Generator().manual_seed(seed)

    def draw(each: int) -> Tensor:
        noise = torch.randn(3, each, 2, generator=generator, dtype=torch.float64)
        return (torch.tensor(CENTRES, dtype=torch.float64)[:, None] + noise).reshape(-1, 2)

    return draw(count), draw(ASKED // 3)


def encoder(seed: int, activation: nn.Module) -> nn.Module:
    """Return 2 → 12 → activation → 12 with weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 12), activation, nn.Linear(12, 12)).double()


def clustered(seed: int, activation: nn.Module, count: int, gradient_norm: float = GRADIENT_NORM) -> Draw:
    """Train on one draw of the mixture."""
    points, new = mixture(seed, count)
    found = wh.train_clustering(
        points, encoder=encoder(seed, activation), clusters=3, weight_decay=WEIGHT_DECAY, rounds=20,
        gradient_norm=gradient_norm, seed=seed,
    )  # fmt: skip
    return Draw(found, found.questions(new))


def compared(draw: Draw, some: int | None) -> dict[str, Any]:
    """Return, for every kind of score, how it agrees with leaving out and training on KL again."""
    found, queries = draw.found, draw.queries
    ids = found.examples.ids[:some]
    retraining = wh.Retraining(recipe=found.recipe, start=found.model, measurement="cross_entropy")
    actual = wh.leave_one_out(retraining, found.examples, queries, ids).values.numpy()
    matched = wh.Task(found.model, "cross_entropy", weight_decay=WEIGHT_DECAY)
    own = found.questions()
    curvature = wh.Exact(hessian=True, damping=FLAT)
    fitted = {
        "exact Hessian": wh.Influence(curvature=curvature).fit(found.task(), found.examples),
        "Gauss-Newton": wh.Influence(curvature=wh.Exact()).fit(found.task(), found.examples),
        "matched loss": wh.Influence(curvature=wh.Exact()).fit(matched, own),
    }
    damping, fitted["matched loss, exact Hessian"] = definite(matched, own)
    told: dict[str, Any] = {
        name: agreement(attribution.scores(queries).values.numpy()[:, : len(ids)], actual)
        for name, attribution in fitted.items()
    }
    told["matched loss, exact Hessian"]["damping"] = damping
    told["confidence"] = float(found.memberships().max(1).values.mean())
    told["largest change"] = float(np.abs(actual).max())
    print(f"  {told}", flush=True)
    return told


def definite(task: wh.Task, train: wh.Examples) -> tuple[float, wh.InfluenceAttribution]:
    """Return the least damping with which the exact Hessian is definite, and what was fitted with it."""
    for damping in DAMPINGS:
        try:
            return damping, wh.Influence(curvature=wh.Exact(hessian=True, damping=damping)).fit(task, train)
        except wh.NumericalError:
            continue
    raise wh.NumericalError(f"the matched loss's Hessian must be definite with damping {DAMPINGS[-1]}, it is not.")


def agreement(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Return r over queries (median, tenth percentile), r and slope of all pairs, and the median slope."""
    pairs = list(zip(predicted, actual, strict=True))
    r = [float(np.corrcoef(p, a)[0, 1]) for p, a in pairs]
    return {
        "r_median": float(np.median(r)), "r_tenth": float(np.percentile(r, 10)),
        "slope_median": float(np.median([np.polyfit(p, a, 1)[0] for p, a in pairs])),
        "r_all": float(np.corrcoef(predicted.ravel(), actual.ravel())[0, 1]),
        "slope_all": float(np.polyfit(predicted.ravel(), actual.ravel(), 1)[0]),
    }  # fmt: skip


def summarised(report: support.Report, name: str, runs: list[dict[str, Any]]) -> None:
    """Add means over the seeds and judge them."""
    median = {key: [run[key]["r_median"] for run in runs] for key in KEYS}
    best = median["exact Hessian"]
    report.gate(f"mixture, {name}: per-query median r with KL retraining, least of the seeds", min(best), low=0.8)
    for rival in KEYS[2:]:
        lead = min(ours - theirs for ours, theirs in zip(best, median[rival], strict=True))
        report.gate(f"mixture, {name}: the same above a {rival}, least of the seeds", lead, low=0.0)
    slopes = [run["exact Hessian"]["slope_all"] for run in runs]
    report.gate(f"mixture, {name}: slope of actual on predicted, mean", float(np.mean(slopes)), low=0.9, high=1.2)


def stuck(seed: int) -> float:
    """Return the gradient norm that training reaches with true ReLUs."""
    for exponent in range(-8, 1):
        try:
            clustered(seed, nn.ReLU(), POINTS, gradient_norm=10.0**exponent)
        except wh.NumericalError:
            continue
        return 10.0**exponent
    return float("inf")


if __name__ == "__main__":
    main()
