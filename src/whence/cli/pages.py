"""Where a command may write a page."""

from __future__ import annotations

from pathlib import Path

from whence.errors import DataError

__all__ = ["check_page"]

_OURS = '<meta name="generator" content="whence">'
_HEAD = 2_000  # characters: our mark is among the first


def check_page(page: Path | None) -> None:
    """Raise unless a page can be written, before anything is computed: a new .html file, or an earlier page of ours.

    Raises:
        DataError: It is another file, has another ending, or its folder is not there.
    """
    if page is None:
        return
    if page.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"page must be an .html file, got {str(page)!r}. Name another with --out.")
    if not page.parent.is_dir():
        raise DataError(f"page {str(page)!r} must be writable, got: no such folder. Make it, or name another --out.")
    try:
        if not page.exists():
            return
        with page.open(encoding="utf-8", errors="replace") as file:
            ours = _OURS in file.read(_HEAD)
    except OSError as error:
        raise DataError(f"page {str(page)!r} must be writable, got: {error.strerror or error}.") from error
    if not ours:
        raise DataError(f"page must be a new file or an earlier page, got {str(page)!r}. Name another with --out.")
