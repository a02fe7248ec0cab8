"""Curvature inside a small space: gradients projected on both sides of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from whence.curvature.base import (
    DEFAULT_DAMPING,
    Damping,
    Preconditioner,
    absolute,
    eigen,
    validate_damping,
    validate_fisher,
)
from whence.curvature.covariance import covariances
from whence.curvature.kronecker import FisherPass, eigenbases
from whence.errors import ConfigError, NumericalError
from whence.gradients import Factor, Fisher, Gradients, GradientStream, Lookup, Matrix, Outer
from whence.gradients.projection import random_projection

__all__ = ["Projected", "ProjectedPreconditioner", "Sides", "projected_from_state"]

_LARGEST = 12_000


@dataclass(frozen=True, kw_only=True)
class Projected:
    r"""g ≈ P_G g̃ P_Aᵀ with g̃ = P_Gᵀ g P_A [k_out, k_in] a layer, and the whole Fisher matrix of the g̃ of all layers.

    A score is g̃_qᵀ (F̃ + shift I)⁻¹ g̃_i with F̃ = (1/N) Σ g̃ g̃ᵀ [D, D] and shift = damping + weight decay: exact
    inside the space, cross-terms between layers included; what lies outside counts nothing. Positions are projected
    before they are summed, so a feature is D = Σ k_out·k_in numbers.

    Args:
        rank: k for both sides, or (k_out, k_in); at most the layer's own widths.
        kind: "eigen": leading eigenvectors of the K-FAC covariances of outputs and inputs (most frequent indices of an
            embedding). "random": counter-based random directions, keyed by layer name and seed, scaled so that inner
            products are right in the mean. Both equal the exact curvature at full rank.
        damping: A number, or `Relative` to the mean eigenvalue of F̃.
        fisher: As in `EKFAC`.

    Raises:
        ConfigError: D is more than 12,000.
        NumericalError: F̃ plus damping and weight decay is singular.

    Cost: "eigen" two passes (one where the budget holds the factors), "random" one; N·D² operations and 3 D² numbers
    in float64. Applying it needs no training examples.

    Reference: Choe et al. (2024), LoGra. Deviations: the Fisher matrix is joint over layers; several ways of
    choosing the eigenvectors there are one here.
    """

    rank: int | tuple[int, int] = 16
    kind: Literal["eigen", "random"] = "eigen"
    damping: Damping = DEFAULT_DAMPING
    fisher: Fisher = "auto"

    def __post_init__(self) -> None:
        validate_damping(self.damping)
        validate_fisher(self.fisher)
        pair = self.rank if isinstance(self.rank, tuple) else (self.rank, self.rank)
        if len(pair) != 2 or not all(type(k) is int and k >= 1 for k in pair):
            raise ConfigError(f"rank must be an integer of at least 1 or a pair (k_out, k_in), got {self.rank!r}.")
        if self.kind not in ("eigen", "random"):
            raise ConfigError(f'kind must be "eigen" or "random", got {self.kind!r}.')

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit the projections, then the Fisher matrix inside."""
        ranks = self.rank if isinstance(self.rank, tuple) else (self.rank, self.rank)
        size = sum(min(ranks[0], layer.shape[0]) * min(ranks[1], layer.shape[1]) for layer in stream.layers)
        if size > _LARGEST:
            raise ConfigError(
                f"Projected takes at most {_LARGEST} features, got {size} from rank={self.rank} and "
                f"{len(stream.layers)} layers. Lower rank, or use fewer layers with layers=."
            )
        task, gradients = stream.task, FisherPass(stream, self.fisher, seed)
        sides = _eigen_sides(gradients, ranks) if self.kind == "eigen" else _random_sides(stream, ranks, seed)
        sides = {name: side.to(task.gradient_dtype) for name, side in sides.items()}
        total = torch.zeros((), dtype=torch.float64, device=task.device)
        for sample in gradients.again():
            for part in sample:
                features = _project(sides, part).double()
                total = total + features.T @ features
        matrix = total / len(stream.examples)
        damped = absolute(self.damping, float(matrix.diagonal().mean()))
        shift = damped + task.weight_decay
        factor = _cholesky(matrix, shift)
        inverse = torch.cholesky_inverse(factor)
        shifted = matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        probe = torch.ones(len(matrix), dtype=matrix.dtype, device=matrix.device)
        details = {
            "curvature": "projected",
            "projection": self.kind,
            "damping": damped,
            "effective_damping": shift,
            "features": len(matrix),
            "ranks": {name: list(side.ranks) for name, side in sides.items()},
            "residual": float((shifted @ (inverse @ probe) - probe).norm() / probe.norm()),
            "steps": 1,
            "converged": True,
        }
        return ProjectedPreconditioner(sides, factor, details)


@dataclass(frozen=True, eq=False)
class Sides:
    """The projections of one layer: outputs [O, k_out] and inputs [I, k_in]."""

    outputs: Tensor
    inputs: Tensor

    @property
    def ranks(self) -> tuple[int, int]:
        """Return (k_out, k_in)."""
        return self.outputs.shape[1], self.inputs.shape[1]

    def to(self, dtype: torch.dtype) -> Sides:
        """Return the projections in another floating-point type."""
        return Sides(self.outputs.to(dtype), self.inputs.to(dtype))

    def project(self, factor: Factor) -> Tensor:
        """Return P_Gᵀ g P_A [B, k_out, k_in]; positions are summed after the projection."""
        if isinstance(factor, Matrix):
            return self.outputs.T @ factor.m @ self.inputs
        inputs = self.inputs[factor.index] if isinstance(factor, Lookup) else factor.a @ self.inputs  # [B, T, k_in]
        return (factor.d @ self.outputs).transpose(1, 2) @ inputs

    def expand(self, small: Tensor, factored: bool) -> Factor:
        """Return P_G x P_Aᵀ for x [B, k_out, k_in]: k_out terms of O + I numbers where that is less."""
        (out, k_out), inp = self.outputs.shape, self.inputs.shape[0]
        if factored and k_out * (out + inp) < out * inp:
            return Outer(self.outputs.T.expand(len(small), k_out, out), small @ self.inputs.T)
        return Matrix(self.outputs @ small @ self.inputs.T)


@dataclass(frozen=True, eq=False)
class ProjectedPreconditioner:
    """H⁻¹ = P (F̃ + shift I)⁻¹ Pᵀ.

    Args:
        sides: The projections of every layer.
        factor: Lower Cholesky factor of F̃ + shift I [D, D], float64.
        details: What to say about the fit.
    """

    sides: Mapping[str, Sides]
    factor: Tensor
    details: dict[str, Any]

    def features(self, gradients: Gradients) -> Tensor:
        """Return whitened features [B, D]: N times a score is the inner product of two of them."""
        return self._whiten(_project(self.sides, gradients)).to(_dtype(gradients))

    def precondition(self, gradients: Gradients) -> Gradients:
        """Return H⁻¹ g over all parameters, factored where that takes fewer numbers."""
        small = torch.cholesky_solve(_project(self.sides, gradients).double().T, self.factor).T
        pieces = small.to(_dtype(gradients)).split([a * b for a, b in self._ranks], 1)
        layers: dict[str, Factor] = {}
        for (name, side), piece in zip(self.sides.items(), pieces, strict=True):
            factored = not isinstance(gradients.layers[name], Lookup)
            layers[name] = side.expand(piece.reshape(-1, *side.ranks), factored)
        return Gradients(layers)

    def quadratic(self, gradients: Gradients) -> Tensor:
        """Return gᵀ H⁻¹ g [B], inside the space."""
        return self.features(gradients).square().sum(1)

    def leverage(self, jacobians: list[Gradients]) -> Tensor:
        """Return J H⁻¹ Jᵀ [B, C, C], inside the space."""
        features = torch.stack([self.features(jacobian) for jacobian in jacobians], 1)  # [B, C, D]
        return features @ features.transpose(1, 2)

    def summary(self) -> dict[str, Any]:
        """Return what was fitted."""
        return self.details

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return settings and tensors."""
        tensors = {"factor": self.factor}
        for name, side in self.sides.items():
            tensors |= {f"{name}/outputs": side.outputs.contiguous(), f"{name}/inputs": side.inputs.contiguous()}
        return {"kind": "projected", "layers": list(self.sides), "details": self.details}, tensors

    @property
    def _ranks(self) -> list[tuple[int, int]]:
        return [side.ranks for side in self.sides.values()]

    def _whiten(self, projected: Tensor) -> Tensor:
        """Return L⁻¹ g̃ [B, D]."""
        whitened: Tensor = torch.linalg.solve_triangular(self.factor, projected.double().T, upper=False)
        return whitened.T


def projected_from_state(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ProjectedPreconditioner:
    """Restore what `ProjectedPreconditioner.state` returned."""
    sides = {name: Sides(tensors[f"{name}/outputs"], tensors[f"{name}/inputs"]) for name in settings["layers"]}
    return ProjectedPreconditioner(sides, tensors["factor"], settings["details"])


def _dtype(gradients: Gradients) -> torch.dtype:
    """Return the floating-point type of some gradients."""
    return next(iter(next(iter(gradients.layers.values())).tensors().values())).dtype


def _project(sides: Mapping[str, Sides], gradients: Gradients) -> Tensor:
    """Return the projected gradients of all layers [B, D]."""
    return torch.cat([side.project(gradients.layers[name]).flatten(1) for name, side in sides.items()], 1)


def _eigen_sides(gradients: FisherPass, ranks: tuple[int, int]) -> dict[str, Sides]:
    """Return the leading eigenvectors of both covariances of every layer."""
    sums = covariances(gradients.first())
    bases = eigenbases(sums, len(gradients.stream.examples))
    sides = {}
    for layer in gradients.stream.layers:
        k_out, k_in = min(ranks[0], layer.shape[0]), min(ranks[1], layer.shape[1])
        if layer.name not in bases:  # a small layer whose whole block is known: one row, or columns by their energy
            block = sums[layer.name].outputs.total.reshape(*layer.shape, *layer.shape)
            outputs = eigen(torch.einsum("oipi->op", block), layer.name)[1][:, -k_out:]
            sides[layer.name] = Sides(outputs, eigen(torch.einsum("oioj->ij", block), layer.name)[1][:, -k_in:])
            continue
        basis = bases[layer.name]
        inputs = basis.q_a
        if inputs is None:
            leading = basis.s_a.argsort(stable=True)[-k_in:]
            inputs = torch.zeros(len(basis.s_a), k_in, dtype=basis.s_a.dtype, device=basis.s_a.device)
            inputs[leading, torch.arange(k_in, device=leading.device)] = 1.0
        sides[layer.name] = Sides(basis.q_g[:, -k_out:], inputs[:, -k_in:])
    return sides


def _random_sides(stream: GradientStream, ranks: tuple[int, int], seed: int) -> dict[str, Sides]:
    """Return random directions for both sides of every layer, keyed by its name."""
    sides = {}
    for layer in stream.layers:
        widths = zip(layer.shape, ranks, ("outputs", "inputs"), strict=True)
        made = [random_projection(w, min(w, k), name=f"{layer.name}/{side}", seed=seed) for w, k, side in widths]
        sides[layer.name] = Sides(*(p.to(stream.task.device) for p in made))
    return sides


def _cholesky(matrix: Tensor, shift: float) -> Tensor:
    """Return the lower Cholesky factor of the projected Fisher matrix plus the shift."""
    if not bool(torch.isfinite(matrix).all()):
        raise NumericalError(
            "the projected curvature must be finite, got NaN or infinity. Check the inputs and the loss."
        )
    shifted = matrix.clone()
    shifted.diagonal().add_(shift)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(shifted)
    if int(info) != 0 or float(factor.diagonal().min()) ** 2 <= 1e-14 * float(shifted.diagonal().max()):
        raise NumericalError(
            f"the projected curvature plus damping and weight decay ({shift:.3g}) must be positive definite, and is "
            "singular. Use damping=Relative(0.1) or a lower rank."
        )
    return factor
