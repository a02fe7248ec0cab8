"""Influence functions: the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from whence.curvature import EKFAC, Curvature, Exact
from whence.errors import ConfigError
from whence.gradients import GradientStream, check_capture, chunk_size, find_layers
from whence.methods.attribution import InfluenceAttribution
from whence.tasks import Task

__all__ = ["Influence", "InfluenceAttribution"]


@dataclass(frozen=True, kw_only=True)
class Influence:
    r"""Influence functions with any curvature.

    s(t, i) = (1/N) ∇m_tᵀ H⁻¹ (∇ℓ_i + λθ̂): the predicted rise of query t's measurement when training example i is
    removed and the model trained again at the same λ on the mean loss.

    Args:
        curvature: What stands for H: `EKFAC` (default) or any other of `whence.curvature`.
        layers: None for all supported layers, "last", or regular expressions of module names.
        batch_size: Examples a chunk; None chooses one that keeps buffers small. It cannot change a score.
        seed: Seed of sampled labels, used together with each example's id.
        memory_budget: Bytes of training factors that may be kept in memory; beyond it they are recomputed. Queries are
            held in blocks of this size (of 256 MiB at least).
        dtype: Floating-point type to compute in: None is float64 for `Exact` and Hessians, else the model's own.

    Reference: Koh & Liang (2017), eq. 2 and 5; sign and unit as stated above.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> attribution = Influence(curvature=Exact()).fit(Task(model, weight_decay=0.1), train)
        >>> attribution.scores((train[0][:4], train[1][:4])).values.shape
        torch.Size([4, 20])
    """

    curvature: Curvature = field(default_factory=EKFAC)
    layers: str | Sequence[str] | None = None
    batch_size: int | None = None
    seed: int = 0
    memory_budget: int = 2**28
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}.")
        if isinstance(self.curvature, (str, type)):
            name = self.curvature if isinstance(self.curvature, str) else self.curvature.__name__
            raise ConfigError(f"curvature must be a config such as EKFAC(), got {name!r}. Make one with its settings.")
        if self.memory_budget < 0:
            raise ConfigError(f"memory_budget must be zero or positive bytes, got {self.memory_budget}.")

    def fit(self, task: Task, train: Any) -> InfluenceAttribution:
        """Fit the curvature to the training examples.

        Args:
            task: A trained model with its loss. The model comes back bit-identical.
            train: Training examples: anything that `as_examples` takes; for a task `from_sklearn`, (X, y).

        Raises:
            ConfigError: No layer can be attributed, captured gradients differ from autograd's, or a setting does
                not fit the task.
            NumericalError: A loss, gradient or covariance is not finite, or the curvature is singular.

        Cost: see the curvature.
        """
        examples = task.examples(train)
        task = task.settled(examples)
        double = isinstance(self.curvature, Exact) or getattr(self.curvature, "hessian", False)
        dtype = self.dtype if self.dtype is not None else torch.float64 if double else None
        task = task if dtype is None else task.in_dtype(dtype)
        coverage = find_layers(task.model, self.layers)
        check_capture(task, coverage, examples)
        chunk = self.batch_size or chunk_size(task, coverage.layers, examples)
        stream = GradientStream(task, coverage.layers, examples, chunk, self.memory_budget)
        preconditioner = self.curvature.fit(stream, seed=self.seed)
        return InfluenceAttribution(
            config=self, task=task, coverage=coverage, preconditioner=preconditioner, examples=examples, stream=stream
        )
