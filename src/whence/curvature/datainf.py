"""DataInf: the average of per-example inverses, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.curvature.base import DEFAULT_DAMPING, Damping, Preconditioner, absolute, validate_damping
from whence.curvature.blocks import BlockPreconditioner
from whence.errors import NumericalError
from whence.gradients import Gradients, GradientStream, Matrix, squared_norm
from whence.gradients.roots import Roots

__all__ = ["DataInf", "DataInfPreconditioner", "datainf_from_state"]


@dataclass(frozen=True, kw_only=True)
class DataInf:
    r"""H_l⁻¹ ≈ (1/N) Σ_i (g_i g_iᵀ + s I)⁻¹ = (1/s) (I − (1/N) Σ_i g_i g_iᵀ / (s + ‖g_i‖²)) in each layer l.

    s is the layer's damping plus the weight decay, g_i are the gradients of the training loss. The average and the
    inverse are *swapped*: it is the mean of N inverses, not the inverse of the mean, and equals the inverse of the
    empirical Fisher's block only where all g_i g_iᵀ are alike or the damping is large. It always lies above it.

    Args:
        damping: A number, or `Relative` to the mean eigenvalue of the layer's empirical Fisher, as in the paper (0.1).

    Raises:
        NumericalError: A layer's damping and weight decay are both zero.

    Cost: one pass to fit; a pass over the training gradients a block of queries (from memory where they fit the
    budget). Self-scores take N inner products an example, from the factors. Applying it needs the training examples.

    Reference: Kwon et al. (2024), eq. 5. Deviation: weight decay is part of the shift.
    """

    damping: Damping = DEFAULT_DAMPING

    def __post_init__(self) -> None:
        validate_damping(self.damping)

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit every layer's shift."""
        totals = dict.fromkeys((layer.name for layer in stream.layers), 0.0)
        for _, gradients in stream.training_gradients():
            for name, factor in gradients.layers.items():
                totals[name] += float(squared_norm(factor).sum(dtype=torch.float64))
        decay, layers = stream.task.weight_decay, {}
        for layer in stream.layers:
            size = layer.shape[0] * layer.shape[1]
            damped = absolute(self.damping, totals[layer.name] / (len(stream.examples) * size))
            if not 0 < damped + decay < float("inf"):
                raise NumericalError(
                    f"damping plus weight decay of layer {layer.name!r} must be positive and finite, got "
                    f"{damped + decay:g}. Use damping=Relative(0.1) and check the inputs and the loss."
                )
            layers[layer.name] = {"damping": damped, "effective_damping": damped + decay}
        details = {"curvature": "datainf", "layers": layers, "residual": None, "steps": 1, "converged": True}
        shifts = {name: entry["effective_damping"] for name, entry in layers.items()}
        return DataInfPreconditioner(stream, shifts, details)


@dataclass(frozen=True, eq=False)
class DataInfPreconditioner:
    """Every layer's shift, and the training gradients to go over.

    Args:
        stream: The training gradients.
        shifts: Damping plus weight decay of every layer.
        details: What to say about the fit. The residual is None: the answer does not solve a linear system.
    """

    stream: GradientStream
    shifts: Mapping[str, float]
    details: dict[str, Any]

    def precondition(self, gradients: Gradients) -> Gradients:
        """Return H⁻¹ g, multiplied out."""
        vectors = {name: factor.matrix() for name, factor in gradients.layers.items()}
        totals = {name: torch.zeros_like(matrix) for name, matrix in vectors.items()}
        for _, training in self.stream.training_gradients():
            roots = Roots.of([training])
            for name, own in roots.layers.items():
                weights = self._weights(name, training)
                for start in range(0, len(gradients), roots.block):
                    at = slice(start, start + roots.block)
                    totals[name][at] += own.combine(own.project(vectors[name][at]) * weights)
        count = len(self.stream.examples)
        return Gradients({n: Matrix((vectors[n] - totals[n] / count) / self.shifts[n]) for n in vectors})

    def quadratic(self, gradients: Gradients) -> Tensor:
        """Return gᵀ H⁻¹ g [B]; everything stays factored."""
        return self.leverage([gradients])[:, 0, 0]

    def leverage(self, jacobians: list[Gradients]) -> Tensor:
        """Return J H⁻¹ Jᵀ [B, C, C]; everything stays factored."""
        parts = {name: self._gram(name, jacobians) for name in self.shifts}
        for _, training in self.stream.training_gradients():
            for name, total in parts.items():
                one = _layer(training, name)
                along = torch.stack([_layer(j, name).inner(one) for j in jacobians], 1)  # [B, C, B']
                total -= (along * self._weights(name, training)) @ along.transpose(1, 2) / len(self.stream.examples)
        return torch.stack([total / self.shifts[name] for name, total in parts.items()]).sum(0)

    def summary(self) -> dict[str, Any]:
        """Return what was fitted."""
        return self.details

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return settings; applying it needs the training examples."""
        return {"kind": "datainf", "shifts": dict(self.shifts), "details": self.details}, {}

    def _weights(self, name: str, training: Gradients) -> Tensor:
        """Return 1 / (shift + ‖g_i‖²) of one layer [B]."""
        return 1 / (self.shifts[name] + squared_norm(training.layers[name]))

    def _gram(self, name: str, jacobians: list[Gradients]) -> Tensor:
        """Return J Jᵀ [B, C, C] of one layer."""
        return BlockPreconditioner({name: None}, {}).leverage([_layer(j, name) for j in jacobians])


def datainf_from_state(settings: Mapping[str, Any], stream: GradientStream) -> DataInfPreconditioner:
    """Restore what was saved, beside the training examples."""
    shifts = {str(name): float(shift) for name, shift in settings["shifts"].items()}
    return DataInfPreconditioner(stream, shifts, settings["details"])


def _layer(gradients: Gradients, name: str) -> Gradients:
    """Return the gradients of one layer alone."""
    return Gradients({name: gradients.layers[name]})
