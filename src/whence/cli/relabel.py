"""``whence relabel``: the rows above Otsu's threshold get their most probable other label."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from whence import __version__
from whence.audit import AgainSettings, RelabelSettings, relabel_run
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

__all__ = ["relabel_command"]

By = Annotated[str, typer.Option(help="Signal to threshold: self_influence, suspicion, loss or another of the run.")]
Threshold = Annotated[float | None, typer.Option(help="Your own threshold, in the signal's unit, not Otsu's.")]


def relabel_command(
    run: RunFolder,
    out: Output = None,
    by: By = "self_influence",
    scale: Annotated[str, typer.Option(help="Where Otsu's threshold is taken: linear or log.")] = "linear",
    threshold: Threshold = None,
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
    """Give the rows that explain themselves most their likeliest other label, and train again with and without.

    Example: whence relabel runs/sms --out corrected.csv
    """
    training = AgainSettings(seeds=seeds, processes=processes, cache=cache or run / "cache", seed=seed)
    settings = RelabelSettings(
        by=by, scale=cast(Literal["linear", "log"], scale), threshold=threshold, training=training
    )
    with telling(quiet) as watch:
        watch.say("reading the data")
        opened = opening(run, out, (model, weights), training, data_source=data_source, force=force)
        asked = None if test is None else labelled_rows(opened, test, "--test")
        done = relabel_run(
            opened.run, opened.data, settings, bring=opened.bring, test=asked, version=__version__, watch=watch
        )
    finish(opened, done.found, out, as_json=as_json, labels=done.labels)
