"""Examples with ids, as a task consumes them: batches of tensors in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whence.data.trees import leaves, map_tree
from whence.errors import ConfigError, DataError

__all__ = ["Batch", "Examples", "as_ids", "id_keys", "mix", "uniform"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Some examples as tensors, with their ids.

    Args:
        inputs: What the model is called with: a tensor [B, ...], a tuple of them (``model(*inputs)``) or a
            dict (``model(**inputs)``).
        targets: Labels or regression targets [B, ...], or None.
        ids: The examples' ids [B].
        keys: One 64-bit key an example [B] (uint64), from which counter-based random numbers are drawn.
    """

    inputs: Any
    targets: Tensor | None
    ids: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        """Return the number of examples B."""
        return len(self.ids)

    @property
    def numbers(self) -> int:
        """How many numbers the inputs hold."""
        return sum(leaf.numel() for leaf in leaves(self.inputs))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The inputs' shapes without B: a ``collate_fn`` may pad batches to different lengths."""
        return tuple(tuple(leaf.shape[1:]) for leaf in leaves(self.inputs))

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Batch:
        """Return the batch on ``device``, its floating-point tensors in ``dtype``."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        targets = None if self.targets is None else move(self.targets)
        return Batch(inputs=map_tree(move, self.inputs), targets=targets, ids=self.ids, keys=self.keys)

    def row(self, position: int) -> Batch:
        """Return the batch that holds only the example at ``position``."""
        return self.part(slice(position, position + 1))

    def part(self, at: slice) -> Batch:
        """Return the batch of some consecutive examples."""
        targets = None if self.targets is None else self.targets[at]
        inputs = map_tree(lambda tensor: tensor[at], self.inputs)
        return Batch(inputs=inputs, targets=targets, ids=self.ids[at], keys=self.keys[at])

    def repeated(self, count: int) -> Batch:
        """Return the only example of this batch ``count`` times; its tensors share memory."""

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.expand(count, *tensor.shape[1:])

        targets = None if self.targets is None else repeat(self.targets)
        inputs, keys = map_tree(repeat, self.inputs), np.repeat(self.keys, count)
        return Batch(inputs=inputs, targets=targets, ids=np.repeat(self.ids, count), keys=keys)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Rows with unique ids that can be fetched as batches in any order.

    Args:
        ids: Unique ids [N], integers or strings.
        fetch: Row positions [B] -> (inputs, targets). Deterministic.
        prepared: Whether an estimator's own steps made the inputs of raw rows; see `Task.examples`.
        collated: Whether a user's own function puts batches together; it may pad each to a length of its own.

    Build one with `as_examples`.
    """

    ids: np.ndarray
    fetch: Callable[[np.ndarray], tuple[Any, Tensor | None]] = field(repr=False)
    prepared: bool = field(default=False, repr=False)
    collated: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.ids) == 0:
            raise DataError("examples must have at least one row, got 0. Pass a data set that is not empty.")
        if len(self.positions) != len(self.ids):
            seen, counts = np.unique(self.ids, return_counts=True)
            raise DataError(
                f"ids must be unique, got {seen.tolist()[counts.argmax()]!r} {counts.max()} times. "
                "Choose another id column or let row numbers be the ids."
            )

    def __len__(self) -> int:
        """Return the number of examples N."""
        return len(self.ids)

    @cached_property
    def positions(self) -> dict[Any, int]:
        """Map from id to row position."""
        return {id_: row for row, id_ in enumerate(self.ids.tolist())}

    @cached_property
    def keys(self) -> np.ndarray:
        """One 64-bit key an example [N], a function of its id alone."""
        return id_keys(self.ids)

    @cached_property
    def targets(self) -> Tensor | None:
        """All targets [N, ...], or None where the examples have none; padded to different lengths they raise."""
        first = self.batch(np.arange(1)).targets
        if first is None:
            return None
        found = [batch.targets for batch in self.batches(4096) if batch.targets is not None]
        if len({targets.shape[1:] for targets in found}) > 1:
            raise DataError(
                f"targets must have one shape in all batches to be held together, got {tuple(found[0].shape[1:])} and "
                "others. Pad all of them to one length."
            )
        return torch.cat(found)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, inputs and targets in row order. Cost: one pass over the data."""
        digest = hashlib.sha256(repr(self.ids.tolist()).encode())
        for batch in self.batches(4096):
            for tensor in [*leaves(batch.inputs), *([] if batch.targets is None else [batch.targets])]:
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the examples at row positions ``rows`` [B] as one batch."""
        inputs, targets = self.fetch(rows)
        return Batch(inputs=inputs, targets=targets, ids=self.ids[rows], keys=self.keys[rows])

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all examples in row order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))

    def rows_of(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Return the row positions of ``ids``.

        Raises:
            DataError: An id is not among the examples.
        """
        wanted = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        missing = [id_ for id_ in wanted if id_ not in self.positions]
        if missing:
            raise DataError(
                f"id must be one of the {len(self)} examples, got {missing[0]!r}. "
                f"Ids look like {self.ids.tolist()[0]!r}."
            )
        return np.array([self.positions[id_] for id_ in wanted], dtype=np.int64)

    def select(self, rows: np.ndarray) -> Examples:
        """Return the examples at row positions ``rows``, keeping their ids."""
        return replace(self, ids=self.ids[rows], fetch=lambda inner: self.fetch(rows[inner]))

    def with_targets(self, targets: Tensor) -> Examples:
        """Return the same examples with other targets [N, ...]."""
        if len(targets) != len(self):
            raise ConfigError(f"labels must have one entry a row ({len(self)}), got {len(targets)}.")

        def fetch(rows: np.ndarray) -> tuple[Any, Tensor]:
            return self.fetch(rows)[0], targets[torch.from_numpy(rows)]

        return replace(self, fetch=fetch)


def as_ids(ids: Any, count: int) -> np.ndarray:
    """Return ids [count] as an array of integers or strings; the row numbers where there are none."""
    if ids is None:
        return np.arange(count)
    array = ids.numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.shape != (count,):
        found = len(array) if array.ndim == 1 else f"shape {array.shape}"
        raise DataError(f"ids must have one entry a row ({count}), got {found}.")
    if pd.isna(array).any():
        raise DataError("ids must not be missing. Fill them or let row numbers be the ids.")
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(str)


def id_keys(ids: np.ndarray) -> np.ndarray:
    """Return a 64-bit key for every id: equal ids have equal keys on every machine."""
    if np.issubdtype(ids.dtype, np.integer):
        return ids.astype(np.int64).view(np.uint64)
    digests = (hashlib.blake2b(str(id_).encode(), digest_size=8).digest() for id_ in ids.tolist())
    return np.frombuffer(b"".join(digests), dtype="<u8").copy()


def uniform(keys: np.ndarray, seed: int, stream: int = 0) -> np.ndarray:
    """Return one uniform number in [0, 1) a key, a function of (key, seed, stream) alone.

    Counter-based (SplitMix64), so neither batch size nor order can change a draw.
    """
    with np.errstate(over="ignore"):
        mixed = keys + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed % 2**32 + 1)
        for step in (stream + 1, 1):
            mixed = mix(mixed + np.uint64(0xD1B54A32D192ED03) * np.uint64(step))
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def mix(values: np.ndarray) -> np.ndarray:
    """Return 64-bit integers scrambled one to one (SplitMix64's last step): different values stay different."""
    with np.errstate(over="ignore"):
        mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
