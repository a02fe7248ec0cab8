"""Reading attributions that were saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.curvature import Preconditioner, block_from_state, exact_from_state
from whence.data import Examples, as_examples
from whence.errors import ConfigError, RunFormatError
from whence.features import ids_from_json, read_manifest, read_tensors
from whence.gradients import Factor, Gradients, GradientStream, Lookup, Matrix, Outer, find_layers
from whence.methods.influence import Influence, InfluenceAttribution
from whence.methods.saved import KIND
from whence.tasks import Task

__all__ = ["load"]


def load(folder: str | Path, task: Task, train: Any = None) -> InfluenceAttribution:
    """Read an attribution that was saved.

    Args:
        folder: Where it was saved.
        task: The task it was fitted to: the same weights, checked by fingerprint.
        train: The training examples (checked by fingerprint). Without them everything works that needs only
            their stored factors; leave-one-out outputs and the leverage correction need them.

    Raises:
        RunFormatError: The folder is incomplete or damaged, or belongs to other weights or data.

    Example:
        >>> import tempfile, whence as wh
        >>> task = wh.Task(torch.nn.Linear(3, 2))
        >>> train = (torch.randn(20, 3), torch.randint(0, 2, (20,)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     wh.Influence().fit(task, train).save(folder + "/run")
        ...     restored = wh.load(folder + "/run", task)
        >>> restored.scores(train).values.shape
        torch.Size([20, 20])
    """
    folder = Path(folder)
    manifest = read_manifest(folder, KIND)
    dtype: torch.dtype = getattr(torch, manifest["dtype"])
    task = task.in_dtype(dtype)
    _match("weights", manifest["weights"], task.weights_fingerprint(), folder)
    if task.weight_decay != manifest["weight_decay"]:
        raise RunFormatError(
            f"weight_decay must be that of run {str(folder)!r} ({manifest['weight_decay']}), got {task.weight_decay}."
        )
    coverage = find_layers(task.model, [_escaped(name) for name in manifest["layers"]])
    tensors = read_tensors(folder / "curvature.safetensors")
    preconditioner = _restore(manifest["preconditioner"], tensors, task.device)
    chunk = int(manifest["config"]["chunk"])
    if train is None:
        if not manifest["shards"]:
            raise ConfigError(f"run {str(folder)!r} holds no training factors (too large). Pass load(..., train=...).")
        examples = Examples(ids=ids_from_json(manifest["ids"]), fetch=_absent)
    else:
        examples = as_examples(train)
        _match("data", manifest["data"], examples.fingerprint, folder)
    stream = GradientStream(task, coverage.layers, examples, chunk)
    stored = [
        (slice(start, stop), _read_shard(folder / f"features-{number:05d}.safetensors", manifest["widths"]))
        for number, (start, stop) in enumerate(manifest["shards"])
    ]
    return InfluenceAttribution(
        config=Influence(seed=manifest["config"]["seed"], batch_size=chunk, dtype=dtype),
        task=task,
        coverage=coverage,
        preconditioner=preconditioner,
        examples=examples,
        stream=stream,
        stored=stored or None,
    )


def _restore(settings: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> Preconditioner:
    """Return the preconditioner that was saved."""
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    return exact_from_state(settings, moved) if settings["kind"] == "exact" else block_from_state(settings, moved)


def _read_shard(path: Path, widths: dict[str, int]) -> Gradients:
    """Return one shard's gradients."""
    tensors = read_tensors(path)
    layers: dict[str, Factor] = {}
    for name in dict.fromkeys(key.rpartition("/")[0] for key in tensors):
        own = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.rpartition("/")[0] == name}
        if "m" in own:
            layers[name] = Matrix(own["m"])
        elif "index" in own:
            layers[name] = Lookup(own["d"], own["index"], widths[name])
        else:
            layers[name] = Outer(own["d"], own["a"])
    return Gradients({name: layers[name] for name in widths})


def _absent(rows: np.ndarray) -> tuple[Any, Tensor | None]:
    """Stand in for training examples that were not passed to `load`."""
    raise ConfigError("this needs the training examples. Pass load(..., train=...).")


def _match(what: str, expected: str, found: str, folder: Path) -> None:
    """Raise if fingerprints differ, naming both."""
    if expected != found:
        raise RunFormatError(
            f"{what} must be those of run {str(folder)!r} (fingerprint {expected[:12]}), got {found[:12]}. "
            "Use the same weights and data, or fit again."
        )


def _escaped(name: str) -> str:
    """Return a regular expression that matches only ``name``."""
    return "".join(f"\\{c}" if not c.isalnum() and c != "_" else c for c in name)
