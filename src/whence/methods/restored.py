"""Reading attributions that were saved."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
from whence.methods.saved import CURVATURE, KIND, loss_name, shard_name
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
        RunFormatError: The folder is incomplete or damaged, or belongs to other weights, data or another objective.

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
    stored = _parse(folder)
    task = task.in_dtype(stored.dtype)
    _match("weights", stored.weights, task.weights_fingerprint(), folder)
    for name, expected, found in (
        ("weight_decay", stored.weight_decay, task.weight_decay),
        ("loss", stored.loss, loss_name(task)),
    ):
        if expected != found:
            raise RunFormatError(f"{name} must be that of run {str(folder)!r} ({expected}), got {found}.")
    coverage = find_layers(task.model, [re.escape(name) for name in stored.widths])
    names = [layer.name for layer in coverage.layers]
    if names != list(stored.widths):
        raise RunFormatError(
            f"layers must be those of run {str(folder)!r} ({list(stored.widths)}), got {names}. "
            "Freeze the same parameters as when it was fitted."
        )
    preconditioner = _restore(folder / CURVATURE, stored.preconditioner, task.device)
    if train is None:
        if not stored.shards:
            raise ConfigError(f"run {str(folder)!r} holds no training factors (too large). Pass load(..., train=...).")
        examples = Examples(ids=stored.ids, fetch=_absent)
    else:
        examples = as_examples(train)
        _match("data", stored.data, examples.fingerprint, folder)
    shards = [
        (span, _read_shard(folder / shard_name(number), stored.widths, span.stop - span.start, task.device))
        for number, span in enumerate(stored.shards)
    ]
    return InfluenceAttribution(
        config=Influence(seed=stored.seed, batch_size=stored.chunk, dtype=stored.dtype),
        task=task,
        coverage=coverage,
        preconditioner=preconditioner,
        examples=examples,
        stream=GradientStream(task, coverage.layers, examples, stored.chunk),
        stored=shards or None,
    )


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A manifest whose entries have been checked."""

    dtype: torch.dtype
    weights: str
    data: str
    ids: np.ndarray
    widths: dict[str, int]
    weight_decay: float
    loss: str
    preconditioner: dict[str, Any]
    chunk: int
    seed: int
    shards: list[slice]


def _parse(folder: Path) -> _Stored:
    """Read and check a manifest."""
    manifest = read_manifest(folder, KIND)
    types = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    try:
        ids = ids_from_json(manifest["ids"])
        shards = [slice(int(start), int(stop)) for start, stop in manifest["shards"]]
        if shards and ([0, *(s.stop for s in shards)] != [*(s.start for s in shards), len(ids)]):
            raise ValueError("shards do not cover the examples")
        return _Stored(
            dtype=types[manifest["dtype"]],
            weights=str(manifest["weights"]),
            data=str(manifest["data"]),
            ids=ids,
            widths={str(name): int(manifest["widths"][name]) for name in manifest["layers"]},
            weight_decay=float(manifest["weight_decay"]),
            loss=str(manifest["loss"]),
            preconditioner=dict(manifest["preconditioner"]),
            chunk=int(manifest["config"]["chunk"]),
            seed=int(manifest["config"]["seed"]),
            shards=shards,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFormatError(
            f"manifest of run {str(folder)!r} must be whole, got a wrong entry ({error!r}). Fit and save again."
        ) from error


def _restore(path: Path, settings: dict[str, Any], device: torch.device) -> Preconditioner:
    """Return the preconditioner that was saved."""
    tensors = {name: tensor.to(device) for name, tensor in read_tensors(path).items()}
    try:
        if settings["kind"] == "exact":
            return exact_from_state(settings, tensors)
        return block_from_state(settings, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(path, error) from error


def _read_shard(path: Path, widths: dict[str, int], count: int, device: torch.device) -> Gradients:
    """Return one shard's gradients."""
    tensors = {name: tensor.to(device) for name, tensor in read_tensors(path).items()}
    layers: dict[str, Factor] = {}
    try:
        for name, width in widths.items():
            own = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.rpartition("/")[0] == name}
            if "m" in own:
                layers[name] = Matrix(own["m"])
            elif "index" in own:
                layers[name] = Lookup(own["d"], own["index"], width)
            else:
                layers[name] = Outer(own["d"], own["a"])
            if len(layers[name]) != count:
                raise ValueError(f"{len(layers[name])} examples instead of {count}")
    except (KeyError, ValueError) as error:
        raise _foreign(path, error) from error
    return Gradients(layers)


def _foreign(path: Path, error: Exception) -> RunFormatError:
    """Return the error for a readable file that holds something else."""
    return RunFormatError(f"{path} must hold what its manifest says, got other tensors ({error!r}). Save it again.")


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
