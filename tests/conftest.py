"""Every test runs on one thread, so that small matrices are not slowed by a pool of them; and a browser for some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from browsing import Window

torch.set_num_threads(1)
pytest.register_assert_rewrite("browsing")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start one browser for a file; while it runs, its thread has an event loop that others must not start again."""
    from browsing import opened_browser  # most tests need no browser

    with opened_browser() as found:
        yield found


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    """Open a window with a profile of its own."""
    from browsing import opened_window

    with opened_window(browser) as found:
        yield found
