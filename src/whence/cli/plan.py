"""``whence plan``: what attribution will cost in time, memory and disk, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

from whence.audit import METHODS, train_rows_of
from whence.cli.console import Stages, plain, print_json, size, terminal
from whence.cli.options import (
    Data,
    Drop,
    Encoding,
    IdColumn,
    Image,
    Label,
    Method,
    Model,
    Quiet,
    Seed,
    Split,
    Text,
    Weights,
)
from whence.cli.usermodel import UserFunction, import_function, load_user_model
from whence.data import LabelledData, ReadOptions, as_examples, read
from whence.methods import Influence, Plan, plan
from whence.tasks.defaults import default_for

__all__ = ["plan_command"]


def plan_command(
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
    method: Method = "ekfac",
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Predict what tracing DATA will cost: parameters, passes, seconds, memory, disk. Nothing is trained or written.

    Example: whence plan sms.csv --label label
    """
    options = ReadOptions(
        label=label, text=text, image=image, id=id_column, split=split, drop=tuple(drop or ()), encoding=encoding
    )
    with Stages(quiet=quiet) as stages:
        own = None if model is None else import_function(model)
        stages(f"reading {plain(data, 60)}", 0)
        labelled = read(data, options)
        stages("measuring a few chunks", 0)
        planned = _plan(labelled, own, weights, method, seed)
    if as_json:
        print_json("plan", planned.as_dict())
        return
    _print(planned, method)


def _plan(data: LabelledData, spec: UserFunction | None, weights: Path | None, method: str, seed: int) -> Plan:
    """Return the plan for a user's model, or for the embedded default with untrained weights."""
    layers = None
    if spec is not None:
        own = load_user_model(spec, weights, data, train=False)
        task, inputs = own.task, own.inputs
    else:
        default = default_for(data, seed=seed)
        inputs = default.preparation.transform(data) if default.inputs is None else default.inputs
        build = default.recipe.build
        assert build is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            task = default.recipe.task(build().eval())
        layers = "last" if data.kind == "image" else None
    examples = as_examples((inputs, torch.from_numpy(data.labels)), ids=data.ids)
    rows = train_rows_of(data)
    training = examples if rows is None else examples.select(rows)
    return plan(Influence(curvature=METHODS[method], layers=layers, seed=seed), task, training)


def _print(planned: Plan, method: str) -> None:
    """Print what is attributed, and one line a step."""
    console = terminal()
    console.print(
        f"[bold]{planned.share:.1%}[/] of {planned.trainable:,} parameters attributed, {planned.examples:,} examples, "
        f"{escape(method)} [dim](measured on {planned.measured:,})[/]"
    )
    if planned.missed:
        console.print(f"[yellow]{escape(plain(planned.describe(), 500))}[/]")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("step")
    for name in ("seconds", "passes"):
        table.add_column(name, justify="right")
    labels = {"fit": "fit", "self_scores": "self-scores", "scores": f"scores of {planned.queries:,} queries",
              "index": "index"}  # fmt: skip
    for name, seconds in planned.seconds.items():
        table.add_row(labels[name], f"{seconds:.3g}", f"{planned.passes[name]:.1f}")
    console.print(table)
    disk = ", ".join(f"{name} {size(taken)}" for name, taken in planned.disk.items())
    console.print(f"memory: {size(planned.peak_bytes)} beside model and data")
    console.print(f"disk of an index: {disk}")
