"""``whence clean``: export the audited data without its suspects, or corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from whence.audit import clean, open_run, reload_data
from whence.cli.console import Stages, print_json, terminal, told_unlabelled
from whence.cli.options import AsJson, Quiet
from whence.errors import ConfigError

__all__ = ["clean_command"]


def clean_command(
    run: Annotated[Path, typer.Argument(help="Folder that whence audit wrote.")],
    out: Annotated[Path, typer.Option(help="New file: .csv, .parquet, .jsonl, .npz; a folder for images.")],
    action: Annotated[str, typer.Option(help="drop or relabel.")] = "drop",
    above: Annotated[float | None, typer.Option(help="Act on rows of at least this suspicion.")] = None,
    data_source: Annotated[Path | None, typer.Option(help="The data, if it was moved.")] = None,
    force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the audited data without its suspects (drop), or with their suggested labels (relabel).

    Example: whence clean runs/sms --out clean.csv
    """
    if action not in ("drop", "relabel"):
        raise ConfigError(f"--action must be drop or relabel, got {action!r}.")
    if above is not None and not 0 <= above <= 1:
        raise ConfigError(f"--above must lie in [0, 1], got {above}.")
    opened = open_run(run)
    with Stages(quiet=quiet) as stages:
        stages("reading the data", 0)
        data = reload_data(opened, data_source)
        stages("writing the rows", 0)
        counts = clean(
            opened, data, out, action="drop" if action == "drop" else "relabel", least_suspicion=above, force=force
        )
    if as_json:
        print_json("clean", {"action": action, "file": str(out), **counts})
        return
    what = "images" if out.is_dir() else "rows"
    told = f"{counts['dropped']:,} dropped, {counts['relabelled']:,} relabelled"
    terminal().print(f"{counts['written']:,} {what} written to [bold]{escape(str(out))}[/] ({told}).")
    if counts["unlabelled"]:
        terminal().print(f"[dim]{told_unlabelled(counts['unlabelled'])}[/]")
