"""A preconditioner over all attributed parameters together, made of a solver for dense vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from whence.curvature.base import Damping, Preconditioner, absolute
from whence.curvature.solve import Solution
from whence.errors import ConfigError, NumericalError
from whence.gradients import Gradients, Matrix
from whence.gradients.products import Products, join_vectors, split_vectors

__all__ = ["JointPreconditioner", "Solver", "as_map", "damping_of", "validate_solver"]

_BLOCK_BYTES = 2**30
_COPIES = 8


class Solver(Protocol):
    """Solves (H + shift) x = v for dense vectors."""

    @property
    def products(self) -> Products:
        """The curvature as a linear map."""

    def solve(self, right: Tensor) -> Solution:
        """Return x for every row of ``right`` [Q, P]."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return settings and tensors from which it can be restored beside the training examples."""


@dataclass(frozen=True, eq=False)
class JointPreconditioner:
    """H⁻¹ by solving: every product goes over the training examples again, all queries of a block at once.

    Args:
        solver: Solves for dense vectors.
        details: What to say about the fit.
        require_convergence: Raise if a solve does not reach its tolerance.
    """

    solver: Solver
    details: dict[str, Any]
    require_convergence: bool
    _solves: dict[str, Any] = field(default_factory=dict, repr=False)

    def precondition(self, gradients: Gradients) -> Gradients:
        """Return H⁻¹ g, multiplied out."""
        dtype = next(iter(next(iter(gradients.layers.values())).tensors().values())).dtype
        value = torch.cat([self._solve(block.dense()) for block in self._blocks(gradients, 1)])
        shapes = self.solver.products.shapes
        return Gradients({name: Matrix(m.to(dtype)) for name, m in split_vectors(value, shapes).items()})

    def quadratic(self, gradients: Gradients) -> Tensor:
        """Return gᵀ H⁻¹ g [B]: one solve an example, in blocks."""
        parts = []
        for block in self._blocks(gradients, 1):
            flat = block.dense()
            parts.append((self._solve(flat) * flat).sum(1))
        return torch.cat(parts)

    def leverage(self, jacobians: list[Gradients]) -> Tensor:
        """Return J H⁻¹ Jᵀ [B, C, C]: C solves an example, in blocks."""
        parts = []
        for blocks in zip(*(self._blocks(j, len(jacobians)) for j in jacobians), strict=True):
            flat = torch.stack([block.dense() for block in blocks], 1)  # [B, C, P]
            solutions = self._solve(flat.flatten(0, 1)).reshape(flat.shape)
            parts.append(solutions @ flat.to(solutions.dtype).transpose(1, 2))
        return torch.cat(parts)

    def summary(self) -> dict[str, Any]:
        """Return what was fitted and how the solves so far went: the last block's, and the worst of all."""
        nothing = {"solves": 0, "steps": None, "residual": None, "converged": None, "last": None}
        return {**self.details, **(self._solves or nothing)}

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return settings and tensors; applying it needs the training examples."""
        settings, tensors = self.solver.state()
        return {**settings, "details": self.details, "require_convergence": self.require_convergence}, tensors

    def _solve(self, flat: Tensor) -> Tensor:
        """Solve one block, note how it went, and raise if it did not converge."""
        solution = self.solver.solve(flat.to(self.solver.products.dtype))
        found: dict[str, Any] = {
            "queries": len(flat),
            "steps": int(solution.steps.max()),
            "residual": float(solution.residual.max()),
            "converged": bool(solution.converged.all()),
        }
        earlier = self._solves or {"solves": 0, "steps": 0, "residual": 0.0, "converged": True}
        if solution.scale is not None:
            scales, counts = solution.scale.unique(return_counts=True)
            found["scales"] = {f"{float(scale):.6g}": int(n) for scale, n in zip(scales, counts, strict=True)}
            known = dict(self._solves.get("scales", {}))
            self._solves["scales"] = known | {key: known.get(key, 0) + n for key, n in found["scales"].items()}
        self._solves.update(
            solves=earlier["solves"] + len(flat),
            steps=max(earlier["steps"], found["steps"]),
            residual=max(earlier["residual"], found["residual"]),
            converged=earlier["converged"] and found["converged"],
            last=found,
        )
        if self.require_convergence and not found["converged"]:
            raise NumericalError(
                f"the solve must converge for every query, got a relative residual of {found['residual']:.3g} after "
                f"{found['steps']} steps. Raise damping, tolerance or the number of steps, compute in float64 with "
                "dtype=torch.float64, or take what there is with require_convergence=False."
            )
        return solution.value

    def _blocks(self, gradients: Gradients, copies: int) -> Iterator[Gradients]:
        """Yield examples in blocks whose dense vectors and their solver's copies fit in 1 GiB."""
        size = max(1, _BLOCK_BYTES // (self.solver.products.size * 8 * _COPIES * copies))
        for start in range(0, len(gradients), size):
            yield gradients.rows(slice(start, start + size))


def as_map(preconditioner: Preconditioner, products: Products) -> Any:
    """Return a preconditioner as a map of dense vectors [Q, P]; on the training gradients' own floating-point type."""
    task = products.stream.task

    def apply(vectors: Tensor) -> Tensor:
        layers = split_vectors(vectors.to(task.gradient_dtype), products.shapes)
        moved = preconditioner.precondition(Gradients({name: Matrix(m) for name, m in layers.items()}))
        return join_vectors({name: moved.layers[name].matrix() for name in layers}).to(vectors.dtype)

    return apply


def damping_of(damping: Damping, products: Products) -> float:
    """Return the absolute damping; `Relative` is to the mean eigenvalue over all layers together."""
    relative = not isinstance(damping, (int, float))
    return absolute(damping, products.mean_eigenvalue() if relative else 1.0)


def validate_solver(tolerance: float, **counts: int | None) -> None:
    """Raise unless the tolerance lies in (0, 1) and every count is at least 1 (or None)."""
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance must lie in (0, 1), got {tolerance}.")
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ConfigError(f"{name} must be an integer of at least 1, got {count!r}.")
