"""``whence compare``: which method to use on this data and model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from whence import __version__
from whence.audit import CompareSettings, Draw, compare_data
from whence.audit.bench import Bring
from whence.audit.comparison import TruthName
from whence.cli.console import plain, print_json, terminal
from whence.cli.options import (
    AsJson,
    Cache,
    Data,
    Drop,
    Encoding,
    IdColumn,
    Image,
    KnownErrors,
    Label,
    Model,
    Processes,
    Quiet,
    Seed,
    Split,
    Text,
    Weights,
)
from whence.cli.retrain import check_places, telling
from whence.cli.usermodel import bringing, check_processes
from whence.data import ReadOptions, read
from whence.errors import ConfigError, DataError
from whence.features import write_manifest
from whence.report import render_comparison

__all__ = ["compare_command"]

_KIND = "comparison"

Truth = Annotated[
    str | None, typer.Option(help="Ground truth: lds (default), loo, or known-errors.", show_default=False)
]


def compare_command(
    data: Data,
    label: Label = None,
    text: Text = None,
    image: Image = None,
    id_column: IdColumn = None,
    split: Split = None,
    drop: Drop = None,
    encoding: Encoding = None,
    model: Model = None,
    weights: Weights = None,
    truth: Truth = None,
    subsets: Annotated[int, typer.Option(help="lds: random halves to train on.")] = 32,
    loo: Annotated[int, typer.Option(help="loo: rows to leave out, one at a time.")] = 50,
    known_errors: KnownErrors = None,
    noise: Annotated[float | None, typer.Option(help="Share of labels to flip, then to be found.")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of every half or removal.")] = 2,
    rows: Annotated[int, typer.Option(help="Training rows that take part, at most.")] = 10_000,
    queries: Annotated[int, typer.Option(help="Held-out rows to predict, at most.")] = 100,
    processes: Processes = 1,
    cache: Cache = None,
    out: Annotated[Path, typer.Option(help="Folder for table and page.")] = Path("whence-compare"),
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare all methods that apply with humble baselines on DATA, by real retraining and cost; recommend one.

    Example: whence compare sms.csv --label label --out runs/compare
    """
    check_processes(model, processes)
    check_places(out, cache, _KIND)
    settings = CompareSettings(
        truth=_truth(truth, known_errors, noise), subsets=subsets, loo=loo, noise=noise, seeds=seeds,
        drawn=Draw(rows=rows, queries=queries, seed=seed), processes=processes, cache=cache or out / "cache",
    )  # fmt: skip
    options = ReadOptions(
        label=label, text=text, image=image, id=id_column, split=split, reference=known_errors, drop=tuple(drop or ()),
        encoding=encoding,
    )
    smaller = ", ".join([f"--rows {rows // 2}", "fewer --subsets, --loo or --seeds"])
    with telling(quiet, begin=lambda: _begin(out), smaller=smaller) as watch:
        bring = _brings(model, weights, settings)
        watch.say(f"reading {plain(data, 60)}")
        labelled = read(data, options)
        found = compare_data(
            labelled, settings, errors=labelled.reference, bring=bring, version=__version__, watch=watch,
        )  # fmt: skip
    page = _write(found, out)
    if as_json:
        print_json("compare", {**found, "page": str(page)})
    else:
        _print(found, page)


def _brings(model: str | None, weights: Path | None, settings: CompareSettings) -> Bring | None:
    """Return what makes the user's model; only rows with known errors can be judged without its recipe."""
    alone = settings.truth == "known-errors" and settings.noise is None
    return bringing(model, weights, otherwise=None if alone else "use --known-errors COL")


def _truth(named: str | None, known_errors: str | None, noise: float | None) -> TruthName:
    """Return the ground truth; a column of errors or noise implies that they are to be found."""
    marked = known_errors is not None or noise is not None
    truth = named or ("known-errors" if marked else "lds")
    if known_errors is not None and noise is not None:
        raise ConfigError("only one of --known-errors and --noise must be given, got both.")
    if truth == "known-errors" and not marked:
        raise ConfigError("--truth known-errors must come with --known-errors COL or --noise SHARE, got neither.")
    if marked and truth != "known-errors":
        raise ConfigError(f"--known-errors and --noise must go with --truth known-errors, got {truth!r}.")
    return cast(TruthName, truth)


def _begin(out: Path) -> None:
    """Make the folder one that an interrupted comparison can be gone on with."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_manifest(out, {"kind": _KIND, "whence": __version__})
    except OSError as error:
        raise DataError(f"{out} must be writable, got: {error.strerror or error}. Choose another --out.") from error


def _write(found: dict[str, Any], out: Path) -> Path:
    """Write the folder: manifest, JSON, page. Trainings in its cache are kept."""
    page = out / "comparison.html"
    _begin(out)
    try:
        write_manifest(out, {"kind": _KIND, "whence": found["whence"], "created": found["created"]})
        text = json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False)
        (out / "comparison.json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        page.write_text(render_comparison(found), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out} must be writable, got: {error.strerror or error}. Choose another --out.") from error
    return page


def _brief(cost: float) -> str:
    """Return a cost in two digits, without powers of ten."""
    if cost < 0.001:
        return "< 0.001"
    return f"{cost:.2g}" if cost < 10 else f"{cost:,.0f}"


def _print(found: dict[str, Any], page: Path) -> None:
    """Print what was judged, the table, and the recommendation."""
    console = terminal()
    truth = found["truth"]
    console.print(f"[dim]{escape(' '.join([truth['what'], *found['said']]))}[/]")
    if truth["ceiling"] is not None:
        console.print(f"[dim]A method without any error would reach about {truth['ceiling']:.3f}.[/]")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("method")
    for name in (truth["figure"], "95 % interval", "passes", "seconds"):
        table.add_column(name, justify="right")
    for entry in found["entries"]:
        if entry["accuracy"] is None:
            continue
        value, low, high = (math.nan if part is None else part for part in entry["accuracy"])
        name = f"[bold]{entry['name']}[/]" if entry["name"] == found["recommended"] else entry["name"]
        name = f"{name} [dim]baseline[/]" if entry["baseline"] else name
        equal = "=" if entry["equal"] else " "
        table.add_row(name, f"{value:.3f}{equal}", f"{low:.3f} to {high:.3f}", _brief(entry["passes"]),
                      _brief(entry["seconds"]))  # fmt: skip
    console.print(table)
    for entry in found["entries"]:
        if entry["accuracy"] is None:
            console.print(f"[dim]{entry['name']} does not apply: {escape(plain(entry['note'], 160))}[/]")
    console.print(f"[bold]{escape(found['reason'])}[/]")
    console.print(f"page: [bold]{escape(str(page))}[/]", soft_wrap=True)
