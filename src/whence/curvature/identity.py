"""Identity: no curvature; scores are gradient dot products."""

from __future__ import annotations

from dataclasses import dataclass

from whence.curvature.base import Preconditioner
from whence.curvature.blocks import BlockPreconditioner
from whence.gradients import GradientStream

__all__ = ["Identity"]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """H = I: the score is the gradient dot product ∇mᵀ∇ℓ / N, which ranks but is not in the measurement's unit.

    Cost: nothing to fit.
    """

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Return the identity for every layer."""
        return BlockPreconditioner({layer.name: None for layer in stream.layers}, {"curvature": "identity"})
