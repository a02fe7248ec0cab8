"""The proximal Bregman response: what influence functions of a network that has not converged predict."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Batch, Examples, as_examples
from whence.errors import ConfigError
from whence.methods.dense import inverse_root
from whence.scores import Scores
from whence.tasks import SmoothLoss, Task
from whence.tasks.convex import lbfgs

__all__ = ["pbrf"]

_CHUNK = 4096


def pbrf(
    task: Task,
    train: Any,
    queries: Any,
    ids: Sequence[Any] | np.ndarray,
    *,
    proximity: float,
    gradient_norm: float = 1e-7,
) -> Scores:
    r"""Return the change of every query's measurement in the proximal Bregman response to removing an example.

    θ_z = argmin_θ (1/N) Σ_i D(f_θ(x_i), f_θ̂(x_i)) − (1/N) ℓ_z(θ) + (μ/2) ‖θ − θ̂‖², where
    D(f, f̂) = ℓ(f) − ℓ(f̂) − ∇ℓ(f̂)·(f − f̂) is the Bregman divergence of the loss in the outputs: the
    Kullback–Leibler divergence KL(p̂ ‖ p) for a cross-entropy. The returned change is m(θ_z) − m(θ̂). It asks what
    influence functions answer, also where θ̂ is no minimum of the training objective: influence with the
    Gauss–Newton matrix and damping μ is its linearisation.

    Args:
        task: A trained model with a smooth named loss. The weight decay plays no part; give it in ``proximity``.
        train: Training examples: anything that `as_examples` takes.
        queries: Queries, likewise; None for a measurement of the model alone.
        ids: K ids of training examples to remove.
        proximity: μ > 0.
        gradient_norm: Euclidean norm of the objective's gradient at which each response is solved, in float64.

    Returns:
        Changes [Q, K] in the measurement's unit; positive = the removal raises the measurement.

    Raises:
        ConfigError: The loss is not smooth, or the proximity is not positive.
        NumericalError: The gradient norm is not reached, as can happen at a kink of a network with ReLUs.

    Cost: K full-batch L-BFGS solves in float64, preconditioned by the Gauss–Newton matrix, factored once, where there
    are at most 4,000 parameters.
    Reference: Bae et al. (2022), eq. 11, with the removal's weight ε = −1/N.

    Example:
        >>> task = Task(nn.Linear(3, 2), "cross_entropy")
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> pbrf(task, train, train, [3, 7], proximity=0.1).values.shape
        torch.Size([20, 2])
    """
    if task.smooth_loss is None:
        raise ConfigError("the proximal Bregman response needs a named smooth loss, got a callable. Name the loss.")
    if not 0 < proximity < float("inf"):
        raise ConfigError(f"proximity must be positive, got {proximity}.")
    examples = as_examples(train)
    asked = None if queries is None else as_examples(queries)
    rows = examples.rows_of(ids)
    response = _Response(task, examples, proximity)
    before = response.measured(response.start, asked)
    # the Hessian of the objective at θ̂ but for the removed example: its first step is influence's answer
    root = inverse_root(replace(task, weight_decay=0.0), examples, damping=proximity)
    solve = partial(lbfgs, gradient_norm=gradient_norm, inverse_root=None if root is None else root.cpu().numpy())
    changes = []
    for row in rows:
        removed = response.place(examples.batch(np.array([row])))
        found = solve(partial(response.objective, removed), response.start)
        changes.append(response.measured(found, asked) - before)
    query_ids = np.array(["model"]) if asked is None else asked.ids
    return Scores(values=torch.stack(changes, 1), query_ids=query_ids, ids=examples.ids[rows], unit=task.unit)


@dataclass(frozen=True, eq=False)
class _Anchor:
    """Some training examples with the outputs, output gradients and summed losses of θ̂."""

    batch: Batch
    outputs: Tensor
    residual: Tensor
    losses: Tensor


class _Response:
    """The objective of the responses of one model."""

    def __init__(self, task: Task, examples: Examples, proximity: float) -> None:
        self.task = task.with_model(copy.deepcopy(task.model).double().eval())
        self.proximity = proximity
        self.count = len(examples)
        self.parameters = [p for p in self.task.model.parameters() if p.requires_grad]
        self.start: np.ndarray = nn.utils.parameters_to_vector(self.parameters).detach().cpu().numpy()
        loss = self.task.smooth_loss
        assert loss is not None
        self.loss: SmoothLoss = loss
        self.anchors = [self._anchor(self.place(batch)) for batch in examples.batches(_CHUNK)]

    def place(self, batch: Batch) -> Batch:
        """Return the batch where the model is, in float64."""
        return self.task.place(batch)

    def objective(self, removed: Batch, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the objective and its gradient at the parameters ``flat`` [P]."""
        self._move(flat)
        total = -self.task.losses(removed).sum() / self.count
        gradients = list(torch.autograd.grad(total, self.parameters))
        value = total.item()
        for anchor in self.anchors:
            outputs = self.task.forward(anchor.batch)
            losses = self.loss(outputs, anchor.batch.targets)  # type: ignore[arg-type]
            divergence = losses.sum() - anchor.losses - (anchor.residual * (outputs - anchor.outputs)).sum()
            part = divergence / self.count
            for into, more in zip(gradients, torch.autograd.grad(part, self.parameters), strict=True):
                into += more
            value += part.item()
        step = flat - self.start
        gradient = torch.cat([g.reshape(-1) for g in gradients]).cpu().numpy()
        return value + self.proximity / 2 * float(step @ step), gradient + self.proximity * step

    def measured(self, flat: np.ndarray, asked: Examples | None) -> Tensor:
        """Return the queries' measurements [Q] at the parameters ``flat``."""
        self._move(flat)
        with torch.no_grad():
            if asked is None:
                return self.task.measure_model().double().cpu()
            parts = [self.task.measurements(self.place(batch)) for batch in asked.batches(_CHUNK)]
            return torch.cat(parts).double().cpu()

    def _anchor(self, batch: Batch) -> _Anchor:
        """Return what the divergence from θ̂ needs to know of it."""
        if batch.targets is None:
            raise ConfigError("the proximal Bregman response needs targets. Pass (inputs, targets).")
        with torch.no_grad():
            outputs = self.task.forward(batch)
        leaf = outputs.detach().requires_grad_()
        losses = self.loss(leaf, batch.targets).sum()
        return _Anchor(batch, outputs, torch.autograd.grad(losses, leaf)[0], losses.detach())

    def _move(self, flat: np.ndarray) -> None:
        """Set the parameters."""
        nn.utils.vector_to_parameters(torch.from_numpy(flat).to(self.task.device), self.parameters)
