"""A data set saved by Hugging Face ``datasets`` with ``save_to_disk`` (extra ``hf``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from whence.data.frames import from_frame
from whence.data.labelled import LabelledData
from whence.data.options import ReadOptions
from whence.data.tables import frame_of
from whence.errors import DataError, MissingExtraError

__all__ = ["is_saved_dataset", "read_saved_dataset"]


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    )


def read_saved_dataset(path: Path, options: ReadOptions) -> LabelledData:
    """Read a saved ``Dataset``, or all splits of a saved ``DatasetDict`` as one table with a column split.

    Class labels become their names, images are decoded, everything else is read as in ``from_frame``.

    Args:
        path: the folder.
        options: which column plays which part.

    Raises:
        MissingExtraError: the extra ``hf`` is not installed.
        DataError: a damaged folder, or what ``from_frame`` refuses.

    Cost: one pass; the whole table in memory.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"reading {path} needs the package datasets, which is not installed. Run: pip install 'whence[hf]'."
        ) from error
    try:
        loaded = datasets.load_from_disk(str(path))
        splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
        frames = [_frame(datasets, part, name, path) for name, part in splits.items() if len(part)]
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds for a damaged folder
        reason = str(error).splitlines()[0][:160].rstrip(".") if str(error) else type(error).__name__
        raise DataError(f"{path} must be a whole saved dataset, got: {reason}. Save it again.") from error
    if not frames:
        raise DataError(f"{path} must have at least one row, got none. Choose another folder.")
    frame = pd.concat(frames, ignore_index=True)
    data = from_frame(frame, options, source=str(path), folder=path)
    return replace(data, notes=(f"saved dataset of {len(splits)} split(s)", *data.notes))


def _frame(datasets: Any, part: Any, split: str, path: Path) -> pd.DataFrame:
    """One split as a table: class names instead of codes, images undecoded."""
    for name, feature in part.features.items():
        if isinstance(feature, datasets.Image):
            part = part.cast_column(name, datasets.Image(decode=False))
    frame = frame_of(part.with_format("arrow")[:], path)
    for name, feature in part.features.items():
        if isinstance(feature, datasets.ClassLabel):
            codes = pd.to_numeric(frame[name]).tolist()
            names = [feature.int2str(int(code)) if pd.notna(code) and code >= 0 else None for code in codes]
            frame[name] = pd.Series(names, dtype=object)
    if split and "split" not in frame.columns:
        frame["split"] = split
    return frame
