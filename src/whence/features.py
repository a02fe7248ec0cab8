"""Features of examples on disk: tensors in shards with a manifest that says what they belong to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whence.errors import RunFormatError

__all__ = [
    "FORMAT",
    "check_target",
    "ids_from_json",
    "ids_to_json",
    "read_manifest",
    "read_tensors",
    "staged",
    "write_manifest",
    "write_tensors",
]

FORMAT = 1
MANIFEST = "manifest.json"


def check_target(target: str | Path) -> None:
    """Raise unless a run may be written to ``target``: a new or empty folder, or an earlier run.

    Raises:
        RunFormatError: It holds other files, or is the working folder.
    """
    path = Path(target)
    if path.name in ("", ".."):
        raise RunFormatError(f"output must be a folder with a name, got {str(path)!r}. Name a new one with --out.")
    occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if occupied and not (path / MANIFEST).is_file():
        raise RunFormatError(
            f"output must be a new folder or an earlier run, got {str(path)!r}, which holds other files. "
            "Choose another folder with --out."
        )


class staged:
    """Write a folder under a temporary name and rename it when it is complete.

    A run that is interrupted leaves only the temporary folder, which is removed; an existing folder is
    replaced only by a complete one, and only if it is a run folder itself.

    Raises:
        RunFormatError: The target exists and is not a run folder, or the disk refuses the write.
    """

    def __init__(self, target: str | Path) -> None:
        self.target = Path(target)
        self.partial = self.target.parent / f".{self.target.name}.partial-{os.getpid()}"

    def __enter__(self) -> Path:
        """Return the folder to write into."""
        check_target(self.target)
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise RunFormatError(f"folder {str(self.target)!r} must be writable, got: {error.strerror}.") from error
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Rename the folder into place, or remove it after an error."""
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise RunFormatError(
                    f"run {str(self.target)!r} must be writable, got: {error.strerror or error}. "
                    "Free some space or choose another folder; nothing was kept."
                ) from error
            return
        if self.target.exists():
            shutil.rmtree(self.target)
        os.replace(self.partial, self.target)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json``; it comes last, so that a folder without it is known to be incomplete."""
    text = json.dumps({"format": FORMAT, **manifest}, indent=1, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """Return a folder's manifest.

    Raises:
        RunFormatError: There is none, it cannot be read, or it is of another kind or format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise RunFormatError(
            f"run must be a folder written by whence, got {str(folder)!r} without {MANIFEST}. "
            "An interrupted run leaves none: run it again."
        )
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFormatError(f"{path} must be readable JSON, got: {error}. Run it again.") from error
    entries: dict[str, Any] = manifest if isinstance(manifest, dict) else {}
    found = entries.get("format"), entries.get("kind")
    if found != (FORMAT, kind):
        raise RunFormatError(f"{path} must be of format {FORMAT} and kind {kind!r}, got {found}. Run it again.")
    return entries


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors.

    Raises:
        OSError: The disk refuses the write.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # its own error, also where the disk is full
        raise OSError(str(error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a safetensors file, memory-mapped.

    Raises:
        RunFormatError: The file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:
        raise RunFormatError(f"{path} must be a complete safetensors file, got: {error}. Run it again.") from error


def ids_to_json(ids: np.ndarray) -> dict[str, Any]:
    """Return ids as JSON that remembers whether they are integers."""
    integer = bool(np.issubdtype(ids.dtype, np.integer))
    return {"integer": integer, "values": ids.tolist()}


def ids_from_json(stored: Mapping[str, Any]) -> np.ndarray:
    """Restore what `ids_to_json` returned."""
    return np.array(stored["values"], dtype=np.int64 if stored["integer"] else str)
