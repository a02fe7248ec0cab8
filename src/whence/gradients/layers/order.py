"""Modules that are known to be called with [T, B, C] instead of [B, T, C]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from whence.gradients.layers.base import Call, Make, Slot, Source, Tap

__all__ = ["TimeMajor", "time_major_modules"]


@dataclass(frozen=True, eq=False)
class TimeMajor(Source):
    """A source whose module is called with positions first."""

    inner: Source

    def before(self) -> None:
        """Ask the inner source."""
        self.inner.before()

    def call(self, call: Call, tap: Tap) -> Any:
        """Let the inner source see inputs and gradients with the batch first."""

        def tap_transposed(slot: Slot, output: Tensor, make: Make) -> Tensor:
            return tap(slot, output, lambda d: make(d.transpose(0, 1) if d.ndim == 3 else d))

        args = tuple(_batch_first(x) for x in call.args)
        kwargs = {key: _batch_first(x) for key, x in call.kwargs.items()}
        return self.inner.call(replace(call, args=args, kwargs=kwargs), tap_transposed)


def time_major_modules(model: nn.Module) -> set[int]:
    """Return the identities of linear and norm modules inside torch's transformers that have ``batch_first=False``."""
    return {id(module) for module in _time_major(model)}


def _time_major(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            if not module.self_attn.batch_first:
                yield from (part for part in module.children() if not isinstance(part, nn.MultiheadAttention))
        elif isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
            attentions = (part for part in module.modules() if isinstance(part, nn.MultiheadAttention))
            first = next(attentions, None)
            if first is not None and not first.batch_first and isinstance(module.norm, nn.Module):
                yield module.norm


def _batch_first(x: Any) -> Any:
    """Return [T, B, C] as [B, T, C]; anything else as it is."""
    return x.transpose(0, 1) if isinstance(x, Tensor) and x.ndim == 3 else x
