"""Cleansing for a shifted test set: which training rows do harm where the model will be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from whence.data import as_examples
from whence.errors import ConfigError
from whence.scores import Signal
from whence.tasks import Recipe
from whence.uses.class_based import class_based

__all__ = ["Cleansing", "cleanse"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cleansing:
    """Which training rows to leave out.

    Args:
        harm: Minus the mean score over the validation set [N]: large = harmful.
        dropped: Ids of the rows to leave out, most harmful first.
    """

    harm: Signal
    dropped: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Ids of the rows that stay, in row order."""
        return self.harm.ids[~np.isin(self.harm.ids, self.dropped)]

    def retrain(self, recipe: Recipe, train: Any, *, seed: int = 0) -> nn.Module:
        """Return a model trained without the dropped rows. Cost: a training."""
        return recipe.train(as_examples(train), exclude=self.dropped, seed=seed)


def cleanse(source: Any, validation: Any = None, *, share: float = 0.1) -> Cleansing:
    r"""Return the training rows that do most harm on a validation set from where the model will be used.

    harm_i = −(1/V) Σ_t s(t, i) over the validation rows t. A training set may be right and still hold rows that mislead
    on another distribution; a small labelled sample of that distribution tells which.

    Scores are of single rows. Those of a precise method (influence) agree on what is wrong with the model as a whole,
    such as its share of a class, and many rows at once overshoot it: choose the share on rows held back from the
    validation set.

    Args:
        source: `Scores` whose rows are the validation set, or an attribution or index: anything with ``.scores``.
        validation: Labelled validation rows, where ``source`` is not `Scores`.
        share: Share of the training rows to drop, those with the largest harm; only rows that do harm are dropped.

    Returns:
        A `Cleansing`; ``.retrain(recipe, train)`` trains without the rows. Judge it on rows that are neither in the
        training nor in the validation set.

    Raises:
        ConfigError: The share is not between 0 and 1.

    Cost: the scores of the validation rows, some at a time.

    Reference: Kobayashi et al. (2020), §5: cleansing with turn-over dropout; any method's scores serve.

    Example:
        >>> import torch, whence as wh
        >>> values = torch.tensor([[0.3, -0.2, -0.1, 0.2]])
        >>> scores = wh.Scores(values=values, query_ids=np.arange(1), ids=np.arange(4), unit="nats")
        >>> cleanse(scores, share=0.25).dropped
        array([1])
    """
    if not 0 < share < 1:
        raise ConfigError(f"share must lie between 0 and 1, got {share}.")
    harm = class_based(source, validation, reduction="mean")
    order = np.argsort(-harm.values, kind="stable")[: round(share * len(harm.values))]
    return Cleansing(harm=harm, dropped=harm.ids[order[harm.values[order] > 0]])
