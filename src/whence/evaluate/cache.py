"""Results of retraining on disk, one small file each, named by a fingerprint of everything they depend on."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whence.errors import RunFormatError

__all__ = ["Cache"]


@dataclass(frozen=True)
class Cache:
    """A folder of measurements.

    Args:
        folder: Where the files lie; made when the first is written.
        fingerprint: What all results of this cache have in common.
    """

    folder: Path
    fingerprint: str

    def get(self, kept: np.ndarray, seed: int) -> np.ndarray | None:
        """Return the measurements [Q] of a training, or None if there are none.

        Raises:
            RunFormatError: The file is damaged.
        """
        path = self._path(kept, seed)
        if not path.is_file():
            return None
        try:
            values: np.ndarray = np.load(path, allow_pickle=False)
            return values
        except (OSError, ValueError, EOFError) as error:
            raise RunFormatError(f"{path} must hold one array, got: {error}. Delete it and run again.") from error

    def put(self, kept: np.ndarray, seed: int, values: np.ndarray) -> None:
        """Write the measurements [Q], whole or not at all."""
        path = self._path(kept, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        partial.replace(path)

    def _path(self, kept: np.ndarray, seed: int) -> Path:
        """Return the file of one training."""
        digest = hashlib.sha256(f"{self.fingerprint}/{seed}/".encode() + np.packbits(kept).tobytes())
        return self.folder / f"{digest.hexdigest()[:32]}.npy"
