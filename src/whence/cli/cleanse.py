"""``whence cleanse``: the training rows that harm predictions in another place are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whence import __version__
from whence.audit import AgainSettings, CleanseSettings, cleanse_run
from whence.cli.again import (
    DataSource,
    Force,
    ModelAgain,
    Output,
    RunFolder,
    Seeds,
    WeightsAgain,
    finish,
    labelled_rows,
    opening,
)
from whence.cli.options import AsJson, Cache, Processes, Quiet, Seed
from whence.cli.retrain import telling

__all__ = ["cleanse_command"]


def cleanse_command(
    run: RunFolder,
    target: Annotated[Path, typer.Option(help="File of labelled rows from where the model will be used.")],
    share: Annotated[float | None, typer.Option(help="Share of the training rows to drop; else it is chosen.")] = None,
    out: Output = None,
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
    """Leave out the training rows that harm predictions of TARGET's rows; others of these rows judge it.

    Example: whence cleanse runs/reviews --target shop-reviews.csv --out fitting.csv
    """
    training = AgainSettings(seeds=seeds, processes=processes, cache=cache or run / "cache", seed=seed)
    settings = CleanseSettings(share=share, training=training)
    with telling(quiet) as watch:
        watch.say("reading the data")
        opened = opening(run, out, (model, weights), training, data_source=data_source, force=force)
        rows = labelled_rows(opened, target, "--target")
        done = cleanse_run(
            opened.run, opened.data, rows, settings, bring=opened.bring, version=__version__, watch=watch
        )
    finish(opened, done.found, out, as_json=as_json, kept=done.kept)
