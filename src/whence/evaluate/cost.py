"""What retraining will cost, measured on one short training before all of it is started."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.evaluate.retraining import Retraining
from whence.methods.workers import workers
from whence.tasks import Recipe

__all__ = ["RetrainingCost", "estimate"]

_EPOCHS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class RetrainingCost:
    """The cost of retraining, predicted.

    Args:
        trainings: All trainings asked for, J·S.
        cached: How many of them the cache holds.
        seconds: Predicted wall time of the others.
        training_seconds: Of one training, in a stack as large as will be used.
        startup_seconds: Of starting a process; 0 where there is one only.
        processes: Processes that will be busy.
        stack: Models trained at once.
        epochs: Epochs that were run to measure it.
    """

    trainings: int
    cached: int
    seconds: float
    training_seconds: float
    startup_seconds: float
    processes: int
    stack: int
    epochs: int

    def __str__(self) -> str:
        """Return it in one line."""
        known = f" ({self.cached:,} more are in the cache)" if self.cached else ""
        spread = f" in {self.processes} processes" if self.processes > 1 else ""
        done = self.trainings - self.cached
        if not done:
            return f"0 trainings{known}"
        return f"{done:,} trainings{known} of {self.training_seconds:.2g} s{spread}: about {_told(self.seconds)}"


def estimate(
    retraining: Retraining, train: Any, queries: Any, trainings: int | Sequence[Sequence[Any] | np.ndarray], *,
    cached: int = 0,
) -> RetrainingCost:  # fmt: skip
    """Predict how long retraining will take, before it is started.

    Args:
        retraining: How to train, with which seeds, processes, stack and cache.
        train: Training examples: anything that `as_examples` takes.
        queries: Queries, likewise; None for a measurement of the model alone.
        trainings: Sets of ids to remove, as for `Retraining.measure`; what the cache holds of them costs nothing. Or
            their number J.
        cached: Where a number is given, how many of the J·S trainings are known already.

    Returns:
        Wall time of J·S trainings, less those in the cache. A recipe's training by gradient descent is timed over one
        and over three epochs and continued to all of them; an "lbfgs" one, and a user's own loop, is done once in full.
        Each of several processes trains on one thread.

    Raises:
        ConfigError: There is less than one training to do, or more of them are known; or as `Retraining.measure`.

    Cost: five epochs of one stack (or one training), and the start of one process where there are several.

    Example:
        >>> recipe = Recipe(build=lambda: torch.nn.Linear(3, 2), epochs=20)
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> cost = estimate(Retraining(recipe=recipe, seeds=(0, 1)), train, train, 10)
        >>> cost.trainings, cost.cached, cost.epochs
        (20, 0, 5)
    """
    examples = as_examples(train)
    asked = None if queries is None else as_examples(queries)
    given = None if isinstance(trainings, int) else list(trainings)
    sets = trainings if isinstance(trainings, int) else len(trainings)
    if sets < 1:
        raise ConfigError(f"trainings must be at least 1 or sets of ids, got {sets}.")
    total = sets * len(retraining.seeds)
    if not 0 <= cached <= (total if given is None else 0):
        raise ConfigError(f"cached must be at most the {total} trainings, and 0 where sets are given, got {cached}.")
    missing = total - cached if given is None else retraining.missing(examples, asked, given)
    stack = min(retraining.stack, sets)
    units = math.ceil(missing / stack)
    processes = max(1, min(retraining.processes, units))
    seconds, startup, epochs = 0.0, 0.0, 0
    if missing:
        removed = given[:stack] if given is not None else [[examples.ids[row % len(examples)]] for row in range(stack)]
        with _threads(1 if processes > 1 else torch.get_num_threads()):
            seconds, epochs = _unit(retraining, examples, asked, removed)
        startup = _startup() if processes > 1 else 0.0
    return RetrainingCost(
        trainings=total, cached=total - missing, seconds=startup + seconds * math.ceil(units / processes),
        training_seconds=seconds / stack, startup_seconds=startup, processes=processes, stack=stack, epochs=epochs,
    )  # fmt: skip


def _unit(
    retraining: Retraining, examples: Examples, queries: Examples | None, removed: Sequence[Sequence[Any] | np.ndarray]
) -> tuple[float, int]:
    """Return the seconds of training and measuring one stack, and the epochs that were run to know."""
    recipe = retraining.recipe
    alone = replace(retraining, processes=1, cache=None, progress=None, seeds=retraining.seeds[:1])

    def timed(settings: Retraining) -> float:
        begun = time.perf_counter()
        settings.measure(examples, queries, removed)
        return time.perf_counter() - begun

    whole = recipe.loop is not None or recipe.optimizer == "lbfgs" or recipe.steps is not None
    if whole or recipe.epochs <= sum(_EPOCHS):
        return timed(alone), recipe.epochs
    first, *rest = (timed(replace(alone, recipe=_shortened(recipe, epochs))) for epochs in (1, *_EPOCHS))
    one, more = rest
    each = max(more - one, 0.0) / (_EPOCHS[1] - _EPOCHS[0])
    return min(first, one) + each * (recipe.epochs - 1), 1 + sum(_EPOCHS)


def _shortened(recipe: Recipe, epochs: int) -> Recipe:
    """Return the recipe with fewer epochs."""
    short = copy.copy(recipe)
    short.epochs = epochs
    return short


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run a block on some threads, as a process of several would."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _startup() -> float:
    """Return the seconds until another process has started and imported what it needs."""
    begun = time.perf_counter()
    with workers(1, "a function") as pool:
        pool.submit(torch.get_num_threads).result()
    return time.perf_counter() - begun


def _told(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} minutes" if seconds < 5400 else f"{seconds / 3600:.2g} hours"
