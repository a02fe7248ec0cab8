"""Leave-one-out and leave-group-out: what really happens when examples are removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from whence.data import as_examples
from whence.errors import ConfigError
from whence.evaluate.retraining import Retraining
from whence.scores import Scores

__all__ = ["leave_group_out", "leave_one_out"]


def leave_one_out(retraining: Retraining, train: Any, queries: Any, ids: Sequence[Any] | np.ndarray) -> Scores:
    r"""Return the actual change of every query's measurement when one training example is left out.

    m_q(trained without i) − m_q(trained with everything), both with the same recipe, seed and start; the mean over
    seeds. A warm start (``Retraining(start=model)``) trains both on from the same model, so that the difference
    holds the removal and not the noise of another initialisation.

    A cold start of a network holds mostly noise: both trainings share initialisation, batches and dropout, but what one
    example changes in the first steps grows along the way, and ends as another of many models that fit as well. Then
    one seed tells little of one example; the standard error over seeds says how little. Warm starts, groups of
    examples, or an "lbfgs" recipe, whose minimum does not depend on the way, do better.

    Args:
        retraining: How to train, with which seeds, where to keep results.
        train: Training examples: anything that `as_examples` takes.
        queries: Queries, likewise; None for a measurement of the model alone.
        ids: K ids of training examples.

    Returns:
        Changes [Q, K] in the measurement's unit, positive = the removal raises it; with the standard error of the
        mean where there are several seeds.

    Raises:
        DataError: An id is not among the training examples.

    Cost: (K + 1)·S trainings, less those in the cache.
    Reference: Koh & Liang (2017), §4.1.

    Example:
        >>> import torch, whence as wh
        >>> recipe = wh.Recipe(build=lambda: torch.nn.Linear(3, 2), epochs=1)
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> leave_one_out(Retraining(recipe=recipe), train, train, [3, 7]).values.shape
        torch.Size([20, 2])
    """
    examples = as_examples(train)
    wanted = examples.ids[examples.rows_of(ids)]
    return _changes(retraining, examples, queries, [[id_] for id_ in wanted.tolist()], wanted)


def leave_group_out(
    retraining: Retraining, train: Any, queries: Any, groups: Mapping[str, Iterable[Any]]
) -> Scores:
    """Return the actual change of every query's measurement when a whole group is left out.

    Args:
        retraining: As in `leave_one_out`.
        train: Training examples.
        queries: Queries, or None.
        groups: Name → ids of training examples.

    Returns:
        Changes [Q, number of groups], the names as ids; compare with `InfluenceAttribution.group_scores`.

    Cost: one training a group and seed, and one more a seed.
    """
    names = np.array(list(groups), dtype=str)
    return _changes(retraining, as_examples(train), queries, [list(ids) for ids in groups.values()], names)


def _changes(retraining: Retraining, train: Any, queries: Any, removed: list[Any], names: np.ndarray) -> Scores:
    """Return the changes against training on everything."""
    if not removed or any(len(ids) == 0 for ids in removed):
        raise ConfigError("ids must name at least one example to leave out, got none.")
    measured = retraining.measure(train, queries, [[], *removed])  # [K + 1, S, Q]
    changes = measured[1:] - measured[:1]
    seeds = changes.shape[1]
    error: Tensor | None = None
    if seeds > 1:
        error = changes.std(1).T / seeds**0.5
    query_ids = np.array(["model"]) if queries is None else as_examples(queries).ids
    return Scores(
        values=changes.mean(1).T, query_ids=query_ids, ids=names, unit=retraining.unit, standard_error=error
    )
