"""Pages about the command line are written from the commands themselves.

- ``{{ commands }}``: every command with its arguments and options
- ``{{ method; NAME }}``: what ``whence methods`` says of one method
- ``{{ methods }}``: all of them in a table
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from whence.cli.main import app
from whence.cli.methods import METHODS

CALL = re.compile(r"\{\{\s*(commands|methods|method;\s*([^{}]+?))\s*\}\}")


def commands() -> str:
    """Return every command: what it does, its arguments and options."""
    group: Any = typer.main.get_command(app)
    lines: list[str] = []
    for name, command in group.commands.items():
        lines += [f"## whence {name}", "", cell(command.help or "", markup=True), "", *_parameters(name, command), ""]
    return "\n".join(lines)


def _parameters(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = " ".join(p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments)
    yield f"```text\nwhence {name} {words} [OPTIONS]".rstrip() + "\n```\n"
    yield "| | | default |"
    yield "| --- | --- | --- |"
    for one in command.params:
        if one.name == "help":
            continue
        label = one.name.upper() if one in arguments else ", ".join([*one.opts, *one.secondary_opts])
        told = isinstance(one.default, (str, int, float)) and not isinstance(one.default, bool)
        default = "required" if one.required else str(one.default) if told else ""
        yield f"| `{label}` | {cell(one.help or '')} | {cell(default)} |"


def cell(text: str, *, markup: bool = False) -> str:
    """Return text that a table cell can hold."""
    text = " ".join(text.split())
    if markup:
        text = re.sub(r"Example: (whence .*)$", r"For example `\1`.", text)
        return text
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").replace("*", "\\*")


def method(name: str) -> str:
    """Return the card of one method."""
    one = next((m for m in METHODS if m.name.replace(" ", "-") == name), None)
    if one is None:
        raise KeyError(f"whence methods knows no {name!r}")
    call = f"`whence audit DATA {one.call}`" if one.call.startswith("--") else f"`{one.call}`"
    formula = re.sub(r"(?<=\S)_([A-Za-z]+)", r"<sub>\1</sub>", one.formula)
    return (
        f'<div class="equation">{formula}</div>\n\n'
        f"| | |\n| --- | --- |\n| **Call** | {call} |\n| **Cost** | {one.cost} |\n"
        f"| **Use it for** | {one.use} |\n| **Beware** | {one.caution} |\n"
    )


def methods() -> str:
    """Return all methods in a table with links to their pages."""
    rows = [f"| [{m.name}]({m.name.replace(' ', '-')}.md) | {m.formula} | {m.cost} | {m.caution} |" for m in METHODS]
    return "\n".join(["| method | formula | cost | beware |", "| --- | --- | --- | --- |", *rows]) + "\n"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Fill in commands and methods."""

    def fill(call: re.Match[str]) -> str:
        return method(call[2]) if call[2] else commands() if call[1] == "commands" else methods()

    return CALL.sub(fill, markdown)
