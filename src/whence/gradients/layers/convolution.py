r"""Convolutions and their transposes: a linear map of every patch.

A transposed convolution is taken as the convolution that it is: of the input with zeros between its entries, by the
mirrored kernel. With groups the gradient is multiplied out at once: a kernel of g groups has g times fewer numbers,
while factors would need g times more positions, all but one group's share of them zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from whence.errors import ConfigError
from whence.gradients.factors import Matrix, Outer
from whence.gradients.layers.base import Call, Make, Site, Slot, Source, Tap, affine

__all__ = ["ConvolutionSource", "TransposedSource", "convolution"]


@dataclass(frozen=True, eq=False)
class ConvolutionSource(Source):
    """``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``."""

    module: _ConvNd

    def call(self, call: Call, tap: Tap) -> Any:
        """Mark the output."""
        with torch.no_grad():
            patches = self._patches(_batched(call, self.slot, self.module))  # [B, T, I·K]
            make = _make(patches, self.slot, self.module)
        return tap(self.slot, call.output, make)

    def _patches(self, inputs: Tensor) -> Tensor:
        m = self.module
        if m.padding_mode == "zeros" and isinstance(m.padding, tuple) and len(m.kernel_size) == 2:
            unfolded = F.unfold(inputs, m.kernel_size, dilation=m.dilation, padding=m.padding, stride=m.stride)
            return unfolded.transpose(1, 2)
        if any(m._reversed_padding_repeated_twice):
            mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
            inputs = F.pad(inputs, m._reversed_padding_repeated_twice, mode=mode)
        return _flatten(_windows(inputs, m.kernel_size, m.dilation, m.stride), len(m.kernel_size))


@dataclass(frozen=True, eq=False)
class TransposedSource(Source):
    """``nn.ConvTranspose1d``, ``nn.ConvTranspose2d`` or ``nn.ConvTranspose3d``."""

    module: _ConvTransposeNd

    def call(self, call: Call, tap: Tap) -> Any:
        """Mark the output; its size tells the output padding."""
        first = replace(call, args=call.args[:1], kwargs={} if call.args else {"input": call.kwargs["input"]})
        with torch.no_grad():
            inputs = _batched(first, self.slot, self.module)
            patches = self._patches(inputs, call.output.shape[2:])
            make = _make(patches, self.slot, self.module)
        return tap(self.slot, call.output, make)

    def _patches(self, inputs: Tensor, wanted: torch.Size) -> Tensor:
        m = self.module
        strides = [int(s) for s in m.stride]
        spread = [(n - 1) * s + 1 for n, s in zip(inputs.shape[2:], strides, strict=True)]
        stuffed = inputs.new_zeros(*inputs.shape[:2], *spread)
        steps: list[slice[Any, Any, Any]] = [slice(None), slice(None), *(slice(None, None, s) for s in strides)]
        stuffed[tuple(steps)] = inputs
        margins: list[int] = []
        reach = [d * (k - 1) for k, d in zip(m.kernel_size, m.dilation, strict=True)]
        assert not isinstance(m.padding, str)
        for size, span, out, padding in zip(spread, reach, wanted, m.padding, strict=True):
            left = span - padding
            margins[:0] = [left, out + span - left - size]  # the last dimension comes first
        windows = _windows(F.pad(stuffed, margins), m.kernel_size, m.dilation, (1,) * len(spread))
        count = len(spread)
        return _flatten(windows.flip(list(range(-count, 0))), count)


def convolution(site: Site) -> Source | None:
    """Return the source of a convolution."""
    module = site.module
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        if module.groups > 1:
            return TransposedSource(site.name, module, site.slots({"weight": "row", "bias": "row"}))
        return TransposedSource(site.name, module, site.slots({"weight": "swapped", "bias": "column"}))
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return ConvolutionSource(site.name, module, site.slots({"weight": "rows", "bias": "column"}))
    return None


def _batched(call: Call, slot: Slot, module: _ConvNd) -> Tensor:
    """Return the input [B, C, ...], or raise if it is a single example without a batch dimension."""
    inputs = call.tensor(slot.dtype)
    if inputs.ndim != len(module.kernel_size) + 2:
        raise ConfigError(
            f"layer {call.name!r} must be called with a batch [B, C, ...], got shape {tuple(inputs.shape)}. "
            "Keep the batch dimension, or leave the layer out with layers=."
        )
    return inputs


def _windows(x: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Return a view of all patches [B, C, *positions, *kernel]."""
    for axis, (size, step, hop) in enumerate(zip(kernel, dilation, stride, strict=True)):
        x = x.unfold(2 + axis, step * (size - 1) + 1, hop)[..., ::step]
    return x


def _flatten(windows: Tensor, count: int) -> Tensor:
    """Return patches [B, C, *positions, *kernel] as [B, T, C·K]."""
    order = [0, *range(2, 2 + count), 1, *range(2 + count, 2 + 2 * count)]
    ordered = windows.permute(order)
    return ordered.reshape(len(windows), windows.shape[2 : 2 + count].numel(), -1)


def _make(patches: Tensor, slot: Slot, module: _ConvNd) -> Make:
    """Return what turns the gradient at the output [B, O, ...] into the factor."""
    if module.groups == 1:
        a = affine(patches, slot)
        return lambda d: Outer(d.flatten(2).transpose(1, 2), a)
    return lambda d: _grouped(d.flatten(2), patches, slot, module)


def _grouped(d: Tensor, patches: Tensor, slot: Slot, module: _ConvNd) -> Matrix:
    """Return the gradient of a kernel with groups, from d [B, O, T] and patches [B, T, I·K]."""
    batch, out, count = d.shape
    groups = module.groups
    a = patches.reshape(batch, count, groups, -1).transpose(1, 2)  # [B, G, T, I/G·K]
    m = d.reshape(batch, groups, out // groups, count) @ a  # [B, G, O/G, I/G·K]
    if isinstance(module, _ConvTransposeNd):  # weight [I, O/G, K]
        m = m.reshape(batch, groups, out // groups, module.in_channels // groups, -1).transpose(2, 3)
    parts = {"weight": m.reshape(batch, *module.weight.shape), "bias": d.sum(2)}
    columns = [piece.columns(parts[piece.key]) for piece in slot.pieces]
    return Matrix(torch.cat(columns, -1))
