"""TracIn: gradient dot products summed over the checkpoints of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from whence.curvature import Identity
from whence.data import Examples
from whence.errors import ConfigError
from whence.gradients import GradientStream
from whence.methods.checkpoints import Checkpoints, model_at
from whence.methods.influence import Influence, InfluenceAttribution
from whence.methods.random_features import RandomFeatures
from whence.methods.ranking import FlatAttribution, RankingAttribution
from whence.tasks import Task

__all__ = ["TracIn"]


@dataclass(frozen=True, kw_only=True)
class TracIn:
    r"""TracIn over checkpoints: score(q, i) = (1/N) Σ_c η_c ∇m_q(θ_c)ᵀ ∇ℓ_i(θ_c).

    To first order, what the steps on an example took off a query's loss while the model was trained.

    Args:
        checkpoints: Models, state dicts or files of them (.safetensors, or ``torch.save`` of a state dict), or what
            `record_checkpoints` returned. One is loaded at a time.
        learning_rates: η_c; None for those of recorded checkpoints, else 1 for every one.
        layers: None for all supported layers, "last", or regular expressions of module names.
        projection: Project the gradients at random to at most so many numbers a checkpoint, all layers together; None
            for the exact products.
        seed: Seed of the projection.
        batch_size: As in `Influence`.
        memory_budget: As in `Influence`, a checkpoint at a time.

    Raises:
        ConfigError: There are no checkpoints, or not as many learning rates as checkpoints.

    Cost: S passes over the training gradients for every call, without anything to fit; projected: S passes at the fit,
        S·D·N numbers of memory, and only the queries' gradients afterwards.

    Reference: Pruthi et al. (2020), TracInCP, eq. 1; random projection their §F. Deviations: 1/N, which keeps all
        methods of this library comparable; the projection is two-sided, layer by layer, and counter-based. As in
        the paper ∇ℓ_i leaves out the weight decay.

    Example:
        >>> from whence.tasks import Recipe
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> from whence.methods.checkpoints import record_checkpoints
        >>> run = record_checkpoints(Recipe(build=lambda: torch.nn.Linear(3, 2), epochs=4), train, count=2)
        >>> TracIn(checkpoints=run).fit(Task(run.model), train).scores(train).values.shape
        torch.Size([20, 20])
    """

    checkpoints: Checkpoints | Sequence[Any]
    learning_rates: Sequence[float] | None = None
    layers: str | Sequence[str] | None = None
    projection: int | None = None
    seed: int = 0
    batch_size: int | None = None
    memory_budget: int = 2**28

    def __post_init__(self) -> None:
        if not len(self.checkpoints):
            raise ConfigError("checkpoints must be at least one, got none. Use GradientDot for a model alone.")
        if len(self.rates) != len(self.checkpoints) or not all(0 <= rate < float("inf") for rate in self.rates):
            raise ConfigError(
                f"learning_rates must be zero or positive, one a checkpoint ({len(self.checkpoints)}), got "
                f"{list(self.rates)}."
            )
        if self.projection is not None and self.projection < 1:
            raise ConfigError(f"projection must be at least 1 or None, got {self.projection}.")

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of every checkpoint [S]."""
        if self.learning_rates is not None:
            return tuple(self.learning_rates)
        if isinstance(self.checkpoints, Checkpoints):
            return self.checkpoints.learning_rates
        return (1.0,) * len(self.checkpoints)

    def fit(self, task: Task, train: Any) -> RankingAttribution | FlatAttribution:
        """Check the layers; with a projection, compute the features of the training examples.

        Args:
            task: The trained model with its loss; checkpoints are loaded into copies of it.
            train: Training examples: anything that `as_examples` takes.
        """
        examples = task.examples(train)
        if self.projection is not None:
            return _projected(self, task, examples)
        next(_members(self, task, examples))  # raises where a layer cannot be attributed
        return RankingAttribution(
            name="TracIn", examples=examples, score=partial(_scores, self, task, examples),
            own=partial(_self_scores, self, task, examples), prepare=task.examples,
            alone=partial(_scores, self, task, examples, None),
        )  # fmt: skip


def _members(config: TracIn, task: Task, examples: Examples) -> Iterator[tuple[float, InfluenceAttribution]]:
    """Yield every checkpoint's learning rate and gradient products."""
    plain = Influence(
        curvature=Identity(), layers=config.layers, batch_size=config.batch_size, memory_budget=config.memory_budget
    )
    weights = config.checkpoints.weights if isinstance(config.checkpoints, Checkpoints) else config.checkpoints
    for rate, checkpoint in zip(config.rates, weights, strict=True):
        yield rate, plain.fit(task.with_model(model_at(task.model, checkpoint)), examples)


def _scores(config: TracIn, task: Task, examples: Examples, queries: Examples | None) -> Tensor:
    """Return (1/N) Σ_c η_c ∇mᵀ∇ℓ [Q, N]; of the model alone without queries."""
    total: Tensor | None = None
    for rate, fitted in _members(config, task, examples):
        values, _ = fitted.products(queries, fitted.training_gradients)
        total = values * rate if total is None else total.add_(values, alpha=rate)
    assert total is not None
    return total / len(examples)


def _self_scores(config: TracIn, task: Task, examples: Examples) -> Tensor:
    """Return (1/N) Σ_c η_c ‖∇ℓ_i‖² [N]."""
    total: Tensor | None = None
    for rate, fitted in _members(config, task, examples):
        own = torch.cat([gradients.squared_norms() for _, gradients in fitted.training_gradients()]) * rate
        total = own if total is None else total + own
    assert total is not None
    return total / len(examples)


def _projected(config: TracIn, task: Task, examples: Examples) -> FlatAttribution:
    """Return the attribution of projected gradients."""
    assert config.projection is not None
    dimension = config.projection

    def features(data: Examples | None, measured: bool) -> Tensor:
        parts = []
        for rate, fitted in _members(config, task, examples):
            project = RandomFeatures.of(fitted.task, fitted.coverage.layers, dimension, config.seed)
            if data is None or measured:
                made = [project(block) for block in fitted.query_blocks(data, preconditioned=False)]
            else:
                stream = GradientStream(fitted.task, fitted.coverage.layers, data, fitted.stream.chunk)
                made = [project(gradients) for _, gradients in stream.training_gradients()]
            parts.append(torch.cat(made) * (rate / len(examples)) ** 0.5)
        return torch.cat(parts, 1)

    own = features(examples, False)
    identity = {"method": "tracin", "model": task.weights_fingerprint(), "data": examples.fingerprint}
    return FlatAttribution(
        name="TracIn", examples=examples, features=own, own=own.square().sum(1), identity=identity,
        ask=lambda queries: features(queries, True), prepare=task.examples,
        alone=lambda: features(None, True) @ own.T,
    )  # fmt: skip
