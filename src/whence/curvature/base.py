"""What every curvature offers: a frozen config that is fitted to gradients and then applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from whence.errors import ConfigError, NumericalError
from whence.gradients import Gradients, GradientStream

__all__ = [
    "DEFAULT_DAMPING",
    "Curvature",
    "Damping",
    "Preconditioner",
    "Relative",
    "absolute",
    "eigen",
    "square_root",
    "validate_damping",
    "validate_fisher",
    "validate_rank_tolerance",
]


@dataclass(frozen=True)
class Relative:
    """Damping as a multiple of the mean eigenvalue of the loss's curvature, layer by layer.

    Args:
        factor: The multiple. The weight decay is not part of the mean; it is added on top.
    """

    factor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.factor < float("inf"):
            raise ConfigError(f"Relative damping must be zero or positive, got {self.factor}.")


Damping = float | Relative
DEFAULT_DAMPING = Relative(0.1)


class Preconditioner(Protocol):
    """A fitted curvature: products with H⁻¹, H = curvature + (damping + weight decay) I."""

    def precondition(self, gradients: Gradients) -> Gradients:
        """Return H⁻¹ g for every query's gradient."""

    def quadratic(self, gradients: Gradients) -> Tensor:
        """Return gᵀ H⁻¹ g for every example [B]."""

    def leverage(self, jacobians: list[Gradients]) -> Tensor:
        """Return J H⁻¹ Jᵀ [B, C, C] from the gradients of the C outputs."""

    def summary(self) -> dict[str, Any]:
        """Return what was fitted: damping and, where there is an approximation, its residual."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return everything needed to restore it: JSON-able settings and tensors."""


class Curvature(Protocol):
    """A config: which approximation of the curvature to fit."""

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit to the training gradients."""


def validate_damping(damping: Damping) -> None:
    """Raise unless the damping is a number ≥ 0 or `Relative`."""
    if isinstance(damping, Relative):
        return
    if isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 <= damping < float("inf"):
        raise ConfigError(f"damping must be a number >= 0 or Relative(factor), got {damping!r}.")


def validate_fisher(fisher: str) -> None:
    """Raise unless the kind of Fisher matrix is known."""
    kinds = ("auto", "sampled", "exact", "empirical")
    if fisher not in kinds:
        raise ConfigError(f"fisher must be one of {kinds}, got {fisher!r}.")


def validate_rank_tolerance(tolerance: float) -> None:
    """Raise unless the tolerance of a low-rank form lies in (0, 1)."""
    if not 0 < tolerance < 1:
        raise ConfigError(f"rank_tolerance must lie in (0, 1), got {tolerance}.")


def absolute(damping: Damping, mean_eigenvalue: float) -> float:
    """Return the number to add to the eigenvalues."""
    return damping.factor * mean_eigenvalue if isinstance(damping, Relative) else float(damping)


def eigen(matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (clamped at 0) and eigenvectors of a covariance, in float64.

    Raises:
        NumericalError: The matrix is not finite; the message names the layer.
    """
    if not torch.isfinite(matrix).all():
        raise NumericalError(
            f"covariance of layer {name!r} must be finite, got NaN or infinity. Check the inputs and the loss."
        )
    matrix = matrix.double()
    alive = matrix.diagonal() > 0  # a dead input is an eigenvector of its own
    if bool(alive.all()):
        values, vectors = torch.linalg.eigh(matrix)
        return values.clamp(min=0.0), vectors
    live, dead = alive.nonzero()[:, 0], (~alive).nonzero()[:, 0]
    values = matrix.new_zeros(len(matrix))
    vectors = torch.zeros_like(matrix)
    vectors[dead, torch.arange(len(dead), device=matrix.device)] = 1.0
    if len(live):
        live_values, live_vectors = torch.linalg.eigh(matrix[live][:, live])
        values[len(dead) :] = live_values
        vectors[live, len(dead) :] = live_vectors
    return values.clamp(min=0.0), vectors


def square_root(inverse: Tensor) -> Tensor:
    """Return R [P, P] with R Rᵀ = H⁻¹, float64; where H⁻¹ leaves directions out, so does R.

    Cost: P³/3 operations, or an eigen-decomposition where H⁻¹ is singular.
    """
    found: Tensor
    found, info = torch.linalg.cholesky_ex(inverse.double())
    if int(info) != 0:
        values, vectors = torch.linalg.eigh(inverse.double())
        found = vectors * values.clamp(min=0.0).sqrt()
    return found
