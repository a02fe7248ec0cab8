"""Whether batches may be padded to different lengths: only if the model does not see the padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from whence.data import Batch, Examples
from whence.errors import DataError
from whence.tasks.losses import Loss

if TYPE_CHECKING:
    from whence.tasks.task import Task

__all__ = ["check_padding"]

_LOOKED_AT = 64
_PRECISION = {torch.float64: 1e-9, torch.float32: 1e-4}


def check_padding(task: Task, examples: Examples) -> None:
    """Compare the loss of a short example alone with its loss beside a longer one, where a batch is padded.

    A loss that is the same at any padding has the same gradient, so that batch size and order change no score.

    Args:
        task: The model with its loss; for queries without targets, its measurement.
        examples: Examples that a user's own function puts together; of 64, the smallest beside the largest.

    Raises:
        DataError: The loss differs.

    Cost: 64 examples are read, and two forward passes of one and two rows made where they differ in size.
    """
    some = np.unique(np.linspace(0, len(examples) - 1, _LOOKED_AT).astype(np.int64))
    sizes = [examples.batch(row).numbers for row in some[:, None]]
    short, long = some[[int(np.argmin(sizes)), int(np.argmax(sizes))]]
    one, two = (examples.batch(np.array(rows)) for rows in ([short], [short, long]))
    value = _value(task, one)
    if min(sizes) == max(sizes) or value is None:
        return
    with task.evaluating(), torch.no_grad():
        alone, beside = (float(value(task.place(batch))[0]) for batch in (one, two))
    if not abs(alone - beside) <= _PRECISION.get(task.dtype, 0.1) * (1 + abs(alone)):
        raise DataError(
            f"the loss of an example must not depend on how far collate_fn pads it, got {alone:.6g} for id "
            f"{examples.ids.tolist()[short]!r} alone and {beside:.6g} beside a longer one. Give the model the mask of "
            'the padding (and label padded positions -100), or pad all rows to one length (padding="max_length").'
        )


def _value(task: Task, batch: Batch) -> Any:
    """Return what to ask: the training loss, else a measurement that needs no targets, else nothing."""
    if batch.targets is not None or not isinstance(task.loss, Loss):
        return task.losses
    return None if task.measurement is None or isinstance(task.measurement, Loss) else task.measurements
