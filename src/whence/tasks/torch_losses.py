"""Losses of torch's own: those that a named loss equals are taken, of the others is said what to pass instead."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from whence.errors import ConfigError
from whence.tasks.losses import CrossEntropy, Loss, MeanSquaredError

__all__ = ["torch_loss"]


def torch_loss(value: Any, role: str) -> Loss | None:
    """Return the loss that a function or module of torch's is, averaged over a batch; None if it is not torch's.

    Taken are ``F.cross_entropy``, ``F.mse_loss``, ``nn.CrossEntropyLoss`` (with its ``ignore_index``) and
    ``nn.MSELoss``, whose value of one example is that of the named loss.

    Raises:
        ConfigError: It is another of torch's losses, or has weights, label smoothing or another reduction.
    """
    module = isinstance(value, nn.modules.loss._Loss)
    if not module and getattr(value, "__module__", None) != F.__name__:
        return None
    plain = not module or value.reduction == "mean"
    if value is F.mse_loss or (isinstance(value, nn.MSELoss) and plain):
        return MeanSquaredError()
    if value is F.cross_entropy:
        return CrossEntropy()
    if isinstance(value, nn.CrossEntropyLoss) and plain and value.weight is None and not value.label_smoothing:
        return CrossEntropy(ignore_index=value.ignore_index)
    raise ConfigError(f"{role} must be a name or a callable (model, batch) -> [B], got {_told(value)}")


def _told(value: Any) -> str:
    """Return what it is and what to pass instead."""
    name = repr(value) if isinstance(value, nn.Module) else f"torch.nn.functional.{value.__name__}"
    if value is F.binary_cross_entropy_with_logits or (
        isinstance(value, nn.BCEWithLogitsLoss) and value.weight is None and value.pos_weight is None
    ):
        return f'{name}. Say "binary_cross_entropy", the sum over the outputs of an example (torch takes their mean).'
    taken = "loss(model(batch.inputs), batch.targets)"
    return (
        f"{name}, which takes (outputs, targets). Pass lambda model, batch: {taken} with "
        f'reduction="none" and one value an example, as a named loss has no such settings.'
    )
