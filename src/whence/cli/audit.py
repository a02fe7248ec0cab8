"""``whence audit``: find the rows that are probably mislabelled."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from whence import __version__
from whence.audit import Audit, audit, check_decisions, write_run
from whence.audit.folder import KIND
from whence.cli.console import Stages, plain, print_json, terminal
from whence.cli.options import (
    Data,
    Drop,
    Encoding,
    IdColumn,
    Image,
    Label,
    Method,
    Model,
    Quiet,
    Seed,
    Split,
    Text,
    Weights,
)
from whence.cli.usermodel import import_function, load_user_model
from whence.data import LabelledData, ReadOptions, read, read_like
from whence.data.image_folders import is_image_folder
from whence.data.rewrite import ENDINGS
from whence.errors import DataError, WhenceError
from whence.features import check_target, check_writable, read_manifest
from whence.report.notes import digest

__all__ = ["audit_command"]

_SHOWN = 10
_USUAL = "whence-run"
_NOTES = 400  # characters: about two lines of what was done to the data


def audit_command(
    data: Data,
    label: Label = None,
    text: Text = None,
    image: Image = None,
    id_column: IdColumn = None,
    split: Split = None,
    reference: Annotated[str | None, typer.Option(help="Column marking rows you vouch for, or a file of them.")] = None,
    drop: Drop = None,
    encoding: Encoding = None,
    model: Model = None,
    weights: Weights = None,
    method: Method = "ekfac",
    second_opinion: Annotated[
        bool, typer.Option(help="Let the embedded default judge too where your model sees hardly any wrong label.")
    ] = True,
    layers: Annotated[
        str, typer.Option(help="Layers to trace: last, all; auto: of the embedded image network the last.")
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run; else whence-run, or whence-run-NAME beside other data's.")
    ] = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON summary.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find the rows of DATA that are probably mislabelled, and write a run folder with a report.

    Example: whence audit sms.csv --label label --out runs/sms
    """
    out = _usual_folder(data) if out is None else out
    check_target(out, KIND)
    check_writable(out)
    earlier = _audited(out)
    columns = tuple(drop or ())
    vouched = None if reference is None or not Path(reference).exists() else Path(reference)
    marked = reference if vouched is None else None
    options = ReadOptions(
        label=label, text=text, image=image, id=id_column, split=split, reference=marked, drop=columns,
        encoding=encoding,
    )  # fmt: skip
    with Stages(quiet=quiet) as stages:
        function = None if model is None else import_function(model)
        stages(f"reading {plain(data, 60)}", 0)
        labelled = read(data, options)
        check_decisions(out, labelled)
        own = None if function is None else load_user_model(function, weights, labelled, seed=seed)
        right = None if vouched is None else _reference(vouched, data, options, labelled.label_name)
        result = audit(
            labelled, model=own, reference=right, method=method, second_opinion=second_opinion, layers=layers,
            seed=seed, version=__version__, on_stage=stages,
        )  # fmt: skip
        stages("writing the run", 0)
        report = write_run(result, out, source=str(Path(data)), options=options)
    if as_json:
        print_json("audit", {"run": str(out), "report": str(report), **_figures(result.summary)})
        return
    _print(result, out, report, quiet=quiet)
    if earlier is not None and not quiet:
        what = "an earlier run" if _same(earlier, data) else f"an earlier run of {plain(earlier, 60)}"
        terminal().print(f"[dim]{escape(f'{out} held {what}, which this one replaced.')}[/]", soft_wrap=True)


def _audited(folder: Path) -> str | None:
    """Return which data the run in a folder audited, or None where there is no such run."""
    try:
        return str(read_manifest(folder, KIND)["data"]["source"])
    except (WhenceError, KeyError, TypeError):
        return None


def _same(source: str, data: str) -> bool:
    return Path(source).absolute() == Path(data).absolute()


def _usual_folder(data: str) -> Path:
    """Return the folder of a run that was given none: named after the data where other data's run has the usual one."""
    earlier = _audited(Path(_USUAL))
    if earlier is None or _same(earlier, data):
        return Path(_USUAL)
    name = re.sub(r"[^\w-]+", "-", _stem(data)).strip("-")[:60]
    return Path(f"{_USUAL}-{name or 'data'}")


def _stem(data: str) -> str:
    """Return the name of a file or folder without endings that tell a format."""
    return re.sub(r"(\.(csv|tsv|jsonl|ndjson|parquet|npz|gz|xz|bz2))+$", "", Path(data).name, flags=re.IGNORECASE)


def _reference(path: Path, data: str, options: ReadOptions, label: str) -> LabelledData:
    """Read a file of reference rows as the data was read; all must have labels."""
    rows, labelled = read_like(path, data, options, label)
    if not labelled:
        raise DataError(f"{path} must hold labels in column {label!r}, got none. Reference rows are known to be right.")
    return rows


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a summary without its rows."""
    return {key: summary[key] for key in ("data", "model", "method", "suspects", "warnings", "seconds")}


def _print(result: Audit, out: Path, report: Path, *, quiet: bool) -> None:
    """Print what was found, what was done to the data, the first suspects, and where the report lies."""
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
    if not quiet and data["notes"]:
        console.print(f"[dim]data: {escape(_shortly(digest(data['notes'])))}[/]")
    if coverage.share < 1 and not coverage.missed:  # by choice; what cannot be attributed is among the warnings
        why = ": by design the last layer alone; --layers all traces every one" if result.layers == "last" else ""
        console.print(f"[dim]influence: {escape(plain(coverage.describe(), 500))}{why}[/]")
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
    console.print(f"[dim]clean data: [/] whence clean {name} --out {escape(_cleaned(result.data))}", soft_wrap=True)
    console.print(f"report: [bold]{escape(str(report))}[/]", soft_wrap=True)


def _shortly(notes: list[str]) -> str:
    """Return as many notes as two lines hold, and how many more there are."""
    shown: list[str] = []
    for note in (plain(note, 200) for note in notes):
        if shown and len("; ".join([*shown, note])) > _NOTES:
            return f"{'; '.join(shown)}; {len(notes) - len(shown)} more in the report"
        shown.append(note)
    return "; ".join(shown)


def _cleaned(data: LabelledData) -> str:
    """Return a file, or for a folder of images a folder, that these data could be written to."""
    name = Path(data.source).name
    if is_image_folder(data):
        return shlex.quote(f"{plain(name, 60)}-clean")
    ending = next((one for one in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(one)), None)
    ending = ending or (".npz" if data.kind == "image" else ".csv")
    return shlex.quote(f"{plain(_stem(name), 60)}-clean{ending}")


def _one_line(row: dict[str, Any]) -> str:
    """Return a row's content as one line."""
    content = row["content"]
    if content["kind"] == "text":
        return plain(content["text"], 70)
    if content["kind"] == "tabular":
        return plain(", ".join(f"{cell['name']}={cell['value']}" for cell in content["cells"][:5]), 70)
    return f"image {content['width']}×{content['height']}"
