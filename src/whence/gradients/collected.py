"""Gradients of several pieces as one, in memory that is used again and again."""

from __future__ import annotations

from torch import Tensor

from whence.gradients.factors import Factor, Gradients, Matrix, concatenate

__all__ = ["Collected"]


class Collected:
    """Joins the gradients of consecutive examples; what it returns is valid until more are added.

    Gradients that are multiplied out are copied into one buffer a layer, made once: pieces and their concatenation side
    by side would take twice the memory, and freeing them leaves holes.

    Args:
        rows: The largest number of examples.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.count = 0
        self._buffers: dict[str, Tensor] = {}
        self._pieces: dict[str, list[Factor]] = {}

    def add(self, gradients: Gradients) -> None:
        """Append the gradients of some examples."""
        for name, factor in gradients.layers.items():
            kept = self._kept(name, factor)
            self._pieces.setdefault(name, []).append(kept)
        self.count += len(gradients)

    def joined(self) -> Gradients:
        """Return all that was added, as one, and begin anew."""
        layers: dict[str, Factor] = {}
        for name, pieces in self._pieces.items():
            if all(isinstance(piece, Matrix) for piece in pieces):
                layers[name] = Matrix(self._buffers[name][: self.count])
            else:
                layers[name] = concatenate(Gradients({name: piece}) for piece in pieces).layers[name]
        self._pieces, self.count = {}, 0
        return Gradients(layers)

    def _kept(self, name: str, factor: Factor) -> Factor:
        """Return the factor, copied into the layer's buffer if it is multiplied out."""
        if not isinstance(factor, Matrix):
            return factor
        if name not in self._buffers:
            self._buffers[name] = factor.m.new_empty(self.rows, *factor.m.shape[1:])
        place = self._buffers[name][self.count : self.count + len(factor)]
        return Matrix(place.copy_(factor.m))
