"""Random subsets of the training examples, and models trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.data import as_examples, id_keys, uniform
from whence.errors import ConfigError
from whence.evaluate.retraining import Retraining

__all__ = ["SubsetOutputs", "Subsets", "sample_subsets", "train_subsets"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subsets:
    """M subsets of N training examples.

    Args:
        kept: Whether example i is in subset m [M, N].
        ids: [N].
    """

    kept: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        """Return the number of subsets M."""
        return len(self.kept)


@dataclass(frozen=True, kw_only=True, eq=False)
class SubsetOutputs:
    """What models trained on subsets say of the queries.

    Args:
        values: Measurements [M, S, Q] for M subsets and S seeds, float64.
        query_ids: [Q].
        unit: Unit of the measurement, or None.
    """

    values: Tensor
    query_ids: np.ndarray
    unit: str | None


def sample_subsets(train: Any, count: int = 100, *, fraction: float = 0.5, seed: int = 0) -> Subsets:
    """Draw subsets of the same size.

    Which examples are in subset m is a function of (seed, m, ids) alone: those whose random number, keyed by the
    example's id, is among the smallest. The order of the rows does not matter.

    Args:
        train: Training examples: anything that `as_examples` takes.
        count: M.
        fraction: Share of the examples in each subset, in (0, 1).
        seed: Seed of the draw.

    Raises:
        ConfigError: The count is below 1, or a subset would be empty or everything.

    Example:
        >>> sample_subsets(torch.zeros(10, 2), 3).kept.sum(1)
        array([5, 5, 5])
    """
    ids = as_examples(train).ids
    size = round(fraction * len(ids))
    if count < 1 or not 0 < size < len(ids):
        raise ConfigError(
            f"count must be at least 1 and fraction leave 1 to {len(ids) - 1} examples, got {count} and {fraction}."
        )
    keys = id_keys(ids)
    kept = np.zeros((count, len(ids)), dtype=bool)
    for number in range(count):
        kept[number, np.argsort(uniform(keys, seed, number), kind="stable")[:size]] = True
    return Subsets(kept=kept, ids=ids)


def train_subsets(retraining: Retraining, train: Any, queries: Any, subsets: Subsets) -> SubsetOutputs:
    """Train a model on every subset with every seed and measure the queries.

    Args:
        retraining: How to train, with which seeds, where to keep results.
        train: Training examples; those that a subset does not keep get weight 0.
        queries: Queries, or None for a measurement of the model alone.
        subsets: M subsets of these examples.

    Cost: M·S trainings, less those in the cache.
    """
    examples = as_examples(train)
    order = examples.rows_of(subsets.ids)
    if len(order) != len(examples):
        raise ConfigError(f"subsets must be drawn from these {len(examples)} examples, got {len(order)} ids.")
    removed = [subsets.ids[~row] for row in subsets.kept]
    values = retraining.measure(examples, queries, removed)
    query_ids = np.array(["model"]) if queries is None else as_examples(queries).ids
    return SubsetOutputs(values=values, query_ids=query_ids, unit=retraining.unit)


def removed_sums(scores: Tensor, ids: np.ndarray, subsets: Subsets) -> np.ndarray:
    """Return the predicted change of every query for every subset [Q, M]: the sum of the removed examples' scores."""
    position = {id_: column for column, id_ in enumerate(ids.tolist())}
    missing = [id_ for id_ in subsets.ids.tolist() if id_ not in position]
    if missing:
        raise ConfigError(f"scores must cover every example of the subsets, got none for {missing[0]!r}.")
    columns = torch.tensor([position[id_] for id_ in subsets.ids.tolist()])
    removed = torch.from_numpy(~subsets.kept).to(torch.float64)
    product: np.ndarray = (scores.detach().cpu().double()[:, columns] @ removed.T).numpy()
    return product
