"""Reading attributions that were saved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from whence.curvature import Preconditioner
from whence.data import Examples
from whence.errors import ConfigError, RunFormatError
from whence.features import read_tensors
from whence.gradients import Coverage, Gradients, GradientStream, find_layers
from whence.index import Index, open_index
from whence.methods.configs import curvature_from_json
from whence.methods.influence import Influence, InfluenceAttribution
from whence.methods.packed import unpack
from whence.methods.saved import CURVATURE, METHOD, decay_settings, loss_name, restore
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
    index = open_index(folder)
    stored = _parse(index)
    task = _settled(task, stored, train, folder).in_dtype(stored.dtype)
    _match("weights", stored.weights, task.weights_fingerprint(), folder)
    for name, expected, found in (
        ("weight_decay", stored.weight_decay, task.weight_decay),
        ("loss", stored.loss, loss_name(task)),
        ("decay", stored.decay, decay_settings(task)),
    ):
        if expected != found:
            raise RunFormatError(f"{name} must be that of run {str(folder)!r} ({expected}), got {found}.")
    coverage = _coverage(task, stored.layers, folder)
    with_features = bool(index.manifest.layers)
    if train is None:
        if not with_features:
            raise ConfigError(f"run {str(folder)!r} holds no training factors (too large). Pass load(..., train=...).")
        examples = Examples(ids=index.stored_ids[: stored.count], fetch=_absent)
    else:
        examples = task.examples(train)
        _match("data", stored.data, examples.fingerprint, folder)
    stream = GradientStream(task, coverage.layers, examples, stored.chunk, stored.config.memory_budget)
    preconditioner = _restore(folder / CURVATURE, stored.preconditioner, stream)
    features = StoredGradients(index, stored.count, stored.chunk, task) if with_features else None
    return InfluenceAttribution(
        config=stored.config,
        task=task,
        coverage=coverage,
        preconditioner=preconditioner,
        examples=examples,
        stream=stream,
        stored=features,
        storage_error=index.storage_error if with_features else {},
    )


def _settled(task: Task, stored: _Stored, train: Any, folder: Path) -> Task:
    """Return the task with what follows from the number of training examples, or from the examples."""
    if train is not None:
        return task.settled(task.examples(train))
    if task.estimator is not None:
        raise ConfigError(
            f"run {str(folder)!r} of an estimator needs its training examples. Pass load(..., train=(X, y))."
        )
    return task if task.total_decay is None else replace(task, weight_decay=task.total_decay / stored.count)


def _coverage(task: Task, names: list[str], folder: Path) -> Coverage:
    """Return the layers of a run in the task's model."""
    found: list[str] | str
    try:
        coverage = find_layers(task.model, [re.escape(name) for name in names])
        found = [layer.name for layer in coverage.layers]
    except ConfigError as error:
        found = str(error)
    if found != names:
        raise RunFormatError(
            f"layers must be those of run {str(folder)!r} ({names}), got {found}. "
            "Freeze the same parameters as when it was fitted."
        )
    return coverage


class StoredGradients(Sequence[tuple[slice, Gradients]]):
    """The training gradients of a saved attribution, read chunk by chunk whenever they are asked for.

    Args:
        index: Where they are stored.
        count: Examples of the fit; what was appended to the index later is left out.
        chunk: Examples a chunk.
        task: Says on which device and in which type they are wanted.

    Raises:
        RunFormatError: A shard is missing, damaged or another one.
    """

    def __init__(self, index: Index, count: int, chunk: int, task: Task) -> None:
        self._index, self._task = index, task
        self._spans = [
            (number, slice(row, min(row + chunk, shard.start + shard.count)))
            for number, shard in enumerate(index.shards())
            for row in range(shard.start, shard.start + shard.count, chunk)
            if shard.start < count
        ]

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self._spans)

    @overload
    def __getitem__(self, index: int) -> tuple[slice, Gradients]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[slice, Gradients]]: ...
    def __getitem__(self, index: int | slice) -> tuple[slice, Gradients] | list[tuple[slice, Gradients]]:
        """Return (rows, gradients) of a chunk, or a list of some."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        number, rows = self._spans[index]
        shard = self._index.shard(number)
        block = shard.block.rows(slice(rows.start - shard.start, rows.stop - shard.start))
        return rows, unpack(block, self._task.gradient_dtype, self._task.device)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A manifest whose entries have been checked."""

    dtype: torch.dtype
    weights: str
    data: str
    count: int
    layers: list[str]
    weight_decay: float
    decay: dict[str, Any]
    loss: str
    preconditioner: dict[str, Any]
    chunk: int
    config: Influence


def _parse(index: Index) -> _Stored:
    """Check what a manifest says of an attribution."""
    types = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    identity, extra = index.manifest.identity, index.manifest.extra
    try:
        if identity["method"] != METHOD:
            raise ValueError(f"features of method {identity['method']!r}")
        count, chunk = int(identity["examples"]), int(identity["chunk"])
        if not (0 < count <= index.stored and chunk > 0):
            raise ValueError(f"{count} examples, {index.stored} of them stored, in chunks of {chunk}")
        dtype = types[identity["computed_in"]]
        return _Stored(
            dtype=dtype,
            weights=str(identity["weights"]),
            data=str(identity["data"]),
            count=count,
            layers=[str(name) for name in identity["layers"]],
            weight_decay=float(identity["weight_decay"]),
            decay={name: identity[name] for name in ("total_decay", "decay_factors") if name in identity},
            loss=str(identity["loss"]),
            preconditioner=dict(extra["preconditioner"]),
            chunk=chunk,
            config=_config(extra["config"], seed=int(identity["seed"]), batch_size=chunk, dtype=dtype),
        )
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunFormatError(
            f"manifest of run {str(index.folder)!r} must be whole, got a wrong entry ({error!r}). Fit and save again."
        ) from error


def _config(stored: dict[str, Any], **resolved: Any) -> Influence:
    """Return the config that was fitted, with what the fit made of its open choices."""
    layers = stored["layers"]
    if not (layers is None or isinstance(layers, str)):
        layers = [str(name) for name in layers]
    curvature = curvature_from_json(stored["curvature"])
    return Influence(curvature=curvature, layers=layers, memory_budget=int(stored["memory_budget"]), **resolved)


def _restore(path: Path, settings: dict[str, Any], stream: GradientStream) -> Preconditioner:
    """Return the preconditioner that was saved."""
    tensors = read_tensors(path)
    try:
        return restore(settings, tensors, stream)
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(path, error) from error


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
