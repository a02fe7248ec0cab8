"""Options that commands share: how the data is read, whose model it is, which curvature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whence.audit import METHODS
from whence.errors import ConfigError

__all__ = [
    "AsJson",
    "Cache",
    "Data",
    "Drop",
    "Encoding",
    "IdColumn",
    "Image",
    "KnownErrors",
    "Label",
    "Method",
    "Model",
    "Processes",
    "Quiet",
    "Seed",
    "Split",
    "Text",
    "Weights",
]


def _known(method: str) -> str:
    """Return the name of a curvature, checked before anything is read."""
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    return method


def _completed(incomplete: str) -> list[str]:
    """Return the curvatures whose names begin so, for a shell that completes them."""
    return [name for name in METHODS if name.startswith(incomplete)]


Data = Annotated[str, typer.Argument(help="csv, tsv, parquet, jsonl, npz, a folder of images by class, ...")]
Label = Annotated[str | None, typer.Option(help="Column with the labels.")]
Text = Annotated[str | None, typer.Option(help="Text column, or several joined with commas.")]
Image = Annotated[str | None, typer.Option(help="Image column.")]
IdColumn = Annotated[str | None, typer.Option("--id", help="Column whose values name the rows.")]
Split = Annotated[str | None, typer.Option(help="Column that tells train from test.")]
Drop = Annotated[list[str] | None, typer.Option(help="Column to leave out; repeat for more.")]
Encoding = Annotated[
    str | None, typer.Option(help="Of text files: cp1252, utf-16, ... Else UTF-8, or Windows-1252 if it is not that.")
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Your own model: FILE.py:FUNC. FUNC(data) returns a trained torch module or a whence.Recipe, "
        "alone or as (model, inputs [N, ...]) in the order of data.ids."
    ),
]
Weights = Annotated[Path | None, typer.Option(help="Its weights: safetensors, or a state dict.")]
Method = Annotated[
    str,
    typer.Option(
        help=f"Curvature for influence: {', '.join(METHODS)}.", callback=_known, autocompletion=_completed
    ),
]
KnownErrors = Annotated[str | None, typer.Option(help="Column that marks rows whose label is wrong.")]
Processes = Annotated[int, typer.Option(help="Processes to train in.")]
Cache = Annotated[Path | None, typer.Option(help="Folder where trainings are kept; by default in the output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
