"""Results of retraining on disk, one small file each, named by a fingerprint of everything they depend on."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whence.errors import RunFormatError

__all__ = ["Cache", "check_cache"]


def check_cache(folder: str | Path) -> None:
    """Raise unless results can be kept in a folder, which need not be there; nothing is written.

    Raises:
        RunFormatError: It is a file, or cannot be written to.
    """
    path = Path(folder).absolute()
    try:
        holder = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:
        raise _unusable(folder, error.strerror) from error
    if not holder.is_dir():
        raise _unusable(folder, f"{str(holder)!r} is a file")
    if not os.access(holder, os.W_OK | os.X_OK):
        raise _unusable(folder, f"{str(holder)!r} cannot be written to")


def _unusable(folder: str | Path, cause: str | None) -> RunFormatError:
    """Return the error for a folder that cannot hold results."""
    return RunFormatError(f"cache must be a folder to write to, got {str(folder)!r} ({cause}). Choose another one.")


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
        """Write the measurements [Q], whole or not at all.

        Raises:
            RunFormatError: The folder cannot be written to.
        """
        path = self._path(kept, seed)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.save(file, values, allow_pickle=False)
            partial.replace(path)
        except OSError as error:
            raise _unusable(self.folder, error.strerror) from error

    def _path(self, kept: np.ndarray, seed: int) -> Path:
        """Return the file of one training."""
        digest = hashlib.sha256(f"{self.fingerprint}/{seed}/".encode() + np.packbits(kept).tobytes())
        return self.folder / f"{digest.hexdigest()[:32]}.npy"
