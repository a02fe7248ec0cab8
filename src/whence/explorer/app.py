"""The routes: every page as HTML and, with ``.json`` behind its address, as JSON."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from whence.explorer.export import exported
from whence.explorer.guard import Door, Guard
from whence.explorer.incoming import LARGEST_IMAGE
from whence.explorer.pages import PAGES, Page, page_html, problem_html
from whence.explorer.problems import Problem, told
from whence.explorer.queue import card_of
from whence.explorer.render import static_files
from whence.explorer.scatter import points
from whence.explorer.site import Site, decide
from whence.explorer.why import answer_page, refused_page

__all__ = ["application"]

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
Job: TypeAlias = Callable[[Request], Awaitable[Any]]

_LARGEST_JSON = 2**16
_MOST_FIELDS = 4_000
_LARGEST_FIELD = 2**20
_KINDS = {".csv": "text/csv; charset=utf-8", ".jsonl": "application/jsonl"}


def application(site: Site, door: Door) -> Guard:
    """Return the web application of an explorer, guarded.

    Args:
        site: What it shows.
        door: Where it listens and what opens it.
    """
    routes = [Route("/static/{name}", _static, methods=["GET"])]
    for page in PAGES:
        routes += [
            Route(page.path, _html(site, page), methods=["GET"]),
            Route(f"/{page.name}.json", _json(_of(page.view, site)), methods=["GET"]),
        ]
    why = next(page for page in PAGES if page.name == "why")
    routes += [
        Route("/why", _answered(site, why), methods=["POST"]),
        Route("/why.json", _json(_asking(site)), methods=["POST"]),
        Route("/points.json", _json(_of(points, site)), methods=["GET"]),
        Route("/card.json", _json(_of(_card, site)), methods=["GET"]),
        Route("/decisions.json", _json(_deciding(site)), methods=["POST"]),
        Route("/retrain.json", _json(_of(lambda site, _: site.retraining.told(), site)), methods=["GET"]),
        Route("/retrain.json", _json(_retraining(site)), methods=["POST"]),
        Route("/export/file", _file(site), methods=["GET"]),
    ]
    handlers = {Exception: _problem(site), HTTPException: _problem(site)}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), door)


def _of(view: Callable[[Site, Any], Any], site: Site) -> Job:
    """Return a job that makes something of the address alone."""

    async def job(request: Request) -> Any:
        return await run_in_threadpool(view, site, request.query_params)

    return job


def _card(site: Site, given: Any) -> dict[str, Any]:
    """Return what is shown of the row at a position."""
    text = given.get("position", "")
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) >= len(site.opened):
        raise Problem(404, "not_found", f"position must lie in 0 to {len(site.opened) - 1}, got {text[:40]!r}.")
    return card_of(site.opened, site.decisions.all(), int(text))


def _asking(site: Site) -> Job:
    async def job(request: Request) -> Any:
        sent, image = await _form(request)
        return await run_in_threadpool(answer_page, site, sent, image)

    return job


def _deciding(site: Site) -> Job:
    async def job(request: Request) -> Any:
        return await run_in_threadpool(decide, site, await _sent(request))

    return job


def _retraining(site: Site) -> Job:
    async def job(request: Request) -> Any:
        await _sent(request)
        if not site.edit:
            raise Problem(403, "read_only", "the explorer must be started with --edit to train again.")
        return site.retraining.start()

    return job


def _html(site: Site, page: Page) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            return HTMLResponse(
                await run_in_threadpool(lambda: page_html(site, page, page.view(site, request.query_params)))
            )
        except Exception as error:  # whatever goes wrong is a page that says so
            return _as_page(site, error)

    return answer


def _answered(site: Site, page: Page) -> Handler:
    async def answer(request: Request) -> Response:
        status = 200
        try:
            sent, image = await _form(request)
            try:
                found = await run_in_threadpool(answer_page, site, sent, image)
            except Problem as problem:  # what was typed stays in the form
                status, found = problem.status, refused_page(site, sent, str(problem))
            return HTMLResponse(await run_in_threadpool(page_html, site, page, found), status)
        except Exception as error:  # whatever goes wrong is a page that says so
            return _as_page(site, error)

    return answer


def _json(job: Job) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            text = json.dumps(await job(request), allow_nan=False, ensure_ascii=True)
            return Response(text, media_type="application/json")
        except Exception as error:  # whatever goes wrong has the one error shape
            return _as_json(error)

    return answer


def _file(site: Site) -> Handler:
    async def answer(request: Request) -> Response:
        ending = request.query_params.get("ending", "")
        try:
            body = await run_in_threadpool(exported, site, ending)
        except Exception as error:  # whatever goes wrong is a page that says so
            return _as_page(site, error)
        headers = {"content-disposition": f'attachment; filename="decided{ending}"'}
        return Response(body, media_type=_KINDS.get(ending, "application/octet-stream"), headers=headers)

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


async def _form(request: Request) -> tuple[dict[str, str], bytes | None]:
    """Return the texts of a form, and the bytes of its image."""
    try:
        form = await request.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=_LARGEST_FIELD)
    except HTTPException as error:
        raise Problem(400, "bad_request", "the form must be whole, its fields not too long.") from error
    try:
        texts = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        image = form.get("image")
        body = await image.read(LARGEST_IMAGE + 1) if isinstance(image, UploadFile) else None
    finally:
        await form.close()
    return texts, body


def _static(request: Request) -> Response:
    body, kind = static_files().get(request.path_params["name"], (b"", ""))
    if not kind:
        raise HTTPException(404)
    return Response(body, headers={"content-type": kind})


def _noted(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return an error as it is told; where it is a mistake of ours, say in the log where it happened.

    Its message stays out: it may hold text of the data, and the log is a terminal.
    """
    status, found = told(error)
    if status >= 500:
        where = "".join(traceback.format_tb(error.__traceback__))
        logging.getLogger(__name__).error("%s at\n%s", type(error).__name__, where)
    return status, found


def _as_json(error: Exception) -> Response:
    status, found = _noted(error)
    return JSONResponse(found, status)


def _as_page(site: Site, error: Exception) -> Response:
    status, found = _noted(error)
    return HTMLResponse(problem_html(site, status, found), status)


def _problem(site: Site) -> Callable[[Request, Exception], Response]:
    """Return what answers where no route does, or where one failed."""

    def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            code = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "bad_request")
            error = Problem(error.status_code, code, f"there is nothing at {request.url.path[:80]!r}.")
        if request.url.path.endswith(".json") or request.method != "GET":
            return _as_json(error)
        return _as_page(site, error)

    return answer
