"""What a model's head sees: the features that baselines of similarity compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import Batch, Examples
from whence.errors import ConfigError
from whence.gradients import find_layers
from whence.methods.finite import finite
from whence.tasks import Task

__all__ = ["Features", "head_features", "unit_features"]

Features = Callable[[nn.Module, Batch], Tensor]

_CHUNK = 1024
_TINY = 1e-12


def unit_features(task: Task, examples: Examples, features: Features | None) -> Tensor:
    """Return `head_features` of length 1 [N, D]; a row of zeros stays one."""
    vectors = head_features(task, examples, features)
    lengths: Tensor = vectors.norm(dim=1, keepdim=True)
    return vectors / lengths.clamp_min(_TINY)


def head_features(task: Task, examples: Examples, features: Features | None) -> Tensor:
    """Return features [N, D], float64: of a function of the user's, or what the last layer is given.

    Positions (of a sequence or an image) are averaged.

    Raises:
        ConfigError: There is no single head, it is not run exactly once, or the features are no [B, D].
        NumericalError: A feature is not finite.
    """
    parts: list[Tensor] = []
    with task.evaluating(), torch.no_grad():
        for batch in examples.batches(_CHUNK):
            placed = task.place(batch)
            found = _head_inputs(task, placed) if features is None else features(task.model, placed)
            if found.ndim != 2 or len(found) != len(batch):
                raise ConfigError(
                    f"features must have shape ({len(batch)}, D), got {tuple(found.shape)}. "
                    "Pass features=lambda model, batch: ... that returns one row an example."
                )
            parts.append(found.double().cpu())
    return finite(torch.cat(parts), examples.ids, "features")


def _head_inputs(task: Task, batch: Batch) -> Tensor:
    """Return what the head is given, averaged over positions [B, D]."""
    name = find_layers(task.model, "last").layers[0].name
    modules = {key.replace("_orig_mod.", ""): module for key, module in task.model.named_modules()}
    head = modules.get(name)
    if head is None:
        raise ConfigError(f"the head must be a module of the model, got layer {name!r}. Pass features=.")
    held: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        held.append(inputs[0].detach())

    handle = head.register_forward_pre_hook(keep)
    try:
        task.forward(batch)
    finally:
        handle.remove()
    if len(held) != 1:
        raise ConfigError(f"the head {name!r} must run once in a forward pass, got {len(held)} times. Pass features=.")
    inputs = held[0]
    if inputs.ndim <= 2:
        return inputs
    averaged: Tensor = inputs.flatten(1, -2).mean(1) if isinstance(head, nn.Linear) else inputs.flatten(2).mean(2)
    return averaged
