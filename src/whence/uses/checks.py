"""What a user hands to `find_label_errors`, checked once where it enters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from whence.errors import ConfigError, DataError

__all__ = ["check_embeddings", "check_labels", "check_logits", "check_probabilities", "check_reference"]

Array: TypeAlias = "np.ndarray[Any, Any]"


def check_labels(labels: Any) -> Array:
    """Return labels as class positions [N], int64.

    Raises:
        DataError: They are not integers from 0 on, or there are none.
    """
    given = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if given.dtype.kind == "f":
        raise DataError(
            f"labels must be class positions [N] (integers), got {given.dtype} of shape {given.shape}. A regression "
            "has no label errors in this sense: look at the rows with the largest attribution.self_scores(). For "
            "classes pass integers, labels=."
        )
    if given.ndim != 1 or given.dtype.kind not in "iub" or len(given) == 0:
        raise DataError(f"labels must be class positions [N] (integers), got {given.dtype} of shape {given.shape}.")
    if int(given.min()) < 0:
        raise DataError(f"labels must be class positions from 0 on, got {int(given.min())}. Number the classes from 0.")
    return given.astype(np.int64)


def check_logits(name: str, logits: Any, given: Array) -> None:
    """Raise unless logits are finite [N, C] and cover the labels.

    Raises:
        DataError: They are not.
    """
    values = np.asarray(logits)
    if values.ndim != 2 or len(values) != len(given) or not np.isfinite(values).all():
        raise DataError(f"{name} must be finite [N, C] for {len(given)} labels, got shape {values.shape}.")


def check_probabilities(source: Any, given: Array) -> Array:
    """Return probabilities [N, C], the mean where there are several arrays.

    Raises:
        ConfigError: The source is not an array, a tensor or a list of them.
        DataError: Shapes differ, or the rows are no probabilities.
    """
    arrays = list(source) if isinstance(source, (list, tuple)) else [source]
    try:
        stacked = [np.asarray(a.detach().cpu() if isinstance(a, torch.Tensor) else a, dtype=np.float64) for a in arrays]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"source must be an attribution, probabilities, Members or None, got {type(source).__name__}."
        ) from error
    if not stacked:
        raise ConfigError("source must hold at least one array of probabilities, got an empty list.")
    shapes: Sequence[tuple[int, ...]] = [a.shape for a in stacked]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] != len(given):
        raise DataError(f"probabilities must be [N, C] with N = {len(given)}, got {', '.join(map(str, shapes))}.")
    q: Array = np.mean(stacked, axis=0)
    if not np.isfinite(q).all() or q.min() < 0 or not np.allclose(q.sum(1), 1, atol=1e-3):
        raise DataError("probabilities must be finite, not negative and sum to 1 in every row. Apply a softmax first.")
    return q


def check_embeddings(embeddings: Any, rows: int) -> Array:
    """Return embeddings as a matrix [N, D].

    Raises:
        DataError: Another number of rows, or a number that is not finite.
    """
    vectors = np.asarray(embeddings.detach().cpu() if isinstance(embeddings, torch.Tensor) else embeddings)
    if vectors.ndim < 2 or len(vectors) != rows or vectors.dtype.kind not in "fiub":
        raise DataError(f"embeddings must be numbers [N, D] with N = {rows}, got {vectors.dtype} {vectors.shape}.")
    if not np.isfinite(vectors).all():
        raise DataError("embeddings must be finite, got NaN or infinity. Fill or drop those rows.")
    return vectors.reshape(rows, -1)


def check_reference(reference: Any, rows: int) -> Array:
    """Return positions of the rows that the user vouches for.

    Raises:
        ConfigError: No mask [N] and no positions below N, or no row at all.
    """
    chosen = np.asarray(reference)
    mask = chosen.dtype == np.bool_
    if chosen.size == 0 or (mask and not chosen.any()):
        raise ConfigError("reference must mark at least one row, got none.")
    if chosen.ndim != 1 or (mask and len(chosen) != rows) or (not mask and chosen.dtype.kind not in "iu"):
        raise ConfigError(
            f"reference must be a mask of {rows} bools or row positions (integers), got {chosen.dtype} {chosen.shape}."
        )
    if mask:
        return np.flatnonzero(chosen)
    if chosen.min() < 0 or chosen.max() >= rows:
        raise ConfigError(f"reference must hold positions 0 … {rows - 1}, got {chosen.min()} … {chosen.max()}.")
    return chosen.astype(np.int64)
