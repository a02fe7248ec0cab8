"""``whence evaluate``: do a run's scores predict what retraining really does?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape

from whence import __version__
from whence.audit import EvaluateSettings, Run, Watch, evaluate_run, open_run, reload_data
from whence.cli.console import Stages
from whence.cli.options import Quiet, Seed
from whence.cli.usermodel import bringing, check_processes
from whence.data import LabelledData, ReadOptions, read
from whence.errors import ConfigError, DataError
from whence.evaluate.cost import RetrainingCost
from whence.report import render, render_evaluation

__all__ = ["evaluate_command"]

_PARTS = ("loo", "lds", "detection", "removal", "fix")
Shares = Annotated[str | None, typer.Option(help="Per cents of the rows to remove, most harmful first: 1,2,5,10.")]


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Folder that whence audit wrote.")],
    loo: Annotated[int | None, typer.Option(help="Rows to leave out, one at a time: 50.")] = None,
    lds: Annotated[int | None, typer.Option(help="Random halves to train on: 32.")] = None,
    known_errors: Annotated[str | None, typer.Option(help="Column that marks rows whose label is wrong.")] = None,
    remove: Shares = None,
    fix: Annotated[str | None, typer.Option(help="Per cents of the rows to give their suggested label.")] = None,
    queries: Annotated[int, typer.Option(help="Held-out rows to measure, at most.")] = 200,
    seeds: Annotated[int, typer.Option(help="Trainings of every set of rows.")] = 3,
    processes: Annotated[int, typer.Option(help="Processes to train in.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Where trainings are kept; by default in the run.")] = None,
    model: Annotated[str | None, typer.Option(help="FILE.py:FUNC again, if the run used your model.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights.")] = None,
    data_source: Annotated[Path | None, typer.Option(help="The audited data, if it was moved.")] = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train RUN's model again without some rows and compare what happens with what its scores predict.

    Example: whence evaluate runs/sms --lds 32 --remove 1,5,10
    """
    check_processes(model, processes)
    settings = EvaluateSettings(
        loo=loo, lds=lds, remove=_shares("--remove", remove), fix=_shares("--fix", fix), queries=queries, seeds=seeds,
        processes=processes, cache=cache or run / "cache", seed=seed,
    )  # fmt: skip
    opened = open_run(run)
    told = Console(stderr=True, highlight=False, quiet=quiet)

    def say(cost: RetrainingCost) -> None:
        told.print(f"retraining: {cost}")

    with Stages(quiet=quiet) as stages:
        stages("reading the data", 0)
        data = reload_data(opened, data_source)
        errors = None if known_errors is None else _errors(opened, data, known_errors, data_source)
        found = evaluate_run(
            opened, data, settings, errors=errors, bring=bringing(model, weights), version=__version__,
            watch=Watch(stage=stages, steps=stages.steps, estimate=say),
        )  # fmt: skip
    page = _write(found, opened)
    if as_json:
        print(json.dumps({**found, "page": str(page)}, allow_nan=False))
        return
    _print(found, page)


def _shares(option: str, text: str | None) -> tuple[float, ...]:
    """Return shares from per cents joined with commas."""
    if text is None:
        return ()
    try:
        return tuple(float(part) / 100 for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} must be per cents joined with commas, as in 1,2,5,10, got {text!r}.") from None


def _errors(run: Run, data: LabelledData, column: str, source: Path | None) -> np.ndarray:
    """Read the column that marks known errors; the rows must be the audited ones."""
    stored = run.manifest["data"]
    options = ReadOptions(**{**stored["options"], "drop": tuple(stored["options"]["drop"])})
    earlier = () if options.reference in (None, column) else (options.reference,)
    drop = tuple(name for name in (*options.drop, *earlier) if name is not None and name != column)
    marked = read(stored["source"] if source is None else source, replace(options, reference=column, drop=drop))
    if marked.fingerprint != data.fingerprint:
        raise DataError(
            f"--known-errors must be a column that the model did not see, got {column!r}, which was audited as "
            f"content. Audit again with --drop {column}."
        )
    assert marked.reference is not None
    return np.asarray(marked.reference, dtype=bool)


def _write(found: dict[str, Any], run: Run) -> Path:
    """Write JSON and page into the run, beside what earlier calls found, and link the page from the report."""
    stored, page = run.folder / "evaluation.json", run.folder / "evaluation.html"
    whole = {**{name: part for name, part in _earlier(stored).items() if name in _PARTS}, **found}
    try:
        text = json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False)
        stored.write_text(text + "\n", encoding="utf-8")
        page.write_text(render_evaluation(whole), encoding="utf-8")
        (run.folder / "report.html").write_text(render(run.summary, evaluation=page.name), encoding="utf-8")
    except OSError as error:
        raise DataError(f"run {str(run.folder)!r} must be writable, got: {error.strerror or error}.") from error
    return page


def _earlier(path: Path) -> dict[str, Any]:
    """Return what an earlier call found, where it can be read."""
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) and stored.get("format") == 1 else {}


def _print(found: dict[str, Any], page: Path) -> None:
    """Print what was found, in words."""
    console = Console(highlight=False)
    told = dict.fromkeys(sentence for part in _PARTS for sentence in found.get(part, {}).get("said", []))
    for sentence in told:
        console.print(f"[dim]{escape(sentence)}[/]")
    for part in _PARTS:
        for said in found[part].get("sentences", [found[part]]) if part in found else []:
            colour = "green" if said["good"] else "yellow"
            console.print(f"[{colour}]●[/] {escape(said['sentence'])}")
    console.print(f"page: [bold]{escape(str(page))}[/]", soft_wrap=True)
