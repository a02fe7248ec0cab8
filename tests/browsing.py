"""A real Chromium for tests: where it is, a window of it, and what must be true of every page in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = {"window": 1300, "phone": 390}
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
              "--disable-component-update", "--disable-sync"]  # fmt: skip
_HEIGHT = 1000
_MILLISECONDS = 20_000
_VIOLATIONS = {"resultTypes": ["violations"]}
_COLOURS = ["color-contrast", "link-in-text-block"]  # slow: they look at every piece of text
# the other theme changes colours alone, a phone all but the colours
_THEME = {**_VIOLATIONS, "runOnly": {"type": "rule", "values": ["color-contrast"]}}
_LAYOUT = {**_VIOLATIONS, "rules": {name: {"enabled": False} for name in _COLOURS}}


def chromium() -> str | None:
    """Return where a Chromium is: the one that WHENCE_BROWSER names, or an installed one."""
    names = [os.environ.get("WHENCE_BROWSER", ""), "chromium", "chromium-browser", "google-chrome"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """Start a browser, or skip where there is none."""
    place = chromium()
    if place is None:
        pytest.skip("there is no Chromium: install one, or name it in WHENCE_BROWSER")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=place, args=_ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Window:
    """One window of the browser, and what its console shows in red."""

    page: Page
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(_MILLISECONDS)
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda asked: self.errors.append(f"{asked.url}: {asked.failure}"))

    def sound(self) -> None:
        """Nothing went wrong on a page, it fits, and anybody can use it."""
        assert self.errors == []
        assert self.violations() == []
        assert self.fits()

    def sound_everywhere(self) -> None:
        """The same in a window and on a phone, in the light and in the dark."""
        self.turn("light")
        self.sound()
        self.turn("dark")
        assert self.violations(_THEME) == []
        self.size("phone")
        assert self.violations(_LAYOUT) == []
        assert self.fits()
        self.turn("light")
        self.size("window")

    def violations(self, options: dict[str, object] = _VIOLATIONS) -> list[str]:
        """Return what axe finds against a page: rule, impact, and where."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE_SCRIPT)
        found = self.page.evaluate("options => axe.run(options).then(found => found.violations)", options)
        return [
            f"{one['id']} ({one['impact']}): {node['target']} {node['html'][:160]}"
            for one in found
            for node in one["nodes"]
        ]

    def fits(self) -> bool:
        """Whether nothing sticks out of the window to the right."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    def turn(self, theme: str) -> None:
        """Choose the light or the dark theme, as the button does."""
        self.page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)

    def size(self, width: str) -> None:
        """Make the window as wide as a desk's or a phone's."""
        self.page.set_viewport_size({"width": WIDTHS[width], "height": _HEIGHT})


@contextmanager
def opened_window(browser: Browser) -> Iterator[Window]:
    """Open a window with a profile of its own."""
    context = browser.new_context(
        viewport={"width": WIDTHS["window"], "height": _HEIGHT}, color_scheme="light", reduced_motion="reduce"
    )
    yield Window(context.new_page())
    context.close()
