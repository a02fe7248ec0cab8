"""Shards: safetensors files with features, ids and self-scores, checked by what they say of themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import RunFormatError
from whence.features import ids_from_tensors, ids_to_tensors, read_metadata, read_tensors, write_tensors
from whence.index.block import Block, Layout, Part

__all__ = ["Shard", "read_shard", "shard_path", "verify_shard", "write_shard"]

_SELF = "self_scores"


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """One shard, memory-mapped.

    Args:
        start: Row of its first example in the index.
        count: Its examples.
        block: Their features.
        tensors: All its tensors by stored name.
    """

    start: int
    count: int
    block: Block
    tensors: Mapping[str, Tensor]

    def ids(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the ids of all examples, or of those at positions ``rows`` of the shard."""
        return ids_from_tensors(self.tensors, rows)

    @property
    def self_scores(self) -> np.ndarray | None:
        """Self-scores of the examples, or None."""
        values: np.ndarray | None = self.tensors[_SELF].numpy() if _SELF in self.tensors else None
        return values


def shard_path(folder: Path, number: int) -> Path:
    """Return a shard's path; names are numbers, never read from a file."""
    return folder / f"features-{number:05d}.safetensors"


def write_shard(
    path: Path, stored: Block, ids: np.ndarray, self_scores: np.ndarray | None, about: dict[str, Any]
) -> dict[str, Any]:
    """Write a shard in one step; return what it says of itself.

    Args:
        path: Where.
        stored: Features as `encode` returns them; an index without features has no layers.
        ids: Their ids [B].
        self_scores: Their self-scores [B], or None.
        about: ``start``, ``key`` (what the shard belongs to), ``layers`` and the ``error`` of storage.
    """
    tensors = dict(ids_to_tensors(ids))
    if self_scores is not None:
        tensors[_SELF] = torch.from_numpy(np.ascontiguousarray(self_scores, dtype=np.float64))
    for number, part in enumerate(stored.parts.values()):
        named = {**part.fields, "scale": part.scale, "norm": part.norm}
        tensors.update({f"{number:04d}/{key}": tensor for key, tensor in named.items() if tensor is not None})
    metadata = {
        **about,
        "rows": len(ids),
        "sha256": _digest(tensors),
    }
    write_tensors(path, tensors, metadata)
    return metadata


def read_shard(path: Path, layouts: list[Layout], expected: Mapping[str, Any]) -> Shard:
    """Map a shard and check that it is the one that is expected.

    Raises:
        RunFormatError: It is missing or damaged, or is another one.
    """
    metadata = read_metadata(path)
    different = [name for name, value in expected.items() if metadata.get(name) != value]
    if different:
        raise _foreign(path, f"another {different[0]}")
    tensors = read_tensors(path)
    try:
        count = int(metadata["rows"])
        parts = {one.name: _part(tensors, number, one, count) for number, one in enumerate(layouts)}
        holders = [key for key in ("ids", "id_ends", _SELF) if key in tensors]
        if not holders or any(tensors[key].shape != (count,) for key in holders):
            raise ValueError("ids or self-scores of another length")
        return Shard(start=int(metadata["start"]), count=count, block=Block(parts), tensors=tensors)
    except (KeyError, ValueError, TypeError) as error:
        raise _foreign(path, repr(error)) from error


def verify_shard(path: Path) -> dict[str, Any]:
    """Return what a shard says of itself, after comparing its content with its own SHA-256.

    Raises:
        RunFormatError: It is missing, or a byte of it changed.
    """
    metadata = read_metadata(path)
    found = _digest(read_tensors(path))
    if metadata.get("sha256") != found:
        raise RunFormatError(
            f"{path} must have SHA-256 {str(metadata.get('sha256'))[:12]}, got {found[:12]}. "
            "It is damaged: delete the file and build the index again."
        )
    return metadata


def _part(tensors: Mapping[str, Tensor], number: int, layout: Layout, count: int) -> Part:
    """Return one layer's features, their shapes checked."""
    own = {key.partition("/")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{number:04d}/")}
    fields = {name: own[name] for name in layout.shapes}
    positions = int(fields["counts"].sum()) if "counts" in fields else count
    for name, tail in layout.shapes.items():
        lead = count if name == "counts" else positions
        if tuple(fields[name].shape) != (lead, *tail):
            raise ValueError(f"{layout.name}: {name} has shape {tuple(fields[name].shape)}")
    if "counts" in fields and (len(fields["counts"]) != count or bool((fields["counts"] < 0).any())):
        raise ValueError(f"{layout.name}: wrong counts")
    if "index" in fields and len(fields["index"]) and not 0 <= int(fields["index"].min()) <= int(
        fields["index"].max()
    ) < layout.inp:
        raise ValueError(f"{layout.name}: index out of range")
    for name in ("scale", "norm"):
        if name in own and own[name].shape != (count,):
            raise ValueError(f"{layout.name}: {name} has shape {tuple(own[name].shape)}")
    if layout.kind in ("flat", "outer") and "norm" not in own:
        raise ValueError(f"{layout.name}: no norms")
    return Part(layout, fields, own.get("scale"), own.get("norm"))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 over named tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _foreign(path: Path, what: str) -> RunFormatError:
    """Return the error for a readable file that holds something else."""
    return RunFormatError(f"{path} must hold what its manifest says, got {what}. Build or save it again.")
