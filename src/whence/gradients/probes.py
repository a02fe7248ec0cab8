"""What a few examples tell about a model: which of its modules are called once for all of them, or never."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Examples
from whence.gradients.autograd import autograd
from whence.gradients.capture import record
from whence.gradients.layers import Layer, broadcast_layers
from whence.tasks import Task

__all__ = ["recorded_layers"]


def recorded_layers(task: Task, layers: tuple[Layer, ...], examples: Examples) -> tuple[Layer, ...]:
    """Return the layers with those made ready whose modules are called once for all examples, or never.

    The positions of a transformer are called once: their embedding with [1, T] or [T], and the result is added to all
    examples. What gives tensors of the same shapes for two examples as for three is repeated for every example; where
    the model does not compute the same then, its layer is taken by ``torch.func``. So are parameters that the loss
    depends on although their module is never called.

    Args:
        task: The model and its loss.
        layers: Attributed layers.
        examples: The first two are looked at.

    Cost: forward passes of two and of three examples; a few more where such modules are found.
    """
    two, three = (_shapes(task, layers, examples, rows) for rows in (2, 3))
    if two is None or three is None:
        return layers
    rows = np.arange(2) % len(examples)
    chosen: dict[str, tuple[int, ...] | None] = dict.fromkeys(_never_called(task, layers, examples, rows, two))
    once = {name: next(iter(found)) for name, found in two.items() if len(found) == 1 and found == three[name]}
    known = {name: shape for name, shape in once.items() if shape is not None}
    truth = _losses(task, (), examples, rows) if known else None
    if _agree(truth, _losses(task, broadcast_layers(layers, known), examples, rows)):
        return broadcast_layers(layers, {**chosen, **known})
    for name, shape in known.items():
        alone = broadcast_layers(layers, {name: shape})
        chosen[name] = shape if _agree(truth, _losses(task, alone, examples, rows)) else None
    return broadcast_layers(layers, chosen) if chosen else layers


_Shapes = set[tuple[int, ...] | None]


def _shapes(task: Task, layers: tuple[Layer, ...], examples: Examples, rows: int) -> dict[str, _Shapes] | None:
    """Return the shapes of all results of each module, for the first example several times; None if the model fails."""
    sources = {source.name: source for layer in layers for source, _ in layer.uses}
    found: dict[str, _Shapes] = {name: set() for name in sources}

    def seen(shapes: _Shapes) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shapes.add(tuple(output.shape) if isinstance(output, Tensor) else None)

        return hook

    with ExitStack() as stack:
        for name, source in sources.items():
            stack.callback(source.module.register_forward_hook(seen(found[name])).remove)
        failed = _losses(task, layers, examples, np.zeros(rows, dtype=np.int64)) is None
    return None if failed else found


def _never_called(
    task: Task, layers: tuple[Layer, ...], examples: Examples, rows: np.ndarray, called: dict[str, _Shapes]
) -> list[str]:
    """Return the modules that are not called, but whose parameters the loss depends on."""
    silent = {name for name, shapes in called.items() if not shapes}
    if not silent:
        return []
    gradients = autograd(task, "loss", task.place(examples.batch(rows)))
    return [
        source.name
        for layer in layers
        for source, slot in layer.uses
        if source.name in silent and any(gradients[piece.name] is not None for piece in slot.pieces)
    ]


def _losses(task: Task, layers: tuple[Layer, ...], examples: Examples, rows: np.ndarray) -> Tensor | None:
    """Return the losses of some examples, the layers recorded; None if the model fails."""
    batch = task.place(examples.batch(rows))
    with task.evaluating(), record(task.model, layers, len(rows)):
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
