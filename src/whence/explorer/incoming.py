"""A new input, typed or uploaded, as one row like those of the data."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from whence.data import LabelledData
from whence.data.notations import number_in
from whence.explorer.problems import Problem

__all__ = ["LARGEST_IMAGE", "LARGEST_PIXELS", "LONGEST_TEXT", "field_name", "fields_of", "row_of"]

Array: TypeAlias = "np.ndarray[Any, Any]"

LONGEST_TEXT = 100_000
LARGEST_IMAGE = 8 * 2**20
LARGEST_PIXELS = 16 * 10**6
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
_CHOICES = 60
_LONGEST_CHOICE = 80


def fields_of(data: LabelledData, position: int | None = None) -> list[dict[str, Any]]:
    """Return the fields of a table row to fill in: name, kind, value to begin with and, for few values, choices.

    Args:
        data: The data.
        position: Row to begin with; None for typical values.
    """
    content = data.content
    if not isinstance(content, pd.DataFrame):
        return []
    return [_field(content.iloc[:, place], place, position) for place in range(content.shape[1])]


def field_name(place: int) -> str:
    """Return the form's name of a column, which says nothing of the column's own."""
    return f"cell-{place}"


def _field(cells: pd.Series[Any], place: int, position: int | None) -> dict[str, Any]:
    number = cells.dtype.kind == "f"
    known = cells.dropna()
    start: Any
    if position is not None:
        start = cells.iat[position]
    elif known.empty:
        start = None
    else:
        start = known.median() if number else known.mode().iat[0]
    missing = bool(pd.isna(start))
    values = [] if number else sorted({str(value) for value in known.value_counts().index[:_CHOICES]})
    return {
        "name": str(cells.name),
        "field": field_name(place),
        "kind": "number" if number else "text",
        "value": "" if missing else f"{start:.10g}" if number else str(start),
        "choices": [value for value in values if len(value) <= _LONGEST_CHOICE],
    }


def row_of(data: LabelledData, sent: Mapping[str, Any], image: bytes | None = None) -> LabelledData:
    """Return a new input as data of one row, its label the first class.

    Args:
        data: The audited data.
        sent: ``text``, or a cell for every column.
        image: Bytes of an image file.

    Raises:
        Problem: It is too large, or no such row.
    """
    if data.kind == "text":
        content: Any = [_text(sent)]
    elif data.kind == "tabular":
        content = _cells(data, sent)
    else:
        assert isinstance(data.content, np.ndarray)
        content = _image(image, data.content.shape[1:])
    return replace(
        data, ids=np.array(["new"]), content=content, labels=np.zeros(1, dtype=np.int64), split=None, reference=None,
        notes=(), source="",
    )  # fmt: skip


def _text(sent: Mapping[str, Any]) -> str:
    text = sent.get("text")
    if not isinstance(text, str) or not text.strip():
        raise Problem(400, "bad_request", "text must not be empty. Type some.")
    if len(text) > LONGEST_TEXT:
        raise Problem(413, "too_large", f"text must have at most {LONGEST_TEXT:,} characters, got {len(text):,}.")
    return text


def _cells(data: LabelledData, sent: Mapping[str, Any]) -> pd.DataFrame:
    assert isinstance(data.content, pd.DataFrame)
    columns = []
    for place in range(data.content.shape[1]):
        column = data.content.iloc[:, place]
        columns.append(pd.Series([_cell(column, sent.get(field_name(place), ""))], dtype=column.dtype))
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=[0])
    frame.columns = data.content.columns
    return frame


def _cell(column: pd.Series[Any], sent: Any) -> Any:
    number = column.dtype.kind == "f"
    text = sent.strip() if isinstance(sent, str) else ""
    if len(text) > LONGEST_TEXT:
        raise Problem(413, "too_large", f"a cell must have at most {LONGEST_TEXT:,} characters, got {len(text):,}.")
    if not text:
        return np.nan if number else None
    if not number:
        return text
    value = number_in(text)
    if not np.isfinite(value):
        raise Problem(400, "bad_request", f"column {str(column.name)[:80]!r} must be a number, got {text[:40]!r}.")
    return value


def _image(sent: bytes | None, shape: tuple[int, ...]) -> Array:
    """Return an image file as pixels like the data's [1, H, W, C]; its head is judged before its body."""
    if not sent:
        raise Problem(400, "bad_request", "an image must be chosen. Upload a PNG, JPEG, GIF, BMP or WebP file.")
    if len(sent) > LARGEST_IMAGE:
        raise Problem(413, "too_large", f"an image must have at most {LARGEST_IMAGE // 2**20} MiB.")
    height, width, channels = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(sent), formats=_FORMATS) as image:
                if image.width * image.height > LARGEST_PIXELS:
                    raise Problem(413, "too_large", f"an image must have at most {LARGEST_PIXELS:,} pixels.")
                image.draft("L" if channels == 1 else "RGB", (2 * width, 2 * height))
                upright = ImageOps.exif_transpose(image)
                plain = _over_white(upright).convert("L" if channels == 1 else "RGB")
    except Problem:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Problem(413, "too_large", f"an image must have at most {LARGEST_PIXELS:,} pixels.") from error
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise Problem(400, "bad_image", "an image must be a whole PNG, JPEG, GIF, BMP or WebP file.") from error
    if plain.size != (width, height):
        plain = plain.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.array(plain, dtype=np.uint8).reshape(1, height, width, channels)


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
