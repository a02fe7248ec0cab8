"""Inputs of a model as trees: a tensor, a tuple of them, or a dict of them; and which name is the target's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import DataError

__all__ = ["as_column", "as_tensor", "leaves", "map_tree", "numbers", "target_key"]

_TARGET_KEYS = ("labels", "label", "target", "targets", "y")


def map_tree(function: Callable[[Any], Tensor], tree: Any) -> Any:
    """Apply ``function`` to every leaf of a tuple, list or dict of tensors."""
    if isinstance(tree, Mapping):
        return {key: map_tree(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(map_tree(function, value) for value in tree)
    return function(tree)


def leaves(tree: Any) -> list[Tensor]:
    """Return the tensors of a tuple, list or dict in order."""
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, (tuple, list)):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]


def numbers(value: Any) -> Any:
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


def as_tensor(values: Any) -> Tensor:
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


def as_column(values: Any, name: str) -> Any:
    """Return one named entry as a tensor, or a dict of tensors.

    Raises:
        DataError: It holds no numbers.
    """
    if isinstance(values, Mapping):
        return {str(key): as_column(value, f"{name}, {str(key)!r},") for key, value in values.items()}
    found = numbers(values)
    array = isinstance(found, np.ndarray)
    if not (isinstance(found, Tensor) or (array and found.dtype.kind in "biuf")):
        what = f"an array of {found.dtype}" if array else type(found).__name__
        remedy = "Pass one split" if hasattr(found, "column_names") else "Encode it, or leave it out"
        raise DataError(f"{name} must be a tensor or an array of numbers, got {what}. {remedy}.")
    return as_tensor(found)


def target_key(names: Collection[Any], label: str | None) -> str | None:
    """Return which of the names is the target: as said, else the first usual one.

    Raises:
        DataError: There is no such name.
    """
    if label is not None and label not in names:
        raise DataError(f"label must be one of the columns {list(names)}, got {label!r}.")
    return label if label is not None else next((key for key in _TARGET_KEYS if key in names), None)
