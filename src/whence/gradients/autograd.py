"""Gradients in every parameter by plain autograd: of queries whose measurement is a function, and to check others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from whence.data import Batch
from whence.errors import ConfigError, NumericalError
from whence.gradients.capture import plainly
from whence.gradients.factors import Factor, Gradients, Matrix, by_columns
from whence.gradients.layers import Layer
from whence.tasks import Task

__all__ = ["autograd", "dense_query_gradients", "parameter_gradients"]


class _Measured(nn.Module):
    """Wraps a function of a task so that its parameters can be replaced without touching the model."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, what: str, batch: Batch | None) -> Tensor:
        """Evaluate the outputs, a loss, a measurement, or a measurement of the model alone."""
        if batch is None:
            return self.task.measure_model()
        if what == "outputs":
            return self.task.forward(batch)
        return self.task.losses(batch) if what == "loss" else self.task.measurements(batch)


def parameter_gradients(
    task: Task,
    what: Literal["loss", "measurement", "outputs"],
    batch: Batch | None,
    seeds: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of one summed value in every parameter, by plain autograd on copies.

    ``seeds`` [B, ...] are what "outputs" are contracted with.
    """
    named = dict(task.model.named_parameters())
    return {name: _dense(g, named[name]) for name, g in autograd(task, what, batch, seeds).items()}


def autograd(
    task: Task, what: Literal["loss", "measurement", "outputs"], batch: Batch | None, seeds: Tensor | None = None
) -> dict[str, Tensor | None]:
    """Return what `parameter_gradients` does, None where the value does not depend on a parameter."""
    copies = {name: p.detach().clone().requires_grad_() for name, p in task.model.named_parameters()}
    replaced = {f"model.{name}": p for name, p in copies.items()}
    with task.evaluating(), plainly(task.model), torch.enable_grad():
        value = torch.func.functional_call(_Measured(task), replaced, (what, batch))
        value = value if seeds is None else value * seeds
    gradients: Sequence[Tensor | None] = [None] * len(copies)
    if value.requires_grad:
        gradients = torch.autograd.grad(value.sum(), list(copies.values()), allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ConfigError(
            f"{what} must depend on the parameters of the model it is called with and be differentiable in them, got a "
            "value that does not. Use the model it is given; do not detach, round, count or take an argmax."
        )
    return dict(zip(copies, gradients, strict=True))


def _dense(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """Return a gradient as an ordinary tensor; None is zero, embeddings may give sparse ones."""
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def dense_query_gradients(task: Task, layers: tuple[Layer, ...], batch: Batch | None) -> Gradients:
    """Return the measurement's gradients multiplied out, one autograd call a query."""
    singles = [None] if batch is None else [batch.row(i) for i in range(len(batch))]
    per_query = [_measured_gradients(task, layers, single) for single in singles]
    layered: dict[str, Factor] = {}
    for layer in layers:
        joined = torch.stack([layer.join(gradients) for gradients in per_query])
        joined = joined.to(task.gradient_dtype)
        layered[layer.name] = by_columns(joined) if layer.table else Matrix(joined)
    return Gradients(layered)


def _measured_gradients(task: Task, layers: tuple[Layer, ...], batch: Batch | None) -> dict[str, Tensor]:
    """Return the measurement's gradient for one query, or of the model alone, in every parameter.

    Raises:
        ConfigError: It depends on parameters of which none is attributed.
        NumericalError: It is not finite.
    """
    found = autograd(task, "measurement", batch)
    attributed = [piece.name for layer in layers for piece in layer.slot.pieces]
    if all(found[name] is None for name in attributed):
        others = [name for name, gradient in found.items() if gradient is not None]
        raise ConfigError(
            f"measurement must depend on an attributed parameter ({attributed[:4]}), got one that depends on "
            f"{others[:4]} alone. Attribute their layers with layers=."
        )
    named = dict(task.model.named_parameters())
    for name in attributed:
        gradient = found[name]
        if gradient is not None and not bool(torch.isfinite(gradient.to_dense()).all()):
            asked = "of the model" if batch is None else f"of query {batch.ids.tolist()[0]!r}"
            raise NumericalError(
                f"gradient of the measurement {asked} must be finite, got NaN or infinity in {name!r}. Check it for "
                "divisions by zero, roots and logarithms of 0."
            )
    return {name: _dense(gradient, named[name]) for name, gradient in found.items()}
