"""Modules that are called once for all examples, as the positions of a transformer are, and broadcast afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from whence.gradients.layers.base import Call, Source, Tap
from whence.gradients.layers.shared import Layer

__all__ = ["Broadcast", "broadcast_layers"]


@dataclass(frozen=True, eq=False)
class Broadcast(Source):
    """A source whose module's result is the same for all examples: it is repeated, so that each has its own gradient.

    A result [1, ..., C] becomes [B, ..., C], one without a batch dimension gets it in front.

    Args:
        inner: What records the module.
        shape: Of the result.
    """

    inner: Source
    shape: tuple[int, ...]

    def before(self) -> None:
        """Ask the inner source."""
        self.inner.before()

    def call(self, call: Call, tap: Tap) -> Any:
        """Let the inner source see inputs and a result of all examples."""
        if call.output.shape != self.shape:  # what the module was called with had been repeated already
            return self.inner.call(call, tap)
        batched = len(self.shape) > 2 and self.shape[0] == 1

        def repeated(x: Any) -> Any:
            if not isinstance(x, Tensor) or x.ndim == 0:
                return x
            return x.expand(call.rows, *x.shape[1:]) if batched else x.expand(call.rows, *x.shape)

        kwargs = {key: repeated(x) for key, x in call.kwargs.items()}
        args = tuple(repeated(x) for x in call.args)
        return self.inner.call(replace(call, args=args, kwargs=kwargs, output=repeated(call.output)), tap)


def broadcast_layers(layers: tuple[Layer, ...], shapes: Mapping[str, tuple[int, ...] | None]) -> tuple[Layer, ...]:
    """Return layers in which some sources are broadcast.

    Args:
        layers: Attributed layers.
        shapes: Of those modules' results, by name; None takes the whole layer by ``torch.func`` instead.
    """
    wrapped: dict[int, Source] = {}
    made = []
    for layer in layers:
        uses = []
        for source, slot in layer.uses:
            shape = shapes.get(source.name)
            if shape is not None:
                broadcast = Broadcast(source.name, source.module, source.slots, source, shape)
                source = wrapped.setdefault(id(source), broadcast)
            uses.append((source, slot))
        by_func = any(source.name in shapes and shapes[source.name] is None for source, _ in layer.uses)
        made.append(replace(layer, uses=() if by_func else tuple(uses)))
    return tuple(made)
