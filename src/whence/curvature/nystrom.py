"""The randomised Nyström approximation of the whole curvature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whence.curvature.base import DEFAULT_DAMPING, Damping, Preconditioner
from whence.curvature.joint import damping_of
from whence.curvature.lowrank import low_rank_inverse, validate_low_rank
from whence.errors import ConfigError, NumericalError
from whence.gradients import Fisher, GradientStream
from whence.gradients.products import Products
from whence.gradients.projection import random_normal

__all__ = ["Nystrom"]


@dataclass(frozen=True, kw_only=True)
class Nystrom:
    r"""Ĥ = (HΩ)(ΩᵀHΩ)⁺(HΩ)ᵀ for a random Ω with orthonormal columns, cut to its ``rank`` leading eigenpairs.

    H⁻¹ = (Ĥ + shift I)⁻¹ by Woodbury's identity, shift = damping + weight decay. Ĥ never exceeds H, so this is an
    upper bound of (H + shift)⁻¹; it equals it where the rank reaches H's.

    Args:
        rank: Eigenpairs to keep.
        oversample: How many more columns Ω has.
        damping: A number, or `Relative` to the mean eigenvalue over all layers; with the weight decay positive.
        fisher: As in `CG`.

    Raises:
        NumericalError: The products are not finite, or damping and weight decay are both zero.

    Cost: one product with rank + oversample vectors (one pass), and another with ``rank`` for the residual; about
    4·(rank + oversample)·P numbers in float64 while fitting. Applying it needs no training examples.

    Reference: Frangella, Tropp & Udell (2021), algorithm 2.1; Hataya & Yamada (2023) for implicit gradients.
    Deviation: the core matrix is inverted on its numerical range instead of by a shifted Cholesky factor.
    """

    rank: int = 100
    oversample: int = 10
    damping: Damping = DEFAULT_DAMPING
    fisher: Fisher = "auto"

    def __post_init__(self) -> None:
        validate_low_rank(self.damping, self.fisher, self.rank)
        if isinstance(self.oversample, bool) or not isinstance(self.oversample, int) or self.oversample < 0:
            raise ConfigError(f"oversample must be an integer of at least 0, got {self.oversample!r}.")

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit to the training gradients."""
        products = Products(stream, self.fisher, seed)
        damped = damping_of(self.damping, products)
        columns = min(products.size, self.rank + self.oversample)
        omega = torch.linalg.qr(random_normal(products.size, columns, name="Nyström", seed=seed))[0]
        omega = omega.T.contiguous().to(stream.task.device, products.dtype)  # [K, P]
        image = products.operator(columns)(omega)
        if not bool(torch.isfinite(image).all()):
            raise NumericalError(
                "products with the curvature must be finite, got NaN or infinity. Check the inputs and the loss."
            )
        vectors, values = _eigenpairs(omega, image, self.rank)
        details = {"curvature": "nystrom", "matrix": f"Fisher ({products.fisher})", "steps": 1, "converged": True}
        return low_rank_inverse(products, vectors, values, damped, details)


def _eigenpairs(omega: Tensor, image: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors [K, P] and eigenvalues of (HΩ)(ΩᵀHΩ)⁺(HΩ)ᵀ, rows for columns."""
    core = image @ omega.T
    values, mixing = torch.linalg.eigh((core + core.T) / 2)
    kept = values > 1e-12 * values.max().clamp(min=1e-300)
    root = (mixing[:, kept] / values[kept].sqrt()).T @ image  # [K', P]
    _, singular, vectors = torch.linalg.svd(root, full_matrices=False)
    return vectors[:rank].contiguous(), singular[:rank].square()
