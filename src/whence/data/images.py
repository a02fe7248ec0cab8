"""Images from files, bytes or arrays to one uint8 array [N, H, W, C]."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from whence.errors import DataError

__all__ = ["ImageSource", "decode_cells", "decode_images"]

Array: TypeAlias = "np.ndarray[Any, Any]"

LARGEST_SIDE = 64
SMALLEST_SIDE = 16
GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N", "LA", "La")


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """A name for messages and how to get at the image: a path or the bytes of a file."""

    name: str
    file: Path | bytes


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What one look at the head of an image file tells."""

    width: int
    height: int
    grey: bool
    frames: int


def decode_images(sources: Sequence[ImageSource], size: int | None = None) -> tuple[Array, tuple[str, ...]]:
    """Read images, turn them upright, bring them to one size, and say what was done.

    All images become greyscale if all are, else RGB (transparency over white). Images that are all of
    one size of at most 64 pixels keep it; otherwise the longer side becomes at most 64, or ``size``.

    Args:
        sources: N images.
        size: the longer side in pixels that all images are brought to, or None.

    Returns:
        uint8 [N, H, W, C], and notes.

    Raises:
        DataError: an image that is missing, corrupt or implausibly large; the message names it.

    Cost: the head of every file, then every file once.
    """
    headers = [_open(source, _header) for source in sources]
    grey = all(header.grey for header in headers)
    width, height, notes = _common_size(headers, size)
    images = np.empty((len(sources), height, width, 1 if grey else 3), dtype=np.uint8)
    for row, source in enumerate(sources):
        pixels = _open(source, lambda image: _pixels(image, width, height, grey))
        images[row] = pixels[:, :, None] if grey else pixels
    animated = sum(header.frames > 1 for header in headers)
    if animated:
        notes.append(f"{animated} images have several frames; the first is used")
    mixed = sum(header.grey for header in headers)
    if mixed and not grey:
        notes.append(f"{mixed} of {len(headers)} images are greyscale and were turned into RGB")
    return images, tuple(notes)


def decode_cells(
    cells: Sequence[Any], column: str, folder: Path | None = None, size: int | None = None
) -> tuple[Array, tuple[str, ...]]:
    """Images out of the cells of a table: paths, bytes, {"bytes", "path"} structs, or Pillow images.

    Args:
        cells: N cells.
        column: name of the column, for messages.
        folder: where relative paths start.
        size: as in ``decode_images``.

    Returns:
        uint8 [N, H, W, C], and notes.

    Raises:
        DataError: a cell without an image, or one that cannot be read; the message names its row.
    """
    return decode_images([_cell_source(cell, row, column, folder) for row, cell in enumerate(cells)], size)


def _cell_source(cell: Any, row: int, column: str, folder: Path | None) -> ImageSource:
    """Where the image of one cell is."""
    name = f"{column} of row {row}"
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, (bytes, bytearray)):
        return ImageSource(name=name, file=bytes(cell))
    if isinstance(cell, str) and cell.strip() and "\0" not in cell:
        return ImageSource(name=cell, file=(folder or Path(".")) / cell)
    if isinstance(cell, Image.Image):
        buffer = io.BytesIO()
        cell.save(buffer, format="TIFF" if cell.mode == "F" else "PNG")
        return ImageSource(name=name, file=buffer.getvalue())
    raise DataError(
        f"image column {column!r} must hold image files or encoded images, got {type(cell).__name__} in row {row}. "
        "Choose another column with --image."
    )


def _open(source: ImageSource, use: Callable[[Image.Image], Any]) -> Any:
    """Open one image, use it, close it; whatever is wrong with it becomes one DataError that names it."""
    file = source.file if isinstance(source.file, Path) else io.BytesIO(source.file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return use(image)
    except FileNotFoundError as error:
        raise DataError(f"image {source.name} must exist, got no such file. Fix the path.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"image {source.name} must have at most {Image.MAX_IMAGE_PIXELS or 0:,} pixels, got more. "
            "Reduce or remove it."
        ) from error
    except Exception as error:  # damaged files make the decoders raise nearly anything
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        if reason.startswith("cannot identify"):
            reason = "not an image, or damaged"
        raise DataError(f"image {source.name} must be readable, got: {reason}. Repair or remove it.") from error


def _header(image: Image.Image) -> _Header:
    """Size and colour of an image without decoding it."""
    width, height = image.size
    if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
        width, height = height, width
    grey = image.mode in GREY_MODES
    return _Header(width=width, height=height, grey=grey, frames=getattr(image, "n_frames", 1))


def _common_size(headers: Sequence[_Header], size: int | None) -> tuple[int, int, list[str]]:
    """Width and height of all images, and the note that says why."""
    shapes = {(header.width, header.height) for header in headers}
    if len(shapes) == 1:
        width, height = next(iter(shapes))
        limit = size if size is not None else min(LARGEST_SIDE, max(width, height))
        scale = limit / max(width, height)
        target = (max(round(width * scale), 1), max(round(height * scale), 1))
        if target == (width, height):
            return width, height, []
        return *target, [f"images resized from {width}x{height} to {target[0]}x{target[1]} pixels"]
    smallest = min(min(shape) for shape in shapes)
    side = size if size is not None else max(min(LARGEST_SIDE, smallest), SMALLEST_SIDE)
    largest = max(max(shape) for shape in shapes)
    note = f"images of {len(shapes)} sizes ({smallest} to {largest} pixels a side) resized to {side}x{side} pixels"
    return side, side, [note]


def _pixels(image: Image.Image, width: int, height: int, grey: bool) -> Array:
    """uint8 [H, W] or [H, W, 3]."""
    if image.format == "JPEG":
        image.draft(None, (2 * width, 2 * height))  # decode at a fraction of the size: much faster
    image.load()
    upright = ImageOps.exif_transpose(image)
    upright = _eight_bit(upright)
    if upright.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, layer)
    upright = upright.convert("L" if grey else "RGB")
    if upright.size != (width, height):
        upright = upright.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(upright, dtype=np.uint8)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Images of 16 and 32 bits brought to 0 … 255 instead of being clipped."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image, dtype=np.float64)
    if image.mode != "F" and values.min() >= 0 and values.max() <= 255:
        return Image.fromarray(values.astype(np.uint8))
    if image.mode != "F" and values.min() >= 0 and values.max() <= 65535:
        return Image.fromarray((values / 257.0).round().astype(np.uint8))
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    scaled = np.nan_to_num((values - low) / (high - low or 1.0)) * 255.0
    return Image.fromarray(scaled.round().astype(np.uint8))
