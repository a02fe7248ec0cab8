"""``whence serve``: the explorer in the browser."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from whence import __version__
from whence.audit.again import own_opinion
from whence.audit.bench import Bring
from whence.cli.console import terminal
from whence.cli.options import Model, Weights
from whence.cli.usermodel import bringing
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
    site = open_site(
        run, data_source=data_source, edit=edit, against=against, bring=_bringing(model, weights), version=__version__
    )
    out = terminal()

    def ready(address: str) -> None:
        out.print(f"explorer: [bold]{address}[/]", soft_wrap=True)
        out.print("The address holds the key: whoever has it can look. Ctrl-C ends it.", style="dim")
        if browser:
            webbrowser.open(address)

    serve(site, settings, ready)


def _bringing(spec: str | None, weights: Path | None) -> Callable[[Opened], OwnModel] | None:
    """Return what brings the user's model; None without one."""
    if spec is None:
        return None

    brought = bringing(spec, weights)
    assert brought is not None
    models: Bring = brought

    def bring(opened: Opened) -> OwnModel:
        return OwnModel(
            attribution=lambda: own_opinion(opened.run, opened.data, models).attribution,
            inputs=lambda rows: models(rows).inputs,
            bring=models,
        )

    return bring
