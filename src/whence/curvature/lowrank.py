"""H⁻¹ on a captured eigenspace, and 1 / (damping + weight decay) elsewhere: what Lanczos and Nyström share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from whence.curvature.base import validate_damping, validate_fisher
from whence.curvature.blocks import BlockPreconditioner
from whence.errors import ConfigError, NumericalError
from whence.gradients import Gradients, Matrix
from whence.gradients.products import Products, split_vectors

__all__ = ["LowRankPreconditioner", "low_rank_from_state", "low_rank_inverse", "validate_low_rank"]


@dataclass(frozen=True, eq=False)
class LowRankPreconditioner:
    r"""H⁻¹ = (U diag(θ) Uᵀ + shift I)⁻¹ = (1/shift) (I − U diag(θ / (θ + shift)) Uᵀ), all layers together.

    Args:
        vectors: U, orthonormal rows over all layers [K, P].
        values: θ [K] ≥ 0.
        shift: Damping plus weight decay, positive.
        shapes: (O, I) of every layer.
        details: What to say about the fit.
    """

    vectors: Tensor
    values: Tensor
    shift: float
    shapes: Mapping[str, tuple[int, int]]
    details: dict[str, Any]

    def precondition(self, gradients: Gradients) -> Gradients:
        """Return H⁻¹ g, multiplied out."""
        dtype = next(iter(next(iter(gradients.layers.values())).tensors().values())).dtype
        flat = gradients.dense().to(self.vectors.dtype)
        moved = (flat - (flat @ self.vectors.T * self._removed) @ self.vectors) / self.shift
        return Gradients({name: Matrix(m.to(dtype)) for name, m in split_vectors(moved, self.shapes).items()})

    def quadratic(self, gradients: Gradients) -> Tensor:
        """Return gᵀ H⁻¹ g [B]; the gradients stay factored."""
        along = self._along(gradients)  # [K, B]
        norms = gradients.squared_norms()
        return (norms - (along.square() * self._removed.to(norms.dtype)[:, None]).sum(0)) / self.shift

    def leverage(self, jacobians: list[Gradients]) -> Tensor:
        """Return J H⁻¹ Jᵀ [B, C, C]; the gradients stay factored."""
        untouched = BlockPreconditioner(dict.fromkeys(self.shapes), {})
        along = torch.stack([self._along(jacobian) for jacobian in jacobians], 2)  # [K, B, C]
        weighted = along * self._removed.to(along.dtype)[:, None, None]
        return (untouched.leverage(jacobians) - torch.einsum("kbc,kbd->bcd", weighted, along)) / self.shift

    def summary(self) -> dict[str, Any]:
        """Return what was fitted."""
        return self.details

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return settings and tensors."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        settings = {"kind": "low rank", "shift": self.shift, "shapes": shapes, "details": self.details}
        return settings, {"vectors": self.vectors, "values": self.values}

    @property
    def _removed(self) -> Tensor:
        """Which share of a captured direction's 1 / shift goes [K]."""
        return self.values / (self.values + self.shift)

    @cached_property
    def _directions(self) -> Gradients:
        """The rows of U as gradients of K examples."""
        return Gradients({name: Matrix(m) for name, m in split_vectors(self.vectors, self.shapes).items()})

    def _along(self, gradients: Gradients) -> Tensor:
        """Return Uᵀ g [K, B]."""
        dtype = next(iter(next(iter(gradients.layers.values())).tensors().values())).dtype
        return self._directions.to(dtype).inner(gradients)


def low_rank_from_state(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LowRankPreconditioner:
    """Restore what `LowRankPreconditioner.state` returned."""
    shapes = {name: (shape[0], shape[1]) for name, shape in settings["shapes"].items()}
    shift = float(settings["shift"])
    return LowRankPreconditioner(tensors["vectors"], tensors["values"], shift, shapes, settings["details"])


def low_rank_inverse(
    products: Products, vectors: Tensor, values: Tensor, damped: float, details: dict[str, Any]
) -> LowRankPreconditioner:
    """Return the inverse with what there is to say of it: the share of the trace that is left out, a true residual.

    The residual is ‖H U − U diag(θ)‖ / ‖θ‖, from one product.

    Raises:
        NumericalError: Without damping and weight decay the rest of the space has no inverse.
    """
    shift = damped + products.stream.task.weight_decay
    if not shift > 0:
        raise NumericalError(
            "damping plus weight decay must be positive outside the captured directions, got 0. "
            "Use damping=Relative(0.1)."
        )
    trace = products.mean_eigenvalue() * products.size
    image = products.operator(len(vectors))(vectors)
    residual = float((image - values[:, None] * vectors).norm() / values.norm().clamp(min=1e-300))
    told = {
        "damping": damped,
        "effective_damping": shift,
        "rank": len(values),
        "trace_left_out": max(0.0, 1 - float(values.sum()) / trace) if trace > 0 else 0.0,
        "residual": residual,
    }
    return LowRankPreconditioner(vectors, values, shift, products.shapes, {**details, **told})


def validate_low_rank(damping: Any, fisher: str, rank: Any) -> None:
    """Raise unless damping, kind of Fisher matrix and rank are possible."""
    validate_damping(damping)
    validate_fisher(fisher)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"rank must be an integer of at least 1, got {rank!r}.")
