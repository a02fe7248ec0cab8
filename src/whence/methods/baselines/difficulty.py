"""Loss and margin: how hard a training example is for the model that was trained on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whence.data import Examples
from whence.errors import ConfigError
from whence.methods.baselines.base import BaselineAttribution, class_positions, same_class
from whence.methods.finite import finite
from whence.tasks import Task

__all__ = ["LossBaseline", "MarginBaseline"]

_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class LossBaseline:
    r"""The training loss of an example: score(q, i) = ± ℓ_i, + where q has the label of i; suspicion ℓ_i.

    A hard example pulls the model most, towards its own label. All queries of a class get the same ranking.

    Cost: one forward pass over the training examples.

    Example:
        >>> train = (torch.randn(6, 2), torch.tensor([0, 1] * 3))
        >>> LossBaseline().fit(Task(torch.nn.Linear(2, 2)), train).suspicion().name
        'loss'
    """

    def fit(self, task: Task, train: object) -> BaselineAttribution:
        """Evaluate the loss of every training example."""
        examples = task.examples(train)
        parts = []
        with task.evaluating(), torch.no_grad():
            for batch in examples.batches(_CHUNK):
                parts.append(task.losses(task.place(batch)).double().cpu())
        return _fitted(task, "loss", examples, torch.cat(parts))


@dataclass(frozen=True, kw_only=True)
class MarginBaseline:
    r"""How little the model prefers the given label: u_i = ½ (1 − p_i[y_i] + max_{c≠y_i} p_i[c]) in [0, 1].

    score(q, i) = ± u_i, + where q has the label of i; suspicion u_i.

    Cost: one forward pass over the training examples.

    Example:
        >>> train = (torch.randn(6, 2), torch.tensor([0, 1] * 3))
        >>> MarginBaseline().fit(Task(torch.nn.Linear(2, 2)), train).scores(train).values.shape
        torch.Size([6, 6])
    """

    def fit(self, task: Task, train: object) -> BaselineAttribution:
        """Evaluate the probabilities of every training example.

        Raises:
            ConfigError: The outputs are no class logits [N, C] (or [N] for two classes), or there are no labels.
            DataError: A label is none of these classes.
        """
        examples = task.examples(train)
        parts = []
        with task.evaluating(), torch.no_grad():
            for batch in examples.batches(_CHUNK):
                parts.append(task.forward(task.place(batch)).double().cpu())
        logits = torch.cat(parts)
        logits = logits[:, None] if logits.ndim == 1 else logits
        if logits.ndim != 2:
            raise ConfigError(f"outputs must be class logits [N, C] for margins, got {tuple(logits.shape)}.")
        if logits.shape[1] == 1:  # one logit for the second of two classes
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        own = class_positions(examples, "training examples", logits.shape[1])
        p = logits.softmax(1)
        given = p.gather(1, own[:, None])[:, 0]
        others = p.scatter(1, own[:, None], -1.0).amax(1)
        return _fitted(task, "margin", examples, (1 - given + others) / 2)


def _fitted(task: Task, name: str, examples: Examples, values: Tensor) -> BaselineAttribution:
    """Return the baseline of one number an example [N]."""
    kept: np.ndarray = finite(values, examples.ids, f"the {name}").numpy()
    return BaselineAttribution(
        name=name,
        examples=examples,
        score=lambda queries: same_class(examples, queries) * values[None],
        suspect=lambda: kept.copy(),
        prepare=task.examples,
    )
