"""Training under the examples' own masks: the outputs that a recipe or task takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from whence.data import Batch, Examples
from whence.tasks.calling import model_outputs
from whence.tasks.task import Task
from whence.tasks.turnover.masks import masks

__all__ = ["branch_losses", "turn_over_outputs"]

_CHUNK = 512


def turn_over_outputs(
    model: nn.Module, batch: Batch, outputs: Callable[[nn.Module, Batch], Tensor] | None = None
) -> Tensor:
    """Return a model's outputs [B, ...]: in training every example under its own mask, else the average network.

    ``wh.Recipe(build=..., outputs=wh.turn_over_outputs)`` trains with turn-over dropout, for the ids travel with the
    batch; it is importable, so that processes can share such a recipe.

    Args:
        model: A model with masked layers, such as `turn_over` makes.
        batch: Examples with their keys.
        outputs: How to call the model, where it is not called on the inputs:
            ``functools.partial(turn_over_outputs, outputs=mine)``.

    Example:
        >>> from whence.data import as_examples
        >>> from whence.tasks import Recipe, turn_over
        >>> def build():
        ...     return turn_over(nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 2)))
        >>> train = as_examples((torch.randn(20, 3), torch.randint(0, 2, (20,))))
        >>> model = Recipe(build=build, outputs=turn_over_outputs, epochs=1).train(train)
    """
    call = model_outputs if outputs is None else outputs
    if not model.training:
        return call(model, batch)
    with masks(model, batch.keys):
        return call(model, batch)


def branch_losses(task: Task, examples: Examples, *, flipped: bool) -> Tensor:
    """Return every example's training loss [N] in its own sub-network, or in the flipped one that never saw it.

    Cost: a forward pass over the examples.
    """
    found = []
    with torch.no_grad(), task.evaluating():
        for batch in examples.batches(_CHUNK):
            with masks(task.model, batch.keys, flipped=flipped):
                found.append(task.losses(task.place(batch)).double().cpu())
    return torch.cat(found)
