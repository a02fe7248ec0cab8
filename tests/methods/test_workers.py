"""What happens to the work of processes when one of them fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import whence as wh
from whence.methods.workers import workers


def _failing(folder: Path, number: int) -> None:
    """Leave a trace and fail."""
    (folder / str(number)).touch()
    time.sleep(0.05)
    raise ValueError(f"number {number}")


def test_after_an_error_nothing_that_waits_is_begun(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number 0"), workers(1, "a function") as pool:
        waiting = [pool.submit(_failing, tmp_path, number) for number in range(40)]
        waiting[0].result()
    assert len(list(tmp_path.iterdir())) < 20


def test_a_process_that_ends_is_told() -> None:
    with pytest.raises(wh.ConfigError, match="got one of 2 that ended"), workers(2, "a function") as pool:
        pool.submit(os._exit, 1).result()
