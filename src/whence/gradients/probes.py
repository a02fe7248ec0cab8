"""What a few examples tell about a model: which of its modules are called once for all of them, or never."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import Batch
from whence.gradients.autograd import autograd
from whence.gradients.capture import record
from whence.gradients.layers import Layer, broadcast_layers
from whence.tasks import Task

__all__ = ["recorded_layers"]


def recorded_layers(task: Task, layers: tuple[Layer, ...], batch: Batch) -> tuple[Layer, ...]:
    """Return the layers with those made ready whose modules are called once for all examples, or never.

    The positions of a transformer are called once: their embedding with [1, T] or [T], and the result is added to all
    examples. What gives tensors of the same shapes for two examples as for three is repeated for every example; where
    the model does not compute the same then, its layer is taken by ``torch.func``. So are parameters that the loss
    depends on although their module is never called.

    Args:
        task: The model and its loss.
        layers: Attributed layers.
        batch: On the model's device; its first two examples are looked at.

    Cost: forward passes of two and of three examples; a few more where such modules are found.
    """
    first = batch.row(0)
    two, three = (_shapes(task, layers, first.repeated(rows)) for rows in (2, 3))
    if two is None or three is None:
        return layers
    pair = batch.part(slice(2)) if len(batch) > 1 else first.repeated(2)
    chosen: dict[str, tuple[int, ...] | None] = dict.fromkeys(_never_called(task, layers, pair, two))
    once = {name: next(iter(found)) for name, found in two.items() if len(found) == 1 and found == three[name]}
    known = {name: shape for name, shape in once.items() if shape is not None}
    if not known:
        return broadcast_layers(layers, chosen) if chosen else layers
    truth = _losses(task, (), pair)
    if _agree(truth, _losses(task, broadcast_layers(layers, known), pair)):
        return broadcast_layers(layers, {**chosen, **known})
    for name, shape in known.items():
        alone = broadcast_layers(layers, {name: shape})
        chosen[name] = shape if _agree(truth, _losses(task, alone, pair)) else None
    return broadcast_layers(layers, chosen)


_Shapes = set[tuple[int, ...] | None]


def _shapes(task: Task, layers: tuple[Layer, ...], batch: Batch) -> dict[str, _Shapes] | None:
    """Return the shapes of all results of each module; None if the model fails."""
    sources = {source.name: source for layer in layers for source, _ in layer.uses}
    found: dict[str, _Shapes] = {name: set() for name in sources}

    def seen(shapes: _Shapes) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shapes.add(tuple(output.shape) if isinstance(output, Tensor) else None)

        return hook

    with ExitStack() as stack:
        for name, source in sources.items():
            stack.callback(source.module.register_forward_hook(seen(found[name])).remove)
        failed = _losses(task, layers, batch) is None
    return None if failed else found


def _never_called(
    task: Task, layers: tuple[Layer, ...], batch: Batch, called: dict[str, _Shapes]
) -> list[str]:
    """Return the modules that are not called, but whose parameters the loss depends on."""
    silent = {name for name, shapes in called.items() if not shapes}
    if not silent:
        return []
    gradients = autograd(task, "loss", batch)
    return [
        source.name
        for layer in layers
        for source, slot in layer.uses
        if source.name in silent and any(gradients[piece.name] is not None for piece in slot.pieces)
    ]


def _losses(task: Task, layers: tuple[Layer, ...], batch: Batch) -> Tensor | None:
    """Return the losses of some examples, the layers recorded; None if the model fails."""
    with task.evaluating(), record(task.model, layers, len(batch)):
        try:
            outputs = task.forward(batch) if task.smooth_loss is not None else None
            return task.losses(batch, outputs).detach()
        except Exception:  # a user's model may raise anything; what is asked of it later says what is wrong
            return None


def _agree(truth: Tensor | None, losses: Tensor | None) -> bool:
    """Whether losses are the same up to rounding."""
    if truth is None or losses is None or losses.shape != truth.shape:
        return False
    return torch.allclose(losses, truth, rtol=1e-4, atol=1e-6, equal_nan=True)
