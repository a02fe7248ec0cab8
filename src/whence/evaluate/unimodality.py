"""Is a signal's distribution one hill or several? Hartigan's dip test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.errors import ConfigError
from whence.scores import Signal

__all__ = ["Unimodality", "unimodality"]

_LEVEL = 0.05
_FEWEST = 4
# quantiles of √N·dip of N uniform values at these tail probabilities, from 4,000 to 20,000 simulations each
_TAILS = (0.99, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
_QUANTILES = {
    10: (0.193, 0.246, 0.278, 0.309, 0.362, 0.414, 0.442, 0.477, 0.503, 0.530, 0.572),
    30: (0.217, 0.260, 0.293, 0.337, 0.391, 0.449, 0.486, 0.532, 0.566, 0.594, 0.654),
    100: (0.229, 0.274, 0.309, 0.355, 0.412, 0.471, 0.510, 0.560, 0.591, 0.616, 0.679),
    300: (0.234, 0.284, 0.320, 0.364, 0.422, 0.486, 0.526, 0.575, 0.609, 0.632, 0.690),
    1000: (0.246, 0.288, 0.322, 0.371, 0.429, 0.491, 0.531, 0.581, 0.620, 0.649, 0.710),
}


@dataclass(frozen=True, kw_only=True)
class Unimodality:
    """How far a distribution is from having a single hill.

    Args:
        dip: Largest distance between the values' distribution function and the nearest one with a single hill; from
            1/(2N) for a single hill up to ¼ for two far points.
        p_value: Chance of a dip as large where the truth is uniform, the flattest single hill; .001 stands for less.
        count: Values N.
        logarithm: Whether their logarithms were tested.
        name: The signal's name.
    """

    dip: float
    p_value: float
    count: int
    logarithm: bool
    name: str

    @property
    def unimodal(self) -> bool:
        """Whether a single hill is compatible with the values (p > .05)."""
        return self.p_value > _LEVEL

    def __str__(self) -> str:
        """Return it in one sentence."""
        hills = "one hill is enough" if self.unimodal else "there is more than one hill"
        of = f"log {self.name}" if self.logarithm else self.name
        return f"{of}: dip {self.dip:.3g}, p {self.p_value:.2g} ({self.count:,} values): {hills}"


def dip(values: Any) -> float:
    """Return Hartigan's dip statistic of numbers [N], at least 1/(2N).

    Reference: Hartigan & Hartigan (1985); the corners of hulls are interpolated instead of kept as change points.
    """
    points = _apart(np.sort(np.asarray(values, dtype=np.float64)))
    above = np.arange(1.0, len(points) + 1)
    below = above - 1
    low, high, largest = 0, len(points) - 1, 1.0
    while high > low:
        part = slice(low, high + 1)
        x, under, over = points[part], below[part], above[part]
        convex, concave = _hull(x, under, 1), _hull(x, over, -1)
        minorant = np.interp(x, x[convex], under[convex])
        majorant = np.interp(x, x[concave], over[concave])
        gap = majorant - minorant
        corner_g, corner_l = convex[gap[convex].argmax()], concave[gap[concave].argmax()]
        if max(gap[corner_g], gap[corner_l]) <= largest:
            break
        if gap[corner_g] > gap[corner_l]:
            left, right = corner_g, concave[np.searchsorted(concave, corner_g)]
        else:
            left, right = convex[np.searchsorted(convex, corner_l, side="right") - 1], corner_l
        largest = max(largest, (over - minorant)[: left + 1].max(), (majorant - under)[right:].max())
        if left == 0 and right == len(x) - 1:
            break
        low, high = low + left, low + right
    return float(largest / (2 * above[-1]))


def _apart(points: np.ndarray) -> np.ndarray:
    """Return sorted points with ties spread over a thousandth of the smallest gap between different ones."""
    gaps = np.diff(points, prepend=-np.inf)
    if not (gaps[1:] > 0).any():
        return np.arange(float(len(points)))
    first = np.maximum.accumulate(np.where(gaps > 0, np.arange(len(points)), 0))
    place = np.arange(len(points)) - first
    spread: np.ndarray = points + place * (gaps[1:][gaps[1:] > 0].min() / (1000 * (1 + place.max())))
    return spread


def _hull(x: np.ndarray, y: np.ndarray, sign: int) -> np.ndarray:
    """Return the corners of the greatest convex minorant (sign 1) or least concave majorant (−1) of points."""
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if sign * ((y[b] - y[a]) * (x[i] - x[b]) - (y[i] - y[b]) * (x[b] - x[a])) < 0:
                break
            corners.pop()
        corners.append(i)
    return np.array(corners)


def unimodality(signal: Signal, *, logarithm: bool = True) -> Unimodality:
    r"""Test whether a signal, such as self-influence, has a single hill: Hartigan's dip test.

    The dip is min_G sup_x |F_N(x) − G(x)| over distribution functions G with one mode (convex before it, concave after
    it). Wrong labels that are remembered make a second hill of large self-influence.

    Args:
        signal: Values [N], at least 4.
        logarithm: Test the logarithms, which is how self-influence is spread over decades; values must then be
            positive. Without them, the long tail of a skewed hill is still one hill.

    Returns:
        The dip with its p-value against a uniform distribution, interpolated in a table of simulated quantiles of
        √N·dip for N from 10 to 1,000, beyond which they hardly change. Ties are spread over a thousandth of the
        smallest gap.

    Raises:
        ConfigError: There are fewer than 4 values, one is not finite, or a logarithm is asked of one that is not
            positive.

    Cost: a sort, and a few passes in Python.
    Reference: Hartigan & Hartigan (1985); Kim et al. (2023) call self-influence bimodal by eye.

    Example:
        >>> values = np.concatenate([np.linspace(1, 2, 40), np.linspace(50, 90, 40)])
        >>> signal = Signal(values=values, ids=np.arange(80), name="self-influence", unit=None)
        >>> unimodality(signal).unimodal
        False
    """
    values = np.asarray(signal.values, dtype=np.float64)
    if len(values) < _FEWEST or not np.isfinite(values).all():
        raise ConfigError(f"signal must hold at least {_FEWEST} finite numbers, got {len(values)} or one that is not.")
    if logarithm and values.min() <= 0:
        raise ConfigError(
            f"signal must be positive for its logarithm, got {values.min():g}. Use logarithm=False, or drop those rows."
        )
    found = dip(np.log(values) if logarithm else values)
    return Unimodality(
        dip=found, p_value=_p_value(found, len(values)), count=len(values), logarithm=logarithm, name=signal.name
    )


def _p_value(found: float, count: int) -> float:
    """Return the chance of a dip as large from uniform values."""
    at = 1 / np.sqrt(np.clip(count, min(_QUANTILES), max(_QUANTILES)))
    sizes = sorted(_QUANTILES, reverse=True)
    table = np.array([_QUANTILES[size] for size in sizes])
    quantiles = [np.interp(at, 1 / np.sqrt(sizes), column) for column in table.T]
    return float(np.interp(found * np.sqrt(count), quantiles, _TAILS, left=1.0))
