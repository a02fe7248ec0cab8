"""The code of the documentation's pages: found, run in order, and its output written back.

    python tests/docs/pages.py docs/tutorial.md …     run these pages and write what their blocks print

- A ``python`` block is run in the namespace of its page; one with ``title="name.py"`` is a file that the page asks the
  reader to write; one whose title begins with another library's name is shown and never run.
- A ``bash`` block has commands whose options must exist. Where a ``text`` block follows, its ``whence`` commands run.
- A ``text`` block right after either is what it prints; one with a title was pasted from a run that takes too long.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from whence.cli.main import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PEERS = ("kronfluence", "captum", "traker", "dattri", "cleanlab")
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[a-z].*?)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+−]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?")
GROUP: Any = typer.main.get_command(app)


@dataclass(frozen=True)
class Block:
    """One fenced block; ``output`` is the text block that follows it."""

    page: Path
    line: int
    language: str
    title: str
    body: str
    output: Block | None = field(default=None, repr=False)
    span: tuple[int, int] = (0, 0)
    indent: str = ""


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, each with its output."""
    text = page.read_text("utf-8")
    found: list[Block] = []
    for match in reversed(list(FENCE.finditer(text))):
        indent, info = match["indent"], match["info"]
        title = re.search(r'title="([^"]*)"', info)
        lines = [line.removeprefix(indent) for line in match["body"].split("\n")]
        after = found[-1] if found and found[-1].language == "text" and not found[-1].title else None
        follows = after is not None and not text[match.end() : after.span[0] - len("```text\n") - len(indent)].strip()
        found.append(Block(
            page, text.count("\n", 0, match.start()) + 1, info.split()[0], title[1] if title else "", "\n".join(lines),
            after if follows else None, match.span("body"), indent,
        ))  # fmt: skip
    return found[::-1]


def commands(block: Block) -> list[list[str]]:
    """Return the commands of a shell block, without comments."""
    joined = block.body.replace("\\\n", " ")
    return [words for line in joined.split("\n") if (words := shlex.split(line, comments=True))]


def check_command(words: list[str]) -> None:
    """Raise where a command, or an option of it, does not exist."""
    program, *rest = words
    if program == "whence":
        command = GROUP.commands[rest[0]] if rest and not rest[0].startswith("-") else GROUP
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
        given = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        if unknown := sorted(given - known):
            raise AssertionError(f"{' '.join(words)}: no option {', '.join(unknown)}")
    elif program == "make":
        targets = re.findall(r"^([\w $()%-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        known = {name for line in targets for name in line.split()}
        if unknown := [word for word in rest if "=" not in word and word not in known]:
            raise AssertionError(f"{' '.join(words)}: no target {', '.join(unknown)}")
    elif program == "python" and rest[0].endswith(".py") and not (ROOT / rest[0]).is_file():
        raise AssertionError(f"{' '.join(words)}: no such file")


def run(page: Path, folder: Path) -> Iterator[tuple[Block, str]]:
    """Run a page in a folder; yield every block that says what it prints, with what it printed."""
    if not (folder / "examples").exists():
        (folder / "examples").symlink_to(ROOT / "examples")
    space: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        for block in blocks(page):
            if block.language == "python" and not block.title.startswith(PEERS):
                printed = _python(block, space)
            elif block.language == "bash" and block.output is not None:
                printed = "".join(_shell(words) for words in commands(block) if words[0] == "whence")
            else:
                continue
            if block.output is not None:
                yield block, "\n".join(line.rstrip() for line in printed.rstrip().split("\n")) + "\n"


def _python(block: Block, space: dict[str, Any]) -> str:
    """Run a block, or write the file that it is."""
    if block.title.endswith(".py"):
        Path(block.title).write_text(block.body, "utf-8")
        return ""
    name = f"{block.page.relative_to(ROOT)}:{block.line}"
    linecache.cache[name] = (len(block.body), None, block.body.splitlines(keepends=True), name)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.body, name, "exec"), space)
    return printed.getvalue()


def _shell(words: list[str]) -> str:
    """Run a command in this process."""
    environment = {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}
    done = CliRunner().invoke(app, words[1:], env=environment, catch_exceptions=False)
    if done.exit_code:
        raise AssertionError(f"{' '.join(words)} ended with {done.exit_code}: {done.output}")
    return done.stdout


def same(shown: str, printed: str, *, numbers: bool) -> bool:
    """Whether the page shows what was printed: words the same, numbers within 2 % (or any, for commands)."""
    if NUMBER.sub("#", " ".join(shown.split())) != NUMBER.sub("#", " ".join(printed.split())):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return not numbers or all(_near(one, other) for one, other in pairs)


def _near(one: str, other: str) -> bool:
    first, second = (float(text.replace(",", "").replace("−", "-")) for text in (one, other))
    return abs(first - second) <= 0.02 * max(abs(first), abs(second)) + 1e-9


def write_back(page: Path) -> None:
    """Run a page and write what its blocks print into it."""
    done = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as after:
        after.callback(lambda: _write(page, done))  # also what was printed before an error
        for block, printed in run(page, Path(folder)):
            done.append((block.output, printed))


def _write(page: Path, done: list[tuple[Block | None, str]]) -> None:
    text = page.read_text("utf-8")
    for output, printed in reversed(done):
        assert output is not None
        lines = "".join(f"{output.indent}{line}".rstrip() + "\n" for line in printed.rstrip("\n").split("\n"))
        text = text[: output.span[0]] + lines + text[output.span[1] :]
    page.write_text(text, "utf-8")


if __name__ == "__main__":
    os.environ.pop("WHENCE_DATA", None)
    for name in sys.argv[1:]:
        try:
            write_back(Path(name).resolve())
        except Exception as error:  # one page's block fails: the others are still refreshed
            print(f"{name}: {type(error).__name__}: {error}")
