"""Conjugate gradients on the exact curvature of all training examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from whence.curvature.base import DEFAULT_DAMPING, Curvature, Damping, Preconditioner, validate_damping, validate_fisher
from whence.curvature.joint import JointPreconditioner, as_map, damping_of, validate_solver
from whence.curvature.solve import Solution, conjugate_gradients
from whence.gradients import Fisher, GradientStream, decay_grids
from whence.gradients.products import Products, join_vectors

__all__ = ["CG", "cg_from_state"]


@dataclass(frozen=True, kw_only=True)
class CG:
    r"""Conjugate gradients on (H + (damping + weight decay) I) x = v, H of all layers and training examples together.

    H = (1/N) Σ_i J_iᵀ W_i J_i (exact expectation over classes, also over positions of sequences) or the Hessian. All
    queries of a block share every product; each stops at its own tolerance. The converged answer is that of `Exact`;
    stopped early (``max_steps`` small, ``require_convergence=False``) it is regularised further.

    Args:
        damping: A number, or `Relative` to the mean eigenvalue of the Gauss–Newton matrix over all layers.
        tolerance: Largest relative residual ‖v − (H + shift) x‖ / ‖v‖ of a query.
        max_steps: Most products a query.
        preconditioner: None, or a curvature such as `EKFAC()`, `KFAC()` or `Diagonal()` with about the same damping.
            It changes the number of steps, not the answer.
        hessian: Use the Hessian of the training loss; negative curvature is then an error.
        fisher: "auto" is the exact Gauss–Newton matrix; "sampled" and "empirical" as in `EKFAC`.
        require_convergence: Raise if a query does not reach the tolerance; False returns what was reached, with its
            residual in the summary.

    Raises:
        NumericalError: Negative curvature, or no convergence.

    Cost: nothing to fit but the mean eigenvalue (one pass) and the preconditioner. A solve takes one product a step:
    2 P multiplications a training example and query from roots kept within the memory budget, else one pass over the
    data (see `Products`). Self-scores and the leverage correction take a solve an example (C with the correction):
    `EKFAC` gives both in one pass. Applying it needs the training examples, after loading too.

    Reference: Koh & Liang (2017), §3; Martens (2010) for the Gauss–Newton products.

    Example:
        >>> import torch, whence as wh
        >>> train = torch.randn(20, 3), torch.randint(0, 2, (20,))
        >>> attribution = wh.Influence(curvature=wh.CG(damping=0.1)).fit(wh.Task(torch.nn.Linear(3, 2)), train)
        >>> scores = attribution.scores(train)
        >>> attribution.summary()["curvature"]["converged"]
        True
    """

    damping: Damping = DEFAULT_DAMPING
    tolerance: float = 1e-6
    max_steps: int = 1000
    preconditioner: Curvature | None = None
    hessian: bool = False
    fisher: Fisher = "auto"
    require_convergence: bool = True

    def __post_init__(self) -> None:
        validate_damping(self.damping)
        validate_fisher(self.fisher)
        validate_solver(self.tolerance, max_steps=self.max_steps)

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit the preconditioner; solving comes with the queries."""
        products = Products(stream, "hessian" if self.hessian else self.fisher, seed)
        damped = damping_of(self.damping, products)
        inner = None if self.preconditioner is None else self.preconditioner.fit(stream, seed=seed)
        solver = CGSolver(products, damped + stream.task.weight_decay, self.tolerance, self.max_steps, inner)
        details = {
            "curvature": "cg",
            "matrix": "exact Hessian" if self.hessian else f"Fisher ({products.fisher})",
            "damping": damped,
            "effective_damping": solver.shift,
            "tolerance": self.tolerance,
            "preconditioner": None if inner is None else inner.summary(),
        }
        return JointPreconditioner(solver, details, self.require_convergence)


@dataclass(frozen=True, eq=False)
class CGSolver:
    """Conjugate gradients with everything they need."""

    products: Products
    shift: float
    tolerance: float
    max_steps: int
    inner: Preconditioner | None

    def solve(self, right: Tensor) -> Solution:
        """Return x for every row of ``right`` [Q, P]."""
        apply = self.products.operator(len(right))
        precondition = None if self.inner is None else as_map(self.inner, self.products)
        task = self.products.stream.task
        shift = right.new_tensor(self.shift)
        if task.decay_factors:
            grids = decay_grids(task, self.products.stream.layers)
            decays = join_vectors({name: grid[None] for name, grid in grids.items()}).to(right)  # [1, P]
            shift = self.shift - task.weight_decay + decays
        return conjugate_gradients(
            lambda v: apply(v).addcmul_(v, shift), right, precondition,
            tolerance=self.tolerance, max_steps=self.max_steps,
        )  # fmt: skip

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return settings and tensors; those of the preconditioner under "inner/"."""
        inner, tensors = (None, {}) if self.inner is None else self.inner.state()
        settings = {
            "kind": "cg", "matrix": self.products.kind, "seed": self.products.seed, "shift": self.shift,
            "tolerance": self.tolerance, "max_steps": self.max_steps, "inner": inner,
        }  # fmt: skip
        return settings, {f"inner/{name}": tensor for name, tensor in tensors.items()}


def cg_from_state(
    settings: Mapping[str, Any], inner: Preconditioner | None, stream: GradientStream
) -> JointPreconditioner:
    """Restore what was saved, beside the training examples."""
    products = Products(stream, settings["matrix"], int(settings["seed"]))
    solver = CGSolver(
        products, float(settings["shift"]), float(settings["tolerance"]), int(settings["max_steps"]), inner
    )
    return JointPreconditioner(solver, settings["details"], bool(settings["require_convergence"]))
