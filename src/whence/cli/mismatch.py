"""``whence mismatch``: why a subgroup is predicted wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from whence import __version__
from whence.audit import MismatchSettings, Watch, mismatch_data
from whence.cli.console import Stages, plain, print_json, terminal
from whence.cli.options import Data, Drop, Encoding, IdColumn, Label, Quiet, Seed, Split
from whence.cli.pages import check_page
from whence.data import ReadOptions, read
from whence.errors import DataError
from whence.report import render_mismatch

__all__ = ["mismatch_command"]

_SHOWN = 8
_NOTHING = 2.0  # times the next: below it no row is to blame


def mismatch_command(
    data: Data,
    column: Annotated[str, typer.Option(help="Column that tells the subgroup.")],
    value: Annotated[str, typer.Option(help="Its value there; for numbers also LOW:HIGH.")],
    label: Label = None,
    id_column: IdColumn = None,
    split: Split = None,
    drop: Drop = None,
    encoding: Encoding = None,
    weight_decay: Annotated[float, typer.Option(help="Beside the mean loss; others are shown too.")] = 1e-4,
    out: Annotated[Path | None, typer.Option(help="Page to write: an .html file.")] = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find the training rows, then their features, behind wrong predictions of a subgroup of a table.

    Example: whence mismatch patients.csv --label readmitted --column age --value '[0-10)'
    """
    check_page(out)
    settings = MismatchSettings(column=column, value=value, weight_decay=weight_decay, seed=seed)
    with Stages(quiet=quiet) as stages:
        stages(f"reading {plain(data, 60)}", 0)
        options = ReadOptions(label=label, id=id_column, split=split, drop=tuple(drop or ()), encoding=encoding)
        found = mismatch_data(read(data, options), settings, version=__version__, watch=Watch(stage=stages))
    if out is not None:
        try:
            out.write_text(render_mismatch(found), encoding="utf-8")
        except OSError as error:
            raise DataError(f"page {str(out)!r} must be writable, got: {error.strerror or error}.") from error
    if as_json:
        print_json("mismatch", found)
        return
    _print(found, out)


def _print(found: dict[str, Any], out: Path | None) -> None:
    """Print the answer, the rows, their features and the weight decays."""
    console, group, told = terminal(), found["subgroup"], found["found"]
    name = escape(plain(f"{group['column']} = {group['value']}", 60))
    if told is None:
        console.print(f"All {group['asked']:,} held-out rows with {name} are predicted right.")
        return
    console.print(
        f"[bold]{len(told['wrong']):,}[/] of {group['asked']:,} held-out rows with {name} are predicted wrongly; "
        f"{group['training']:,} of {group['training_rows']:,} training rows have it."
    )
    own = sum(row["responsible"] and row["in_subgroup"] for row in told["rows"])
    many = len(told["responsible"])
    standing = f"[bold]{many}[/] training {'row stands' if many == 1 else 'rows stand'}"
    console.print(f"{standing} [bold]{told['ratio']:.3g} times[/] above the next; {own} of {many} with {name}.")
    if told["ratio"] < _NOTHING:
        console.print("[yellow]Nothing stands out:[/] these errors are not the doing of single rows.")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("rank", "id", "label", group["column"], "score", "× next"):
        table.add_column(escape(plain(title, 24)), justify="left" if title in ("id", "label") else "right")
    for row in told["rows"][:_SHOWN]:
        style = "bold" if row["responsible"] else "dim"
        cells = (str(row["rank"]), row["id"], row["label"], row["value"], f"{row['score']:+.3g}", f"{row['ratio']:.3g}")
        table.add_row(*(escape(plain(cell, 24)) for cell in cells), style=style)
    console.print(table)
    features = ", ".join(f"{plain(one['feature'], 30)} ({one['effect']:.3g})" for one in told["features"][:4])
    console.print(f"features of the responsible rows that matter, nats: {escape(features)}")
    for line in found["sweep"]:
        ratio = "nothing is wrong" if line["ratio"] is None else f"{line['ratio']:.3g} times the next"
        console.print(f"[dim]weight decay {line['weight_decay']:g}: {line['wrong']} wrong, {ratio}[/]")
    if out is not None:
        console.print(f"page: [bold]{escape(str(out))}[/]", soft_wrap=True)
