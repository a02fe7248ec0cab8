"""The mask of an index: rows that were removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from whence.errors import RunFormatError
from whence.features import read_tensors, write_tensors

__all__ = ["read_removed", "write_removed"]

_NAME = "removed.safetensors"


def read_removed(folder: Path, stored: int) -> np.ndarray:
    """Return the removed rows of an index with ``stored`` rows, ascending.

    Raises:
        RunFormatError: The file is damaged.
    """
    path = folder / _NAME
    if not path.exists():
        return np.empty(0, dtype=np.int64)
    tensor = read_tensors(path).get("rows")
    rows = np.empty(0) if tensor is None or tensor.dtype != torch.int64 else tensor.numpy().copy()
    valid = rows.dtype == np.int64 and rows.ndim == 1 and bool((np.diff(rows) > 0).all())
    if not valid or (len(rows) and not (rows[0] >= 0 and rows[-1] < stored)):
        raise RunFormatError(f"{path} must hold ascending rows below {stored}, got something else. Delete it.")
    return rows


def write_removed(folder: Path, rows: np.ndarray) -> None:
    """Replace the mask in one step; without rows there is no file.

    Raises:
        RunFormatError: The disk refuses the write.
    """
    path = folder / _NAME
    try:
        if len(rows) == 0:
            path.unlink(missing_ok=True)
            return
        write_tensors(path, {"rows": torch.from_numpy(rows.astype(np.int64))})
    except OSError as error:
        raise RunFormatError(f"{path} must be writable, got: {error.strerror or error}.") from error
