"""The routes: every page as HTML and, with ``.json`` behind its address, as JSON."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from whence.explorer.guard import Door, Guard
from whence.explorer.problems import Problem, told
from whence.explorer.queue import SHOWN, asked_of
from whence.explorer.render import render, static_files
from whence.explorer.site import Site, decide, queue_page, row_page

__all__ = ["application"]

View = Callable[[Site, Mapping[str, str]], dict[str, Any]]
Values = Callable[[Site, dict[str, Any]], dict[str, Any]]

_LARGEST_JSON = 2**16


@dataclass(frozen=True)
class _Page:
    """A page: its template, what it shows, and what the template needs besides."""

    name: str
    title: str
    template: str
    view: View
    values: Values
    linked: bool = True

    @property
    def path(self) -> str:
        """Where it is; the queue is at the root."""
        return "/" if self.name == "queue" else f"/{self.name}"


def application(site: Site, door: Door) -> Guard:
    """Return the web application of an explorer, guarded.

    Args:
        site: What it shows.
        door: Where it listens and what opens it.
    """
    routes = [Route("/static/{name}", _static, methods=["GET"])]
    for page in _pages():
        routes += [
            Route(page.path, _html(site, page), methods=["GET"]),
            Route(f"/{page.name}.json", _json(site, page.view), methods=["GET"]),
        ]
    routes.append(Route("/decisions.json", _decide(site), methods=["POST"]))
    handlers = {Exception: _problem(site), HTTPException: _problem(site)}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), door)


def _pages() -> list[_Page]:
    return [
        _Page("queue", "Queue", "queue.html", queue_page, _queue_values),
        _Page("row", "Row", "row.html", row_page, _row_values, linked=False),
    ]


def _queue_values(site: Site, page: dict[str, Any]) -> dict[str, Any]:
    asked = asked_of({name: str(value) for name, value in page["asked"].items()} | _ascending(page), site.opened)
    return {"page": page, "asked": asked, "shown": SHOWN, "signals": site.opened.signals, "counts": page["counts"],
            "classes": site.opened.data.classes}  # fmt: skip


def _ascending(page: dict[str, Any]) -> dict[str, str]:
    return {"ascending": "1" if page["asked"]["ascending"] else ""}


def _row_values(site: Site, page: dict[str, Any]) -> dict[str, Any]:
    cells = {cell["name"]: cell["value"] for cell in page["row"]["content"].get("cells", [])}
    return {"found": page, "row": page["row"], "cells": cells, "classes": site.opened.data.classes}


def _html(site: Site, page: _Page) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        def made() -> str:
            found = page.view(site, request.query_params)
            return _rendered(site, page.template, page.name, page.values(site, found))

        try:
            return HTMLResponse(await run_in_threadpool(made))
        except Exception as error:
            return _as_page(site, error)

    return answer


def _json(site: Site, view: View) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        try:
            return _told(await run_in_threadpool(view, site, request.query_params))
        except Exception as error:
            status, found = _noted(error)
            return JSONResponse(found, status)

    return answer


def _decide(site: Site) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        try:
            return _told(await run_in_threadpool(decide, site, await _sent(request)))
        except Exception as error:
            status, found = _noted(error)
            return JSONResponse(found, status)

    return answer


async def _sent(request: Request) -> Any:
    """Return the JSON that a request carries."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Problem(415, "bad_request", "the body must be JSON.")
    body = await request.body()
    if len(body) > _LARGEST_JSON:
        raise Problem(413, "too_large", f"the body must have at most {_LARGEST_JSON} bytes, got {len(body)}.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "bad_request", "the body must be JSON.") from error


def _told(found: dict[str, Any]) -> Response:
    text = json.dumps(found, allow_nan=False, ensure_ascii=True)
    return Response(text, media_type="application/json")


def _static(request: Request) -> Response:
    body, kind = static_files().get(request.path_params["name"], (b"", ""))
    if not kind:
        raise HTTPException(404)
    return Response(body, headers={"content-type": kind})


def _rendered(site: Site, template: str, here: str, values: dict[str, Any]) -> str:
    data = site.opened.data
    frame = {
        "pages": {page.name: (page.path, page.title) for page in _pages() if page.linked}, "here": here,
        "source": data.source or "data in memory", "rows": len(data), "kind": data.kind, "edit": site.edit,
    }  # fmt: skip
    return render(template, {"site": frame, "unit": site.unit or "", **values})


def _noted(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return an error as it is told; where it is a mistake of ours, say in the log where it happened.

    Its message stays out: it may hold text of the data, and the log is a terminal.
    """
    status, found = told(error)
    if status >= 500:
        where = "".join(traceback.format_tb(error.__traceback__))
        logging.getLogger(__name__).error("%s at\n%s", type(error).__name__, where)
    return status, found


def _as_page(site: Site, error: Exception) -> Response:
    """Return an error as a page."""
    status, found = _noted(error)
    return HTMLResponse(_rendered(site, "problem.html", "", {**found, "status": status}), status)


def _problem(site: Site) -> Callable[[Request, Exception], Response]:
    """Return what answers where no route does, or where one failed."""

    def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            code = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "bad_request")
            error = Problem(error.status_code, code, f"there is nothing at {request.url.path[:80]!r}.")
        if request.url.path.endswith(".json") or request.method != "GET":
            status, found = _noted(error)
            return JSONResponse(found, status)
        return _as_page(site, error)

    return answer
