"""LiSSA: the stochastic Neumann series of the inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from whence.curvature.base import DEFAULT_DAMPING, Damping, Preconditioner, validate_damping, validate_fisher
from whence.curvature.joint import JointPreconditioner, damping_of, validate_solver
from whence.curvature.stationary import Schedule, StationarySolver, batches_by_id, largest_of_batches
from whence.errors import ConfigError
from whence.gradients import Fisher, GradientStream
from whence.gradients.products import Products

__all__ = ["LiSSA"]

_MARGIN = 1.25


@dataclass(frozen=True, kw_only=True)
class LiSSA:
    r"""Linear-time stochastic second-order algorithm: h ← v + (1 − damp) h − H_batch h / scale, answer h / scale.

    Its fixed point is (H + scale·damp I)⁻¹ v. Here the *effective* damping is what is asked for: ``damping`` plus the
    weight decay is scale·damp, whatever the scale (so the often-copied damp .01 and scale 25 are ``damping=0.25``).
    The summary states both. The answer is averaged over ``repeats`` runs with batches in other orders.

    Args:
        damping: A number, or `Relative` to the mean eigenvalue of the Gauss–Newton matrix over all layers.
        depth: Steps of a run. About (scale / effective damping) · log(1 / tolerance) are needed.
        batch: Examples a step. Batches are made and ordered by the examples' ids.
        repeats: Runs to average.
        scale: "auto" (1.25 × the largest eigenvalue that power iteration finds in up to 8 batches, doubled for a
            query whose iteration still diverges; the summary's ``scales`` count the queries at each), or a number
            above half the largest eigenvalue.
        hessian: Use the Hessian of the training loss.
        fisher: As in `CG`.
        tolerance: Largest relative residual, on all the data, that counts as converged; batches leave noise.
        require_convergence: Raise if it is not reached; False for the truncated series, with its residual in the
            summary.

    Raises:
        NumericalError: The iteration diverges or does not converge.

    Cost: depth·repeats·batch / N passes for the steps and one for the residual, per block of queries; self-scores a
    solve an example, as `CG`. Applying it needs the training examples.

    Reference: Agarwal, Bullins & Hazan (2017); Koh & Liang (2017), §3. Deviations: the effective damping is the
    setting, a Gauss–Newton matrix is the default, batches do not depend on a loader, the residual is computed.
    """

    damping: Damping = DEFAULT_DAMPING
    depth: int = 1000
    batch: int = 128
    repeats: int = 1
    scale: float | Literal["auto"] = "auto"
    hessian: bool = False
    fisher: Fisher = "auto"
    tolerance: float = 0.1
    require_convergence: bool = True

    def __post_init__(self) -> None:
        validate_damping(self.damping)
        validate_fisher(self.fisher)
        validate_solver(self.tolerance, depth=self.depth, batch=self.batch, repeats=self.repeats)
        if self.scale != "auto" and not 0 < self.scale < float("inf"):
            raise ConfigError(f'scale must be a positive number or "auto", got {self.scale!r}.')

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit the scale; iterating comes with the queries."""
        batches = batches_by_id(stream, self.batch, seed)
        products = Products(batches, "hessian" if self.hessian else self.fisher, seed)
        damped = damping_of(self.damping, products)
        shift = damped + stream.task.weight_decay
        auto = self.scale == "auto"
        largest = largest_of_batches(products, shift, None, batch=self.batch, seed=seed) if auto else 0.0
        scale = _MARGIN * largest if auto else float(self.scale)
        schedule = Schedule(
            steps=self.depth, repeats=self.repeats, batch=self.batch, tolerance=self.tolerance, seed=seed
        )
        details = {
            "curvature": "lissa",
            "matrix": "exact Hessian" if self.hessian else f"Fisher ({products.fisher})",
            "damping": damped,
            "effective_damping": shift,
            "scale": scale,
            "damp": shift / scale,
            "tolerance": self.tolerance,
        }
        solver = StationarySolver(products, shift, scale, None, schedule, auto)
        return JointPreconditioner(solver, details, self.require_convergence)
