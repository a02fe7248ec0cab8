"""Pages from templates: everything of the data escaped, the look and the macros those of the report."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from whence import report
from whence.report import formats
from whence.report.page import signal_title

__all__ = ["STATIC", "render", "static_files"]

_OWN = Path(__file__).parent
_REPORT = Path(report.__file__).parent / "templates"
STATIC = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


def render(template: str, values: dict[str, Any]) -> str:
    """Return a page."""
    page = _environment().get_template(template).render(values)
    return page.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate in a name cannot be written


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_OWN / "templates", _REPORT]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,  # an upgrade under a running explorer does not mix templates of two versions
    )
    environment.filters |= {name: getattr(formats, name) for name in formats.__all__ if name.islower()}
    environment.filters |= {"signal_title": signal_title, "row_link": _row_link, "in_words": _in_words}
    return environment


@cache
def static_files() -> dict[str, tuple[bytes, str]]:
    """Return our own files by name with their media type: nothing else can be asked for."""
    own = sorted((_OWN / "static").iterdir())
    style = [_REPORT / "style.css", _REPORT / "plots.css", *(path for path in own if path.suffix == ".css")]
    files = {path.name: (path.read_bytes(), STATIC[path.suffix]) for path in own if path.suffix == ".js"}
    files["theme.js"] = ((_REPORT / "theme.js").read_bytes(), STATIC[".js"])
    files["style.css"] = (b"\n".join(path.read_bytes() for path in style), STATIC[".css"])
    return files


def _row_link(id_: str) -> str:
    """Address of a row's page, whatever its id holds."""
    return "/row?" + jinja2.filters.do_urlencode({"id": id_})


def _in_words(name: str) -> str:
    """A name of a column or signal as a person reads it."""
    return name.replace("self_influence", "self-influence").replace("_", " ")
