"""Capture: one forward pass with hooks, then gradients at layer outputs; never a weight gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import ConfigError, NumericalError
from whence.gradients.factors import Factor, Gradients, Matrix
from whence.gradients.layers.base import Call, Make, Slot, Source
from whence.gradients.layers.shared import Layer

__all__ = ["Tape", "plainly", "record"]


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


@dataclass(eq=False)
class _Mark:
    """One place where a slot's gradient is read."""

    slot: Slot
    make: Make
    delta: Tensor | None = None

    def keep(self, gradient: Tensor) -> None:
        """Keep the gradient of a backward pass."""
        self.delta = gradient.detach()


class Tape:
    """What one forward pass left behind: every layer's inputs, and hooks on every layer's outputs."""

    def __init__(self, layers: tuple[Layer, ...], rows: int) -> None:
        self.layers = layers
        self.rows = rows
        self.root = torch.zeros((), requires_grad=True)
        self.marks: dict[int, list[_Mark]] = {id(slot): [] for layer in layers for _, slot in layer.uses}
        self.coarsest = torch.float64

    def tap(self, slot: Slot, output: Tensor, make: Make) -> Tensor:
        """Return an output tied to this tape, if the slot is attributed and gradients are taken at all."""
        marks = self.marks.get(id(slot))
        if marks is None or not torch.is_grad_enabled():
            return output
        mark = _Mark(slot, make)
        marks.append(mark)
        if output.dtype.itemsize < self.coarsest.itemsize:
            self.coarsest = output.dtype
        attached: Tensor = _Attach.apply(output, self.root)  # type: ignore[no-untyped-call]
        attached.register_hook(mark.keep)
        return attached

    def gradients(self, values: Tensor, seeds: Tensor | None = None, *, keep: bool = False) -> Gradients:
        """Return the gradients of every example, factored, in the layers that are hooked.

        Args:
            values: Per-example scalars [B] (their sum is differentiated), or outputs with ``seeds``.
            seeds: Gradient at ``values``, of the same shape.
            keep: Keep the graph for another call.

        Raises:
            NumericalError: A gradient is not finite; the message names the layer.
            ConfigError: The values do not depend on a layer.
        """
        hooked = [layer for layer in self.layers if layer.uses]
        if not hooked:
            return Gradients({})
        if not values.requires_grad:
            raise ConfigError(
                "a loss or measurement must depend on the attributed layers and be differentiable in them, got values "
                "without a gradient. Use the model that it is given; do not detach, count or take an argmax."
            )
        for marks in self.marks.values():
            for mark in marks:
                mark.delta = None
        with torch.enable_grad():
            total = values.sum() if seeds is None else (values * seeds).sum()
        torch.autograd.grad(total, self.root, retain_graph=keep, allow_unused=True)
        with torch.no_grad():
            return Gradients({layer.name: self._factor(layer, len(values)) for layer in hooked})

    def _factor(self, layer: Layer, batch: int) -> Factor:
        """Return the checked factor of one layer."""
        parts = []
        for _, slot in layer.uses:
            for mark in self.marks[id(slot)]:
                if mark.delta is not None:
                    parts.append((slot, mark.make(mark.delta.to(slot.dtype))))
                    mark.delta = None
        if not parts:
            raise ConfigError(
                f"layer {layer.name!r} must take part in the loss of every batch, but the loss does not depend on "
                "it. Leave it out with layers=."
            )
        for _, part in parts:
            if len(part) < batch or len(part) % batch:
                raise ConfigError(
                    f"layer {layer.name!r} must see the same number of rows for every one of {batch} examples, got "
                    f"{len(part)} rows. Let the batch be the first dimension, or leave the layer out with layers=."
                )
        factor = layer.combine(parts, batch)
        checked = factor.m if isinstance(factor, Matrix) else factor.d
        if not (torch.isfinite(checked.sum()) or torch.isfinite(checked).all()):  # a finite sum is a fast witness
            raise NumericalError(
                f"gradients of layer {layer.name!r} must be finite, got NaN or infinity. "
                "Check the inputs for NaN and the loss for overflow."
            )
        return factor


@contextmanager
def record(model: nn.Module, layers: tuple[Layer, ...], rows: int) -> Iterator[Tape]:
    """Record the forward passes of ``rows`` examples in a block on a new `Tape`; all hooks are gone afterwards.

    Parameters need no gradient and get none. The model is in whichever mode the caller put it.
    """
    tape = Tape(layers, rows)
    tape.root = torch.zeros((), device=next(model.parameters()).device, requires_grad=True)
    sources = {id(source): source for layer in layers for source, _ in layer.uses}
    with ExitStack() as stack:
        stack.enter_context(plainly(model))
        for source in sources.values():
            before, after = _hooks(source, tape)
            stack.callback(source.module.register_forward_pre_hook(before).remove)
            # before the user's own hooks, which may change the output
            stack.callback(source.module.register_forward_hook(after, prepend=True, with_kwargs=True).remove)
        stack.enter_context(torch.enable_grad())
        yield tape


@contextmanager
def plainly(model: nn.Module) -> Iterator[None]:
    """Run every module's own Python forward in a block: no compiled graphs, no fused transformer layers."""
    compiled = any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if compiled:
            if not hasattr(torch.compiler, "set_stance"):
                raise ConfigError(
                    f"a compiled model must be used with torch 2.6 or later, got {torch.__version__}. "
                    "Pass the model that was compiled, model._orig_mod."
                )
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def _hooks(source: Source, tape: Tape) -> tuple[Any, Any]:
    """Return a module's hooks, before and after its forward."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        source.before()

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return source.call(Call(source.name, args, kwargs, output, tape.rows), tape.tap)

    return before, after
