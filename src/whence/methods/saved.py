"""Writing attributions to disk: curvature, training factors and what they belong to."""

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from whence.features import ids_to_json, staged, write_manifest, write_tensors
from whence.tasks import Task

if TYPE_CHECKING:
    from whence.methods.influence import InfluenceAttribution

__all__ = ["CURVATURE", "KIND", "loss_name", "save", "shard_name", "write_attribution"]

KIND = "influence"
CURVATURE = "curvature.safetensors"
LARGEST_FEATURES = 2 * 2**30


def save(attribution: InfluenceAttribution, folder: str | Path) -> None:
    """Write an attribution to a folder.

    The training factors go along while they take at most 2 GiB; beyond that, `load` needs the training
    examples again. Nothing is pickled.

    Args:
        attribution: What to save.
        folder: A new folder, or an earlier run, which is replaced once the new one is complete.

    Raises:
        RunFormatError: The folder holds something else, or cannot be written.
    """
    with staged(folder) as partial:
        write_attribution(attribution, partial)


def write_attribution(attribution: InfluenceAttribution, partial: Path) -> None:
    """Write an attribution into an existing, empty folder."""
    settings, tensors = attribution.preconditioner.state()
    write_tensors(partial / CURVATURE, tensors)
    shards: list[list[int]] = []
    for rows, gradients in attribution.training_gradients():
        itemsize = torch.empty((), dtype=attribution.task.dtype).element_size()
        if gradients.numbers * itemsize * len(attribution.examples) > LARGEST_FEATURES:
            for number in range(len(shards)):
                (partial / shard_name(number)).unlink()
            shards.clear()  # all or none: a part cannot be told from the whole
            break
        named = {
            f"{name}/{key}": tensor
            for name, factor in gradients.layers.items()
            for key, tensor in factor.tensors().items()
        }
        write_tensors(partial / shard_name(len(shards)), named)
        shards.append([rows.start, rows.stop])
    config = attribution.config
    manifest = {
        "kind": KIND,
        "weights": attribution.task.weights_fingerprint(),
        "data": attribution.examples.fingerprint,
        "ids": ids_to_json(attribution.ids),
        "layers": [layer.name for layer in attribution.coverage.layers],
        "widths": {layer.name: layer.shape[1] for layer in attribution.coverage.layers},
        "dtype": str(attribution.task.dtype).removeprefix("torch."),
        "weight_decay": attribution.task.weight_decay,
        "loss": loss_name(attribution.task),
        "preconditioner": settings,
        "config": {"curvature": repr(config.curvature), "seed": config.seed, "chunk": attribution.stream.chunk},
        "shards": shards,
    }
    write_manifest(partial, manifest)


def shard_name(number: int) -> str:
    """Return the file name of a shard of training factors."""
    return f"features-{number:05d}.safetensors"


def loss_name(task: Task) -> str:
    """Return what can be said of a task's loss: its settings, or only its kind for a callable."""
    return repr(task.loss) if is_dataclass(task.loss) else type(task.loss).__name__
