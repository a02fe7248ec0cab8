"""What commands share: consoles, JSON, progress on standard error, numbers, escaped text."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import nn

from whence import __version__

__all__ = ["Stages", "number", "plain", "print_json", "size", "terminal", "told_unlabelled"]

_FORMAT = 1


def terminal(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console for what is standard output (or error) now; with ``NO_COLOR`` set it writes plain text."""
    return Console(
        file=sys.stderr if stderr else sys.stdout, quiet=quiet, highlight=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )  # fmt: skip


def print_json(command: str, found: Mapping[str, Any]) -> None:
    """Print what a command found: one object on one line, the same first entries for every command."""
    head = {"format": _FORMAT, "command": command, "whence": __version__}
    print(json.dumps({**head, **found}, allow_nan=False))


class Stages:
    """Progress of a job's stages on standard error; silent where that is no terminal or ``quiet``.

    What is printed meanwhile (by a user's model) goes to standard error too: standard output holds the result alone.
    """

    def __init__(self, *, quiet: bool) -> None:
        console = terminal(stderr=True)
        self._elsewhere = redirect_stdout(sys.stderr)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )

    def __enter__(self) -> Stages:
        """Start drawing."""
        self._elsewhere.__enter__()
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, whatever happened."""
        self.progress.stop()
        self._elsewhere.__exit__(kind, error, trace)

    def __call__(self, stage: str, epochs: int) -> Callable[[int, nn.Module, float], None]:
        """Begin a stage; the result is to be called after every epoch."""
        for earlier in self.progress.task_ids:
            self.progress.update(earlier, visible=False)
        task = self.progress.add_task(stage, total=epochs or None, note="")

        def epoch(number: int, model: nn.Module, loss: float) -> None:
            self.progress.update(task, completed=number, note=f"loss {loss:.3f}")

        return epoch

    def steps(self, stage: str, total: int) -> Callable[[int, int], None]:
        """Begin a stage of so many steps; the result is to be called with (done, total)."""
        self(stage, total)
        task = self.progress.task_ids[-1]

        def step(done: int, total: int) -> None:
            self.progress.update(task, completed=done, total=total)

        return step


def number(value: float) -> str:
    """Return three significant digits with a sign."""
    return f"{value:+.3g}"


def size(count: int) -> str:
    """Return bytes with a unit."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


def told_unlabelled(count: int) -> str:
    """Return what was done with rows without a label, which are written beside those that were judged."""
    rows, they = ("row", "it is") if count == 1 else ("rows", "they are")
    return f"{count:,} {rows} without a label, not judged, kept as {they}."


def plain(text: str, width: int = 100) -> str:
    """Return text from data for a terminal: one line, no control characters (so no escape codes), cut to width."""
    line = " ".join(text.split())
    safe = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c for c in line)
    return safe if len(safe) <= width else safe[: width - 1] + "…"
