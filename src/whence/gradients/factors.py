r"""The factored value type: gradients of many examples that are never multiplied out unless that is cheaper.

Every attributed layer has its parameters arranged as one matrix [O, I], bias column included. The gradient of
one example is a sum over positions Σ_t δ_t a_tᵀ; a factor keeps δ and a.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Factor", "Gradients", "Lookup", "Matrix", "Outer", "concatenate", "fold", "lookup", "squared_norm"]


@dataclass(frozen=True, eq=False)
class Outer:
    """Gradients Σ_t d_t a_tᵀ [O, I] of B examples (linear maps and convolutions)."""

    d: Tensor  # [B, T, O]
    a: Tensor  # [B, T, I]

    def __len__(self) -> int:
        """Return the number of examples B."""
        return len(self.d)

    @property
    def numbers(self) -> int:
        """How many numbers one example takes."""
        return self.d.shape[1] * (self.d.shape[2] + self.a.shape[2])

    def matrix(self) -> Tensor:
        """Return the gradients multiplied out [B, O, I]."""
        return self.d.transpose(1, 2) @ self.a

    def compact(self) -> Outer | Matrix:
        """Return the gradients multiplied out where that takes fewer numbers."""
        return self if self.numbers <= self.d.shape[2] * self.a.shape[2] else Matrix(self.matrix())

    def summed(self) -> Tensor:
        """Return the sum over examples [O, I]; the gradients are not multiplied out."""
        return self.d.flatten(0, 1).T @ self.a.flatten(0, 1)

    def rows(self, index: slice | Tensor) -> Outer:
        """Return the factor of some of the examples."""
        return Outer(self.d[index], self.a[index])

    def to(self, dtype: torch.dtype) -> Outer:
        """Return the factor in another floating-point type."""
        return Outer(self.d.to(dtype), self.a.to(dtype))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store, by field."""
        return {"d": self.d, "a": self.a}

    @property
    def active(self) -> Tensor:
        """Which positions take part in the loss: d is not exactly zero [B, T]. Padding does not."""
        return (self.d != 0).any(2)


@dataclass(frozen=True, eq=False)
class Lookup:
    """Gradients Σ_t d_t e_{index_t}ᵀ [O, V] of B examples (embeddings); no index twice in one example."""

    d: Tensor  # [B, T, O]
    index: Tensor  # [B, T]
    width: int  # V

    @property
    def active(self) -> Tensor:
        """Which positions take part in the loss [B, T]; of an index that occurs twice, the first."""
        return (self.d != 0).any(2)

    def __len__(self) -> int:
        """Return the number of examples B."""
        return len(self.d)

    @property
    def numbers(self) -> int:
        """How many numbers one example takes."""
        return self.d.shape[1] * (self.d.shape[2] + 1)

    def matrix(self) -> Tensor:
        """Return the gradients multiplied out [B, O, V]."""
        batch, _, out = self.d.shape
        full = self.d.new_zeros(batch, self.width, out)
        full.scatter_add_(1, self.index[:, :, None].expand_as(self.d), self.d)
        return full.transpose(1, 2)

    def summed(self) -> Tensor:
        """Return the sum over examples [O, V]; the gradients are not multiplied out."""
        table = self.d.new_zeros(self.width, self.d.shape[2])
        return table.index_add_(0, self.index.reshape(-1), self.d.flatten(0, 1)).T

    def rows(self, index: slice | Tensor) -> Lookup:
        """Return the factor of some of the examples."""
        return Lookup(self.d[index], self.index[index], self.width)

    def to(self, dtype: torch.dtype) -> Lookup:
        """Return the factor in another floating-point type."""
        return Lookup(self.d.to(dtype), self.index, self.width)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store, by field."""
        return {"d": self.d, "index": self.index}


@dataclass(frozen=True, eq=False)
class Matrix:
    """Gradients [O, I] of B examples, multiplied out."""

    m: Tensor  # [B, O, I]

    def __len__(self) -> int:
        """Return the number of examples B."""
        return len(self.m)

    @property
    def numbers(self) -> int:
        """How many numbers one example takes."""
        return self.m.shape[1] * self.m.shape[2]

    def matrix(self) -> Tensor:
        """Return the gradients [B, O, I]."""
        return self.m

    def summed(self) -> Tensor:
        """Return the sum over examples [O, I]."""
        return self.m.sum(0)

    def rows(self, index: slice | Tensor) -> Matrix:
        """Return the factor of some of the examples."""
        return Matrix(self.m[index])

    def to(self, dtype: torch.dtype) -> Matrix:
        """Return the factor in another floating-point type."""
        return Matrix(self.m.to(dtype))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store, by field."""
        return {"m": self.m}


Factor = Outer | Lookup | Matrix


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of B examples, one factor a layer."""

    layers: Mapping[str, Factor]

    def __len__(self) -> int:
        """Return the number of examples B."""
        return len(next(iter(self.layers.values())))

    @property
    def numbers(self) -> int:
        """How many numbers one example takes."""
        return sum(factor.numbers for factor in self.layers.values())

    @property
    def compact_numbers(self) -> int:
        """How many numbers one example takes after `compact`."""
        outers = [f for f in self.layers.values() if isinstance(f, Outer)]
        saved = sum(max(0, f.numbers - f.d.shape[2] * f.a.shape[2]) for f in outers)
        return self.numbers - saved

    def inner(self, other: Gradients) -> Tensor:
        """Return all inner products with ``other`` [B, B'].

        Cost a layer and pair: T·T'·(O + I) from the factors or O·I multiplied out, whichever is less.
        """
        total: Tensor | None = None
        for name, factor in self.layers.items():
            part = _inner(factor, other.layers[name])
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def squared_norms(self) -> Tensor:
        """Return every example's squared norm [B], from the factors where there are no positions."""
        return torch.stack([squared_norm(factor) for factor in self.layers.values()]).sum(0)

    def compact(self) -> Gradients:
        """Return the gradients with layers multiplied out where that takes fewer numbers than their positions."""
        return Gradients({n: f.compact() if isinstance(f, Outer) else f for n, f in self.layers.items()})

    def dense(self) -> Tensor:
        """Return the gradients multiplied out and concatenated over layers [B, P]."""
        return torch.cat([factor.matrix().reshape(len(factor), -1) for factor in self.layers.values()], 1)

    def rows(self, index: slice | Tensor) -> Gradients:
        """Return the gradients of some of the examples."""
        return Gradients({name: factor.rows(index) for name, factor in self.layers.items()})

    def to(self, dtype: torch.dtype) -> Gradients:
        """Return the gradients in another floating-point type."""
        return Gradients({name: factor.to(dtype) for name, factor in self.layers.items()})


def concatenate(parts: Iterable[Gradients]) -> Gradients:
    """Return the gradients of all examples of ``parts``, in order; ragged positions are padded with zeros."""
    listed = list(parts)
    layers: dict[str, Factor] = {}
    for name, first in listed[0].layers.items():
        fields = [part.layers[name].tensors() for part in listed]
        joined = {key: _stack([field[key] for field in fields]) for key in fields[0]}
        layers[name] = Lookup(joined["d"], joined["index"], first.width) if isinstance(first, Lookup) else (
            type(first)(*joined.values())
        )
    return Gradients(layers)


def lookup(d: Tensor, index: Tensor, width: int) -> Lookup:
    """Return Σ_t d_t e_{index_t}ᵀ with what stands at equal indices of one example summed at the first of them."""
    if index.shape[1] == 1:
        return Lookup(d, index, width)
    same = index[:, :, None] == index[:, None, :]  # [B, T, T]
    first = ~same.tril(-1).any(2)
    return Lookup((same.to(d.dtype) @ d) * first[:, :, None], index, width)


def fold(factor: Factor, batch: int) -> Factor:
    """Return a factor of B·k rows as one of B examples, k consecutive rows each: a model that folds its batch.

    What cannot be folded is returned as it is.
    """
    rows = len(factor)
    if rows == batch or rows == 0 or rows % batch:
        return factor
    if isinstance(factor, Matrix):
        return Matrix(factor.m.reshape(batch, rows // batch, *factor.m.shape[1:]).sum(1))
    if isinstance(factor, Lookup):
        return lookup(factor.d.reshape(batch, -1, factor.d.shape[2]), factor.index.reshape(batch, -1), factor.width)
    return Outer(factor.d.reshape(batch, -1, factor.d.shape[2]), factor.a.reshape(batch, -1, factor.a.shape[2]))


def squared_norm(factor: Factor) -> Tensor:
    """Return ‖g‖² of one layer [B]."""
    if isinstance(factor, Outer) and factor.d.shape[1] == 1:
        return factor.d[:, 0].square().sum(1) * factor.a[:, 0].square().sum(1)
    if isinstance(factor, Lookup):
        return factor.d.square().sum((1, 2))
    return factor.matrix().square().sum((1, 2))


def _stack(tensors: list[Tensor]) -> Tensor:
    """Concatenate over examples, padding dimension 1 with zeros where it differs."""
    longest = max(tensor.shape[1] for tensor in tensors)
    padded = [
        tensor if tensor.shape[1] == longest
        else torch.cat([tensor, tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])], 1)
        for tensor in tensors
    ]
    return torch.cat(padded)


def _inner(x: Factor, y: Factor) -> Tensor:
    """Return the inner products of two factors of one layer [Bx, By]."""
    if isinstance(x, Lookup) and isinstance(y, Lookup):
        return _inner_lookups(x, y)
    if isinstance(x, Matrix) and isinstance(y, Lookup):
        return _inner_matrix_lookup(x.m, y)
    if isinstance(x, Lookup) and isinstance(y, Matrix):
        return _inner_matrix_lookup(y.m, x).T
    if isinstance(x, Outer) and isinstance(y, Outer) and _prefer_pairs(x, y):
        return _inner_outers(x, y)
    if isinstance(y, Outer) and y.d.shape[1] == 1:
        return _inner_matrix_outer(x.matrix(), y)
    if isinstance(x, Outer) and x.d.shape[1] == 1:
        return _inner_matrix_outer(y.matrix(), x).T
    return x.matrix().reshape(len(x), -1) @ y.matrix().reshape(len(y), -1).T


def _prefer_pairs(x: Outer, y: Outer) -> bool:
    """Whether products of factors cost less than multiplying both gradients out."""
    out, inp = x.d.shape[2], x.a.shape[2]
    pairs = len(x) * x.d.shape[1] * len(y) * y.d.shape[1] * (out + inp)
    dense = (len(x) * x.d.shape[1] + len(y) * y.d.shape[1] + len(x) * len(y)) * out * inp
    return pairs <= dense


def _inner_outers(x: Outer, y: Outer) -> Tensor:
    """Return Σ_{t,s} (d_t·d_s)(a_t·a_s) from two thin products."""
    bx, tx, by, ty = len(x), x.d.shape[1], len(y), y.d.shape[1]
    products = x.d.reshape(bx * tx, -1) @ y.d.reshape(by * ty, -1).T  # [Bx·Tx, By·Ty]
    products *= x.a.reshape(bx * tx, -1) @ y.a.reshape(by * ty, -1).T
    if ty > 1:
        products = products.reshape(bx * tx, by, ty).sum(2)
    return products if tx == 1 else products.reshape(bx, tx, by).sum(1)


def _inner_matrix_outer(m: Tensor, y: Outer) -> Tensor:
    """Return dᵀ M a for matrices M [Bx, O, I] and factors without positions."""
    bx, out, inp = m.shape
    images = (m.reshape(bx * out, inp) @ y.a[:, 0].T).reshape(bx, out, len(y))  # [Bx, O, By]
    return torch.einsum("xoy,yo->xy", images, y.d[:, 0])


def _inner_matrix_lookup(m: Tensor, y: Lookup) -> Tensor:
    """Return Σ_t d_t·M[:, index_t] for matrices M [Bx, O, V], reading only the columns that y uses."""
    return torch.stack([(one.T[y.index] * y.d).sum((1, 2)) for one in m])


def _inner_lookups(x: Lookup, y: Lookup) -> Tensor:
    """Return Σ_{t,s} [index_t = index_s] d_t·d_s by way of the indices that x uses."""
    used, place = torch.unique(x.index, return_inverse=True)  # [U], [Bx, Tx]
    table = x.d.new_zeros(len(x), len(used), x.d.shape[2])  # [Bx, U, O]
    table.scatter_add_(1, place[:, :, None].expand_as(x.d), x.d)
    found = torch.searchsorted(used, y.index.reshape(-1)).clamp(max=len(used) - 1)  # [By·Ty]
    hits = (used[found] == y.index.reshape(-1)).nonzero().squeeze(1)
    owner = hits // y.index.shape[1]
    products = torch.einsum("xho,ho->xh", table[:, found[hits]], y.d.reshape(-1, y.d.shape[2])[hits])
    return products.new_zeros(len(x), len(y)).index_add_(1, owner, products)
