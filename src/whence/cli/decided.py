"""``whence retrain``: what the decisions of the explorer change."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from whence import __version__
from whence.audit import AgainSettings, write_rows
from whence.audit.decided import DecidedSettings, retrain_run
from whence.audit.decisions import FILE, Decisions, applied, write_outcome
from whence.cli.again import (
    DataSource,
    Force,
    ModelAgain,
    Output,
    RunFolder,
    Seeds,
    Test,
    WeightsAgain,
    labelled_rows,
    opening,
    print_verdicts,
)
from whence.cli.console import plain, print_json, terminal
from whence.cli.options import AsJson, Cache, Processes, Quiet, Seed
from whence.cli.retrain import telling
from whence.errors import ConfigError

__all__ = ["retrain_command"]


def retrain_command(
    run: RunFolder,
    out: Output = None,
    guard: Annotated[
        bool, typer.Option(help="In CSV, put an apostrophe before text that a spreadsheet would run as a formula.")
    ] = True,
    test: Test = None,
    seeds: Seeds = 3,
    processes: Processes = 1,
    cache: Cache = None,
    model: ModelAgain = None,
    weights: WeightsAgain = None,
    data_source: DataSource = None,
    force: Force = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train again with the decisions of whence serve: held-out accuracy before and after, beside the prediction.

    Example: whence retrain runs/sms --out decided.csv
    """
    training = AgainSettings(seeds=seeds, processes=processes, cache=cache or run / "cache", seed=seed)
    with telling(quiet) as watch:
        watch.say("reading the data")
        opened = opening(run, out, (model, weights), training, data_source=data_source, force=force)
        decisions = Decisions(opened.run.folder, opened.data.fingerprint)
        made = tuple(decisions.all().values())
        if not made:
            raise ConfigError(f"run must hold {FILE} with decisions, got none. Make some: whence serve {run} --edit")
        asked = None if test is None else labelled_rows(opened, test, "--test")
        found = retrain_run(
            opened.run, opened.data, DecidedSettings(decisions=made, training=training), bring=opened.bring, test=asked,
            version=__version__, watch=watch,
        )  # fmt: skip
    write_outcome(opened.run.folder, found)
    found = {**found, "file": None if out is None else str(out)}
    if out is not None:
        labels, kept = applied(opened.data, made)
        write_rows(opened.data, out, labels=labels, kept=kept, guarded=guard)
    if as_json:
        print_json("retrain", found)
        return
    _print(found)


def _print(found: dict[str, Any]) -> None:
    """Print every way beside the prediction."""
    console = terminal()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("training rows", "accuracy", "change, points", "95 %"):
        table.add_column(name, justify="left" if name == "training rows" else "right")
    for way in found["ways"]:
        change, low, high = (100 * value for value in way["change"])
        told = ("", "") if way["kind"] == "before" else (f"{change:+.2f}", f"{low:+.2f} to {high:+.2f}")
        table.add_row(escape(plain(way["name"], 60)), f"{way['accuracy'][0]:.2%}", *told)
    console.print(table)
    console.print(f"predicted ({found['predicted_by']}): {100 * found['predicted']:+.2f} points")
    print_verdicts(console, found)
    if found["file"] is not None:
        console.print(f"rows: [bold]{escape(found['file'])}[/]", soft_wrap=True)
