"""Texts without labels from a file: documents of a plain text, or a column of a table."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from whence.data.readers import read_table
from whence.errors import ConfigError, DataError

__all__ = ["Texts", "read_texts"]

_PLAIN = (".txt", ".text", ".md")
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_NAMES = ("text", "sentence", "content", "body")
_SHOWN = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """Documents.

    Args:
        texts: One text a document.
        ids: Ids of the documents, or None for numbers from 0.
        source: Where they come from.
    """

    texts: list[str]
    ids: np.ndarray | None
    source: str


def read_texts(path: str | Path, *, text: str | None = None, id_column: str | None = None) -> Texts:
    """Read documents: paragraphs of a plain text (between blank lines), or the rows of a table's text column.

    Args:
        path: .txt, or .csv, .tsv, .jsonl, .parquet; also compressed.
        text: Text column of a table; by default the one called text, else the one with the longest texts.
        id_column: Column that names the documents.

    Raises:
        ConfigError: A column is not there, or one is named for a plain text.
        DataError: The file cannot be read or holds no text.
    """
    path = Path(path)
    inner = Path(path.stem).suffix.lower() if path.suffix.lower() in _OPENERS else path.suffix.lower()
    if inner in _PLAIN:
        if text is not None or id_column is not None:
            raise ConfigError(f"columns must be of a table, got {path.name!r}. Leave --text and --id out.")
        return Texts(texts=_paragraphs(path), ids=None, source=str(path))
    frame = read_table(path)
    if frame is None:
        raise DataError(f"{path} must be .txt, .csv, .tsv, .jsonl or .parquet, got {path.suffix or 'no ending'!r}.")
    column = _column(frame, text)
    ids = None if id_column is None else frame[_named(frame, id_column)].astype(str).to_numpy()
    texts = frame[column].fillna("").astype(str).tolist()
    if not any(one.strip() for one in texts):
        raise DataError(f"column {column!r} of {path} must hold text, got none.")
    return Texts(texts=texts, ids=ids, source=str(path))


def _paragraphs(path: Path) -> list[str]:
    """Return the paragraphs of a plain text."""
    opener = _OPENERS.get(path.suffix.lower(), open)
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace") as file:
            whole: str = _read(file)
    except (OSError, EOFError, lzma.LZMAError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} must be readable, got: {told}. Check the path.") from error
    found = [part.strip() for part in re.split(r"\n\s*\n", whole) if part.strip()]
    if not found:
        raise DataError(f"{path} must hold text, got none.")
    return found


def _read(file: IO[str]) -> str:
    return file.read()


def _column(frame: pd.DataFrame, text: str | None) -> str:
    """Return the name of the text column."""
    if text is not None:
        return _named(frame, text)
    words = [str(name) for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    for name in _NAMES:
        if name in words:
            return name
    if not words:
        raise DataError(f"table must have a text column, got {[str(name) for name in frame.columns][:_SHOWN]}.")
    return max(words, key=lambda name: float(frame[name].fillna("").astype(str).str.len().mean()))


def _named(frame: pd.DataFrame, name: str) -> str:
    """Return a column's name if it is there."""
    if name not in frame.columns:
        raise ConfigError(f"column must be one of {[str(one) for one in frame.columns][:_SHOWN]}, got {name!r}.")
    return name
