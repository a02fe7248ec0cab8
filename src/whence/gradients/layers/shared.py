"""A layer: parameters as one matrix, and every place that uses them; the gradient is the sum over all uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.gradients.factors import Factor, Lookup, Matrix, Outer, fold, lookup
from whence.gradients.layers.base import Form, Piece, Slot, Source
from whence.gradients.layers.lookup import BagSource, EmbeddingSource

__all__ = ["Layer", "layout"]


@dataclass(frozen=True, eq=False)
class Layer:
    """Parameters laid out as one matrix [O, I], with the factored gradient of an example.

    Args:
        name: Name of the module, or of the parameter where a module has several matrices.
        slot: The layout.
        uses: The hooked modules that use the parameters, with their own layouts; none for parameters whose gradients
            are taken by ``torch.func``.
    """

    name: str
    slot: Slot
    uses: tuple[tuple[Source, Slot], ...]

    def __repr__(self) -> str:
        """Return name and shape."""
        out, inp = self.shape
        return f"Layer({self.name!r}, {out} × {inp}{'' if self.uses else ', by torch.func'})"

    @property
    def shape(self) -> tuple[int, int]:
        """Return (O, I)."""
        shapes = [piece.shape for piece in self.slot.pieces]
        return shapes[0][0], sum(width for _, width in shapes)

    @property
    def table(self) -> bool:
        """Whether the gradients of an example are a `Lookup`: every use is an embedding."""
        return bool(self.uses) and all(isinstance(source, (BagSource, EmbeddingSource)) for source, _ in self.uses)

    def weights(self) -> Tensor:
        """Return the parameters as one matrix [O, I]."""
        return self.join({piece.name: piece.parameter for piece in self.slot.pieces}).detach()

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return a matrix [O, I] as tensors shaped like the parameters, by full name."""
        return self.slot.split(matrix)

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return tensors shaped like the parameters, by full name, as one matrix [O, I]."""
        return self.slot.join({piece.name: named[piece.name] for piece in self.slot.pieces})

    def combine(self, parts: Sequence[tuple[Slot, Factor]], batch: int) -> Factor:
        """Return the sum of the factors of all uses and calls, in this layer's layout.

        Linear maps and convolutions stay factored, their positions side by side; so do embeddings. Where uses of
        different kinds meet (an embedding that is also the output layer) the sum is multiplied out.
        """
        folded = [(slot, fold(factor, batch)) for slot, factor in parts]
        outers = [(slot, factor) for slot, factor in folded if isinstance(factor, Outer)]
        if len(outers) == len(folded):
            placed = [self._placed(slot, factor) for slot, factor in outers]
            if all(factor is not None for factor in placed):
                return _side_by_side([factor for factor in placed if factor is not None])
        lookups = [factor for _, factor in folded if isinstance(factor, Lookup)]
        if len(lookups) == len(folded) and self._is(folded[0][0]):
            first = lookups[0]
            if len(lookups) == 1:
                return first
            return lookup(torch.cat([f.d for f in lookups], 1), torch.cat([f.index for f in lookups], 1), first.width)
        if all(self._is(slot) for slot, _ in folded):
            matrices = [factor.matrix() for _, factor in folded]
        else:
            matrices = [self.slot.join(slot.split(factor.matrix())) for slot, factor in folded]
        return Matrix(matrices[0] if len(matrices) == 1 else torch.stack(matrices).sum(0))

    def _is(self, slot: Slot) -> bool:
        """Whether a slot has this layer's own layout."""
        return _signature(slot) == _signature(self.slot)

    def _placed(self, slot: Slot, factor: Outer) -> Outer | None:
        """Return a factor with its columns where they belong in this layer, or None if its rows are others."""
        if self._is(slot):
            return factor
        starts: dict[tuple[str, Form], int] = {}
        start = 0
        for piece in self.slot.pieces:
            starts[piece.name, piece.form] = start
            start += piece.shape[1]
        a = factor.a.new_zeros(*factor.a.shape[:2], start)
        own = 0
        for piece in slot.pieces:
            width = piece.shape[1]
            if (piece.name, piece.form) not in starts:
                return None
            there = starts[piece.name, piece.form]
            a[..., there : there + width] = factor.a[..., own : own + width]
            own += width
        return Outer(factor.d, a)


def layout(name: str, uses: Sequence[tuple[Source, Slot]]) -> Layer:
    """Return the layer of parameters that one or several slots use.

    One slot keeps its layout. Several share one in which every parameter stands once, as rows where any of them has it
    so; if the numbers of rows then differ, everything stands in one row.
    """
    if len(uses) == 1:
        return Layer(name, Slot(name, uses[0][1].pieces), tuple(uses))
    pieces: dict[str, Piece] = {}
    for _, slot in uses:
        for piece in slot.pieces:
            if piece.name not in pieces or (piece.form == "rows" and pieces[piece.name].form == "swapped"):
                pieces[piece.name] = piece
    ordered = sorted(pieces.values(), key=lambda piece: piece.form == "column")  # biases last
    if len({piece.shape[0] for piece in ordered}) > 1:
        ordered = [piece.in_form("row") for piece in ordered]
    return Layer(name, Slot(name, tuple(ordered)), tuple(uses))


def _signature(slot: Slot) -> list[tuple[str, Form]]:
    return [(piece.name, piece.form) for piece in slot.pieces]


def _side_by_side(factors: list[Outer]) -> Outer:
    """Return the factor that has the positions of all."""
    if len(factors) == 1:
        return factors[0]
    return Outer(torch.cat([f.d for f in factors], 1), torch.cat([f.a for f in factors], 1))
