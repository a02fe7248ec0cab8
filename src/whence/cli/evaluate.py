"""``whence evaluate``: do a run's scores predict what retraining really does?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape

from whence import __version__
from whence.audit import EvaluateSettings, Run, evaluate_run, open_run, reload_data
from whence.cli.console import print_json, terminal
from whence.cli.options import AsJson, Cache, KnownErrors, Processes, Quiet, Seed
from whence.cli.pages import write_run_page
from whence.cli.retrain import check_places, per_cents, telling
from whence.cli.usermodel import bringing, check_processes
from whence.data import LabelledData, ReadOptions, read
from whence.errors import ConfigError, DataError
from whence.report import render_evaluation

__all__ = ["evaluate_command"]

_PARTS = ("loo", "lds", "detection", "removal", "fix")
_FEWEST = 4  # rows left out, or halves
Shares = Annotated[str | None, typer.Option(help="Per cents of the rows to remove, most harmful first: 1,2,5,10.")]


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Folder that whence audit wrote.")],
    loo: Annotated[int | None, typer.Option(help="Rows to leave out, one at a time: 50.")] = None,
    lds: Annotated[int | None, typer.Option(help="Random halves to train on: 32.")] = None,
    known_errors: KnownErrors = None,
    remove: Shares = None,
    fix: Annotated[str | None, typer.Option(help="Per cents of the rows to give their suggested label.")] = None,
    queries: Annotated[int, typer.Option(help="Held-out rows to measure, at most.")] = 200,
    seeds: Annotated[int, typer.Option(help="Trainings of every set of rows.")] = 3,
    processes: Processes = 1,
    cache: Cache = None,
    model: Annotated[str | None, typer.Option(help="FILE.py:FUNC again, if the run used your model.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights.")] = None,
    data_source: Annotated[Path | None, typer.Option(help="The audited data, if it was moved.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train RUN's model again without some rows and compare what happens with what its scores predict.

    Example: whence evaluate runs/sms --lds 32 --remove 1,5,10
    """
    check_processes(model, processes)
    check_places(None, cache)
    settings = EvaluateSettings(
        loo=loo, lds=lds, remove=per_cents("--remove", remove), fix=per_cents("--fix", fix), queries=queries,
        seeds=seeds, processes=processes, cache=cache or run / "cache", seed=seed,
    )  # fmt: skip
    opened = open_run(run)
    _check_asked(opened, settings, known_errors, model)
    with telling(quiet, smaller=_smaller(settings)) as watch:
        bring = bringing(model, weights, otherwise="use --known-errors alone" if settings.retrains else None)
        watch.say("reading the data")
        data = reload_data(opened, data_source)
        errors = None if known_errors is None else _errors(opened, data, known_errors, data_source)
        found = evaluate_run(opened, data, settings, errors=errors, bring=bring, version=__version__, watch=watch)
    page = _write(found, opened)
    if as_json:
        print_json("evaluate", {**found, "page": str(page)})
    else:
        _print(found, page)


def _smaller(settings: EvaluateSettings) -> str:
    """Return what makes an evaluation cheaper, of what was asked for."""
    ways = [f"--seeds {settings.seeds // 2}"] if settings.seeds > 1 else []
    ways += [f"--loo {max(_FEWEST, settings.loo // 2)}"] if settings.loo and settings.loo > _FEWEST else []
    ways += [f"--lds {max(_FEWEST, settings.lds // 2)}"] if settings.lds and settings.lds > _FEWEST else []
    ways += ["fewer shares"] if len(settings.remove) + len(settings.fix) > 1 else []
    return ", ".join(ways)


def _check_asked(run: Run, settings: EvaluateSettings, known_errors: str | None, model: str | None) -> None:
    """Raise where nothing is asked for, or what is asked for needs the user's model."""
    if not settings.retrains and known_errors is None:
        raise ConfigError("at least one of --loo, --lds, --remove, --fix and --known-errors must be given, got none.")
    if settings.retrains and model is None and not run.manifest["model"]["embedded"]:
        raise ConfigError(
            "--model FILE.py:FUNC must be given again: the run used your own model, and a run never imports code."
        )


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
    earlier = _earlier(run.folder / "evaluation.json")
    whole = {**{name: part for name, part in earlier.items() if name in _PARTS}, **found}
    return write_run_page(run, "evaluation", whole, render_evaluation(whole))


def _earlier(path: Path) -> dict[str, Any]:
    """Return what an earlier call found, where it can be read."""
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) and stored.get("format") == 1 else {}


def _print(found: dict[str, Any], page: Path) -> None:
    """Print what was found, in words."""
    console = terminal()
    told = dict.fromkeys(sentence for part in _PARTS for sentence in found.get(part, {}).get("said", []))
    for sentence in told:
        console.print(f"[dim]{escape(sentence)}[/]")
    for part in _PARTS:
        for said in found[part].get("sentences", [found[part]]) if part in found else []:
            colour = "green" if said["good"] else "red" if said["level"] == "reversed" else "yellow"
            console.print(f"[{colour}]●[/] {escape(said['sentence'])}")
    console.print(f"page: [bold]{escape(str(page))}[/]", soft_wrap=True)
