"""Label noise on purpose: change a stated number of labels, and say which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from whence.errors import ConfigError

__all__ = ["Noise", "other_class_noise", "pair_noise", "uniform_noise"]

Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise:
    """Labels after the change and the rows that differ from before.

    Args:
        labels: [N] int64, the noisy labels.
        changed: [N] bool, True where the label is another one than before.
    """

    labels: Array
    changed: Array


def uniform_noise(labels: Array | Sequence[int], rate: float, classes: int, seed: int) -> Noise:
    r"""Redraw labels uniformly over *all* classes, the old one included.

    Exactly ``round(rate * N)`` rows are redrawn; a share $1/C$ of them keeps its label by chance, so
    about $\text{rate}\,(1 - 1/C)\,N$ rows change. ``Noise.changed`` marks those that did.

    Args:
        labels: [N] int, positions 0 … classes-1.
        rate: share of rows in [0, 1] if a float; a number of rows if an int.
        classes: C, the number of classes, at least 2.
        seed: the same seed gives the same noise.

    Returns:
        The noisy labels and the rows that changed.

    Raises:
        ConfigError: rate, classes or labels out of range.

    Cost: O(N).

    Example:
        >>> noise = uniform_noise([0, 1, 2, 0, 1, 2], 1.0, 3, seed=0)
        >>> bool((noise.changed == (noise.labels != [0, 1, 2, 0, 1, 2])).all())
        True
    """
    before, generator = _checked(labels, classes, seed), np.random.default_rng(seed)
    rows = generator.choice(len(before), size=_count(rate, len(before)), replace=False)
    after = before.copy()
    after[rows] = generator.integers(classes, size=len(rows))
    return Noise(labels=after, changed=after != before)


def other_class_noise(labels: Array | Sequence[int], rate: float, classes: int, seed: int) -> Noise:
    """Move labels to one of the *other* classes, each equally likely.

    Args:
        labels: [N] int, positions 0 … classes-1.
        rate: share of rows in [0, 1] if a float; a number of rows if an int.
        classes: C, the number of classes, at least 2.
        seed: the same seed gives the same noise.

    Returns:
        The noisy labels; exactly ``round(rate * N)`` rows changed.

    Raises:
        ConfigError: rate, classes or labels out of range.

    Cost: O(N).

    Example:
        >>> int(other_class_noise([0, 1] * 50, 0.1, 2, seed=0).changed.sum())
        10
        >>> int(other_class_noise([0, 1] * 50, 7, 2, seed=0).changed.sum())
        7
    """
    before, generator = _checked(labels, classes, seed), np.random.default_rng(seed)
    rows = generator.choice(len(before), size=_count(rate, len(before)), replace=False)
    after = before.copy()
    after[rows] = (before[rows] + generator.integers(1, classes, size=len(rows))) % classes
    return Noise(labels=after, changed=after != before)


def pair_noise(labels: Array | Sequence[int], rate: float, source: int, target: int, seed: int) -> Noise:
    """Move labels of one class to another one.

    Args:
        labels: [N] int.
        rate: share *of the rows of class source* in [0, 1] if a float; a number of rows if an int.
        source: class that loses rows.
        target: class that they are given to.
        seed: the same seed gives the same noise.

    Returns:
        The noisy labels; exactly ``round(rate * N_source)`` rows changed, all from source to target.

    Raises:
        ConfigError: rate out of range, source equal to target, or no row of class source.

    Cost: O(N).

    Example:
        >>> pair_noise([0, 0, 1, 1], 1.0, 0, 1, seed=0).labels.tolist()
        [1, 1, 1, 1]
    """
    if source == target or min(source, target) < 0:
        raise ConfigError(
            f"source and target must be two different classes, got {source} and {target}. Name two classes."
        )
    before = _checked(labels, max(source, target, 1) + 1, seed, bounded=False)
    candidates = np.flatnonzero(before == source)
    if len(candidates) == 0:
        raise ConfigError(f"source must be a class that occurs in labels, got {source}. Choose a class with rows.")
    generator = np.random.default_rng(seed)
    rows = generator.choice(candidates, size=_count(rate, len(candidates)), replace=False)
    after = before.copy()
    after[rows] = target
    return Noise(labels=after, changed=after != before)


def _checked(labels: Array | Sequence[int], classes: int, seed: int, *, bounded: bool = True) -> Array:
    """Labels as [N] int64, or the error that names what is wrong with them."""
    values = np.asarray(labels)
    if classes < 2:
        raise ConfigError(f"classes must be at least 2, got {classes}. Noise needs another class to move to.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"seed must be an integer from 0 on, got {seed!r}. Pass seed=0.")
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ConfigError(
            f"labels must be one-dimensional integers, got {values.dtype} of shape {values.shape}. "
            "Pass LabelledData.labels."
        )
    if values.size and (values.min() < 0 or (bounded and values.max() >= classes)):
        raise ConfigError(
            f"labels must lie in 0 … {classes - 1}, got {values.min()} … {values.max()}. "
            "Pass positions in the class names, and the number of classes."
        )
    return values.astype(np.int64)


def _count(rate: float, rows: int) -> int:
    """The number of rows that a share (float) or a number (int) means."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise ConfigError(f"rate must be a share (float) or a number of rows (int), got {rate!r}. Pass 0.1.")
    if isinstance(rate, (int, np.integer)):
        if not 0 <= rate <= rows:
            raise ConfigError(f"rate must be at most the {rows} rows there are, got {rate}. Pass a share like 0.1.")
        return int(rate)
    if not 0.0 <= rate <= 1.0:
        raise ConfigError(f"rate must lie between 0 and 1, got {rate}. Pass a share like 0.1, or an int to count.")
    return int(np.floor(float(rate) * rows + 0.5))
