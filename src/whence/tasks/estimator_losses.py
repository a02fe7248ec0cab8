"""Losses that estimators of other libraries train with: squared hinge, one class against the rest, class weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.errors import DataError
from whence.tasks.losses import SmoothLoss

__all__ = ["ClassWeighted", "OneVersusRest", "SquaredHinge"]


@dataclass(frozen=True, kw_only=True)
class SquaredHinge:
    r"""Squared hinge max(0, 1 − y f)² of one output f [B] or [B, 1], y = ±1 or 0/1.

    Its second derivative is 2 inside the margin and 0 outside; the score of an example outside is zero.
    """

    @property
    def unit(self) -> str | None:
        """Return "squared margin"."""
        return "squared margin"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        slack = self._slack(outputs, targets)
        return slack * slack

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √2 inside the margin: [1, *outputs.shape]."""
        inside = (self._slack(outputs, targets) > 0).to(outputs.dtype)
        return (math.sqrt(2.0) * inside).reshape(1, *outputs.shape)

    def draws(self, outputs: Tensor) -> int:
        """Return 1."""
        return 1

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return the one root, which needs no draw."""
        return self.roots(outputs, targets)[0]

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return W [B, 1, 1]."""
        roots = self.roots(outputs, targets)
        return roots.reshape(-1, 1, 1) ** 2

    def _slack(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return max(0, 1 − y f) [B]."""
        if targets.numel() != outputs.numel() or outputs.numel() != len(outputs):
            raise DataError(
                f"outputs and targets of a squared hinge must be one number an example, got {tuple(outputs.shape)} "
                f"and {tuple(targets.shape)}. Use OneVersusRest(SquaredHinge()) for several classes."
            )
        sign = torch.where(targets.reshape(-1) > 0, 1.0, -1.0).to(outputs.dtype)
        slack: Tensor = (1 - sign * outputs.reshape(-1)).clamp(min=0.0)
        return slack


@dataclass(frozen=True)
class OneVersusRest:
    """Sum over classes of a loss of one output: is it this class or another one?

    Args:
        loss: A loss of one output with targets 0/1.

    Outputs are [B, C], targets class indices [B].
    """

    loss: SmoothLoss

    @property
    def unit(self) -> str | None:
        """Return the unit of the loss."""
        return self.loss.unit

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        return self.loss(*self._binary(outputs, targets)).reshape(outputs.shape).sum(1)

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the root of every class by itself: [C, B, C]."""
        own = self.loss.roots(*self._binary(outputs, targets)).reshape(outputs.shape)
        eye = torch.eye(outputs.shape[1], dtype=own.dtype, device=own.device)
        return eye[:, None, :] * own[None]

    def draws(self, outputs: Tensor) -> int:
        """Return what C examples of the loss take."""
        return outputs.shape[1] * self.loss.draws(outputs.reshape(-1, 1))

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return a draw of every class."""
        drawn = self.loss.sample(*self._binary(outputs, targets), uniforms.reshape(outputs.numel(), -1))
        return drawn.reshape(outputs.shape)

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the diagonal W [B, C, C]."""
        return torch.diag_embed(self.loss.hessian(*self._binary(outputs, targets)).reshape(outputs.shape))

    def _binary(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs [B·C, 1] and targets 0/1 [B·C]."""
        return outputs.reshape(-1, 1), F.one_hot(targets.reshape(-1).long(), outputs.shape[1]).reshape(-1)


@dataclass(frozen=True)
class ClassWeighted:
    """A loss times a weight of the example's class.

    Args:
        loss: The loss.
        weights: One weight a class index.
    """

    loss: SmoothLoss
    weights: tuple[float, ...]

    @property
    def unit(self) -> str | None:
        """Return the unit of the loss, weighted."""
        return None if self.loss.unit is None else f"weighted {self.loss.unit}"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        return self.loss(outputs, targets) * self._of(outputs, targets)

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss's roots times √weight [R, *outputs.shape]."""
        return self.loss.roots(outputs, targets) * self._beside(outputs, targets)

    def draws(self, outputs: Tensor) -> int:
        """Return what the loss takes."""
        return self.loss.draws(outputs)

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return the loss's draw times √weight."""
        return self.loss.sample(outputs, targets, uniforms) * self._beside(outputs, targets)

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return W [B, C, C]."""
        return self.loss.hessian(outputs, targets) * self._of(outputs, targets)[:, None, None]

    def _of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return every example's weight [B]."""
        return torch.tensor(self.weights, dtype=outputs.dtype, device=outputs.device)[targets.reshape(-1).long()]

    def _beside(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √weight, shaped to multiply the outputs."""
        return self._of(outputs, targets).sqrt().reshape(-1, *[1] * (outputs.ndim - 1))
