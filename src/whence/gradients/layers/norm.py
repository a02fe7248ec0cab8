"""Normalisation: an elementwise scale and shift of what has been normalised, multiplied out as [1, P]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from whence.errors import ConfigError
from whence.gradients.factors import Matrix
from whence.gradients.layers.base import Call, Site, Slot, Source, Tap

__all__ = ["NormSource", "ScaleSource", "norm"]

_LAST = (nn.LayerNorm, nn.RMSNorm)  # their parameters belong to the last dimensions, the others' to channels
_NORMS = (*_LAST, nn.GroupNorm, _BatchNorm, _InstanceNorm)


class NormSource(Source):
    """Layer, RMS, group, instance and batch normalisation, the last with frozen statistics."""

    def before(self) -> None:
        """Refuse statistics of the batch: they mix examples, and in training mode they change the module."""
        m = self.module
        if isinstance(m, _BatchNorm) and (m.training or m.running_mean is None):
            remedy = "in training mode" if m.training else "with track_running_stats=False"
            raise ConfigError(
                f"batch normalisation {self.name!r} must use frozen statistics, got batch statistics ({remedy}): an "
                "example's gradient would depend on its neighbours. Keep running statistics and leave the module in "
                "evaluation mode, or replace it."
            )
        if isinstance(m, _InstanceNorm) and m.training and m.track_running_stats:
            raise ConfigError(
                f"instance normalisation {self.name!r} must not change its running statistics, got training mode. "
                "Leave the module in evaluation mode."
            )

    def call(self, call: Call, tap: Tap) -> Any:
        """Mark the output."""
        inputs = call.tensor(self.slot.dtype)
        channels = not isinstance(self.module, _LAST)
        with torch.no_grad():
            normal = self._normalised(inputs) if "weight" in self.slot.keys else inputs
        return tap(self.slot, call.output, lambda d: _scaled(d, normal, self.slot, channels))

    def _normalised(self, x: Tensor) -> Tensor:
        """Return the input as it is before scale and shift."""
        m = self.module
        if isinstance(m, nn.LayerNorm):
            return F.layer_norm(x, m.normalized_shape, eps=m.eps)
        if isinstance(m, nn.RMSNorm):
            return F.rms_norm(x, m.normalized_shape, eps=m.eps)
        if isinstance(m, nn.GroupNorm):
            return F.group_norm(x, m.num_groups, eps=m.eps)
        assert isinstance(m, (_BatchNorm, _InstanceNorm))
        if isinstance(m, _InstanceNorm):
            return F.instance_norm(
                x, m.running_mean, m.running_var, use_input_stats=not m.track_running_stats, eps=m.eps
            )
        return F.batch_norm(x, m.running_mean, m.running_var, eps=m.eps)


class _Forward(nn.Module):
    """Calls a module's forward without its hooks, so that a hook may evaluate the module again."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the module."""
        result: Tensor = self.inner.forward(x)
        return result


@dataclass(frozen=True, eq=False)
class ScaleSource(Source):
    """A hand-written module whose output is linear in its one parameter, a scale of the last dimension.

    Llama's and T5's RMSNorm (``weight``), Gemma's (``1 + weight``) and layer scale are of this kind. That a module
    is one is established by evaluating it with other weights on random inputs, not by its name.
    """

    def call(self, call: Call, tap: Tap) -> Any:
        """Mark the output."""
        inputs = call.tensor()
        with torch.no_grad():
            weight = self.slot.pieces[0].parameter
            key = f"inner.{self.slot.pieces[0].key}"
            wrapped = _Forward(self.module)
            ends = [torch.func.functional_call(wrapped, {key: end}, (inputs,)) for end in _ends(weight)]
            normal = (ends[1] - ends[0]).to(self.slot.dtype)
        return tap(self.slot, call.output, lambda d: _scaled(d, normal, self.slot, False))


def norm(site: Site) -> Source | None:
    """Return the source of a normalisation."""
    module = site.module
    if isinstance(module, _NORMS):
        return NormSource(site.name, module, site.slots({"weight": "row", "bias": "row"}))
    own = list(module.named_parameters(recurse=False))
    if len(own) == 1 and own[0][1].ndim == 1 and not list(module.children()) and not list(module.buffers()):
        key, parameter = own[0]
        if _is_scale(module, key, parameter):
            return ScaleSource(site.name, module, (Slot(site.name, site.pieces({key: "row"})),))
    return None


def _scaled(delta: Tensor, normal: Tensor, slot: Slot, channels: bool) -> Matrix:
    """Return Σ_t δ_t x̂_t for a scale and Σ_t δ_t for a shift."""
    parts = []
    for piece in slot.pieces:
        values = delta if piece.key == "bias" else delta * normal
        if channels:
            parts.append(values.flatten(2).sum(2) if values.ndim > 2 else values)
        else:
            parts.append(values.reshape(len(values), -1, piece.parameter.numel()).sum(1))
    return Matrix(torch.cat(parts, 1)[:, None, :])


def _ends(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two weights between which a linear function is read."""
    return torch.zeros_like(weight), torch.ones_like(weight)


def _is_scale(module: nn.Module, key: str, parameter: nn.Parameter) -> bool:
    """Whether out(w) = out(0) + w ∘ (out(1) − out(0)) in the last dimension, and rows do not interact."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(4, 2, len(parameter), generator=generator, dtype=torch.float64)
    magnitudes = torch.tensor([1.0, 1e-3, 30.0, 0.1], dtype=torch.float64)[:, None, None]
    x = (draw * magnitudes).to(parameter)
    weights = torch.randn(len(parameter), generator=generator, dtype=torch.float64).to(parameter)
    wrapped, training = _Forward(module), module.training
    module.training = False
    try:
        with torch.no_grad():
            zero, one = (torch.func.functional_call(wrapped, {f"inner.{key}": w}, (x,)) for w in _ends(parameter))
            other = torch.func.functional_call(wrapped, {f"inner.{key}": weights}, (x,))
            alone = torch.func.functional_call(wrapped, {f"inner.{key}": weights}, (x[1:2],))
    except Exception:  # a user's module may raise anything on inputs that it was not made for
        return False
    finally:
        module.training = training
    if not all(isinstance(y, Tensor) and y.shape[-1:] == x.shape[-1:] for y in (zero, one, other, alone)):
        return False
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(parameter.dtype, 5e-2)
    size = other.double().norm(dim=-1, keepdim=True) + 1e-30
    linear = (zero + weights * (one - zero) - other).double().norm(dim=-1, keepdim=True)
    apart = (other[1:2] - alone).double().norm(dim=-1, keepdim=True)
    return bool((linear <= tolerance * size).all() and (apart <= tolerance * size[1:2]).all())
