"""Nearest neighbours in feature space and the labels that they carry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import ConfigError
from whence.methods.baselines.base import BaselineAttribution, classes_of, same_class
from whence.methods.baselines.cosines import Cosines, rounded
from whence.methods.baselines.head import Features
from whence.tasks import Task

__all__ = ["Neighbours"]


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    r"""k nearest training examples by cosine: score(q, i) = ± w_i, + where q has the label of i, 0 for all others.

    w_i = 1/k for the k nearest. Where several tie for the last places they share them equally, so that the order of
    rows decides nothing. The suspicion of an example is the weight of its k nearest others with another label.

    Args:
        k: How many neighbours.
        features: ``(model, batch) -> [B, D]``; None for what the model's last layer is given.

    Raises:
        ConfigError: k is below 1.

    Cost: a forward pass, and N²·D operations for suspicions.

    Example:
        >>> train = (torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        >>> fitted = Neighbours(k=1).fit(Task(torch.nn.Linear(2, 2)), train)
        >>> fitted.suspicion().values.tolist()
        [0.0, 0.0, 1.0]
    """

    k: int = 10
    features: Features | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k must be at least 1, got {self.k}.")

    def fit(self, task: Task, train: object) -> BaselineAttribution:
        """Compute the features of the training examples."""
        cosines = Cosines.of(task, train, self.features)

        def score(queries: Examples) -> Tensor:
            near = torch.cat([nearest_weights(found, self.k) for _, found in cosines.of_queries(queries)])
            return near * same_class(cosines.examples, queries)

        def suspect() -> np.ndarray:
            labels = classes_of(cosines.examples, "training examples")
            parts = []
            for rows, found in cosines.of_others():
                other = labels[rows][:, None] != labels[None]
                parts.append((nearest_weights(found, self.k) * other).sum(1))
            return torch.cat(parts).numpy()

        return BaselineAttribution(
            name="kNN disagreement", examples=cosines.examples, score=score, suspect=suspect, prepare=task.examples
        )


def nearest_weights(similarity: Tensor, k: int) -> Tensor:
    """Return 1/k for the k most similar columns of every row [B, N], shared among ties for the last places.

    Columns at −∞ are never chosen; where fewer than k are left, all of them share the weight.
    """
    near = rounded(similarity)
    usable = int((near[0] > -torch.inf).sum()) if len(near) else 0
    taken = min(k, usable)
    if taken == 0:
        return torch.zeros_like(similarity)
    last = near.topk(taken, dim=1).values[:, -1:]
    above, tied = near > last, near == last
    left = taken - above.sum(1, keepdim=True)
    return (above + tied * (left / tied.sum(1, keepdim=True))).to(similarity.dtype) / taken
