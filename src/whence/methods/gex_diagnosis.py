"""Whether an ensemble around a trained model can tell anything: which regime, and did the members leave the basin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.data import Examples
from whence.tasks import BinaryCrossEntropy, Loss, Task

__all__ = ["Diagnosis", "diagnose"]

_SHARE = 0.05  # of the rows: those whose loss rises the most
_MEMORISED = 0.99
_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What an ensemble around a trained model can tell; ``str()`` says it in words.

    Args:
        training_accuracy: Share of training examples that θ̂ predicts as labelled; None where outputs are no classes.
        mean_loss: Mean training loss at θ̂.
        rise: Mean rise of the loss under the members, of the 5 % of the examples in which it rises the most.
        usual_rise: Median rise over all examples.
        risen_loss: Mean loss of those 5 % under the members.
        agreement: Mean correlation over examples of two members' deviations; None for one member.
        left_basin: Whether ``risen_loss`` reaches ln 2: the members give those rows' labels less than half.
    """

    training_accuracy: float | None
    mean_loss: float
    rise: float
    usual_rise: float
    risen_loss: float
    agreement: float | None
    left_basin: bool

    @property
    def memorised(self) -> bool:
        """Whether the model fits its training labels, wrong ones included: where GEX is at its best."""
        if self.training_accuracy is None:
            return self.mean_loss < 0.01
        return self.training_accuracy >= _MEMORISED

    @property
    def advice(self) -> str:
        """What to change, or that nothing need be."""
        if not self.left_basin:
            return "Deviations are noise: raise learning_rate or steps until members leave the basin."
        if self.usual_rise > math.log(2):
            return "Members forget most rows, not only the odd ones: lower learning_rate or steps."
        if not self.memorised:
            return "The model does not fit all of its labels: its plain training loss tells wrong ones about as well."
        return "The model fits all of its labels and the members forget some: their deviations tell which."

    def __str__(self) -> str:
        """Return the diagnosis in words."""
        known = "" if self.training_accuracy is None else f"training accuracy {self.training_accuracy:.1%}, "
        regime = "memorised" if self.memorised else "not memorised"
        left = "left the basin" if self.left_basin else "stayed in the basin"
        together = "" if self.agreement is None else f", agreement {self.agreement:.2f}"
        return (
            f"{regime} ({known}mean loss {self.mean_loss:.3g}); members {left} (loss of the 5 % that rise most "
            f"{self.risen_loss:.2f}, usual rise {self.usual_rise:.2g}{together}). {self.advice}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-able."""
        return {**vars(self), "memorised": self.memorised, "advice": self.advice}


def diagnose(task: Task, examples: Examples, base: Tensor, losses: Tensor) -> Diagnosis:
    """Return what members' losses [N, M] and those of the trained model [N] say."""
    rises = losses - base[:, None]  # [N, M]
    mean = rises.mean(1)
    most = mean.topk(max(1, math.ceil(_SHARE * len(mean)))).indices
    risen = float(losses[most].mean())
    return Diagnosis(
        training_accuracy=_accuracy(task, examples), mean_loss=float(base.mean()), rise=float(mean[most].mean()),
        usual_rise=float(mean.median()), risen_loss=risen, agreement=_agreement(rises), left_basin=risen >= math.log(2),
    )  # fmt: skip


def _agreement(rises: Tensor) -> float | None:
    """Return the mean correlation of two members' deviations."""
    count = rises.shape[1]
    if count < 2:
        return None
    centred = rises - rises.mean(0)
    unit = centred / centred.norm(dim=0).clamp(min=1e-300)
    return float((unit.sum(1).square().sum() - unit.square().sum()) / (count * (count - 1)))


def _accuracy(task: Task, examples: Examples) -> float | None:
    """Return the share of examples predicted as labelled, by largest or single logit; None where that means nothing."""
    targets = examples.targets
    binary = isinstance(task.loss, BinaryCrossEntropy)
    if not isinstance(task.loss, Loss) or targets is None or targets.numel() != len(targets):
        return None
    if not binary and (targets.is_floating_point() or targets.ndim != 1):
        return None
    labels, right, done = targets.reshape(-1).cpu(), 0, 0
    with torch.no_grad(), task.evaluating():
        for batch in examples.batches(_CHUNK):
            outputs = task.forward(task.place(batch)).cpu()
            given = labels[done : done + len(batch)]
            done += len(batch)
            if binary and outputs.numel() == len(batch):
                right += int(((outputs.reshape(-1) > 0) == (given > 0.5)).sum())
            elif outputs.ndim == 2 and outputs.shape[1] > 1 and not binary:
                right += int((outputs.argmax(1) == given).sum())
            else:
                return None
    return right / len(examples)
