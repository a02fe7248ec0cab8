"""GEX: influence from the losses of models around the trained one, without gradients and without linearising."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import ConfigError, NumericalError
from whence.gradients import Coverage, Gradients, GradientStream, Matrix, chunk_size, find_layers
from whence.index import Index, IndexWriter, QueryFeatures
from whence.methods.finite import finite
from whence.methods.gex_diagnosis import Diagnosis, diagnose
from whence.methods.laplace import Laplace, draw
from whence.methods.member_folder import recipe_identity, told
from whence.methods.members import Members
from whence.notebook import fitted_html
from whence.scores import Scores, Signal
from whence.tasks import Recipe, Task

__all__ = ["GEX", "GEXAttribution"]

_CHUNK = 512
_RATES = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True, kw_only=True)
class GEX:
    r"""Geometric-ensemble influence: how the losses of two examples vary together over models near the trained one.

    score(q, i) = (1/M) Σ_m D_qm D_im with D_im = ℓ_i(ψ_m) − max(ℓ_i(θ̂), τ), and (1/M) Σ_m D_im² for i itself. Members
    ψ_m come from more training of θ̂ at a large step size, with the same loss and weight decay; batch normalisations
    take their statistics anew. With `Laplace` members and ``linearised`` deviations it is ordinary influence,
    (1/N) ∇ℓ_qᵀ H⁻¹ ∇ℓ_i, as M grows; without either, its self-influence is not confined to one mode.

    Members must leave the basin of θ̂ or their deviations are noise: `GEXAttribution.diagnosis` says whether they
    did, and ``learning_rate="auto"`` tries a member at .05, .1, .2 and .4 and takes the rate at which the losses of the
    5 % of the rows that rise most rise farthest above the usual row's, which may rise by ln 2. With ``clip=1.0`` large
    rates stay finite.

    Args:
        members: M; 8 serve, 32 is the paper's.
        steps: Steps of each member.
        learning_rate: Peak step size, or "auto".
        schedule: "cosine" finds wrong labels; "constant" is what the paper prunes with, with ``clip=1.0``.
        momentum: Of the stochastic gradient descent.
        batch_size: Examples a step.
        clip: Largest norm of a step's gradient, or None.
        recipe: A training of the user's own instead of all five above; it is started from θ̂ with another seed each.
        chain: Start each member from the one before: they wander farther, and cannot be trained side by side.
        tau: τ, in the loss's unit. Where losses of wrong rows lie below it, it turns the ranking around: lower it.
        centred: Subtract each example's mean over members: the covariance, with M − 1.
        posterior: Draw members from here instead of training them.
        linearised: Deviations ∇ℓ_iᵀ(ψ_m − θ̂) instead of differences of losses; τ is then unused.
        seed: First seed.
        processes: How many members to train at a time.
        folder: Where members are kept, so that an interrupted fit resumes and a later one may have more; functions are
            known by what they do, as in `Retraining`. None for a temporary folder.
        progress: Called with (members done, M).

    Raises:
        ConfigError: A setting is out of range.

    Cost: M trainings of ``steps`` steps and M + 1 forward passes; no gradients of single examples, no curvature.
        Scores take M + 1 forward passes over the queries.

    Reference: Kim, Kim & Yang (2023), GEX. Deviations: members may be independent (the released code runs a chain);
        the loss is the task's (there: one sigmoid a class, ``loss="sigmoid_cross_entropy"`` here).

    Example:
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> fitted = GEX(members=2, steps=3).fit(Task(torch.nn.Linear(3, 2)), train)
        >>> fitted.scores(train).values.shape, fitted.self_scores().values.shape
        (torch.Size([20, 20]), (20,))
    """

    members: int = 32
    steps: int = 800
    learning_rate: float | str = 0.05
    schedule: str = "cosine"
    momentum: float = 0.9
    batch_size: int = 128
    clip: float | None = None
    recipe: Recipe | None = None
    chain: bool = False
    tau: float = 0.05
    centred: bool = False
    posterior: Laplace | None = None
    linearised: bool = False
    seed: int = 0
    processes: int = 1
    folder: str | Path | None = None
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ConfigError(f"members must be at least 2, got {self.members}.")
        if self.processes < 1 or (self.chain and self.processes > 1):
            raise ConfigError(
                f"processes must be at least 1, and 1 for a chain, got {self.processes}. Use chain=False."
            )
        if isinstance(self.learning_rate, str) and self.learning_rate != "auto":
            raise ConfigError(f'learning_rate must be a number or "auto", got {self.learning_rate!r}.')
        if not 0 <= self.tau < float("inf"):
            raise ConfigError(f"tau must be zero or positive, got {self.tau}.")
        if self.posterior is not None and (self.recipe is not None or self.chain):
            raise ConfigError("posterior must stand alone: members are drawn or trained, not both.")
        if self.posterior is None and self.recipe is None and self.learning_rate != "auto":
            self._recipe(Task(torch.nn.Identity()), float(self.learning_rate))  # says what is out of range

    def fit(self, task: Task, train: Any) -> GEXAttribution:
        """Make the members and take the training examples' losses under each.

        Args:
            task: A trained model and its loss.
            train: Training examples: anything that `as_examples` takes.

        Raises:
            ConfigError: The task's measurement differs from its loss, or the curvature cannot be drawn from.
            NumericalError: A member's losses are not finite.
            RunFormatError: ``folder`` holds members of something else.
        """
        if task.measurement is not None and task.measurement != task.loss:
            raise ConfigError(
                f"measurement must be the loss for GEX, whose queries are losses too, got {task.measurement!r}. "
                "Leave measurement out."
            )
        examples = task.examples(train)
        settled = task.settled(examples)
        owned = Path(tempfile.mkdtemp(prefix="whence-")) if self.folder is None else None
        folder = owned / "members" if owned is not None else Path(self.folder or "members")
        try:
            members = Members(folder=folder, task=settled, count=self.members)
            rate = self._make(members, examples)
            features = _deviations(self, members, examples)
        except BaseException:
            if owned is not None:
                shutil.rmtree(owned, ignore_errors=True)
            raise
        fitted = GEXAttribution(
            config=self, task=settled, examples=examples, members=members, features=features, learning_rate=rate
        )
        if owned is not None:
            weakref.finalize(fitted, shutil.rmtree, owned, ignore_errors=True)
        return fitted

    def _make(self, members: Members, examples: Examples) -> float | None:
        """Train or draw the members that are missing; return the step size, where one was used."""
        members.begin({} if self.folder is None else self._identity(members.task, examples))
        if self.posterior is not None:
            draw(self.posterior, members, examples, self.seed)
            return None
        if self.recipe is not None:
            chosen, rate = self.recipe, None
        else:
            rate = members.noted("learning_rate")
            if rate is None:
                rate = self._rate(members.task, examples)
                members.note("learning_rate", rate)
            chosen = self._recipe(members.task, rate)
        members.train(
            chosen, examples, seed=self.seed, chain=self.chain, processes=self.processes, progress=self.progress
        )
        return rate

    def _identity(self, task: Task, examples: Examples) -> dict[str, Any]:
        """Return what members belong to, by name; more of the same may be asked for later."""
        identity: dict[str, Any] = {"weights": task.weights_fingerprint(), "data": examples.fingerprint}
        identity |= {name: repr(getattr(self, name)) for name in ("chain", "seed", "posterior")}
        if self.recipe is not None:
            return identity | recipe_identity(self.recipe)
        made = ("steps", "learning_rate", "schedule", "momentum", "batch_size", "clip")
        identity |= {name: repr(getattr(self, name)) for name in made}
        decay = task.weight_decay, task.total_decay, sorted(task.decay_factors.items())
        return identity | {"loss": told(task.loss), "outputs": told(task.outputs), "weight decay": repr(decay)}

    def _rate(self, task: Task, examples: Examples) -> float:
        """Return the step size: the one given, or the one that parts odd rows' losses farthest from the usual."""
        if self.learning_rate != "auto":
            return float(self.learning_rate)
        base = _losses(task, examples)
        best, gap = _RATES[0], -float("inf")
        for rate in _RATES:
            try:
                trial = self._recipe(task, rate).train(examples, seed=self.seed, start=task.model)
            except NumericalError:
                break  # larger ones diverge too
            found = diagnose(task, examples, base, _losses(task.with_model(trial), examples)[:, None])
            if found.usual_rise > math.log(2):
                break  # the members forget most rows
            if found.rise - found.usual_rise > gap:
                best, gap = rate, found.rise - found.usual_rise
        return best

    def _recipe(self, task: Task, rate: float) -> Recipe:
        """Return how members are trained."""
        schedule: Any = self.schedule
        return Recipe(
            build=torch.nn.Identity, loss=task.loss, outputs=task.outputs, optimizer="sgd", learning_rate=rate,
            momentum=self.momentum, schedule=schedule, steps=self.steps, batch_size=self.batch_size, clip=self.clip,
            weight_decay=task.weight_decay, decay_factors=task.decay_factors,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class GEXAttribution:
    """GEX, fitted: ask it for scores. Made by `GEX.fit`.

    Args:
        config: How it was made.
        task: The trained model and its loss.
        examples: The training examples.
        members: The models around it.
        features: D [N, M] of the training examples, not centred, float64.
        learning_rate: Step size of the members, where one was used.
    """

    config: GEX
    task: Task
    examples: Examples
    members: Members
    features: Tensor
    learning_rate: float | None = None

    def __repr__(self) -> str:
        """Return the counts."""
        return f"GEXAttribution({self.members.count} members, {len(self.examples):,} examples)"

    def _repr_html_(self) -> str:
        """Return what was fitted for a notebook; the diagnosis only where it was made, for it takes passes."""
        values: dict[str, Any] = {"members": self.members.count, "examples": len(self.examples)}
        if self.learning_rate is not None:
            values["members' step size"] = self.learning_rate
        known = vars(self).get("diagnosis")
        return fitted_html(repr(self), values, "See .diagnosis." if known is None else str(known))

    @property
    def ids(self) -> np.ndarray:
        """Ids of the training examples [N]."""
        return self.examples.ids

    @property
    def unit(self) -> str | None:
        """Unit of the scores: known only of members drawn from a posterior, ψ ~ N(θ̂, H⁻¹/N)."""
        return self.task.unit if self.config.posterior is not None else None

    def scores(self, queries: Any) -> Scores:
        """Return (1/M) Σ_m D_qm D_im, or the covariance of D_q and D_i [Q, N], with its standard error over members.

        Positive = helpful: models that do badly on the example do badly on the query.

        Args:
            queries: Anything that `as_examples` takes, with targets.

        Cost: M + 1 forward passes over the queries; Q·N·M operations.
        """
        asked = self.task.examples(queries)
        own, theirs = self._centred(self.features), self._centred(_deviations(self.config, self.members, asked))
        values = theirs @ own.T / self._divisor
        count = self.members.count
        spread = (theirs.square() @ own.square().T / count - (theirs @ own.T / count).square()).clamp(min=0.0)
        error = (spread / (count - 1)).sqrt()
        return Scores(values=values, query_ids=asked.ids, ids=self.ids, unit=self.unit, standard_error=error)

    def self_scores(self) -> Signal:
        """Return (1/M) Σ_m D_im², or the variance of D_i [N]: large = memorised or mislabelled."""
        squares = self._centred(self.features).square()
        error = squares.std(1) / self.members.count**0.5
        return Signal(
            values=(squares.sum(1) / self._divisor).numpy(), ids=self.ids, name="GEX self-influence", unit=self.unit,
            standard_error=error.numpy(),
        )  # fmt: skip

    def query_features(self, queries: Any) -> QueryFeatures:
        """Return what an index of these features answers: inner products are scores."""
        asked = self.task.examples(queries)
        features = self._centred(_deviations(self.config, self.members, asked)) / self._divisor
        return QueryFeatures.flat(features, asked.ids, unit=self.unit)

    def build_index(self, folder: str | Path, *, dtype: str = "float32") -> Index:
        """Write the features [N, M] and self-scores to an index on disk; ask it with `query_features`."""
        identity = {"method": "gex", "model": self.task.weights_fingerprint(), "data": self.examples.fingerprint,
                    "members": self.members.count, "centred": self.config.centred,
                    "deviations": hashlib.sha256(self.features.contiguous().numpy().tobytes()).hexdigest()}  # fmt: skip
        writer = IndexWriter(folder=folder, identity=identity, dtype=dtype)
        own = self.self_scores().values
        writer.append(self._centred(self.features)[writer.start :], self.ids[writer.start :], own[writer.start :])
        return writer.close()

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """Which regime the model is in, whether the members left its basin, and what to change if they did not.

        Cost: M + 1 forward passes over the training examples.
        """
        losses = torch.stack([_losses(self.task.with_model(m), self.examples) for m in self.members], 1)
        return diagnose(self.task, self.examples, _losses(self.task, self.examples), losses)

    @property
    def _divisor(self) -> int:
        return self.members.count - 1 if self.config.centred else self.members.count

    def _centred(self, features: Tensor) -> Tensor:
        """Return deviations less their mean over members, where that is asked for."""
        return features - features.mean(1, keepdim=True) if self.config.centred else features


def _losses(task: Task, examples: Examples) -> Tensor:
    """Return the loss of every example [N], float64."""
    with torch.no_grad(), task.evaluating():
        return torch.cat([task.losses(task.place(b)).double().cpu() for b in examples.batches(_CHUNK)])


def _deviations(config: GEX, members: Members, examples: Examples) -> Tensor:
    """Return D [N, M] of any examples, float64."""
    task = members.task
    if config.linearised:
        return _linear_deviations(config, members, examples)
    base = finite(_losses(task, examples), examples.ids, "losses of the trained model").clamp(min=config.tau)
    return _finite(torch.stack([_losses(task.with_model(member), examples) - base for member in members], 1))


def _finite(deviations: Tensor) -> Tensor:
    """Return deviations [N, M]; raise where one is not finite."""
    wrong = ~torch.isfinite(deviations).all(0)
    if wrong.any():
        raise NumericalError(
            f"deviations must be finite, got others of member {int(wrong.nonzero()[0])} of {len(wrong)}. "
            "Lower learning_rate, or clip the steps; with a folder, name a new one."
        )
    return deviations


def _linear_deviations(config: GEX, members: Members, examples: Examples) -> Tensor:
    """Return ∇ℓᵀ(ψ_m − θ̂) [N, M], float64: one pass over the examples' gradients."""
    task, layers = members.task, None if config.posterior is None else config.posterior.layers
    coverage = find_layers(task.model, layers)
    stream = GradientStream(task, coverage.layers, examples, chunk_size(task, coverage.layers, examples))
    moved = [_difference(task, coverage, member) for member in members]
    changes = Gradients({name: Matrix(torch.cat([one[name] for one in moved])) for name in moved[0]})
    parts = [gradients.inner(changes) for _, gradients in stream.training_gradients()]
    return _finite(torch.cat(parts).double().cpu())


def _difference(task: Task, coverage: Coverage, member: torch.nn.Module) -> dict[str, Tensor]:
    """Return ψ − θ̂ of every layer [1, O, I]."""
    own, named = dict(task.model.named_parameters()), dict(member.named_parameters())
    with torch.no_grad():
        changed = {name: named[name] - parameter for name, parameter in own.items()}
        return {layer.name: layer.join(changed)[None] for layer in coverage.layers}
