"""Gradient dot product and cosine: how far two examples pull the weights the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.curvature import Identity
from whence.data import Examples
from whence.methods.influence import Influence, InfluenceAttribution
from whence.methods.ranking import RankingAttribution
from whence.tasks import Task

__all__ = ["GradientCosine", "GradientDot"]


@dataclass(frozen=True, kw_only=True)
class GradientDot:
    r"""Gradient dot product: score(q, i) = (1/N) ∇m_qᵀ ∇ℓ_i, which is `Influence` with `Identity` for its curvature.

    Args:
        layers: None for all supported layers, "last", or regular expressions of module names.
        batch_size: As in `Influence`.
        memory_budget: As in `Influence`.

    Cost: nothing to fit; one pass over the training gradients a block of queries. Gradients stay factored.

    Reference: Charpiat et al. (2019), Input similarity from the neural network perspective, without their norms. With
        weight decay λ the training gradient is ∇ℓ_i + λθ̂, as everywhere here: a constant within a query.

    Example:
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> fitted = GradientDot().fit(Task(torch.nn.Linear(3, 2)), train)
        >>> fitted.scores(train).unit is None, bool((fitted.self_scores().values >= 0).all())
        (True, True)
    """

    layers: str | Sequence[str] | None = None
    batch_size: int | None = None
    memory_budget: int = 2**28

    def fit(self, task: Task, train: Any) -> InfluenceAttribution:
        """Check the layers; see `Influence.fit`."""
        return _plain(self.layers, self.batch_size, self.memory_budget).fit(task, train)


@dataclass(frozen=True, kw_only=True)
class GradientCosine:
    r"""Gradient cosine: score(q, i) = ∇m_qᵀ ∇ℓ_i / (‖∇m_q‖ ‖∇ℓ_i‖), in [−1, 1]; 0 where a gradient vanishes.

    Outliers no longer head every list. Its self-scores are 1 for every example that has a gradient, and so rank
    nothing; its class-based reduction is *worse* than its mean (see `class_based`).

    Args:
        layers: None for all supported layers, "last", or regular expressions of module names.
        batch_size: As in `Influence`.
        memory_budget: As in `Influence`.

    Cost: as `GradientDot`, with the norms from the factors.

    Reference: Charpiat et al. (2019), eq. 5; Hanawa et al. (2021). The weight decay is left out of both gradients.

    Example:
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> scores = GradientCosine().fit(Task(torch.nn.Linear(3, 2)), train).scores(train)
        >>> bool((scores.values.diagonal() - 1).abs().max() < 1e-5)
        True
    """

    layers: str | Sequence[str] | None = None
    batch_size: int | None = None
    memory_budget: int = 2**28

    def fit(self, task: Task, train: Any) -> RankingAttribution:
        """Check the layers; see `Influence.fit`."""
        fitted = _plain(self.layers, self.batch_size, self.memory_budget).fit(task, train)
        return RankingAttribution(
            name="gradient cosine", examples=fitted.examples, score=lambda queries: _cosines(fitted, queries),
            own=lambda: (_norms(fitted) > 0).double(), prepare=task.examples, alone=lambda: _cosines(fitted, None),
        )  # fmt: skip


def _plain(layers: str | Sequence[str] | None, batch_size: int | None, memory_budget: int) -> Influence:
    return Influence(curvature=Identity(), layers=layers, batch_size=batch_size, memory_budget=memory_budget)


def _norms(fitted: InfluenceAttribution) -> Tensor:
    """Return ‖∇ℓ_i‖ of every training example [N]."""
    return torch.cat([gradients.squared_norms() for _, gradients in fitted.training_gradients()]).sqrt()


def _cosines(fitted: InfluenceAttribution, queries: Examples | None) -> Tensor:
    """Return the cosines [Q, N]; of the model alone without queries."""
    values, norms = [], None
    for block in fitted.query_blocks(queries, preconditioned=False):
        parts, own = [], []
        for _, gradients in fitted.training_gradients():
            small = gradients.compact()
            parts.append(block.inner(small))
            if norms is None:
                own.append(small.squared_norms().sqrt())
        norms = torch.cat(own) if norms is None else norms
        values.append(torch.cat(parts, 1) * _inverse(block.squared_norms().sqrt())[:, None])
    assert norms is not None
    return torch.cat(values) * _inverse(norms)


def _inverse(norms: Tensor) -> Tensor:
    """Return 1/‖g‖, and 0 for a gradient that vanishes."""
    return torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
