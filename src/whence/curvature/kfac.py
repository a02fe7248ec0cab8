"""K-FAC with split or joint damping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from whence.curvature.base import (
    DEFAULT_DAMPING,
    Preconditioner,
    validate_fisher,
    validate_rank_tolerance,
)
from whence.curvature.blocks import BlockPreconditioner, EigenInverse, LayerInverse
from whence.curvature.covariance import covariances
from whence.curvature.damping import AutoDamping, DampingRule, validate_choice
from whence.curvature.kronecker import (
    Eigenbasis,
    FisherPass,
    dense_inverse,
    eigen_inverse,
    eigenbases,
    invertible,
    low_rank,
)
from whence.gradients import Fisher, GradientStream

__all__ = ["KFAC"]


@dataclass(frozen=True, kw_only=True)
class KFAC:
    r"""Kronecker-factored Gauss–Newton/Fisher A ⊗ G, layer by layer.

    With split damping (A + π√λ I) ⊗ (G + √λ/π I), π² = (tr A / I) / (tr G / O), λ = damping + weight decay: the
    inverse is Kronecker-factored too, so H⁻¹(δ aᵀ) = (G⁻¹δ)(A⁻¹a)ᵀ is exact, positions or not. Without it λ is
    added to the products of eigenvalues, which takes the same path as `EKFAC`.

    Args:
        damping: A number; `Relative` to the mean eigenvalue (tr A / I)(tr G / O) of each layer; or "auto" as
            in `EKFAC`.
        split: Split (Tikhonov) damping.
        fisher: As in `EKFAC`.
        rank_tolerance: As in `EKFAC`; unused with split damping.

    Cost: as `EKFAC` without the second pass.
    Reference: Martens & Grosse (2015), §6.3.
    """

    damping: AutoDamping = DEFAULT_DAMPING
    split: bool = True
    fisher: Fisher = "auto"
    rank_tolerance: float = 0.07

    def __post_init__(self) -> None:
        validate_choice(self.damping)
        validate_fisher(self.fisher)
        validate_rank_tolerance(self.rank_tolerance)

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit to the training gradients in one pass."""
        count, decay, dtype = len(stream.examples), stream.task.weight_decay, stream.task.gradient_dtype
        rule = DampingRule.of(self.damping, stream)
        sums = covariances(FisherPass(stream, self.fisher, seed, twice=False).first())
        inverses: dict[str, LayerInverse | None] = {}
        details: dict[str, Any] = {}
        bases = eigenbases(sums, count)
        for name, covariance in sums.items():
            if name not in bases:
                dense, details[name] = dense_inverse(covariance, rule, name)
                inverses[name] = type(dense)(dense.inverse.to(dtype))
                continue
            basis = bases[name]
            values = basis.s_g[:, None] * basis.s_a[None, :]
            damped = rule.choose(name, values, float(basis.s_a.mean() * basis.s_g.mean()))
            inverse, residual, rank = self._inverse(name, basis, damped + decay, dtype)
            effective = float((values * inverse.grid).sum())
            inverses[name] = inverse
            details[name] = {"damping": damped, "effective": effective, "rank": rank, "rank_residual": residual}
        return BlockPreconditioner(inverses, {"curvature": "kfac", "layers": details})

    def _inverse(self, name: str, basis: Eigenbasis, shift: float, dtype: Any) -> tuple[EigenInverse, float, int]:
        """Return the layer's inverse, the residual of its low-rank form and its rank."""
        if self.split:
            mean_a, mean_g = float(basis.s_a.mean()), float(basis.s_g.mean())
            balance = (mean_a / mean_g) ** 0.5 if mean_a > 0 and mean_g > 0 else 1.0
            u = 1 / (basis.s_g + invertible(shift**0.5 / balance, basis.s_g, name))
            v = 1 / (basis.s_a + invertible(shift**0.5 * balance, basis.s_a, name))
            return eigen_inverse(basis, u[:, None] * v[None, :], (u[None], v[None]), dtype), 0.0, 1
        values = basis.s_g[:, None] * basis.s_a[None, :]
        grid = 1 / (values + invertible(shift, values, name))
        rows, columns, residual = low_rank(grid, values.sum(1), values.sum(0), self.rank_tolerance)
        return eigen_inverse(basis, grid, (rows, columns), dtype), residual, len(rows)
