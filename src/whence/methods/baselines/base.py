"""What every fitted baseline offers: scores for queries, and how suspect each training example is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples, as_examples
from whence.errors import ConfigError, DataError
from whence.scores import Scores, Signal

__all__ = ["BaselineAttribution", "blocks", "class_positions", "classes_of", "same_class"]

_BLOCK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class BaselineAttribution:
    """A baseline, fitted: ask it for scores or for suspicions. Made by the ``fit`` of a baseline.

    Args:
        name: What the numbers are.
        examples: The training examples.
        score: Queries -> values [Q, N].
        suspect: () -> values [N], larger = more suspect.
        prepare: Data as a user has it -> examples.
    """

    name: str
    examples: Examples
    score: Callable[[Examples], Tensor] = field(repr=False)
    suspect: Callable[[], np.ndarray] = field(repr=False)
    prepare: Callable[[Any], Examples] = field(default=as_examples, repr=False)

    def __repr__(self) -> str:
        """Return the method and the number of examples."""
        return f"BaselineAttribution({self.name}, {len(self.examples):,} examples)"

    @property
    def ids(self) -> np.ndarray:
        """Ids of the training examples [N]."""
        return self.examples.ids

    def scores(self, queries: object) -> Scores:
        """Return scores [Q, N], positive = helpful; they rank only, so their unit is None.

        Args:
            queries: Anything that `as_examples` takes, with labels.
        """
        asked = self.prepare(queries)
        return Scores(values=self.score(asked), query_ids=asked.ids, ids=self.ids, unit=None)

    def suspicion(self) -> Signal:
        """Return how suspect the label of every training example is [N]: larger = more suspect, no unit."""
        return Signal(values=self.suspect(), ids=self.ids, name=self.name, unit=None)


def classes_of(examples: Examples, what: str) -> Tensor:
    """Return the labels [N], also those of one logit [N, 1].

    Raises:
        ConfigError: There are none, or they are no single values.
    """
    targets = examples.targets
    if targets is None or targets.numel() != len(targets):
        found = "none" if targets is None else f"shape {tuple(targets.shape)}"
        raise ConfigError(f"{what} must have one label each, got {found}. Pass (inputs, labels).")
    return targets.reshape(-1).cpu()


def class_positions(examples: Examples, what: str, classes: int) -> Tensor:
    """Return the labels as positions 0 … C−1 [N], int64.

    Raises:
        ConfigError: As in `classes_of`.
        DataError: One is no such position.
    """
    given = classes_of(examples, what)
    positions = given.long()
    wrong = (positions != given) | (positions < 0) | (positions >= classes)
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        raise DataError(
            f"labels of {what} must be positions 0 … {classes - 1}, got {given[place].item()} for example "
            f"{examples.ids.tolist()[place]!r}. Encode the labels, or leave that example out."
        )
    return positions


def same_class(examples: Examples, queries: Examples) -> Tensor:
    """Return +1 where query and training example have the same label, else −1 [Q, N], float64."""
    own, asked = classes_of(examples, "training examples"), classes_of(queries, "queries")
    return torch.where(asked[:, None] == own[None], 1.0, -1.0).double()


def blocks(count: int) -> Iterator[slice]:
    """Yield row ranges whose products with all rows fit in memory."""
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
