"""The stationary iteration that LiSSA and the preconditioned Neumann series share, with batches keyed by id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.curvature.base import Preconditioner
from whence.curvature.joint import JointPreconditioner, as_map
from whence.curvature.solve import Map, Solution, largest_eigenvalue, richardson, solved
from whence.data import uniform
from whence.errors import ConfigError, NumericalError
from whence.gradients import GradientStream
from whence.gradients.products import Products
from whence.gradients.projection import random_normal

__all__ = ["Schedule", "StationarySolver", "batches_by_id", "largest_of_batches", "stationary_from_state"]

_POWER_STEPS = 12
_POWER_BATCHES = 8
_RESCALINGS = 5
_SLACK = 10.0


def batches_by_id(stream: GradientStream, batch: int | None, seed: int) -> GradientStream:
    """Return the stream with its examples in an order that their ids fix, in chunks of ``batch``; None leaves it."""
    if batch is None:
        return stream
    order = np.argsort(uniform(stream.examples.keys, seed), kind="stable")
    return GradientStream(stream.task, stream.layers, stream.examples.select(order), batch, stream.budget)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long to iterate, and over what.

    Args:
        steps: Steps.
        repeats: Independent runs to average; 1 without batches.
        batch: Examples a step, or None for all.
        tolerance: Largest relative residual that counts as converged.
        seed: Seed of the batches.
    """

    steps: int
    repeats: int
    batch: int | None
    tolerance: float
    seed: int


@dataclass(frozen=True, eq=False)
class StationarySolver:
    """x ← x + (1/scale) P (v − (H_k + shift) x), with H_k of all the data or of one batch a step.

    Args:
        products: The curvature; its chunks are the batches.
        shift: Damping plus weight decay.
        scale: Inverse step size.
        inner: P, or None for the identity.
        schedule: Steps, repeats and batches.
        rescale: Double the scale of the rows whose iteration diverges, instead of raising. Other rows keep theirs.
    """

    products: Products
    shift: float
    scale: float
    inner: Preconditioner | None
    schedule: Schedule
    rescale: bool

    def solve(self, right: Tensor) -> Solution:
        """Return x for every row of ``right`` [Q, P], with the scale that each took."""
        apply = self.products.operator(len(right))
        whole: Map = lambda v: apply(v).add_(v, alpha=self.shift)  # noqa: E731 - one line says it all
        value, left = torch.zeros_like(right), torch.arange(len(right), device=right.device)
        scale, scales = self.scale, torch.full_like(right[:, 0], self.scale)
        for _ in range(_RESCALINGS + 1 if self.rescale else 1):
            found, rows = self._average(right[left], scale)
            value[left[rows]] = found
            diverged = torch.ones_like(left, dtype=torch.bool).index_fill_(0, rows, False)
            left = left[diverged]
            if not len(left):
                steps = torch.full((len(right),), self.schedule.steps, device=right.device)
                return replace(solved(whole, right, value, steps, self.schedule.tolerance), scale=scales)
            scale *= 2
            scales[left] = scale
        raise NumericalError(
            f"the iteration must stay bounded, but it diverges with scale {self.scale:.3g} (steps must stay below 2 / "
            'largest eigenvalue). Use scale="auto", a larger scale or larger batches.'
        )

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return settings and tensors; those of the preconditioner under "inner/"."""
        inner, tensors = (None, {}) if self.inner is None else self.inner.state()
        schedule = self.schedule
        settings = {
            "kind": "stationary", "matrix": self.products.kind, "seed": self.products.seed, "shift": self.shift,
            "scale": self.scale, "rescale": self.rescale, "inner": inner, "steps": schedule.steps,
            "repeats": schedule.repeats, "batch": schedule.batch, "tolerance": schedule.tolerance,
            "batch_seed": schedule.seed,
        }  # fmt: skip
        return settings, {f"inner/{name}": tensor for name, tensor in tensors.items()}

    def _average(self, right: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return the mean over all repeats for the rows that stay bounded in each, and which they are."""
        total, rows = torch.zeros_like(right), torch.arange(len(right), device=right.device)
        for repeat in range(self.schedule.repeats):
            value, held = self._run(right[rows], scale, repeat)
            total, rows = total[held] + value, rows[held]
            if not len(rows):
                break
        return total / self.schedule.repeats, rows

    def _run(self, right: Tensor, scale: float, repeat: int) -> tuple[Tensor, Tensor]:
        """Return one run's answers for the rows that stay bounded, and which they are."""
        order = self._order(repeat)
        metric = None if self.inner is None else as_map(self.inner, self.products)

        def step(number: int, value: Tensor) -> Tensor:
            which = None if order is None else int(order[number])
            apply = self.products.operator(len(right)) if which is None else self.products.partial(which, len(right))
            return apply(value).add_(value, alpha=self.shift)

        def precondition(residual: Tensor) -> Tensor:
            return (residual if metric is None else metric(residual)) / scale

        bound = _SLACK / self.shift if self.shift > 0 else torch.finfo(right.dtype).max ** 0.5
        return richardson(step, right, precondition, steps=self.schedule.steps, bound=bound)

    def _order(self, repeat: int) -> np.ndarray | None:
        """Return the batch of every step: all batches once in random order, then again in another."""
        if self.schedule.batch is None or self.products.chunks == 1:
            return None
        numbers = np.arange(self.products.chunks, dtype=np.uint64)
        rounds = -(-self.schedule.steps // len(numbers))
        draws = (uniform(numbers, self.schedule.seed, 1 + repeat * rounds + i) for i in range(rounds))
        return np.concatenate([np.argsort(draw, kind="stable") for draw in draws])


def largest_of_batches(
    products: Products, shift: float, inner: Preconditioner | None, *, batch: int | None, seed: int
) -> float:
    """Return an estimate of the largest eigenvalue of P (H_k + shift) over at most 8 batches k, by power iteration.

    Without batches H_k is the curvature of all the data: how it is streamed must not show.

    Raises:
        ConfigError: The curvature is zero, so that there is nothing to scale by.
    """
    start = random_normal(1, products.size, name="power iteration", seed=seed)
    start = start.to(products.stream.task.device, products.dtype)
    metric: Map = torch.clone if inner is None else as_map(inner, products)
    few = np.unique(np.linspace(0, products.chunks - 1, min(_POWER_BATCHES, products.chunks)).astype(int))
    applied = [products.operator(1)] if batch is None else [products.partial(int(k), 1) for k in few]

    def shifted(apply: Map, v: Tensor) -> Tensor:
        return apply(v).add_(v, alpha=shift)

    found = [largest_eigenvalue(partial(shifted, apply), metric, start, steps=_POWER_STEPS) for apply in applied]
    if not max(found) > 0:
        raise ConfigError("the curvature must not be zero, got no positive eigenvalue. Use Identity().")
    return max(found)


def stationary_from_state(
    settings: Mapping[str, Any], inner: Preconditioner | None, stream: GradientStream
) -> JointPreconditioner:
    """Restore what was saved, beside the training examples."""
    schedule = Schedule(
        steps=int(settings["steps"]), repeats=int(settings["repeats"]), batch=settings["batch"],
        tolerance=float(settings["tolerance"]), seed=int(settings["batch_seed"]),
    )  # fmt: skip
    batches = batches_by_id(stream, schedule.batch, schedule.seed)
    products = Products(batches, settings["matrix"], int(settings["seed"]))
    shift, scale = float(settings["shift"]), float(settings["scale"])
    solver = StationarySolver(products, shift, scale, inner, schedule, bool(settings["rescale"]))
    return JointPreconditioner(solver, settings["details"], bool(settings["require_convergence"]))
