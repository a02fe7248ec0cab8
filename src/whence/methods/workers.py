"""Processes that train: what cannot be sent to them, or ends them, is told plainly."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from whence.errors import ConfigError

__all__ = ["workers"]


@contextmanager
def workers(processes: int, sent: str) -> Iterator[ProcessPoolExecutor]:
    """Give spawned processes to a block; after an error in it nothing that still waits is begun.

    Args:
        processes: How many.
        sent: What is sent to them, for the error.

    Raises:
        ConfigError: It cannot be sent, or a process ended before its work did.
    """
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise ConfigError(
                    f"processes must live until their work is done, got one of {processes} that ended. Use fewer, as "
                    'memory may have run out; a script must call from within if __name__ == "__main__":'
                ) from error
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if kinds & {"AttributeError", "TypeError", "PicklingError"} and "pickle" in str(error):
                raise ConfigError(
                    f"{sent} must be importable for processes > 1, got: {error}. "
                    "Define them at the top of a module, or use processes=1."
                ) from error
            raise
