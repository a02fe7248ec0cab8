"""A real Chromium, by keyboard alone where a person would: find, look, decide, export, retrain, ask."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from browser import Browser, chromium
from explorer_client import TOKEN, Client
from PIL import Image

from whence.explorer import Door, application

pytestmark = pytest.mark.skipif(chromium() is None, reason="there is no Chromium")

# what axe calls serious: a field, button or picture without a name, headings out of order, a language that is not said
FAULTS = """
(() => {
  const label = (e) => e.labels && e.labels.length ? e.labels[0].textContent : '';
  const named = (e) => (e.getAttribute('aria-label') || e.getAttribute('title') || label(e) || e.textContent).trim();
  const seen = (e) => e.offsetParent !== null && !e.closest('[hidden]');
  const faults = [];
  for (const e of document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a[href]'))
    if (seen(e) && !named(e)) faults.push('no name: ' + e.outerHTML.slice(0, 80));
  for (const e of document.querySelectorAll('img')) if (!e.alt) faults.push('no alt: ' + e.outerHTML.slice(0, 80));
  const levels = [...document.querySelectorAll('h1, h2, h3, h4')].filter(seen).map((e) => Number(e.tagName[1]));
  if (levels.filter((l) => l === 1).length !== 1) faults.push('not one h1');
  levels.forEach((l, i) => { if (i && l > levels[i - 1] + 1) faults.push('a heading is left out'); });
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  if (new Set(ids).size !== ids.length) faults.push('an id twice');
  if (!document.documentElement.lang || !document.title) faults.push('no language or title');
  if (document.documentElement.scrollWidth > innerWidth + 1) faults.push('wider than the window');
  return faults;
})()
"""
CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (c) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = c;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c[3] > 250) return c;
    }
    return [255, 255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll('main *, header *, footer *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const style = getComputedStyle(e);
    if (!own || e.offsetParent === null || e.closest('button:disabled, .quiet, option')) continue;
    const a = light(rgb(style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push(ratio.toFixed(1) + ' ' + e.outerHTML.slice(0, 80));
  }
  return poor;
})()
"""
PLACE = "(({x, y, width, height}) => [x, y, width, height])(document.getElementById('map').getBoundingClientRect())"


@contextmanager
def served(client: Client) -> Iterator[str]:
    """Serve an explorer on a free port meanwhile, and give the address that would be printed."""
    config = uvicorn.Config(None, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    listener = config.bind_socket()
    door = Door(host="127.0.0.1", port=listener.getsockname()[1], token=TOKEN)
    config.app = application(client.site, door)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield door.address
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(chromium() or "", tmp_path / "profile") as page:
        yield page


def sound(browser: Browser) -> None:
    """Nothing went wrong on a page, and anybody can use it."""
    assert browser.errors == []
    assert browser.run(FAULTS) == []


def test_a_person_finds_looks_decides_exports_and_asks(opens, browser) -> None:
    client = opens("text", edit=True)
    with served(client) as address:
        browser.open(address)
        assert "token" not in browser.run("location.href")
        sound(browser)
        first = browser.run("document.querySelector('[data-row]').dataset.row")
        browser.key("j")
        assert browser.run("document.activeElement.dataset.row") == first
        browser.key("e")
        assert browser.run("document.activeElement.querySelector('details').open")
        browser.key("r")
        browser.wait("document.getElementById('said').textContent.includes('relabelled')")
        assert client.site.decisions.all()[first].action == "relabel"
        browser.key("u")
        browser.wait("document.getElementById('said').textContent.includes('unsure')")
        assert client.site.decisions.counts()["unsure"] == 1
        browser.open(address.split("/?")[0] + "/")
        browser.key("j")
        browser.leave(f"location.assign(document.querySelector('[data-row={json.dumps(first)}]').dataset.link)")
        sound(browser)
        assert "Helps it most" in browser.run("document.body.innerText")
        browser.key("x")
        browser.wait("document.getElementById('said').textContent.includes('undone')")
        browser.key("d")
        browser.wait("document.getElementById('said').textContent.includes('dropped')")
        browser.open(address.split("/?")[0] + "/export")
        sound(browser)
        text = browser.run("fetch(document.querySelector('.downloads a').href).then((answer) => answer.text())")
        assert first not in text.split()
        browser.open(address.split("/?")[0] + "/why")
        browser.run("document.querySelector('textarea').value = 'claim your free cash prize <b>now</b>'")
        browser.leave("document.querySelector('form.asking').requestSubmit()")
        sound(browser)
        assert browser.run("document.querySelector('.answer mark').textContent") in ("spam", "ham")
        assert browser.run("document.querySelectorAll('main b b, .words b').length") == 0


def test_training_again_from_the_page(opens, browser) -> None:
    client = opens("tabular", edit=True)
    for name in client.site.opened.ids[3::20]:
        client.send("/decisions.json", {"id": name, "action": "relabel"})
    with served(client) as address:
        browser.open(address.replace("/?", "/export?"))
        browser.run("document.getElementById('retrain').click()")
        browser.wait("document.body && document.body.innerText.includes('Predicted change')")
        sound(browser)


def test_a_rectangle_chooses_rows_of_the_map(opens, browser) -> None:
    client = opens("image")
    with served(client) as address:
        browser.open(address.replace("/?", "/map?"))
        browser.wait("document.getElementById('map').dataset.ready")
        sound(browser)
        x, y, width, height = browser.run(PLACE)
        browser.drag((x + 60, y + 14), (x + width * 0.6, y + height - 45))
        assert browser.run("document.querySelector('#range [name=x1]').value") != ""
        told = browser.run("document.getElementById('chosen').textContent")
        browser.leave("document.getElementById('open').click()")
        shown = browser.run("document.querySelector('.bench .rail p').textContent")
        assert told.split()[0] == shown.split()[0]


def test_an_image_is_uploaded(opens, browser, tmp_path) -> None:
    client = opens("image")
    path = tmp_path / "new.png"
    Image.fromarray(np.asarray(client.site.opened.data.content)[3, :, :, 0]).save(path)
    with served(client) as address:
        browser.open(address.replace("/?", "/why?"))
        browser.choose_file("input[type=file]", path)
        browser.leave("document.querySelector('form.asking').requestSubmit()")
        assert browser.run("document.querySelectorAll('.answer .arguments li').length") > 0
        sound(browser)


@pytest.mark.parametrize("kind", ["text", "tabular", "image"])
def test_every_page_is_accessible_in_both_themes(opens, browser, kind, runs) -> None:
    client = opens(kind, edit=True, against=runs[kind])
    client.send("/decisions.json", {"id": client.site.opened.ids[0], "action": "unsure"})
    with served(client) as address:
        browser.open(address)
        base = address.split("/?")[0]
        row = f"/row?id={client.site.opened.ids[0]}"
        for path in ("/?show=all", "/map", "/classes?rows=disagreed", "/groups", "/why", "/compare", "/export", row):
            browser.open(base + path)
            sound(browser)
            for theme in ("light", "dark"):
                browser.run(f"document.documentElement.dataset.theme = '{theme}'")
                assert browser.run(CONTRAST) == [], (path, theme)


def test_hostile_rows_run_nothing(opens, browser) -> None:
    client = opens("text", edit=True)
    with served(client) as address:
        browser.open(address)
        base = address.split("/?")[0]
        for path in ("/?show=all&search=alert", "/row?id=m4"):
            browser.run("window.alert = () => { document.title = 'hacked'; }")
            browser.open(base + path)
            assert "alert(1)" in browser.run("document.body.innerText")
            assert browser.run("document.title") != "hacked"
            sound(browser)
