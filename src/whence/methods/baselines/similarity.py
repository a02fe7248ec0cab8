"""Cosine similarity of last-layer features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples
from whence.methods.baselines.base import BaselineAttribution, classes_of, same_class
from whence.methods.baselines.cosines import Cosines
from whence.methods.baselines.head import Features
from whence.tasks import Task

__all__ = ["Similarity", "rival_margin"]


@dataclass(frozen=True, kw_only=True)
class Similarity:
    r"""Cosine of features: score(q, i) = ± cos(h_q, h_i), + where q has the label of i (``signed``).

    The suspicion of an example is its highest cosine with an example of another label minus its highest with
    another example of its own.

    Args:
        signed: Whether examples of another label count as harmful; False is the plain cosine.
        features: ``(model, batch) -> [B, D]``; None for what the model's last layer is given.

    Cost: a forward pass over training examples and queries; suspicions take N²·D operations.

    Reference: Hanawa et al. (2021), Evaluation of similarity-based explanations; the sign is ours.

    Example:
        >>> train = (torch.randn(6, 2), torch.tensor([0, 1] * 3))
        >>> fitted = Similarity().fit(Task(torch.nn.Linear(2, 2)), train)
        >>> bool((fitted.scores(train).values.diagonal() - 1).abs().max() < 1e-12)
        True
    """

    signed: bool = True
    features: Features | None = None

    def fit(self, task: Task, train: object) -> BaselineAttribution:
        """Compute the features of the training examples."""
        cosines = Cosines.of(task, train, self.features)

        def score(queries: Examples) -> Tensor:
            found = torch.cat([found for _, found in cosines.of_queries(queries)])
            return found * same_class(cosines.examples, queries) if self.signed else found

        def suspect() -> np.ndarray:
            labels = classes_of(cosines.examples, "training examples")
            parts = [rival_margin(found, labels, rows) for rows, found in cosines.of_others()]
            return torch.cat(parts).numpy()

        return BaselineAttribution(
            name="feature similarity", examples=cosines.examples, score=score, suspect=suspect, prepare=task.examples
        )


def rival_margin(similarity: Tensor, labels: Tensor, rows: slice) -> Tensor:
    """Return the highest similarity to another label minus the highest to another row of the same label [B].

    Args:
        similarity: Of rows ``rows`` with all rows [B, N]; overwritten.
        labels: [N].
        rows: Which rows.

    A row alone in its class has no own rival: the lowest similarity to any row stands for it.
    """
    places = torch.arange(rows.start, rows.stop)
    similarity[torch.arange(len(similarity)), places] = -torch.inf
    same = labels[places][:, None] == labels[None]
    lowest = similarity.masked_fill(similarity == -torch.inf, torch.inf).amin(1)
    own = similarity.masked_fill(~same, -torch.inf).amax(1)
    other = similarity.masked_fill(same, -torch.inf).amax(1)
    floor = torch.where(torch.isfinite(lowest), lowest, torch.zeros_like(lowest))
    return torch.maximum(other, floor) - torch.maximum(own, floor)
