"""What K-FAC and EK-FAC share: covariances, eigenbases and the low-rank form of a grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.curvature.base import Damping, absolute, eigen
from whence.curvature.blocks import DenseInverse, EigenInverse
from whence.errors import NumericalError
from whence.gradients import Factor, Fisher, Gradients, GradientStream, Layer, Lookup, Matrix, Outer

__all__ = ["Covariance", "Eigenbasis", "FisherPass", "covariances", "dense_inverse", "low_rank", "second_moments"]


@dataclass(frozen=True, eq=False)
class FisherPass:
    """Streams the Fisher's gradients; what fits into the budget is kept for the next pass.

    Args:
        stream: The training gradients.
        fisher: Kind of Fisher matrix.
        seed: Seed of sampled labels.
        budget: Bytes that may be kept.
        kept: Chunks kept so far.
    """

    stream: GradientStream
    fisher: Fisher
    seed: int
    budget: int
    kept: list[list[Gradients]]

    def first(self) -> Iterator[list[Gradients]]:
        """Yield every chunk's gradients, keeping all of them or none."""
        used = 0
        for chunk in self.stream.chunks():
            gradients = self.stream.fisher(chunk, self.fisher, self.seed)
            used += sum(_bytes(g) for g in gradients)
            if used <= self.budget:
                self.kept.append(gradients)
            else:
                self.kept.clear()
            yield gradients

    def again(self) -> Iterator[list[Gradients]]:
        """Yield the same gradients once more: from memory, or by another pass."""
        if self.kept:
            while self.kept:
                yield self.kept.pop(0)
            return
        for chunk in self.stream.chunks():
            yield self.stream.fisher(chunk, self.fisher, self.seed)


@dataclass(eq=False)
class Covariance:
    """Sums of one layer: Σ a aᵀ over positions (a diagonal for embeddings), Σ δ δᵀ, or Σ g gᵀ of small layers."""

    inputs: Tensor
    outputs: Tensor
    positions: int = 0

    def update(self, factor: Factor, weight: float) -> None:
        """Add a chunk; ``weight`` is its share of one input covariance (1 / number of backward passes)."""
        if isinstance(factor, Matrix):
            flat = factor.m.flatten(1)
            self.outputs += flat.T @ flat
            return
        d = factor.d.reshape(-1, factor.d.shape[-1])
        self.outputs += d.T @ d
        if weight == 0.0:
            return
        if isinstance(factor, Lookup):
            used = factor.index[(factor.d != 0).any(-1)]
            self.inputs.index_add_(0, used, torch.ones_like(used, dtype=self.inputs.dtype))
            self.positions += used.numel()
        else:
            a = factor.a.reshape(-1, factor.a.shape[-1])
            self.inputs += a.T @ a
            self.positions += len(a)


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Eigenvalues and eigenvectors of both sides of one layer, in float64; q_a None is the identity."""

    s_g: Tensor
    q_g: Tensor
    s_a: Tensor
    q_a: Tensor | None


def covariances(stream: GradientStream, chunks: Iterator[list[Gradients]]) -> dict[str, Covariance]:
    """Return every layer's covariance sums, accumulated in float64."""
    sums: dict[str, Covariance] = {}
    for gradients in chunks:
        for number, part in enumerate(gradients):
            for name, factor in part.layers.items():
                if name not in sums:
                    sums[name] = _zeros(factor)
                sums[name].update(factor, 1.0 if number == 0 else 0.0)
    return sums


def eigenbases(sums: dict[str, Covariance], count: int) -> dict[str, Eigenbasis]:
    """Return the eigenbases of all Kronecker layers. Input side averaged over positions, output side summed."""
    bases = {}
    for name, covariance in sums.items():
        if covariance.inputs.ndim == 0:
            continue
        s_g, q_g = eigen(covariance.outputs / count, name)
        scaled = covariance.inputs / max(1, covariance.positions)
        s_a, q_a = (scaled, None) if scaled.ndim == 1 else eigen(scaled, name)
        bases[name] = Eigenbasis(s_g, q_g, s_a, q_a)
    return bases


def second_moments(
    bases: dict[str, Eigenbasis], chunks: Iterator[list[Gradients]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return Σ_i g̃_oi² over all examples in the eigenbasis, [O, I] a layer, accumulated in float64."""
    totals = {
        name: torch.zeros(len(basis.s_g), len(basis.s_a), dtype=torch.float64, device=basis.s_g.device)
        for name, basis in bases.items()
    }
    rotations = {
        name: (basis.q_g.to(dtype), None if basis.q_a is None else basis.q_a.to(dtype))
        for name, basis in bases.items()
    }
    for gradients in chunks:
        inputs: dict[str, Tensor] = {}
        for part in gradients:
            for name, total in totals.items():
                q_g, q_a = rotations[name]
                factor = part.layers[name]
                if isinstance(factor, Lookup):
                    d = (factor.d @ q_g).square().reshape(-1, len(total))
                    total.T.index_add_(0, factor.index.reshape(-1), d.double())
                elif isinstance(factor, Outer):
                    if name not in inputs:
                        inputs[name] = factor.a if q_a is None else factor.a @ q_a
                        if factor.a.shape[1] == 1:
                            inputs[name] = inputs[name][:, 0].square()
                    d = factor.d @ q_g
                    if factor.a.shape[1] == 1:
                        total += d[:, 0].square().T @ inputs[name]
                    else:
                        total += (d.transpose(1, 2) @ inputs[name]).square().sum(0)
    return totals


def low_rank(grid: Tensor, rows: Tensor, columns: Tensor, tolerance: float) -> tuple[Tensor, Tensor, float]:
    r"""Return u [R, O], v [R, I] with Σ_r u_r v_rᵀ ≈ grid where gradients live, and the residual.

    The SVD is of diag(rows) · grid · diag(columns): ``rows`` and ``columns`` are the gradients' second moments,
    so that entries that no gradient touches do not use up rank.

    Args:
        grid: [O, I], float64.
        rows: Weights [O] ≥ 0.
        columns: Weights [I] ≥ 0.
        tolerance: Largest relative Frobenius residual of the weighted grid.

    Cost: an eigen-decomposition of the smaller side.
    """
    floor = 1e-12
    left = rows.clamp(min=floor * float(rows.max()) or 1.0)
    right = columns.clamp(min=floor * float(columns.max()) or 1.0)
    weighted = left[:, None] * grid * right[None, :]
    wide = weighted if len(left) <= len(right) else weighted.T
    energies, basis = torch.linalg.eigh(wide @ wide.T)
    energies, basis = energies.flip(0).clamp(min=0.0), basis.flip(1)
    missing = 1 - energies.cumsum(0) / energies.sum().clamp(min=1e-300)
    rank = int((missing > tolerance**2).sum()) + 1
    kept = basis[:, :rank]  # [min(O, I), R]
    other = wide.T @ kept  # [max(O, I), R]
    u, v = (kept, other) if len(left) <= len(right) else (other, kept)
    residual = (weighted - u @ v.T).norm() / weighted.norm().clamp(min=1e-300)
    return (u / left[:, None]).T, (v / right[:, None]).T, float(residual)


def dense_inverse(outputs: Tensor, count: int, damping: Damping, decay: float, name: str) -> tuple[DenseInverse, float]:
    """Return the inverse of a small layer's whole Fisher block, and its absolute damping."""
    values, vectors = eigen(outputs / count, name)
    damped = absolute(damping, float(values.mean()))
    return DenseInverse((vectors / (values + invertible(damped + decay, values, name))) @ vectors.T), damped


def invertible(shift: float, eigenvalues: Tensor, name: str) -> float:
    """Return the shift, or raise if the curvature plus the shift is singular.

    Raises:
        NumericalError: The smallest eigenvalue plus the shift is not positive.
    """
    if not float(eigenvalues.min()) + shift > 1e-14 * float(eigenvalues.max()):
        raise NumericalError(
            f"curvature of layer {name!r} must be invertible, got a smallest eigenvalue of "
            f"{float(eigenvalues.min()):.2g} with damping {shift:.2g}. Use damping=Relative(0.1)."
        )
    return shift


def layer_shapes(layers: tuple[Layer, ...]) -> dict[str, tuple[int, int]]:
    """Return (O, I) by layer name."""
    return {layer.name: layer.shape for layer in layers}


def eigen_inverse(
    basis: Eigenbasis, grid: Tensor, factors: tuple[Tensor, Tensor], dtype: torch.dtype
) -> EigenInverse:
    """Return the layer's inverse in the type that gradients have."""
    q_a = None if basis.q_a is None else basis.q_a.to(dtype)
    return EigenInverse(basis.q_g.to(dtype), q_a, grid.to(dtype), factors[0].to(dtype), factors[1].to(dtype))


def _zeros(factor: Factor) -> Covariance:
    """Return empty sums for a layer."""
    device = next(iter(factor.tensors().values())).device
    if isinstance(factor, Matrix):
        size = factor.m[0].numel()
        return Covariance(torch.zeros((), device=device), torch.zeros(size, size, dtype=torch.float64, device=device))
    out = factor.d.shape[-1]
    outputs = torch.zeros(out, out, dtype=torch.float64, device=device)
    shape = (factor.width,) if isinstance(factor, Lookup) else (factor.a.shape[-1],) * 2
    return Covariance(torch.zeros(shape, dtype=torch.float64, device=device), outputs)


def _bytes(gradients: Gradients) -> int:
    """Return the memory of the gradients' tensors."""
    return sum(
        tensor.numel() * tensor.element_size()
        for factor in gradients.layers.values()
        for tensor in factor.tensors().values()
    )
