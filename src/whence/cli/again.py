"""What commands share that change a run's rows and train it again: options, opening it, writing what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whence.audit import AgainSettings, Run, check_output, open_run, reload_data, write_rows
from whence.audit.bench import Bring
from whence.cli.console import plain, print_json, terminal, told_unlabelled
from whence.cli.explain import new_rows
from whence.cli.pages import write_run_page
from whence.cli.retrain import check_places
from whence.cli.usermodel import bringing, check_processes
from whence.data import LabelledData
from whence.errors import ConfigError, DataError
from whence.report import render_treated

__all__ = [
    "DataSource",
    "Force",
    "ModelAgain",
    "Opened",
    "Output",
    "RunFolder",
    "Seeds",
    "Test",
    "WeightsAgain",
    "check_model",
    "finish",
    "labelled_rows",
    "opening",
    "print_verdicts",
]

RunFolder = Annotated[Path, typer.Argument(help="Folder that whence audit wrote.")]
Output = Annotated[Path | None, typer.Option(help="New file for the rows; without it they are only measured.")]
Test = Annotated[Path | None, typer.Option(help="File of rows with right labels to measure, not held-out ones.")]
Seeds = Annotated[int, typer.Option(help="Trainings of every set of rows.")]
ModelAgain = Annotated[str | None, typer.Option("--model", help="FILE.py:FUNC again, if the run used your model.")]
WeightsAgain = Annotated[Path | None, typer.Option("--weights", help="Its weights.")]
DataSource = Annotated[Path | None, typer.Option(help="The audited data, if it was moved.")]
Force = Annotated[bool, typer.Option(help="Replace an existing file.")]


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A run and its data, read again, with what it takes to train again.

    Args:
        run: The run.
        data: Its data.
        bring: Returns the user's model, for a run that was made with one.
        training: How to train again.
    """

    run: Run
    data: LabelledData
    bring: Bring | None
    training: AgainSettings


def opening(
    run: Path, out: Path | None, own: tuple[str | None, Path | None], training: AgainSettings, *,
    data_source: Path | None = None, force: bool = False, trains: bool = True,
) -> Opened:  # fmt: skip
    """Open a run, and refuse what cannot be done before anything is computed; ``trains``: a recipe is needed.

    Raises:
        ConfigError: The run needs the user's model again, or the output cannot be.
    """
    model, weights = own
    check_processes(model, training.processes)
    check_places(None, training.cache)
    opened = open_run(run)
    if model is None and not opened.manifest["model"]["embedded"]:
        raise ConfigError(
            "--model FILE.py:FUNC must be given again: the run used your own model, and a run never imports code."
        )
    check_model(model, opened)
    bring = bringing(model, weights, otherwise="use another command" if trains else None)
    data = reload_data(opened, data_source)
    if out is not None:
        check_output(data, out, force=force)
        if not out.absolute().parent.is_dir():
            raise DataError(f"{out} must be writable, got: no such folder. Make it, or choose another --out.")
    return Opened(run=opened, data=data, bring=bring, training=training)


def check_model(model: str | None, run: Run) -> None:
    """Raise where a model comes with a run of the embedded one: it would have to be left unused.

    Raises:
        ConfigError: It does.
    """
    if model is not None and run.manifest["model"]["embedded"]:
        name = run.summary["model"]["name"]
        raise ConfigError(f"--model must be left out: the run used the embedded {name}, got {model!r}.")


def labelled_rows(opened: Opened, path: Path, option: str) -> LabelledData:
    """Read other rows as the audited ones were read; all must have labels.

    Raises:
        DataError: They have none.
    """
    rows, labelled = new_rows(opened.run, opened.data, path)
    if not labelled:
        raise DataError(f"{option} must hold labels in column {opened.data.label_name!r}, got none. Label its rows.")
    return rows


def finish(
    opened: Opened, found: dict[str, Any], out: Path | None, *, as_json: bool, labels: np.ndarray | None = None,
    kept: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Write file and page, and say what was found."""
    data, found = opened.data, {**found, "file": None if out is None else str(out)}
    shown = render_treated(found)
    unlabelled = 0
    if out is not None:
        every = np.ones(len(data), dtype=bool)
        unlabelled = write_rows(
            data, out, labels=data.labels if labels is None else labels, kept=every if kept is None else kept
        )
    page = write_run_page(opened.run, found["kind"], found, shown)
    if as_json:
        print_json(found["kind"], {**found, "page": str(page)})
        return
    _print(found, page)
    if unlabelled:
        terminal().print(f"[dim]{told_unlabelled(unlabelled)}[/]")


def _print(found: dict[str, Any], page: Path) -> None:
    """Print the change, the ways that were measured, and where file and page lie."""
    console = terminal()
    verb = {"relabel": "relabelled", "prune": "pruned", "cleanse": "left out"}[found["kind"]]
    console.print(f"[bold]{found['changed']:,}[/] of {found['of']:,} training rows {verb}.")
    for pair in found.get("counts", [])[:6]:
        console.print(f"  {pair['rows']:,} {escape(plain(pair['old'], 30))} → {escape(plain(pair['new'], 30))}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"trained on, {found['seeds']} seeds; asked about {found['held_out']:,} rows")
    for name in ("rows", "accuracy", "change", "95 %"):
        table.add_column(name, justify="right")
    for way in found["ways"]:
        change = [100 * value for value in way["change"]]
        plainly, count = way["kind"] == "before", way["removed"] or way["relabelled"]
        table.add_row(
            escape(way["name"]), "" if plainly else f"{count:,}",
            f"{way['accuracy'][0]:.1%}", "" if plainly else f"{change[0]:+.1f}",
            "" if plainly else f"{change[1]:+.1f} to {change[2]:+.1f}",
            style="" if way["kind"] in ("own", "before") else "dim",
        )  # fmt: skip
    console.print(table)
    print_verdicts(console, found)
    if found["file"] is not None:
        console.print(f"rows: [bold]{escape(found['file'])}[/]", soft_wrap=True)
    console.print(f"page: [bold]{escape(str(page))}[/]", soft_wrap=True)


def print_verdicts(console: Console, found: dict[str, Any]) -> None:
    """Print what measuring says of a treatment, and what was held out for it."""
    for said in (found["verdict"], found.get("against")):
        if said:
            colour = "green" if said["good"] else "red" if said["level"] == "reversed" else "yellow"
            console.print(f"[{colour}]●[/] {escape(said['sentence'])}")
    for sentence in found["said"]:
        console.print(f"[dim]{escape(sentence)}[/]")
