"""``whence attack``: which training rows, altered unseen, would flip which predictions of one's own model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.markup import escape
from rich.table import Table

from whence import __version__
from whence.audit import AttackRun, UserModel, attack_data
from whence.audit.bench import Bring
from whence.cli.console import Stages, plain, print_json, terminal
from whence.cli.options import Data, Drop, Encoding, IdColumn, Image, Label, Model, Quiet, Seed, Split, Weights
from whence.cli.usermodel import import_function, load_user_model
from whence.data import LabelledData, ReadOptions, read
from whence.features import check_target, check_writable, staged, write_manifest, write_tensors
from whence.report import render_attack
from whence.uses.attack import AttackSettings
from whence.uses.attack_box import Box

__all__ = ["attack_command"]

_KIND = "attack"


def attack_command(
    data: Data,
    target: Annotated[list[str], typer.Option(help="Id of a row whose prediction is attacked; repeat for more.")],
    label: Label = None,
    image: Image = None,
    id_column: IdColumn = None,
    split: Split = None,
    drop: Drop = None,
    encoding: Encoding = None,
    model: Model = None,
    weights: Weights = None,
    images: Annotated[int, typer.Option(help="Training rows to alter.")] = 1,
    radius: Annotated[float, typer.Option(help="Size of the box, in grey levels (units, for other inputs).")] = 0.5,
    norm: Annotated[str, typer.Option(help="linf: every entry by itself; l2: the length of the change.")] = "linf",
    layers: Annotated[str, typer.Option(help="last: the last layer, exactly; all: by the model's recipe.")] = "last",
    weight_decay: Annotated[float, typer.Option(help="Of the last layer.")] = 0.01,
    steps: Annotated[
        int | None, typer.Option(help="At most so many steps, of 0.04 radii against one target, else 0.01.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for page, JSON and altered inputs.")] = Path("runs/attack"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Audit your own model: alter training rows so little that nobody sees it, train again, see what flips.

    Example: whence attack photos/ --target dog/12.png --images 2 --radius 1
    """
    check_target(out, _KIND)
    check_writable(out)
    options = ReadOptions(
        label=label, image=image, id=id_column, split=split, drop=tuple(drop or ()), encoding=encoding
    )
    with Stages(quiet=quiet) as stages:
        bring = _bringing(model, weights, layers)
        stages(f"reading {plain(data, 60)}", 0)
        labelled = read(data, options)
        grey = labelled.kind == "image"
        box = Box(
            radius=radius, norm=cast(Literal["linf", "l2"], norm), level=1 / 255 if grey else 1.0,
            low=0.0 if grey else None, high=1.0 if grey else None,
        )  # fmt: skip
        wanted = AttackRun(
            targets=tuple(target), layers=cast(Literal["last", "all"], layers), weight_decay=weight_decay,
            settings=AttackSettings(box=box, images=images, steps=steps, seed=seed),
        )  # fmt: skip
        found, attacked = attack_data(
            labelled, wanted, bring=bring, version=__version__,
            say=lambda what: _say(stages, what), on_step=_progress(stages),
        )  # fmt: skip
    with staged(out) as partial:
        write_manifest(partial, {"kind": _KIND, "whence": __version__, "created": found["created"]})
        write_tensors(partial / "altered.safetensors", {"original": attacked.original, "delta": attacked.deltas})
        text = json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False)
        # what cannot be written, half a surrogate pair in a file's name, becomes its escape in JSON
        (partial / "attack.json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        (partial / "attack.html").write_text(render_attack(found), encoding="utf-8")
    if as_json:
        print_json("attack", {**found, "page": str(out / "attack.html")})
        return
    _print(found, out / "attack.html")


def _bringing(spec: str | None, weights: Path | None, layers: str) -> Bring | None:
    """Return what makes the user's model; weights that are given are not trained over to attack the last layer."""
    if spec is None:
        return None
    function = import_function(spec)

    def bring(rows: LabelledData) -> UserModel:
        own = load_user_model(function, weights, rows, train=False)
        return replace(own, recipe=None) if weights is not None and layers == "last" else own

    return bring


def _say(stages: Stages, what: str) -> None:
    stages(what, 0)


def _progress(stages: Stages) -> Any:
    """Return what is called with (step, most steps)."""
    begun: list[Any] = []

    def step(done: int, total: int) -> None:
        if not begun:
            begun.append(stages.steps("attacking", total))
        begun[0](done, total)

    return step


def _print(found: dict[str, Any], page: Path) -> None:
    """Print what flipped, beside the controls."""
    console, summary = terminal(), found["summary"]
    rows = ", ".join(plain(row["id"], 24) for row in found["altered"])
    which = "row" if len(found["altered"]) == 1 else "rows"
    rows += " is" if len(found["altered"]) == 1 else " are"
    colour = "yellow" if summary["flips"] else "green"
    console.print(
        f"[{colour}]●[/] {summary['flips']} of {summary['targets']} predictions flip when {which} {escape(rows)} "
        f"altered by at most {summary['largest_levels']:.3g} levels"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("the same rows altered by")
    table.add_column("drop of the margin", justify="right")
    table.add_column("flipped", justify="right")
    table.add_row("this attack", f"{summary['margin_drop']:.4g}", str(summary["flips"]))
    for name, control in summary["controls"].items():
        table.add_row(escape(name), f"{control['drop']:.4g}", f"{control['flipped']:g}")
    console.print(table)
    for sentence in found["said"]:
        console.print(f"[dim]{escape(sentence)}[/]")
    console.print(f"[dim]mean margin before: {summary['margin_before']:.4g}; {escape(summary['stopped'])}[/]")
    console.print(f"page: [bold]{escape(str(page))}[/]", soft_wrap=True)
