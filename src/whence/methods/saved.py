"""Writing attributions to disk: curvature, training features and what they belong to, in one index folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from whence.curvature import Preconditioner, preconditioner_from_state
from whence.data import Examples
from whence.errors import RunFormatError
from whence.features import read_tensors, staged, write_tensors
from whence.gradients import Gradients, GradientStream
from whence.index import Block, Index, IndexWriter, Layout
from whence.methods.configs import curvature_to_json
from whence.methods.packed import pack
from whence.tasks import Loss, Task

if TYPE_CHECKING:
    from whence.methods.influence import InfluenceAttribution

__all__ = [
    "CURVATURE",
    "METHOD",
    "append_rows",
    "decay_settings",
    "feature_bytes",
    "feature_rows",
    "identity_of",
    "loss_name",
    "restore",
    "save",
    "settled",
    "shard_rows_for",
    "write_attribution",
]

METHOD = "influence"
CURVATURE = "curvature.safetensors"
LARGEST_FEATURES = 2 * 2**30
SHARD_BYTES = 64 * 2**20
_PROBES = 4
_SAME = 0.05
Progress = Callable[[int, int], None]


def save(attribution: InfluenceAttribution, folder: str | Path) -> None:
    """Write an attribution to a folder: an index (`whence.open_index` opens it) with the curvature beside it.

    The training features go along while they take at most 2 GiB; beyond that, `load` needs the training
    examples again, or build an index of them (`whence.build_index`). Nothing is pickled.

    Args:
        attribution: What to save.
        folder: A new folder, or an earlier run, which is replaced once the new one is complete.

    Raises:
        RunFormatError: The folder holds something else, or cannot be written.
    """
    with staged(folder) as partial:
        write_attribution(attribution, partial)


def write_attribution(
    attribution: InfluenceAttribution,
    folder: Path,
    *,
    dtype: str | None = None,
    shard_rows: int | None = None,
    self_scores: bool = False,
    whole: bool = False,
    on_progress: Progress | None = None,
) -> Index:
    """Write an attribution into a folder, or go on with one that was interrupted.

    A fit that is repeated on another number of threads differs in its last bits. So what goes on uses the curvature
    that the folder holds; only the first run writes its own.

    Args:
        attribution: What to write.
        folder: An empty folder, or one with the same attribution, finished or not.
        dtype: Storage type of the features; None is the task's own.
        shard_rows: Rows a shard; None makes shards of about 64 MiB.
        self_scores: Store self-scores too.
        whole: Store the features whatever they take; otherwise, beyond 2 GiB, ids alone.
        on_progress: Called with (rows done, rows).
    """
    dtype = str(attribution.task.dtype).removeprefix("torch.") if dtype is None else dtype
    attribution.training_gradients()  # raises if the weights have changed since the fit
    stored = attribution.stored
    probe = pack(stored[0][1] if stored else next(_computed(attribution, attribution.examples, 0)))
    size = feature_bytes(probe, dtype)
    with_features = whole or size * len(attribution.examples) <= LARGEST_FEATURES
    extra = _extra(attribution, with_features)
    writer = IndexWriter(
        folder=folder,
        identity={**identity_of(attribution, attribution.examples), "self_scores": self_scores},
        dtype=dtype,
        shard_rows=shard_rows or shard_rows_for(size if with_features else 64, attribution.stream.chunk),
        extra=extra,
    )
    kept = settled(attribution, folder, writer.described)
    if kept is None:
        write_tensors(folder / CURVATURE, attribution.preconditioner.state()[1])
        writer.describe(extra)  # what the first run said goes with what it wrote
    attribution = kept or attribution
    append_rows(attribution, attribution.examples, writer, probe.layouts if with_features else [], self_scores,
                on_progress)  # fmt: skip
    return writer.close()


def settled(
    attribution: InfluenceAttribution, folder: Path, extra: Mapping[str, Any]
) -> InfluenceAttribution | None:
    """Return the attribution with the curvature that a folder holds; None where it holds none that is whole.

    Raises:
        RunFormatError: That curvature is more than rounding away from the attribution's.
    """
    try:
        tensors = read_tensors(folder / CURVATURE)
    except RunFormatError:
        return None
    stored = _fingerprint(extra["preconditioner"], tensors)
    if stored != extra["fitted"]:
        return None
    if stored == _fingerprint(*attribution.preconditioner.state()):
        return attribution
    kept = replace(attribution, preconditioner=restore(extra["preconditioner"], tensors, attribution.stream))
    probe = next(feature_rows(attribution, attribution.examples, 0))[1].rows(slice(0, _PROBES))
    expected, found = kept.self_scores_of(probe), attribution.self_scores_of(probe)
    if np.linalg.norm(found - expected) > _SAME * np.linalg.norm(expected):
        raise RunFormatError(
            f"curvature must be that of index {str(folder)!r} (self-scores {expected}), got one with {found}. "
            "Use the same loss and software, or another folder."
        )
    return kept


def restore(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], stream: GradientStream) -> Preconditioner:
    """Return a curvature from its state; iterative solvers go over the stream's examples again.

    Raises:
        KeyError, TypeError, ValueError: The state is of something else.
    """
    device = stream.task.device
    return preconditioner_from_state(settings, {name: tensor.to(device) for name, tensor in tensors.items()}, stream)


def _extra(attribution: InfluenceAttribution, with_features: bool) -> dict[str, Any]:
    """Return what goes along in the manifest: the fitted curvature's settings and the config."""
    settings, tensors = attribution.preconditioner.state()
    config = attribution.config
    layers = config.layers if config.layers is None or isinstance(config.layers, str) else list(config.layers)
    return {
        "preconditioner": settings,
        "fitted": _fingerprint(settings, tensors),
        "config": {
            "curvature": curvature_to_json(config.curvature),
            "layers": layers,
            "memory_budget": config.memory_budget,
        },
        "self_unit": _self_unit(attribution),
        "features": with_features,
    }


def append_rows(
    attribution: InfluenceAttribution,
    examples: Examples,
    writer: IndexWriter,
    layouts: list[Layout],
    self_scores: bool,
    on_progress: Progress | None,
) -> None:
    """Append the features of the rows that a writer does not have yet; without layouts only their ids."""
    done, count = writer.start, len(examples)
    if on_progress:
        on_progress(done, count)
    while not layouts and not self_scores and done < count:
        stop = min(done + writer.shard_rows, count)
        writer.append(Block({}), examples.ids[done:stop])
        done = stop
    for rows, gradients in feature_rows(attribution, examples, done) if done < count else ():
        block = pack(gradients, layouts) if layouts else Block({})
        own = attribution.self_scores_of(gradients) if self_scores else None
        writer.append(block, examples.ids[rows], own)
        if on_progress:
            on_progress(rows.stop, count)


def feature_rows(
    attribution: InfluenceAttribution, examples: Examples, start: int
) -> Iterator[tuple[slice, Gradients]]:
    """Yield (rows, gradients) from row ``start`` on; the fit's own examples from memory or disk where they are."""
    at_hand = attribution.stored is not None or attribution.stream.holds_all
    if examples is not attribution.examples or not at_hand:
        row = start
        for gradients in _computed(attribution, examples, start):
            yield slice(row, row + len(gradients)), gradients
            row += len(gradients)
        return
    for rows, gradients in attribution.training_gradients():
        if rows.stop > start:
            skipped = max(0, start - rows.start)
            yield slice(rows.start + skipped, rows.stop), gradients.rows(slice(skipped, None)) if skipped else gradients


def _computed(attribution: InfluenceAttribution, examples: Examples, start: int) -> Iterator[Gradients]:
    """Yield the gradients of the examples from row ``start`` on, in the fit's chunks."""
    stream = attribution.stream
    while start < len(examples):
        rows = np.arange(start, min(start + stream.chunk, len(examples)))
        yield stream.run(examples.batch(rows), rows).training()
        start += len(rows)


def feature_bytes(block: Block, dtype: str) -> int:
    """Return the bytes that one example of a block takes in storage, its norms and scales included."""
    itemsize = torch.empty((), dtype=getattr(torch, dtype)).element_size()
    total = 0
    for part in block.parts.values():
        integers = sum(part.fields[name].numel() for name in ("index", "counts") if name in part.fields)
        columns = (dtype == "float16") + (part.layout.kind in ("flat", "outer"))
        total += (part.numbers - integers) * itemsize + 8 * integers + 4 * columns * len(part)
    return -(-total // max(1, len(block)))


def shard_rows_for(size: int, chunk: int) -> int:
    """Return a number of rows of ``size`` bytes that make a shard of about 64 MiB, whole chunks."""
    return max(1, SHARD_BYTES // max(1, size) // chunk) * chunk


def identity_of(attribution: InfluenceAttribution, examples: Examples) -> dict[str, Any]:
    """Return what features of an attribution belong to."""
    return {
        "method": METHOD,
        "whence": metadata.version("whence"),
        "weights": attribution.task.weights_fingerprint(),
        "data": examples.fingerprint,
        "examples": len(examples),
        "weight_decay": attribution.task.weight_decay,
        **decay_settings(attribution.task),
        "loss": loss_name(attribution.task),
        "layers": [layer.name for layer in attribution.coverage.layers],
        "computed_in": str(attribution.task.dtype).removeprefix("torch."),
        "seed": attribution.config.seed,
        "chunk": attribution.stream.chunk,
        "curvature": repr(attribution.config.curvature),
    }


def decay_settings(task: Task) -> dict[str, Any]:
    """Return what is not usual of a task's weight decay, JSON-able."""
    told: dict[str, Any] = {} if task.total_decay is None else {"total_decay": task.total_decay}
    return {**told, **({"decay_factors": dict(task.decay_factors)} if task.decay_factors else {})}


def loss_name(task: Task) -> str:
    """Return what can be said of a task's loss: its settings, or only its kind for a callable."""
    return repr(task.loss) if is_dataclass(task.loss) else type(task.loss).__name__


def _self_unit(attribution: InfluenceAttribution) -> str | None:
    """Return the unit of self-scores."""
    ranks = attribution.preconditioner.summary().get("curvature") == "identity"
    loss = attribution.task.loss
    return loss.unit if isinstance(loss, Loss) and not ranks else None


def _fingerprint(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 over a preconditioner's state."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
