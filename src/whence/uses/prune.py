"""Pruning: the examples that a model needs least, by their self-influence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from whence.errors import ConfigError, DataError
from whence.scores import Signal

__all__ = ["prune", "prune_iteratively"]

Array: TypeAlias = "np.ndarray[Any, Any]"


def prune(signal: Signal, share: float, *, balanced: bool = False, labels: Any = None) -> Array:
    """Return the ids of the examples to drop, lowest self-influence first.

    An example that the model would predict as well without having seen it teaches it little.

    Args:
        signal: Self-influence [N]: memorised and wrong rows have large values and stay, so find those first.
        share: Share of the examples to drop, in [0, 1).
        balanced: Drop the same share of every class, rounded to the nearest row.
        labels: Classes in the signal's order [N], for ``balanced``.

    Returns:
        Ids, in ascending order of the signal (equal values in the signal's order).

    Raises:
        ConfigError: The share is out of range, or labels are missing.
        DataError: Labels are not one a row, or a value is not finite.

    Cost: one sort.

    Reference: Kim, Kim & Yang (2023), §5.3 (global); Sorscher et al. (2022) for balance between classes.

    Example:
        >>> signal = Signal(values=np.array([3.0, 1.0, 2.0, 0.0]), ids=np.arange(4), name="self-influence", unit=None)
        >>> prune(signal, 0.5).tolist(), prune(signal, 0.5, balanced=True, labels=[0, 1, 0, 1]).tolist()
        ([3, 1], [3, 2])
    """
    values = np.asarray(signal.values, dtype=np.float64)
    if not 0 <= share < 1:
        raise ConfigError(f"share must lie in [0, 1), got {share}.")
    if not np.isfinite(values).all():
        raise DataError("signal must be finite, got NaN or infinity. Drop or fill those examples.")
    order = np.argsort(values, kind="stable")
    if not balanced:
        return signal.ids[order[: round(share * len(values))]]
    if labels is None:
        raise ConfigError("labels must be given to prune classes alike, got None. Pass labels= in the signal's order.")
    given = np.asarray(labels)
    if given.shape != values.shape:
        raise DataError(f"labels must be one a row ({len(values)}), got shape {given.shape}.")
    dropped = np.zeros(len(values), dtype=bool)
    for c in np.unique(given):
        own = order[given[order] == c]
        dropped[own[: round(share * len(own))]] = True
    return signal.ids[order[dropped[order]]]


def prune_iteratively(
    signal_of: Callable[[Array], Signal], ids: Any, share: float, *, rounds: int = 5, balanced: bool = False,
    labels: Any = None,
) -> Array:  # fmt: skip
    """Return the ids to drop, dropped in several rounds with the signal computed anew on what is left.

    Args:
        signal_of: Ids that are left -> their `Signal`: trains and attributes again.
        ids: Ids of all examples [N].
        share: Share of them to drop in all, in [0, 1); at least one stays.
        rounds: Every one drops the same share of what is left.
        balanced: As in `prune`.
        labels: Classes in the order of ``ids`` [N], for ``balanced``.

    Returns:
        Ids in the order in which they were dropped.

    Raises:
        ConfigError: ``rounds`` is below 1, or as in `prune`.
        DataError: The signal is of other ids than those that are left.

    Cost: as many calls as rounds.

    Example:
        >>> def halves(left): return Signal(values=left * 1.0, ids=left, name="size", unit=None)
        >>> prune_iteratively(halves, np.arange(8), 0.75, rounds=2).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}.")
    if not 0 <= share < 1:
        raise ConfigError(f"share must lie in [0, 1), got {share}.")
    left, count = np.asarray(ids), len(np.asarray(ids))
    if labels is not None and len(labels) != count:
        raise DataError(f"labels must be one an id ({count}), got {len(labels)}.")
    class_of = None if labels is None else dict(zip(left.tolist(), np.asarray(labels).tolist(), strict=True))
    dropped: list[Array] = []
    for done in range(1, rounds + 1):
        signal = signal_of(left)
        if sorted(signal.ids.tolist()) != sorted(left.tolist()):
            raise DataError("signal_of must return a signal of the ids that it is given, got others.")
        target = max(1, round(count * (1 - share) ** (done / rounds)))
        own = None if class_of is None else [class_of[id_] for id_ in signal.ids.tolist()]
        gone = prune(signal, 1 - target / len(left), balanced=balanced, labels=own)
        dropped.append(gone)
        left = left[~np.isin(left, gone)]
    return np.concatenate(dropped)
