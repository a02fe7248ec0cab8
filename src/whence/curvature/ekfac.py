"""EK-FAC, kept factored on the query side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from whence.curvature.base import (
    DEFAULT_DAMPING,
    Preconditioner,
    validate_fisher,
    validate_rank_tolerance,
)
from whence.curvature.blocks import BlockPreconditioner, LayerInverse
from whence.curvature.covariance import covariances
from whence.curvature.damping import AutoDamping, DampingRule, validate_choice
from whence.curvature.kronecker import (
    FisherPass,
    dense_inverse,
    eigen_inverse,
    eigenbases,
    invertible,
    low_rank,
    second_moments,
)
from whence.gradients import Fisher, GradientStream

__all__ = ["EKFAC"]


@dataclass(frozen=True, kw_only=True)
class EKFAC:
    r"""Eigenvalue-corrected Kronecker-factored Gauss–Newton/Fisher, layer by layer.

    With A = E[a aᵀ] = Q_A S_A Q_Aᵀ and G = E[Σ_t δ δᵀ] = Q_G S_G Q_Gᵀ, the layer's curvature is taken as
    (Q_A ⊗ Q_G) diag(Λ) (Q_A ⊗ Q_G)ᵀ with Λ_oi = E[(Q_Gᵀ g Q_A)_oi²], and
    H⁻¹ uses S = 1 / (Λ + damping + weight decay). For gradients without positions S is applied as a sum of R
    rank-one terms found by an SVD weighted with the row and column sums of Λ, so nothing of size O·I is made
    for any example.

    Args:
        damping: A number; `Relative` to the mean of Λ in each layer (default 0.1); or "auto", the maximum of the
            evidence of each layer's Laplace approximation (see `whence.curvature.damping`).
        fisher: "auto" (exact expectation over classes for at most 4 outputs, else sampled labels), "sampled",
            "exact", or "empirical".
        rank_tolerance: Largest relative residual of the weighted low-rank form of S; it chooses R. Self-scores
            use the whole grid.

    Cost: one forward and one backward pass without weight gradients; covariances N·(I² + O²) and rotations of
    the same size; eigen-decompositions in float64. Memory: I² + O² + O·I a layer, plus the budgeted factors.

    Reference: George et al. (2018); Grosse et al. (2023), §2.2. Deviations: embeddings use their diagonal input
    covariance; norm layers get their whole block; sampled labels are keyed by id.
    """

    damping: AutoDamping = DEFAULT_DAMPING
    fisher: Fisher = "auto"
    rank_tolerance: float = 0.07

    def __post_init__(self) -> None:
        validate_choice(self.damping)
        validate_fisher(self.fisher)
        validate_rank_tolerance(self.rank_tolerance)

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit to the training gradients, in two passes (one where the stream's budget holds the factors)."""
        fisher = FisherPass(stream, self.fisher, seed)
        count = len(stream.examples)
        sums = covariances(fisher.first())
        bases = eigenbases(sums, count)
        moments = second_moments(bases, fisher.again(), stream.task.gradient_dtype)
        decay, rule = stream.task.weight_decay, DampingRule.of(self.damping, stream)
        inverses: dict[str, LayerInverse | None] = {}
        details: dict[str, Any] = {}
        for name, covariance in sums.items():
            if name not in bases:
                dense, details[name] = dense_inverse(covariance, rule, name)
                inverses[name] = type(dense)(dense.inverse.to(stream.task.gradient_dtype))
                continue
            values = moments[name] / count
            damped = rule.choose(name, values)
            grid = 1 / (values + invertible(damped + decay, values, name))
            u, v, residual = low_rank(grid, values.sum(1), values.sum(0), self.rank_tolerance)
            inverses[name] = eigen_inverse(bases[name], grid, (u, v), stream.task.gradient_dtype)
            effective = float((values * grid).sum())
            details[name] = {"damping": damped, "effective": effective, "rank": len(u), "rank_residual": residual}
        return BlockPreconditioner(inverses, {"curvature": "ekfac", "layers": details})
