"""How few training examples must go for a prediction to flip: greedy removal by scores, verified by retraining."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from whence.data import Examples, as_examples, uniform
from whence.errors import ConfigError
from whence.evaluate.measurements import Margin
from whence.evaluate.rankings import positions, random_order
from whence.evaluate.retraining import Retraining
from whence.evaluate.statistics import Interval, over_draws, over_seeds
from whence.scores import Scores

__all__ = ["Brittle", "Brittleness", "FlipSearch", "Trial", "brittleness"]


@dataclass(frozen=True, kw_only=True)
class FlipSearch:
    """How to look for the smallest set.

    Args:
        of: What the scores are of: "margin" (`Margin`; removal of the lowest lowers it, and sums predict it) or "loss"
            (removal of the largest raises it, and only the order is used).
        largest: Largest share of the training examples to remove, in (0, 1).
        controls: Random sets of the size found, at least 1.
        seed: Seed of random sets and of the order of ties.
    """

    of: Literal["margin", "loss"] = "margin"
    largest: float = 0.2
    controls: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.of not in ("margin", "loss"):
            raise ConfigError(f"of must be margin or loss, got {self.of!r}.")
        if not 0 < self.largest < 1:
            raise ConfigError(f"largest must lie in (0, 1), got {self.largest}.")
        if self.controls < 1:
            raise ConfigError(f"controls must be at least 1, got {self.controls}. Keep a random set.")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set that was removed.

    Args:
        size: Examples removed.
        predicted: Predicted margin, or None.
        actual: Margin after retraining, mean over seeds.
        flipped: Share of the seeds that predict another class.
    """

    size: int
    predicted: float | None
    actual: Interval
    flipped: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Brittle:
    """What it takes to flip one prediction.

    Args:
        query: The query's id.
        target: The class whose prediction is to be flipped: the query's target.
        margin: Its margin after training on everything, mean over seeds.
        size: Smallest number of examples whose removal flipped it, or None if none up to the largest did; 0 where it is
            not predicted to begin with (the mean margin is not positive).
        ids: Those examples, the strongest first; the largest set that was tried if none flipped it.
        found: The trial of that set: what was predicted and what happened.
        random: Margin after removal of as many random examples.
        random_flipped: Share of the random trainings that predict another class.
        tried: All trials by size, the first of size 0.
    """

    query: Any
    target: float
    margin: Interval
    size: int | None
    ids: np.ndarray
    found: Trial
    random: Interval
    random_flipped: float
    tried: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Brittleness:
    """What it takes to flip predictions.

    Args:
        queries: One entry a query.
        largest: Most examples that a set may hold.
        seeds: S.
        controls: Random sets a query.
    """

    queries: tuple[Brittle, ...]
    largest: int
    seeds: int
    controls: int

    def to_frame(self) -> pd.DataFrame:
        """Return a frame: one row a query; ``size`` is missing where no set flipped it."""
        rows = [
            {
                "query": one.query, "target": one.target, "margin": one.margin.value, "size": one.size,
                "predicted": one.found.predicted, "actual": one.found.actual.value, "flipped": one.found.flipped,
                "random": one.random.value, "random_flipped": one.random_flipped, "tried": len(one.tried),
            }
            for one in self.queries
        ]  # fmt: skip
        return pd.DataFrame(rows).astype({"size": "Int64", "predicted": float})


def brittleness(
    retraining: Retraining, train: Any, queries: Any, scores: Scores, *, search: FlipSearch | None = None
) -> Brittleness:
    r"""Find, for every query, a smallest set of training examples whose removal flips its prediction.

    Examples go in the order of their scores, so that a set is known by its size k. The first size is that at which the
    predicted margin, m + (N/(N−k)) Σ s, comes below 0 (the largest where it never does); it is doubled until the
    prediction flips, and then the sizes between the largest that did not flip and the smallest that did are bisected.
    A prediction counts as flipped where the mean margin over seeds is not positive. Margins need not fall evenly with
    the size, so that a smaller set than the one found can exist: the answer is an upper bound.

    Args:
        retraining: How to train, with which seeds. Its measurement is not used.
        train: Training examples: anything that `as_examples` takes.
        queries: Queries; what is flipped is the prediction of their target. To flip a wrong prediction, give the
            predicted class as target (`Examples.with_targets`), and score that.
        scores: Scores of the queries' margins or losses (see `FlipSearch`).
        search: How far to look.

    Returns:
        Sizes, ids, predicted and actual margins, everything that was tried, and random sets of the same size.

    Raises:
        ConfigError: Scores do not cover queries or examples, or queries have no single class.

    Cost: a training a seed, and about 2 log₂(k) + controls a query and seed; all queries take their steps
    together, so that processes and stacks are used.
    Reference: Ilyas et al. (2022) and Yang et al. (2023), who search for the smallest set in the order of scores too.

    Example:
        >>> import torch, whence as wh
        >>> train = (torch.tensor([[-1.0], [-1.2], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
        >>> build = lambda: torch.nn.Linear(1, 2)
        >>> recipe = wh.Recipe(build=build, optimizer="lbfgs", weight_decay=0.1, gradient_norm=1e-4)
        >>> task = recipe.task(recipe.train(wh.as_examples(train)), Margin())
        >>> query = (torch.tensor([[0.2]]), torch.tensor([1]))
        >>> scores = wh.Influence(curvature=wh.Exact()).fit(task, train).scores(query)
        >>> brittleness(Retraining(recipe=recipe), train, query, scores, search=FlipSearch(largest=0.5)).queries[0].size
        1
    """
    walk = _Walk.start(retraining, as_examples(train), as_examples(queries), scores, search or FlipSearch())
    while walk.step():
        pass
    seekers = walk.seekers
    return Brittleness(
        queries=tuple(walk.conclude()), largest=len(seekers[0].rows), seeds=len(retraining.seeds),
        controls=walk.search.controls,
    )  # fmt: skip


class _Seeker:
    """The search for one query: sizes that were tried, and which is next."""

    def __init__(self, rows: np.ndarray, falls: np.ndarray | None, before: np.ndarray) -> None:
        self.rows, self.falls = rows, falls  # [largest], the first to go first; predicted changes likewise
        self.trials = {0: self.trial(0, before)}

    @property
    def found(self) -> Trial:
        """Return the smallest trial that flipped the prediction, or the largest trial."""
        return next((trial for _, trial in sorted(self.trials.items()) if trial.actual.value <= 0), self.last)

    @property
    def last(self) -> Trial:
        """Return the largest trial."""
        return self.trials[max(self.trials)]

    def trial(self, size: int, margins: np.ndarray) -> Trial:
        """Return the trial of a size from the margins after it [S]."""
        actual = over_seeds(margins)
        fall = None if self.falls is None else 0.0 if size == 0 else float(self.falls[size - 1])
        before = actual.value if size == 0 else self.trials[0].actual.value
        predicted = None if fall is None else before + fall
        return Trial(size=size, predicted=predicted, actual=actual, flipped=float((margins <= 0).mean()))

    def next_size(self) -> int | None:
        """Return the next size to try, or None when the search is over."""
        if self.found.actual.value > 0:  # nothing has flipped it yet
            tried, largest = self.last.size, len(self.rows)
            return None if tried == largest else self._first() if tried == 0 else min(2 * tried, largest)
        least = self.found.size
        below = max((size for size in self.trials if size < least), default=least)
        return None if least - below <= 1 else (below + least) // 2

    def _first(self) -> int:
        """Return the smallest size that is predicted to flip, the largest if none is, and 1 without a prediction."""
        if self.falls is None:
            return 1
        enough = np.flatnonzero(self.trials[0].actual.value + self.falls <= 0)
        return int(enough[0]) + 1 if len(enough) else len(self.rows)


@dataclass(frozen=True, eq=False)
class _Walk:
    """All searches, taken one step at a time."""

    retraining: Retraining
    examples: Examples
    queries: Examples
    seekers: list[_Seeker]
    search: FlipSearch

    @classmethod
    def start(
        cls, retraining: Retraining, examples: Examples, queries: Examples, scores: Scores, search: FlipSearch
    ) -> _Walk:
        """Train on everything, and order the examples for every query."""
        if queries.targets is None or queries.targets.numel() != len(queries):
            raise ConfigError("queries must have one class each as target. Pass (inputs, targets).")
        values = scores.values.detach().cpu().double().numpy()
        values = values[np.ix_(positions(scores.query_ids, queries.ids, "query"),
                               positions(scores.ids, examples.ids, "example"))]  # fmt: skip
        margins = replace(retraining, measurement=Margin())
        before = margins.measure(examples, queries, [[]])[0].numpy()  # [S, Q]
        ties = uniform(examples.keys, search.seed)
        largest = max(1, math.floor(search.largest * len(examples)))
        sign = 1 if search.of == "margin" else -1
        scale = len(examples) / (len(examples) - np.arange(1, largest + 1))
        seekers = []
        for row, found in zip(values, before.T, strict=True):
            rows = np.lexsort((ties, sign * row))[:largest]
            ranks_only = search.of == "loss" or scores.unit is None
            seekers.append(_Seeker(rows, None if ranks_only else scale * np.cumsum(row[rows]), found))
        return cls(margins, examples, queries, seekers, search)

    def step(self) -> bool:
        """Try the next size of every search that goes on; return whether there was one."""
        wanted = [(column, seeker, seeker.next_size()) for column, seeker in enumerate(self.seekers)]
        going = [(column, seeker, size) for column, seeker, size in wanted if size is not None]
        if not going:
            return False
        sets = [self.examples.ids[seeker.rows[:size]] for _, seeker, size in going]
        measured = self.retraining.measure(self.examples, self.queries, sets).numpy()  # [J, S, Q]
        for (column, seeker, size), margins in zip(going, measured, strict=True):
            seeker.trials[size] = seeker.trial(size, margins[:, column])
        return True

    def conclude(self) -> Iterator[Brittle]:
        """Yield what was found, with random sets of the same size."""
        draws = self.search.controls
        orders = [random_order(self.examples, self.search.seed, draw) for draw in range(draws)]
        sets = [self.examples.ids[rows[: seeker.found.size]] for seeker in self.seekers for rows in orders]
        measured = self.retraining.measure(self.examples, self.queries, sets).numpy()
        targets = self.queries.targets
        assert targets is not None
        for column, seeker in enumerate(self.seekers):
            drawn = measured[column * draws : (column + 1) * draws, :, column]  # [C, S]
            found = seeker.found
            yield Brittle(
                query=self.queries.ids[column], target=float(targets.reshape(-1)[column]),
                margin=seeker.trials[0].actual, size=found.size if found.actual.value <= 0 else None,
                ids=self.examples.ids[seeker.rows[: found.size]], found=found,
                random=over_draws(drawn.mean(0), drawn), random_flipped=float((drawn <= 0).mean()),
                tried=tuple(trial for _, trial in sorted(seeker.trials.items())),
            )  # fmt: skip
