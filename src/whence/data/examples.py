"""Examples with ids, as a task consumes them: anything with rows becomes batches of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import default_collate

from whence.errors import ConfigError, DataError

__all__ = ["Batch", "Examples", "as_examples", "id_keys", "mix", "uniform"]

_TARGET_KEYS = ("labels", "label", "target", "targets", "y")


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
        return sum(leaf.numel() for leaf in _leaves(self.inputs))

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Batch:
        """Return the batch on ``device``, its floating-point tensors in ``dtype``."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        targets = None if self.targets is None else move(self.targets)
        return Batch(inputs=_map(move, self.inputs), targets=targets, ids=self.ids, keys=self.keys)

    def row(self, position: int) -> Batch:
        """Return the batch that holds only the example at ``position``."""
        return self.part(slice(position, position + 1))

    def part(self, at: slice) -> Batch:
        """Return the batch of some consecutive examples."""
        targets = None if self.targets is None else self.targets[at]
        inputs = _map(lambda tensor: tensor[at], self.inputs)
        return Batch(inputs=inputs, targets=targets, ids=self.ids[at], keys=self.keys[at])

    def repeated(self, count: int) -> Batch:
        """Return the only example of this batch ``count`` times; its tensors share memory."""

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.expand(count, *tensor.shape[1:])

        targets = None if self.targets is None else repeat(self.targets)
        inputs, keys = _map(repeat, self.inputs), np.repeat(self.keys, count)
        return Batch(inputs=inputs, targets=targets, ids=np.repeat(self.ids, count), keys=keys)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Rows with unique ids that can be fetched as batches in any order.

    Args:
        ids: Unique ids [N], integers or strings.
        fetch: Row positions [B] -> (inputs, targets). Deterministic.
        prepared: Whether an estimator's own steps made the inputs of raw rows; see `Task.examples`.

    Build one with `as_examples`.
    """

    ids: np.ndarray
    fetch: Callable[[np.ndarray], tuple[Any, Tensor | None]] = field(repr=False)
    prepared: bool = field(default=False, repr=False)

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
        """All targets [N, ...], or None where the examples have none."""
        first = self.batch(np.arange(1)).targets
        if first is None:
            return None
        return torch.cat([batch.targets for batch in self.batches(4096) if batch.targets is not None])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, inputs and targets in row order. Cost: one pass over the data."""
        digest = hashlib.sha256(repr(self.ids.tolist()).encode())
        for batch in self.batches(4096):
            for tensor in [*_leaves(batch.inputs), *([] if batch.targets is None else [batch.targets])]:
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
        return Examples(ids=self.ids[rows], fetch=lambda inner: self.fetch(rows[inner]), prepared=self.prepared)

    def with_targets(self, targets: Tensor) -> Examples:
        """Return the same examples with other targets [N, ...]."""
        if len(targets) != len(self):
            raise ConfigError(f"labels must have one entry a row ({len(self)}), got {len(targets)}.")

        def fetch(rows: np.ndarray) -> tuple[Any, Tensor]:
            return self.fetch(rows)[0], targets[torch.from_numpy(rows)]

        return Examples(ids=self.ids, fetch=fetch, prepared=self.prepared)


def as_examples(data: Any, *, ids: Any = None, label: str | None = None) -> Examples:
    """Make `Examples` of anything that has rows.

    Args:
        data: `Examples`; a tensor or array of inputs; a pair (inputs, targets) of tensors or arrays, where
            inputs may itself be a tuple or dict of them; a pandas DataFrame of numbers; a torch or
            Hugging Face ``Dataset`` whose rows are tensors, pairs or dicts.
        ids: Unique ids [N]; the row numbers by default.
        label: The target's column or key, where rows have names. By default the first of
            ``labels, label, target, targets, y`` that is there.

    Returns:
        The examples; tensors are shared, not copied.

    Raises:
        DataError: Lengths differ, ids repeat, or the data has no rows.

    Example:
        >>> examples = as_examples((torch.zeros(3, 2), torch.tensor([0, 1, 0])), ids=["a", "b", "c"])
        >>> examples.batch(examples.rows_of(["c"])).targets
        tensor([0])
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, pd.DataFrame):
        inputs, targets = _from_frame(data, label)
        ids = data.index.to_numpy() if ids is None and data.index.is_unique else ids
        return _in_memory(inputs, targets, ids)
    if isinstance(data, (Tensor, np.ndarray)):
        return _in_memory(_tensor(data), None, ids)
    if _is_pair(data):
        inputs, targets = data
        return _in_memory(_map(_tensor, _numbers(inputs)), None if targets is None else _tensor(targets), ids)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _from_dataset(data, ids, label)
    raise DataError(
        f"data must have rows (tensors, arrays, a DataFrame or a Dataset), got {type(data).__name__}. "
        "Pass a pair (inputs, targets) or an object with __len__ and __getitem__."
    )


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


def _map(function: Callable[[Any], Tensor], tree: Any) -> Any:
    """Apply ``function`` to every leaf of a tuple, list or dict of tensors."""
    if isinstance(tree, Mapping):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(_map(function, value) for value in tree)
    return function(tree)


def _leaves(tree: Any) -> list[Tensor]:
    """Return the tensors of a tuple, list or dict in order."""
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    if isinstance(tree, (tuple, list)):
        return [leaf for value in tree for leaf in _leaves(value)]
    return [tree]


def _is_pair(data: Any) -> bool:
    """Whether this is (inputs, targets) and not, say, a list of two rows that are themselves pairs."""
    if not isinstance(data, (tuple, list)) or len(data) != 2 or isinstance(data[0], (str, int, float)):
        return False
    return isinstance(data, tuple) or not isinstance(data[1], (tuple, Mapping))


def _numbers(value: Any) -> Any:
    """Return a list of (lists of) numbers as an array, anything else as it is."""
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    if not isinstance(value, list) or not isinstance(first, (bool, int, float)):
        return value
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError("rows must have equally many numbers, got lists of different lengths. Pad them.") from error


def _tensor(values: Any) -> Tensor:
    """Return ``values`` as a tensor; float64 arrays keep their precision."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    if array.dtype == object or array.dtype.kind in "US":
        raise DataError(
            f"inputs and targets must be numbers, got an array of {array.dtype}. "
            "Encode text and categories first, or audit the file with `whence audit`."
        )
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _in_memory(inputs: Any, targets: Tensor | None, ids: Any) -> Examples:
    """Make examples of tensors that are already in memory."""
    leaves = [*_leaves(inputs), *([] if targets is None else [targets])]
    if any(leaf.ndim == 0 for leaf in leaves):
        raise DataError("inputs and targets must have one row an example, got a single number.")
    lengths = {len(leaf) for leaf in leaves}
    if len(lengths) != 1:
        raise DataError(f"inputs and targets must have as many rows as each other, got {sorted(lengths)}.")
    count = lengths.pop()

    def fetch(rows: np.ndarray) -> tuple[Any, Tensor | None]:
        contiguous = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        index = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else torch.from_numpy(rows)
        picked = _map(lambda leaf: leaf[index], inputs)
        return picked, None if targets is None else targets[index]

    return Examples(ids=_ids(ids, count), fetch=fetch)


def _ids(ids: Any, count: int) -> np.ndarray:
    """Return ids [count] as an array of integers or strings."""
    if ids is None:
        return np.arange(count)
    array = ids.numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.shape != (count,):
        found = len(array) if array.ndim == 1 else f"shape {array.shape}"
        raise DataError(f"ids must have one entry a row ({count}), got {found}.")
    if pd.isna(array).any():
        raise DataError("ids must not be missing. Fill them or let row numbers be the ids.")
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(str)


def _from_frame(frame: pd.DataFrame, label: str | None) -> tuple[Tensor, Tensor | None]:
    """Split a DataFrame of numbers into inputs [N, F] and targets [N]."""
    names = [str(name) for name in frame.columns]
    target = label if label is not None else next((key for key in _TARGET_KEYS if key in names), None)
    if target is not None and target not in names:
        raise DataError(f"label must be one of the columns {names}, got {target!r}.")
    label_column = None if target is None else frame.iloc[:, names.index(target)]
    inputs = frame if target is None else frame.iloc[:, [i for i, name in enumerate(names) if name != target]]
    other = [str(name) for name in inputs.columns if not pd.api.types.is_numeric_dtype(inputs[name])]
    if other:
        raise DataError(
            f"columns must be numbers to be fed to a model, got {other[:5]}. "
            "Encode or drop them, or audit the file with `whence audit`."
        )
    values = _tensor(inputs.to_numpy(dtype=np.float32, na_value=np.nan))
    return values, None if label_column is None else _tensor(label_column.to_numpy())


def _from_dataset(data: Any, ids: Any, label: str | None) -> Examples:
    """Make examples of an indexable data set whose rows are tensors, pairs or dicts."""

    def fetch(rows: np.ndarray) -> tuple[Any, Tensor | None]:
        collated = _collate([data[int(row)] for row in rows])
        if isinstance(collated, Mapping):
            target = label if label is not None else next((key for key in _TARGET_KEYS if key in collated), None)
            named = {key: value for key, value in collated.items() if key != target}
            return named, None if target is None else collated[target]
        if isinstance(collated, (tuple, list)):
            inputs = collated[0] if len(collated) == 2 else tuple(collated[:-1])
            return inputs, collated[-1]
        return collated, None

    return Examples(ids=_ids(ids, len(data)), fetch=fetch)


def _collate(rows: list[Any]) -> Any:
    """Stack rows; their entries may be lists of numbers.

    Raises:
        DataError: Rows have different shapes, or entries that are not numbers.
    """
    if isinstance(rows[0], Mapping):
        rows = [{key: _entry(value) for key, value in row.items()} for row in rows]
    elif isinstance(rows[0], (tuple, list)):
        rows = [tuple(_entry(value) for value in row) for row in rows]
    try:
        collated = default_collate(rows)
        other = [type(leaf).__name__ for leaf in _leaves(collated) if not isinstance(leaf, Tensor)]
    except (RuntimeError, TypeError, KeyError) as error:
        raise DataError(
            f"rows must be numbers of the same shape, got: {error}. Pad or encode them in the data set."
        ) from error
    if other:
        raise DataError(f"rows must be numbers of the same shape, got {other[0]}. Encode them in the data set.")
    return collated


def _entry(value: Any) -> Any:
    """Return one entry of a row, lists of numbers as a tensor."""
    found = _numbers(value)
    return torch.from_numpy(found) if isinstance(found, np.ndarray) and isinstance(value, list) else value
