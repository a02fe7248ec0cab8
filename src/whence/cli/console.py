"""What commands share: progress on standard error, numbers, escaped text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import nn

__all__ = ["Stages", "number", "plain"]


class Stages:
    """Progress of a job's stages on standard error; silent where that is no terminal or ``quiet``."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
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
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, whatever happened."""
        self.progress.stop()

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


def plain(text: str, width: int = 100) -> str:
    """Return text from data for a terminal: one line, no control characters (so no escape codes), cut to width."""
    line = " ".join(text.split())
    safe = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c for c in line)
    return safe if len(safe) <= width else safe[: width - 1] + "…"
