"""The Shapley value of a training example for a nearest-neighbour classifier, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import ConfigError
from whence.methods.baselines.base import BaselineAttribution, classes_of
from whence.methods.baselines.cosines import Cosines, rounded
from whence.methods.baselines.head import Features
from whence.tasks import Task

__all__ = ["NeighbourShapley", "shapley_values"]


@dataclass(frozen=True, kw_only=True)
class NeighbourShapley:
    r"""kNN-Shapley: score(q, i) = the Shapley value of i in v(S) = (1/k) Σ 1[y_j = y_q] over the k of S nearest to q.

    With α the training examples from nearest to farthest: s_{α_N} = 1[y_{α_N} = y_q] min(k, N)/(N k), and
    s_{α_j} = s_{α_{j+1}} + (1[y_{α_j} = y_q] − 1[y_{α_{j+1}} = y_q]) min(k, j)/(k j). Scores of a query sum to v of all
    examples. The suspicion of an example is minus its mean value for all others as queries.

    Args:
        k: How many neighbours.
        features: ``(model, batch) -> [B, D]``; None for what the model's last layer is given.

    Raises:
        ConfigError: k is below 1.

    Cost: a forward pass, and N·D + N log N operations a query; suspicions have N queries.

    Reference: Jia et al. (2019), Theorem 1. Deviations: the distance is the cosine; ties are in the order of ids, not
        of rows.

    Example:
        >>> train = (torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        >>> fitted = NeighbourShapley(k=1).fit(Task(torch.nn.Linear(2, 2)), train)
        >>> fitted.scores((torch.tensor([[1.0, 0.0]]), torch.tensor([0]))).values.sum().item()
        1.0
    """

    k: int = 10
    features: Features | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k must be at least 1, got {self.k}.")

    def fit(self, task: Task, train: object) -> BaselineAttribution:
        """Compute the features of the training examples."""
        cosines = Cosines.of(task, train, self.features)
        examples = cosines.examples
        places = torch.from_numpy(np.argsort(examples.keys, kind="stable").astype(np.int64))  # by id

        def values(near: Tensor, asked: Tensor, alone: bool) -> Tensor:
            labels = classes_of(examples, "training examples")[places]
            found = torch.empty_like(near)
            found[:, places] = shapley_values(near[:, places], labels[None] == asked[:, None], self.k, alone)
            return found

        def score(queries: Examples) -> Tensor:
            labels = classes_of(queries, "queries")
            return torch.cat([values(near, labels[rows], False) for rows, near in cosines.of_queries(queries)])

        def suspect() -> np.ndarray:
            labels = classes_of(examples, "training examples")
            total = torch.zeros(len(labels), dtype=torch.float64)
            for rows, near in cosines.of_others():
                total += values(near, labels[rows], True).sum(0)
            return (-total / max(1, len(labels) - 1)).numpy()

        return BaselineAttribution(
            name="kNN-Shapley", examples=examples, score=score, suspect=suspect, prepare=task.examples
        )


def shapley_values(similarity: Tensor, right: Tensor, k: int, alone: bool = False) -> Tensor:
    """Return the Shapley values of N players for every query [B, N].

    Args:
        similarity: [B, N]; equal ones stay in the order of columns.
        right: Whether a player has the query's label [B, N].
        k: How many neighbours.
        alone: Leave out the least similar player of every query, which is the query itself: its value is 0.
    """
    order = rounded(similarity).argsort(dim=1, descending=True, stable=True)
    order = order[:, :-1] if alone else order
    count = order.shape[1]
    values = torch.zeros_like(similarity)
    if count == 0:
        return values
    hits = right.gather(1, order).to(similarity.dtype)  # [B, N], nearest first
    rank = torch.arange(1, count + 1, dtype=similarity.dtype, device=similarity.device)
    steps = (hits[:, :-1] - hits[:, 1:]) * rank[:-1].clamp(max=k) / (k * rank[:-1])
    last = hits[:, -1:] * min(k, count) / (count * k)
    sorted_values = torch.cat([steps, last], 1).flip(1).cumsum(1).flip(1)
    return values.scatter(1, order, sorted_values)
