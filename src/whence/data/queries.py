"""Reading new rows, with or without labels, exactly as an audited file was read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from whence.data.frames import from_frame
from whence.data.labelled import LabelledData
from whence.data.options import ReadOptions
from whence.data.readers import read, read_table
from whence.errors import DataError

__all__ = ["read_like"]


def read_like(path: str | Path, source: str | Path, options: ReadOptions, label: str) -> tuple[LabelledData, bool]:
    """Return the rows of ``path``, their columns interpreted as those of ``source`` were, and whether they have labels.

    The kind of data and the part that each column plays are decided from the audited rows, of which the new ones may
    be too few to tell. A table without the label column gets the first class everywhere. Ids are the new file's own.

    Args:
        path: New rows; a table file needs the same columns, other formats are read as they are, with labels.
        source: The file that was audited.
        options: How it was read.
        label: Its label column.

    Raises:
        DataError: A file cannot be read, or columns are missing.

    Cost: reads both files.
    """
    encoding = options.encoding
    frame, known = read_table(Path(path), encoding), read_table(Path(source), encoding)
    if frame is None or known is None:
        return read(path, options), True
    missing = [str(name) for name in known.columns if name not in frame.columns and str(name) != label]
    needed = [name for name in missing if name not in (options.id, options.split, options.reference, *options.drop)]
    if needed:
        raise DataError(f"{path} must have the columns of {source}, got none named {needed[:5]}. Add them.")
    labelled = label in frame.columns and bool(frame[label].notna().all())
    filled = frame.copy()
    if not labelled:
        filled[label] = known[label].dropna().iloc[0]
    joined = pd.concat([known, filled[[name for name in known.columns if name in filled]]], ignore_index=True)
    plain = replace(options, id=None, label=label, drop=(*options.drop, *([options.id] if options.id else [])))
    unnamed = joined.drop(columns=[name for name in joined.columns if str(name).lower() == "id" and name != label])
    data = from_frame(unnamed, plain, source=str(path), folder=Path(path).parent)
    rows = data.rows(np.flatnonzero(data.ids.astype(np.int64) >= len(known)))
    name = options.id if options.id in frame else next((c for c in frame if str(c).lower() == "id"), None)
    ids = frame[name].astype(str).to_numpy() if name is not None else np.arange(len(frame)).astype(str)
    if len(rows) != len(frame):
        raise DataError(f"{path} must have a label in every row or in none, got {len(frame) - len(rows)} without.")
    return replace(rows, ids=np.asarray(ids, dtype=str)), labelled
