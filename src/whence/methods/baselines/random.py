"""Random scores: the floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples, as_examples, uniform
from whence.errors import ConfigError
from whence.methods.baselines.base import BaselineAttribution

__all__ = ["RandomBaseline"]

_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class RandomBaseline:
    """Uniform random numbers in [−½, ½), a function of (seed, query id, example id) alone.

    Args:
        seed: The same seed gives the same scores, whatever the order of rows.

    Raises:
        ConfigError: The seed is negative.

    Example:
        >>> fitted = RandomBaseline(seed=1).fit(None, torch.zeros(4, 2))
        >>> fitted.scores(torch.zeros(3, 2)).values.shape
        torch.Size([3, 4])
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must be zero or positive, got {self.seed}.")

    def fit(self, task: object, train: object) -> BaselineAttribution:
        """Take the ids; the task plays no part. Cost: nothing."""
        examples = as_examples(train)

        def score(queries: Examples) -> Tensor:
            with np.errstate(over="ignore"):
                mixed = examples.keys[None] + queries.keys[:, None] * _MIX  # [Q, N]
            return torch.from_numpy(uniform(mixed, self.seed) - 0.5)

        return BaselineAttribution(
            name="random", examples=examples, score=score, suspect=lambda: uniform(examples.keys, self.seed, 1)
        )
