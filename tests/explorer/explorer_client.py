"""Requests straight to the application, without a network; and small runs to ask about."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import anyio

from whence.explorer import Door, Site, application

TOKEN = "a-token-of-the-tests"
HOST = "127.0.0.1:8000"
ORIGIN = f"http://{HOST}"
HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>'
ESCAPES = "\x1b[31mred\x1b]0;title\x07"
PATH_ID = "../../etc/passwd?x=1&y=<b>#z"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> str:
        """Return the code of an error, which must have the one shape."""
        found = self.json()
        assert set(found) == {"error"}
        assert set(found["error"]) == {"code", "message"}
        return str(found["error"]["code"])


@dataclass
class Client:
    """Asks as a browser does that has opened the printed address."""

    site: Site
    headers: dict[str, str] = field(default_factory=lambda: {"host": HOST, "cookie": f"whence-8000={TOKEN}"})

    def __post_init__(self) -> None:
        self.app = application(self.site, Door(host="127.0.0.1", port=8000, token=TOKEN))

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, b"", headers)

    def post(self, path: str, body: bytes = b"", **headers: str) -> Answer:
        return self.ask("POST", path, body, {"origin": ORIGIN, **headers})

    def send(self, path: str, value: Any, **headers: str) -> Answer:
        return self.post(path, json.dumps(value).encode(), **{"content-type": "application/json", **headers})

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        told = {name.replace("_", "-"): value for name, value in {**self.headers, **headers}.items() if value}
        parts = urlsplit(path)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": parts.path, "raw_path": parts.path.encode(), "root_path": "",
            "query_string": parts.query.encode(), "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in told.items()],
        }  # fmt: skip
        got: list[dict[str, Any]] = []
        pieces = [body[start : start + 2**20] for start in range(0, len(body), 2**20)] or [b""]

        async def receive() -> dict[str, Any]:
            if not pieces:
                return {"type": "http.disconnect"}
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        async def keep(message: Any) -> None:
            got.append(message)

        async def run() -> None:
            await self.app(scope, receive, keep)

        anyio.run(run)
        start = next(message for message in got if message["type"] == "http.response.start")
        headers_got = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
        whole = b"".join(message.get("body", b"") for message in got if message["type"] == "http.response.body")
        return Answer(start["status"], headers_got, whole)


class Tags(HTMLParser):
    """The tags of a page, its inline scripts, handlers and outside addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handlers(self) -> list[tuple[str, str, str]]:
        return [one for one in self.attributes if one[1].startswith("on")]

    def addresses(self) -> list[str]:
        return [value for _, name, value in self.attributes if name in ("src", "href", "action")]
