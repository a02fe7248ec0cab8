"""``whence doctor``: whether this machine is fit for the job, and what it offers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from whence import __version__
from whence.cli import environment
from whence.cli.console import plain, print_json, size, terminal
from whence.cli.options import AsJson, Quiet
from whence.data.misses import check_the_path

__all__ = ["doctor_command"]

_LITTLE_MEMORY = 2 * 10**9
_LITTLE_DISK = 10**9


def doctor_command(
    data: Annotated[Path | None, typer.Option(help="Data that is to be audited: can it be read?")] = None,
    out: Annotated[Path, typer.Option(help="Folder that runs are to be written to: can it be?")] = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check this machine: versions, devices, memory, optional extras, folders. Exit code 1 if something must be mended.

    Example: whence doctor --out runs
    """
    found = _examined(data, out)
    if as_json:
        print_json("doctor", found)
    else:
        _print(found)
    if found["problems"]:
        raise typer.Exit(1)


def _examined(data: Path | None, out: Path) -> dict[str, Any]:
    """Return what was found, what must be mended and what could be better."""
    needed, extras = environment.packages()
    folders = {"runs": environment.folder(out)}
    if data is not None:
        folders["data"] = environment.folder(data, file=True)
    found: dict[str, Any] = {
        "system": environment.system(),
        "processors": environment.processors(),
        "memory": environment.memory(),
        "devices": environment.devices(),
        "packages": needed,
        "extras": {name: {"installed": all(held.values()), "packages": held} for name, held in extras.items()},
        "folders": folders,
    }
    problems = _problems(found, data)
    return {"ok": not problems, "problems": problems, "advice": _advice(found), **found}


def _problems(found: dict[str, Any], data: Path | None) -> list[str]:
    """Return what must be mended."""
    told = [f"{name} is missing. Install whence again." for name, held in found["packages"].items() if held is None]
    told += [f"{one['name']} does not compute: {one['reason']}." for one in found["devices"] if not one["works"]]
    runs = found["folders"]["runs"]
    if not runs["writable"]:
        told.append(f"{runs['path']} cannot be written to: {runs['reason']}. Choose another --out.")
    if data is not None and not (found["folders"]["data"]["exists"] and found["folders"]["data"]["readable"]):
        told.append(f"{data} cannot be read. {check_the_path(data)}")
    return told


def _advice(found: dict[str, Any]) -> list[str]:
    """Return what could be better."""
    told, processors, memory = [], found["processors"], found["memory"]
    if processors["usable"] and processors["threads"] > processors["usable"]:
        told.append(
            f"PyTorch takes {processors['threads']} threads on {processors['usable']} processors. "
            f"Set OMP_NUM_THREADS={processors['usable']}."
        )
    held = [memory[name] for name in ("available_bytes", "limit_bytes") if memory[name] is not None]
    if held and min(held) < _LITTLE_MEMORY:
        told.append(f"Only {size(min(held))} of memory: large data will not fit. See whence plan.")
    for one in found["folders"].values():
        if one["free_bytes"] < _LITTLE_DISK:
            told.append(f"Only {size(one['free_bytes'])} free at {one['path']}.")
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        told.append("There is an NVIDIA driver, but PyTorch was built without CUDA. Install a CUDA build to use it.")
    return told


def _print(found: dict[str, Any]) -> None:
    """Print a line a finding, what must be mended last."""
    console, system, processors = terminal(), found["system"], found["processors"]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("whence", __version__)
    table.add_row("Python", escape(f"{system['python']} ({system['executable']})"))
    table.add_row("system", escape(f"{system['system']}, {system['machine']}"))
    table.add_row("processors", f"{processors['usable']} of {processors['count']}, {processors['threads']} threads")
    table.add_row("memory", _memory(found["memory"]))
    for one in found["devices"]:
        room = f", {size(one['memory_bytes'])}" if "memory_bytes" in one else ""
        exact = "" if one["float64"] else ", no float64"
        table.add_row("device", f"{_mark(one['works'])} {one['name']} {escape(one['description'])}{room}{exact}")
    versions = ", ".join(f"{name} {held or 'missing'}" for name, held in found["packages"].items())
    table.add_row("packages", escape(versions))
    for name, extra in found["extras"].items():
        lacking = ", ".join(package for package, held in extra["packages"].items() if held is None)
        state = "installed" if extra["installed"] else f"without {lacking}: pip install 'whence[{name}]'"
        table.add_row("extra", f"{name} [dim]{escape(state)}[/]")
    for name, one in found["folders"].items():
        read = name == "data"  # it need not be written to
        good = one["exists"] and one["readable"] if read else one["writable"]
        state = f"can{'' if good else 'not'} be {'read' if read else 'written to'}, {size(one['free_bytes'])} free"
        table.add_row(name, f"{_mark(good)} {escape(plain(one['path'], 60))} {state}")
    console.print(table)
    for sentence in found["advice"]:
        console.print(f"[yellow]●[/] {escape(plain(sentence, 300))}", soft_wrap=True)
    for sentence in found["problems"]:
        console.print(f"[red]●[/] {escape(plain(sentence, 300))}", soft_wrap=True)
    if not found["problems"]:
        console.print("[green]●[/] Ready.")


def _memory(memory: dict[str, int | None]) -> str:
    """Return memory in words."""
    names = {"total_bytes": "in all", "available_bytes": "available", "limit_bytes": "at most in this container"}
    told = [f"{size(held)} {names[name]}" for name, held in memory.items() if held is not None]
    return ", ".join(told) or "unknown"


def _mark(good: bool) -> str:
    """Return a coloured sign."""
    return "[green]●[/]" if good else "[red]●[/]"
