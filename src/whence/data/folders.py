"""A folder of images, one folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from whence.data.columns import IMAGE_ENDINGS
from whence.data.images import ImageSource, decode_images
from whence.data.labelled import LabelledData
from whence.data.options import ReadOptions
from whence.data.targets import parse_labels
from whence.errors import DataError

__all__ = ["read_image_folder"]

SPLITS = frozenset({"train", "training", "test", "val", "valid", "validation", "dev", "eval"})
CLUTTER = frozenset({"__MACOSX"})


def read_image_folder(path: Path, options: ReadOptions) -> LabelledData:
    """Read ``path/CLASS/**/image`` or ``path/SPLIT/CLASS/**/image``.

    The id of an image is its path below ``path`` with forward slashes; rows are sorted by it. Hidden
    files and folders (a leading dot) are ignored; files that are not images by their ending are counted
    in a note.

    Args:
        path: the folder.
        options: ``size`` and ``drop`` (class folders to leave out) apply; columns cannot be named.

    Raises:
        DataError: no image, images outside class folders only, one class, an unreadable image.

    Cost: every file is opened twice (head, then pixels).
    """
    files, others = _image_files(path)
    if not files:
        raise DataError(f"{path} must hold images in one folder per class, got no image. Choose another folder.")
    parts = [tuple(file.split("/")) for file in files]
    nested = all(part[0].lower() in SPLITS and len(part) > 2 for part in parts)
    depth = 1 if nested else 0
    rows = [row for row, part in enumerate(parts) if len(part) > depth + 1 and part[depth] not in options.drop]
    if not rows:
        raise DataError(
            f"{path} must hold one folder of images per class, got {len(files)} images and no class folder. "
            "Sort them into folders named by class."
        )
    loose = sum(len(part) <= depth + 1 for part in parts)
    names = pd.Series([parts[row][depth] for row in rows], dtype=object)
    targets = parse_labels(names, "folder")
    rows = [row for row, kept in zip(rows, targets.kept.tolist(), strict=True) if kept]
    sources = [ImageSource(name=str(path / files[row]), file=path / files[row]) for row in rows]
    images, notes = decode_images(sources, options.size)
    if others:
        notes = (*notes, f"{others} files that are not images left out")
    if loose:
        notes = (*notes, f"{loose} images outside the class folders left out")
    return LabelledData(
        ids=np.array([files[row] for row in rows]),
        kind="image",
        content=images,
        labels=targets.labels,
        classes=targets.classes,
        split=np.array([parts[row][0] for row in rows]) if nested else None,
        source=str(path),
        label_name="folder",
        notes=(*targets.notes, *notes),
    )


def _image_files(path: Path) -> tuple[list[str], int]:
    """Images below a folder (relative, "/"-separated, sorted), and the number of other files."""
    found: list[str] = []
    others = 0
    for folder, subfolders, files in os.walk(path, onerror=_refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in CLUTTER)
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(IMAGE_ENDINGS):
                found.append((Path(folder) / name).relative_to(path).as_posix())
            else:
                others += 1
    return sorted(found), others


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed is an error, not an empty one."""
    raise DataError(f"{error.filename} must be readable, got {error.strerror}. Change its permissions.") from error
