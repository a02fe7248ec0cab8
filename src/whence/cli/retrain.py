"""What commands that train again share: where they may write, and what they tell of progress and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from whence.audit import Watch
from whence.cli.console import Stages, terminal
from whence.errors import ConfigError
from whence.evaluate.cache import check_cache
from whence.evaluate.cost import RetrainingCost
from whence.features import check_target, check_writable

__all__ = ["check_places", "per_cents", "telling"]

_LONG = 120  # seconds


def check_places(out: Path | None, cache: Path | None, kind: str | None = None) -> None:
    """Raise unless the output may be written, and trainings kept, before anything is read.

    Args:
        out: The output's folder, or None.
        cache: Folder of trainings, or None.
        kind: Of the output.

    Raises:
        RunFormatError: The output holds something else, or one of the folders cannot be written to.
    """
    if out is not None:
        check_target(out, kind)
        check_writable(out)
    if cache is not None:
        check_cache(cache)


@contextmanager
def telling(quiet: bool, begin: Callable[[], None] = lambda: None, smaller: str = "") -> Iterator[Watch]:
    """Show progress on standard error, and what retraining will cost.

    Args:
        quiet: Show nothing.
        begin: Called before retraining begins.
        smaller: What makes it cheaper, told where it is long.
    """
    told = terminal(stderr=True, quiet=quiet)

    def say(cost: RetrainingCost) -> None:
        told.print(f"retraining: {cost}")
        if smaller and cost.seconds > _LONG:
            told.print(f"[dim]shorter: {smaller}; Ctrl-C keeps what is done, and the same call goes on from there[/]")
        begin()

    with Stages(quiet=quiet) as stages:
        yield Watch(stage=stages, steps=stages.steps, estimate=say)


def per_cents(option: str, text: str | None) -> tuple[float, ...]:
    """Return shares from per cents joined with commas.

    Raises:
        ConfigError: They are no numbers between 0 and 100.
    """
    if text is None:
        return ()
    try:
        shares = tuple(float(part) / 100 for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share < 1 for share in shares):
        raise ConfigError(
            f"{option} must be per cents between 0 and 100 joined with commas, got {text!r}. Try {option} 1,2,5,10."
        )
    return shares
