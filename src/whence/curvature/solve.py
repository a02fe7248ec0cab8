"""Iterative solvers of (H + shift) x = v for many v at once, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.errors import NumericalError

__all__ = ["Map", "Solution", "conjugate_gradients", "largest_eigenvalue", "richardson", "solved"]

Map = Callable[[Tensor], Tensor]
StepMap = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found.

    Args:
        value: x [Q, P].
        residual: ‖v − (H + shift) x‖ / ‖v‖ [Q], from one more product with the value that is returned.
        steps: Steps taken [Q].
        converged: Whether the residual is within the tolerance [Q].
        scale: Inverse step size of every row [Q], for iterations that have one.
    """

    value: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor
    scale: Tensor | None = None


def solved(product: Map, right: Tensor, value: Tensor, steps: Tensor, tolerance: float) -> Solution:
    """Return a value with its true residual. Cost: one product."""
    residual = (right - product(value)).norm(dim=1) / _norms(right)
    return Solution(value, residual, steps, residual <= tolerance)


def conjugate_gradients(
    product: Map, right: Tensor, precondition: Map | None, *, tolerance: float, max_steps: int
) -> Solution:
    """Solve A x = v for every row v of ``right`` [Q, P] at once, each row to its own tolerance.

    Rows that are done leave the block. When the recurrence says that all are done the true residual is computed, and
    rows that rounding has led astray start again from where they are, while that still helps.

    Args:
        product: V ↦ A V, A symmetric and positive definite.
        right: The right-hand sides.
        precondition: V ↦ M⁻¹ V, symmetric and positive definite, or None.
        tolerance: Largest relative residual.
        max_steps: Most products a row.

    Raises:
        NumericalError: Negative curvature was met, or numbers are not finite.
    """
    norms = _norms(right)
    value, residual = torch.zeros_like(right), right.clone()
    steps = torch.zeros(len(right), dtype=torch.long, device=right.device)
    error = residual.norm(dim=1) / norms
    running = error > tolerance
    while bool(running.any()):
        rows = running.nonzero()[:, 0]
        limits, targets = max_steps - steps[rows], tolerance * norms[rows]
        change, taken = _sweep(product, precondition, residual[rows], targets, limits)
        value[rows] += change
        steps[rows] += taken
        residual[rows] = right[rows] - product(value[rows])
        after = residual[rows].norm(dim=1) / norms[rows]
        running[rows] = (after > tolerance) & (after < 0.5 * error[rows]) & (steps[rows] < max_steps)
        error[rows] = after
    return Solution(value, error, steps, error <= tolerance)


def richardson(
    step_product: StepMap, right: Tensor, precondition: Map, *, steps: int, bound: float
) -> tuple[Tensor, Tensor]:
    """Return x after ``steps`` times x ← x + M (v − A_k x) from zero, for the rows that stay bounded.

    A row that diverges leaves the block, so that no row's answer depends on the others.

    Args:
        step_product: (k, V) ↦ A_k V; the operator may differ from step to step.
        right: v [Q, P].
        precondition: M, step size included.
        steps: Number of steps.
        bound: How large ‖x‖ / ‖v‖ may become.

    Returns:
        The values of R rows [R, P] and their positions in ``right`` [R].
    """
    value, largest = torch.zeros_like(right), bound * _norms(right)
    rows = torch.arange(len(right), device=right.device)
    for number in range(steps):
        value = value + precondition(right - step_product(number, value))
        held = value.norm(dim=1) <= largest
        if not bool(held.all()):
            value, right, largest, rows = value[held], right[held], largest[held], rows[held]
            if not len(rows):
                break
    return value, rows


def largest_eigenvalue(product: Map, precondition: Map, start: Tensor, *, steps: int) -> float:
    """Return an estimate from below of the largest eigenvalue of M A, by power iteration from ``start`` [1, P].

    The quotient ⟨Aw, M A w⟩ / ⟨w, A w⟩ is at least the Rayleigh quotient of w and at most the eigenvalue.
    """
    w, largest = start, 0.0
    for _ in range(steps):
        image = product(w)
        moved = precondition(image)
        below = float((w * image).sum())
        if not below > 0:
            break  # in the null space: nothing larger is to be found from here
        largest = max(largest, float((image * moved).sum()) / below)
        w = moved / moved.norm()
    return largest


def _sweep(
    product: Map, precondition: Map | None, residual: Tensor, targets: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor]:
    """Run preconditioned conjugate gradients for the corrections; return them and the steps that each row took."""
    apply = precondition if precondition is not None else torch.clone
    change = torch.zeros_like(residual)
    taken = torch.zeros_like(limits)
    index = torch.arange(len(residual), device=residual.device)
    r = residual
    z = apply(r)
    p, rz = z, (r * z).sum(1)
    while len(index):
        image = product(p)
        curvature = (p * image).sum(1)
        _check_positive(curvature, p, rz)
        alpha = (rz / curvature)[:, None]
        change[index] += alpha * p
        r = r - alpha * image
        taken[index] += 1
        going = (r.norm(dim=1) > targets[index]) & (taken[index] < limits[index])
        index, r, p, before = index[going], r[going], p[going], rz[going]
        if len(index):
            z = apply(r)
            rz = (r * z).sum(1)
            p = z + (rz / before)[:, None] * p
    return change, taken


def _check_positive(curvature: Tensor, directions: Tensor, energy: Tensor) -> None:
    """Raise unless every direction has positive curvature and every residual positive energy."""
    if not (torch.isfinite(curvature).all() and torch.isfinite(energy).all()):
        raise NumericalError(
            "products with the curvature must be finite, got NaN or infinity. Check the inputs and the loss."
        )
    if not bool((energy > 0).all()):
        raise NumericalError(
            f"the preconditioner must be positive definite, got rᵀM⁻¹r = {float(energy.min()):.3g}. Raise its damping."
        )
    if not bool((curvature > 0).all()):
        quotient = curvature / directions.square().sum(1)
        raise NumericalError(
            "the curvature plus damping and weight decay must be positive definite, got a direction of curvature "
            f"{float(quotient.min()):.3g}. Use the Gauss-Newton matrix (hessian=False) or raise damping."
        )


def _norms(right: Tensor) -> Tensor:
    """Return the norms of the rows, never zero."""
    norms: Tensor = right.norm(dim=1)
    return norms.clamp(min=torch.finfo(right.dtype).tiny)
