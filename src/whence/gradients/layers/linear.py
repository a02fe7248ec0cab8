"""``nn.Linear`` and Hugging Face's ``Conv1D``: a is the input with a 1 for the bias, δ the gradient at the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from whence.gradients.factors import Outer
from whence.gradients.layers.base import Call, Site, Source, Tap, affine, positions

__all__ = ["LinearSource", "linear"]


class LinearSource(Source):
    """A linear map of the last dimension; all dimensions between the first and the last are positions."""

    def call(self, call: Call, tap: Tap) -> Any:
        """Mark the output."""
        slot = self.slot
        with torch.no_grad():
            a = affine(positions(call.tensor(slot.dtype)), slot)  # [B, T, I]
        return tap(slot, call.output, lambda d: Outer(positions(d), a))


def linear(site: Site) -> LinearSource | None:
    """Return the source of a linear module."""
    module = site.module
    if isinstance(module, nn.Linear):
        return LinearSource(site.name, module, site.slots({"weight": "rows", "bias": "column"}))
    if type(module).__name__ == "Conv1D" and _has_transposed_weight(module):
        return LinearSource(site.name, module, site.slots({"weight": "swapped", "bias": "column"}))
    return None


def _has_transposed_weight(module: nn.Module) -> bool:
    """Whether a module has Hugging Face's layout: weight [I, O] and bias [O] with O = ``nf``."""
    own = {key: tuple(p.shape) for key, p in module.named_parameters(recurse=False)}
    shapes = own.get("weight", ()), own.get("bias", ())
    width = getattr(module, "nf", None)
    return len(shapes[0]) == 2 and shapes[1] == (width,) and shapes[0][1] == width and not list(module.children())
