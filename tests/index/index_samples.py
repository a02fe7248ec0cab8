"""Random indices and their products by plain loops in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whence.index import Block, Columns, Dense, Index, IndexWriter, Layout, Part, QueryFeatures, QueryPart, Terms

KINDS = ("flat", "outer", "ragged", "lookup")


def random_block(kind: str, count: int, seed: int, *, out: int = 4, inp: int = 6) -> tuple[Block, Tensor]:
    """Return a block of one layer and its features multiplied out [B, O, I]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layout = Layout(name="layer", kind=kind, out=out, inp=inp)  # type: ignore[arg-type]
    if kind == "flat":
        values = normal(count, out * inp)
        return Block({"layer": Part(layout, {"values": values})}), values.reshape(-1, out, inp)
    if kind == "outer":
        d, a = normal(count, out), normal(count, inp)
        return Block({"layer": Part(layout, {"d": d, "a": a})}), d[:, :, None] * a[:, None, :]
    counts = torch.randint(0, 4, (count,), generator=generator)
    total = int(counts.sum())
    d, dense = normal(total, out), torch.zeros(count, out, inp, dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(count), counts).tolist()
    if kind == "lookup":
        index = torch.randint(0, inp, (total,), generator=generator)
        for position, example in enumerate(owner):
            dense[example, :, index[position]] += d[position]
        return Block({"layer": Part(layout, {"d": d, "index": index, "counts": counts})}), dense
    a = normal(total, inp)
    for position, example in enumerate(owner):
        dense[example] += torch.outer(d[position], a[position])
    return Block({"layer": Part(layout, {"d": d, "a": a, "counts": counts})}), dense


def random_query(form: str, count: int, seed: int, *, out: int = 4, inp: int = 6) -> tuple[QueryPart, Tensor]:
    """Return query features of one layer and the same multiplied out [Q, O, I]."""
    generator = torch.Generator().manual_seed(seed)
    d = torch.randn(count, 2, out, generator=generator, dtype=torch.float64)
    if form == "columns":
        index = torch.randint(0, inp, (count, 2), generator=generator)
        part: QueryPart = Columns(d, index, inp)
        return part, part.dense().m
    a = torch.randn(count, 2, inp, generator=generator, dtype=torch.float64)
    dense = torch.einsum("qro,qri->qoi", d, a)
    if form == "terms":
        return Terms(d, a), dense
    return Dense(dense), dense


def features(part: QueryPart, *, offset: float = 0.0, count: int | None = None) -> QueryFeatures:
    number = len(part)
    return QueryFeatures(
        parts={"layer": part}, ids=np.arange(number), offsets=torch.full((number,), offset), count=count
    )


def write(folder: Path, block: Block, ids: np.ndarray, **settings: object) -> Index:
    """Write a block in one go."""
    writer = IndexWriter(folder=folder, identity={"method": "test"}, **settings)  # type: ignore[arg-type]
    writer.append(block, ids)
    return writer.close()


def flat_index(folder: Path, values: Tensor, **settings: object) -> Index:
    return write(folder, Block.flat(values), np.arange(len(values)), **settings)
