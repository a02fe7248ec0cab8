"""The Neumann series preconditioned by EK-FAC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from whence.curvature.base import (
    DEFAULT_DAMPING,
    Curvature,
    Damping,
    Preconditioner,
    validate_damping,
    validate_fisher,
)
from whence.curvature.ekfac import EKFAC
from whence.curvature.joint import JointPreconditioner, damping_of, validate_solver
from whence.curvature.stationary import Schedule, StationarySolver, batches_by_id, largest_of_batches
from whence.errors import ConfigError
from whence.gradients import Fisher, GradientStream
from whence.gradients.products import Products

__all__ = ["Neumann"]

_MARGIN = 1.1


@dataclass(frozen=True, kw_only=True)
class Neumann:
    r"""x ← x + α P (v − (H + shift) x) from x = 0, with P = EK-FAC's (or another) inverse; shift = damping + decay.

    One step is αP v, the preconditioner's own answer scaled; every further step corrects it by the exact
    Gauss–Newton matrix, cross-terms between layers included, towards (H + shift)⁻¹ v.

    Args:
        damping: A number, or `Relative` to the mean eigenvalue of the Gauss–Newton matrix over all layers.
        preconditioner: P: `EKFAC` (default), `KFAC`, `Diagonal`.
        steps: Steps.
        batch: Examples a step, keyed by id; None for all the training examples.
        step_size: "auto": α = 1 / (1.1 × the largest eigenvalue of P (H + shift) that power iteration finds), halved
            for a query whose iteration still diverges; or a number. Stated in the summary, where ``scales`` count the
            queries at each 1 / α.
        fisher: As in `CG`.
        tolerance: Largest relative residual, on all the data, that counts as converged.
        require_convergence: Raise if it is not reached. The default is False: a few steps are meant to be few, and
            the residual stands in the summary.

    Raises:
        NumericalError: The iteration diverges, or does not converge where that is required.

    Cost: the preconditioner's fit, up to 12 products for α, then one product a step (batch / N of one with batches);
    `CG(preconditioner=EKFAC())` converges in fewer. Self-scores take a solve an example. Applying it needs the
    training examples.

    Reference: the EK-FAC-preconditioned stochastic Neumann iteration of ASTRA (Wang et al., 2025). Deviations: α is
    chosen by power iteration, all the data a step is the default, the residual is computed.
    """

    damping: Damping = DEFAULT_DAMPING
    preconditioner: Curvature = field(default_factory=EKFAC)
    steps: int = 20
    batch: int | None = None
    step_size: float | Literal["auto"] = "auto"
    fisher: Fisher = "auto"
    tolerance: float = 0.1
    require_convergence: bool = False

    def __post_init__(self) -> None:
        validate_damping(self.damping)
        validate_fisher(self.fisher)
        validate_solver(self.tolerance, steps=self.steps, batch=self.batch)
        if self.step_size != "auto" and not 0 < self.step_size < float("inf"):
            raise ConfigError(f'step_size must be a positive number or "auto", got {self.step_size!r}.')

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit the preconditioner and α; iterating comes with the queries."""
        inner = self.preconditioner.fit(stream, seed=seed)
        products = Products(batches_by_id(stream, self.batch, seed), self.fisher, seed)
        damped = damping_of(self.damping, products)
        shift = damped + stream.task.weight_decay
        auto = self.step_size == "auto"
        if auto:
            scale = _MARGIN * largest_of_batches(products, shift, inner, batch=self.batch, seed=seed)
        else:
            scale = 1 / float(self.step_size)
        schedule = Schedule(steps=self.steps, repeats=1, batch=self.batch, tolerance=self.tolerance, seed=seed)
        details = {
            "curvature": "neumann",
            "matrix": f"Fisher ({products.fisher})",
            "damping": damped,
            "effective_damping": shift,
            "step_size": 1 / scale,
            "tolerance": self.tolerance,
            "preconditioner": inner.summary(),
        }
        solver = StationarySolver(products, shift, scale, inner, schedule, auto)
        return JointPreconditioner(solver, details, self.require_convergence)
