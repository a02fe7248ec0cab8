"""axe finds nothing on any page of the explorer, of any kind of data, on a desk and on a phone, light and dark."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from serving import base, served

from whence.explorer.site import decide

PAGES = ("/", "/?show=all&search=nothing+has+this", "/map", "/classes?rows=disagreed", "/groups", "/why", "/compare",
         "/export", "/nowhere")  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "tabular", "image"])
def test_anybody_can_use_every_page(opens, window, kind, runs) -> None:
    site, page = opens(kind, edit=True, against=runs[kind]).site, window.page
    first = site.opened.ids[int(site.opened.rank.argmin())]
    decide(site, {"id": first, "action": "unsure"})
    with served(site) as address:
        page.goto(address)
        for path in (*PAGES, f"/row?{urlencode({'id': first})}"):
            page.goto(base(address) + path)
            if path == "/nowhere":
                assert len(window.errors) == 1 and "404" in window.errors.pop()
            window.sound_everywhere()


def test_what_is_only_read_and_what_is_missing(opens, window) -> None:
    with served(opens("tabular").site) as address:
        for path in ("/?", "/export?", "/compare?"):
            window.page.goto(address.replace("/?", path))
            window.sound_everywhere()
