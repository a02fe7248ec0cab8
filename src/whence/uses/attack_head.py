"""A trained model as frozen features and a last layer that can be trained again exactly."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import ConfigError
from whence.gradients import find_layers

__all__ = ["split_head"]


class _Before(nn.Module):
    """A model up to its last layer."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the last layer is called with [B, D]."""
        seen: list[Any] = []
        handle = self.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self.model(inputs)
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].ndim != 2:
            raise ConfigError(
                f"the last layer must be called once with [B, D], got {[tuple(x.shape) for x in seen]}. "
                "Attack all layers instead."
            )
        found: Tensor = seen[0]
        return found


def split_head(model: nn.Module, some: Tensor) -> tuple[nn.Module, nn.Linear]:
    """Return the model up to its last linear layer, and that layer: copies, in evaluation mode, of the inputs' type.

    Args:
        model: A trained model whose outputs are those of its last linear layer.
        some: A few inputs, to check that.

    Raises:
        ConfigError: The last layer is not linear, or something follows it.

    Cost: two forward passes over ``some``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> frozen, head = split_head(model, torch.randn(5, 4))
        >>> frozen(torch.randn(7, 4)).shape, head.out_features
        (torch.Size([7, 3]), 2)
    """
    copied = copy.deepcopy(model).to(some.dtype).eval()
    head = find_layers(copied, "last").layers[0].slot.pieces[0].owner
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"the last layer must be linear, got {type(head).__name__}. Attack all layers instead.")
    frozen = _Before(copied, head)
    with torch.no_grad():
        outputs = copied(some)
        outputs = getattr(outputs, "logits", outputs)
        same = isinstance(outputs, Tensor) and torch.allclose(
            head(frozen(some)).reshape(outputs.shape), outputs, rtol=1e-4, atol=1e-5
        )
    if not same:
        raise ConfigError(
            "outputs of the model must be those of its last layer, got others. Attack all layers instead."
        )
    return frozen, copy.deepcopy(head)
