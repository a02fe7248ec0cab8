"""The leading eigenvectors of the whole curvature by the Lanczos process."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.curvature.base import DEFAULT_DAMPING, Damping, Preconditioner
from whence.curvature.joint import damping_of, validate_solver
from whence.curvature.lowrank import low_rank_inverse, validate_low_rank
from whence.curvature.solve import Map
from whence.errors import NumericalError
from whence.gradients import Fisher, GradientStream
from whence.gradients.products import Products
from whence.gradients.projection import random_normal

__all__ = ["Lanczos"]


@dataclass(frozen=True, kw_only=True)
class Lanczos:
    r"""The ``rank`` leading eigenpairs (θ, u) of the curvature of all layers together, by Lanczos.

    H⁻¹ = (U diag(θ) Uᵀ + shift I)⁻¹ with shift = damping + weight decay: exact on the captured space, 1/shift
    elsewhere. What is left out of the curvature makes this an upper bound of (H + shift)⁻¹ that falls with the rank.

    Args:
        rank: Eigenpairs to keep.
        damping: A number, or `Relative` to the mean eigenvalue over all layers; with the weight decay positive.
        tolerance: Largest residual ‖H u − θ u‖ of a kept pair, relative to the largest eigenvalue.
        max_steps: Most products; None is 4·rank + 20.
        fisher: As in `CG`.
        require_convergence: Raise if a kept pair does not reach the tolerance.

    Raises:
        NumericalError: No convergence, or damping and weight decay are both zero.

    Cost: one product a step with a single vector (one pass where the roots are not kept), steps·P numbers of memory
    in float64 while fitting and rank·P after. Applying it needs no training examples; self-scores stay factored.

    Reference: Schioppa et al. (2022). Deviations: the matrix is symmetric, so Arnoldi is Lanczos, with full
    reorthogonalisation; a Gauss–Newton matrix is the default; the rest of the space is kept at 1/shift where theirs is
    dropped; the start vector is counter-based.
    """

    rank: int = 100
    damping: Damping = DEFAULT_DAMPING
    tolerance: float = 1e-3
    max_steps: int | None = None
    fisher: Fisher = "auto"
    require_convergence: bool = True

    def __post_init__(self) -> None:
        validate_low_rank(self.damping, self.fisher, self.rank)
        validate_solver(self.tolerance, max_steps=self.max_steps)

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit the leading eigenpairs."""
        products = Products(stream, self.fisher, seed)
        damped = damping_of(self.damping, products)
        steps = min(products.size, self.max_steps or 4 * self.rank + 20)
        krylov = _Krylov(products.operator(1), products, seed)
        worst = krylov.run(min(self.rank, products.size), steps, self.tolerance)
        converged = worst <= self.tolerance
        if self.require_convergence and not converged:
            raise NumericalError(
                f"the {self.rank} leading eigenpairs must converge to {self.tolerance:g} of the largest eigenvalue, "
                f"got {worst:.2g} after {len(krylov.basis)} steps. Raise max_steps or tolerance, lower rank, or take "
                "what there is with require_convergence=False."
            )
        vectors, values = krylov.leading(self.rank)
        details = {
            "curvature": "lanczos",
            "matrix": f"Fisher ({products.fisher})",
            "steps": len(krylov.basis),
            "converged": converged,
            "tolerance": self.tolerance,
        }
        return low_rank_inverse(products, vectors, values, damped, details)


@dataclass(eq=False)
class _Krylov:
    """The Lanczos process with full reorthogonalisation; a new random direction where the space closes."""

    product: Map
    products: Products
    seed: int
    basis: list[Tensor] = field(default_factory=list)
    diagonal: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)

    def run(self, rank: int, steps: int, tolerance: float) -> float:
        """Extend the space until ``rank`` pairs have converged or ``steps`` are done; return the worst residual."""
        q: Tensor | None = self._fresh()
        while q is not None and len(self.basis) < steps:
            image = self.product(q[None])[0]
            if not bool(torch.isfinite(image).all()):
                raise NumericalError(
                    "products with the curvature must be finite, got NaN or infinity. Check the inputs and the loss."
                )
            self.basis.append(q)
            self.diagonal.append(float(image @ q))
            scale = max(self.diagonal)
            rest = self._orthogonal(image)
            norm = float(rest.norm())
            closed = norm <= 1e-12 * max(scale, 1e-300) * self.products.size**0.5
            self.beside.append(0.0 if closed else norm)
            if closed and self.diagonal[-1] <= 1e-13 * scale and len(self.basis) > 1 and self.beside[-2] == 0.0:
                return 0.0  # a random direction outside the space is in the null space: nothing is left
            if len(self.basis) >= rank and (len(self.basis) % 5 == 0 or len(self.basis) == steps or closed):
                worst = self._worst(rank)
                if worst <= tolerance:
                    return worst
            q = self._fresh() if closed else rest / norm
        return self._worst(rank)

    def leading(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the leading Ritz vectors [K, P] and values [K]; rounding below zero is zero."""
        values, mixing = self._ritz()
        vectors = mixing[:, -rank:].flip(1).T @ torch.stack(self.basis)
        return vectors, values[-rank:].flip(0).clamp(min=0.0)

    def _worst(self, rank: int) -> float:
        """Return the largest residual of the leading pairs, relative to the largest eigenvalue."""
        values, mixing = self._ritz()
        bounds = self.beside[-1] * mixing[-1, -rank:].abs()
        return float(bounds.max() / values[-1].clamp(min=1e-300))

    def _ritz(self) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues and eigenvectors of the tridiagonal matrix."""
        first = self.basis[0]
        side = torch.diag(first.new_tensor(self.beside[:-1]), 1)
        values, vectors = torch.linalg.eigh(torch.diag(first.new_tensor(self.diagonal)) + side + side.T)
        return values, vectors

    def _orthogonal(self, vector: Tensor) -> Tensor:
        """Return the vector without what lies in the space, twice for rounding's sake."""
        for _ in range(2 if self.basis else 0):
            basis = torch.stack(self.basis)
            vector = vector - (basis @ vector) @ basis
        return vector

    def _fresh(self) -> Tensor | None:
        """Return a random unit vector outside the space, or None if the space is everything."""
        size = self.products.size
        if len(self.basis) >= size:
            return None
        name = f"Lanczos {len(self.basis)}"
        start = random_normal(1, size, name=name, seed=self.seed)[0]
        outside = self._orthogonal(start.to(self.products.stream.task.device, self.products.dtype))
        norm: Tensor = outside.norm()
        return outside / norm
