"""Layers: which parameters have a factored gradient, and what is recorded of every module; one kind a file."""

from whence.gradients.layers.base import Call, Slot, Source
from whence.gradients.layers.broadcast import broadcast_layers
from whence.gradients.layers.fallback import fallback_gradients
from whence.gradients.layers.find import Coverage, find_layers
from whence.gradients.layers.shared import Layer

__all__ = ["Call", "Coverage", "Layer", "Slot", "Source", "broadcast_layers", "fallback_gradients", "find_layers"]
