"""Inverses of one layer's curvature, and the block-diagonal preconditioner made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from whence.curvature.base import square_root
from whence.gradients import Factor, Gradients, Lookup, Matrix, Outer, squared_norm

__all__ = ["BlockPreconditioner", "DenseInverse", "EigenInverse", "LayerInverse", "block_from_state", "rotated"]


class LayerInverse(Protocol):
    """H⁻¹ of one layer."""

    def precondition(self, factor: Factor) -> Factor:
        """Return H⁻¹ g."""

    def quadratic(self, factor: Factor) -> Tensor:
        """Return gᵀ H⁻¹ g [B]."""

    def leverage(self, factors: list[Factor]) -> Tensor:
        """Return J H⁻¹ Jᵀ [B, C, C]."""

    def root(self, noise: Tensor) -> Tensor:
        """Return R ε [M, O, I] with R Rᵀ = H⁻¹."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store."""


@dataclass(frozen=True, eq=False)
class EigenInverse:
    r"""H⁻¹ = (Q_A ⊗ Q_G) diag(S) (Q_A ⊗ Q_G)ᵀ with a grid S [O, I] of inverse eigenvalues.

    Without positions the grid is applied as Σ_r u_r v_rᵀ ≈ S, so that H⁻¹(δ aᵀ) stays factored with R terms.

    Args:
        q_g: Eigenvectors of the output side [O, O].
        q_a: Eigenvectors of the input side [I, I]; None is the identity (embeddings).
        empty: How many leading columns of q_a no training input lies in; skipped for training gradients.
        grid: S [O, I].
        u: [R, O].
        v: [R, I].
        sequences: Whether there were inputs of several positions at the fit. The grid is whole then for all: a sequence
            of one position must not be treated differently where it stands in a batch of its own.
    """

    q_g: Tensor
    q_a: Tensor | None
    empty: int
    grid: Tensor
    u: Tensor
    v: Tensor
    sequences: bool = False

    def precondition(self, factor: Factor) -> Factor:
        """Return H⁻¹ g: factored while that is smaller, multiplied out otherwise."""
        if isinstance(factor, Lookup):
            return self._precondition_lookup(factor)
        if isinstance(factor, Outer) and self._stays_factored(factor):
            batch, positions, _ = factor.d.shape
            d = (factor.d @ self.q_g)[:, :, None, :] * self.u  # [B, T, R, O]
            a = self._rotate(factor.a)[:, :, None, :] * self.v  # [B, T, R, I]
            terms = positions * len(self.u)
            d = d.reshape(batch, terms, -1) @ self.q_g.T
            a = a.reshape(batch, terms, -1)
            return Outer(d, a if self.q_a is None else a @ self.q_a.T)
        back = self.q_g @ (rotated(factor, self.q_g, self.q_a) * self.grid)
        return Matrix(back if self.q_a is None else back @ self.q_a.T)

    def quadratic(self, factor: Factor) -> Tensor:
        """Return Σ_oi S_oi g̃_oi² with the whole grid; one thin product where there are no positions."""
        if isinstance(factor, Lookup):
            scales = self.grid.T[factor.index]  # [B, T, O]
            return ((factor.d @ self.q_g).square() * scales).sum((1, 2))
        if isinstance(factor, Outer) and factor.d.shape[1] == 1:
            squares = self._input_squares(factor.a[:, 0])  # [B, O]
            return ((factor.d[:, 0] @ self.q_g).square() * squares).sum(1)
        return (self._rotated(factor).square_() * self.grid[:, self.empty :]).sum((1, 2))

    def leverage(self, factors: list[Factor]) -> Tensor:
        """Return J H⁻¹ Jᵀ; the inputs a are shared by all outputs."""
        first = factors[0]
        if isinstance(first, Outer) and first.d.shape[1] == 1:
            squares = self._input_squares(first.a[:, 0])  # [B, O]
            d = torch.stack([f.d[:, 0] @ self.q_g for f in factors if isinstance(f, Outer)], 1)  # [B, C, O]
            return (d * squares[:, None]) @ d.transpose(1, 2)
        if isinstance(first, Lookup):
            roots = self.grid.T[first.index].sqrt()  # [B, T, O]
            stacked = torch.stack([(f.d @ self.q_g) * roots for f in factors if isinstance(f, Lookup)], 1).flatten(2)
        else:
            roots = self.grid[:, self.empty :].sqrt()
            stacked = torch.stack([self._rotated(f) * roots for f in factors], 1).flatten(2)
        return stacked @ stacked.transpose(1, 2)

    def root(self, noise: Tensor) -> Tensor:
        """Return R ε [M, O, I] with R Rᵀ = H⁻¹."""
        back: Tensor = self.q_g @ (noise * self.grid.sqrt())
        return back if self.q_a is None else back @ self.q_a.T

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store."""
        empty, sequences = torch.tensor(self.empty), torch.tensor(self.sequences)
        named = {"q_g": self.q_g, "empty": empty, "sequences": sequences, "grid": self.grid, "u": self.u, "v": self.v}
        return named if self.q_a is None else {**named, "q_a": self.q_a}

    def _stays_factored(self, factor: Outer) -> bool:
        """Whether T·R terms of O + I numbers are fewer than O·I, or the grid has rank one."""
        out, inp = self.grid.shape
        terms = factor.d.shape[1] * len(self.u)
        exact = (factor.d.shape[1] == 1 and not self.sequences) or len(self.u) == 1
        return exact and terms * (out + inp) <= max(out * inp, factor.d.shape[1] * (out + inp))

    def _precondition_lookup(self, factor: Lookup) -> Lookup:
        """Return H⁻¹ g for an embedding, exactly: the input side is already diagonal."""
        scales = self.grid.T[factor.index]  # [B, T, O]
        return Lookup(((factor.d @ self.q_g) * scales) @ self.q_g.T, factor.index, factor.width)

    def _input_squares(self, a: Tensor) -> Tensor:
        """Return Σ_i S_oi ã_i² [B, O] of training inputs [B, I]."""
        if self.q_a is None:
            return a.square() @ self.grid.T
        return (a @ self.q_a[:, self.empty :]).square_() @ self.grid[:, self.empty :].T

    def _rotate(self, a: Tensor) -> Tensor:
        """Return a in the eigenbasis of the input side (always a new tensor)."""
        return a.clone() if self.q_a is None else a @ self.q_a

    def _rotated(self, factor: Factor) -> Tensor:
        """Return training gradients in the eigenbasis, multiplied out [B, O, K]."""
        return rotated(factor, self.q_g, None if self.q_a is None else self.q_a[:, self.empty :])


@dataclass(frozen=True, eq=False)
class DenseInverse:
    """H⁻¹ [P, P] of a layer with few parameters, P = O·I."""

    inverse: Tensor

    def precondition(self, factor: Factor) -> Factor:
        """Return H⁻¹ g, multiplied out."""
        matrix = factor.matrix()
        return Matrix((matrix.flatten(1) @ self.inverse).reshape(matrix.shape))

    def quadratic(self, factor: Factor) -> Tensor:
        """Return gᵀ H⁻¹ g [B]."""
        flat = factor.matrix().flatten(1)
        return ((flat @ self.inverse) * flat).sum(1)

    def leverage(self, factors: list[Factor]) -> Tensor:
        """Return J H⁻¹ Jᵀ [B, C, C]."""
        flat = torch.stack([f.matrix().flatten(1) for f in factors], 1)  # [B, C, P]
        return (flat @ self.inverse) @ flat.transpose(1, 2)

    def root(self, noise: Tensor) -> Tensor:
        """Return R ε [M, O, I] with R Rᵀ = H⁻¹."""
        return (noise.flatten(1) @ self._root.T.to(noise.dtype)).reshape(noise.shape)

    @cached_property
    def _root(self) -> Tensor:
        return square_root(self.inverse)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store."""
        return {"inverse": self.inverse}


@dataclass(frozen=True, eq=False)
class BlockPreconditioner:
    """A block-diagonal preconditioner: one inverse a layer.

    Args:
        inverses: Inverse of every layer; a layer that maps to None is left as it is (identity).
        details: What to say about the fit.
    """

    inverses: Mapping[str, LayerInverse | None]
    details: dict[str, Any]

    def precondition(self, gradients: Gradients) -> Gradients:
        """Return H⁻¹ g, layer by layer."""
        return Gradients({name: self._one(name, factor) for name, factor in gradients.layers.items()})

    def quadratic(self, gradients: Gradients) -> Tensor:
        """Return gᵀ H⁻¹ g [B]."""
        parts = []
        for name, factor in gradients.layers.items():
            inverse = self.inverses[name]
            parts.append(squared_norm(factor) if inverse is None else inverse.quadratic(factor))
        return torch.stack(parts).sum(0)

    def leverage(self, jacobians: list[Gradients]) -> Tensor:
        """Return J H⁻¹ Jᵀ [B, C, C]."""
        parts = []
        for name in jacobians[0].layers:
            factors = [jacobian.layers[name] for jacobian in jacobians]
            inverse = self.inverses[name]
            parts.append(_gram(factors) if inverse is None else inverse.leverage(factors))
        return torch.stack(parts).sum(0)

    def root(self, noise: Gradients) -> Gradients:
        """Return R ε with R Rᵀ = H⁻¹, of standard normal ε: a draw from a Gaussian of that covariance."""
        layers: dict[str, Factor] = {}
        for name, factor in noise.layers.items():
            inverse, matrix = self.inverses[name], factor.matrix()
            layers[name] = Matrix(matrix if inverse is None else inverse.root(matrix))
        return Gradients(layers)

    def summary(self) -> dict[str, Any]:
        """Return what was fitted."""
        return self.details

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return settings and tensors."""
        tensors = {
            f"{name}/{key}": tensor.contiguous()
            for name, inverse in self.inverses.items()
            if inverse is not None
            for key, tensor in inverse.tensors().items()
        }
        untouched = [name for name, inverse in self.inverses.items() if inverse is None]
        settings = {"kind": "blocks", "layers": list(self.inverses), "identity": untouched, "details": self.details}
        return settings, tensors

    def _one(self, name: str, factor: Factor) -> Factor:
        inverse = self.inverses[name]
        return factor if inverse is None else inverse.precondition(factor)


def block_from_state(settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> BlockPreconditioner:
    """Restore what `BlockPreconditioner.state` returned."""
    inverses: dict[str, LayerInverse | None] = {}
    for name in settings["layers"]:
        own = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.rpartition("/")[0] == name}
        if name in settings["identity"]:
            inverses[name] = None
        elif "inverse" in own:
            inverses[name] = DenseInverse(own["inverse"])
        else:
            empty, sequences = int(own["empty"]), bool(own.get("sequences", False))  # runs of before do not say
            inverses[name] = EigenInverse(
                own["q_g"], own.get("q_a"), empty, own["grid"], own["u"], own["v"], sequences=sequences
            )
    return BlockPreconditioner(inverses, settings["details"])


def rotated(factor: Factor, q_g: Tensor, q_a: Tensor | None) -> Tensor:
    """Return Q_Gᵀ g Q_A, multiplied out [B, O, K] and always new, in the order that costs least."""
    if isinstance(factor, Outer):
        positions, out, inp = factor.d.shape[1], factor.d.shape[2], factor.a.shape[2]
        kept = inp if q_a is None else q_a.shape[1]
        factors_first = positions * (out * out + inp * kept + out * kept)
        product_first = positions * out * inp + out * out * inp + out * inp * kept
        if factors_first <= product_first:
            a = factor.a if q_a is None else factor.a @ q_a
            return (factor.d @ q_g).transpose(1, 2) @ a
    product = q_g.T @ factor.matrix()
    return product if q_a is None else product @ q_a


def _gram(factors: list[Factor]) -> Tensor:
    """Return J Jᵀ [B, C, C]."""
    first = factors[0]
    if isinstance(first, Outer) and first.d.shape[1] == 1:
        d = torch.stack([f.d[:, 0] for f in factors if isinstance(f, Outer)], 1)  # [B, C, O]
        return (d @ d.transpose(1, 2)) * first.a[:, 0].square().sum(1)[:, None, None]
    if isinstance(first, Lookup):
        flat = torch.stack([f.d.flatten(1) for f in factors if isinstance(f, Lookup)], 1)
    else:
        flat = torch.stack([f.matrix().flatten(1) for f in factors], 1)
    return flat @ flat.transpose(1, 2)
