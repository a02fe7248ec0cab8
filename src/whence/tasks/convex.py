"""Exact training of convex objectives: full-batch L-BFGS in float64 to a stated gradient norm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn

from whence.data import Examples
from whence.errors import NumericalError
from whence.tasks.task import Task

__all__ = ["lbfgs", "minimise"]

_CHUNK = 512  # rows a pass: larger ones leave the cache (a small CNN takes 1.6 times as long at 16,384)


def minimise(
    task: Task, examples: Examples, weights: Tensor, *, gradient_norm: float, max_steps: int = 5_000,
    inverse_root: Tensor | None = None,
) -> nn.Module:  # fmt: skip
    r"""Minimise J(θ) = Σ_i w_i ℓ_i(θ) / Σ_i w_i + (λ/2)‖θ‖² until ‖∇J‖₂ ≤ ``gradient_norm``.

    With the task's ``total_decay`` ρ, λ is ρ / Σ_i w_i; its ``decay_factors`` hold.

    Args:
        task: Model (the starting point; not changed), loss and weight decay λ.
        examples: Training examples.
        weights: w [N], zero for an excluded example.
        gradient_norm: Euclidean norm of the gradient at which to stop.
        max_steps: L-BFGS iterations after which to give up.
        inverse_root: As in `lbfgs`, over the trainable parameters.

    Returns:
        A trained copy of the model, in float64.

    Raises:
        NumericalError: The norm is not reached.

    Cost: one full-batch forward and backward pass an evaluation, in float64, and 4 P² operations with a root; 20
    gradients of memory.
    Reference: Byrd, Lu, Nocedal & Zhu (1995), through SciPy's L-BFGS-B.
    """
    model = copy.deepcopy(task.model).double().eval()
    fitted = task.with_model(model)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(named.values())
    decay = fitted.weight_decay if fitted.total_decay is None else fitted.total_decay / float(weights.sum())
    decays = [decay * fitted.decay_factors.get(name, 1.0) for name in named]
    batches = [fitted.place(batch) for batch in examples.batches(_CHUNK)]
    shares = (weights.double() / weights.double().sum()).to(fitted.device).split(_CHUNK)

    def evaluate(flat: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        nn.utils.vector_to_parameters(torch.from_numpy(flat).to(fitted.device), parameters)
        total, gradients = 0.0, [d * p.detach() for d, p in zip(decays, parameters, strict=True)]
        for batch, share in zip(batches, shares, strict=True):
            value = (fitted.losses(batch) * share).sum()
            for into, part in zip(gradients, torch.autograd.grad(value, parameters), strict=True):
                into += part
            total += value.item()
        total += sum(d / 2 * float(p.detach().square().sum()) for d, p in zip(decays, parameters, strict=True))
        return total, torch.cat([g.reshape(-1) for g in gradients]).cpu().numpy()

    start = nn.utils.parameters_to_vector(parameters).detach().cpu().numpy()
    root = None if inverse_root is None else inverse_root.cpu().numpy()
    evaluate(lbfgs(evaluate, start, gradient_norm=gradient_norm, max_steps=max_steps, inverse_root=root))
    return model


Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def lbfgs(
    objective: Objective, start: np.ndarray, *, gradient_norm: float, max_steps: int = 5_000,
    inverse_root: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    r"""Return where the Euclidean norm of a function's gradient is at most ``gradient_norm``.

    With a root R of an approximate inverse Hessian the variables are φ, θ = start + R φ, in which the Hessian
    is near the identity: a start near the minimum then takes tens of evaluations instead of thousands. What is returned
    and the norm are those of θ.

    Args:
        objective: Point [P] -> (value, gradient [P]), float64.
        start: [P].
        gradient_norm: Where to stop; a start that is there already is returned.
        max_steps: Iterations after which to give up.
        inverse_root: R [P, P] with R Rᵀ close to the inverse Hessian at the start. It changes the path only.

    Raises:
        NumericalError: The norm is not reached.
    """
    first = objective(start)[1]
    if np.linalg.norm(first) <= gradient_norm:
        return start
    options = {"maxiter": max_steps, "maxfun": 2 * max_steps, "ftol": 0.0, "gtol": 0.0, "maxcor": 20}
    stopper = _Stopper(gradient_norm)
    function, origin = stopper.watch(objective), start
    if inverse_root is not None:
        # SciPy's first trial step has length 1: in this scale of φ it is Newton's step
        root = inverse_root * float(np.linalg.norm(inverse_root.T @ first))
        function, origin = _in_variables(function, start, root), np.zeros_like(start)
    result = scipy.optimize.minimize(function, origin, jac=True, method="L-BFGS-B", options=options, callback=stopper)
    found: np.ndarray = result.x
    if inverse_root is not None:
        found = _chords(objective, start + root @ found, inverse_root, gradient_norm)
    norm = float(np.linalg.norm(objective(found)[1]))
    if not norm <= gradient_norm:
        raise NumericalError(
            f"gradient norm must reach {gradient_norm:g}, got {norm:.3g} after {result.nit} steps ({result.message}). "
            "Raise gradient_norm, add weight_decay, or check that the loss is convex and finite."
        )
    return found


def _in_variables(function: Objective, start: np.ndarray, root: np.ndarray) -> Objective:
    """Return the function of φ that ``function`` is of θ = start + root φ."""

    def changed(variables: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = function(start + root @ variables)
        return value, root.T @ gradient

    return changed


def _chords(objective: Objective, point: np.ndarray, root: np.ndarray, gradient_norm: float) -> np.ndarray:
    """Return ``point`` after Newton steps with the Hessian held fixed, as long as each halves the gradient.

    Gradients are still exact where differences of the function's values are lost in rounding and line searches fail.
    """
    gradient = objective(point)[1]
    while np.linalg.norm(gradient) > gradient_norm:
        trial = point - root @ (root.T @ gradient)
        ahead = objective(trial)[1]
        if not np.linalg.norm(ahead) < 0.5 * np.linalg.norm(gradient):
            break
        point, gradient = trial, ahead
    return point


class _Stopper:
    """Stops L-BFGS once the Euclidean norm of the gradient is small enough."""

    def __init__(self, norm: float) -> None:
        self.norm = norm
        self.latest = np.inf

    def watch(self, function: Any) -> Any:
        """Return ``function`` with the norm of its gradient remembered."""

        def watched(flat: np.ndarray[Any, Any]) -> Any:
            value, gradient = function(flat)
            self.latest = float(np.linalg.norm(gradient))
            return value, gradient

        return watched

    def __call__(self, intermediate_result: Any) -> None:
        """Stop if the latest gradient is small."""
        if self.latest <= self.norm:
            raise StopIteration
