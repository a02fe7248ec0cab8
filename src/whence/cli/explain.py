"""``whence explain``: which training rows helped and harmed a prediction."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.markup import escape
from rich.table import Table

from whence.audit import Query, Run, explain, open_run, reload_data, reload_task, train_rows_of
from whence.audit.features import Transform
from whence.cli.console import Stages, number, plain, print_json, terminal
from whence.cli.options import AsJson, Quiet
from whence.cli.pages import check_page
from whence.cli.usermodel import import_function, load_user_model
from whence.data import LabelledData, ReadOptions, as_examples, read_like
from whence.data.misses import did_you_mean
from whence.data.rewrite import rows_named
from whence.errors import ConfigError, DataError
from whence.methods import InfluenceAttribution, load
from whence.report import render_explanation

__all__ = ["explain_command", "new_rows"]

_SAME_LABEL = (
    "Rows of the same label harm where their content is unlike this row's, say because they look like another class: "
    "what the model learns from them speaks against the label here."
)


def explain_command(
    run: Annotated[Path, typer.Argument(help="Folder that whence audit wrote.")],
    query: Annotated[str | None, typer.Option(help="Id of the row to explain.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="File with new rows (same columns); explains --query of it.")
    ] = None,
    as_label: Annotated[str | None, typer.Option(help="Measure the loss of this label, not the given one.")] = None,
    k: Annotated[int, typer.Option("-k", help="Rows to show on each side.")] = 10,
    features: Annotated[
        int, typer.Option(help="Columns or words to name for each of these rows: what of it matters. Images: a map.")
    ] = 0,
    model: Annotated[str | None, typer.Option(help="FILE.py:FUNC again, if the run used your model.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights.")] = None,
    data_source: Annotated[Path | None, typer.Option(help="The audited data, if it was moved.")] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file; by default in the run's folder.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the training rows that helped and harmed one prediction, with their content and scores in nats.

    Example: whence explain runs/sms --query 1935
    """
    if query is None and data is None:
        raise ConfigError("--query must name a row (of the audited data, or of --data), got none.")
    if k < 1:
        raise ConfigError(f"-k must be at least 1, got {k}.")
    if features < 0:
        raise ConfigError(f"--features must be zero or positive, got {features}.")
    check_page(out)
    opened = open_run(run)
    with Stages(quiet=quiet) as stages:
        stages("reading the data", 0)
        audited = reload_data(opened, data_source)
        asked, labelled = (audited, True) if data is None else new_rows(opened, audited, data)
        row = 0 if query is None else _row(asked, query)
        stages("restoring the model", 0)
        attribution, inputs, transform = _restore(opened, audited, asked, (model, weights), inside=features > 0)
        asked_for = Query(rows=asked, inputs=inputs, position=row, labelled=labelled, transform=transform)
        stages(f"tracing row {plain(str(asked.ids[row]), 40)}", 0)
        explanation = explain(opened, audited, attribution, asked_for, measured=as_label, k=k, features=features)
    if as_json:
        print_json("explain", explanation)
        return
    target = out or run / f"explain-{_file_name(str(asked.ids[row]))}.html"
    try:
        target.write_text(render_explanation(explanation), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{target} must be writable, got: {error.strerror}. Choose another place with --out."
        ) from error
    _print(explanation, target)


def new_rows(run: Run, audited: LabelledData, path: Path) -> tuple[LabelledData, bool]:
    """Read new rows as the audited ones were read; return them and whether they have labels.

    Raises:
        DataError: They are of another kind, or of classes that the audited data do not have.
    """
    stored = run.manifest["data"]["options"]
    options = ReadOptions(**{**stored, "drop": tuple(stored["drop"])})
    rows, labelled = read_like(path, run.manifest["data"]["source"], options, audited.label_name)
    unknown = sorted(set(rows.classes) - set(audited.classes))
    if unknown or rows.kind != audited.kind:
        what = f"labels {unknown[:5]}" if unknown else f"{rows.kind} rows"
        raise DataError(f"{path} must have the kind and labels of the audited data, got {what}.")
    return rows, labelled


def _restore(
    run: Run, audited: LabelledData, asked: LabelledData, own_model: tuple[str | None, Path | None], *, inside: bool
) -> tuple[InfluenceAttribution, Any, Transform | None]:
    """Return the run's attribution, the inputs of the rows asked about, and what makes inputs of rows.

    ``inside``: with its training examples, so that it can be asked what of a row matters.
    """
    spec, weights = own_model
    if run.manifest["model"]["embedded"]:
        _, preparation, attribution = reload_task(run, audited)
        if not inside:
            return attribution, preparation.transform(asked), None
        inputs = preparation.transform(audited)
        examples = as_examples((inputs, torch.from_numpy(audited.labels)), ids=audited.ids)
        attribution = replace(attribution, examples=examples.select(examples.rows_of(attribution.ids)))
        return attribution, inputs if asked is audited else preparation.transform(asked), preparation.transform
    if spec is None:
        raise ConfigError(
            "--model FILE.py:FUNC must be given again: the run used your own model, and a run never imports code."
        )
    function = import_function(spec)
    own = load_user_model(function, weights, audited, seed=run.manifest["seed"])
    examples = as_examples((own.inputs, torch.from_numpy(audited.labels)), ids=audited.ids)
    train_rows = train_rows_of(audited)
    examples = examples if train_rows is None else examples.select(train_rows)
    attribution = load(run.folder / "attribution", own.task, examples)
    if asked is audited:
        return attribution, own.inputs, None
    return attribution, load_user_model(function, weights, asked, train=False).inputs, None


def _row(data: LabelledData, query: str) -> int:
    """Return the position of an id."""
    found = np.flatnonzero(data.ids.astype(str) == query)
    if len(found) == 0:
        told = _elsewhere(data, query) or did_you_mean(query, map(str, data.ids.tolist()))
        told = told or f"Ids look like {str(data.ids[0])!r}."
        raise DataError(f"--query must be an id of {data.source or 'the data'}, got {query!r}. {told}")
    return int(found[0])


def _elsewhere(data: LabelledData, query: str) -> str:
    """Return in which column a value stands that is no id, where it names one row: else an empty text."""
    found = rows_named(data, query)
    if found is None:
        return ""
    column, id_ = found
    return (
        f"It is a value of column {column!r}, of the row with id {id_!r}: ask for --query {id_}, or audit again with "
        f"--id {shlex.quote(column)}."
    )


def _file_name(id_: str) -> str:
    """Return an id as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in id_)[:80]


def _print(explanation: dict[str, Any], target: Path) -> None:
    """Print the query, both sides, and where the page lies."""
    console = terminal()
    asked = explanation["query"]
    console.print(f"[bold]row {escape(plain(asked['id'], 40))}[/] {escape(_content(asked['content']))}")
    best = asked["probabilities"][0]
    console.print(
        f"labelled [bold]{escape(plain(str(asked['label']), 40))}[/], "
        f"predicted [bold]{escape(plain(best['label'], 40))}[/] ({best['p']:.1%}); "
        f"loss of {escape(plain(explanation['measured_label'], 40))}: {asked['loss']:.3f} nats"
    )
    for side, title in (("helpful", "helped: without them the loss would rise"),
                        ("harmful", "harmed: without them the loss would fall")):  # fmt: skip
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
        for name in ("nats", "id", "label", "row"):
            table.add_column(name, justify="right" if name == "nats" else "left")
        for entry in explanation[side]:
            cells = (plain(entry["id"], 24), plain(entry["label"], 24), _content(entry["content"]))
            error = f" ± {entry['standard_error']:.2g}" if "standard_error" in entry else ""
            table.add_row(number(entry["score"]) + error, *(escape(cell) for cell in cells))
            if entry.get("features"):
                table.add_row("", "", "", f"[dim]{escape(_features(entry['features']))}[/]")
        console.print(table)
    measured = explanation["measured_label"]
    if any(entry["label"] == measured for entry in explanation["harmful"]):
        console.print(f"[dim]{_SAME_LABEL}[/]")
    console.print(f"page: [bold]{escape(str(target))}[/]", soft_wrap=True)


def _features(found: list[dict[str, Any]]) -> str:
    """Return what of a row matters as one line."""
    named = [f"{one['name']}{'=' if one['value'] else ''}{one['value']} {number(one['effect'])}" for one in found]
    return plain("; ".join(named), 200)


def _content(content: dict[str, Any]) -> str:
    """Return content as one line."""
    if content["kind"] == "text":
        return plain(content["text"], 80)
    if content["kind"] == "tabular":
        return plain(", ".join(f"{cell['name']}={cell['value']}" for cell in content["cells"][:6]), 80)
    return f"image {content['width']}×{content['height']}"
