"""What else than a loss to measure of a prediction: is it right, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import ConfigError
from whence.tasks import BinaryCrossEntropy, CrossEntropy, Hinge, SmoothHinge, loss_by_name

__all__ = ["Accuracy", "Margin", "Several", "classifies"]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """1 where the class with the largest output is the target, 0 elsewhere; the mean over queries is the accuracy.

    Outputs [B, C] are one logit a class; [B] or [B, 1] the logit of class 1 (of classes 0 and 1, or −1 and 1). It has
    no useful gradient: a measurement for retraining, not for attribution.

    Example:
        >>> Accuracy()(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0])).tolist()
        [1.0, 0.0]
    """

    @property
    def unit(self) -> str | None:
        """Return "share right"."""
        return "share right"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 0 or 1 for every query [B]."""
        logits, classes = _binary(outputs, targets)
        return (logits.argmax(1) == classes).to(logits.dtype)


@dataclass(frozen=True, kw_only=True)
class Margin:
    r"""How far the target's output lies above the largest other one, f_y − max_{c≠y} f_c: negative where it is wrong.

    Outputs as in `Accuracy`. Its gradient is that of two logits, so it can be attributed too; scores then predict
    how the margin changes on removal.

    Example:
        >>> Margin()(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0])).tolist()
        [1.0, -1.0]
    """

    @property
    def unit(self) -> str | None:
        """Return "logits"."""
        return "logits"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the margin of every query [B]."""
        logits, classes = _binary(outputs, targets)
        right = logits.gather(1, classes[:, None])[:, 0]
        others = logits.scatter(1, classes[:, None], float("-inf"))
        return right - others.max(1).values


@dataclass(frozen=True)
class Several:
    """Several measurements of the same trained models, one after another: [R·Q] instead of [Q]."""

    parts: tuple[Any, ...]


def classifies(loss: Any) -> bool:
    """Return whether a training loss is one of a classifier's."""
    named = loss_by_name(loss) if isinstance(loss, str) else loss
    return isinstance(named, (CrossEntropy, BinaryCrossEntropy, Hinge, SmoothHinge))


def _single(outputs: Tensor) -> bool:
    """Return whether there is one logit an example."""
    return outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1)


def _binary(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [B, C] and classes [B]; one logit f stands for (−f, f) / 2, whose difference is f."""
    if _single(outputs):
        logit = outputs.reshape(-1)
        return torch.stack([-logit, logit], 1) / 2, (targets.reshape(-1) > 0).long()
    if outputs.ndim != 2 or targets.numel() != len(outputs):
        raise ConfigError(
            f"outputs must be [B, C] and targets one class an example for accuracy and margin, got "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}. Give a measurement of your own."
        )
    return outputs, targets.reshape(-1).long()
