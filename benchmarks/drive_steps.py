"""A person at the explorer: what is pressed, typed and read, in a real Chromium that Playwright drives."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from drive_data import Part

try:
    from playwright.sync_api import Page, sync_playwright
except ImportError:  # it comes with the extra "dev"
    Page = sync_playwright = None

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome")
PATTERN = "rrrdrryrru"  # what is decided, over and over: relabel, drop, keep, unsure
ACTIONS = {"r": "relabel", "d": "drop", "y": "keep", "u": "unsure"}
COLOURS = 256  # of a picture: text, accents and grey images need no more
_WIDE = {"width": 1280, "height": 900}


def browser_path() -> str | None:
    """Return where a Chromium is that can be driven: the one that WHENCE_BROWSER names, or an installed one."""
    if sync_playwright is None:
        return None
    names = [os.environ.get("WHENCE_BROWSER", ""), *NAMES]
    return next((found for name in names if name and (found := shutil.which(name))), None)


class Person:
    """One page of a browser, and what is done there.

    Args:
        page: The page.
        pictures: Folder for pictures of what is seen, or None.
        name: Begins the names of the pictures.
    """

    def __init__(self, page: Page, pictures: Path | None, name: str) -> None:
        self.page, self.pictures, self.name = page, pictures, name
        self.errors: list[str] = []
        self.loads: dict[str, float] = {}
        page.on("console", lambda told: self.errors.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def look(self, what: str) -> None:
        """Note how long the page took to load, and keep a picture of it."""
        timing = "(([t]) => t.loadEventEnd - t.startTime)(performance.getEntriesByType('navigation'))"
        self.loads[what] = float(self.page.evaluate(timing))
        self.picture(what)

    def picture(self, what: str) -> None:
        """Write a picture of what is seen, with few colours so that it is small."""
        if self.pictures is not None:
            with Image.open(io.BytesIO(self.page.screenshot(animations="disabled"))) as seen:
                few = seen.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
                few.save(self.pictures / f"{self.name}-{what}.png", optimize=True)

    def go(self, title: str) -> None:
        """Choose a page by its name at the top, and wait until it is there."""
        with self.page.expect_navigation(wait_until="load"):
            self.page.click(f"nav[aria-label=Pages] a:has-text('{title}')")

    def open(self, address: str) -> bool:
        """Open the printed address; the key must not stay in it."""
        self.page.goto(address, wait_until="load")
        self.look("queue")
        return "token" not in self.page.url and self.page.locator("[data-row]").count() > 0

    def first_suspect(self) -> str:
        """Go to the first suspect by key, unfold what argues against its label, and open its page.

        The queue of a run with a split has no evidence: its rows need not be training rows.
        """
        self.page.keyboard.press("j")
        card = self.page.locator("[data-row]").first
        assert card.evaluate("(e) => e === document.activeElement")
        if card.locator("details").count():
            self.page.keyboard.press("e")
            assert card.locator("details[open]").count()
        self.picture("evidence")
        name = card.get_attribute("data-row")
        with self.page.expect_navigation(wait_until="load"):
            self.page.keyboard.press("o")
        return name or ""

    def evidence(self) -> int:
        """Return how many training rows the row's page names that help or harm it."""
        self.page.wait_for_selector(".arguments li")
        self.look("row")
        return self.page.locator(".arguments li").count()

    def decide(self, key: str, name: str) -> tuple[str, str | None]:
        """Decide about a row by key; return what the page then says of it."""
        self.page.keyboard.press(key)
        made = self.page.locator(f"[data-row={_quoted(name)}] [data-made]")
        made.locator(f"b.{ACTIONS[key]}").wait_for()
        label = made.locator(".label")
        return ACTIONS[key], label.inner_text() if label.count() else None

    def decide_more(self, count: int) -> dict[str, tuple[str, str | None]]:
        """Decide about the next suspects by keys alone, page after page."""
        found: dict[str, tuple[str, str | None]] = {}
        while len(found) < count:
            rows = self.page.locator("[data-row]").evaluate_all(
                "(all) => all.filter((e) => !e.querySelector('[data-made] b')).map((e) => e.dataset.row)"
            )
            if not rows:
                self._turn()
                continue
            for name in rows[: count - len(found)]:
                self._reach(name, len(rows))
                key = PATTERN[len(found) % len(PATTERN)]
                last = name == self.page.locator("[data-row]").last.get_attribute("data-row")
                found[name] = self._decide_last(key, name) if last else self.decide(key, name)
        return found

    def _decide_last(self, key: str, name: str) -> tuple[str, str | None]:
        """Decide about the last row of a page: the next page, if there is one, opens by itself."""
        chosen = self.page.locator(f"[data-row={_quoted(name)}] [data-label]").input_value()
        if self.page.locator("a[rel=next]").count():
            with self.page.expect_navigation(wait_until="load"):
                self.page.keyboard.press(key)
            return ACTIONS[key], chosen if key == "r" else None
        return self.decide(key, name)

    def _reach(self, name: str, most: int) -> None:
        """Go down the list to a row, by key."""
        for _ in range(most + 1):
            if self._current() == name:
                return
            self.page.keyboard.press("j")
        raise AssertionError(f"row {name} cannot be reached by keys")

    def _turn(self) -> None:
        with self.page.expect_navigation(wait_until="load"):
            self.page.keyboard.press("n")

    def _current(self) -> str | None:
        found: str | None = self.page.evaluate(
            "() => (document.activeElement.closest('[data-row]') || {dataset: {}}).dataset.row || null"
        )
        return found

    def export(self, ending: str, target: Path) -> Path:
        """Download the data as decided."""
        self.go("Export")
        self.look("export")
        with self.page.expect_download() as coming:
            self.page.click(f".downloads a[href$='ending={ending}']")
        coming.value.save_as(target)
        return target

    def retrain(self, longest: float) -> dict[str, str]:
        """Press the button, wait, and return the figures that the page then shows, by their names."""
        self.page.click("#retrain")
        self.page.wait_for_selector("#progress:not(:empty)")
        self.picture("retraining")
        self.page.wait_for_selector("text=Predicted change", timeout=1e3 * longest)
        self.page.wait_for_load_state("load")
        self.page.locator("#retrain-title").scroll_into_view_if_needed()
        self.look("retrained")
        return {
            fact.locator("dt").inner_text(): fact.locator("dd").inner_text().split("\n")[0]
            for fact in self.page.locator("section[aria-labelledby=retrain-title] dl.facts > div").all()
        }

    def ask(self, part: Part) -> tuple[str, int]:
        """Ask about a new input; return how it is read, and how many training rows are named."""
        self.go("Why")
        for name, value in part.asked.items():
            if name == "image":
                self.page.set_input_files("input[type=file]", value)
                continue
            field = self.page.locator("textarea") if name == "text" else self.page.get_by_label(name, exact=True)
            field.fill("")
            field.press_sequentially(value)
        with self.page.expect_navigation(wait_until="load"):
            self.page.click("form.asking button[type=submit]")
        self.page.wait_for_selector(".answer mark")
        self.page.locator(".answer").scroll_into_view_if_needed()
        self.look("why")
        return self.page.locator(".answer mark").first.inner_text(), self.page.locator(".answer .arguments li").count()

    def look_around(self) -> None:
        """Open the pages that show all rows."""
        self.go("Map")
        self.page.wait_for_selector("#map[data-ready]")  # a script's wait would be the eval that the pages forbid
        self.look("map")
        for title in ("Classes", "Groups"):
            self.go(title)
            self.look(title.lower())


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


@contextmanager
def at_the_explorer(pictures: Path | None, name: str) -> Iterator[Person]:
    """Open a browser for a while."""
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        try:
            page = browser.new_page(viewport=_WIDE, accept_downloads=True, reduced_motion="reduce")
            page.set_default_timeout(60_000)
            yield Person(page, pictures, name)
        finally:
            browser.close()
