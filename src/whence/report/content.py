"""What a reader sees of a row: its text, its image or its cells, small enough to embed in a page."""

import base64
import io
import math
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import pandas as pd
from PIL import Image

from whence.data.labelled import LabelledData

__all__ = ["LARGEST_SIDE", "Cell", "Content", "content_of"]

LARGEST_SIDE = 96  # pixels; a larger image is reduced for the page, a smaller one is kept as it is
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"} | {127: "␡"}
_HEAD = 0.75


class Cell(TypedDict):
    """One cell of a table row, its value already text."""

    name: str
    value: str
    missing: bool


class Content(TypedDict):
    """A row's content: ``text``, or ``png`` (base64) with width and height in pixels, or ``cells``.

    ``omitted`` counts the characters or cells that were left out to keep the page small.
    """

    kind: Literal["text", "image", "tabular"]
    text: NotRequired[str]
    png: NotRequired[str]
    width: NotRequired[int]
    height: NotRequired[int]
    cells: NotRequired[list[Cell]]
    omitted: NotRequired[int]


def content_of(data: LabelledData, row: int, *, characters: int = 2000, cells: int = 64) -> Content:
    """The content of one row, ready for JSON and for a page.

    Args:
        data: The data set.
        row: Position of the row, 0 ≤ row < N.
        characters: Longer texts keep their first three quarters and their end, cut between words.
        cells: Columns kept; the default shows every column of all but very wide tables.

    Returns:
        Text with control characters made visible and lone surrogates replaced; an image as a PNG of at most
        96 pixels a side, smaller ones at their own size; table cells as short text, missing ones marked.

    Cost:
        One row; an image is compressed once.

    Example:
        >>> import numpy as np
        >>> data = LabelledData(ids=np.array(["a"]), kind="text", content=["win now"],
        ...                     labels=np.array([0]), classes=("ham", "spam"))
        >>> content_of(data, 0)
        {'kind': 'text', 'text': 'win now'}
    """
    content = data.content
    if isinstance(content, list):
        return _text(content[row], characters)
    if isinstance(content, pd.DataFrame):
        return _cells(content, row, cells)
    return _image(content[row])


def _text(text: str, characters: int) -> Content:
    shown, omitted = shorten(text, characters)  # first, for a cell may hold megabytes
    content: Content = {"kind": "text", "text": readable(shown)}
    if omitted:
        content["omitted"] = omitted
    return content


def readable(text: str) -> str:
    """The same text, encodable as UTF-8 and with control characters shown as pictures of themselves."""
    return text.replace("\r\n", "\n").encode("utf-8", "replace").decode("utf-8").translate(_CONTROLS)


def shorten(text: str, characters: int) -> tuple[str, int]:
    """Text of about ``characters`` characters, and how many were left out."""
    if len(text) <= characters:
        return text, 0
    head = text[: int(characters * _HEAD)]
    tail = text[len(text) - (characters - len(head)) :]
    head = head.rsplit(maxsplit=1)[0] if " " in head[-40:] else head
    tail = tail.split(maxsplit=1)[1] if " " in tail[:40].strip() else tail
    return f"{head} […] {tail}", len(text) - len(head) - len(tail)


def _image(pixels: np.ndarray[Any, Any]) -> Content:
    squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels  # [H, W] or [H, W, 3]
    image = Image.fromarray(np.ascontiguousarray(squeezed, dtype=np.uint8))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    png = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"kind": "image", "png": png, "width": image.width, "height": image.height}


def _cells(frame: pd.DataFrame, row: int, cells: int) -> Content:
    kept = frame.columns[:cells]
    content: Content = {
        "kind": "tabular",
        "cells": [_cell(str(name), frame.iat[row, column]) for column, name in enumerate(kept)],
    }
    if len(frame.columns) > cells:
        content["omitted"] = len(frame.columns) - cells
    return content


def _cell(name: str, value: Any) -> Cell:
    missing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    return {"name": readable(name), "value": "" if missing else _value(value), "missing": missing}


def _value(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return f"{number:.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:.6g}"
    return readable(shorten(str(value), 200)[0])
