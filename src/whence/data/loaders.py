"""Examples of data sets that are read row by row, and of the loaders that put their rows together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, default_collate

from whence.data.examples import Examples, as_ids
from whence.data.trees import as_column, leaves, numbers, target_key
from whence.errors import DataError

__all__ = ["from_dataset", "from_loader"]

_READ_TWICE = 8


def from_dataset(data: Any, ids: Any, label: str | None) -> Examples:
    """Make examples of an indexable data set whose rows are tensors, pairs or dicts."""

    def fetch(rows: np.ndarray) -> tuple[Any, Tensor | None]:
        return _split(_collate([data[int(row)] for row in rows]), label)

    return _steady(Examples(ids=as_ids(ids, len(data)), fetch=fetch))


def from_loader(loader: DataLoader[Any], ids: Any, label: str | None) -> Examples:
    """Make examples of a loader's data set, in the data set's order, put together by its ``collate_fn``.

    Raises:
        DataError: The data set has no rows to ask for by number, is itself in batches, or ``collate_fn`` does not
            give tensors with one row an example.
    """
    data, collate = loader.dataset, loader.collate_fn
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise DataError(
            f"a DataLoader must be of a data set with __len__ and __getitem__, got {type(data).__name__}, which can "
            "only be read from its beginning. Read it into tensors, or a list of its rows, first."
        )
    if loader.batch_sampler is None:
        raise DataError("a DataLoader must collate rows, got batch_size=None. Give it single rows and a batch size.")
    drawn = loader.sampler.indices if isinstance(loader.sampler, SubsetRandomSampler) else range(len(data))
    places = np.unique(np.asarray(drawn, dtype=np.int64))

    def fetch(rows: np.ndarray) -> tuple[Any, Tensor | None]:
        return _split(_collated(collate, [data[int(row)] for row in places[rows]]), label)

    if collate is default_collate:
        return from_dataset(data, ids, label).select(places)
    return _steady(Examples(ids=as_ids(ids, len(data))[places], fetch=fetch, collated=True))


def _split(collated: Any, label: str | None) -> tuple[Any, Tensor | None]:
    """Return inputs and targets of rows that were put together."""
    if isinstance(collated, Mapping):
        target = target_key(collated, label)
        named = {key: value for key, value in collated.items() if key != target}
        return named, None if target is None else collated[target]
    if isinstance(collated, (tuple, list)):
        inputs = collated[0] if len(collated) == 2 else tuple(collated[:-1])
        return inputs, collated[-1]
    return collated, None


def _collated(collate: Callable[[list[Any]], Any], rows: list[Any]) -> Any:
    """Return what a user's own function makes of rows, its arrays and lists as tensors.

    Raises:
        DataError: An entry is not numbers, or has not one row an example.
    """
    made = collate(rows)
    if isinstance(made, Mapping):
        found: Any = {str(key): as_column(value, f"entry {str(key)!r} of a batch") for key, value in made.items()}
    elif isinstance(made, (tuple, list)):
        found = tuple(as_column(value, f"entry {place} of a batch") for place, value in enumerate(made))
    else:
        found = as_column(made, "a batch")
    wrong = [tuple(leaf.shape) for leaf in leaves(found) if leaf.ndim == 0 or len(leaf) != len(rows)]
    if wrong:
        raise DataError(
            f"collate_fn must return one row an example ({len(rows)}) in every tensor, got shape {wrong[0]}. "
            "Let the examples be the first dimension, and leave out what is of the whole batch."
        )
    return found


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
    except (RuntimeError, TypeError, KeyError) as error:
        raise DataError(
            f"rows must be numbers of the same shape, got: {error}. Pad or encode them in the data set, or pass a "
            "DataLoader whose collate_fn does."
        ) from error
    named = collated.items() if isinstance(collated, Mapping) else [("", collated)]
    for key, value in named:
        other = [type(leaf).__name__ for leaf in leaves(value) if not isinstance(leaf, Tensor)]
        if other:
            where = f" under {key!r}" if key else ""
            raise DataError(
                f"rows must be numbers of the same shape, got {other[0]}{where}. Encode or remove it in the data set."
            )
    return collated


def _entry(value: Any) -> Any:
    """Return one entry of a row, lists of numbers as a tensor."""
    found = numbers(value)
    return torch.from_numpy(found) if isinstance(found, np.ndarray) and isinstance(value, list) else value


def _steady(examples: Examples) -> Examples:
    """Return the examples.

    Raises:
        DataError: Some of them are not the same when they are read again, so that no score would belong to them.
    """
    some = np.unique(np.linspace(0, len(examples) - 1, _READ_TWICE).astype(np.int64))
    if _digest(examples, some) != _digest(examples, some):
        raise DataError(
            f"rows must be the same each time they are read, got other numbers on the second reading of rows "
            f"{some.tolist()}. Leave random augmentation, cropping and masking out of this data set or collate_fn; "
            "for training again they belong in Recipe(augment=...)."
        )
    return examples


def _digest(examples: Examples, rows: np.ndarray) -> str:
    """Return a fingerprint of some rows, read anew."""
    batch = examples.batch(rows)
    digest = hashlib.sha256()
    for tensor in [*leaves(batch.inputs), *([] if batch.targets is None else [batch.targets])]:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
