"""``whence serve``: the explorer in the browser."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer

from whence import __version__
from whence.audit import UserModel
from whence.audit.again import own_opinion
from whence.audit.bench import Bring
from whence.cli.again import check_model
from whence.cli.console import terminal
from whence.cli.options import Model, Weights
from whence.cli.retrain import telling
from whence.cli.usermodel import bringing
from whence.data import LabelledData
from whence.explorer import Opened, OwnModel, ServeSettings, open_site, serve

__all__ = ["serve_command"]


def serve_command(
    run: Annotated[Path, typer.Argument(help="Folder that whence audit wrote.")],
    edit: Annotated[bool, typer.Option("--edit", help="Let decisions be made; without, nothing is written.")] = False,
    port: Annotated[int, typer.Option(help="Port; by default a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address of this machine; others than 127.0.0.1 let others in.")] = (
        "127.0.0.1"
    ),
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = False,
    model: Model = None,
    weights: Weights = None,
    against: Annotated[Path | None, typer.Option(help="Another run of the same rows, to compare with.")] = None,
    data_source: Annotated[Path | None, typer.Option(help="The audited data, if it was moved.")] = None,
) -> None:
    """Explore a run in the browser: decide about suspects, ask why, export and train again.

    Example: whence serve runs/sms --edit
    """
    settings = ServeSettings(host=host, port=port)
    with telling(quiet=False) as watch:
        watch.say("opening the run")
        site = open_site(run, data_source=data_source, edit=edit, against=against, bring=_bringing(model, weights),
                         version=__version__)  # fmt: skip
    out = terminal()

    def ready(address: str) -> None:
        out.print(f"explorer: [bold]{address}[/]", soft_wrap=True)
        out.print("The address holds the key: whoever has it can look. Ctrl-C ends it.", style="dim")
        if browser:
            webbrowser.open(address)

    serve(site, settings, ready)


def _bringing(spec: str | None, weights: Path | None) -> Callable[[Opened], OwnModel] | None:
    """Return what brings the user's model; None without one."""
    models = bringing(spec, weights)
    return None if spec is None or models is None else partial(_own, spec, models)


def _own(spec: str, models: Bring, opened: Opened) -> OwnModel:
    """Return the user's model for a run; its function is called once with all rows, for it may be slow."""
    check_model(spec, opened.run)
    whole = cache(lambda: models(opened.data))

    def bring(rows: LabelledData) -> UserModel:
        return whole() if rows is opened.data else models(rows)

    return OwnModel(
        attribution=lambda: own_opinion(opened.run, opened.data, bring).attribution,
        inputs=lambda rows: bring(rows).inputs,
        bring=bring,
    )
