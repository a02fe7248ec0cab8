r"""``nn.MultiheadAttention``: its projections are used as functions, so the hook evaluates it again, marking them.

The packed input projection is one layer [3E, E + 1] named after the module, its gradient Σ_t (δ_q, δ_k, δ_v) aᵀ;
where query, key and value differ every one of them has its own positions. Separate projections are one layer each.
The output projection is the layer of its submodule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.errors import ConfigError
from whence.gradients.factors import Matrix, Outer
from whence.gradients.layers.base import Call, Piece, Site, Slot, Source, Tap, affine

__all__ = ["AttentionSource", "attention"]

_ARGUMENTS = (
    "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class AttentionSource(Source):
    """``nn.MultiheadAttention`` in every configuration."""

    module: nn.MultiheadAttention

    def before(self) -> None:
        """Refuse dropout of attention weights, which cannot be drawn twice."""
        if self.module.training and self.module.dropout > 0:
            raise ConfigError(
                f"attention {self.name!r} must be in evaluation mode, got training mode with dropout. "
                "Leave the module in evaluation mode."
            )

    def call(self, call: Call, tap: Tap) -> Any:
        """Return attention's output, and its weights where they were asked for."""
        given = dict(zip(_ARGUMENTS, call.args, strict=False)) | dict(call.kwargs)
        query, key, value = given["query"], given["key"], given["value"]
        if query.ndim != 3:
            raise ConfigError(
                f"layer {self.name!r} must be called with a batch [B, T, E], got shape {tuple(query.shape)}. "
                "Keep the batch dimension, or leave the layer out with layers=."
            )
        same = query is key and key is value, key is value
        if not self.module.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value, same, tap)
        k, v, extra = self._extended(k, v, tap)
        mixed, weights = self._attend(q, k, v, self._mask(given, q, k, extra), given.get("need_weights", True))
        output = self._out(mixed, tap)
        output = output if self.module.batch_first else output.transpose(0, 1)
        if weights is not None and given.get("average_attn_weights", True):
            weights = weights.mean(1)
        return output, weights

    def _projected(
        self, query: Tensor, key: Tensor, value: Tensor, same: tuple[bool, bool], tap: Tap
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the projected query, key and value, marked."""
        m = self.module
        bias = m.in_proj_bias
        if m._parameters["in_proj_weight"] is None:
            weights = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
            biases = (None,) * 3 if bias is None else bias.chunk(3)
            found = []
            for i, (x, w, b) in enumerate(zip((query, key, value), weights, biases, strict=True)):
                found.append(self._separate(_linear(x, w, b), x, ("q", "k", "v")[i], i, tap))
            return found[0], found[1], found[2]
        width = m.embed_dim
        spans = [(0, 3)] if same[0] else [(0, 1), (1, 3)] if same[1] else [(0, 1), (1, 2), (2, 3)]
        inputs = {0: query, 1: key, 2: value}
        parts: list[Tensor] = []
        for first, last in spans:
            rows = slice(first * width, last * width)
            y = _linear(inputs[first], m.in_proj_weight[rows], None if bias is None else bias[rows])
            slot = self._slot("in_proj_weight", "in_proj_bias")
            if slot is not None:
                y = tap(slot, y, self._packed(slot, inputs[first], rows))
            parts.extend(y.chunk(last - first, -1))
        return parts[0], parts[1], parts[2]

    def _packed(self, slot: Slot, inputs: Tensor, rows: slice) -> Callable[[Tensor], Outer]:
        """Return what puts a gradient of some of the three projections among all of them."""
        full = 3 * self.module.embed_dim
        with torch.no_grad():
            a = affine(inputs.detach().to(slot.dtype), slot)
        if rows == slice(0, full):
            return lambda d: Outer(d, a)
        return lambda d: Outer(F.pad(d, (rows.start, full - rows.stop)), a)

    def _separate(self, y: Tensor, x: Tensor, letter: str, number: int, tap: Tap) -> Tensor:
        """Mark one of the separate projections: for its weight, and for its third of the shared bias."""
        weight, bias = self._slot(f"{letter}_proj_weight"), self._slot("in_proj_bias")
        a, width = x.detach(), self.module.embed_dim
        if weight is not None:
            a = a.to(weight.dtype)
            y = tap(weight, y, lambda d: Outer(d, a))
        if bias is not None:
            y = tap(bias, y, lambda d: Matrix(F.pad(d.sum(1), (number * width, (2 - number) * width))[:, None]))
        return y

    def _extended(self, k: Tensor, v: Tensor, tap: Tap) -> tuple[Tensor, Tensor, int]:
        """Append the learned key and value, then zeros, where the module has them; return how many positions."""
        m, slot = self.module, self._slot("bias_k", "bias_v")
        before = k.shape[1]
        if m.bias_k is not None and m.bias_v is not None:
            both = torch.cat([m.bias_k.detach(), m.bias_v.detach()], -1).to(k.dtype).expand(len(k), 1, -1)
            if slot is not None:
                keys = slot.keys
                width = m.embed_dim
                chosen = slice(0 if "bias_k" in keys else width, 2 * width if "bias_v" in keys else width)
                both = tap(slot, both, lambda d: Matrix(d[..., chosen]))
            k, v = torch.cat([k, both[..., : m.embed_dim]], 1), torch.cat([v, both[..., m.embed_dim :]], 1)
        if m.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return k, v, k.shape[1] - before

    def _mask(self, given: dict[str, Any], q: Tensor, k: Tensor, extra: int) -> Tensor | None:
        """Return both masks as one to be added to the logits, broadcast over [B, H, Tq, Tk]."""
        total: Tensor | None = None
        for name in ("attn_mask", "key_padding_mask"):
            mask = given.get(name)
            if mask is None:
                continue
            if not mask.is_floating_point():
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))
            mask = F.pad(mask.to(q.dtype), (0, extra))
            if name == "key_padding_mask":
                mask = mask[:, None, None, :]
            elif mask.ndim == 3:
                mask = mask.reshape(len(q), -1, *mask.shape[1:])
            total = mask if total is None else total + mask
        return total

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, weighted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return attention over heads [B, Tq, E] and, where they are asked for, its weights [B, H, Tq, Tk]."""
        q, k, v = (x.unflatten(-1, (self.module.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if not weighted:
            return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2), None
        logits = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        weights = (logits if mask is None else logits + mask).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights

    def _out(self, mixed: Tensor, tap: Tap) -> Tensor:
        """Return the output projection, marked."""
        m = self.module.out_proj
        y, slot = _linear(mixed, m.weight, m.bias), self._slot("weight", "bias")
        if slot is None:
            return y
        with torch.no_grad():
            a = affine(mixed.detach().to(slot.dtype), slot)
        return tap(slot, y, lambda d: Outer(d, a))

    def _slot(self, *keys: str) -> Slot | None:
        """Return the slot of some parameters, or None if they are frozen."""
        return next((slot for slot in self.slots if set(slot.keys) <= set(keys)), None)


def attention(site: Site, inner: Site) -> AttentionSource | None:
    """Return the source of an attention module; ``inner`` is its output projection."""
    module = site.module
    if not isinstance(module, nn.MultiheadAttention):
        return None
    groups: list[tuple[str, tuple[Piece, ...]]] = []
    if module._parameters["in_proj_weight"] is not None:
        groups.append((site.name, site.pieces({"in_proj_weight": "rows", "in_proj_bias": "column"})))
    else:
        for key in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            groups.append((site.below(key), site.pieces({key: "rows"})))
        groups.append((site.below("in_proj_bias"), site.pieces({"in_proj_bias": "row"})))
    groups.append((site.below("bias_kv"), site.pieces({"bias_k": "row", "bias_v": "row"})))
    groups.append((inner.name, inner.pieces({"weight": "rows", "bias": "column"})))
    slots = tuple(Slot(name, pieces) for name, pieces in groups if pieces)
    return AttentionSource(site.name, module, slots)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x Wᵀ + b for weights that need no gradient."""
    return F.linear(x, weight.detach(), None if bias is None else bias.detach())
