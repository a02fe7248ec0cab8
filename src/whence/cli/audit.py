"""``whence audit``: find the rows that are probably mislabelled."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from whence import __version__
from whence.audit import Audit, audit, write_run
from whence.audit.folder import KIND
from whence.cli.console import Stages, plain, print_json, terminal
from whence.cli.options import Data, Drop, IdColumn, Image, Label, Method, Model, Quiet, Seed, Split, Text, Weights
from whence.cli.usermodel import load_user_model
from whence.data import LabelledData, ReadOptions, read, read_like
from whence.errors import DataError
from whence.features import check_target, check_writable

__all__ = ["audit_command"]

_SHOWN = 10


def audit_command(
    data: Data,
    label: Label = None,
    text: Text = None,
    image: Image = None,
    id_column: IdColumn = None,
    split: Split = None,
    reference: Annotated[str | None, typer.Option(help="Column marking rows you vouch for, or a file of them.")] = None,
    drop: Drop = None,
    model: Model = None,
    weights: Weights = None,
    method: Method = "ekfac",
    second_opinion: Annotated[
        bool, typer.Option(help="Let the embedded default judge too where your model sees no wrong label.")
    ] = True,
    out: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("whence-run"),
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON summary.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find the rows of DATA that are probably mislabelled, and write a run folder with a report.

    Example: whence audit sms.csv --label label --out runs/sms
    """
    check_target(out, KIND)
    check_writable(out)
    columns = tuple(drop or ())
    vouched = None if reference is None or not Path(reference).exists() else Path(reference)
    marked = reference if vouched is None else None
    options = ReadOptions(
        label=label, text=text, image=image, id=id_column, split=split, reference=marked, drop=columns
    )
    with Stages(quiet=quiet) as stages:
        stages(f"reading {plain(data, 60)}", 0)
        labelled = read(data, options)
        own = None if model is None else load_user_model(model, weights, labelled, seed=seed)
        right = None if vouched is None else _reference(vouched, data, options, labelled.label_name)
        result = audit(
            labelled, model=own, reference=right, method=method, second_opinion=second_opinion, seed=seed,
            version=__version__, on_stage=stages,
        )  # fmt: skip
        stages("writing the run", 0)
        report = write_run(result, out, source=str(Path(data)), options=options)
    if as_json:
        print_json("audit", {"run": str(out), "report": str(report), **_figures(result.summary)})
        return
    _print(result, out, report)


def _reference(path: Path, data: str, options: ReadOptions, label: str) -> LabelledData:
    """Read a file of reference rows as the data was read; all must have labels."""
    rows, labelled = read_like(path, data, options, label)
    if not labelled:
        raise DataError(f"{path} must hold labels in column {label!r}, got none. Reference rows are known to be right.")
    return rows


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a summary without its rows."""
    return {key: summary[key] for key in ("data", "model", "method", "suspects", "warnings", "seconds")}


def _print(result: Audit, out: Path, report: Path) -> None:
    """Print what was found, the first suspects, and where the report lies."""
    console, summary, coverage = terminal(), result.summary, result.attribution.coverage
    found, data, model = summary["suspects"], summary["data"], summary["model"]
    console.print(
        f"[bold]{found['count']:,}[/] of {data['rows']:,} rows are probably mislabelled "
        f"([bold]{found['share']:.1%}[/]; estimated noise {found['noise_rate']:.1%})."
    )
    accuracy = model["held_out_accuracy"]
    shown = f"held-out accuracy {accuracy:.1%}" if accuracy is not None else "held-out accuracy not measured"
    console.print(
        f"[dim]{escape(model['name'])}, {shown}, majority class {model['majority_accuracy']:.1%}, "
        f"{summary['seconds']['total']:.0f} s[/]"
    )
    if coverage.share < 1 and not coverage.missed:  # by choice; what cannot be attributed is among the warnings
        console.print(f"[dim]influence: {escape(plain(coverage.describe(), 500))}[/]")
    for notice in summary["warnings"]:
        console.print(f"[yellow]{escape(notice['title'])}[/] {escape(plain(notice['text'], 500))}")
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for name in ("rank", "id", "given", "suggested", "suspicion"):
        table.add_column(name, justify="right" if name in ("rank", "suspicion") else "left", no_wrap=True)
    table.add_column("row", overflow="ellipsis", no_wrap=True, ratio=1)  # takes the width that the others leave
    for row in summary["rows"][:_SHOWN]:
        cells = [str(row["rank"]), row["id"], row["label"], str(row["suggested_label"])]
        table.add_row(*(escape(plain(c, 24)) for c in cells), f"{row['suspicion']:.3f}", escape(_one_line(row)))
    console.print(table)
    name, first = escape(shlex.quote(str(out))), escape(shlex.quote(plain(summary["rows"][0]["id"])))
    console.print(f"[dim]explain one:[/] whence explain {name} --query {first}", soft_wrap=True)
    console.print(f"[dim]clean data: [/] whence clean {name} --out FILE", soft_wrap=True)
    console.print(f"report: [bold]{escape(str(report))}[/]", soft_wrap=True)


def _one_line(row: dict[str, Any]) -> str:
    """Return a row's content as one line."""
    content = row["content"]
    if content["kind"] == "text":
        return plain(content["text"], 70)
    if content["kind"] == "tabular":
        return plain(", ".join(f"{cell['name']}={cell['value']}" for cell in content["cells"][:5]), 70)
    return f"image {content['width']}×{content['height']}"
