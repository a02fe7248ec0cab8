"""A linear probe as a measurement: fitted anew, in closed form, wherever the encoder is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.data import Batch, Examples, as_examples
from whence.errors import ConfigError, DataError

__all__ = ["RidgeProbe"]

Codes = Callable[[Any, Any], Tensor]


class RidgeProbe:
    r"""Squared error of a ridge probe that is fitted to the model's own codes at every evaluation.

    m_t(θ) = ‖y_t − f(z_t)‖², f(z) = ȳ + Wᵀ(z − z̄), W = (Cov(z) + αI)⁻¹ Cov(z, y), z = codes(model, x), y one-hot.

    What one asks of an encoder that was trained without labels is how well *a* probe does on its codes. A probe that is
    fitted once and held fixed asks something else: rotating the codes changes no contrastive or reconstruction loss,
    but all that a fixed probe says. W follows the encoder: m does not change when codes are moved or rotated, and its
    gradient, which goes through W, has no part in these directions, where the training loss is flat.

    Args:
        data: Labelled examples (inputs, targets) the probe is fitted to; classes [N], or numbers [N] or [N, C].
        codes: ``(model, inputs) -> [B, d]``; by default the model's own outputs, the dimensions after the first joined.
        weight_decay: α > 0, on W, not on the intercept, next to the *mean* squared error.

    Raises:
        ConfigError: The weight decay is not positive.
        DataError: The data have no targets, or classes that are negative.

    Cost: a query is one forward and backward pass over the probe's examples and an equation of size d.
    Reference: Alain & Bengio (2017) for linear probes; the gradient through the solution is exact.

    Example:
        >>> import whence as wh
        >>> encoder, x, y = nn.Linear(4, 2), torch.randn(20, 4), torch.randint(0, 3, (20,))
        >>> probe = RidgeProbe((x, y), weight_decay=0.1)
        >>> task = wh.Task(encoder, "mse", measurement=probe, weight_decay=0.1)
        >>> wh.Influence(curvature=wh.Exact()).fit(task, (x, x[:, :2])).scores((x[:3], y[:3])).values.shape
        torch.Size([3, 20])
    """

    def __init__(self, data: Any, *, codes: Codes | None = None, weight_decay: float = 1e-2) -> None:
        if not 0 < weight_decay < float("inf"):
            raise ConfigError(
                f"weight_decay must be positive, got {weight_decay}. Without it codes of less than full rank have no "
                "one probe."
            )
        self.examples: Examples = as_examples(data)
        self.codes: Codes = _outputs if codes is None else codes
        self.weight_decay = weight_decay
        targets = self.examples.targets
        if targets is None:
            raise DataError("data must have targets for the probe to be fitted to, got none. Pass (inputs, targets).")
        classes = not targets.is_floating_point()
        if classes and int(targets.min()) < 0:
            raise DataError(f"targets must be classes from 0, got {int(targets.min())}. Number them from 0.")
        self.classes: int | None = int(targets.max()) + 1 if classes else None

    def __repr__(self) -> str:
        """Return how many examples, and the weight decay."""
        return f"RidgeProbe({len(self.examples)} examples, weight_decay={self.weight_decay:g})"

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the squared error of every query [B], summed over the classes.

        Raises:
            DataError: A query has no target, or one of a class that the probe has not seen.
        """
        if batch.targets is None:
            raise DataError("queries must have targets that the probe is measured by. Pass (inputs, targets).")
        predicted = self.predict(model, batch.inputs)
        return (self._numbers(batch.targets).to(predicted) - predicted).square().sum(1)

    def predict(self, model: nn.Module, inputs: Any) -> Tensor:
        """Return what the probe, fitted to the codes that the model gives now, says of inputs [B, C].

        Raises:
            ConfigError: The codes are not one vector an example.
        """
        first = next(model.parameters())
        probed = self.examples.batch(np.arange(len(self.examples))).to(first.device, first.dtype)
        assert probed.targets is not None
        codes, asked = self._codes(model, probed.inputs, len(probed)), self._codes(model, inputs, None)
        targets = self._numbers(probed.targets).to(codes)
        centre, mean = codes.mean(0), targets.mean(0)
        centred = codes - centre
        covariance = centred.T @ centred / len(centred)
        ridge = self.weight_decay * torch.eye(len(covariance), dtype=codes.dtype, device=codes.device)
        weights = torch.linalg.solve(covariance + ridge, centred.T @ (targets - mean) / len(centred))  # [d, C]
        predicted: Tensor = mean + (asked - centre) @ weights
        return predicted

    def _codes(self, model: nn.Module, inputs: Any, count: int | None) -> Tensor:
        """Return codes [B, d], of float32 at least: no equation is solved in half precision."""
        codes = self.codes(model, inputs)
        if not isinstance(codes, Tensor) or codes.ndim != 2 or count not in (None, len(codes)):
            shape = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
            raise ConfigError(f"codes must be [B, d], a vector an example, got {shape}. Flatten or pool them.")
        return codes.float() if codes.dtype.itemsize < torch.float32.itemsize else codes

    def _numbers(self, targets: Tensor) -> Tensor:
        """Return targets as numbers [B, C]: classes one-hot."""
        if self.classes is None:
            return targets.reshape(len(targets), -1)
        if targets.is_floating_point() or not bool(((targets >= 0) & (targets < self.classes)).all()):
            raise DataError(f"targets must be classes 0 … {self.classes - 1}, as the probe's are, got {targets[:5]}.")
        return F.one_hot(targets.long(), self.classes)


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    """Return the model's outputs, flattened."""
    outputs: Tensor = model(inputs)
    return outputs.flatten(1)
