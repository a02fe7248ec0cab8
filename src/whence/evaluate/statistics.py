"""Correlations and bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Interval", "bootstrap", "correlation", "percentiles"]

_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95 % interval."""

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
