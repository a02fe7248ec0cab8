"""Metrics of a ranking with ties: what they are on average when tied examples stand in random order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Ranked"]


@dataclass(frozen=True, eq=False)
class Ranked:
    """Examples in blocks of equal values, the largest value first.

    Args:
        hits: Examples of every block that are sought [B], or of R resamples [R, B].
        sizes: Examples of every block, likewise.
    """

    hits: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, sought: np.ndarray, counts: np.ndarray | None = None) -> Ranked:
        """Return the blocks of values [N] and a mask [N], each example taken ``counts`` [R, N] times (once)."""
        order = np.argsort(-values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order], prepend=np.inf) != 0)
        counts = np.ones(len(values), dtype=np.int64) if counts is None else counts
        taken = counts[..., order]
        return cls(
            np.add.reduceat(taken * sought[order], starts, axis=-1), np.add.reduceat(taken, starts, axis=-1)
        )  # fmt: skip

    def auc(self) -> np.ndarray:
        """Return P(sought above another) + P(tied) / 2; NaN where all or none are sought."""
        others = self.sizes - self.hits
        below = others.sum(-1, keepdims=True) - np.cumsum(others, -1)
        found, rest = self.hits.sum(-1), others.sum(-1)
        with np.errstate(invalid="ignore"):
            area: np.ndarray = (self.hits * (below + others / 2)).sum(-1) / (found * rest)
        return area

    def average_precision(self) -> np.ndarray:
        r"""Return the expected average precision; NaN where none is sought.

        A block of n examples with m hits, after N₀ examples with P₀ hits, adds
        (m/n) Σ_{j=1..n} (P₀ + 1 + (j − 1) (m − 1)/(n − 1)) / (N₀ + j), a difference of harmonic numbers.

        Reference: McSherry & Najork (2008).
        """
        n, m = self.sizes.astype(float), self.hits.astype(float)
        before = np.cumsum(self.sizes, -1) - self.sizes
        hits_before = np.cumsum(self.hits, -1) - self.hits
        rise = np.where(n > 1, (m - 1) / np.maximum(n - 1, 1), 0.0)
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, self.sizes.sum(-1).max() + 1))])
        spread = harmonic[before + self.sizes] - harmonic[before]
        inner = rise * n + (hits_before + 1 - rise * (before + 1)) * spread
        shares = np.divide(m, n, out=np.zeros_like(m), where=n > 0)
        with np.errstate(invalid="ignore"):
            precision: np.ndarray = (shares * inner).sum(-1) / m.sum(-1)
        return precision

    def found(self, counts: np.ndarray) -> np.ndarray:
        """Return how many of those sought are expected among the first ``counts`` [K] examples: [K] or [R, K]."""
        if self.sizes.ndim > 1:
            rows = zip(self.hits, self.sizes, strict=True)
            return np.stack([Ranked(hits, sizes).found(counts) for hits, sizes in rows])
        ends = np.concatenate([[0], np.cumsum(self.sizes)])
        hits: np.ndarray = np.interp(counts, ends, np.concatenate([[0], np.cumsum(self.hits)]))
        return hits
