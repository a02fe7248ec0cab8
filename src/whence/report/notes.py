"""What a reader of data did, in as few words as a person reads before the first result."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["digest"]

_LEFT_OUT = re.compile(r"column (.+) left out: (.+)", re.DOTALL)
_READ_AS = re.compile(r"column (.+?): .+? and the like read as ([^;]+)(?:; (.+))?", re.DOTALL)
_MANY = re.compile(r"column (.+) has (\d+) categories")
_NAMED = 6


def digest(notes: Iterable[str]) -> list[str]:
    """Return a reader's notes with those that say the same of several columns put together.

    Args:
        notes: As in ``LabelledData.notes``.

    Returns:
        Short statements, in the order of their first notes.

    Example:
        >>> digest(["column a left out: always 1", "2 rows have empty text", "column b left out: always 'x'"])
        ['columns a, b left out: always the same value', '2 rows have empty text']
    """
    found: dict[str, list[tuple[str, str | None]]] = {}
    for note in notes:
        told, name = _kind(note)
        found.setdefault(told, []).append((note, name))
    return [_told(told, of) for told, of in found.items()]


def _told(told: str, of: list[tuple[str, str | None]]) -> str:
    """Return what several columns have in common; of a single one its note as it is."""
    names = [name for _, name in of if name is not None]
    return told.replace("\0", _columns(names)) if len(names) > 1 else of[0][0]


def _kind(note: str) -> tuple[str, str | None]:
    """Return a note without its column's name, a zero character in its place, and that name."""
    if match := _LEFT_OUT.fullmatch(note):
        name, why = match.groups()
        why = "always the same value" if why.startswith("always ") else why.split(";")[0]
        return f"\0 left out: {why}", name
    if match := _READ_AS.fullmatch(note):
        name, notation, strays = match.groups()
        return f"\0 read as {notation}" + (f", {strays}" if strays else ""), name
    if match := _MANY.fullmatch(note):
        return "many categories in \0", f"{match.group(1)} ({int(match.group(2)):,})"
    return note, None


def _columns(names: list[str]) -> str:
    shown = ", ".join(name if len(name) <= 40 else name[:39] + "…" for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"column{'s' if len(names) > 1 else ''} {shown}{more}"
