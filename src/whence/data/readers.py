"""One call for every file format: path in, labelled data out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from whence.data.arrays import from_arrays, read_npz
from whence.data.folders import read_image_folder
from whence.data.frames import from_frame
from whence.data.huggingface import is_saved_dataset, read_saved_dataset
from whence.data.labelled import LabelledData
from whence.data.misses import check_the_path
from whence.data.options import ReadOptions
from whence.data.tables import read_csv, read_jsonl, read_parquet
from whence.errors import DataError

__all__ = ["ReadOptions", "ending_of", "from_arrays", "from_frame", "read", "read_table"]

TableReader: TypeAlias = "Callable[[Path, str | None], tuple[pd.DataFrame, tuple[str, ...]]]"

TABLES: dict[str, TableReader] = {
    ".csv": lambda path, encoding: read_csv(path, None, encoding),
    ".tsv": lambda path, encoding: read_csv(path, "\t", encoding),
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": lambda path, _: read_parquet(path),
}
PACKED = (".gz", ".xz", ".bz2")
SUPPORTED = (
    ".csv, .tsv, .jsonl (also .gz, .xz, .bz2), .parquet, .npz, a folder of images by class, "
    "a saved Hugging Face dataset"
)


def read(path: str | Path, options: ReadOptions | None = None) -> LabelledData:
    r"""Read a labelled data set.

    Supported: ``.csv`` and ``.tsv`` with a header, ``.jsonl`` (each also ``.gz``, ``.xz``, ``.bz2``),
    ``.parquet``, ``.npz`` with x and y, a folder of images by class, and a folder that Hugging Face
    ``save_to_disk`` wrote (extra ``hf``). Nothing is ever unpickled.

    Args:
        path: file or folder.
        options: which column plays which part; what is left out is worked out and noted.

    Returns:
        LabelledData with ids, content, classes and notes of every decision.

    Raises:
        DataError: the path, the format, a column or the content cannot be used; one line that names the
            cause and the remedy.
        MissingExtraError: a saved Hugging Face dataset without the extra ``hf``.

    Cost: one pass over the file; memory of a few times its unpacked size.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "mails.csv"
        >>> _ = file.write_text("text,label\nsee you at noon,ham\nyou won a big prize,spam\n")
        >>> data = read(file)
        >>> data.kind, data.classes, data.ids.tolist()
        ('text', ('ham', 'spam'), ['0', '1'])
    """
    options = options or ReadOptions()
    path = Path(path)
    try:
        if path.is_dir():
            return read_saved_dataset(path, options) if is_saved_dataset(path) else read_image_folder(path, options)
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DataError(f"{path} must exist, got no such file or folder. {check_the_path(path)}") from error
    except OSError as error:
        raise DataError(f"{path} must be readable, got: {error.strerror}. Check the path.") from error
    if not path.is_file():
        raise DataError(f"{path} must be a file or a folder, got something else. Check the path.")
    if size == 0:
        raise DataError(f"{path} must not be empty, got 0 bytes. Choose another file.")
    ending = ending_of(path)
    if ending == ".npz":
        return read_npz(path, options)
    if ending not in TABLES:
        raise DataError(f"{path} must be one of {SUPPORTED}, got {path.suffix or 'no ending'!r}. Convert or rename it.")
    frame, notes = TABLES[ending](path, options.encoding)
    data = from_frame(frame, options, source=str(path), folder=path.parent)
    return replace(data, notes=(*notes, *data.notes), encoding=options.encoding)


def read_table(path: Path, encoding: str | None = None) -> pd.DataFrame | None:
    """Return a table file as a frame, or None for another format.

    Args:
        path: The file.
        encoding: Of a text file, as in `ReadOptions`.

    Raises:
        DataError: The file is missing or cannot be parsed.
    """
    if not path.is_file():
        raise DataError(f"{path} must exist, got no such file. {check_the_path(path)}")
    reader = TABLES.get(ending_of(path))
    return None if reader is None else reader(path, encoding)[0]


def ending_of(path: Path) -> str:
    """The ending that tells the format, without that of a compression (only text formats may have one)."""
    last = path.suffix.lower()
    if last not in PACKED:
        return last
    inner = Path(path.stem).suffix.lower()
    return inner if inner in (".csv", ".tsv", ".jsonl", ".ndjson") else last
