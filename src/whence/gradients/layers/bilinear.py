"""``nn.Bilinear``: a linear map of the outer product of its two inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import ConfigError
from whence.gradients.factors import Outer
from whence.gradients.layers.base import Call, Site, Source, Tap, affine, positions

__all__ = ["BilinearSource", "bilinear"]


class BilinearSource(Source):
    """``nn.Bilinear``; a is every product of an entry of the first and one of the second input."""

    def call(self, call: Call, tap: Tap) -> Any:
        """Mark the output."""
        given = [*call.args, *call.kwargs.values()]
        if len(given) != 2 or not all(isinstance(x, Tensor) for x in given):
            raise ConfigError(
                f"layer {self.name!r} must be called with two tensors, got {[type(x).__name__ for x in given]}. "
                "Leave it out with layers=."
            )
        with torch.no_grad():
            left, right = (positions(x.detach().to(self.slot.dtype)) for x in given)
            a = affine((left[..., :, None] * right[..., None, :]).flatten(2), self.slot)  # [B, T, I1·I2]
        return tap(self.slot, call.output, lambda d: Outer(positions(d), a))


def bilinear(site: Site) -> BilinearSource | None:
    """Return the source of a bilinear module."""
    if isinstance(site.module, nn.Bilinear):
        return BilinearSource(site.name, site.module, site.slots({"weight": "rows", "bias": "column"}))
    return None
