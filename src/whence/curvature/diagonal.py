"""The diagonal of the Gauss–Newton matrix or Fisher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.curvature.base import (
    DEFAULT_DAMPING,
    Damping,
    Preconditioner,
    absolute,
    validate_damping,
    validate_fisher,
)
from whence.errors import NumericalError
from whence.gradients import Factor, Fisher, Gradients, GradientStream, Lookup, Matrix, Outer, decay_grids

__all__ = ["Diagonal", "DiagonalPreconditioner", "diagonal_from_state"]


@dataclass(frozen=True, kw_only=True)
class Diagonal:
    r"""H = diag(F) + (damping + weight decay) I with F_oi = (1/N) Σ_i Σ_r (g_ir)_oi², every parameter by itself.

    Without positions g = δ aᵀ and F = (1/N) Σ δ² (a²)ᵀ: one thin product, nothing is multiplied out.

    Args:
        damping: A number, or `Relative` to the mean of F in each layer.
        fisher: As in `EKFAC`; "exact" is the diagonal of the Gauss–Newton matrix.

    Raises:
        NumericalError: An entry plus damping and weight decay is not positive, or not finite.

    Cost: one pass to fit; queries are multiplied out (O·I numbers a layer), self-scores are not.
    """

    damping: Damping = DEFAULT_DAMPING
    fisher: Fisher = "auto"

    def __post_init__(self) -> None:
        validate_damping(self.damping)
        validate_fisher(self.fisher)

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit to the training gradients in one pass."""
        task = stream.task
        totals = {
            layer.name: torch.zeros(layer.shape, dtype=torch.float64, device=task.device) for layer in stream.layers
        }
        for chunk in stream.chunks():
            for gradients in stream.fisher(chunk, self.fisher, seed):
                for name, factor in gradients.layers.items():
                    _add_squares(totals[name], factor)
        grids, layers = {}, {}
        decays = decay_grids(task, stream.layers)
        for name, total in totals.items():
            values = total / len(stream.examples)
            damped = absolute(self.damping, float(values.mean()))
            shifted = values + damped + decays[name].to(values)
            if not bool((torch.isfinite(shifted) & (shifted > 0)).all()):
                raise NumericalError(
                    f"the diagonal of layer {name!r} plus damping must be positive and finite, got a least entry of "
                    f"{float(shifted.min()):.3g}. Use damping=Relative(0.1) and check the inputs and the loss."
                )
            grids[name] = (1 / shifted).to(task.gradient_dtype)
            layers[name] = {"damping": damped, "effective_damping": damped + task.weight_decay}
        details = {"curvature": "diagonal", "layers": layers, "residual": 0.0, "steps": 0, "converged": True}
        return DiagonalPreconditioner(grids, details)


@dataclass(frozen=True, eq=False)
class DiagonalPreconditioner:
    """Inverse diagonal entries [O, I], one grid a layer."""

    grids: Mapping[str, Tensor]
    details: dict[str, Any]

    def precondition(self, gradients: Gradients) -> Gradients:
        """Return H⁻¹ g, multiplied out (embeddings stay as they are)."""
        layers: dict[str, Factor] = {}
        for name, factor in gradients.layers.items():
            grid = self.grids[name]
            if isinstance(factor, Lookup):
                layers[name] = Lookup(factor.d * grid.T[factor.index], factor.index, factor.width)
            else:
                layers[name] = Matrix(factor.matrix() * grid)
        return Gradients(layers)

    def quadratic(self, gradients: Gradients) -> Tensor:
        """Return gᵀ H⁻¹ g [B]; two thin products where there are no positions."""
        return torch.stack([_quadratic(self.grids[name], f) for name, f in gradients.layers.items()]).sum(0)

    def root(self, noise: Gradients) -> Gradients:
        """Return R ε with R Rᵀ = H⁻¹."""
        return Gradients({n: Matrix(f.matrix() * self.grids[n].sqrt()) for n, f in noise.layers.items()})

    def leverage(self, jacobians: list[Gradients]) -> Tensor:
        """Return J H⁻¹ Jᵀ [B, C, C]."""
        parts = []
        for name, grid in self.grids.items():
            factors = [jacobian.layers[name] for jacobian in jacobians]
            first = factors[0]
            if isinstance(first, Outer) and first.d.shape[1] == 1:
                scales = first.a[:, 0].square() @ grid.T  # [B, O]
                d = torch.stack([f.tensors()["d"][:, 0] for f in factors], 1)  # [B, C, O]
                parts.append((d * scales[:, None]) @ d.transpose(1, 2))
                continue
            flat = torch.stack([(factor.matrix() * grid.sqrt()).flatten(1) for factor in factors], 1)
            parts.append(flat @ flat.transpose(1, 2))
        return torch.stack(parts).sum(0)

    def summary(self) -> dict[str, Any]:
        """Return what was fitted."""
        return self.details

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return settings and tensors."""
        settings = {"kind": "diagonal", "layers": list(self.grids), "details": self.details}
        return settings, {f"{name}/diagonal": grid for name, grid in self.grids.items()}


def diagonal_from_state(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DiagonalPreconditioner:
    """Restore what `DiagonalPreconditioner.state` returned."""
    grids = {name: tensors[f"{name}/diagonal"] for name in settings["layers"]}
    return DiagonalPreconditioner(grids, settings["details"])


def _add_squares(total: Tensor, factor: Factor) -> None:
    """Add Σ g² [O, I] of some examples."""
    if isinstance(factor, Outer) and factor.d.shape[1] == 1:
        total += factor.d[:, 0].square().T @ factor.a[:, 0].square()
    elif isinstance(factor, Lookup):
        total.T.index_add_(0, factor.index.reshape(-1), factor.d.square().flatten(0, 1).to(total.dtype))
    else:
        total += factor.matrix().square().sum(0)


def _quadratic(grid: Tensor, factor: Factor) -> Tensor:
    """Return Σ_oi S_oi g_oi² [B] of one layer."""
    if isinstance(factor, Outer) and factor.d.shape[1] == 1:
        return (factor.d[:, 0].square() * (factor.a[:, 0].square() @ grid.T)).sum(1)
    if isinstance(factor, Lookup):
        return (factor.d.square() * grid.T[factor.index]).sum((1, 2))
    return (factor.matrix().square() * grid).sum((1, 2))
