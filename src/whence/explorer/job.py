"""Training again in the background: one job at a time, its progress and its outcome for a page to show."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from whence.audit import Watch
from whence.audit.decisions import read_outcome, write_outcome
from whence.errors import WhenceError
from whence.explorer.problems import Problem

__all__ = ["Retraining"]

Work = Callable[[Watch], dict[str, Any]]


class Retraining:
    """The one background job of an explorer; its last outcome lies in the run folder.

    Args:
        folder: The run.
        work: Does the job, telling its progress.
    """

    def __init__(self, folder: Path, work: Work) -> None:
        self.folder, self.work = folder, work
        self._lock = threading.Lock()
        self._state, self._stage, self._error = "idle", "", ""
        self._done, self._total = 0, 0

    def start(self) -> dict[str, Any]:
        """Begin.

        Raises:
            Problem: It is running already.
        """
        with self._lock:
            if self._state == "running":
                raise Problem(409, "already_running", "the model is being trained again already.")
            self._state, self._stage, self._error, self._done, self._total = "running", "beginning", "", 0, 0
        threading.Thread(target=self._run, daemon=True).start()
        return self.told()

    def told(self) -> dict[str, Any]:
        """Return state ("idle", "running", "failed", "done"), stage, steps, error and the last outcome, JSON-able."""
        with self._lock:
            state = {"state": self._state, "stage": self._stage, "done": self._done, "total": self._total,
                     "error": self._error}  # fmt: skip
        return {**state, "outcome": read_outcome(self.folder)}

    def _run(self) -> None:
        try:
            found = self.work(Watch(stage=self._begin, steps=self._steps))
            write_outcome(self.folder, found)
        except WhenceError as error:
            self._end("failed", str(error))
        except Exception as error:  # whatever the user's training raises must reach the page
            self._end("failed", f"training again must work, got {type(error).__name__}.")
        else:
            self._end("done", "")

    def _end(self, state: str, error: str) -> None:
        with self._lock:
            self._state, self._error = state, error

    def _begin(self, stage: str, epochs: int) -> Callable[[int, nn.Module, float], None]:
        with self._lock:
            self._stage, self._done, self._total = stage, 0, epochs
        return lambda number, model, loss: self._step(number, epochs)

    def _steps(self, stage: str, total: int) -> Callable[[int, int], None]:
        with self._lock:
            self._stage, self._done, self._total = stage, 0, total
        return self._step

    def _step(self, done: int, total: int) -> None:
        with self._lock:
            self._done, self._total = done, total
