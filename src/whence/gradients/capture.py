"""Capture: one forward pass with hooks, then gradients at layer outputs; never a weight gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import ConfigError, NumericalError
from whence.gradients.factors import Factor, Gradients, Lookup, Matrix, Outer
from whence.gradients.layers import Layer

__all__ = ["Tape", "record"]


class _Attach(torch.autograd.Function):
    """Copy a tensor and tie it to ``root``, so that a backward pass to the root visits it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, root: Tensor) -> Tensor:
        """Return a copy; later in-place changes of it leave the layer's output alone."""
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on."""
        return gradients[0], None


class Tape:
    """What one forward pass left behind: every layer's inputs, and hooks on every layer's outputs."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self.layers = layers
        self.root = torch.zeros((), requires_grad=True)
        self.captured: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
        self.deltas: dict[str, list[Tensor | None]] = {layer.name: [] for layer in layers}

    def gradients(self, values: Tensor, seeds: Tensor | None = None, *, keep: bool = False) -> Gradients:
        """Return the gradients of every example, factored.

        Args:
            values: Per-example scalars [B] (their sum is differentiated), or outputs with ``seeds``.
            seeds: Gradient at ``values``, of the same shape.
            keep: Keep the graph for another call.

        Raises:
            NumericalError: A gradient is not finite; the message names the layer.
            ConfigError: The values do not depend on a layer.
        """
        if not values.requires_grad:
            raise ConfigError(
                "the loss must depend on the attributed layers, got values without a gradient. Use the model that the "
                "loss is given and do not detach."
            )
        for name in self.deltas:
            self.deltas[name] = [None] * len(self.captured[name])
        with torch.enable_grad():
            total = values.sum() if seeds is None else (values * seeds).sum()
        torch.autograd.grad(total, self.root, retain_graph=keep, allow_unused=True)
        layers: dict[str, Factor] = {}
        for layer in self.layers:
            calls = zip(self.captured[layer.name], self.deltas[layer.name], strict=True)
            parts = [layer.factor(a, d) for a, d in calls if d is not None]
            if not parts:
                raise ConfigError(
                    f"layer {layer.name!r} must take part in the loss of every batch, but the loss does not depend on "
                    "it. Leave it out with layers=."
                )
            layers[layer.name] = _merge(layer.name, parts, len(values))
        return Gradients(layers)


@contextmanager
def record(model: nn.Module, layers: tuple[Layer, ...]) -> Iterator[Tape]:
    """Record the forward passes of a block on a new `Tape`; all hooks are gone afterwards.

    Parameters need no gradient and get none. The model is in whichever mode the caller put it.
    """
    tape = Tape(layers)
    tape.root = tape.root.to(next(model.parameters()).device)

    def hook_for(layer: Layer) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                raise ConfigError(
                    f"layer {layer.name!r} must be called with one tensor, got {len(args)} arguments. "
                    "Leave it out with layers=."
                )
            calls = tape.deltas[layer.name]
            position = len(calls)
            with torch.no_grad():
                tape.captured[layer.name].append(layer.capture(args[0].detach()))
            calls.append(None)
            attached: Tensor = _Attach.apply(output, tape.root)  # type: ignore[no-untyped-call]

            def keep(gradient: Tensor) -> None:
                tape.deltas[layer.name][position] = gradient.detach()

            attached.register_hook(keep)
            return attached

        return hook

    handles = [layer.module.register_forward_hook(hook_for(layer)) for layer in layers]
    try:
        with torch.enable_grad():
            yield tape
    finally:
        for handle in handles:
            handle.remove()


def _merge(name: str, parts: list[Factor], batch: int) -> Factor:
    """Join the factors of several calls of one module and check them."""
    for part in parts:
        if len(part) != batch:
            raise ConfigError(
                f"layer {name!r} must see one row an example ({batch}), got {len(part)}: the model folds the batch "
                "dimension. Reshape inside the layer instead, or leave it out with layers=."
            )
    first = parts[0]
    merged: Factor = first
    if len(parts) > 1 and isinstance(first, Outer):
        outers = [part for part in parts if isinstance(part, Outer)]
        merged = Outer(torch.cat([p.d for p in outers], 1), torch.cat([p.a for p in outers], 1))
    elif len(parts) > 1 and isinstance(first, Matrix):
        merged = Matrix(torch.stack([part.matrix() for part in parts]).sum(0))
    elif len(parts) > 1 and isinstance(first, Lookup):
        lookups = [part for part in parts if isinstance(part, Lookup)]
        merged = _merge_lookups(lookups)
    checked = merged.m if isinstance(merged, Matrix) else merged.d
    if not (torch.isfinite(checked.sum()) or torch.isfinite(checked).all()):  # a finite sum is a fast witness
        raise NumericalError(
            f"gradients of layer {name!r} must be finite, got NaN or infinity. "
            "Check the inputs for NaN and the loss for overflow."
        )
    return merged


def _merge_lookups(parts: list[Lookup]) -> Lookup:
    """Join several calls of an embedding so that no index stands twice in one example."""
    d = torch.cat([part.d for part in parts], 1)
    index = torch.cat([part.index for part in parts], 1)
    same = index[:, :, None] == index[:, None, :]
    first = ~same.tril(-1).any(2)
    return Lookup((same.to(d.dtype) @ d) * first[:, :, None], index, parts[0].width)
