"""Where a command may write a page, and the pages of a run, linked from its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from whence.audit import Run
from whence.errors import DataError
from whence.report import render

__all__ = ["check_page", "write_run_page"]

_OURS = '<meta name="generator" content="whence">'
_HEAD = 2_000  # characters: our mark is among the first
_PAGES = {
    "evaluation": "How right is it?", "relabel": "Relabelled", "prune": "Pruned", "cleanse": "Cleansed",
    "sources": "Sources", "curves": "Learning curves",
}  # fmt: skip


def write_run_page(run: Run, name: str, found: dict[str, Any], page: str) -> Path:
    """Write what was found and its page into a run, and link all such pages from the report.

    Args:
        run: The run.
        name: Of both files, without their endings; one of the known ones.
        found: JSON-able.
        page: HTML.

    Returns:
        Where the page lies.

    Raises:
        DataError: The run cannot be written to.
    """
    target = run.folder / f"{name}.html"
    try:
        text = json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False)
        # what cannot be written, half a surrogate pair in a cell, becomes its escape in JSON
        (run.folder / f"{name}.json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        target.write_text(page, encoding="utf-8")
        there = {f"{known}.html": title for known, title in _PAGES.items() if (run.folder / f"{known}.html").is_file()}
        (run.folder / "report.html").write_text(render(run.summary, there), encoding="utf-8")
    except OSError as error:
        raise DataError(f"run {str(run.folder)!r} must be writable, got: {error.strerror or error}.") from error
    return target


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
