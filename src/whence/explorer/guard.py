"""Who may ask: the holder of the token, from our own pages, by the address that was printed."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TypeAlias
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whence.explorer.problems import Problem, told

__all__ = ["LARGEST_BODY", "POLICY", "Door", "Guard"]

LARGEST_BODY = 16 * 2**20
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with "no-referrer" browsers send forms with the origin "null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "x-frame-options": "DENY",
}
_READING = ("GET", "HEAD")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
Pairs: TypeAlias = list[tuple[bytes, bytes]]


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where the explorer listens, and what opens it.

    Args:
        host: Address of this machine.
        port: Port.
        token: Random text.
    """

    host: str
    port: int
    token: str

    @property
    def hosts(self) -> frozenset[str]:
        """What a request's Host may be: the address that was printed, or the names of this machine itself."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        names = _LOOPBACK if host in _LOOPBACK else (host,)
        return frozenset(f"{name}:{self.port}" for name in names)

    @property
    def origins(self) -> frozenset[str]:
        """Origins of our own pages."""
        return frozenset(f"http://{host}" for host in self.hosts)

    @property
    def cookie(self) -> str:
        """Name of the cookie; cookies are shared by all ports of a machine, so it carries the port."""
        return f"whence-{self.port}"

    @property
    def address(self) -> str:
        """What to print."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/?token={self.token}"

    def opened_by(self, token: str | None) -> bool:
        """Whether a token is the right one, compared in constant time."""
        return token is not None and hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode("utf-8"))


class Guard:
    """Lets requests through that may be answered, and says in every answer what a browser may do with it."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        try:
            self._check_sender(scope, headers)
            entered = self._entered(scope, headers)
            _check_length(headers)
        except Problem as problem:
            await _refuse(problem, scope, send)
            return
        if entered is not None:
            await _answer(send, 303, b"", [(b"location", entered.encode()), (b"set-cookie", self._cookie())])
            return
        await self.app(scope, _limited(receive), _protected(send))

    def _check_sender(self, scope: Scope, headers: Headers) -> None:
        """Raise unless a request is for our address and no other site made it."""
        if headers.get("host", "").lower() not in self.door.hosts:
            raise Problem(421, "wrong_host", "the address must be the one that whence printed.")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = origin is not None and origin.lower() not in self.door.origins
        if foreign or site not in ("none", "same-origin"):
            raise Problem(403, "wrong_origin", "a request must come from the explorer's own pages.")
        if scope["method"] not in _READING and origin is None and not _bearer(headers):
            raise Problem(403, "wrong_origin", "a change must come from the explorer's own pages.")

    def _entered(self, scope: Scope, headers: Headers) -> str | None:
        """Return where to send somebody who comes with the token in the address; None where the cookie is there.

        Raises:
            Problem: There is no token, or a wrong one.
        """
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in query if name == "token"]
        if tokens and scope["method"] in _READING:
            if not self.door.opened_by(tokens[-1]):
                raise Problem(403, "wrong_token", "the token must be the one of the address that whence printed.")
            left = urlencode([(name, value) for name, value in query if name != "token"])
            return "/" + quote(scope["path"].lstrip("/\\")) + (f"?{left}" if left else "")
        found = cookie_parser(headers.get("cookie", "")).get(self.door.cookie)
        if not self.door.opened_by(found) and not self.door.opened_by(_bearer(headers)):
            raise Problem(403, "wrong_token", "open the explorer by the address that whence printed: it has the token.")
        return None

    def _cookie(self) -> bytes:
        return f"{self.door.cookie}={self.door.token}; HttpOnly; SameSite=Strict; Path=/".encode()


def _bearer(headers: Headers) -> str | None:
    """Return the token that a script sent along."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token else None


def _check_length(headers: Headers) -> None:
    said = headers.get("content-length", "0")
    if not said.isascii() or not said.isdigit() or len(said) > 15 or int(said) > LARGEST_BODY:
        raise Problem(413, "too_large", f"an upload must have at most {LARGEST_BODY // 2**20} MiB.")


def _limited(receive: Receive) -> Receive:
    """Return the body of a request, cut off where it is longer than may be: lengths that were said are not trusted."""
    got = 0

    async def limited() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > LARGEST_BODY:
            raise Problem(413, "too_large", f"an upload must have at most {LARGEST_BODY // 2**20} MiB.")
        return message

    return limited


def _protected(send: Send) -> Send:
    """Return what adds our headers to an answer."""

    async def protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_pairs(_HEADERS)]}
        await send(message)

    return protected


async def _refuse(problem: Problem, scope: Scope, send: Send) -> None:
    """Answer a request that nothing is told: in JSON, or as a page that loads nothing."""
    status, error = told(problem)
    if scope["path"].endswith(".json") or scope["method"] not in _READING:
        await _answer(send, status, json.dumps(error).encode(), [(b"content-type", b"application/json")])
        return
    page = f"<!doctype html><html lang=en><title>whence</title><h1>Not opened</h1><p>{escape(str(problem))}</p></html>"
    await _answer(send, status, page.encode(), [(b"content-type", b"text/html; charset=utf-8")])


async def _answer(send: Send, status: int, body: bytes, headers: Pairs) -> None:
    own = [*headers, (b"content-length", str(len(body)).encode()), *_pairs(_HEADERS)]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})


def _pairs(headers: Mapping[str, str]) -> Pairs:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
