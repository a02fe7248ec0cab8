"""Writing a folder of images back: every file copied, into the folder of its (new) class."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np

from whence.data.huggingface import is_saved_dataset
from whence.data.labelled import LabelledData
from whence.errors import ConfigError, DataError

__all__ = ["check_image_folder", "is_image_folder", "write_image_folder"]

Array: TypeAlias = "np.ndarray[Any, Any]"


def is_image_folder(data: LabelledData) -> bool:
    """Whether the data were read from a folder of images by class."""
    source = Path(data.source)
    return data.kind == "image" and bool(data.source) and source.is_dir() and not is_saved_dataset(source)


def check_image_folder(data: LabelledData, path: Path) -> None:
    """Raise unless images can be copied to a folder: a new or empty one, not inside the folder that was read.

    Raises:
        ConfigError: It holds something, or would be read as images of the source.
    """
    if Path(data.source).resolve() in (path.resolve(), *path.resolve().parents):
        raise ConfigError(f"output must lie outside {data.source}, got {str(path)!r}. Name a folder beside it.")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"output must be a new or empty folder, got {str(path)!r}. Name another; none is replaced.")


def write_image_folder(data: LabelledData, path: Path, *, labels: Array, kept: Array) -> None:
    """Copy the image files that are kept into ``path/CLASS/…``, as they are; those relabelled into the new class.

    What lies between class and file stays (and a split before the class). Where two files would get one name, the one
    that moved is named after the class that it came from: ``shoe/1.png`` from boot becomes ``shoe/1 (boot).png``.

    Args:
        data: As `whence.data.read` returns it for a folder of images; ids are paths.
        path: The new folder.
        labels: Class positions [N].
        kept: Which images to copy [N], bools.

    Raises:
        DataError: An image is no longer there.
        OSError: A file cannot be copied.

    Cost: copies every file that is kept.
    """
    source, place = Path(data.source), 0 if data.split is None else 1
    folders: dict[int, Counter[str]] = {}
    for id_, label in zip(data.ids.tolist(), data.labels.tolist(), strict=True):
        folders.setdefault(label, Counter())[PurePosixPath(id_).parts[place]] += 1
    named = {label: counted.most_common(1)[0][0] for label, counted in folders.items()}
    stayed = {id_.casefold() for id_, old, new, keep in
              zip(data.ids.tolist(), data.labels.tolist(), labels.tolist(), kept.tolist(), strict=True)
              if keep and old == new}  # fmt: skip
    for row in np.flatnonzero(kept).tolist():
        id_, new = str(data.ids[row]), int(labels[row])
        target = PurePosixPath(id_)
        if new != int(data.labels[row]):
            parts = list(target.parts)
            before, parts[place] = parts[place], named.get(new, data.classes[new])
            target = _free(PurePosixPath(*parts), before, stayed)
            stayed.add(str(target).casefold())
        _copy(source / id_, path / target)


def _free(target: PurePosixPath, before: str, taken: set[str]) -> PurePosixPath:
    """Return a path that is not taken, named after the class before where it would be."""
    more = (target.with_name(f"{target.stem} ({before}{number}){target.suffix}")
            for number in ("", *(f" {count}" for count in range(2, len(taken) + 3))))  # fmt: skip
    return next(name for name in (target, *more) if str(name).casefold() not in taken)


def _copy(source: Path, target: Path) -> None:
    """Copy one file with its times."""
    if not source.is_file():
        raise DataError(f"image {source} must exist, got no such file. Audit the folder again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
