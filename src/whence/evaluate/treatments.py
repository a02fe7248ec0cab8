"""What removal and correction curves share: which sets to treat, and how measurements become points."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from whence.data import Examples
from whence.errors import ConfigError
from whence.evaluate.measurements import Accuracy, Margin, Several, classifies
from whence.evaluate.rankings import Ranking, order, random_order
from whence.evaluate.retraining import Corrections, Retraining
from whence.scores import Scores

__all__ = ["ACCURACY", "Trainings", "Treatments", "corrections", "default_measurements", "removals"]

ACCURACY = "accuracy"


@dataclass(frozen=True, kw_only=True, eq=False)
class Treatments:
    """Which examples to treat, in which order, and what to measure then.

    Args:
        retraining: How to train; it measures all of ``measurements``, and the margin last where it is needed.
        examples: Training examples.
        queries: Queries, or None.
        rankings: By name.
        counts: How many examples to treat, ascending.
        controls: Random rankings.
        measurements: By name.
        seed: Of random rankings and ties.
    """

    retraining: Retraining
    examples: Examples
    queries: Examples | None
    rankings: dict[str, Ranking]
    counts: list[int]
    controls: int
    measurements: dict[str, Any]
    seed: int

    @property
    def query_ids(self) -> np.ndarray:
        """Ids of the queries [Q]."""
        return np.array(["model"]) if self.queries is None else self.queries.ids

    @property
    def margins(self) -> bool:
        """Whether the margin is measured too, to predict the accuracy."""
        return isinstance(self.measurements.get(ACCURACY), Accuracy)

    @cached_property
    def orders(self) -> list[np.ndarray]:
        """Rows in the order of every ranking, then of every random one."""
        named = [order(ranking, self.examples, self.seed) for ranking in self.rankings.values()]
        for name, rows in zip(self.rankings, named, strict=True):
            if len(rows) < self.counts[-1]:
                raise ConfigError(
                    f"ranking {name!r} must hold at least the {self.counts[-1]} examples of the largest share, "
                    f"got {len(rows)}. Lower the shares."
                )
        return [*named, *(random_order(self.examples, self.seed, draw) for draw in range(self.controls))]

    def sets(self) -> list[np.ndarray]:
        """Return the rows of every treatment: all counts of the first order, then those of the next."""
        return [rows[:count] for rows in self.orders for count in self.counts]

    def several(self) -> Retraining:
        """Return the retraining that measures everything."""
        parts = (*self.measurements.values(), *([Margin()] if self.margins else []))
        return replace(self.retraining, measurement=Several(parts))

    def split(self, measured: Tensor) -> np.ndarray:
        """Return measurements [J, S, R·Q] as [R, J, S, Q]."""
        jobs, seeds, _ = measured.shape
        return np.moveaxis(measured.numpy().reshape(jobs, seeds, -1, len(self.query_ids)), 2, 0)

    def predictable(self, name: str) -> dict[str, Scores]:
        """Return the scores of a ranking that predict the first measurement of these queries, if they do."""
        scores = self.rankings[name]
        if not isinstance(scores, Scores) or scores.unit is None:
            return {}
        covered = set(self.query_ids.tolist()) <= set(scores.query_ids.tolist())
        return {next(iter(self.measurements)): scores} if covered else {}


def default_measurements(retraining: Retraining, queries: Examples | None) -> dict[str, Any]:
    """Return the loss, or the retraining's own measurement, and the accuracy where there is one."""
    own = {"loss" if retraining.measurement is None else "measurement": retraining.measurement}
    targets = None if queries is None else queries.targets
    single = targets is not None and targets.numel() == len(targets)
    return {**own, ACCURACY: Accuracy()} if single and classifies(retraining.recipe.loss) else own


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainings:
    """What will be trained for a curve; the first is training on everything as it is.

    Args:
        retraining: With everything that is measured.
        examples: Training examples.
        queries: Queries, or None.
        removed: Sets of ids.
        corrected: Labels corrected in each of them, or None.
        places: Which of them belongs to each treatment: equal ones are trained once.
    """

    retraining: Retraining
    examples: Examples
    queries: Examples | None
    removed: list[Any]
    corrected: Corrections | None = None
    places: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of all trainings."""
        return len(self.removed) * len(self.retraining.seeds)

    def missing(self) -> int:
        """Return how many trainings the cache does not hold."""
        return self.retraining.missing(self.examples, self.queries, self.removed, corrected=self.corrected)

    def measure(self) -> Tensor:
        """Return measurements of no treatment and of all others [J + 1, S, R·Q]."""
        measured = self.retraining.measure(self.examples, self.queries, self.removed, corrected=self.corrected)
        return measured[self.places] if self.places else measured


def removals(treatments: Treatments) -> Trainings:
    """Return the trainings without the examples of every treatment.

    Raises:
        ConfigError: A set would hold all examples.
    """
    examples = treatments.examples
    if treatments.counts[-1] >= len(examples):
        raise ConfigError(f"shares must leave some of the {len(examples)} examples, got {treatments.counts[-1]}.")
    return Trainings(
        retraining=treatments.several(), examples=examples, queries=treatments.queries,
        removed=[[], *(examples.ids[rows] for rows in treatments.sets())],
    )  # fmt: skip


def corrections(treatments: Treatments, right: Tensor, wrong: np.ndarray) -> Trainings:
    """Return the trainings with right labels [N, ...] for those examples of every treatment that are wrong [N]."""
    examples, nothing = treatments.examples, np.array([], dtype=np.int64)
    changed = [nothing, *(rows[wrong[rows]] for rows in treatments.sets())]
    keys = [np.sort(rows).tobytes() for rows in changed]
    sets = dict(zip(keys, changed, strict=True))
    return Trainings(
        retraining=treatments.several(), examples=examples, queries=treatments.queries, removed=[[]] * len(sets),
        corrected=Corrections(labels=right, ids=[examples.ids[rows] for rows in sets.values()]),
        places=[list(sets).index(key) for key in keys],
    )  # fmt: skip
