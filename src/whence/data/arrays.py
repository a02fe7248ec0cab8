"""Labelled data from arrays, and from the arrays of an .npz file."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from whence.data.labelled import Content, Kind, LabelledData
from whence.data.options import ReadOptions
from whence.data.targets import Targets, parse_labels
from whence.data.values import quoted
from whence.errors import DataError

__all__ = ["from_arrays", "read_arrays", "read_npz"]

Array: TypeAlias = "np.ndarray[Any, Any]"

INPUT_NAMES = ("x", "images", "data", "inputs")
LABEL_NAMES = ("y", "label", "labels", "target", "targets")
CHANNELS = (1, 3)
LARGEST_UNPACKED = 16 * 2**30


def from_arrays(
    x: Any,
    y: Any,
    ids: Sequence[Any] | Array | None = None,
    classes: Sequence[str] | None = None,
    *,
    source: str = "",
    label_name: str = "y",
) -> LabelledData:
    """Make labelled data from arrays.

    The shape of x tells the kind: [N] strings are text, [N, D] numbers a table with columns x0 … x{D-1},
    [N, H, W], [N, H, W, C] and [N, C, H, W] images (C = 1 or 3). Integer images within 0 … 255 are kept;
    others are scaled to 0 … 255 over the whole set, with a note.

    Args:
        x: [N, ...] numbers or strings; anything that NumPy can view.
        y: [N] classes as integers, strings, bools or integral floats.
        ids: [N] unique; row numbers if None.
        classes: names of the classes 0 … C-1, if y holds positions.
        source: where the arrays came from, for the report.
        label_name: name of y in messages.

    Returns:
        LabelledData; rows of a NaN label up to 1 % are left out, as in ``from_frame``.

    Raises:
        DataError: lengths that differ, a shape that is none of the above, NaN or infinite values (their
            count and the first id are named), labels that are not one class per row.

    Cost: one pass over x; a copy if it must be scaled.

    Example:
        >>> import numpy as np
        >>> data = from_arrays(np.zeros((4, 28, 28), dtype=np.uint8), [0, 1, 0, 1])
        >>> data.kind, data.content.shape
        ('image', (4, 28, 28, 1))
    """
    values, labels = np.asarray(x), _label_array(y, label_name)
    if values.ndim == 0 or len(values) != len(labels):
        raise DataError(
            f"x and {label_name} must have the same number of rows, got shapes {values.shape} and {labels.shape}. "
            "Pass one label per row."
        )
    names = np.arange(len(labels)).astype(str) if ids is None else np.asarray(ids)
    if names.shape != labels.shape:
        raise DataError(
            f"ids must have one entry per row ({len(labels)}), got shape {names.shape}. Pass one id per row."
        )
    targets = _with_names(parse_labels(pd.Series(labels.tolist(), dtype=object), label_name), labels, classes)
    kind, content, notes = _content(values, names)
    if not targets.kept.all():
        content = _masked(content, targets.kept)
    return LabelledData(
        ids=names[targets.kept],
        kind=kind,
        content=content,
        labels=targets.labels,
        classes=targets.classes,
        source=source,
        label_name=label_name,
        notes=(*targets.notes, *notes),
    )


def read_npz(path: Path, options: ReadOptions) -> LabelledData:
    """Read ``x`` and ``y`` (and ``ids``, ``split``) from an .npz file; options name other arrays.

    Raises:
        DataError: not an .npz file, a damaged one, pickled objects (never unpickled), arrays missing.
    """
    arrays = read_arrays(path)
    taken = {options.label, options.image, options.text, options.id, options.split, options.reference}
    free = {name: array for name, array in arrays.items() if name not in options.drop}
    x_name = _array_name(free, options.image or options.text, INPUT_NAMES, taken, "x", path)
    y_name = _array_name(free, options.label, LABEL_NAMES, taken, "y", path)
    id_name = _optional(free, options.id, ("ids", "id"), path)
    ids = None if id_name is None else free[id_name]
    data = from_arrays(free[x_name], free[y_name], ids, source=str(path), label_name=y_name)
    extra: dict[str, Array] = {}
    for part, wanted in (("split", options.split), ("reference", options.reference)):
        name = _optional(free, wanted, ("split",) if part == "split" else (), path)
        if name is not None and name not in (x_name, y_name):
            extra[part] = _per_row(free[name], free[y_name], name, part)
    if not extra:
        return data
    kept = _kept_rows(data, ids, len(free[y_name]))
    return LabelledData(
        ids=data.ids, kind=data.kind, content=data.content, labels=data.labels, classes=data.classes,
        split=extra["split"][kept] if "split" in extra else None,
        reference=extra["reference"][kept] if "reference" in extra else None,
        source=data.source, label_name=data.label_name, notes=data.notes,
    )  # fmt: skip


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of the file, or the error that says what is wrong with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > LARGEST_UNPACKED:
            raise DataError(
                f"{path} must unpack to at most {LARGEST_UNPACKED >> 30} GiB, got {unpacked / 2**30:.0f} GiB. "
                "Split it into parts."
            )
        with warnings.catch_warnings(), np.load(path, allow_pickle=False) as archive:
            warnings.simplefilter("ignore")
            return {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except Exception as error:  # damaged headers make the parsers below raise nearly anything
        if isinstance(error, ValueError) and "pickle" in str(error):
            raise DataError(
                f"{path} must hold plain arrays, got pickled objects, which are never unpickled. "
                "Save numbers or strings with a plain dtype."
            ) from error
        raise DataError(f"{path} must be a readable .npz file, got: {_reason(error)}. Save it again.") from error


def _reason(error: Exception) -> str:
    """The first line of an exception, or its type."""
    text = str(error).splitlines()[0][:120] if str(error) else ""
    return text.rstrip(".") or type(error).__name__


def _array_name(
    arrays: dict[str, Array], wanted: str | None, usual: tuple[str, ...], taken: set[str | None], what: str, path: Path
) -> str:
    """The array that plays a part: as said, else the first usual name (in either case)."""
    if wanted is not None:
        found = _optional(arrays, wanted, (), path)
        assert found is not None
        return found
    lower = {name.lower(): name for name in arrays if name not in taken}
    for name in usual:
        if name in lower:
            return lower[name]
    remedy = "--label" if what == "y" else "--image"
    raise DataError(
        f"{path} must hold an array {what!r}, got {quoted(arrays) or 'no array'}. Save it as {what!r}, "
        f"or name the array with {remedy}."
    )


def _optional(arrays: dict[str, Array], wanted: str | None, usual: tuple[str, ...], path: Path) -> str | None:
    """The array of that name, an array of a usual name, or None."""
    if wanted is not None and wanted not in arrays:
        raise DataError(f"{path} must hold an array {wanted!r}, got {quoted(arrays)}. Use one of these names.")
    return wanted if wanted is not None else next((name for name in usual if name in arrays), None)


def _per_row(values: Array, labels: Array, name: str, part: str) -> Array:
    """Split as text, reference as bool, one entry per row."""
    if values.shape[:1] != labels.shape[:1] or values.ndim != 1:
        raise DataError(
            f"array {name!r} must have one entry per row ({len(labels)}), got shape {values.shape}. "
            "Drop it, or save one entry per row."
        )
    if part == "split":
        return values.astype(str)
    if values.dtype.kind not in "biu":
        raise DataError(f"array {name!r} must hold 1/0 or bools, got {values.dtype}. Save it as bool.")
    return values.astype(bool)


def _kept_rows(data: LabelledData, ids: Array | None, rows: int) -> Array:
    """[N] bool: rows that have a label."""
    if len(data) == rows:
        return np.ones(rows, dtype=bool)
    names = np.arange(rows).astype(str) if ids is None else np.asarray([str(value) for value in ids.tolist()])
    return np.isin(names, data.ids)


def _label_array(y: Any, name: str) -> Array:
    """Labels as a one-dimensional array."""
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{name} must hold one class per row, got shape {labels.shape}. whence audits classification with one "
            "class per row; turn one-hot rows into classes with argmax(axis=1)."
        )
    return labels


def _with_names(targets: Targets, labels: Array, classes: Sequence[str] | None) -> Targets:
    """Positions in the names that the caller gave, if any."""
    if classes is None:
        return targets
    names = [str(name) for name in classes]
    if len(set(names)) != len(names):
        raise DataError(f"classes must be unique, got {quoted(names)}. Rename one.")
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"labels must be positions in classes (integers), got {labels.dtype}. Leave classes out for names."
        )
    if labels.min() < 0 or labels.max() >= len(names):
        raise DataError(
            f"labels must lie in 0 … {len(names) - 1} (one per name in classes), got {labels.min()} … {labels.max()}. "
            "Name every class."
        )
    return Targets(labels=labels.astype(np.int64), classes=tuple(names), kept=targets.kept, notes=targets.notes)


def _content(values: Array, ids: Array) -> tuple[Kind, Content, tuple[str, ...]]:
    """Kind, content and notes by the shape of x."""
    if values.dtype == object and values.ndim == 1 and all(isinstance(value, str) for value in values):
        return "text", [str(value) for value in values], ()
    if values.dtype.kind == "U" and values.ndim == 1:
        return "text", values.tolist(), ()
    if values.dtype.kind not in "biuf":
        raise DataError(f"x must hold numbers or strings, got {values.dtype}. Convert it first.")
    _refuse_non_finite(values, ids)
    if values.ndim == 2 and values.shape[1] > 0:
        names = [f"x{position}" for position in range(values.shape[1])]
        return "tabular", pd.DataFrame(values.astype(np.float64), columns=names), ()
    if values.ndim == 4 and values.shape[3] not in CHANNELS and values.shape[1] in CHANNELS:
        values = values.transpose(0, 2, 3, 1)  # [N, H, W, C]
    if values.ndim == 3:
        values = values[:, :, :, None]  # [N, H, W, 1]
    if values.ndim != 4 or values.shape[3] not in CHANNELS or 0 in values.shape:
        raise DataError(
            f"x must be [N] text, [N, D] numbers, or images [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1 or 3, "
            f"got shape {values.shape}. Reshape it."
        )
    images, notes = _as_bytes(values)
    return "image", images, notes


def _refuse_non_finite(values: Array, ids: Array) -> None:
    """NaN and infinite values are an error that counts them and names the first id."""
    if values.dtype.kind != "f":
        return
    bad = ~np.isfinite(values)
    if bad.any():
        rows = bad.reshape(len(values), -1).any(axis=1)
        raise DataError(
            f"x must be finite, got {int(bad.sum())} NaN or infinite values in {int(rows.sum())} rows (first id "
            f"{ids[int(np.argmax(rows))]}). Replace or remove them."
        )


def _as_bytes(values: Array) -> tuple[Array, tuple[str, ...]]:
    """Images as uint8 0 … 255."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values), ()
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255, ()
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "iu" and low >= 0 and 64 <= high <= 255:
        return values.astype(np.uint8), ()
    if low >= 0 and 128 <= high <= 255:
        return _scaled(values, 0.0, 255.0), ()
    if low >= 0 and high <= 1:
        bottom, top = 0.0, 1.0
    elif low >= -1 and high <= 1:
        bottom, top = -1.0, 1.0
    else:
        bottom, top = min(low, 0.0) if low < 0 else 0.0, high
    return _scaled(values, bottom, top), (f"pixel values scaled from {bottom:g} … {top:g} to 0 … 255",)


def _scaled(values: Array, low: float, high: float) -> Array:
    """Values from low … high to 0 … 255, rounded, a block of rows at a time."""
    images = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), 1024):
        block = values[start : start + 1024].astype(np.float64)
        images[start : start + 1024] = np.rint((block - low) * (255.0 / ((high - low) or 1.0)))
    return images


def _masked(content: Content, kept: Array) -> Content:
    """The rows of content that are kept."""
    if isinstance(content, pd.DataFrame):
        return content[kept].reset_index(drop=True)
    if isinstance(content, list):
        return [text for text, keep in zip(content, kept.tolist(), strict=True) if keep]
    return content[kept]
