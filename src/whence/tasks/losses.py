"""Per-example training losses and, where they have one, the curvature of the loss in the model's outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.errors import ConfigError, DataError

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Hinge",
    "Loss",
    "MeanSquaredError",
    "SigmoidCrossEntropy",
    "SmoothHinge",
    "SmoothLoss",
    "loss_by_name",
]


@runtime_checkable
class Loss(Protocol):
    """A training loss of outputs and targets, one number an example."""

    @property
    def unit(self) -> str | None:
        """Unit of the loss."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""


@runtime_checkable
class SmoothLoss(Loss, Protocol):
    r"""A loss that is convex and twice differentiable in the outputs f, with Hessian W = ∇²_f ℓ.

    Gauss–Newton, Fisher and the leave-one-out correction need these.
    """

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return s with Σ_r s_r s_rᵀ = W: shape [R, *outputs.shape]; outputs without positions only."""

    def draws(self, outputs: Tensor) -> int:
        """Return how many uniform numbers an example `sample` takes."""

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return one random gradient in the outputs, shaped like them, with E[g gᵀ] = W at every position.

        ``uniforms`` [B, draws] lie in [0, 1).
        """

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return W [B, C, C] for outputs [B, C] or [B] (then C = 1)."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    r"""Softmax cross-entropy ℓ = Σ_t −log p_t[y_t], in nats.

    Outputs are logits [B, C] with targets [B], or [B, T, C] with targets [B, T]; the loss of a sequence is
    the sum over its positions, and positions whose target is ``ignore_index`` count nothing.
    """

    ignore_index: int = -100

    @property
    def unit(self) -> str | None:
        """Return "nats"."""
        return "nats"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        _check_classes(outputs, targets, self.ignore_index)
        logits = outputs.reshape(-1, outputs.shape[-1])
        losses = F.cross_entropy(logits, targets.reshape(-1).long(), reduction="none", ignore_index=self.ignore_index)
        return losses.reshape(outputs.shape[0], -1).sum(1)

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √p_c (e_c − p) for every class c: [C, B, C]."""
        _check_flat(outputs)
        p = outputs.softmax(-1)
        eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
        scale = p.sqrt() * (targets.reshape(-1, 1) != self.ignore_index)
        return scale.T[:, :, None] * (eye[:, None, :] - p[None])  # [C, B, C]

    def draws(self, outputs: Tensor) -> int:
        """Return T, one for every position."""
        return outputs.shape[:-1].numel() // len(outputs)

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return p − e_y for labels y drawn from the model's own p, the k-th number at the k-th counted position.

        Padding on either side therefore changes no label.
        """
        p = outputs.softmax(-1)
        counted = targets.reshape(len(p), -1) != self.ignore_index  # [B, T]
        places = (counted.long().cumsum(1) - 1).clamp(min=0)
        own = uniforms.reshape(counted.shape).gather(1, places).reshape(p.shape[:-1])
        drawn = (p.double().cumsum(-1) <= own[..., None]).sum(-1)
        one_hot = F.one_hot(drawn.clamp(max=p.shape[-1] - 1), p.shape[-1]).to(p.dtype)
        return (p - one_hot) * counted.reshape(p.shape[:-1])[..., None]

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return diag(p) − p pᵀ [B, C, C]."""
        _check_flat(outputs)
        p = outputs.softmax(-1)
        counted = (targets.reshape(-1, 1, 1) != self.ignore_index).to(p.dtype)
        return counted * (torch.diag_embed(p) - p[:, :, None] * p[:, None, :])


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy:
    r"""Sigmoid cross-entropy ℓ = Σ_c log(1 + e^{f_c}) − y_c f_c, in nats.

    Outputs are logits [B], [B, 1] or [B, C] (independent labels), targets in [0, 1] of the same number.
    """

    @property
    def unit(self) -> str | None:
        """Return "nats"."""
        return "nats"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        wanted = _like(targets, outputs)
        if wanted.numel() and not (float(wanted.min()) >= 0 and float(wanted.max()) <= 1):
            raise DataError(
                f"targets of a binary cross-entropy must lie between 0 and 1, got {float(wanted.min()):g} to "
                f"{float(wanted.max()):g}. Encode the classes as 0 and 1."
            )
        losses = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        return losses.reshape(len(outputs), -1).sum(1)

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √(p_c (1 − p_c)) e_c for every output c: [C, *outputs.shape]."""
        p = outputs.sigmoid()
        return _diagonal_roots((p * (1 - p)).sqrt())

    def draws(self, outputs: Tensor) -> int:
        """Return C, one for every output."""
        return outputs.numel() // len(outputs)

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return p − y for labels y drawn from the model's own p."""
        p = outputs.sigmoid()
        return p - (uniforms.reshape(p.shape) < p).to(p.dtype)

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return diag(p (1 − p)) [B, C, C]."""
        p = outputs.reshape(len(outputs), -1).sigmoid()
        return torch.diag_embed(p * (1 - p))


@dataclass(frozen=True, kw_only=True)
class SigmoidCrossEntropy:
    r"""One sigmoid cross-entropy a class, ℓ = Σ_c log(1 + e^{f_c}) − 1[c=y] f_c, in nats: every class by itself.

    Outputs are logits [B, C] with class targets [B]. The C questions "is it class c?" are asked of independent
    likelihoods.

    Reference: what the released code of Kim et al. (2023) trains and measures with, instead of a softmax.
    """

    @property
    def unit(self) -> str | None:
        """Return "nats"."""
        return "nats"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        return BinaryCrossEntropy()(outputs, _one_hot(outputs, targets))

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √(p_c (1 − p_c)) e_c for every class c: [C, B, C]."""
        return BinaryCrossEntropy().roots(outputs, targets)

    def draws(self, outputs: Tensor) -> int:
        """Return C, one for every class."""
        return BinaryCrossEntropy().draws(outputs)

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return p − y for answers y drawn from the model's own p, class by class."""
        return BinaryCrossEntropy().sample(outputs, targets, uniforms)

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return diag(p (1 − p)) [B, C, C]."""
        return BinaryCrossEntropy().hessian(outputs, targets)


@dataclass(frozen=True, kw_only=True)
class MeanSquaredError:
    r"""Squared error ℓ = mean_c (f_c − y_c)², in squared units of the target.

    Its likelihood is a Gaussian of variance C/2, so Fisher and Gauss–Newton agree.
    """

    @property
    def unit(self) -> str | None:
        """Return "squared target"."""
        return "squared target"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        return (outputs - _like(targets, outputs)).square().reshape(len(outputs), -1).mean(1)

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √(2/C) e_c for every output c: [C, *outputs.shape]."""
        width = outputs.reshape(len(outputs), -1).shape[1]
        return _diagonal_roots(torch.full_like(outputs, (2.0 / width) ** 0.5))

    def draws(self, outputs: Tensor) -> int:
        """Return C, one for every output."""
        return outputs.numel() // len(outputs)

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return √(2/C) ε with ε standard normal."""
        width = outputs.reshape(len(outputs), -1).shape[1]
        spread = uniforms.reshape(outputs.shape).clamp(1e-12, 1 - 1e-12)
        normal: Tensor = torch.special.ndtri(spread).to(outputs.dtype)
        return math.sqrt(2.0 / width) * normal

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return (2/C) I [B, C, C]."""
        flat = outputs.reshape(len(outputs), -1)
        return torch.diag_embed(torch.full_like(flat, 2.0 / flat.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Hinge:
    r"""Hinge loss max(0, 1 − y f) for one output (y = ±1 or 0/1), or max_c (1[c≠y] + f_c − f_y) for several.

    It has no curvature: train with it and measure with `SmoothHinge` (Koh & Liang 2017, §4.2).
    """

    @property
    def unit(self) -> str | None:
        """Return "margin"."""
        return "margin"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        return _violations(outputs, targets).amax(-1)


@dataclass(frozen=True, kw_only=True)
class SmoothHinge:
    r"""Smooth hinge t·log Σ_c exp(v_c / t) of the violations v_c = 1[c≠y] + f_c − f_y.

    With one output s = y f it is t·log(1 + e^{(1−s)/t}), which tends to the hinge as t → 0.

    Args:
        temperature: t, in units of the margin.

    Reference: Koh & Liang (2017), §4.2; the form for several classes is its natural extension.
    """

    temperature: float = 0.001

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive, got {self.temperature}.")

    @property
    def unit(self) -> str | None:
        """Return "margin"."""
        return "margin"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every example [B]."""
        t = self.temperature
        return t * (_violations(outputs, targets) / t).logsumexp(-1)

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √(q_c/t) (e_c − q) with q the softmax of v/t, carried to the outputs: [R, *outputs.shape]."""
        q = (_violations(outputs, targets) / self.temperature).softmax(-1)  # [B, C]
        if _single(outputs):
            return (q[:, 0] * q[:, 1] / self.temperature).sqrt().reshape(1, *outputs.shape)
        eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        return (q / self.temperature).sqrt().T[:, :, None] * (eye[:, None, :] - q[None])

    def draws(self, outputs: Tensor) -> int:
        """Return 1."""
        return 1

    def sample(self, outputs: Tensor, targets: Tensor, uniforms: Tensor) -> Tensor:
        """Return √R s_r for a root r drawn uniformly."""
        roots = self.roots(outputs, targets)  # [R, B, ...]
        drawn = (uniforms.reshape(len(outputs)) * len(roots)).long().clamp(max=len(roots) - 1)
        root: Tensor = roots[drawn, torch.arange(len(outputs), device=outputs.device)]
        return math.sqrt(len(roots)) * root

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return W [B, C, C]."""
        roots = self.roots(outputs, targets).reshape(-1, len(outputs), max(1, outputs[0].numel()))
        return torch.einsum("rbc,rbd->bcd", roots, roots)


def loss_by_name(name: str) -> Loss:
    """Return the loss called ``name``.

    Raises:
        ConfigError: No loss has that name.

    Example:
        >>> loss_by_name("cross_entropy").unit
        'nats'
    """
    losses: dict[str, Loss] = {
        "cross_entropy": CrossEntropy(),
        "binary_cross_entropy": BinaryCrossEntropy(),
        "sigmoid_cross_entropy": SigmoidCrossEntropy(),
        "mse": MeanSquaredError(),
        "hinge": Hinge(),
        "smooth_hinge": SmoothHinge(),
    }
    if name not in losses:
        raise ConfigError(
            f"loss must be one of {sorted(losses)} or a callable (model, batch) -> [B], got {name!r}."
        )
    return losses[name]


def _check_classes(outputs: Tensor, targets: Tensor, ignore_index: int | None) -> None:
    """Raise unless integer targets fit the width of the logits."""
    if targets.is_floating_point():
        raise DataError(
            f"targets of several classes must be class indices (integers), got {targets.dtype}. "
            'Use loss="mse" for a continuous target or loss="binary_cross_entropy" for one logit.'
        )
    if outputs.ndim < 2 or outputs.shape[:-1].numel() != targets.numel():
        raise DataError(
            f"outputs must be logits [B, C] or [B, T, C] for targets {tuple(targets.shape)}, "
            f"got {tuple(outputs.shape)}. Name the logits with Task(outputs=...) if the model returns more."
        )
    counted = targets.reshape(-1) if ignore_index is None else targets[targets != ignore_index]
    if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= outputs.shape[-1]):
        low, high, width = int(counted.min()), int(counted.max()), outputs.shape[-1]
        raise DataError(
            f"targets must lie in 0..{width - 1} (the model has so many outputs), got {high if high >= width else low}."
            + _remedy(low, high, width)
        )


def _remedy(low: int, high: int, width: int) -> str:
    """Return what to do about class targets low..high of a model with so many outputs."""
    if width == 1:
        return ' For one logit use loss="binary_cross_entropy".'
    if low >= 1 and high == width:
        return " Labels start at 0: subtract 1."
    return ""


def _one_hot(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return class targets [B] as answers [B, C]."""
    _check_flat(outputs)
    _check_classes(outputs, targets, None)
    return F.one_hot(targets.long(), outputs.shape[-1]).to(outputs.dtype)


def _check_flat(outputs: Tensor) -> None:
    """Raise unless the outputs are [B, C]."""
    if outputs.ndim != 2:
        raise ConfigError(
            f"outputs must be [B, C] for an expectation over classes or one question a class, got "
            f'{tuple(outputs.shape)}. Use fisher="sampled", or another loss.'
        )


def _like(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return the targets in the outputs' shape and type."""
    if targets.numel() != outputs.numel():
        raise DataError(
            f"targets must have as many numbers as the outputs {tuple(outputs.shape)}, got {tuple(targets.shape)}."
        )
    return targets.reshape(outputs.shape).to(outputs.dtype)


def _diagonal_roots(scale: Tensor) -> Tensor:
    """Return roots of a diagonal Hessian whose square-rooted diagonal is ``scale`` [B, ...]: [C, B, ...]."""
    flat = scale.reshape(len(scale), -1)  # [B, C]
    eye = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
    return (eye[:, None, :] * flat[None]).reshape(flat.shape[1], *scale.shape)


def _single(outputs: Tensor) -> bool:
    """Whether the model has one output an example."""
    return outputs.ndim == 1 or outputs.shape[-1] == 1


def _violations(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the margin violations [B, C]; for one output [B, 2] with 0 for the true side first."""
    if _single(outputs):
        sign = torch.where(_like(targets, outputs).reshape(-1) > 0, 1.0, -1.0).to(outputs.dtype)
        slack = 1 - sign * outputs.reshape(-1)
        return torch.stack([torch.zeros_like(slack), slack], -1)
    _check_classes(outputs, targets, None)
    true = outputs.gather(-1, targets.reshape(-1, 1).long())
    wrong = 1 - F.one_hot(targets.reshape(-1).long(), outputs.shape[-1]).to(outputs.dtype)
    return wrong + outputs - true
