"""Embeddings and bags of them: a linear map of one-hot vectors; the table is taken as [E, V]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whence.gradients.factors import Lookup, lookup
from whence.gradients.layers.base import Call, Site, Source, Tap

__all__ = ["BagSource", "EmbeddingSource", "embedding"]


@dataclass(frozen=True, eq=False)
class EmbeddingSource(Source):
    """``nn.Embedding``; the padding index has no gradient."""

    module: nn.Embedding

    def call(self, call: Call, tap: Tap) -> Any:
        """Mark the output."""
        index = call.tensor()
        return tap(self.slot, call.output, lambda d: self._factor(d, index))

    def _factor(self, delta: Tensor, index: Tensor) -> Lookup:
        index = index.reshape(len(index), -1).long()
        d = delta.reshape(*index.shape, -1)
        if self.module.padding_idx is not None:
            d = d * (index != self.module.padding_idx)[:, :, None]
        return lookup(d, index, self.module.num_embeddings)


@dataclass(frozen=True, eq=False)
class BagSource(Source):
    """``nn.EmbeddingBag``: sum, weighted sum, mean or largest value of the vectors of every bag."""

    module: nn.EmbeddingBag

    def call(self, call: Call, tap: Tap) -> Any:
        """Mark the output."""
        named = dict(zip(("input", "offsets", "per_sample_weights"), call.args, strict=False)) | dict(call.kwargs)
        with torch.no_grad():
            index, weights = self._bags(named["input"], named.get("offsets"), named.get("per_sample_weights"))
        return tap(self.slot, call.output, lambda d: self._factor(d, index, weights))

    def _bags(self, given: Tensor, offsets: Tensor | None, scales: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the indices [B, T] of every bag and what each one counts in a sum [B, T]."""
        given = given.detach().long()
        scales = torch.ones_like(given) if scales is None else scales.detach()
        scales = scales.to(self.slot.dtype)
        if offsets is not None:
            if not self.module.include_last_offset:
                offsets = torch.cat([offsets, offsets.new_tensor([len(given)])])
            starts, lengths = offsets[:-1], offsets.diff()
            place = torch.arange(int(lengths.max()), device=given.device)  # [T]
            inside = place < lengths[:, None]  # [B, T]
            at = (starts[:, None] + place).clamp(max=max(0, len(given) - 1))
            given, scales = given[at], scales[at] * inside
        if self.module.padding_idx is not None:
            scales = scales * (given != self.module.padding_idx)
        return given, scales

    def _factor(self, delta: Tensor, index: Tensor, weights: Tensor) -> Lookup:
        d = delta[:, None, :]  # [B, 1, E]
        if self.module.mode == "max":
            vectors = self.module.weight.detach()[index].masked_fill((weights == 0)[:, :, None], float("-inf"))
            largest = torch.zeros_like(vectors).scatter_(1, vectors.argmax(1, keepdim=True), 1.0)  # [B, T, E]
            d = d * largest * (weights != 0)[:, :, None]
        else:
            if self.module.mode == "mean":
                weights = weights / weights.sum(1, keepdim=True).clamp(min=1.0)
            d = d * weights[:, :, None]
        return lookup(d, index, self.module.num_embeddings)


def embedding(site: Site) -> Source | None:
    """Return the source of an embedding."""
    module = site.module
    if isinstance(module, nn.Embedding):
        return EmbeddingSource(site.name, module, site.slots({"weight": "swapped"}))
    if isinstance(module, nn.EmbeddingBag):
        return BagSource(site.name, module, site.slots({"weight": "swapped"}))
    return None
