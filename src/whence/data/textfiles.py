"""A text file as text and back: unpacked, decoded, and written with the encoding and byte order mark that it had."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.errors import DataError

__all__ = ["TextFile", "read_text"]

LARGEST_UNPACKED = 8 * 2**30
BLOCK = 1 << 22
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)
EXCEL = "cp1252"  # what Excel writes where it is asked for plain CSV in Western Europe and America
NAME_IT = "Save it as UTF-8, or name its encoding with --encoding"


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """The text of a file, and how it was encoded.

    Args:
        text: All of it, line ends as they are, without a byte order mark.
        encoding: As Python names it.
        marked: Whether a byte order mark came first that ``encoding`` does not write by itself.
        note: What was decided about the encoding, or None.
    """

    text: str
    encoding: str
    marked: bool
    note: str | None = None

    def encoded(self, text: str) -> bytes:
        """Return another text as bytes of the same encoding; what it cannot hold becomes its escape."""
        return (("\ufeff" if self.marked else "") + text).encode(self.encoding, "backslashreplace")


def read_text(path: Path, encoding: str | None = None, *, detect: bool = False) -> TextFile:
    """Unpack and decode a file.

    Args:
        path: Plain, .gz, .xz or .bz2.
        encoding: As Python names it; None for UTF-8.
        detect: Whether a file that is not UTF-8 is taken for Windows-1252, unless most of what lies beyond ASCII is
            valid UTF-8 (then the file is damaged, and read as anything else would be gibberish).

    Raises:
        DataError: Unreadable, damaged, empty or binary, or in another encoding (the byte position is named).

    Cost: one pass; memory of twice the unpacked size.
    """
    raw = _unpacked(path)
    if encoding is None and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} must be UTF-8, got UTF-16. Save it as UTF-8, or read it with --encoding utf-16.")
    if not raw.strip(b"\xef\xbb\xbf \t\r\n"):
        raise DataError(f"{path} must not be empty, got no rows. Choose another file.")
    zero = raw.find(b"\0") if encoding is None else -1
    if zero >= 0:
        raise DataError(f"{path} must be text, got a zero byte at position {zero}. {NAME_IT}.")
    found = _decoded(path, raw, encoding, detect)
    if "\0" in found.text:
        raise DataError(f"{path} must be text of encoding {encoding}, got a zero character. Name another --encoding.")
    if not found.text.strip():
        raise DataError(f"{path} must not be empty, got no rows. Choose another file.")
    return found


def _decoded(path: Path, raw: bytes, encoding: str | None, detect: bool) -> TextFile:
    """Decode by the encoding that was named, else as UTF-8, else as Windows-1252 where that is likely."""
    try:
        return _text_file(raw.decode(encoding or "utf-8"), encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None or not detect or not _looks_western(raw):
            raise _undecodable(path, raw, error, encoding) from error
        try:
            note = "encoding: Windows-1252, as the file is not UTF-8 (--encoding names another)"
            return _text_file(raw.decode(EXCEL), EXCEL, note)
        except UnicodeDecodeError:
            raise _undecodable(path, raw, error, None) from error


def _text_file(text: str, encoding: str, note: str | None = None) -> TextFile:
    """Return a decoded text without its byte order mark."""
    marked = text.startswith("\ufeff")
    return TextFile(text=text[1:] if marked else text, encoding=encoding, marked=marked, note=note)


def _looks_western(raw: bytes) -> bool:
    """Whether fewer characters beyond ASCII are valid UTF-8 than bytes are not: so it is not UTF-8 with some damage."""
    if raw.startswith(codecs.BOM_UTF8):
        return False
    beyond = [char for char in raw.decode("utf-8", "surrogateescape") if char > "\x7f"]
    broken = sum("\udc80" <= char <= "\udcff" for char in beyond)
    return len(beyond) - broken < broken


def _undecodable(path: Path, raw: bytes, error: UnicodeDecodeError, encoding: str | None) -> DataError:
    """Return the error that names the byte and its line."""
    line = raw.count(b"\n", 0, error.start) + 1
    remedy = NAME_IT if encoding is None else "Name another --encoding"
    return DataError(
        f"{path} must be {encoding or 'UTF-8'}, got byte 0x{raw[error.start]:02x} at position {error.start} "
        f"(line {line}). {remedy}."
    )


def _unpacked(path: Path) -> bytes:
    """All bytes of a file, decompressed by its ending, up to a limit that a bomb does not pass."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    opener = openers.get(path.suffix.lower(), open)
    blocks: list[bytes] = []
    total = 0
    try:
        with opener(path, "rb") as stream:
            while block := stream.read(BLOCK):
                blocks.append(block)
                total += len(block)
                if total > LARGEST_UNPACKED:
                    raise DataError(
                        f"{path} must unpack to at most {LARGEST_UNPACKED >> 30} GiB, got more. Save it as parquet."
                    )
    except PermissionError as error:
        raise DataError(f"{path} must be readable, got permission denied. Change its permissions.") from error
    except DAMAGED as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        what = "a whole compressed file" if opener else "readable"
        raise DataError(f"{path} must be {what}, got: {reason}. Copy or download it again.") from error
    return b"".join(blocks)
