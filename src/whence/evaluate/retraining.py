"""Retraining many times without some examples: parallel, cached by fingerprint, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.evaluate.cache import Cache
from whence.evaluate.measurements import Several
from whence.evaluate.stacked import train_stacked
from whence.methods.dense import inverse_root
from whence.methods.workers import workers
from whence.tasks import Recipe, Task
from whence.tasks.convex import minimise
from whence.tasks.describe import describe

__all__ = ["Corrections", "Retraining"]

_CHUNK = 4096
_SHARES = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Corrections:
    """Which labels to correct in which training.

    Args:
        labels: Right targets [N, ...] in row order, in the type of the given ones.
        ids: J sets of ids that get them.
    """

    labels: Tensor
    ids: Sequence[Sequence[Any] | np.ndarray]

    def mask(self, examples: Examples, sets: int) -> np.ndarray:
        """Return which rows get their right label [J, N].

        Raises:
            ConfigError: The labels are not like the examples' own, or there is another number of sets.
        """
        given = examples.targets
        if given is None or self.labels.shape != given.shape or self.labels.dtype != given.dtype:
            raise ConfigError(f"labels must be like the examples' own, got {self.labels.dtype} {self.labels.shape}.")
        if len(self.ids) != sets:
            raise ConfigError(f"corrected must be as many sets as removed ({sets}), got {len(self.ids)}.")
        fixed = np.zeros((sets, len(examples)), dtype=bool)
        for row, ids in enumerate(self.ids):
            if len(ids):
                fixed[row, examples.rows_of(ids)] = True
        return fixed


@dataclass(frozen=True, kw_only=True, eq=False)
class Retraining:
    """How to train again without some examples, and what to measure then.

    Args:
        recipe: How to train. Leaving an example out is weight 0, so batches stay aligned.
        seeds: One training a seed; results are means over them.
        start: A model to start every training from (warm start), or None for new ones. With an "lbfgs" recipe, a
            smooth named loss and at most 4,000 parameters, the Gauss–Newton matrix there is factored once and
            preconditions all trainings, which end at the recipe's gradient norm as before.
        measurement: What is measured of a query, as in `Task`; by default its training loss.
        stack: How many models to train at once in one process (see `train_stacked`); 1 trains one at a time.
        processes: How many processes to spread the trainings over. The recipe's functions must then be importable.
        cache: A folder: every result is kept there under a fingerprint of all of the above and the data, so that
            an interrupted run resumes. Functions are known by bytecode, defaults, and what they close over and name;
            objects by class and state; anything by its string attribute ``fingerprint`` where it has one.
        progress: Called with (done, total) trainings.

    Raises:
        ConfigError: A number is below 1, or there are no or repeated seeds; later, there is a cache and a function
            of the recipe cannot be described.

    Example:
        >>> recipe = Recipe(build=lambda: nn.Linear(2, 2), epochs=1)
        >>> train = (torch.randn(8, 2), torch.tensor([0, 1] * 4))
        >>> Retraining(recipe=recipe, seeds=(0, 1)).measure(train, train, [[3], [4, 5]]).shape
        torch.Size([2, 2, 8])
    """

    recipe: Recipe
    seeds: Sequence[int] = (0,)
    start: nn.Module | None = None
    measurement: Any = None
    stack: int = 1
    processes: int = 1
    cache: str | Path | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        for name, value in (("stack", self.stack), ("processes", self.processes)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if not len(self.seeds) or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must be different integers, at least one, got {list(self.seeds)}.")

    @property
    def unit(self) -> str | None:
        """Unit of the measurement, where it is known."""
        return Task(nn.Identity(), self.recipe.loss, measurement=self.measurement).unit

    def measure(
        self, train: Any, queries: Any, removed: Sequence[Sequence[Any] | np.ndarray], *,
        corrected: Corrections | None = None,
    ) -> Tensor:  # fmt: skip
        """Train once for every set of removed examples and every seed, and measure the queries.

        Args:
            train: Training examples: anything that `as_examples` takes.
            queries: Queries, likewise; None for a measurement of the model alone.
            removed: J sets of ids; an empty one trains on everything.
            corrected: Right labels, and J sets of ids that get them; None to leave all labels as they are.

        Returns:
            Measurements [J, S, Q], float64.

        Cost: J·S trainings, less those in the cache; with an "lbfgs" recipe and a start, `Exact`'s fit once.
        """
        examples = as_examples(train)
        asked = None if queries is None else as_examples(queries)
        cache = self._cache(examples, asked, corrected)
        states, kept, fixed = _states(examples, removed, corrected)
        count = (1 if asked is None else len(asked)) * len(_parts(self.measurement))
        values = np.full((len(removed), len(self.seeds), count), np.nan)
        jobs = [(job, seat) for seat in range(len(self.seeds)) for job in range(len(removed))]
        missing = []
        for job, seat in jobs:
            known = None if cache is None else cache.get(states[job], self.seeds[seat])
            if known is None:
                missing.append((job, seat))
            else:
                values[job, seat] = known
        done = len(jobs) - len(missing)
        other = None if corrected is None or fixed is None else (corrected.labels, torch.from_numpy(fixed))
        root = self._inverse_root(examples, missing)
        work = _Work(replace(self, processes=1, progress=None), kept, states, other, cache, root)
        for part, found in self._run(work, examples, asked, missing):
            for (job, seat), measured in zip(part, found, strict=True):
                values[job, seat] = measured
            done += len(part)
            if self.progress is not None:
                self.progress(done, len(jobs))
        return torch.from_numpy(values)

    def missing(
        self, train: Any, queries: Any, removed: Sequence[Sequence[Any] | np.ndarray], *,
        corrected: Corrections | None = None,
    ) -> int:  # fmt: skip
        """Return how many trainings `measure` would do: those that the cache does not hold."""
        examples = as_examples(train)
        cache = self._cache(examples, None if queries is None else as_examples(queries), corrected)
        jobs = [(row, seed) for row in _states(examples, removed, corrected)[0] for seed in self.seeds]
        return len(jobs) if cache is None else sum(cache.get(row, seed) is None for row, seed in jobs)

    def _cache(self, examples: Examples, asked: Examples | None, corrected: Corrections | None) -> Cache | None:
        """Return where results of these examples, right labels and queries lie."""
        if self.cache is None:
            return None
        known = self._fingerprint(examples, asked)
        return Cache(Path(self.cache), known if corrected is None else describe(known, corrected.labels))

    def _run(
        self, work: _Work, examples: Examples, asked: Examples | None, jobs: list[tuple[int, int]]
    ) -> Iterator[tuple[list[tuple[int, int]], list[np.ndarray]]]:
        """Yield finished jobs with their measurements, in this process or in others."""
        units = _units(jobs, self.stack)
        if self.processes == 1 or len(units) < 2:
            for unit in units:
                yield unit, work.train(examples, asked, unit)
            return
        rows = _pack(examples), None if asked is None else _pack(asked)
        shares = [units[i :: _SHARES * self.processes] for i in range(_SHARES * self.processes)]
        with workers(self.processes, "the recipe's functions") as pool:
            futures = {pool.submit(_in_process, work, rows, share): share for share in shares if share}
            for future in as_completed(futures):
                yield [job for unit in futures[future] for job in unit], future.result()

    def _inverse_root(self, examples: Examples, jobs: list[tuple[int, int]]) -> Tensor | None:
        """Return what preconditions exact trainings from a common start, where there is such a thing."""
        if not jobs or self.start is None or self.recipe.loop is not None or self.recipe.optimizer != "lbfgs":
            return None
        return inverse_root(self.recipe.task(self.start), examples)

    def _fingerprint(self, examples: Examples, asked: Examples | None) -> str:
        """Return what identifies a result but for the examples left out and the seed."""
        recipe = self.recipe
        settings = {
            name: getattr(recipe, name)
            for name in (
                "build", "loss", "outputs", "optimizer", "learning_rate", "momentum", "schedule", "epochs",
                "batch_size", "weight_decay", "augment", "gradient_norm", "loop",
            )
        }  # fmt: skip
        settings |= {name: getattr(recipe, name) for name in ("steps", "clip") if getattr(recipe, name) is not None}
        settings |= {"decay_factors": dict(recipe.decay_factors)} if recipe.decay_factors else {}
        start = None if self.start is None else recipe.task(self.start).weights_fingerprint()
        return describe(
            settings, start, self.measurement, self.stack > 1, examples.fingerprint,
            None if asked is None else asked.fingerprint,
        )  # fmt: skip


def _states(
    examples: Examples, removed: Sequence[Sequence[Any] | np.ndarray], corrected: Corrections | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return what tells the trainings apart, which rows stay [J, N], and which get their right label [J, N]."""
    kept = _kept(examples, removed)
    fixed = None if corrected is None else corrected.mask(examples, len(kept))
    return kept if fixed is None else np.concatenate([kept, fixed], 1), kept, fixed


def _kept(examples: Examples, removed: Sequence[Sequence[Any] | np.ndarray]) -> np.ndarray:
    """Return which rows stay when each of the sets is removed [J, N]."""
    kept = np.ones((len(removed), len(examples)), dtype=bool)
    for row, ids in enumerate(removed):
        if len(ids):
            kept[row, examples.rows_of(ids)] = False
    if not kept.any(1).all():
        raise ConfigError("removed must leave some examples in every set, got a set of all. Remove fewer.")
    return kept


def _units(jobs: list[tuple[int, int]], stack: int) -> list[list[tuple[int, int]]]:
    """Return jobs in groups of one seed that are trained together."""
    units: list[list[tuple[int, int]]] = []
    for job in jobs:
        if units and len(units[-1]) < stack and units[-1][0][1] == job[1]:
            units[-1].append(job)
        else:
            units.append([job])
    return units


@dataclass(frozen=True, eq=False)
class _Work:
    """What every process needs besides the data.

    Args:
        config: Settings.
        kept: Rows kept [J, N].
        states: What tells the jobs apart [J, ...].
        other: Right labels [N, ...], and which rows get them [J, N].
        cache: Where results go.
        inverse_root: The preconditioner.
    """

    config: Retraining
    kept: np.ndarray
    states: np.ndarray
    other: tuple[Tensor, Tensor] | None
    cache: Cache | None
    inverse_root: Tensor | None

    def train(self, examples: Examples, asked: Examples | None, unit: list[tuple[int, int]]) -> list[np.ndarray]:
        """Train the models of one unit and return their measurements [Q]."""
        config, seed = self.config, self.config.seeds[unit[0][1]]
        jobs = [job for job, _ in unit]
        weights = torch.from_numpy(self.kept[jobs].astype(np.float32))
        if config.stack > 1:
            other = None if self.other is None else (self.other[0], self.other[1][jobs])
            models = train_stacked(config.recipe, examples, weights, seed=seed, start=config.start, other=other)
        else:
            rows = zip((self._labelled(examples, job) for job in jobs), weights, strict=True)
            models = [self._one(labelled, row, seed) for labelled, row in rows]
        found = []
        for model, (job, _) in zip(models, unit, strict=True):
            measured = _measured(config, model, asked)
            if self.cache is not None:
                self.cache.put(self.states[job], seed, measured)
            found.append(measured)
        return found

    def _labelled(self, examples: Examples, job: int) -> Examples:
        """Return the examples with the labels of a job."""
        if self.other is None or not bool(self.other[1][job].any()):
            return examples
        given, (labels, fixed) = examples.targets, self.other
        assert given is not None
        return examples.with_targets(torch.where(fixed[job].reshape(-1, *[1] * (given.ndim - 1)), labels, given))

    def _one(self, examples: Examples, weights: Tensor, seed: int) -> nn.Module:
        """Train one model."""
        recipe, start = self.config.recipe, self.config.start
        if start is None or self.inverse_root is None:
            return recipe.train(examples, weights=weights, seed=seed, start=start)
        norm = recipe.gradient_norm
        return minimise(recipe.task(start), examples, weights, gradient_norm=norm, inverse_root=self.inverse_root)


def _parts(measurement: Any) -> tuple[Any, ...]:
    """Return the measurements that are asked for."""
    return measurement.parts if isinstance(measurement, Several) else (measurement,)


def _measured(config: Retraining, model: nn.Module, asked: Examples | None) -> np.ndarray:
    """Return the measurement of every query [Q], or of the model alone [1]; several one after another."""
    return np.concatenate([_one_measured(config, part, model, asked) for part in _parts(config.measurement)])


def _one_measured(config: Retraining, measurement: Any, model: nn.Module, asked: Examples | None) -> np.ndarray:
    """Return one measurement of every query [Q], or of the model alone [1]."""
    task = config.recipe.task(model, measurement)
    with task.evaluating(), torch.no_grad():
        if asked is None:
            return task.measure_model().double().cpu().numpy()
        parts = [task.measurements(task.place(batch)) for batch in asked.batches(_CHUNK)]
        return torch.cat(parts).double().cpu().numpy()


Packed = tuple[Any, Tensor | None, np.ndarray]


def _pack(examples: Examples) -> Packed:
    """Return all rows as tensors, which can be sent to another process."""
    batch = examples.batch(np.arange(len(examples)))
    return batch.inputs, batch.targets, examples.ids


def _in_process(
    work: _Work, rows: tuple[Packed, Packed | None], units: list[list[tuple[int, int]]]
) -> list[np.ndarray]:
    """Do some units in a worker process, on one thread."""
    torch.set_num_threads(1)
    examples, asked = (None if part is None else as_examples(part[:2], ids=part[2]) for part in rows)
    assert examples is not None
    return [found for unit in units for found in work.train(examples, asked, unit)]
