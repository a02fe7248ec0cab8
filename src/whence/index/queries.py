"""Features of queries, ready to be multiplied with an index: preconditioned, so that a product is a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from whence.errors import ConfigError, NumericalError
from whence.index.block import FLAT

__all__ = ["Columns", "Dense", "QueryFeatures", "QueryPart", "Terms"]


@dataclass(frozen=True, eq=False)
class Terms:
    """Σ_r d_r a_rᵀ for every query."""

    d: Tensor  # [Q, R, O]
    a: Tensor  # [Q, R, I]

    def __len__(self) -> int:
        """Return the number of queries Q."""
        return len(self.d)

    def dense(self) -> Dense:
        """Return the features multiplied out."""
        return Dense(self.d.transpose(1, 2) @ self.a)

    def rows(self, index: slice) -> Terms:
        """Return the features of some queries."""
        return Terms(self.d[index], self.a[index])

    def mean(self) -> Terms | Dense:
        """Return the mean over queries as one query, multiplied out where that takes fewer numbers."""
        (count, terms, out), inp = self.d.shape, self.a.shape[2]
        if count * terms * (out + inp) > out * inp:
            return Dense((self.d.flatten(0, 1).T @ self.a.flatten(0, 1))[None] / count)
        return Terms(self.d.reshape(1, -1, out) / count, self.a.reshape(1, -1, inp))


@dataclass(frozen=True, eq=False)
class Dense:
    """One matrix a query."""

    m: Tensor  # [Q, O, I]

    def __len__(self) -> int:
        """Return the number of queries Q."""
        return len(self.m)

    def dense(self) -> Dense:
        """Return the features themselves."""
        return self

    def rows(self, index: slice) -> Dense:
        """Return the features of some queries."""
        return Dense(self.m[index])

    def mean(self) -> Dense:
        """Return the mean over queries as one query."""
        return Dense(self.m.mean(0, keepdim=True))


@dataclass(frozen=True, eq=False)
class Columns:
    """Σ_t d_t e_{index_t}ᵀ for every query (embeddings)."""

    d: Tensor  # [Q, T, O]
    index: Tensor  # [Q, T]
    width: int

    def __len__(self) -> int:
        """Return the number of queries Q."""
        return len(self.d)

    def dense(self) -> Dense:
        """Return the features multiplied out."""
        table = self.d.new_zeros(len(self.d), self.width, self.d.shape[2])
        table.scatter_add_(1, self.index[:, :, None].expand_as(self.d), self.d)
        return Dense(table.transpose(1, 2))

    def rows(self, index: slice) -> Columns:
        """Return the features of some queries."""
        return Columns(self.d[index], self.index[index], self.width)

    def mean(self) -> Columns:
        """Return the mean over queries as one query; an index may repeat."""
        return Columns(
            self.d.reshape(1, -1, self.d.shape[2]) / len(self.d), self.index.reshape(1, -1), self.width
        )


QueryPart = Terms | Dense | Columns


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryFeatures:
    r"""Preconditioned features of Q queries: score[q, i] = (⟨f_q, f_i⟩ + offset_q) / N.

    Args:
        parts: f_q, one part a layer: H⁻¹∇m_q for influence.
        ids: Ids of the queries [Q].
        offsets: ∇m_qᵀ H⁻¹ λθ̂ [Q], the weight decay's part of a score, the same for every example.
        count: N, the training examples of the fit; None where scores are plain products.
        unit: Unit of the scores, or None for methods that can only rank.
        weights: Fingerprint of the weights that they belong to; None where there is no model.
        loss: Which loss was trained; None where there is no model.

    Raises:
        ConfigError: There is no query.
        NumericalError: A feature is not finite.
    """

    parts: Mapping[str, QueryPart]
    ids: np.ndarray
    offsets: Tensor
    count: int | None = None
    unit: str | None = None
    weights: str | None = None
    loss: str | None = None

    def __post_init__(self) -> None:
        if len(self.ids) == 0:
            raise ConfigError("query features must be of at least one query, got none. Pass a query.")
        for name, part in self.parts.items():
            tensor = part.m if isinstance(part, Dense) else part.d
            if not torch.isfinite(tensor).all():
                raise NumericalError(f"query features of layer {name!r} must be finite, got NaN or infinity.")

    def __len__(self) -> int:
        """Return the number of queries Q."""
        return len(self.ids)

    @staticmethod
    def flat(values: Tensor, ids: np.ndarray | None = None, *, unit: str | None = None) -> QueryFeatures:
        """Return features of queries [Q, D] for an index of flat features; a score is the plain inner product."""
        if values.ndim != 2 or not values.is_floating_point():
            raise ConfigError(f"query features must be numbers [Q, D], got {tuple(values.shape)} of {values.dtype}.")
        names = np.arange(len(values)) if ids is None else ids
        parts = {FLAT: Dense(values[:, None, :])}
        return QueryFeatures(parts=parts, ids=names, offsets=values.new_zeros(len(values)), unit=unit)

    def rows(self, index: slice) -> QueryFeatures:
        """Return the features of some queries."""
        parts = {name: part.rows(index) for name, part in self.parts.items()}
        return self._with(parts, self.ids[index], self.offsets[index])

    def mean(self) -> QueryFeatures:
        """Return one query, "mean", whose scores are the mean scores of these queries."""
        parts = {name: part.mean() for name, part in self.parts.items()}
        return self._with(parts, np.array(["mean"]), self.offsets.mean(0, keepdim=True))

    def _with(self, parts: Mapping[str, QueryPart], ids: np.ndarray, offsets: Tensor) -> QueryFeatures:
        return replace(self, parts=parts, ids=ids, offsets=offsets)
