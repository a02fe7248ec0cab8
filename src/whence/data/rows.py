"""Anything with rows becomes `Examples`: tensors, arrays, mappings of columns, DataFrames, data sets, loaders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from whence.data.examples import Examples, as_ids
from whence.data.loaders import from_dataset, from_loader
from whence.data.trees import as_column, as_tensor, leaves, map_tree, numbers, target_key
from whence.errors import DataError

__all__ = ["as_examples"]


def as_examples(data: Any, *, ids: Any = None, label: str | None = None) -> Examples:
    """Make `Examples` of anything that has rows.

    Args:
        data: `Examples`; a tensor or array of inputs; a pair (inputs, targets) of tensors or arrays, where
            inputs may itself be a tuple or dict of them; a dict of equally long tensors or arrays, the targets among
            them under a key of ``label`` (``{"input_ids": ..., "attention_mask": ..., "labels": ...}``); a pandas
            DataFrame of numbers; a torch or Hugging Face ``Dataset`` whose rows are tensors, pairs or dicts; or a
            torch ``DataLoader``: its data set in the data set's order, put together by its ``collate_fn``. Its batch
            size, ``drop_last``, order and workers play no part: every row is read once, alone or beside any others; of
            a ``SubsetRandomSampler`` the rows that it draws from, with their positions in the data set as ids.
            A ``collate_fn`` may pad each batch to a length of its own if the model masks the padding; that is checked
            where a `Task` is given the data.
        ids: Unique ids [N]; the row numbers by default.
        label: The target's column or key, where rows have names. By default the first of
            ``labels, label, target, targets, y`` that is there.

    Returns:
        The examples; tensors are shared, not copied.

    Raises:
        DataError: Lengths differ, ids repeat, the data has no rows or cannot be read by row number, or a row is not
            the same when it is read again (random augmentation, say).

    Cost: nothing for data in memory; eight rows of a data set are read twice.

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
        return _in_memory(as_tensor(data), None, ids)
    if isinstance(data, Mapping):
        return _in_memory(*_from_mapping(data, label), ids)
    if isinstance(data, DataLoader):
        return from_loader(data, ids, label)
    if _is_pair(data):
        inputs, targets = data
        return _in_memory(map_tree(as_tensor, _columns(inputs)), None if targets is None else as_tensor(targets), ids)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return from_dataset(data, ids, label)
    raise DataError(
        f"data must have rows (tensors, arrays, a dict of them, a DataFrame, a Dataset or a DataLoader), got "
        f"{type(data).__name__}. Pass a pair (inputs, targets) or an object with __len__ and __getitem__."
    )


def _is_pair(data: Any) -> bool:
    """Whether this is (inputs, targets) and not, say, a list of two rows that are themselves pairs."""
    if not isinstance(data, (tuple, list)) or len(data) != 2 or isinstance(data[0], (str, int, float)):
        return False
    return isinstance(data, tuple) or not isinstance(data[1], (tuple, Mapping))


def _columns(inputs: Any) -> Any:
    """Return inputs whose lists of numbers are arrays."""
    if isinstance(inputs, Mapping):
        return {key: numbers(value) for key, value in inputs.items()}
    return tuple(numbers(value) for value in inputs) if isinstance(inputs, tuple) else numbers(inputs)


def _from_mapping(data: Mapping[Any, Any], label: str | None) -> tuple[dict[str, Any], Tensor | None]:
    """Split named columns into inputs and targets."""
    target = target_key(data, label)
    named = {str(key): as_column(value, f"column {str(key)!r}") for key, value in data.items()}
    targets = None if target is None else named.pop(target)
    if not named:
        raise DataError(f"data must have inputs beside the targets, got the keys {list(data)}. Add the inputs.")
    lengths = {key: len(leaves(value)[0]) for key, value in named.items()}
    if targets is not None and target is not None:
        lengths[target] = len(targets)
    if len(set(lengths.values())) > 1:
        raise DataError(f"all columns must have as many rows as each other, got {lengths}.")
    return named, targets


def _in_memory(inputs: Any, targets: Tensor | None, ids: Any) -> Examples:
    """Make examples of tensors that are already in memory."""
    tensors = [*leaves(inputs), *([] if targets is None else [targets])]
    if any(leaf.ndim == 0 for leaf in tensors):
        raise DataError("inputs and targets must have one row an example, got a single number.")
    lengths = {len(leaf) for leaf in tensors}
    if len(lengths) != 1:
        raise DataError(f"inputs and targets must have as many rows as each other, got {sorted(lengths)}.")
    count = lengths.pop()

    def fetch(rows: np.ndarray) -> tuple[Any, Tensor | None]:
        contiguous = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        index = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else torch.from_numpy(rows)
        picked = map_tree(lambda leaf: leaf[index], inputs)
        return picked, None if targets is None else targets[index]

    return Examples(ids=as_ids(ids, count), fetch=fetch)


def _from_frame(frame: pd.DataFrame, label: str | None) -> tuple[Tensor, Tensor | None]:
    """Split a DataFrame of numbers into inputs [N, F] and targets [N]."""
    names = [str(name) for name in frame.columns]
    target = target_key(names, label)
    label_column = None if target is None else frame.iloc[:, names.index(target)]
    inputs = frame if target is None else frame.iloc[:, [i for i, name in enumerate(names) if name != target]]
    other = [str(name) for name in inputs.columns if not pd.api.types.is_numeric_dtype(inputs[name])]
    if other:
        raise DataError(
            f"columns must be numbers to be fed to a model, got {other[:5]}. "
            "Encode or drop them, or audit the file with `whence audit`."
        )
    values = as_tensor(inputs.to_numpy(dtype=np.float32, na_value=np.nan))
    return values, None if label_column is None else as_tensor(label_column.to_numpy())
