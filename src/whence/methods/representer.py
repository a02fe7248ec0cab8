"""Representer points: a head's logits as a sum over training examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.methods.baselines.base import blocks, class_positions
from whence.methods.baselines.head import Features, head_features
from whence.methods.ranking import RankingAttribution, loss_only
from whence.tasks import Task
from whence.tasks.convex import minimise
from whence.tasks.losses import BinaryCrossEntropy, CrossEntropy

__all__ = ["Representer"]


@dataclass(frozen=True, kw_only=True)
class Representer:
    r"""Representer points: score(q, i) = α_i[y_q] ⟨h̃_i, h̃_q⟩ with α_i = −(1/(λN)) ∂ℓ_i/∂f, h̃ = (h, 1).

    The head is fitted again on fixed features h with weight decay λ until its gradient vanishes; then its logits are
    *exactly* f_q = Σ_i α_i ⟨h̃_i, h̃_q⟩, and a score is the example's term in the logit of the query's label.
    Positive = helpful: it speaks for that label.

    Args:
        weight_decay: λ of the fitted head, bias included, beside the mean loss.
        features: ``(model, batch) -> [B, D]``; None for what the model's last layer is given.
        gradient_norm: Where fitting stops: the head is then within gradient_norm / λ of the minimum.

    Raises:
        ConfigError: A setting is not positive.

    Cost: a forward pass over the training examples and a convex fit of the head in float64; Q·N·(D + C) operations.

    Reference: Yeh et al. (2018), Theorem 3.1; their λ‖Θ‖² is (λ/2)‖θ‖² here, so λ = .006 is their .003. Deviation: the
        head is fitted to the labels, not to the network's own outputs.

    Example:
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> fitted = Representer().fit(Task(torch.nn.Linear(3, 2)), train)
        >>> bool((fitted.self_scores().values >= 0).all())
        True
    """

    weight_decay: float = 0.006
    features: Features | None = None
    gradient_norm: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("weight_decay", "gradient_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}.")

    def fit(self, task: Task, train: Any) -> RankingAttribution:
        """Fit the head.

        Args:
            task: A trained classifier with a cross-entropy of several classes, or of two with one logit.
            train: Training examples: anything that `as_examples` takes.

        Raises:
            ConfigError: The loss or measurement is another one, or there is no single head and no ``features``.
            DataError: A label is no class of the model's.
            NumericalError: The fit does not reach its gradient norm.
        """
        if not isinstance(task.loss, (CrossEntropy, BinaryCrossEntropy)):
            raise ConfigError(f"loss must be a cross-entropy for representer points, got {task.loss!r}.")
        loss_only(task, "Representer")
        examples = task.examples(train)
        count = _classes(task, examples)
        targets = class_positions(examples, "training examples", max(2, count))
        own = head_features(task, examples, self.features)
        alpha = self._coefficients(task.loss, own, targets, count)
        joined = _with_one(own)

        def score(queries: Examples) -> Tensor:
            asked = _with_one(head_features(task, queries, self.features))
            classes = class_positions(queries, "queries", max(2, count))
            parts = [asked[part] @ joined.T * _towards(alpha, classes[part]) for part in blocks(len(asked))]
            return torch.cat(parts)

        def for_itself() -> Tensor:
            if alpha.shape[1] == 1:
                speaks = alpha[:, 0] * (2.0 * targets.double() - 1.0)
            else:
                speaks = alpha.gather(1, targets[:, None])[:, 0]
            return speaks * joined.square().sum(1)

        return RankingAttribution(
            name="representer", examples=examples, score=score, own=for_itself, prepare=task.examples
        )

    def _coefficients(
        self, loss: CrossEntropy | BinaryCrossEntropy, features: Tensor, targets: Tensor, count: int
    ) -> Tensor:
        """Return α [N, C] of a head of C outputs fitted to the features."""
        single = isinstance(loss, BinaryCrossEntropy)
        head = nn.utils.skip_init(nn.Linear, features.shape[1], count, dtype=torch.float64)  # no random numbers
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
        data = as_examples((features, targets.double()[:, None] if single else targets))
        fitted = minimise(
            Task(head, loss, weight_decay=self.weight_decay), data, torch.ones(len(features)),
            gradient_norm=self.gradient_norm,
        )  # fmt: skip
        with torch.no_grad():
            outputs = fitted(features)
            given = torch.zeros_like(outputs).scatter(1, targets[:, None], 1.0) if not single else None
            slope = outputs.softmax(1) - given if given is not None else outputs.sigmoid() - targets.double()[:, None]
            alpha: Tensor = -slope / (self.weight_decay * len(features))
        return alpha


def _classes(task: Task, examples: Examples) -> int:
    """Return the number of outputs C, 1 of a single logit."""
    with torch.no_grad(), task.evaluating():
        outputs = task.forward(task.place(examples.batch(np.arange(1))))
    return outputs.reshape(1, -1).shape[1]


def _with_one(features: Tensor) -> Tensor:
    """Return features with a 1 for the bias."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def _towards(alpha: Tensor, classes: Tensor) -> Tensor:
    """Return how each training example speaks for the queries' labels [Q, N]."""
    if alpha.shape[1] == 1:
        return (2.0 * classes.double() - 1.0)[:, None] * alpha[:, 0][None]
    return alpha.T[classes]
