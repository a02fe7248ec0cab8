"""What K-FAC and EK-FAC share: covariances, eigenbases and the low-rank form of a grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.curvature.base import eigen
from whence.curvature.blocks import DenseInverse, EigenInverse, rotated
from whence.curvature.covariance import Covariance
from whence.curvature.damping import DampingRule
from whence.errors import NumericalError
from whence.gradients import Factor, Fisher, Gradients, GradientStream, Lookup, Outer

__all__ = [
    "Eigenbasis",
    "FisherPass",
    "dense_inverse",
    "eigen_inverse",
    "eigenbases",
    "energies",
    "invertible",
    "low_rank",
    "second_moments",
    "weigh",
]

_BUFFER_ROWS = 512
_EMPTY = 1e-14


@dataclass(frozen=True, eq=False)
class FisherPass:
    """One or two passes over gradients whose outer products make the Fisher matrix; kept where the budget allows.

    The gradients of the training loss come out of the same forward passes where the stream can keep them too.

    Args:
        stream: The training gradients.
        kind: Kind of Fisher matrix.
        seed: Seed of sampled labels.
        twice: Whether `again` will be called.
        kept: Chunks kept so far.
    """

    stream: GradientStream
    kind: Fisher
    seed: int
    twice: bool = True
    kept: list[list[Gradients]] = field(default_factory=list)

    def first(self) -> Iterator[list[Gradients]]:
        """Yield every chunk's gradients, one entry a backward pass."""
        for chunk in self.stream.chunks():
            fisher = self.stream.fisher(chunk, self.kind, self.seed, keep=True)
            yield fisher
            kept = fisher if self.twice else []
            if self.stream.fits(*kept, fisher[0]):
                if kept:
                    self.kept.append([gradients.compact() for gradients in kept])
                self.stream.remember(chunk, chunk.training())

    def again(self) -> Iterator[list[Gradients]]:
        """Yield the same gradients once more: from memory, or by another pass."""
        if sum(len(fisher[0]) for fisher in self.kept) == len(self.stream.examples):
            yield from self.kept
            return
        for chunk in self.stream.chunks():
            yield self.stream.fisher(chunk, self.kind, self.seed)


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Eigenvalues and eigenvectors of both sides of one layer, in float64; q_a None is the identity.

    ``sequences`` says that there were inputs of several positions.
    """

    s_g: Tensor
    q_g: Tensor
    s_a: Tensor
    q_a: Tensor | None
    empty: int = 0
    sequences: bool = False

    @property
    def kept(self) -> slice:
        """The input directions that are there."""
        return slice(self.empty, None)

    def reduced(self, dtype: torch.dtype) -> Eigenbasis:
        """Return the basis without the input directions in which no training input lies.

        Eigenvalues ascend, so the dropped directions are the first; together they hold at most 1e-14 of Σ s_a: columns
        of a scale 10⁶ times smaller than the others' are still told apart.
        """
        if self.q_a is None:
            return Eigenbasis(self.s_g, self.q_g.to(dtype), self.s_a, None)
        first = int((self.s_a.cumsum(0) <= _EMPTY * self.s_a.sum()).sum())
        empty = min(first, len(self.s_a) - 1)
        return Eigenbasis(self.s_g, self.q_g.to(dtype), self.s_a, self.q_a[:, empty:].to(dtype).contiguous(), empty)


def eigenbases(sums: dict[str, Covariance], count: int) -> dict[str, Eigenbasis]:
    """Return the eigenbases of all Kronecker layers. Input side averaged over positions, output side summed."""
    bases = {}
    for name, covariance in sums.items():
        if covariance.whole:
            continue
        s_g, q_g = eigen(covariance.outputs.total / count, name)
        scaled = covariance.mean_inputs()
        s_a, q_a = (scaled, None) if scaled.ndim == 1 else eigen(scaled, name)
        bases[name] = Eigenbasis(s_g, q_g, s_a, q_a, sequences=covariance.sequences)
    return bases


class SecondMoment:
    """Σ g̃² [O, I] of one layer in float64, g̃ = Q_Gᵀ g Q_A; directions that no input lies in are skipped.

    Args:
        basis: The layer's eigenbasis.
        dtype: What products are computed in.
    """

    def __init__(self, basis: Eigenbasis, dtype: torch.dtype) -> None:
        self.basis = basis.reduced(dtype)
        self.total = torch.zeros(len(basis.s_g), len(basis.s_a), dtype=torch.float64, device=basis.s_g.device)
        self._kept = self.total[:, self.basis.kept]
        self._buffer = torch.empty(0, dtype=dtype, device=basis.s_g.device)

    def update(self, fisher: list[Factor]) -> None:
        """Add a chunk: one factor a backward pass, all with the same inputs."""
        first = fisher[0]
        if isinstance(first, Outer) and first.d.shape[1] == 1:
            self._update_outers(first.a[:, 0], [factor.tensors()["d"][:, 0] for factor in fisher])
            return
        for factor in fisher:
            if isinstance(factor, Lookup):
                squares = (factor.d @ self.basis.q_g).square().flatten(0, 1)
                self.total.T.index_add_(0, factor.index.reshape(-1), squares.double())
            else:
                self._kept += rotated(factor, self.basis.q_g, self.basis.q_a).square_().sum(0)

    def _update_outers(self, a: Tensor, deltas: list[Tensor]) -> None:
        """Add gradients without positions, a few rows at a time in a buffer that stays in cache."""
        outputs = [(d @ self.basis.q_g).square_() for d in deltas]  # [B, O]
        if len(self._buffer) < min(len(a), _BUFFER_ROWS):
            self._buffer = a.new_empty(min(len(a), _BUFFER_ROWS), self._kept.shape[1])
        for start in range(0, len(a), _BUFFER_ROWS):
            some = a[start : start + _BUFFER_ROWS]
            inputs = self._buffer[: len(some)]  # [B, K]
            if self.basis.q_a is None:
                torch.square(some, out=inputs)
            else:
                torch.mm(some, self.basis.q_a, out=inputs).square_()
            for squares in outputs:
                self._kept += squares[start : start + _BUFFER_ROWS].T @ inputs


def second_moments(
    bases: dict[str, Eigenbasis], samples: Iterator[list[Gradients]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return Σ g̃² [O, I] of every layer, in float64."""
    moments = {name: SecondMoment(basis, dtype) for name, basis in bases.items()}
    for sample in samples:
        for name, moment in moments.items():
            moment.update([part.layers[name] for part in sample])
    return {name: moment.total for name, moment in moments.items()}


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
    left, right, weighted = weigh(grid, rows, columns)
    wide = weighted if len(left) <= len(right) else weighted.T
    found, basis = energies(weighted)
    missing = 1 - found.cumsum(0) / found.sum().clamp(min=1e-300)
    rank = int((missing > tolerance**2).sum()) + 1
    kept = basis[:, :rank]  # [min(O, I), R]
    other = wide.T @ kept  # [max(O, I), R]
    u, v = (kept, other) if len(left) <= len(right) else (other, kept)
    residual = (weighted - u @ v.T).norm() / weighted.norm().clamp(min=1e-300)
    return (u / left[:, None]).T, (v / right[:, None]).T, float(residual)


def energies(weighted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared singular values of a weighted grid, descending, and the vectors of its smaller side."""
    wide = weighted if len(weighted) <= weighted.shape[1] else weighted.T
    found, basis = torch.linalg.eigh(wide @ wide.T)
    return found.flip(0).clamp(min=0.0), basis.flip(1)


def weigh(grid: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of both sides, away from zero, and diag(rows) · grid · diag(columns)."""
    floor = 1e-12
    left = rows.clamp(min=floor * float(rows.max()) or 1.0)
    right = columns.clamp(min=floor * float(columns.max()) or 1.0)
    return left, right, left[:, None] * grid * right[None, :]


def dense_inverse(covariance: Covariance, rule: DampingRule, name: str) -> tuple[DenseInverse, dict[str, float]]:
    """Return the inverse of a small layer's whole Fisher block, its absolute damping and its effective parameters."""
    values, vectors = eigen(covariance.outputs.total / rule.count, name)
    damped = rule.choose(name, values)
    shifted = values + invertible(damped + rule.decay, values, name)
    told = {"damping": damped, "effective": float((values / shifted).sum())}
    return DenseInverse((vectors / shifted) @ vectors.T), told


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


def eigen_inverse(basis: Eigenbasis, grid: Tensor, factors: tuple[Tensor, Tensor], dtype: torch.dtype) -> EigenInverse:
    """Return the layer's inverse in the type that gradients have."""
    q_a = None if basis.q_a is None else basis.q_a.to(dtype)
    u, v = (factor.to(dtype) for factor in factors)
    empty = basis.reduced(dtype).empty
    return EigenInverse(basis.q_g.to(dtype), q_a, empty, grid.to(dtype), u, v, sequences=basis.sequences)
