"""Tell the columns of a table apart: numbers, categories, free text, images, identifiers, constants."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from whence.data.values import is_nested, missing_mask, quoted, to_numbers, to_texts
from whence.errors import DataError

__all__ = ["Part", "ProfiledColumn", "profile"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Part: TypeAlias = Literal["numeric", "categorical", "text", "image", "constant", "identifier", "nested"]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"P5", b"P6")
ID_NAME = re.compile(r"(^|[_\-. ])(id|ids|uuid|guid|key|index|idx|nbr|rownum|row|unnamed: ?\d+)$", re.IGNORECASE)
ROWS_TO_JUDGE = 20
WORDS_OF_TEXT = 3.0
CHARACTERS_OF_TEXT = 40.0
DISTINCT_OF_TEXT = 0.3
STRAY_SHARE = 0.05
STRAY_TOKENS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class ProfiledColumn:
    """One column, what it is, and its values in that form.

    ``values`` is [N] float64 for numeric columns, [N] object (text or None) for categorical ones, and
    the raw cells otherwise. ``characters`` is the median length of a string column.
    """

    name: str
    part: Part
    values: Array
    note: str | None = None
    characters: float = 0.0
    distinct: int = 0


def profile(column: pd.Series[Any], name: str, folder: Path | None = None) -> ProfiledColumn:
    """Say what a column is.

    A column is *numeric* if every present value is a number (up to 5 % strays of at most three
    different spellings become missing, with a note), *image* if it holds image files that exist in
    ``folder``, encoded images or arrays, *text* if its strings average at least 3 words, or 40
    characters, and rarely repeat, else *categorical*. A unique string per row and a row number are
    *identifiers*.

    Args:
        column: [N] cells of any type.
        name: its name, for notes and errors.
        folder: where relative image paths start.

    Raises:
        DataError: infinite numbers, or complex ones.

    Cost: a few passes over the column.
    """
    cells = column.to_numpy(dtype=object)
    if holds_images(column, folder):
        return ProfiledColumn(name=name, part="image", values=cells)
    if column.dtype == object and any(is_nested(value) for value in cells):
        return ProfiledColumn(
            name=name, part="nested", values=cells, note=f"column {name} left out: holds lists or objects"
        )
    missing = missing_mask(column)
    present = int((~missing).sum())
    if present == 0:
        return ProfiledColumn(
            name=name, part="constant", values=cells, note=f"column {name} left out: every value is missing"
        )
    numbers = to_numbers(column, missing)
    note = None
    if numbers is None:
        numbers, note = _with_strays(column, missing, name)
    if numbers is not None:
        return _numeric(name, numbers, note)
    if pd.api.types.is_complex_dtype(column.dtype):
        raise DataError(f"column {name!r} must hold real numbers, got complex ones. Drop it with --drop {name}.")
    return _stringlike(name, cells, missing)


def holds_images(column: pd.Series[Any], folder: Path | None) -> bool:
    """Whether the first present cells are image bytes, image structs, pictures, or existing image files."""
    if not (column.dtype == object or pd.api.types.is_string_dtype(column.dtype)):
        return False
    first = [value for value in column.iloc[:50].tolist() if value is not None and value is not pd.NA]
    first = [value for value in first if not isinstance(value, float)][:5]
    return bool(first) and all(_is_image(value, folder) for value in first)


def _is_image(value: Any, folder: Path | None) -> bool:
    """Whether one cell is an image."""
    if isinstance(value, dict):
        return {"bytes", "path"} >= set(value) and len(value) > 0 and any(value.values())
    if isinstance(value, (bytes, bytearray)):
        return bytes(value[:4]).startswith(IMAGE_MAGIC)
    if isinstance(value, str):
        if len(value) > 1024 or not value.lower().endswith(IMAGE_ENDINGS) or "\0" in value:
            return False
        return ((folder or Path(".")) / value).is_file()
    return hasattr(value, "convert") and hasattr(value, "size") and hasattr(value, "mode")  # a Pillow image


def _with_strays(column: pd.Series[Any], missing: Array, name: str) -> tuple[Array | None, str | None]:
    """A column of numbers with a few strays ("unknown"): those become missing, and a note names them."""
    cells = column.to_numpy(dtype=object)
    present = cells[~missing]
    if not all(isinstance(value, (str, int, float)) for value in present):
        return None, None
    parsed = pd.to_numeric(pd.Series(present, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    stray = np.isnan(parsed)
    tokens = sorted({str(value) for value in present[stray]})
    if stray.mean() > STRAY_SHARE or len(tokens) > STRAY_TOKENS or len(set(parsed[~stray])) < 5:
        return None, None
    numbers = np.full(len(cells), np.nan)
    numbers[~missing] = parsed
    shown = quoted((repr(token) for token in tokens), limit=STRAY_TOKENS)
    return numbers, f"column {name}: {int(stray.sum())} values that are not numbers taken as missing ({shown})"


def _numeric(name: str, numbers: Array, note: str | None) -> ProfiledColumn:
    """A numeric column, or the constant or identifier that it is instead."""
    infinite = np.isinf(numbers)
    if infinite.any():
        raise DataError(
            f"column {name!r} must hold finite numbers, got {int(infinite.sum())} infinite values (first in row "
            f"{int(np.argmax(infinite))}). Replace them, or drop the column with --drop {name}."
        )
    present = numbers[~np.isnan(numbers)]
    distinct = len(np.unique(present))
    part: Part = "numeric"
    if distinct == 1 and len(present) == len(numbers):
        part, note = "constant", f"column {name} left out: always {present[0]:g}"
    elif len(present) == len(numbers) and _is_identifier(name, numbers, distinct):
        part, note = "identifier", f"column {name} left out: numbers the rows"
    return ProfiledColumn(name=name, part=part, values=numbers, note=note, distinct=distinct)


def _is_identifier(name: str, numbers: Array, distinct: int) -> bool:
    """A row number, or a unique integer in a column named like an identifier."""
    rows = len(numbers)
    if rows < ROWS_TO_JUDGE or distinct < rows or not bool((numbers == np.round(numbers)).all()):
        return False
    return bool((np.diff(numbers) == 1).all()) or ID_NAME.search(name) is not None


def _stringlike(name: str, cells: Array, missing: Array) -> ProfiledColumn:
    """Free text, categories, a constant or an identifier, by length, words and repetition."""
    texts = to_texts(cells)
    present = [text for text, gone in zip(texts, missing, strict=True) if not gone]
    distinct = len(set(present))
    characters = float(np.median([len(text) for text in present]))
    words = float(np.mean([len(text[:2000].split()) for text in present]))
    wordy = words >= WORDS_OF_TEXT or characters >= CHARACTERS_OF_TEXT
    spaced = words >= 2 or not all(text[:2000].isascii() for text in present[:100])
    if wordy and spaced and distinct > max(DISTINCT_OF_TEXT * len(present), 1):
        return ProfiledColumn(name=name, part="text", values=cells, characters=characters, distinct=distinct)
    if distinct == 1 and len(present) == len(texts):
        shown = repr(present[0]) if len(present[0]) <= 40 else repr(present[0][:37] + "...")
        return ProfiledColumn(name=name, part="constant", values=cells, note=f"column {name} left out: always {shown}")
    if distinct == len(texts) and len(texts) >= ROWS_TO_JUDGE:
        return ProfiledColumn(
            name=name,
            part="identifier",
            values=cells,
            note=f"column {name} left out: another value in every row",
            characters=characters,
            distinct=distinct,
        )
    values = np.empty(len(texts), dtype=object)
    values[:] = [None if gone else text.strip() for text, gone in zip(texts, missing, strict=True)]
    return ProfiledColumn(name=name, part="categorical", values=values, characters=characters, distinct=distinct)
