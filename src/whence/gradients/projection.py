"""Counter-based random vectors and projections: a function of names and indices, never of a generator's state."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from whence.data import id_keys, uniform

__all__ = ["random_normal", "random_projection"]


def random_normal(rows: int, columns: int, *, name: str, seed: int) -> Tensor:
    """Return independent standard normal numbers [rows, columns] in float64, each a function of its indices.

    Neither device nor batch size nor the other arguments' sizes can change a number.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        name: What the numbers are for, such as a layer's name.
        seed: Seed.

    Example:
        >>> wide = random_normal(4, 9, name="head", seed=0)
        >>> bool((wide[:2, :3] == random_normal(2, 3, name="head", seed=0)).all())
        True
    """
    base = id_keys(np.array([name]))
    counters = np.arange(rows, dtype=np.uint64)[:, None] * np.uint64(2**32) + np.arange(columns, dtype=np.uint64)
    with np.errstate(over="ignore"):
        draws = uniform((counters + base).reshape(-1), seed).reshape(rows, columns)
    return torch.from_numpy(ndtri(np.clip(draws, 2.0**-54, 1 - 2.0**-53)))


def random_projection(width: int, rank: int, *, name: str, seed: int) -> Tensor:
    """Return √(width/rank) Q [width, rank] with orthonormal random columns Q, in float64.

    Inner products of projected vectors have the true ones as their mean, and equal them at full rank.

    Cost: width·rank² operations, on the CPU whatever the device, so that an index can be read anywhere.

    Example:
        >>> p = random_projection(5, 5, name="head", seed=0)
        >>> bool(torch.allclose(p @ p.T, torch.eye(5, dtype=torch.float64)))
        True
    """
    orthonormal: Tensor = torch.linalg.qr(random_normal(width, rank, name=name, seed=seed))[0]
    scale: float = (width / rank) ** 0.5
    return orthonormal * scale
