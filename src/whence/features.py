"""Folders on disk: a manifest that says what they belong to, tensors, ids; written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from whence.data.misses import check_the_path
from whence.errors import RunFormatError

__all__ = [
    "FORMAT",
    "MANIFEST",
    "check_target",
    "check_writable",
    "ids_from_tensors",
    "ids_to_tensors",
    "read_manifest",
    "read_metadata",
    "read_tensors",
    "staged",
    "write_manifest",
    "write_tensors",
]

FORMAT = 3
MANIFEST = "manifest.json"
_PARTIAL = ".partial"


def check_target(target: str | Path, kind: str | None = None) -> None:
    """Raise unless a run may be written to ``target``: a new or empty folder, or an earlier run.

    Args:
        target: The folder.
        kind: Of the run, where only an earlier one of the same kind may be replaced.

    Raises:
        RunFormatError: It holds other files or a run of another kind, cannot be looked into, or is the working folder.
    """
    path = Path(target)
    if path.name in ("", ".."):
        raise RunFormatError(f"output must be a folder with a name, got {str(path)!r}. Name a new one.")
    try:
        occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise _unwritable(path, error.strerror) from error
    if occupied and not (path / MANIFEST).is_file():
        raise RunFormatError(
            f"output must be a new folder or an earlier run, got {str(path)!r}, which holds other files. "
            "Choose another folder."
        )
    found = _kind_of(path) if occupied and kind is not None else None
    if found not in (None, kind):
        raise RunFormatError(
            f"output must be a new folder or an earlier one of kind {kind!r}, got {str(path)!r} of kind {found!r}. "
            "Choose another folder."
        )


def check_writable(target: str | Path) -> None:
    """Raise unless a folder can be made at ``target``, and one that is there be replaced; nothing is written.

    Raises:
        RunFormatError: The folder that holds it, or it itself, cannot be written to.
    """
    path = Path(target).absolute()
    try:
        holder = next(parent for parent in path.parents if parent.exists())
        needed = [holder, path] if path.exists() else [holder]
        staged(path).partial.exists()  # raises where the temporary name is too long
    except OSError as error:
        raise _unwritable(target, error.strerror) from error
    for folder in needed:
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            kind = "a folder that cannot be written to" if folder.is_dir() else "a file"
            raise _unwritable(target, f"{str(folder)!r} is {kind}")


def _kind_of(folder: Path) -> str | None:
    """Return the kind of a run, or None where its manifest is damaged."""
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    found = manifest.get("kind") if isinstance(manifest, dict) else None
    return found if isinstance(found, str) else None


def _unwritable(target: str | Path, cause: str | None) -> RunFormatError:
    """Return the error for an output that cannot be written."""
    return RunFormatError(
        f"output must be a writable folder, got {str(target)!r} ({cause}). Choose another folder."
    )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a place to write a file at, which then replaces ``path`` in one step.

    The place is in a folder beside it, so that whatever a killed write leaves there (libraries write temporary
    files of their own) goes with the next write.
    """
    folder = path.parent / _PARTIAL
    folder.mkdir(exist_ok=True)
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
            raise _unwritable(self.target, error.strerror) from error
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
    """Write ``manifest.json`` in one step: whoever reads it sees the old one or the new one."""
    text = json.dumps({"format": FORMAT, **manifest}, indent=1, allow_nan=False)
    with _replacing(folder / MANIFEST) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """Return a folder's manifest.

    Raises:
        RunFormatError: There is none, it cannot be read, or it is of another kind or format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        told = "An interrupted run leaves none: run it again."
        told = told if Path(folder).exists() else check_the_path(Path(folder))
        raise RunFormatError(f"run must be a folder written by whence, got {str(folder)!r} without {MANIFEST}. {told}")
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFormatError(f"{path} must be readable JSON, got: {error}. Run it again.") from error
    entries: dict[str, Any] = manifest if isinstance(manifest, dict) else {}
    found = entries.get("format")
    if isinstance(found, int) and found != FORMAT:
        age = "an earlier" if found < FORMAT else "a later"
        raise RunFormatError(
            f"{path} must be of format {FORMAT}, which this version of whence reads, got format {found} of {age} "
            "version. Make the run again in a new folder, or read it with the version that wrote it."
        )
    if (found, entries.get("kind")) != (FORMAT, kind):
        raise RunFormatError(
            f"{path} must be of format {FORMAT} and kind {kind!r}, got {(found, entries.get('kind'))}. "
            f"Name the folder of a run of kind {kind!r}, or make it again."
        )
    return entries


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named tensors as safetensors, in one step, with JSON-able metadata; equal contents give equal bytes.

    Raises:
        OSError: The disk refuses the write.
    """
    text = None if metadata is None else {"whence": json.dumps(metadata, sort_keys=True, allow_nan=False)}
    held: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        place = kept.untyped_storage().data_ptr()
        held[name] = kept.clone() if place in places else kept  # tied weights are written as often as they are named
        places.add(place)
    with _replacing(path) as partial:
        try:
            save_file(held, partial, text)
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


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that `write_tensors` was given.

    Raises:
        RunFormatError: The file is missing or damaged, or holds none.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            found: Any = json.loads((stored.metadata() or {})["whence"])
    except Exception as error:
        raise RunFormatError(f"{path} must be a complete shard, got: {error!r}. Run it again.") from error
    return found if isinstance(found, dict) else {}


def ids_to_tensors(ids: np.ndarray) -> dict[str, Tensor]:
    """Return ids as tensors: integers as they are, strings as UTF-8 bytes with the position where each ends."""
    if np.issubdtype(ids.dtype, np.integer):
        return {"ids": torch.from_numpy(ids.astype(np.int64))}
    encoded = [str(id_).encode("utf-8", "surrogatepass") for id_ in ids.tolist()]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    joined = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return {"id_bytes": torch.from_numpy(joined), "id_ends": torch.from_numpy(ends)}


def ids_from_tensors(stored: Mapping[str, Tensor], rows: np.ndarray | None = None) -> np.ndarray:
    """Restore what `ids_to_tensors` returned, or only the ids at positions ``rows``.

    Raises:
        KeyError, ValueError: The tensors are something else.
    """
    if "ids" in stored:
        whole: np.ndarray = stored["ids"].numpy()
        return whole.copy() if rows is None else whole[rows]
    ends, text = stored["id_ends"].numpy(), stored["id_bytes"].numpy()
    starts = np.concatenate([[0], ends[:-1]])
    wanted = range(len(ends)) if rows is None else rows.tolist()
    return np.array([text[starts[i] : ends[i]].tobytes().decode("utf-8", "surrogatepass") for i in wanted], dtype=str)
