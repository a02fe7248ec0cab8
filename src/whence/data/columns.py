"""Tell the columns of a table apart: numbers, categories, free text, images, identifiers, constants."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from PIL import Image

from whence.data.notations import NOTATIONS
from whence.data.values import as_number, is_nested, is_textual, missing_mask, quoted, to_numbers, to_texts
from whence.errors import DataError

__all__ = ["Part", "ProfiledColumn", "profile"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Part: TypeAlias = Literal["numeric", "categorical", "text", "image", "constant", "identifier", "nested"]

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"P5", b"P6")
ID_NAME = re.compile(
    r"(^|[_\-. ])(id|ids|uuid|guid|key|index|idx|nbr|nr\.?|rownum|row|unnamed: ?\d+)$|nummer$", re.IGNORECASE
)
FIGURES = re.compile(r"[0-9.,:/TZ+\- ]*")  # all that numbers and dates are written with
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
    different spellings become missing, with a note), also with a decimal comma or commas between thousands,
    or a date (then days since 1970-01-01; each with a note), *image* if it holds image files that exist in
    ``folder``, encoded images or arrays, *text* if its strings average at least 3 words, or 40
    characters, and rarely repeat, else *categorical*. A unique string per row and a row number are
    *identifiers*.

    Args:
        column: [N] cells of any type.
        name: its name, for notes and errors.
        folder: where relative image paths start.

    Raises:
        DataError: infinite numbers, or complex ones.

    Cost: a few passes over the distinct values of a string column, over all values of another one.
    """
    cells = column.to_numpy(dtype=object)
    if holds_images(column, folder):
        return ProfiledColumn(name=name, part="image", values=cells)
    if column.dtype == object and any(is_nested(value) for value in cells):
        left_out = f"column {name} left out: holds lists or objects"
        return ProfiledColumn(name=name, part="nested", values=cells, note=left_out)
    if pd.api.types.is_complex_dtype(column.dtype):
        raise DataError(f"column {name!r} must hold real numbers, got complex ones. Drop it with --drop {name}.")
    distinct, codes = _distinct(column)
    missing = missing_mask(distinct)
    if bool(missing[codes].all()):
        left_out = f"column {name} left out: every value is missing"
        return ProfiledColumn(name=name, part="constant", values=cells, note=left_out)
    numbers = to_numbers(distinct, missing)
    note: str | None = None
    if numbers is None:
        numbers, note = _with_strays(distinct, missing, codes, name)
    if numbers is not None:
        return _numeric(name, numbers[codes], note)
    return _stringlike(name, distinct, missing, codes)


def _distinct(column: pd.Series[Any]) -> tuple[pd.Series[Any], Array]:
    """The distinct values of a column of strings and each row's position in them; else the column itself."""
    if is_textual(column) and pd.api.types.infer_dtype(column, skipna=True) == "string":
        codes, values = pd.factorize(column.to_numpy(dtype=object), use_na_sentinel=False)
        return pd.Series(np.asarray(values, dtype=object), dtype=object), np.asarray(codes)
    return column.reset_index(drop=True), np.arange(len(column))


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
    return isinstance(value, Image.Image)


def _with_strays(distinct: pd.Series[Any], missing: Array, codes: Array, name: str) -> tuple[Array | None, str | None]:
    """A column of numbers with a few strays ("unknown"), which become missing, or in another notation; with a note."""
    cells = distinct.to_numpy(dtype=object)
    if not all(isinstance(value, (str, int, float)) for value in cells[~missing]):
        return None, None  # dates, bytes and the like are no strays
    numbers = np.array([as_number(value) for value in cells], dtype=np.float64)
    note = _strays(numbers, cells, missing, codes)
    if note is not None:
        return numbers, f"column {name}: {note}"
    if not all(isinstance(value, str) for value in cells[~missing]):
        return None, None
    texts = ["" if gone else value.strip() for value, gone in zip(cells.tolist(), missing.tolist(), strict=True)]
    if sum(not FIGURES.fullmatch(text) for text in texts[:ROWS_TO_JUDGE]) > STRAY_TOKENS:
        return None, None
    for notation in NOTATIONS:
        numbers = notation.values(texts)
        note = _strays(numbers, cells, missing, codes)
        if note is not None:
            example = next(text for text, number in zip(texts, numbers, strict=True) if not np.isnan(number))
            told = f"column {name}: {example!r} and the like read as {notation.name}"
            return numbers, f"{told}; {note}" if note else told
    return None, None


def _strays(numbers: Array, cells: Array, missing: Array, codes: Array) -> str | None:
    """What becomes missing where nearly all cells are numbers ("" if nothing does), or None where fewer are."""
    stray = np.isnan(numbers) & ~missing
    tokens = sorted({str(value) for value in cells[stray]})
    count, present = int(stray[codes].sum()), int((~missing[codes]).sum())
    if count > STRAY_SHARE * present or len(tokens) > STRAY_TOKENS or len(np.unique(numbers[~np.isnan(numbers)])) < 5:
        return None
    shown = quoted((repr(token) for token in tokens), limit=STRAY_TOKENS)
    return f"{count} values that are not numbers taken as missing ({shown})" if count else ""


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


def _stringlike(name: str, distinct: pd.Series[Any], missing: Array, codes: Array) -> ProfiledColumn:
    """Free text, categories, a constant or an identifier, by length, words and repetition."""
    texts = to_texts(distinct.tolist())
    stripped = [None if gone else text.strip() for text, gone in zip(texts, missing, strict=True)]
    rows = codes[~missing[codes]]
    different = len({text for text in stripped if text is not None})
    characters = float(np.median(np.array([len(text) for text in texts])[rows]))
    words = float(np.mean(np.array([len(text[:2000].split()) for text in texts])[rows]))
    values = np.array(stripped, dtype=object)[codes]
    part: Part = "categorical"
    note: str | None = None
    if _is_free_text(texts, words, characters) and different > max(DISTINCT_OF_TEXT * len(rows), 1):
        part, values = "text", np.array(texts, dtype=object)[codes]
    elif different == 1 and len(rows) == len(codes):
        shown = next(text for text in stripped if text is not None)
        part, note = "constant", f"column {name} left out: always {shown[:40]!r}"
    elif different == len(codes) and len(codes) >= ROWS_TO_JUDGE:
        part, note = "identifier", f"column {name} left out: another value in every row"
    return ProfiledColumn(name=name, part=part, values=values, note=note, characters=characters, distinct=different)


def _is_free_text(texts: list[str], words: float, characters: float) -> bool:
    """Several words, or many characters in a script without spaces."""
    spaced = words >= 2 or not all(text[:2000].isascii() for text in texts[:100])
    return spaced and (words >= WORDS_OF_TEXT or characters >= CHARACTERS_OF_TEXT)
