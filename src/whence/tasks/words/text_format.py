"""The text format of word2vec: a line with both counts, then a word and its numbers a line."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from whence.errors import DataError

__all__ = ["read_vectors", "write_vectors"]


def write_vectors(path: str | Path, words: Sequence[str], vectors: np.ndarray) -> None:
    """Write words with their vectors [V, d]; nine digits, which bring every float32 back as it was."""
    path = Path(path)
    with _opened(path, "w") as file:
        file.write(f"{len(words)} {vectors.shape[1]}\n")
        for word, row in zip(words, vectors, strict=True):
            file.write(f"{word} {' '.join(f'{number:.9g}' for number in row)}\n")


def read_vectors(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Return the words of a file and their vectors [V, d] in float32.

    Raises:
        DataError: See `whence.load_words`.
    """
    path = Path(path)
    try:
        with _opened(path, "r") as file:
            count, width = _header(path, file.readline())
            words, rows = _rows(path, file, count, width)
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"vectors must be a text file that can be read, got {path.name!r}: {error}.") from error
    if len(words) != count:
        raise DataError(f"{path.name!r} must have {count} words, as its first line says, got {len(words)}: cut off.")
    return words, rows


def _opened(path: Path, mode: str) -> IO[str]:
    """Open a text file, compressed if the name ends in .gz; without the time, so that equal vectors are equal bytes."""
    if path.suffix != ".gz":
        return path.open(mode, encoding="utf-8", newline="\n" if mode == "w" else None)
    raw = gzip.GzipFile(path, f"{mode}b", mtime=0)
    return io.TextIOWrapper(raw, encoding="utf-8", newline="\n")


def _header(path: Path, line: str) -> tuple[int, int]:
    """Return the counts that the first line gives."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or min(map(int, parts)) < 1:
        raise DataError(
            f"the first line of {path.name!r} must be two counts, of words and of columns, got {line[:60]!r}. "
            "GloVe's format lacks that line: put it there."
        )
    return int(parts[0]), int(parts[1])


def _rows(path: Path, file: IO[str], count: int, width: int) -> tuple[list[str], np.ndarray]:
    """Return words and vectors of the lines after the first; memory grows with the file, not with its claims."""
    seen: dict[str, int] = {}
    rows: list[np.ndarray] = []
    for number, line in enumerate(file, start=2):
        parts = line.rstrip().split(" ")
        if parts == [""]:
            continue
        if len(rows) == count:
            raise DataError(f"{path.name!r} must have {count} words as its first line says, got more (line {number}).")
        if len(parts) != width + 1:
            raise DataError(
                f"line {number} of {path.name!r} must have a word and {width} numbers, got {len(parts) - 1} numbers."
            )
        if parts[0] in seen:
            raise DataError(
                f"words of {path.name!r} must be different, got {parts[0]!r} on lines {seen[parts[0]]} and {number}. "
                "Drop one of them."
            )
        seen[parts[0]] = number
        rows.append(_numbers(path, number, parts[1:]))
    return list(seen), np.stack(rows) if rows else np.zeros((0, width), dtype=np.float32)


def _numbers(path: Path, number: int, parts: list[str]) -> np.ndarray:
    """Return the numbers of one line in float32."""
    try:
        with np.errstate(over="ignore"):
            values = np.array(parts, dtype=np.float64).astype(np.float32)
    except ValueError:
        bad = next(part for part in parts if not _is_number(part))
        raise DataError(f"line {number} of {path.name!r} must have numbers after the word, got {bad!r}.") from None
    if not np.isfinite(values).all():
        bad = parts[int((~np.isfinite(values)).argmax())]
        raise DataError(f"line {number} of {path.name!r} must have finite numbers, got {bad!r}.")
    return values


def _is_number(part: str) -> bool:
    try:
        float(part)
    except ValueError:
        return False
    return True
