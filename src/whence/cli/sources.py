"""``whence sources``: what the sources of the rows do to one another, or which rows came from elsewhere."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whence import __version__
from whence.audit import AgainSettings, SourceSettings, source_run
from whence.cli.again import DataSource, ModelAgain, RunFolder, WeightsAgain, opening
from whence.cli.console import number, plain, print_json, terminal
from whence.cli.options import AsJson, Quiet, Seed
from whence.cli.pages import write_run_page
from whence.cli.retrain import telling
from whence.report import render_sources

__all__ = ["sources_command"]

_SHOWN = 8
_COLUMNS = 4

Groups = Annotated[str | None, typer.Option(help="Column that names the source of every row.")]
Known = Annotated[str | None, typer.Option(help="Column that marks rows of one source by 1, true or yes.")]


def sources_command(
    run: RunFolder,
    groups: Groups = None,
    known: Known = None,
    references: Annotated[int, typer.Option(help="Rows of a source that are asked about, at most.")] = 100,
    model: ModelAgain = None,
    weights: WeightsAgain = None,
    data_source: DataSource = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what sources of the rows do to one another; without --groups, which rows seem to come from elsewhere.

    Example: whence sources runs/photos --groups camera
    """
    settings = SourceSettings(groups=groups, known=known, references=references, seed=seed)
    with telling(quiet) as watch:
        watch.say("reading the data")
        opened = opening(run, None, (model, weights), AgainSettings(seed=seed), data_source=data_source, trains=False)
        found = source_run(opened.run, opened.data, settings, bring=opened.bring, version=__version__, watch=watch)
    page = write_run_page(opened.run, "sources", found, render_sources(found))
    if as_json:
        print_json("sources", {**found, "page": str(page)})
        return
    console = terminal()
    (_print_groups if found["way"] == "groups" else _print_apart)(console, found)
    for sentence in found["said"]:
        console.print(f"[dim]{escape(sentence)}[/]")
    console.print(f"page: [bold]{escape(str(page))}[/]", soft_wrap=True)


def _print_groups(console: Console, found: dict[str, Any]) -> None:
    """Print a table of sources, and what removing each does to each."""
    shown = found["groups"][:_SHOWN]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("source")
    for name in ("rows", "suspects", "AUC", *(f"on {plain(group['name'], 14)}" for group in shown[:_COLUMNS])):
        table.add_column(escape(name), justify="right")
    for place, group in enumerate(shown):
        effects = [number(other["effects"][place]) for other in shown[:_COLUMNS]]
        auc = "" if group["auc"] is None else f"{group['auc']:.3f}"
        table.add_row(escape(plain(group["name"], 24)), f"{group['rows']:,}", f"{group['suspects']:,}", auc, *effects)
    console.print(table)
    unit = f" in {found['unit']}" if found["unit"] else ""
    console.print(f"[dim]on …: predicted rise of a row's loss{unit} there if all rows of the source were removed[/]")


def _print_apart(console: Console, found: dict[str, Any]) -> None:
    """Print how many rows lie apart, and the first of them."""
    if found["way"] == "known":
        console.print(f"[bold]{found['changed']:,}[/] of {found['others']:,} other rows are unlike the known source.")
    else:
        told = f"dip {found['dip']:.3f}, p {found['p']:.3f}"
        if found["certain"]:
            apart = f"{found['changed']:,} of {found['rows']:,} rows lie apart"
            console.print(f"[yellow]●[/] {apart}: two sources ({told}).")
        else:
            console.print(f"[green]●[/] No clear sign of two sources ({told}).")
    ids = ", ".join(plain(row["id"], 24) for row in found["listed"][:_SHOWN])
    console.print(f"farthest: {escape(ids)}")
