"""Reference pages list the public names themselves: ``{{ reference; LEADING NAMES; ROOMS }}``.

Every name of ``whence.__all__`` stands on the page of the room (module) it comes from; the one that names its module
most closely. A name without a page fails the build.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import whence

CALL = re.compile(r"\{\{\s*reference;([^;{}]*);([^;{}]*)\}\}")
PAGES = Path(__file__).parents[1] / "reference"


def rooms() -> dict[str, str]:
    """Return the page of every room that a reference page claims."""
    found: dict[str, str] = {}
    for page in sorted(PAGES.glob("*.md")):
        for call in CALL.finditer(page.read_text("utf-8")):
            found.update(dict.fromkeys(call[2].split(), page.stem))
    return found


def assigned() -> dict[str, list[str]]:
    """Return the public names of every page, in the order of their source."""
    claimed, names = rooms(), {}
    for name in whence.__all__:
        value = getattr(whence, name)
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue
        module = value.__module__.removeprefix("whence.")
        room = max((r for r in claimed if module == r or module.startswith(f"{r}.")), key=len, default=None)
        if room is None:
            raise KeyError(f"no page of the reference claims {module}, the home of {name}")
        line = inspect.getsourcelines(value)[1]
        names.setdefault(claimed[room], []).append((module, line, name))
    return {page: [name for *_, name in sorted(found)] for page, found in names.items()}


def listing(page: str, leading: list[str]) -> str:
    """Return the directives of one page."""
    names = assigned().get(page, [])
    unknown = set(leading) - set(names)
    if unknown:
        raise KeyError(f"reference/{page}.md leads with {sorted(unknown)}, which are not among its names")
    return "\n\n".join(f"::: whence.{name}" for name in [*leading, *(n for n in names if n not in leading)])


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """List the names."""
    return CALL.sub(lambda call: listing(Path(page.file.src_uri).stem, call[1].split()), markdown)
