"""Linear datamodelling score on a small network: curvatures, dampings, ensembles and peers on the same weights.

    python benchmarks/lds.py --cache FOLDER [--threads 1] [--no-peers] [--tiny]

MLP 49-32-32-10 on 2,000 MNIST images (7×7, average-pooled), 100 half-subsets × 5 seeds, 200 queries. The models
trained on the subsets are kept under --cache, so that a second run does not train them again.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import peers
import support
import tables
import whence as wh
from measure import PlainPass
from whence.evaluate import LDS, Retraining, SubsetOutputs, Subsets, gain, lds, sample_subsets, train_subsets
from workloads import Workload

MEMBERS = 5
FIRST_SEED = 100  # of the subset models; members have seeds of their own
DAMPINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
PEERS = ("kronfluence-kfac-fastest", "kronfluence-ekfac", "kronfluence-ekfac-fastest", "pydvl-ekfac", "pydvl-nystroem")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a run is."""

    rows: int = 2_000
    queries: int = 200
    subsets: int = 100
    seeds: int = 5
    epochs: int = 30
    members: int = MEMBERS


TINY = Size(rows=60, queries=8, subsets=6, seeds=2, epochs=2, members=2)


def main() -> None:
    """Train, score and judge."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    size = TINY if arguments.tiny else Size()
    settings = {"tiny": arguments.tiny, "threads": arguments.threads, **vars(size)}
    report = support.Report("lds", settings, judged=not arguments.tiny)
    train, queries = data(size, arguments.tiny)
    recipe = make_recipe(size)
    subsets = sample_subsets(train, size.subsets)
    with support.Clock() as clock:
        outputs = ground_truth(recipe, train, queries, subsets, size, arguments.cache)
    report.figures["retraining_seconds"] = clock.wall
    models = [recipe.train(train, seed=seed) for seed in range(size.members)]
    report.figures["pass_seconds"] = plain_pass(models[0], train)
    runner = Runner(report, subsets, outputs, train, queries)
    tasks = [recipe.task(model) for model in models]
    for name, method in methods(arguments.tiny).items():
        runner.whence(name, method, tasks)
    for name, method in slow_methods(arguments.tiny).items():
        runner.whence(name, method, tasks[:1])
    if not arguments.no_peers:
        runner.peers(models[0], size)
    judge(report, runner.found)
    report.close(support.results_folder(arguments), arguments.threads, arguments.strict)
    tables.renew(support.results_folder(arguments))


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=1)
    made.add_argument("--cache", type=Path, default=None, help="folder for the results of retraining")
    made.add_argument("--no-peers", action="store_true", help="leave other libraries out")
    return made.parse_args()


def data(size: Size, tiny: bool) -> tuple[wh.Examples, wh.Examples]:
    """Return training rows and queries, average-pooled to 7×7."""
    rows = support.images(tiny)
    x, xt = (rows[name].reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(-1, 49) for name in ("x", "xt"))
    train = wh.as_examples((x[: size.rows], rows["y"][: size.rows]))
    return train, wh.as_examples((xt[: size.queries], rows["yt"][: size.queries]))


def build() -> nn.Sequential:
    """Return the network."""
    return nn.Sequential(nn.Linear(49, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def make_recipe(size: Size) -> wh.Recipe:
    """Return how every model is trained."""
    return wh.Recipe(
        build=build, optimizer="sgd", learning_rate=0.05, schedule="cosine", epochs=size.epochs, batch_size=64,
        weight_decay=1e-3,
    )  # fmt: skip


def ground_truth(
    recipe: wh.Recipe, train: wh.Examples, queries: wh.Examples, subsets: Subsets, size: Size, cache: Path | None
) -> SubsetOutputs:
    """Train on every subset with every seed, 50 models at a time."""
    def progress(done: int, total: int) -> None:
        print(f"  {done} of {total} trainings", flush=True)

    seeds = tuple(range(FIRST_SEED, FIRST_SEED + size.seeds))
    settings = Retraining(recipe=recipe, seeds=seeds, stack=50, cache=cache, progress=progress)
    return train_subsets(settings, train, queries, subsets)


def plain_pass(model: nn.Module, train: wh.Examples) -> float:
    """Return the seconds of a forward+backward pass over the training rows, at its best batch size."""
    batch = train.batch(np.arange(len(train)))
    workload = Workload(
        name="mlp", model=model, train=(batch.inputs, batch.targets), queries=(batch.inputs, batch.targets),
        pass_batches=(64, 256, 1024, len(train)),
    )  # fmt: skip
    plain = PlainPass(workload)
    for _ in range(7):
        plain.sweep()
    seconds: float = plain.digest()["pass"]["seconds"]
    return seconds


def methods(tiny: bool) -> dict[str, wh.Influence]:
    """Return every setting of the library by name."""
    relative = {f"EK-FAC, damping {f:g} × mean": wh.EKFAC(damping=wh.Relative(f)) for f in DAMPINGS}
    named: dict[str, Any] = {
        **(dict(list(relative.items())[:1]) if tiny else relative),
        "EK-FAC, damping auto": wh.EKFAC(damping="auto"),
        "EK-FAC, damping auto, exact Fisher": wh.EKFAC(damping="auto", fisher="exact"),
        "K-FAC, damping auto": wh.KFAC(damping="auto"),
    }
    if not tiny:
        named |= {
            "EK-FAC, damping 0, exact Fisher": wh.EKFAC(damping=0.0, fisher="exact"),
            "K-FAC, damping 0.1 × mean": wh.KFAC(),
            **{f"exact Gauss-Newton, damping {f:g} × mean": wh.Exact(damping=wh.Relative(f)) for f in (0.1, 1)},
            "exact Gauss-Newton of each layer, damping 0.1 × mean": wh.BlockExact(),
            "exact Gauss-Newton of each layer, damping 1 × mean": wh.BlockExact(damping=wh.Relative(1.0)),
            "diagonal": wh.Diagonal(),
            "gradient dot product": wh.Identity(),
        }
    return {name: wh.Influence(curvature=curvature) for name, curvature in named.items()}


def slow_methods(tiny: bool) -> dict[str, wh.Influence]:
    """Return the settings that are tried on the first checkpoint alone."""
    if tiny:
        return {"DataInf": wh.Influence(curvature=wh.DataInf())}
    named: dict[str, Any] = {
        "exact Gauss-Newton, damping 0": wh.Exact(),
        "exact Gauss-Newton, damping 3 × mean": wh.Exact(damping=wh.Relative(3.0)),
        "exact Hessian, damping 1 × mean": wh.Exact(hessian=True, damping=wh.Relative(1.0)),
        "conjugate gradients with EK-FAC": wh.CG(preconditioner=wh.EKFAC(), tolerance=1e-4),
        "conjugate gradients, 10 steps": wh.CG(max_steps=10, require_convergence=False),
        "LiSSA, damping 1 × mean": wh.LiSSA(damping=wh.Relative(1.0), require_convergence=False),
        "Neumann series with EK-FAC, damping 1 × mean": wh.Neumann(
            damping=wh.Relative(1.0), preconditioner=wh.EKFAC(damping=wh.Relative(1.0))
        ),
        "Lanczos, rank 100": wh.Lanczos(require_convergence=False),
        "randomised Nyström, rank 100": wh.Nystrom(),
        "randomised Nyström, rank 100, damping 1 × mean": wh.Nystrom(damping=wh.Relative(1.0)),
        "projected on 16 × 16 eigenvectors": wh.Projected(),
        "projected on 16 × 16 random directions": wh.Projected(kind="random"),
        "DataInf": wh.DataInf(),
    }
    return {name: wh.Influence(curvature=curvature) for name, curvature in named.items()}


class Runner:
    """Scores, their linear datamodelling score, and what they cost."""

    def __init__(
        self, report: support.Report, subsets: Subsets, outputs: SubsetOutputs, train: wh.Examples,
        queries: wh.Examples,
    ) -> None:  # fmt: skip
        self.report, self.subsets, self.outputs = report, subsets, outputs
        self.train, self.queries = train, queries
        self.found: dict[str, LDS] = {}
        report.figures |= {"methods": {}, "refused": {}}

    def whence(self, name: str, method: wh.Influence, tasks: list[wh.Task]) -> None:
        """Measure one setting: every checkpoint alone, and the ensemble of all if there are several."""
        singles = []
        try:
            with support.Clock() as clock:
                values = [method.fit(task, self.train).scores(self.queries).values.double() for task in tasks]
        except wh.NumericalError as error:  # an indefinite Hessian is a result
            print(f"  {name}: {error}", flush=True)
            self.report.figures["refused"][name] = str(error)
            return
        singles = [self.score(one) for one in values]
        shown = {"checkpoints": [one.value for one in singles]}
        self.keep(name, singles[0], clock.wall / len(tasks), shown)
        if len(tasks) == 1:
            return
        self.keep(f"{name}, {len(tasks)} members", self.score(torch.stack(values).mean(0)), clock.wall, {})

    def peers(self, model: nn.Module, size: Size) -> None:
        """Measure every peer that is installed, on the first checkpoint."""
        pair = [examples.batch(np.arange(len(examples))) for examples in (self.train, self.queries)]
        train, queries = ((batch.inputs, batch.targets) for batch in pair)
        for contender in (peers.CONTENDERS[name] for name in PEERS):
            if not contender.installed:
                print(f"  {contender.label}: not installed", flush=True)
                continue
            workload = Workload(
                name="mlp", model=copy.deepcopy(model), train=train, queries=queries, pass_batches=(size.rows,)
            )
            with tempfile.TemporaryDirectory() as folder, support.Clock() as clock:
                run = contender.load()(workload, Path(folder))
                run.fit()
                values = torch.from_numpy(np.asarray(run.pairwise(), dtype=np.float64))
            self.keep(contender.label, self.score(values), clock.wall, {"peer": True})

    def score(self, values: Tensor) -> LDS:
        """Return the score of scores [Q, N]."""
        scores = wh.Scores(values=values, query_ids=self.queries.ids, ids=self.train.ids, unit=None)
        return lds(scores, self.subsets, self.outputs)

    def keep(self, name: str, found: LDS, seconds: float, more: dict[str, Any]) -> None:
        """Print and keep."""
        self.found[name] = found
        interval = found.interval
        passes = seconds / self.report.figures["pass_seconds"]
        figures = {"lds": interval.value, "low": interval.low, "high": interval.high, "seconds": seconds}
        figures |= {"passes": passes, **more}
        self.report.figures["methods"][name] = figures
        self.report.figures |= {"reliability": found.reliability, "ceiling": found.ceiling}
        print(f"  {name}: {interval} ({seconds:.2f} s, {passes:.0f} passes)", flush=True)


def judge(report: support.Report, found: dict[str, LDS]) -> None:
    """Hold the figures against what they must be."""
    figures = report.figures["methods"]
    stable, ceiling = report.figures["reliability"], report.figures["ceiling"]
    print(f"  reliability of the retrainings {stable:.3f}, ceiling {ceiling:.3f}")
    ours = {name: one for name, one in found.items() if "peer" not in figures[name]}
    singles = {name: one for name, one in ours.items() if not name.endswith("members")}
    relative = [name for name in singles if "× mean" in name and name.startswith("EK-FAC")]
    searched = {name: figures[name]["checkpoints"] for name in relative}
    least = max(searched, key=lambda name: np.mean(searched[name]))
    auto = np.mean(figures["EK-FAC, damping auto"]["checkpoints"])
    report.gate(f"EK-FAC, mean of the checkpoints: auto {auto:.4f} minus the best of the search ({least})",
                float(auto - np.mean(searched[least])), low=-0.01)  # fmt: skip
    top = max((name for name in singles if len(figures[name]["checkpoints"]) > 1), key=lambda n: singles[n].value)
    for single in (top, "EK-FAC, damping auto"):
        ensemble = next(name for name in ours if name.startswith(f"{single}, ") and name.endswith("members"))
        report.gate(f"{ensemble} minus the same of one checkpoint, mean of the checkpoints",
                    found[ensemble].value - float(np.mean(figures[single]["checkpoints"])), low=0.05)  # fmt: skip
    theirs = {name: one for name, one in found.items() if "peer" in figures[name]}
    if not theirs:
        report.gate("best single setting minus the best peer, lower end of a paired bootstrap", None, low=0)
        return
    rival = max(theirs, key=lambda name: theirs[name].value)
    more = gain(found[top], theirs[rival])
    report.figures["gain"] = {"ours": top, "theirs": rival, "value": more.value, "low": more.low, "high": more.high}
    report.gate(f"{top} minus {rival}: {more}, lower end", more.low, low=0)
    equal = max((name for name in theirs if "EK-FAC" in name), key=lambda name: theirs[name].value, default=None)
    if equal is not None:
        best = max((name for name in singles if name.startswith("EK-FAC, ")), key=lambda name: singles[name].value)
        for name in dict.fromkeys((best, "EK-FAC, damping auto")):
            more = gain(found[name], theirs[equal])
            report.gate(f"{name} minus {equal}: {more}", more.value, low=0)


if __name__ == "__main__":
    main()
