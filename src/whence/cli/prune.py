"""``whence prune``: the rows of lowest self-influence are dropped."""

from __future__ import annotations

from typing import Annotated

import typer

from whence import __version__
from whence.audit import AgainSettings, PruneSettings, prune_run
from whence.cli.again import (
    DataSource,
    Force,
    ModelAgain,
    Output,
    RunFolder,
    Seeds,
    Test,
    WeightsAgain,
    finish,
    labelled_rows,
    opening,
)
from whence.cli.options import AsJson, Cache, Processes, Quiet, Seed
from whence.cli.retrain import telling

__all__ = ["prune_command"]

_ROUNDS = 5


def prune_command(
    run: RunFolder,
    share: Annotated[float, typer.Option(help="Share of the training rows to drop, between 0 and 1.")] = 0.2,
    balanced: Annotated[bool, typer.Option(help="Drop the same share of every class.")] = False,
    iterative: Annotated[bool, typer.Option(help="In 5 rounds, training and tracing again after each.")] = False,
    out: Output = None,
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
    """Drop the rows that the model needs least, and train again beside as many dropped at random.

    Example: whence prune runs/sms --share 0.2 --balanced --out fewer.csv
    """
    training = AgainSettings(seeds=seeds, processes=processes, cache=cache or run / "cache", seed=seed)
    settings = PruneSettings(
        share=share, balanced=balanced, rounds=_ROUNDS if iterative else 1, training=training
    )
    with telling(quiet) as watch:
        watch.say("reading the data")
        opened = opening(run, out, (model, weights), training, data_source=data_source, force=force)
        asked = None if test is None else labelled_rows(opened, test, "--test")
        done = prune_run(
            opened.run, opened.data, settings, bring=opened.bring, test=asked, version=__version__, watch=watch
        )
    finish(opened, done.found, out, as_json=as_json, kept=done.kept)
