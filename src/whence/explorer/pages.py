"""The pages of the explorer: where each is, what it shows, and what its template needs besides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from whence.explorer.beside import compare_page
from whence.explorer.classes import classes_page
from whence.explorer.export import export_page
from whence.explorer.groups import TITLES, groups_page
from whence.explorer.queue import SHOWN, asked_of
from whence.explorer.render import render
from whence.explorer.scatter import scatter_page
from whence.explorer.site import Site, queue_page, row_page
from whence.explorer.why import why_page
from whence.report.formats import number

__all__ = ["PAGES", "Page", "page_html", "problem_html"]

View = Callable[[Site, Mapping[str, str]], dict[str, Any]]
Values = Callable[[Site, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Page:
    """A page.

    Args:
        name: Its address, and that of its JSON without ``.json``.
        title: In the navigation; empty where it is not in there.
        view: Makes what it shows, JSON-able.
        values: Makes what the template needs of it.
    """

    name: str
    title: str
    view: View
    values: Values

    @property
    def path(self) -> str:
        """Where it is; the queue is at the root."""
        return "/" if self.name == "queue" else f"/{self.name}"


def _plain(site: Site, page: dict[str, Any]) -> dict[str, Any]:
    return {"found": page}


def _queue(site: Site, page: dict[str, Any]) -> dict[str, Any]:
    told = {name: str(value) for name, value in page["asked"].items()}
    asked = asked_of({**told, "ascending": "1" if page["asked"]["ascending"] else ""}, site.opened)
    return {"page": page, "asked": asked, "shown": SHOWN, "signals": site.opened.signals, "counts": page["counts"]}


def _row(site: Site, page: dict[str, Any]) -> dict[str, Any]:
    return {"found": page, "row": page["row"], "cells": _cells(page["row"]["content"])}


def _why(site: Site, page: dict[str, Any]) -> dict[str, Any]:
    content = page["explanation"]["query"]["content"] if page["explanation"] else {}
    return {"found": page, "cells": _cells(content)}


def _classes(site: Site, page: dict[str, Any]) -> dict[str, Any]:
    values = [abs(value) for row in page["influence"] or [] for value in row if value is not None]
    largest = max(values, default=0.0) or 1.0
    power = math.floor(math.log10(largest))  # one power of ten for the whole table: its numbers are compared
    unit = 10.0**power if power < -1 else 1.0
    scale = {"unit": unit, "name": f"units of {number(unit, 1).removeprefix('1×')} " if power < -1 else ""}
    return {"found": page, "largest": largest, "scale": scale, "example": _strongest(page, largest)}


def _strongest(page: dict[str, Any], largest: float) -> dict[str, Any] | None:
    """Return the influence of largest size, to be told in words."""
    for helped, row in zip(page["classes"], page["influence"] or [], strict=False):
        for leaving, value in zip(page["classes"], row, strict=True):
            if value is not None and abs(value) == largest:
                return {"helped": helped, "leaving": leaving, "value": value}
    return None


def _cells(content: Mapping[str, Any]) -> dict[str, str]:
    return {cell["name"]: cell["value"] for cell in content.get("cells", [])}


PAGES = (
    Page("queue", "Queue", queue_page, _queue),
    Page("map", "Map", scatter_page, _plain),
    Page("classes", "Classes", classes_page, _classes),
    Page("groups", "Groups", lambda site, given: groups_page(site.opened, given.get("column", "")), _plain),
    Page("why", "Why?", why_page, _why),
    Page("compare", "Compare", compare_page, _plain),
    Page("export", "Export & retrain", export_page, _plain),
    Page("row", "", row_page, _row),
)


def page_html(site: Site, page: Page, found: dict[str, Any]) -> str:
    """Return a page of what its view returned."""
    return _rendered(site, f"{page.name}.html", page.name, page.values(site, found))


def problem_html(site: Site, status: int, error: dict[str, Any]) -> str:
    """Return the page of an error."""
    return _rendered(site, "problem.html", "", {**error, "status": status})


def _rendered(site: Site, template: str, here: str, values: dict[str, Any]) -> str:
    data = site.opened.data
    frame = {
        "pages": {page.name: (page.path, page.title) for page in PAGES if page.title}, "here": here,
        "source": data.source or "data in memory", "rows": len(data), "kind": data.kind, "edit": site.edit,
    }  # fmt: skip
    common = {"site": frame, "unit": site.unit or "", "classes": data.classes, "titles": TITLES}
    return render(template, {**common, **values})
