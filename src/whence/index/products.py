"""Inner products of query features with blocks of stored features, and bounds on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from whence.errors import ConfigError
from whence.index.block import Block, Layout, Part
from whence.index.queries import Columns, Dense, QueryFeatures, QueryPart, Terms

__all__ = ["Begun", "Products"]

_BUFFER_NUMBERS = 2**20
_LARGEST_PIECE = 4096
_SLACK = 1e-4


@dataclass(frozen=True, eq=False)
class Begun:
    """What `Products.begin` computed for a block.

    Args:
        lefts: Of every layer, products with the smaller side.
        bounds: Of every layer, bounds [B, Q] of the absolute products.
    """

    lefts: dict[str, Tensor]
    bounds: dict[str, Tensor]

    @cached_property
    def total(self) -> Tensor:
        """Bounds [B, Q] over all layers, with room for rounding."""
        return torch.stack(list(self.bounds.values())).sum(0) * (1 + _SLACK)


@dataclass(frozen=True, eq=False)
class Products:
    """The queries' side of every layer, laid out for products with blocks.

    Args:
        kernels: One a layer.
        queries: Q.
        width: Numbers that one row and all queries need in a buffer.
        dtype: What is computed in: float64 where float64 is stored, float32 otherwise.
    """

    kernels: dict[str, _Kernel]
    queries: int
    width: int
    dtype: torch.dtype

    @staticmethod
    def of(features: QueryFeatures, layouts: Sequence[Layout], dtype: torch.dtype) -> Products:
        """Prepare the queries for blocks of these layouts.

        Raises:
            ConfigError: The layers or their widths differ.
        """
        names = [layout.name for layout in layouts]
        if sorted(names) != sorted(features.parts):
            raise ConfigError(f"query features must have the layers {names}, got {list(features.parts)}.")
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        kernels = {one.name: _kernel(features.parts[one.name], one, wide) for one in layouts}
        converted = 0 if wide == dtype else sum(layout.out + layout.inp for layout in layouts)
        width = converted + sum(kernel.width for kernel in kernels.values()) + len(features)
        return Products(kernels, len(features), width, wide)

    def rows_a_piece(self, block: Block) -> int:
        """Return how many rows of a block keep the buffers small."""
        positions = max((len(p.fields.get("d", ())) for p in block.parts.values()), default=0)
        longest = max(1, -(-positions // max(1, len(block))))
        return max(1, min(_LARGEST_PIECE, _BUFFER_NUMBERS // self.width) // longest)

    def inner(self, block: Block) -> Tensor:
        """Return all inner products [B, Q], a piece of the block at a time."""
        found = torch.zeros(len(block), self.queries, dtype=self.dtype)
        for start, piece in block.pieces(self.rows_a_piece(block)):
            total: Tensor = found[start : start + len(piece)]
            for name, kernel in self.kernels.items():
                total += _scaled(kernel.inner(piece.parts[name], self.dtype), piece.parts[name])
        return found

    @property
    def bounded(self) -> bool:
        """Whether `begin` is available and worth its price: one query or a few, no positions."""
        return self.queries <= 4 and all(isinstance(kernel, (_Outer, _Flat)) for kernel in self.kernels.values())

    def begin(self, block: Block) -> Begun:
        """Return upper bounds of the absolute products, and what was computed for them.

        For d aᵀ and Σ_r d_r a_rᵀ: |Σ_r x_r (a_r·a)| ≤ ‖Σ_r x_r a_r‖ ‖a‖, x_r = d_r·d, from the smaller side d alone.
        """
        lefts: dict[str, list[Tensor]] = {name: [] for name in self.kernels}
        bounds: dict[str, list[Tensor]] = {name: [] for name in self.kernels}
        for _, piece in block.pieces(self.rows_a_piece(block)):
            for name, kernel in self.kernels.items():
                part = piece.parts[name]
                assert isinstance(kernel, (_Outer, _Flat)) and part.norm is not None
                x = kernel.left(part, self.dtype)
                lefts[name].append(x)
                bounds[name].append(_scaled(kernel.lengths(x) * part.norm.to(self.dtype)[:, None], part))
        return Begun(*({name: torch.cat(found) for name, found in side.items()} for side in (lefts, bounds)))

    def finish(self, block: Block, begun: Begun, rows: Tensor) -> Tensor:
        """Return the inner products of some rows [len(rows), Q], going on from `begin`."""
        found = torch.zeros(len(rows), self.queries, dtype=self.dtype)
        for own, some in zip(found.split(_LARGEST_PIECE), rows.split(_LARGEST_PIECE), strict=True):
            for name in self.kernels:
                own += self._layer(block, begun, name, some, whole=len(rows) == len(block))
        return found

    def finish_reaching(
        self, block: Block, begun: Begun, rows: Tensor, cuts: Tensor, sign: float
    ) -> tuple[Tensor, Tensor]:
        """Return those of some rows that may still reach a cut for any query, and their inner products times ``sign``.

        The layers with the shortest rows come first; a row is dropped as soon as the bounds of the layers that are
        left cannot lift it over a cut.

        Args:
            block: The block.
            begun: What `begin` returned for it.
            rows: Row positions, at most 4,096 at a time are efficient.
            cuts: [Q].
            sign: 1 for the largest, -1 for the smallest products.
        """
        order = sorted(self.kernels, key=lambda name: block.parts[name].fields[self._side(name)].shape[1])
        room = begun.total[rows] * _SLACK
        found: dict[str, Tensor] = {}
        for number, name in enumerate(order):
            found[name] = self._layer(block, begun, name, rows, whole=False) * sign
            if number + 1 == len(order):
                break
            reach = room + sum(found.values()) + sum(begun.bounds[later][rows] for later in order[number + 1 :])
            alive = (reach >= cuts).any(1)
            if not bool(alive.all()):
                rows, room = rows[alive], room[alive]
                found = {name: product[alive] for name, product in found.items()}
        total = torch.zeros(len(rows), self.queries, dtype=self.dtype)
        for name in self.kernels:  # in the order of `finish`, for the same rounding
            total += found[name]
        return rows, total

    def _side(self, name: str) -> str:
        """Return which field of a layer `begin` leaves for later."""
        kernel = self.kernels[name]
        assert isinstance(kernel, (_Outer, _Flat))
        return kernel.right_side

    def _layer(self, block: Block, begun: Begun, name: str, rows: Tensor, *, whole: bool) -> Tensor:
        """Return one layer's products of some rows; ``whole`` blocks come in pieces without gaps."""
        kernel, part = self.kernels[name], block.parts[name]
        assert isinstance(kernel, (_Outer, _Flat))
        side = part.fields[kernel.right_side]
        at: slice | Tensor = slice(int(rows[0]), int(rows[-1]) + 1) if whole else rows
        right = side[at] if whole else side.index_select(0, rows)
        product = kernel.right(begun.lefts[name][at], right.to(self.dtype))
        return product if part.scale is None else product * part.scale[at].to(self.dtype)[:, None]


@dataclass(frozen=True, eq=False)
class _Flat:
    """Values [B, D] with matrices [Q, D]."""

    matrix: Tensor
    right_side = "values"

    @property
    def width(self) -> int:
        """Numbers a row in buffers."""
        return len(self.matrix)

    def inner(self, part: Part, dtype: torch.dtype) -> Tensor:
        """Return products [B, Q]."""
        return part.fields["values"].to(dtype) @ self.matrix.T

    def left(self, part: Part, dtype: torch.dtype) -> Tensor:
        """Return nothing: there is no smaller side."""
        return torch.empty(len(part), 0, dtype=dtype)

    def lengths(self, left: Tensor) -> Tensor:
        """Return ‖f_q‖ [B, Q]."""
        lengths: Tensor = self.matrix.norm(dim=1)
        return lengths.expand(len(left), -1)

    def right(self, left: Tensor, values: Tensor) -> Tensor:
        """Return products [B, Q]."""
        return values @ self.matrix.T


@dataclass(frozen=True, eq=False)
class _Outer:
    """Products d aᵀ with R terms a query; positions are summed where there are any."""

    d: Tensor  # [Q·R, O], contiguous: a product with few columns is fastest in this layout
    a: Tensor  # [Q·R, I]
    queries: int
    right_side = "a"

    @property
    def width(self) -> int:
        """Numbers a row in buffers."""
        return 2 * len(self.d)

    @cached_property
    def roots(self) -> Tensor:
        """S [Q, R, R] with S Sᵀ = A Aᵀ for the terms A [Q, R, I], so that ‖Aᵀx‖ = ‖Sᵀx‖."""
        terms = self.a.reshape(self.queries, -1, self.a.shape[1]).double()
        triangle: Tensor = torch.linalg.qr(terms.transpose(1, 2), mode="r")[1]
        return triangle.transpose(1, 2).to(self.a.dtype)

    def inner(self, part: Part, dtype: torch.dtype) -> Tensor:
        """Return products [B, Q]."""
        return _per_example(self.right(self.left(part, dtype), part.fields["a"].to(dtype)), part)

    def left(self, part: Part, dtype: torch.dtype) -> Tensor:
        """Return x_r = d_r·d [P, Q·R]."""
        return part.fields["d"].to(dtype) @ self.d.T

    def lengths(self, left: Tensor) -> Tensor:
        """Return ‖Σ_r x_r a_r‖ [B, Q]."""
        x = left.reshape(len(left), self.queries, -1).transpose(0, 1)  # [Q, B, R]
        lengths: Tensor = torch.linalg.vector_norm(x @ self.roots, dim=2)
        return lengths.T

    def right(self, left: Tensor, a: Tensor) -> Tensor:
        """Return Σ_r x_r (a_r·a) [P, Q]."""
        products: Tensor = (left * (a @ self.a.T)).unflatten(1, (self.queries, -1))
        return products.sum(2)


@dataclass(frozen=True, eq=False)
class _OuterDense:
    """Products d aᵀ with one matrix a query."""

    m: Tensor  # [Q·O, I]
    queries: int

    @property
    def width(self) -> int:
        """Numbers a row in buffers."""
        return len(self.m)

    def inner(self, part: Part, dtype: torch.dtype) -> Tensor:
        """Return products [B, Q]."""
        images = (part.fields["a"].to(dtype) @ self.m.T).reshape(-1, self.queries, len(self.m) // self.queries)
        return _per_example(torch.einsum("pqo,po->pq", images, part.fields["d"].to(dtype)), part)


@dataclass(frozen=True, eq=False)
class _Table:
    """Looked-up rows with the queries' columns of the indices they use; the last row is zero."""

    table: Tensor  # [U + 1, Q, O]
    used: Tensor  # [U], ascending

    @property
    def width(self) -> int:
        """Numbers a row in buffers."""
        return self.table.shape[1] * self.table.shape[2]

    def inner(self, part: Part, dtype: torch.dtype) -> Tensor:
        """Return products [B, Q]."""
        index = part.fields["index"]
        place = torch.searchsorted(self.used, index).clamp(max=max(0, len(self.used) - 1))
        missing = self.used[place] != index if len(self.used) else torch.ones_like(index, dtype=torch.bool)
        place = torch.where(missing, len(self.used), place)
        return _per_example(torch.einsum("pqo,po->pq", self.table[place], part.fields["d"].to(dtype)), part)


_Kernel = _Flat | _Outer | _OuterDense | _Table


def _kernel(part: QueryPart, layout: Layout, dtype: torch.dtype) -> _Kernel:
    """Lay one layer's queries out for products with a layout."""
    if layout.kind == "lookup":
        return _table(part, layout, dtype)
    if isinstance(part, Columns) or layout.kind == "flat":
        part = part.dense()
    if isinstance(part, Dense):
        m = part.m.to("cpu", dtype)
        if m.shape[1] * m.shape[2] != layout.out * layout.inp:
            raise ConfigError(f"query features of layer {layout.name!r} must have {layout.out * layout.inp} numbers, "
                              f"got {m.shape[1] * m.shape[2]}.")  # fmt: skip
        if layout.kind == "flat":
            return _Flat(m.reshape(len(m), -1).contiguous())
        return _OuterDense(m.reshape(-1, layout.inp).contiguous(), len(m))
    assert isinstance(part, Terms)
    d, a = part.d.to("cpu", dtype), part.a.to("cpu", dtype)
    if (d.shape[2], a.shape[2]) != (layout.out, layout.inp):
        raise ConfigError(f"query features of layer {layout.name!r} must have widths {layout.out} and {layout.inp}, "
                          f"got {d.shape[2]} and {a.shape[2]}.")  # fmt: skip
    if d.shape[1] * (layout.out + layout.inp) > layout.out * layout.inp:
        return _OuterDense(part.dense().m.to("cpu", dtype).reshape(-1, layout.inp).contiguous(), len(d))
    return _Outer(d.flatten(0, 1).contiguous(), a.flatten(0, 1).contiguous(), len(d))


def _table(part: QueryPart, layout: Layout, dtype: torch.dtype) -> _Table:
    """Return the columns that the queries use."""
    if isinstance(part, Columns):
        d = part.d.to("cpu", dtype)
        used, place = torch.unique(part.index.cpu(), return_inverse=True)  # [U], [Q, T]
        table = d.new_zeros(len(d), len(used) + 1, d.shape[2])
        table.scatter_add_(1, place[:, :, None].expand_as(d), d)
        return _Table(table.transpose(0, 1).contiguous(), used)
    m = part.dense().m.to("cpu", dtype)
    if m.shape[1:] != (layout.out, layout.inp):
        raise ConfigError(
            f"query features of layer {layout.name!r} must be [Q, {layout.out}, {layout.inp}], got {tuple(m.shape)}."
        )
    zero = m.new_zeros(1, len(m), layout.out)
    return _Table(torch.cat([m.permute(2, 0, 1), zero]), torch.arange(layout.inp))


def _per_example(values: Tensor, part: Part) -> Tensor:
    """Sum over positions [P, Q] → [B, Q]."""
    counts = part.fields.get("counts")
    if counts is None:
        return values
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return values.new_zeros(len(counts), values.shape[1]).index_add_(0, owner, values)


def _scaled(values: Tensor, part: Part) -> Tensor:
    """Undo the division by powers of two."""
    return values if part.scale is None else values * part.scale.to(values.dtype)[:, None]
