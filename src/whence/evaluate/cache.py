"""Results of retraining on disk, one small file each, named by a fingerprint of everything they depend on."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

from whence.errors import RunFormatError

__all__ = ["Cache", "describe"]

_VERSION = "retraining 1"


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


def describe(*parts: Any) -> str:
    """Return SHA-256 over settings; functions count by name, bytecode and constants."""
    digest = hashlib.sha256(_VERSION.encode())
    for part in parts:
        digest.update(_text(part).encode() + b"\0")
    return digest.hexdigest()


def _text(value: Any) -> str:
    """Return a description that does not depend on the process."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(entry)}" for key, entry in sorted(value.items())) + "}"
    if isinstance(value, (str, int, float, bool, type(None))) or is_dataclass(value):
        return repr(value)
    code = getattr(value, "__code__", None) or getattr(type(value).__call__, "__code__", None)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return name if code is None else f"{name}/{_code(code)}"


def _code(code: CodeType) -> str:
    """Return a digest of a function's bytecode and constants, functions inside it included."""
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    text = code.co_code + repr((code.co_names, constants)).encode()
    return hashlib.sha256(text).hexdigest()
