"""Correlations and bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats

__all__ = ["Interval", "bootstrap", "chance", "correlation", "over_draws", "over_seeds", "percentiles", "unit_rows"]

_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95 % interval; the ends are NaN where there was one training only."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it as one would print it."""
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation along the last axis; 0 where one side is constant."""
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    product = (x * y).sum(-1)
    found: np.ndarray = np.divide(product, scale, out=np.zeros_like(scale), where=scale > 0)
    return found


def chance(x: np.ndarray, y: np.ndarray) -> float:
    r"""Return how large the mean correlation of rows x [Q, K] and y [Q, K] is by chance: 1.96 standard deviations.

    Under a random order of the columns of x, the same for all rows, the mean is 0 with variance ‖XᵀY / Q‖²_F / (K − 1),
    for rows centred and of length 1: rows that resemble one another do not count as independent.

    Reference: Hoeffding (1951), the variance of Σ_k G[π(k), k] for a G with rows and columns of sum 0.
    """
    one, other = unit_rows(x), unit_rows(y)
    variance = ((one @ one.T) * (other @ other.T)).sum() / len(x) ** 2 / (x.shape[1] - 1)
    return float(min(1.0, 1.96 * np.sqrt(variance)))  # few columns: a correlation is at most 1


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Return rows centred and of length 1; zeros where a row is constant."""
    centred = values - values.mean(-1, keepdims=True)
    length = np.sqrt((centred**2).sum(-1, keepdims=True))
    found: np.ndarray = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return found


def bootstrap(values: np.ndarray, *, resamples: int, seed: int) -> Interval:
    """Return the mean of values [Q] with a percentile interval over resampled entries."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(values), (resamples, len(values)))
    return percentiles(float(values.mean()), values[drawn].mean(1))


def percentiles(value: float, resampled: np.ndarray) -> Interval:
    """Return an estimate with the percentile interval of its resampled values."""
    tail = 50 * (1 - _LEVEL)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def over_seeds(values: np.ndarray) -> Interval:
    """Return the mean of one value a seed [S] with Student's interval; NaN ends for one seed."""
    return over_draws(values, values[None])


def over_draws(values: np.ndarray, draws: np.ndarray) -> Interval:
    r"""Return the mean of values [S], one a seed, which hold the mean of random draws [C, S], with an interval.

    Seeds and draws both vary: the variance is s²_seeds / S + s²_draws / C, with the second term from the draws' means
    over seeds; Student's t with Welch and Satterthwaite's degrees of freedom. A side with one entry counts nothing.
    """
    sides = [values, *([draws.mean(1)] if len(draws) > 1 else [])]
    varied = [side for side in sides if len(side) > 1]
    mean = float(values.mean())
    if not varied:
        return Interval(mean, float("nan"), float("nan"))
    variances = np.array([side.var(ddof=1) / len(side) for side in varied])
    total = variances.sum()
    if total == 0:
        return Interval(mean, mean, mean)
    freedom = total**2 / (variances**2 / [len(side) - 1 for side in varied]).sum()
    half = float(scipy.stats.t.ppf((1 + _LEVEL) / 2, freedom) * np.sqrt(total))
    return Interval(mean, mean - half, mean + half)
