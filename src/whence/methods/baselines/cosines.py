"""Cosines of features with those of all training examples, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.data import Examples
from whence.methods.baselines.base import blocks
from whence.methods.baselines.head import Features, unit_features
from whence.tasks import Task

__all__ = ["Cosines", "rounded"]

_DIGITS = 9  # cosines nearer than this are ties: products of other batch sizes round differently


@dataclass(frozen=True, kw_only=True, eq=False)
class Cosines:
    """Training examples as features of length 1.

    Args:
        task: Makes examples and features of data.
        features: As in `Neighbours`.
        examples: The training examples.
        own: Their features [N, D].
    """

    task: Task
    features: Features | None
    examples: Examples
    own: Tensor = field(repr=False)

    @classmethod
    def of(cls, task: Task, train: object, features: Features | None) -> Cosines:
        """Compute the features of the training examples."""
        examples = task.examples(train)
        return cls(task=task, features=features, examples=examples, own=unit_features(task, examples, features))

    def of_queries(self, queries: Examples) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, cosines with all training examples [B, N])."""
        asked = unit_features(self.task, queries, self.features)
        for rows in blocks(len(asked)):
            yield rows, asked[rows] @ self.own.T

    def of_others(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, cosines of these training examples with all others [B, N]), with itself −∞."""
        for rows in blocks(len(self.own)):
            found = self.own[rows] @ self.own.T
            found[torch.arange(len(found)), torch.arange(rows.start, rows.stop)] = -torch.inf
            yield rows, found


def rounded(cosines: Tensor) -> Tensor:
    """Return cosines to so many digits that equal ones are equal."""
    return cosines.round(decimals=_DIGITS)
