"""Sums of products over all examples, layer by layer: what K-FAC and EK-FAC take their eigenbases from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from whence.gradients import Factor, Gradients, Lookup, Matrix

__all__ = ["Covariance", "Gram", "covariances"]

_LARGEST_WHOLE = 2048  # parameters of a layer whose whole block is kept
_LARGEST_SIDE = 8192  # inputs whose covariance is kept; beyond, its diagonal
_THICK = 1024  # rows of one product: thinner ones spend their time on writing the result
_NARROW = 128


class Gram:
    """Σ xᵀx over rows x [W], in float64.

    Args:
        width: W.
        device: Where the sum lives.
        exact: Multiply in float64, or every example's many positions by themselves: the small eigenvalues of output
            gradients would otherwise show how rows fall into chunks.
    """

    def __init__(self, width: int, device: torch.device, *, exact: bool) -> None:
        self.exact = exact
        self._total = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._pending: list[Tensor] = []
        step = width if width < _NARROW else -(-width // 6)
        self._strips = [slice(start, min(start + step, width)) for start in range(0, width, step)]

    def add(self, x: Tensor) -> None:
        """Add the rows of x [B, W], or of all examples' positions [B, T, W]."""
        if self.exact and x.ndim == 3 and len(self._strips) == 1 and x.shape[1] >= x.shape[2]:
            self._total += (x.transpose(1, 2) @ x).sum(0, dtype=torch.float64)
            return
        self._pending.append(x.flatten(0, -2))
        if sum(map(len, self._pending)) >= _THICK:
            self._flush()

    @property
    def total(self) -> Tensor:
        """The symmetric sum [W, W]."""
        self._flush()
        whole = self._total + self._total.T
        for strip in self._strips:
            whole[strip, strip] *= 0.5  # multiplied out on both sides of the diagonal
        return whole

    def _flush(self) -> None:
        """Multiply out what is pending, only the blocks on and below the diagonal."""
        if not self._pending:
            return
        rows = self._pending[0] if len(self._pending) == 1 else torch.cat(self._pending)
        rows = rows.double() if self.exact else rows
        self._pending.clear()
        for strip in self._strips:
            self._total[strip, : strip.stop] += rows[:, strip].T @ rows[:, : strip.stop]


class Covariance:
    """Sums of one layer: Σ a aᵀ over positions (a diagonal for embeddings), Σ δ δᵀ, or Σ g gᵀ of small layers.

    Gradients that come multiplied out have no a and δ. A small layer's whole block is summed instead; of a large one
    Σ gᵀg and Σ g gᵀ, whose eigenvectors are those of A and G where the block is their Kronecker product.

    Args:
        first: A factor of the layer, for its shape and device.
    """

    def __init__(self, first: Factor) -> None:
        tensors = first.tensors()
        example = tensors["m"] if isinstance(first, Matrix) else tensors["d"]
        zeros = partial(torch.zeros, dtype=torch.float64, device=example.device)
        gram = partial(Gram, device=example.device)
        self.whole = isinstance(first, Matrix) and example[0].numel() <= _LARGEST_WHOLE
        self.positions = 0.0
        self.sequences = False
        self.inputs: Gram | Tensor
        if isinstance(first, Matrix):
            out, inp = example.shape[1:]
            self.outputs = gram(out * inp if self.whole else out, exact=True)
            self.inputs = zeros(inp) if self.whole or inp > _LARGEST_SIDE else gram(inp, exact=False)
        else:
            self.outputs = gram(example.shape[-1], exact=True)
            self.inputs = zeros(first.width) if isinstance(first, Lookup) else gram(first.a.shape[-1], exact=False)

    def update(self, factors: list[Factor]) -> None:
        """Add a chunk: the gradients of one or more backward passes, which share their inputs."""
        first = factors[0]
        if isinstance(first, Matrix):
            for factor in factors:
                self._update_matrix(factor.tensors()["m"])
            return
        for factor in factors:
            self.outputs.add(factor.tensors()["d"])
        if isinstance(first, Lookup):
            assert isinstance(self.inputs, Tensor)
            used = first.index[_taking_part(factors)]
            self.inputs.index_add_(0, used, torch.ones_like(used, dtype=self.inputs.dtype))
            self.positions += used.numel()
        else:
            self._update_inputs(first.a, factors)

    def mean_inputs(self) -> Tensor:
        """Return A [I, I] averaged over positions, or its diagonal [I]."""
        total = self.inputs.total if isinstance(self.inputs, Gram) else self.inputs
        return total / (self.positions or 1)

    def _update_inputs(self, a: Tensor, factors: list[Factor]) -> None:
        """Add inputs [B, T, I] of the positions that take part: padding is no part of a layer's inputs."""
        assert isinstance(self.inputs, Gram)
        taking_part = len(a)
        if a.shape[1] > 1:
            self.sequences = True
            present = _taking_part(factors)
            taking_part = int(present.sum())
            if taking_part < present.numel():  # into a new tensor, as it will be read row by row
                a = torch.mul(a, present[:, :, None], out=a.new_empty(a.shape))
        self.inputs.add(a)
        self.positions += taking_part

    def _update_matrix(self, m: Tensor) -> None:
        """Add gradients that are multiplied out [B, O, I]."""
        if self.whole:
            self.outputs.add(m.flatten(1))
            return
        self.outputs.add(m.transpose(1, 2))
        squares = m.double().square()
        self.positions += float(squares.sum())  # the trace: eigenvalues of both sides multiply to those of the block
        if isinstance(self.inputs, Tensor):
            self.inputs += squares.sum((0, 1))
        else:
            self.inputs.add(m)


def covariances(samples: Iterator[list[Gradients]]) -> dict[str, Covariance]:
    """Return every layer's covariance sums, accumulated in float64."""
    sums: dict[str, Covariance] = {}
    for sample in samples:
        for name, first in sample[0].layers.items():
            if name not in sums:
                sums[name] = Covariance(first)
            sums[name].update([part.layers[name] for part in sample])
    return sums


def _taking_part(factors: list[Factor]) -> Tensor:
    """Return which positions have a gradient in any backward pass [B, T]."""
    active = [factor.active for factor in factors if not isinstance(factor, Matrix)]
    return active[0] if len(active) == 1 else torch.stack(active).any(0)
