"""Influence averaged over several checkpoints or seeds, with the standard error of the mean."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples, as_examples
from whence.errors import ConfigError, RunFormatError
from whence.features import read_manifest, staged, write_manifest
from whence.methods.influence import Influence, InfluenceAttribution
from whence.methods.restored import load
from whence.methods.saved import write_attribution
from whence.notebook import fitted_html
from whence.scores import Scores, Signal
from whence.tasks import Recipe, Task

__all__ = ["Ensemble", "EnsembleAttribution", "Moments", "load_ensemble"]

KIND = "ensemble"


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    r"""Influence functions of M members (seeds, or checkpoints of one run): mean and standard error.

    s̄ = (1/M) Σ_m s_m with standard error √(Σ_m (s_m − s̄)² / (M (M − 1))). Scores of one network hold much that
    belongs to its own initialisation and order of batches; the mean over seeds predicts retraining better, and the
    standard error says how far to trust a score.

    Args:
        method: What to fit to every member.
        seeds: Seeds of the members that a `Recipe` trains; unused where trained tasks are given.
        folder: Where the fitted members lie, one at a time in memory; None for a temporary folder that lives as
            long as the fitted ensemble.

    Reference: Bae et al. (2024), §4 and Park et al. (2023), §3.3, average over seeds in the same way.

    Example:
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> tasks = [Task(torch.nn.Linear(3, 2)) for _ in range(3)]
        >>> scores = Ensemble().fit(tasks, train).scores(train)
        >>> scores.values.shape == scores.standard_error.shape
        True
    """

    method: Influence = field(default_factory=Influence)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    folder: str | Path | None = None

    def fit(self, members: Sequence[Task] | Recipe, train: Any) -> EnsembleAttribution:
        """Fit every member, one at a time.

        Args:
            members: Trained tasks with the same loss and weight decay; or a recipe, which trains one model a seed.
            train: Training examples: anything that `as_examples` takes.

        Raises:
            ConfigError: There are fewer than two members, or they have different objectives.
            RunFormatError: The folder holds something else, or cannot be written.

        Cost: M fits (and M trainings with a recipe), in the memory of one fit and M models.
        """
        if isinstance(members, Recipe):
            recipe, examples = members, as_examples(train)
            tasks = [recipe.task(recipe.train(examples, seed=seed)) for seed in self.seeds]
        else:
            tasks = list(members)
            examples = tasks[0].examples(train) if tasks else as_examples(train)
        _check(tasks)
        owned = Path(tempfile.mkdtemp(prefix="whence-")) if self.folder is None else None
        folder = owned / KIND if owned is not None else Path(self.folder or KIND)
        try:
            with staged(folder) as partial:
                for number, task in enumerate(tasks):
                    (partial / _name(number)).mkdir()
                    write_attribution(self.method.fit(task, examples), partial / _name(number))
                write_manifest(partial, {"kind": KIND, "members": len(tasks)})
        except BaseException:
            if owned is not None:
                shutil.rmtree(owned, ignore_errors=True)
            raise
        fitted = EnsembleAttribution(tasks=tuple(tasks), examples=examples, folder=folder)
        if owned is not None:
            weakref.finalize(fitted, shutil.rmtree, owned, ignore_errors=True)
        return fitted


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleAttribution:
    """An ensemble, fitted: ask it for scores. Made by `Ensemble.fit` or `load_ensemble`.

    Args:
        tasks: The members' tasks [M].
        examples: The training examples.
        folder: Where the fitted members lie.
    """

    tasks: tuple[Task, ...]
    examples: Examples
    folder: Path

    def __repr__(self) -> str:
        """Return the counts."""
        return f"EnsembleAttribution({len(self)} members, {len(self.examples):,} examples)"

    def _repr_html_(self) -> str:
        """Return what was fitted for a notebook."""
        values = {"members": len(self), "examples": len(self.examples), "task": repr(self.tasks[0])}
        return fitted_html(repr(self), values, "Scores are means over members, with standard errors.")

    def __len__(self) -> int:
        """Return the number of members M."""
        return len(self.tasks)

    @property
    def ids(self) -> np.ndarray:
        """Ids of the training examples [N]."""
        return self.examples.ids

    def members(self) -> Iterator[InfluenceAttribution]:
        """Yield the fitted members, one at a time: keep none of them, and memory is that of one."""
        for number, task in enumerate(self.tasks):
            yield load(self.folder / _name(number), task, self.examples)

    def scores(self, queries: Any = None, *, leverage_corrected: bool = False) -> Scores:
        """Return the mean score of every training example for every query, with its standard error.

        Args:
            queries: As in `InfluenceAttribution.scores`.
            leverage_corrected: Likewise.

        Returns:
            Scores [Q, N] with ``standard_error`` [Q, N], both in the measurement's unit.

        Cost: M times that of one member; memory of one member and 2·Q·N numbers.
        """
        return self._average(lambda member: member.scores(queries, leverage_corrected=leverage_corrected))

    def group_scores(self, groups: Mapping[str, Iterable[Any]], queries: Any = None) -> Scores:
        """Return the mean score of removing whole groups, with its standard error.

        The standard error is that of the group's score, not a sum of single ones.
        """
        named = {name: list(ids) for name, ids in groups.items()}
        return self._average(lambda member: member.group_scores(named, queries))

    def self_scores(self, *, leverage_corrected: bool = False) -> Signal:
        """Return every training example's mean score for its own training loss [N], with its standard error."""
        moments = Moments()
        signal: Signal | None = None
        for member in self.members():
            signal = member.self_scores(leverage_corrected=leverage_corrected)
            moments.add(torch.from_numpy(signal.values))
        assert signal is not None
        return Signal(
            values=moments.mean.numpy(), ids=signal.ids, name=signal.name, unit=signal.unit,
            standard_error=moments.standard_error().numpy(),
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Return what was fitted, JSON-able: one entry a member."""
        return {"method": "ensemble", "members": [member.summary() for member in self.members()]}

    def save(self, folder: str | Path) -> None:
        """Write all members to a folder; `load_ensemble` reads it.

        Raises:
            RunFormatError: The folder holds something else, or cannot be written.
        """
        with staged(folder) as partial:
            for number, member in enumerate(self.members()):
                (partial / _name(number)).mkdir()
                write_attribution(member, partial / _name(number))
            write_manifest(partial, {"kind": KIND, "members": len(self)})

    def _average(self, scored: Callable[[InfluenceAttribution], Scores]) -> Scores:
        """Return mean and standard error of the members' scores."""
        moments = Moments()
        last: Scores | None = None
        for member in self.members():
            last = scored(member)
            moments.add(last.values)
        assert last is not None
        return Scores(
            values=moments.mean, query_ids=last.query_ids, ids=last.ids, unit=last.unit,
            standard_error=moments.standard_error(),
        )  # fmt: skip


def load_ensemble(folder: str | Path, tasks: Sequence[Task], train: Any) -> EnsembleAttribution:
    """Read an ensemble that was saved.

    Args:
        folder: Where it was saved.
        tasks: The members' tasks in the same order: the same weights, checked by fingerprint when they are used.
        train: The training examples, checked likewise.

    Raises:
        RunFormatError: The folder is incomplete or damaged, or belongs to another number of members.
    """
    manifest = read_manifest(folder, KIND)
    if manifest.get("members") != len(tasks):
        raise RunFormatError(
            f"tasks must be the members of run {str(folder)!r} ({manifest.get('members')}), got {len(tasks)}."
        )
    return EnsembleAttribution(tasks=tuple(tasks), examples=as_examples(train), folder=Path(folder))


class Moments:
    """Mean and squared deviations of tensors that come one at a time (Welford)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Take in one member's values."""
        self.count += 1
        if self.count == 1:
            self.mean, self.squares = values.detach().clone(), torch.zeros_like(values)
            return
        deviation = values - self.mean
        self.mean += deviation / self.count
        self.squares += deviation * (values - self.mean)

    def standard_error(self) -> Tensor:
        """Return √(Σ (s − s̄)² / (M (M − 1)))."""
        return (self.squares / (self.count * (self.count - 1))).sqrt()


def _name(number: int) -> str:
    """Return the folder of a member."""
    return f"member-{number:03d}"


def _check(tasks: Sequence[Task]) -> None:
    """Raise unless there are at least two tasks with one objective."""
    if len(tasks) < 2:
        raise ConfigError(f"an ensemble must have at least 2 members, got {len(tasks)}. Use Influence for one.")
    for what in ("weight_decay", "total_decay", "decay_factors", "loss", "measurement"):
        found = {repr(getattr(task, what)) for task in tasks}
        if len(found) > 1:
            raise ConfigError(f"{what} must be the same for all members, got {sorted(found)[:3]}.")
