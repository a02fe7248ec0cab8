"""Between gradients and an index: factors as they are stored, and preconditioned queries as they are multiplied."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.errors import ConfigError
from whence.gradients import Factor, Gradients, Lookup, Matrix, Outer
from whence.index import Block, Columns, Dense, Layout, Part, QueryPart, Terms

__all__ = ["pack", "query_parts", "unpack"]


def pack(gradients: Gradients, layouts: Sequence[Layout] | None = None) -> Block:
    """Return gradients as an index stores them: factored, or multiplied out where that takes fewer numbers.

    Positions whose output gradient is zero (padding) are left out.

    Args:
        gradients: Of B examples.
        layouts: The forms of blocks before, which the later ones keep.

    Raises:
        ConfigError: The gradients do not have those forms.
    """
    known = {layout.name: layout for layout in layouts or ()}
    parts = {name: _pack(name, factor, known.get(name)) for name, factor in gradients.layers.items()}
    return Block(parts)


def unpack(block: Block, dtype: torch.dtype, device: torch.device) -> Gradients:
    """Return what `pack` took, in a floating-point type."""
    return Gradients({name: _unpack(part, dtype, device) for name, part in block.parts.items()})


def query_parts(gradients: Gradients) -> dict[str, QueryPart]:
    """Return preconditioned gradients of queries as an index multiplies them."""
    return {name: _query_part(factor) for name, factor in gradients.layers.items()}


def _query_part(factor: Factor) -> QueryPart:
    if isinstance(factor, Outer):
        return Terms(factor.d.cpu(), factor.a.cpu())
    if isinstance(factor, Lookup):
        return Columns(factor.d.cpu(), factor.index.cpu(), factor.width)
    return Dense(factor.matrix().cpu())


def _pack(name: str, factor: Factor, known: Layout | None) -> Part:
    """Return one layer's features."""
    if isinstance(factor, Lookup):
        layout = Layout(name=name, kind="lookup", out=factor.d.shape[2], inp=factor.width)
        kept = factor.d.abs().amax(2) > 0  # [B, T]
        fields = {"d": factor.d[kept], "index": factor.index[kept], "counts": kept.sum(1)}
        return Part(layout, _on_cpu(fields))
    flat = known.kind == "flat" if known is not None else False
    small = factor.compact() if isinstance(factor, Outer) and known is None else factor
    if flat or not isinstance(small, Outer):
        if known is not None and not flat:
            raise ConfigError(f"gradients of layer {name!r} must keep their form ({known.kind}), got matrices.")
        m = small.matrix()
        layout = Layout(name=name, kind="flat", out=m.shape[1], inp=m.shape[2])
        return Part(layout, _on_cpu({"values": m.flatten(1)}))
    d, a = small.d, small.a
    if d.shape[1] == 1 and (known is None or known.kind == "outer"):
        layout = Layout(name=name, kind="outer", out=d.shape[2], inp=a.shape[2])
        return Part(layout, _on_cpu({"d": d[:, 0], "a": a[:, 0]}))
    if known is not None and known.kind == "outer":
        raise ConfigError(
            f"inputs of layer {name!r} must have one position in every batch or several in the first, got "
            f"{d.shape[1]} after 1. Put a longer example first, or pad."
        )
    layout = Layout(name=name, kind="ragged", out=d.shape[2], inp=a.shape[2])
    kept = d.abs().amax(2) > 0  # [B, T]
    return Part(layout, _on_cpu({"d": d[kept], "a": a[kept], "counts": kept.sum(1)}))


def _on_cpu(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in fields.items()}


def _unpack(part: Part, dtype: torch.dtype, device: torch.device) -> Factor:
    """Return one layer's factor."""
    layout, fields, counts = part.layout, dict(part.fields), part.fields.get("counts")
    main = "values" if layout.kind == "flat" else "d"
    fields[main] = fields[main].to(dtype)
    if part.scale is not None:
        scale = part.scale if counts is None else torch.repeat_interleave(part.scale, counts)
        fields[main] = fields[main] * scale.to(dtype)[:, None]
    if counts is not None:
        fields = {name: _padded(tensor, counts) for name, tensor in fields.items() if name != "counts"}
    elif layout.kind == "outer":
        fields = {name: tensor[:, None] for name, tensor in fields.items()}
    fields = {name: tensor.to(device) for name, tensor in fields.items()}
    if layout.kind == "flat":
        return Matrix(fields["values"].reshape(-1, layout.out, layout.inp))
    if layout.kind == "lookup":
        return Lookup(fields["d"], fields["index"], layout.inp)
    return Outer(fields["d"], fields["a"].to(dtype))


def _padded(values: Tensor, counts: Tensor) -> Tensor:
    """Return values of positions [P, ...] as [B, T, ...], padded with zeros."""
    longest = max(1, int(counts.max())) if len(counts) else 1
    kept = torch.arange(longest)[None] < counts[:, None]  # [B, T]
    full = values.new_zeros(len(counts), longest, *values.shape[1:])
    full[kept] = values
    return full
