"""The methods and baselines that `whence compare` runs on a user's data and model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.audit.bench import Bench
from whence.audit.members import fit_members
from whence.curvature import EKFAC, KFAC, BlockExact, DataInf, Diagonal, Exact, Identity, Projected, Relative
from whence.errors import ConfigError
from whence.evaluate.compare import Contender
from whence.gradients import find_layers
from whence.methods import (
    BM25,
    GEX,
    TRAK,
    BaselineAttribution,
    Ensemble,
    GradientCosine,
    Influence,
    LossBaseline,
    MarginBaseline,
    Neighbours,
    NeighbourShapley,
    RandomBaseline,
    Representer,
    Similarity,
    TracIn,
    record_checkpoints,
)
from whence.scores import Scores, Signal
from whence.tasks import Task
from whence.uses.label_errors import Members, find_label_errors

__all__ = ["MEMBERS", "contenders"]

MEMBERS = 5
CHECKPOINTS = 5
_GEX_MEMBERS = 8
_GEX_STEPS = 160
_SMALL = 3_000  # parameters up to which exact curvature is a matter of seconds


@dataclass(frozen=True, kw_only=True, eq=False)
class _Field:
    """What all contenders share."""

    bench: Bench
    task: Task
    detect: bool
    seed: int

    def influence(self, config: Influence, limit: int | None = None) -> Scores | Signal:
        """Fit influence; score the queries, or every row for itself."""
        if limit is not None:
            size = find_layers(self.task.model, config.layers).attributed
            if size > limit:
                raise ConfigError(f"exact curvature is compared up to {limit:,} parameters, got {size:,}.")
        attribution = config.fit(self.task, self.bench.train)
        return attribution.self_scores() if self.detect else attribution.scores(self.bench.queries)

    def ensemble(self) -> Scores | Signal:
        """Train four more models, fit all five, average."""
        recipe, train = self.bench.recipe, self.bench.train
        if recipe is None:
            raise ConfigError("an ensemble must have a Recipe to train more members, got a trained model alone.")
        more = [recipe.task(recipe.train(train, seed=self.seed + 1 + member)) for member in range(MEMBERS - 1)]
        config = Ensemble(method=Influence(curvature=EKFAC(damping="auto"), seed=self.seed))
        attribution = config.fit([self.task, *more], train)
        return attribution.self_scores() if self.detect else attribution.scores(self.bench.queries)

    def ask(self, fitted: Any) -> Scores | Signal:
        """Score the queries, or every row for itself."""
        answer: Scores | Signal = fitted.self_scores() if self.detect else fitted.scores(self.bench.queries)
        return answer

    def tracin(self) -> Scores | Signal:
        """Train once more, keep five checkpoints, add their gradient dot products."""
        recipe, train = self.bench.recipe, self.bench.train
        if recipe is None:
            raise ConfigError("TracIn must have a Recipe to leave checkpoints, got a trained model alone.")
        run = record_checkpoints(recipe, train, count=CHECKPOINTS, seed=self.seed)
        return self.ask(TracIn(checkpoints=run).fit(recipe.task(run.model), train))

    def baseline(self, fitted: BaselineAttribution) -> Scores | Signal:
        """Score the queries, or every row for itself."""
        return fitted.suspicion() if self.detect else fitted.scores(self.bench.queries)

    def suspicion(self) -> Signal:
        """Rank the rows as ``whence audit`` does: two fits and their judges."""
        bench, default = self.bench, self.bench.default
        train = bench.train
        if default is None:
            config = Influence(curvature=EKFAC(damping="auto"), seed=self.seed)
            with warnings.catch_warnings():  # how far its predictions can be trusted is what the truth will tell
                warnings.simplefilter("ignore", UserWarning)
                frame = find_label_errors(config.fit(self.task, train), evidence=0)
        else:
            counts = None if default.counts is None else default.counts[bench.train_rows]
            fits = fit_members(train, default.recipe, refit=default.refit, counts=counts, seed=self.seed)
            judged = Members(logits=fits.logits, refit_logits=fits.refit_logits, judges=fits.judges)
            frame = find_label_errors(judged, data=bench.train_data, evidence=0)
        values = frame.set_index("id").loc[train.ids.tolist(), "suspicion"].to_numpy()
        return Signal(values=np.asarray(values), ids=train.ids, name="suspicion", unit=None)


def contenders(bench: Bench, task: Task, *, detect: bool = False, seed: int = 0) -> list[Contender]:
    """Return everything that may apply to a trained model and its data.

    Args:
        bench: Rows, queries, recipe.
        task: The model, trained on the training rows.
        detect: Whether label errors are to be found (self-scores and suspicions) instead of scores for queries.
        seed: Seed of sampled labels, of the ensemble's other members and of the random baseline.

    Returns:
        Contenders in a fixed order. One that turns out not to apply raises when it is run.
    """
    field = _Field(bench=bench, task=task, detect=detect, seed=seed)
    found = [_contender(field, name, config, limit) for name, (config, limit) in _methods(bench, seed).items()]
    found.append(Contender(name=f"EK-FAC, {MEMBERS} models", run=field.ensemble))
    found.append(Contender(name=f"TracIn, {CHECKPOINTS} checkpoints", run=field.tracin))
    found += _rivals(field, seed)
    if detect:
        found.append(Contender(name="audit's suspicion", run=field.suspicion))
    return [*found, *_baselines(field, seed)]


def _contender(field: _Field, name: str, config: Influence, limit: int | None) -> Contender:
    return Contender(name=name, run=lambda: field.influence(config, limit))


def _methods(bench: Bench, seed: int) -> dict[str, tuple[Influence, int | None]]:
    """Return the settings of influence by name, with the number of parameters up to which they are run."""
    auto, tenth = EKFAC(damping="auto"), Relative(0.1)
    found: dict[str, tuple[Influence, int | None]] = {"EK-FAC": (Influence(curvature=auto, seed=seed), None)}
    if bench.default is not None:
        damped = EKFAC(damping=Relative(bench.default.damping))
        layers = "last" if bench.data.kind == "image" else None
        found["EK-FAC, as in audit"] = Influence(curvature=damped, layers=layers, seed=seed), None
    found["K-FAC"] = Influence(curvature=KFAC(damping="auto"), seed=seed), None
    found["EK-FAC, last layer"] = Influence(curvature=auto, layers="last", seed=seed), None
    found["gradient dot product"] = Influence(curvature=Identity(), seed=seed), None
    found["diagonal"] = Influence(curvature=Diagonal(), seed=seed), None
    found["DataInf"] = Influence(curvature=DataInf(), seed=seed), None
    found["projected (LoGra)"] = Influence(curvature=Projected(), seed=seed), None
    found["exact by layer"] = Influence(curvature=BlockExact(damping=tenth), seed=seed), _SMALL
    found["exact"] = Influence(curvature=Exact(damping=tenth), seed=seed), _SMALL
    found["exact, last layer"] = Influence(curvature=Exact(damping=tenth), layers="last", seed=seed), _SMALL
    return found


def _rivals(field: _Field, seed: int) -> list[Contender]:
    """Return the methods that are no influence with a curvature and cost no more than a training."""
    methods: dict[str, Any] = {"TRAK": TRAK(dimension=512, seed=seed), "representer": Representer()}
    if field.detect:  # what it is for: M trainings are much for scores alone
        methods["GEX"] = GEX(members=_GEX_MEMBERS, steps=_GEX_STEPS, learning_rate="auto", seed=seed)
    else:  # its self-scores are all 1
        methods["gradient cosine"] = GradientCosine()

    def running(method: Any) -> Callable[[], Scores | Signal]:
        return lambda: field.ask(method.fit(field.task, field.bench.train))

    return [Contender(name=name, run=running(method)) for name, method in methods.items()]


def _baselines(field: _Field, seed: int) -> list[Contender]:
    """Return the humble ones."""
    task, train = field.task, field.bench.train
    makers: dict[str, Callable[[], BaselineAttribution]] = {
        "loss": lambda: LossBaseline().fit(task, train),
        "margin": lambda: MarginBaseline().fit(task, train),
        "kNN": lambda: Neighbours().fit(task, train),
        "kNN-Shapley": lambda: NeighbourShapley().fit(task, train),
        "feature similarity": lambda: Similarity().fit(task, train),
    }
    texts = field.bench.texts
    if texts is not None:
        makers["BM25"] = lambda: BM25(texts=texts).fit(task, train)

    def running(make: Callable[[], BaselineAttribution]) -> Callable[[], Scores | Signal]:
        return lambda: field.baseline(make())

    found = [Contender(name=name, run=running(make), baseline=True) for name, make in makers.items()]
    chance = running(lambda: RandomBaseline(seed=seed).fit(task, train))
    return [*found, Contender(name="random", run=chance, baseline=True, floor=True)]
