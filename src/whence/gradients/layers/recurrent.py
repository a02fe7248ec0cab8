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
        y, last = self._stack(x, self._initial(x, states), _inside(x, lengths), tap)
        if isinstance(packed, PackedSequence):
            return _packed_like(y, packed), last
        return (y.transpose(0, 1) if self.module.batch_first else y), last

    def _initial(self, x: Tensor, states: Any) -> list[tuple[Tensor, ...]]:
        """Return the first states of every layer and direction; (h,) or (h, c)."""
        m = self.module
        count = m.num_layers * (2 if m.bidirectional else 1)
        if states is None:
            sizes = [m.proj_size or m.hidden_size, m.hidden_size][: 2 if m.mode == "LSTM" else 1]
            return [tuple(x.new_zeros(x.shape[1], size) for size in sizes) for _ in range(count)]
        pair = states if isinstance(states, tuple) else (states,)
        return [tuple(state[i] for state in pair) for i in range(count)]

    def _stack(
        self, x: Tensor, first: list[tuple[Tensor, ...]], inside: Tensor | None, tap: Tap
    ) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
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
        last = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
        return x, last if len(last) > 1 else last[0]

    def _run(
        self, x: Tensor, state: tuple[Tensor, ...], inside: Tensor | None, suffix: str, tap: Tap
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one layer in one direction."""
        m = self.module
        own = {key: _detached(m, f"{key}_{suffix}") for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        assert own["weight_ih"] is not None and own["weight_hh"] is not None
        steps, batch = x.shape[:2]
        gates = F.linear(x, own["weight_ih"], own["bias_ih"])
        gates = self._mark(tap, f"weight_ih_{suffix}", f"bias_ih_{suffix}", gates, lambda: x)
        before: list[Tensor] = []
        inner: list[Tensor] = []
        hidden = x.new_zeros(steps, batch, gates.shape[-1])
        hidden = self._mark(tap, f"weight_hh_{suffix}", f"bias_hh_{suffix}", hidden, lambda: torch.stack(before))
        project = _detached(m, f"weight_hr_{suffix}")
        shift: Tensor | None = None
        if project is not None:
            zero = x.new_zeros(steps, batch, len(project))
            shift = self._mark(tap, f"weight_hr_{suffix}", "", zero, lambda: torch.stack(inner))
        found: dict[int, Tensor] = {}
        order = range(steps - 1, -1, -1) if suffix.endswith("_reverse") else range(steps)
        for t in order:
            before.append(state[0].detach())
            gate = F.linear(state[0], own["weight_hh"], own["bias_hh"]) + hidden[t]
            new = _step(m.mode, gates[t], gate, state)
            if project is not None and shift is not None:
                inner.append(new[0].detach())
                new = (F.linear(new[0], project) + shift[t], new[1])
            if inside is not None:
                new = tuple(torch.where(inside[t], n, old) for n, old in zip(new, state, strict=True))
            state = new
            found[t] = state[0] if inside is None else state[0] * inside[t]
        if suffix.endswith("_reverse"):
            before.reverse()
            inner.reverse()
        return torch.stack([found[t] for t in range(steps)]), state

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
        gates = []
        for side, a in (("ih", x), ("hh", state[0])):
            weight, bias = _detached(m, f"weight_{side}"), _detached(m, f"bias_{side}")
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
            pieces = site.pieces(**{key: "rows", key.replace("weight", "bias", 1): "column"})
            if pieces:
                slots.append(Slot(site.below(key), pieces))
    kind = CellSource if isinstance(module, nn.RNNCellBase) else RecurrentSource
    return kind(site.name, module, tuple(slots))


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


def _detached(module: nn.Module, key: str) -> Tensor | None:
    """Return a parameter without its gradient, or None if the module has none of that name."""
    found = module._parameters.get(key)
    return None if found is None else found.detach()


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
