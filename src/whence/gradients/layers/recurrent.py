r"""Recurrent modules: the hook runs over time again, marking what is added to the gates.

``weight_ih`` and ``weight_hh`` (and a projection ``weight_hr``) of every layer and direction are one layer each, bias
included: their gradients are Σ_t δ_t x_tᵀ and Σ_t δ'_t h_{t−1}ᵀ, with δ = δ' except for the GRU's new gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from whence.errors import ConfigError
from whence.gradients.factors import Outer
from whence.gradients.layers.base import Call, Site, Slot, Source, Tap, affine

__all__ = ["CellSource", "RecurrentSource", "recurrent"]

_INNER = ("weight_hh", "bias_hh", "weight_hr")


@dataclass(frozen=True, eq=False)
class RecurrentSource(Source):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` on tensors or packed sequences."""

    module: nn.RNNBase

    def before(self) -> None:
        """Refuse dropout between layers, which cannot be drawn twice."""
        if self.module.training and self.module.dropout > 0:
            raise ConfigError(
                f"recurrent layer {self.name!r} must be in evaluation mode, got training mode with dropout. "
                "Leave the module in evaluation mode."
            )

    def call(self, call: Call, tap: Tap) -> Any:
        """Return outputs and last states."""
        given = dict(zip(("input", "hx"), call.args, strict=False)) | dict(call.kwargs)
        packed, states = given["input"], given.get("hx")
        x, lengths = packed, None
        if isinstance(packed, PackedSequence):
            x, lengths = pad_packed_sequence(packed)
        elif x.ndim != 3:
            raise ConfigError(
                f"layer {self.name!r} must be called with a batch of sequences, got shape {tuple(x.shape)}. "
                "Keep the batch dimension, or leave the layer out with layers=."
            )
        elif self.module.batch_first:
            x = x.transpose(0, 1)  # [T, B, I]
        with torch.autocast(x.device.type, enabled=False):  # as torch's kernels: half precision at the ends only
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            y, last = self._stack(wide, self._initial(wide, states), _inside(x, lengths), tap)
        like = call.output[1]
        ends = tuple(a.to(b.dtype) for a, b in zip(last, like if isinstance(like, tuple) else (like,), strict=True))
        end = ends if isinstance(like, tuple) else ends[0]
        if isinstance(packed, PackedSequence):
            return _packed_like(y.to(call.output[0].data.dtype), packed), end
        return (y.transpose(0, 1) if self.module.batch_first else y).to(call.output[0].dtype), end

    def _initial(self, x: Tensor, states: Any) -> list[tuple[Tensor, ...]]:
        """Return the first states of every layer and direction; (h,) or (h, c)."""
        m = self.module
        count = m.num_layers * (2 if m.bidirectional else 1)
        if states is None:
            sizes = [m.proj_size or m.hidden_size, m.hidden_size][: 2 if m.mode == "LSTM" else 1]
            return [tuple(x.new_zeros(x.shape[1], size) for size in sizes) for _ in range(count)]
        pair = states if isinstance(states, tuple) else (states,)
        return [tuple(state[i].to(x.dtype) for state in pair) for i in range(count)]

    def _stack(
        self, x: Tensor, first: list[tuple[Tensor, ...]], inside: Tensor | None, tap: Tap
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all layers and directions; return the outputs [T, B, ...] and the last states."""
        directions = 2 if self.module.bidirectional else 1
        ends: list[tuple[Tensor, ...]] = []
        for layer in range(self.module.num_layers):
            outputs = []
            for direction in range(directions):
                suffix = f"l{layer}{'_reverse' if direction else ''}"
                y, end = self._run(x, first[len(ends)], inside, suffix, tap)
                outputs.append(y)
                ends.append(end)
            x = torch.cat(outputs, -1)
        return x, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))

    def _run(
        self, x: Tensor, state: tuple[Tensor, ...], inside: Tensor | None, suffix: str, tap: Tap
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one layer in one direction."""
        mode, steps = self.module.mode, len(x)
        weight, bias, project = (_detached(self.module, f"{key}_{suffix}", x.dtype) for key in _INNER)
        assert weight is not None
        before: list[Tensor] = []
        inner: list[Tensor] = []
        gates, hidden, shift = self._marked(x, suffix, before, inner, tap)
        found: list[Tensor] = []
        backward = suffix.endswith("_reverse")
        for t in range(steps - 1, -1, -1) if backward else range(steps):
            before.append(state[0].detach())
            new = _step(mode, gates[t], F.linear(state[0], weight, bias) + hidden[t], state)
            if project is not None:
                inner.append(new[0].detach())
                new = (F.linear(new[0], project) + shift[t], new[1])
            if inside is not None:
                new = tuple(torch.where(inside[t], n, old) for n, old in zip(new, state, strict=True))
            state = new
            found.append(state[0] if inside is None else state[0] * inside[t])
        if backward:
            for listed in (before, inner, found):
                listed.reverse()
        return torch.stack(found), state

    def _marked(
        self, x: Tensor, suffix: str, before: list[Tensor], inner: list[Tensor], tap: Tap
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input's part of the gates, and marked zeros to add to the state's part and to its projection."""
        m, (steps, batch) = self.module, x.shape[:2]
        weight, bias = (_detached(m, f"{key}_{suffix}", x.dtype) for key in ("weight_ih", "bias_ih"))
        assert weight is not None
        gates = F.linear(x, weight, bias)
        gates = self._mark(tap, f"weight_ih_{suffix}", f"bias_ih_{suffix}", gates, lambda: x)
        zero = x.new_zeros(steps, batch, gates.shape[-1])
        hidden = self._mark(tap, f"weight_hh_{suffix}", f"bias_hh_{suffix}", zero, lambda: torch.stack(before))
        small = x.new_zeros(steps, batch, m.proj_size)
        return gates, hidden, self._mark(tap, f"weight_hr_{suffix}", "", small, lambda: torch.stack(inner))

    def _mark(self, tap: Tap, weight: str, bias: str, y: Tensor, inputs: Callable[[], Tensor]) -> Tensor:
        """Mark what is added to the gates [T, B, G]; ``inputs`` [T, B, I] are known when the gradient is."""
        slot = next((slot for slot in self.slots if set(slot.keys) <= {weight, bias}), None)
        if slot is None:
            return y

        def make(d: Tensor) -> Outer:
            a = inputs().detach().to(slot.dtype).transpose(0, 1)  # [B, T, I]
            return Outer(d.transpose(0, 1), affine(a, slot))

        return tap(slot, y, make)


@dataclass(frozen=True, eq=False)
class CellSource(Source):
    """``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell``."""

    module: nn.RNNCellBase

    def call(self, call: Call, tap: Tap) -> Any:
        """Return the next state."""
        m = self.module
        given = dict(zip(("input", "hx"), call.args, strict=False)) | dict(call.kwargs)
        x, states = given["input"], given.get("hx")
        mode = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}.get(type(m)) or f"RNN_{m.nonlinearity}".upper()
        if states is None:
            states = (x.new_zeros(len(x), m.hidden_size),) * (2 if mode == "LSTM" else 1)
        state = states if isinstance(states, tuple) else (states,)
        if x.ndim != 2:
            raise ConfigError(
                f"layer {self.name!r} must be called with a batch [B, I], got shape {tuple(x.shape)}. "
                "Keep the batch dimension, or leave the layer out with layers=."
            )
        gates = []
        for side, a in (("ih", x), ("hh", state[0])):
            weight, bias = _detached(m, f"weight_{side}", a.dtype), _detached(m, f"bias_{side}", a.dtype)
            assert weight is not None
            y = F.linear(a, weight, bias)
            slot = next((slot for slot in self.slots if set(slot.keys) <= {f"weight_{side}", f"bias_{side}"}), None)
            gates.append(y if slot is None else tap(slot, y, _at_one_position(a.detach(), slot)))
        new = _step(mode, gates[0], gates[1], state)
        return new if mode == "LSTM" else new[0]


def recurrent(site: Site) -> Source | None:
    """Return the source of a recurrent module; every weight matrix is a layer named after it."""
    module = site.module
    if not isinstance(module, (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)):
        return None
    slots = []
    for key in module._parameters:
        if key.startswith("weight"):
            pieces = site.pieces({key: "rows", key.replace("weight", "bias", 1): "column"})
            if pieces:
                slots.append(Slot(site.below(key), pieces))
    if isinstance(module, nn.RNNCellBase):
        return CellSource(site.name, module, tuple(slots))
    return RecurrentSource(site.name, module, tuple(slots))


def _step(mode: str, x: Tensor, h: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the next state from both sides' parts of the gates."""
    if mode == "LSTM":
        i, f, g, o = (x + h).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if mode == "GRU":
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
        update = (xz + hz).sigmoid()
        new = (xn + (xr + hr).sigmoid() * hn).tanh()
        return (new + update * (state[0] - new),)
    return (torch.tanh(x + h) if mode == "RNN_TANH" else torch.relu(x + h),)


def _at_one_position(a: Tensor, slot: Slot) -> Callable[[Tensor], Outer]:
    """Return what makes a factor with one position of gradients [B, G] and inputs [B, I]."""
    return lambda d: Outer(d[:, None], affine(a.to(slot.dtype)[:, None], slot))


def _detached(module: nn.Module, key: str, dtype: torch.dtype) -> Tensor | None:
    """Return a parameter without its gradient, or None if the module has none of that name."""
    found = module._parameters.get(key)
    return None if found is None else found.detach().to(dtype)


def _inside(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Return which positions belong to a sequence [T, B, 1]; None if all do."""
    if lengths is None:
        return None
    return (torch.arange(len(x))[:, None] < lengths).to(x.device)[:, :, None]


def _packed_like(y: Tensor, like: PackedSequence) -> PackedSequence:
    """Return outputs [T, B, H] packed as the input was."""
    ordered = y if like.sorted_indices is None else y.index_select(1, like.sorted_indices)
    data = torch.cat([ordered[t, :count] for t, count in enumerate(like.batch_sizes.tolist())])
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)
