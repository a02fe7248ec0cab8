"""``whence curves``: learning curves of what has been seen and what has not, by turn-over dropout."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from whence import __version__
from whence.audit import AgainSettings, LearningSettings, learn_run
from whence.cli.again import DataSource, ModelAgain, RunFolder, WeightsAgain, opening
from whence.cli.console import print_json, terminal
from whence.cli.options import AsJson, Quiet, Seed
from whence.cli.pages import write_run_page
from whence.cli.retrain import telling
from whence.report import render_learning

__all__ = ["curves_command"]


def curves_command(
    run: RunFolder,
    epochs: Annotated[int | None, typer.Option(help="Epochs to train for; by default the model's own.")] = None,
    rows: Annotated[int, typer.Option(help="Training and held-out rows to measure, at most.")] = 2_000,
    model: ModelAgain = None,
    weights: WeightsAgain = None,
    data_source: DataSource = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train RUN's model with turn-over dropout and chart its loss on what it has seen and what it has not.

    Example: whence curves runs/sms
    """
    settings = LearningSettings(epochs=epochs, rows=rows, seed=seed)
    with telling(quiet) as watch:
        watch.say("reading the data")
        opened = opening(run, None, (model, weights), AgainSettings(seed=seed), data_source=data_source)
        found = learn_run(opened.run, opened.data, settings, bring=opened.bring, version=__version__, watch=watch)
    page = write_run_page(opened.run, "curves", found, render_learning(found))
    if as_json:
        print_json("curves", {**found, "page": str(page)})
        return
    console, curves = terminal(), found["curves"]
    colour = "green" if found["verdict"]["good"] else "yellow"
    console.print(f"[{colour}]●[/] {found['verdict']['sentence']}")
    last = {name: values[-1] for name, values in curves.items() if name != "epoch"}
    names = {"seen": "seen", "unseen": "unseen", "test": "held out, whole network", "test_parts": "held out, halves"}
    console.print("loss at the end: " + ", ".join(f"{names[name]} {value:.3f}" for name, value in last.items()))
    if found["follows"] is not None:
        console.print(f"[dim]unseen loss follows that of held-out rows: r = {found['follows']:.3f}[/]")
    for sentence in found["said"]:
        console.print(f"[dim]{escape(sentence)}[/]")
    console.print(f"page: [bold]{escape(str(page))}[/]", soft_wrap=True)
