r"""The factored value type: gradients of many examples that are never multiplied out unless that is cheaper.

Every attributed layer has its parameters arranged as one matrix [O, I], bias column included. The gradient of
one example is a sum over positions Σ_t δ_t a_tᵀ; a factor keeps δ and a.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Factor",
    "Gradients",
    "Lookup",
    "Matrix",
    "Outer",
    "by_columns",
    "concatenate",
    "fold",
    "lookup",
    "squared_norm",
]

_PIECE_NUMBERS = 2**20  # of products of factors
_DENSE_NUMBERS = 2**22  # of gradients multiplied out for a product
_FEW_POSITIONS = 16  # whose pairs are compared
_FEW_COLUMNS = 4  # times fewer columns used than there are
_STRIDED = 4
_NARROW = 4  # times as many numbers as the factors may be multiplied out where that saves time


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

    def expanded(self) -> Outer | Matrix:
        """Return the gradients multiplied out where that takes at most four times the numbers.

        For gradients that many others will be multiplied with: pairs of positions would cost more.
        """
        positions, size = self.d.shape[1], self.d.shape[2] * self.a.shape[2]
        return Matrix(self.matrix()) if positions > 1 and size <= _NARROW * self.numbers else self

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
        return _active(self.d)


@dataclass(frozen=True, eq=False)
class Lookup:
    """Gradients Σ_t d_t e_{index_t}ᵀ [O, V] of B examples (embeddings); no index twice in one example."""

    d: Tensor  # [B, T, O]
    index: Tensor  # [B, T]
    width: int  # V

    @property
    def active(self) -> Tensor:
        """Which positions take part in the loss [B, T]; of an index that occurs twice, the first."""
        return _active(self.d)

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

    def expanded(self) -> Lookup | Matrix:
        """Return the gradients multiplied out where that takes about as many numbers; see `Outer.expanded`."""
        return Matrix(self.matrix()) if 1 < self.width <= _NARROW * self.d.shape[1] else self

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

    def expanded(self) -> Gradients:
        """Return the gradients in the form that products with many others cost least in."""
        return Gradients({n: f if isinstance(f, Matrix) else f.expanded() for n, f in self.layers.items()})

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
    pieces: dict[str, list[Factor]] = {}
    for part in parts:
        for name, factor in part.layers.items():
            pieces.setdefault(name, []).append(factor)
    return Gradients({name: _concatenated(pieces.pop(name)) for name in list(pieces)})


def _concatenated(pieces: list[Factor]) -> Factor:
    """Return one layer's factors as one; multiplied out where some are."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if len({type(piece) for piece in pieces}) > 1:
        return Matrix(torch.cat([piece.matrix() for piece in pieces]))
    fields = [piece.tensors() for piece in pieces]
    joined = {key: _stack([field[key] for field in fields]) for key in fields[0]}
    if isinstance(first, Lookup):
        return Lookup(joined["d"], joined["index"], first.width)
    return type(first)(*joined.values())


def lookup(d: Tensor, index: Tensor, width: int) -> Lookup:
    """Return Σ_t d_t e_{index_t}ᵀ with what stands at equal indices of one example summed at the first of them."""
    batch, positions, out = d.shape
    if positions == 1:
        return Lookup(d, index, width)
    if positions <= _FEW_POSITIONS:
        same = index[:, :, None] == index[:, None, :]  # [B, T, T]
        first = ~same.tril(-1).any(2)
        return Lookup((same.to(d.dtype) @ d) * first[:, :, None], index, width)
    order = torch.argsort(index, dim=1, stable=True)  # equal indices side by side, the first of them first
    ordered = index.gather(1, order)
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    owner = (fresh.reshape(-1).cumsum(0) - 1).reshape(batch, positions)
    rows = torch.arange(batch, device=d.device)[:, None] * positions
    place = torch.empty_like(owner).scatter_(1, order, (rows + order)[fresh][owner])  # where each one's first stands
    summed = d.new_zeros(batch * positions, out).index_add_(0, place.reshape(-1), d.reshape(-1, out))
    return Lookup(summed.reshape(d.shape), index, width)


def by_columns(matrices: Tensor) -> Lookup | Matrix:
    """Return gradients [B, O, I] by the columns that any of them uses, if those are few; multiplied out otherwise."""
    used = (matrices != 0).any(1).any(0).nonzero()[:, 0]  # [U]
    if len(used) > matrices.shape[2] // _FEW_COLUMNS:
        return Matrix(matrices)
    used = used if len(used) else used.new_zeros(1)
    return Lookup(matrices[:, :, used].transpose(1, 2), used.expand(len(matrices), -1), matrices.shape[2])


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


def _active(d: Tensor) -> Tensor:
    """Return where d [B, T, O] is not exactly zero [B, T]; a sum of sizes is four times faster than `any`."""
    return d.abs().sum(2) != 0


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
    narrow = [one.width <= _NARROW * one.d.shape[1] for one in (x, y) if isinstance(one, Lookup)]
    if narrow and all(narrow):
        return _inner_matrices(x, y)
    if isinstance(x, Lookup) and isinstance(y, Lookup):
        return _inner_lookups(x, y)
    if isinstance(x, Matrix) and isinstance(y, Lookup):
        return _inner_matrix_lookup(x.m, y)
    if isinstance(x, Lookup) and isinstance(y, Matrix):
        return _inner_matrix_lookup(y.m, x).T
    if isinstance(x, Outer) and isinstance(y, Outer) and _prefer_pairs(x, y):
        return _in_pieces(_inner_outers, x, y, x.d.shape[1] * len(y) * y.d.shape[1])
    if isinstance(y, Outer) and y.d.shape[1] == 1:
        return _in_pieces(_inner_matrix_outer, x, y, y.d.shape[2] * len(y))
    if isinstance(x, Outer) and x.d.shape[1] == 1:
        return _in_pieces(_inner_matrix_outer, y, x, x.d.shape[2] * len(x)).T
    return _inner_matrices(x, y)


def _in_pieces(inner: Callable[[Any, Any], Tensor], x: Factor, y: Factor, numbers: int) -> Tensor:
    """Return inner products by a function that makes so many numbers for each row of x, some rows at a time."""
    step = max(1, _PIECE_NUMBERS // numbers)
    return torch.cat([inner(x.rows(slice(i, i + step)), y) for i in range(0, len(x), step)])


def _inner_matrices(x: Factor, y: Factor) -> Tensor:
    """Return inner products of gradients multiplied out, some of y's at a time."""
    step = max(1, _DENSE_NUMBERS // _size(y))
    own = x.matrix().flatten(1)
    return torch.cat([own @ y.rows(slice(i, i + step)).matrix().flatten(1).T for i in range(0, len(y), step)], 1)


def _size(factor: Factor) -> int:
    """Return the numbers O·I of one gradient multiplied out."""
    if isinstance(factor, Matrix):
        return factor.numbers
    return factor.d.shape[2] * (factor.width if isinstance(factor, Lookup) else factor.a.shape[2])


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


def _inner_matrix_outer(x: Factor, y: Outer) -> Tensor:
    """Return dᵀ M a for gradients multiplied out, M [Bx, O, I], and factors without positions."""
    m = x.matrix()
    bx, out, inp = m.shape
    images = (m.reshape(bx * out, inp) @ y.a[:, 0].T).reshape(bx, out, len(y))  # [Bx, O, By]
    return torch.einsum("xoy,yo->xy", images, y.d[:, 0])


def _inner_matrix_lookup(m: Tensor, y: Lookup) -> Tensor:
    """Return Σ_t d_t·M[:, index_t] for matrices M [Bx, O, V], reading only the columns that y uses."""
    many = y.index.numel() * _STRIDED > y.width  # reading columns of a table that lies by rows costs that much more
    tables = (one.T.contiguous() if many else one.T for one in m)
    return torch.stack([(table[y.index] * y.d).sum((1, 2)) for table in tables])


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
