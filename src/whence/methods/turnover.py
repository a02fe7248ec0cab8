"""Turn-over dropout: influence as the difference between two sub-networks, one of which never saw the example."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.methods.ensemble import Moments
from whence.methods.finite import finite
from whence.methods.member_folder import MemberFolder, recipe_identity, told
from whence.methods.turnover_sweep import sweep
from whence.notebook import fitted_html
from whence.scores import Scores, Signal
from whence.tasks import Recipe, Task, branch_losses, mask_layers, reseed, turn_over, turn_over_outputs
from whence.tasks.recipe import own_random_state

__all__ = ["TurnOver", "TurnOverAttribution"]


@dataclass(frozen=True, kw_only=True)
class TurnOver:
    r"""Influence by turn-over dropout: how much worse the sub-network that never saw an example does on the query.

    score(q, i) = (1/M) Σ_m [m_q(f_m under 1 − m_m(i)) − m_q(f_m under m_m(i))], positive = helpful. Every example is
    trained with its own units m(i) alone; the rest of the network, its flipped sub-network, has not seen it as far as
    `leakage` says. Two forward passes a pair after one training; no gradient, no curvature.

    **With one mask seed these scores are mostly noise**: two random halves of a network differ in everything, not in
    one example. The mean over M trainings, each with masks of its own, and its standard error say what is left.

    Args:
        p: Share of the units that an example keeps, where a recipe's model has dropout but no masks yet.
        insert: Layers to mask besides, likewise; see `turn_over`.
        seeds: One training a seed of a `Recipe`, which is the seed of its masks too; unused for trained tasks.
        batch_size: Training examples whose sub-networks are run side by side; both of each, so twice as many rows.
        folder: Where a recipe's members are kept, one a seed, so that an interrupted fit resumes and a later one may
            have more seeds; functions are known by what they do, as in `Retraining`. None to keep them in memory alone.
        progress: Called with (members trained, M).

    Raises:
        ConfigError: A setting is out of range.

    Cost: M trainings; scores take 2·M·N·Q forward rows after the first masked layer, what lies before it once.

    Reference: Kobayashi, Yokoi, Suzuki & Inui (2020). Deviations: see `example_masks` and `TurnOverDropout`; the paper
        has one mask an example and no standard error.

    Example:
        >>> import torch
        >>> build = lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2))
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> fitted = TurnOver(seeds=(0, 1)).fit(Recipe(build=build, epochs=1), train)
        >>> scores = fitted.scores(train)
        >>> scores.values.shape == scores.standard_error.shape
        True
    """

    p: float = 0.5
    insert: str | Sequence[str] = ()
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    batch_size: int = 128
    folder: str | Path | None = None
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not len(self.seeds) or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds must be different integers, at least one, got {list(self.seeds)}.")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}.")
        if not 0 < self.p < 1:
            raise ConfigError(f"p must lie between 0 and 1, got {self.p}.")

    def fit(self, members: Recipe | Task | Sequence[Task], train: Any) -> TurnOverAttribution:
        """Train one model a seed, or take trained ones.

        Args:
            members: A recipe; or tasks whose models were trained with `turn_over_outputs`, one or several. A recipe's
                model is converted where it has no masked layers.
            train: Training examples, with the ids that they were trained under: anything that `as_examples` takes.

        Raises:
            ConfigError: A model has no masked layers, several have the same masks, or the recipe is "lbfgs", which
                trains the average network; or there is a folder, and the recipe has a loop of its own or cannot be
                described.
            RunFormatError: ``folder`` holds members of something else.
        """
        if isinstance(members, Recipe):
            examples = as_examples(train)
            kept = self._kept(members, examples)
            tasks = tuple(self._member(members, examples, number, kept) for number in range(len(self.seeds)))
        else:
            tasks = (members,) if isinstance(members, Task) else tuple(members)
            examples = tasks[0].examples(train) if tasks else as_examples(train)
        _check(tasks)
        return TurnOverAttribution(config=self, tasks=tuple(t.settled(examples) for t in tasks), examples=examples)

    def _kept(self, recipe: Recipe, examples: Examples) -> MemberFolder | None:
        """Return where members are kept, if they are."""
        if recipe.loop is None and recipe.optimizer == "lbfgs":
            raise ConfigError(
                'recipe must train by gradient descent for turn-over dropout, got "lbfgs", which has no masks. '
                "Use another optimizer."
            )
        if self.folder is None:
            return None
        if recipe.build is None:
            raise ConfigError(
                "recipe must have build= for members to be read from a folder, got a loop of its own. "
                "Use folder=None, and fit to the trained tasks."
            )
        kept = MemberFolder(folder=Path(self.folder))
        kept.begin({"data": examples.fingerprint, "p": self.p, "insert": told(self.insert), **recipe_identity(recipe)})
        return kept

    def _member(self, recipe: Recipe, examples: Examples, number: int, kept: MemberFolder | None) -> Task:
        """Return one member, trained or read."""
        seed = self.seeds[number]
        own = copy.copy(recipe)
        own.outputs = functools.partial(turn_over_outputs, outputs=recipe.outputs)
        if recipe.build is not None:
            own.build = functools.partial(_build, recipe.build, self.p, self.insert, seed)
        if kept is not None and kept.path(seed).is_file():
            assert own.build is not None
            with own_random_state():
                model = own.build()
            return own.task(kept.read(seed, model))
        task = own.task(own.train(examples, seed=seed))
        if kept is not None:
            kept.keep(seed, task.model.state_dict())
        if self.progress is not None:
            self.progress(number + 1, len(self.seeds))
        return task


@dataclass(frozen=True, kw_only=True, eq=False)
class TurnOverAttribution:
    """Turn-over dropout, fitted: ask it for scores. Made by `TurnOver.fit`.

    Args:
        config: How it was made.
        tasks: The members' tasks [M]; in evaluation their models are the plain average networks.
        examples: The training examples.
    """

    config: TurnOver
    tasks: tuple[Task, ...]
    examples: Examples

    def __repr__(self) -> str:
        """Return the counts."""
        return f"TurnOverAttribution({len(self.tasks)} members, {len(self.examples):,} examples)"

    def _repr_html_(self) -> str:
        """Return what was fitted for a notebook."""
        values = {"members": len(self.tasks), "examples": len(self.examples), "mask seeds": str(self.config.seeds)}
        return fitted_html(repr(self), values, "Scores rank: unseen less seen loss, a difference of sub-networks.")

    @property
    def ids(self) -> np.ndarray:
        """Ids of the training examples [N]."""
        return self.examples.ids

    @property
    def unit(self) -> None:
        """None: a difference of two halves of a network is not the change on a removal."""
        return None

    def scores(self, queries: Any) -> Scores:
        """Return how much worse the sub-networks without an example do on a query [Q, N], positive = helpful.

        Args:
            queries: Anything that `as_examples` takes, with targets.

        Returns:
            Scores with the standard error over members where there are several.

        Cost: for every query and member 2 N forward rows from the first masked layer on; the masks of a batch of
            training examples are made once for up to 256 queries.
        """
        asked = self.tasks[0].examples(queries)
        moments = Moments()
        for task in self.tasks:
            found = sweep(task, self.examples, asked, self.config.batch_size)
            moments.add(finite(found.T, self.ids, "measurements in an example's sub-networks").T)
        return Scores(
            values=moments.mean, query_ids=asked.ids, ids=self.ids, unit=self.unit,
            standard_error=moments.standard_error() if len(self.tasks) > 1 else None,
        )  # fmt: skip

    def self_scores(self) -> Signal:
        """Return unseen less seen loss of every training example [N]: large = memorised or mislabelled.

        Cost: two forward passes over the training examples a member.
        """
        return self._signal(
            "turn-over self-influence",
            lambda task: self._losses(task, flipped=True) - self._losses(task, flipped=False),
        )

    def unseen_losses(self) -> Signal:
        """Return every training example's loss in its flipped sub-network [N], which has not seen it."""
        return self._signal("unseen loss", lambda task: self._losses(task, flipped=True))

    def seen_losses(self) -> Signal:
        """Return every training example's loss in its own sub-network [N]."""
        return self._signal("seen loss", lambda task: self._losses(task, flipped=False))

    def _signal(self, name: str, measured: Callable[[Task], Tensor]) -> Signal:
        """Return a quantity of single examples, averaged over members."""
        moments = Moments()
        for task in self.tasks:
            moments.add(finite(measured(task), self.ids, "losses of sub-networks"))
        error = moments.standard_error().numpy() if len(self.tasks) > 1 else None
        unit = getattr(self.tasks[0].loss, "unit", None)
        return Signal(values=moments.mean.numpy(), ids=self.ids, name=name, unit=unit, standard_error=error)

    def _losses(self, task: Task, *, flipped: bool) -> Tensor:
        """Return the training losses [N] in the examples' own or flipped sub-networks, float64."""
        return branch_losses(task, self.examples, flipped=flipped)


def _build(build: Callable[[], nn.Module], p: float, insert: str | Sequence[str], seed: int) -> nn.Module:
    """Return a new model with a member's masks."""
    model = build()
    return reseed(model, seed) if mask_layers(model) else turn_over(model, p=p, insert=insert, seed=seed)


def _check(tasks: Sequence[Task]) -> None:
    """Raise unless every member has masks, and others than the rest."""
    if not tasks:
        raise ConfigError("members must be at least one, got none. Pass a recipe or trained tasks.")
    seeds = [tuple((layer.key, int(layer.seed)) for layer in mask_layers(task.model)) for task in tasks]
    if not all(seeds):
        raise ConfigError(
            "members must have masked layers, got a model without. Train with wh.turn_over(model) and "
            "outputs=wh.turn_over_outputs."
        )
    if len(set(seeds)) != len(seeds):
        raise ConfigError(
            "members must have masks of their own, got the same mask seed twice. Convert each with "
            "wh.turn_over(model, seed=...); a training loop of one's own does so with the seed that it is given."
        )
