"""Features of training examples as an index holds them: one part a layer, in one of four forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from whence.errors import ConfigError, NumericalError

__all__ = ["FLAT", "Block", "Layout", "Part", "concatenate", "encode", "stored_error"]

FLAT = "flat"
Kind = Literal["flat", "outer", "ragged", "lookup"]
_FIELDS: dict[str, tuple[str, ...]] = {
    "flat": ("values",),
    "outer": ("d", "a"),
    "ragged": ("d", "a", "counts"),
    "lookup": ("d", "index", "counts"),
}
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Form of one layer's features.

    Args:
        name: The layer's name.
        kind: "flat" (values [B, O·I]), "outer" (d [B, O], a [B, I]: the gradient d aᵀ), "ragged" (d [P, O],
            a [P, I] with ``counts`` [B] positions an example: Σ d aᵀ), "lookup" (d [P, O], index [P]).
        out: O.
        inp: I.
    """

    name: str
    kind: Kind
    out: int
    inp: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every field without its first dimension."""
        full: dict[str, tuple[int, ...]] = {
            "values": (self.out * self.inp,), "d": (self.out,), "a": (self.inp,), "index": (), "counts": (),
        }  # fmt: skip
        return {field: full[field] for field in _FIELDS[self.kind]}

    def as_json(self) -> dict[str, Any]:
        """Return the layout as JSON."""
        return {"name": self.name, "kind": self.kind, "out": self.out, "inp": self.inp}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Layout:
        """Restore what `as_json` returned.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        if stored["kind"] not in _FIELDS:
            raise ValueError(f"unknown kind {stored['kind']!r}")
        out, inp = int(stored["out"]), int(stored["inp"])
        if out < 1 or inp < 1:
            raise ValueError(f"widths {out}, {inp}")
        return Layout(name=str(stored["name"]), kind=stored["kind"], out=out, inp=inp)


@dataclass(frozen=True, eq=False)
class Part:
    """One layer's features of B examples.

    Args:
        layout: Their form.
        fields: The tensors of that form.
        scale: What products are multiplied by [B], or None for 1 (see `encode`).
        norm: Norm of ``values`` or ``a`` of every example [B], or None; it bounds products in a search.
    """

    layout: Layout
    fields: Mapping[str, Tensor]
    scale: Tensor | None = None
    norm: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of examples B."""
        key = "counts" if "counts" in self.fields else "values" if "values" in self.fields else "d"
        return len(self.fields[key])

    def rows(self, index: slice | Tensor) -> Part:
        """Return the features of some examples; positions only for slices with ends."""
        scale = None if self.scale is None else self.scale[index]
        norm = None if self.norm is None else self.norm[index]
        if "counts" not in self.fields:
            return Part(self.layout, {name: tensor[index] for name, tensor in self.fields.items()}, scale, norm)
        counts = self.fields["counts"]
        ends = counts.cumsum(0)
        if isinstance(index, slice):
            first = int(ends[index.start - 1]) if index.start else 0
            last = int(ends[index.stop - 1]) if index.stop else 0
            at: slice | Tensor = slice(first, last)
        else:
            spans = [torch.arange(int(ends[i] - counts[i]), int(ends[i])) for i in index.tolist()]
            at = torch.cat(spans) if spans else counts[:0]
        picked = {name: tensor[at] for name, tensor in self.fields.items() if name != "counts"}
        return Part(self.layout, {**picked, "counts": counts[index]}, scale, norm)

    @property
    def numbers(self) -> int:
        """How many numbers the B examples take."""
        return sum(tensor.numel() for tensor in self.fields.values())


@dataclass(frozen=True, eq=False)
class Block:
    """Features of B consecutive examples, one part a layer."""

    parts: Mapping[str, Part]

    def __len__(self) -> int:
        """Return the number of examples B."""
        return len(next(iter(self.parts.values())))

    @staticmethod
    def flat(values: Tensor) -> Block:
        """Return a block of flat features [B, D]."""
        if values.ndim != 2 or not values.is_floating_point():
            raise ConfigError(f"flat features must be numbers [B, D], got {tuple(values.shape)} of {values.dtype}.")
        layout = Layout(name=FLAT, kind="flat", out=1, inp=values.shape[1])
        return Block({FLAT: Part(layout, {"values": values})})

    @property
    def layouts(self) -> list[Layout]:
        """The form of every layer, in order."""
        return [part.layout for part in self.parts.values()]

    @property
    def numbers(self) -> int:
        """How many numbers the B examples take."""
        return sum(part.numbers for part in self.parts.values())

    @property
    def has_norms(self) -> bool:
        """Whether every layer's norms are known, as they are in a stored block."""
        return all(part.norm is not None for part in self.parts.values())

    def rows(self, index: slice | Tensor) -> Block:
        """Return the features of some examples."""
        return Block({name: part.rows(index) for name, part in self.parts.items()})

    def pieces(self, size: int) -> Iterator[tuple[int, Block]]:
        """Yield (first row, block) of at most ``size`` rows."""
        for start in range(0, len(self), size):
            yield start, self.rows(slice(start, min(start + size, len(self))))


def concatenate(blocks: list[Block]) -> Block:
    """Return all rows of blocks of one layout, in order."""
    if len(blocks) == 1:
        return blocks[0]
    parts = {}
    for name, first in blocks[0].parts.items():
        own = [block.parts[name] for block in blocks]
        fields = {key: torch.cat([part.fields[key] for part in own]) for key in first.fields}
        scale = None if first.scale is None else torch.cat([part.scale for part in own if part.scale is not None])
        norm = None if first.norm is None else torch.cat([part.norm for part in own if part.norm is not None])
        parts[name] = Part(first.layout, fields, scale, norm)
    return Block(parts)


def encode(block: Block, dtype: torch.dtype) -> Block:
    """Return a block as it is stored: in ``dtype``, with norms.

    Float16 holds 6e-8 … 65504 only, and gradients of well-fitted examples are smaller; so each row (and each
    position) is first divided by a power of two near its largest number, which `Part.scale` gives back.

    Raises:
        NumericalError: A feature is not finite; the message names the layer.
    """
    return Block({name: _encode_part(part, dtype) for name, part in block.parts.items()})


def _encode_part(part: Part, dtype: torch.dtype) -> Part:
    """Encode one layer."""
    fields = dict(part.fields)
    scale: Tensor | None = None
    for name, tensor in part.fields.items():
        if name not in ("values", "d", "a"):
            continue
        if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"features of layer {part.layout.name!r} must be finite, got NaN or infinity.")
        if dtype == torch.float16:
            exponent = _exponents(tensor, part.fields.get("counts"))  # [B]
            scale = exponent if scale is None else scale + exponent
            tensor = torch.ldexp(tensor, -_spread(exponent, part.fields.get("counts"))[:, None])
        fields[name] = tensor.to(dtype)
    factor = None if scale is None else torch.ldexp(torch.ones(len(scale), dtype=torch.float64), scale).float()
    main = fields.get("values", fields.get("a"))
    norm = None
    if part.layout.kind in ("flat", "outer") and main is not None:
        norm = torch.linalg.vector_norm(main if main.dtype.itemsize > 2 else main.float(), dim=1)
        norm = norm.float()
    return Part(part.layout, fields, factor, norm)


def _exponents(tensor: Tensor, counts: Tensor | None) -> Tensor:
    """Return the power of two of every example's largest number [B]; products of two stay in float32's range."""
    largest = tensor.abs().amax(1).double() if tensor.shape[1] else tensor.new_zeros(len(tensor)).double()
    if counts is not None:
        owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
        largest = torch.zeros(len(counts), dtype=torch.float64).scatter_reduce_(0, owner, largest, "amax")
    return torch.log2(largest.clamp(min=_TINY)).ceil().int().clamp(-60, 60)


def _spread(per_example: Tensor, counts: Tensor | None) -> Tensor:
    """Return values of examples at their positions."""
    return per_example if counts is None else torch.repeat_interleave(per_example, counts)


def stored_error(block: Block, stored: Block) -> dict[str, list[float]]:
    """Return, for every layer, the summed squared error of what is stored and the summed squared norm of the block.

    Positions are counted one by one: Σ ‖d̂âᵀ − daᵀ‖² and Σ ‖daᵀ‖².
    """
    return {name: _part_error(part, stored.parts[name]) for name, part in block.parts.items()}


def _part_error(part: Part, stored: Part) -> list[float]:
    """Return squared error and squared norm of one layer."""
    name = "values" if "values" in part.fields else "d"
    if part.fields[name].dtype == stored.fields[name].dtype:
        squares = part.fields[name].square().sum(1)
        if "a" in part.fields:
            squares = squares * part.fields["a"].square().sum(1)
        return [0.0, float(squares.double().sum())]
    counts = part.fields.get("counts")
    scale = None if stored.scale is None else _spread(stored.scale.double(), counts)[:, None]
    if "values" in part.fields:
        values = part.fields["values"].double()
        back = stored.fields["values"].double() * (1 if scale is None else scale)
        return [float((back - values).square().sum()), float(values.square().sum())]
    d, d_back = part.fields["d"].double(), stored.fields["d"].double() * (1 if scale is None else scale)
    if "a" not in part.fields:
        return [float((d_back - d).square().sum()), float(d.square().sum())]
    if scale is not None:  # the scale belongs to the product; which factor it is given to does not matter
        exponent = _spread(_exponents(part.fields["a"], counts), counts)[:, None]
        a_back = torch.ldexp(stored.fields["a"].double(), exponent)
        d_back = torch.ldexp(d_back, -exponent)
    else:
        a_back = stored.fields["a"].double()
    a = part.fields["a"].double()
    moved_d, moved_a = d_back - d, a_back - a
    error = (
        moved_d.square().sum(1) * a_back.square().sum(1)
        + 2 * (moved_d * d).sum(1) * (a_back * moved_a).sum(1)
        + d.square().sum(1) * moved_a.square().sum(1)
    )
    return [float(error.sum().clamp(min=0)), float((d.square().sum(1) * a.square().sum(1)).sum())]
