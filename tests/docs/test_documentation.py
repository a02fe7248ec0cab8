"""The site builds without a warning, its links lead somewhere, and its code does what it says."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import DOCS, ROOT, Block, blocks, check_command, commands, run, same

from browsing import WIDTHS, Window
from whence.cli.methods import METHODS

PAGES = sorted(DOCS.rglob("*.md"))
RUN = [page for page in PAGES if any(block.language in ("python", "bash") for block in blocks(page))]
# what is the theme's own: a search without a name, and code that scrolls (a browser lets keys reach it)
THEME = ("aria-dialog-name", "scrollable-region-focusable")
GRAVE = ("(serious)", "(critical)")
EXTERNAL = ("script", "link", "img", "iframe", "source")


class Links(HTMLParser):
    """What a page points at, what it fetches, and the places in it that others can point at."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.places: set[str] = {""}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.places |= {value for name in ("id", "name") if (value := named.get(name))}
        target = named.get("href") if tag in ("a", "link") else named.get("src")
        if target is None or (tag == "link" and named.get("rel") == "canonical"):
            return
        self.links.add(target)
        if tag in EXTERNAL:
            self.fetched.add(target)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    """Build the site strictly; return what was read of every page."""
    folder = tmp_path_factory.mktemp("site")
    with warnings.catch_warnings():  # those of the builder's own code; its complaints about pages are errors below
        warnings.simplefilter("ignore")
        from mkdocs.commands.build import build
        from mkdocs.config import load_config

        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    found = {}
    for page in sorted(folder.rglob("*.html")):
        found[page] = Links()
        found[page].feed(page.read_text("utf-8"))
    return found


def test_every_link_leads_somewhere(site: dict[Path, Links]) -> None:
    assert len(site) > len(PAGES)
    broken = []
    for page, read in site.items():
        for link in read.links:
            parts = urlsplit(link)
            if parts.scheme or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (target in site and unquote(parts.fragment) not in site[target].places):
                broken.append(f"{page.name}: {link}")
    assert not broken


def test_links_to_elsewhere_are_encrypted_and_nothing_is_fetched(site: dict[Path, Links]) -> None:
    for page, read in site.items():
        away = {link for link in read.links if urlsplit(link).scheme and not link.startswith("data:")}
        assert all(link.startswith("https://") for link in away), (page, away)
        assert not {link for link in read.fetched if urlsplit(link).scheme in ("http", "https")}, page


def test_files_of_the_repository_are_shown_to_their_end(site: dict[Path, Links]) -> None:
    folder = next(page for page in site if page.name == "404.html").parent
    ends = {"measured.html": "Gates", "changes.html": "0.1.0", "data.html": "MIT licence of Fashion-MNIST"}
    assert all(end in (folder / name).read_text("utf-8") for name, end in ends.items())


def test_no_call_of_a_hook_is_left(site: dict[Path, Links]) -> None:
    assert not [page for page in site if "{{" in page.read_text("utf-8")]


def test_every_method_has_a_page_and_every_page_a_method() -> None:
    written = {page.stem for page in (DOCS / "methods").glob("*.md")} - {"index"}
    assert written == {method.name.replace(" ", "-") for method in METHODS}


SHELL = [block for page in [*PAGES, ROOT / "README.md"] for block in blocks(page) if block.language == "bash"]


@pytest.mark.parametrize("block", SHELL, ids=lambda block: f"{block.page.stem}:{block.line}")
def test_commands_and_their_options_exist(block: Block) -> None:
    for words in commands(block):
        check_command(words)


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(DOCS)))
def test_code_runs_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WHENCE_DATA", raising=False)
    for block, printed in run(page, tmp_path):
        assert block.output is not None
        shown = block.output.body
        assert same(shown, printed, numbers=block.language == "python"), f"{block.page}:{block.line}\n{printed}"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(site: dict[Path, Links]) -> Iterator[str]:
    """Serve the site: from files, a browser refuses what its search loads."""
    folder = next(page.parent for page in site if page.name == "tutorial.html")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["index", "tutorial", "methods/ekfac", "jobs/label-errors"])
def test_anybody_can_read_it(address: str, window: Window, name: str) -> None:
    window.page.add_init_script("localStorage.clear()")  # else the theme that was met first is kept
    for theme, scheme in (("light", "default"), ("dark", "slate")):
        window.page.emulate_media(color_scheme=theme)
        window.page.goto(f"{address}/{name}.html", wait_until="networkidle")
        window.page.wait_for_selector(f"body[data-md-color-scheme={scheme}]")
        for width in WIDTHS:
            window.size(width)
            grave = [one for one in window.violations() if any(word in one for word in GRAVE)]
            found = [one for one in grave if not one.startswith(THEME)]
            assert (found, window.fits(), window.errors) == ([], True, []), (theme, width)
