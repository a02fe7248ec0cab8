"""A real Chromium goes through the explorer as a person does, on real data with 5 % of the labels flipped.

Open the printed address, find the first suspect, see its evidence, relabel it, decide about twenty more by keys,
export, train again, ask about a new input: after ``whence audit`` and with ``whence serve --edit``, both as commands.
What the downloaded file must be is computed here, from the source and from what was pressed.

    python benchmarks/explorer_drive.py [--parts sms adult mnist fashion] [--folder DIR] [--pictures DIR] [--tiny]

One result file a part.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import drive_data
import drive_steps
import support
import tables
from drive_data import Part
from drive_steps import Person

FURTHER = 20  # suspects to decide about after the first
TINY_FURTHER = 6
OUTCOME = ("Accuracy before", "Accuracy after", "Measured change", "Predicted change")
LONGEST = 3 * 3600.0  # seconds that training again may take
NO_BROWSER = "a Chromium and the Python package playwright must be installed, and were not found: nothing was driven"
STEPS = ("opened without the key left in the address", "first suspect found by key", "its page shows evidence",
         "relabelled by key", "further suspects decided by keys", "exported", "trained again, prediction beside it",
         "a new input answered with evidence")  # fmt: skip


def main() -> None:
    """Drive every part."""
    made = support.parser(__doc__.splitlines()[0], threads=2)
    made.add_argument("--parts", nargs="+", choices=drive_data.PARTS, default=None)
    made.add_argument("--folder", type=Path, default=None, help="where data and runs are kept, and used again")
    made.add_argument("--pictures", type=Path, default=None, help="folder for pictures of every page")
    arguments = made.parse_args()
    if drive_steps.browser_path() is None:
        raise SystemExit(NO_BROWSER)
    support.limit_threads(arguments.threads)
    chosen = arguments.parts or (("sms",) if arguments.tiny else drive_data.PARTS)
    results, failed = support.results_folder(arguments), 0
    settings = {"tiny": arguments.tiny, "further": TINY_FURTHER if arguments.tiny else FURTHER}
    with tempfile.TemporaryDirectory() as spare:
        for name in chosen:
            report = support.Report(f"explorer_drive-{name}", settings, judged=not arguments.tiny)
            folder = (arguments.folder or Path(spare)) / name
            drive(drive_data.make(name, folder, arguments.tiny), folder, arguments, report)
            report.close(results, arguments.threads, strict=False)
            failed += report.failed
    tables.renew(results)
    if arguments.strict and failed:
        raise SystemExit(1)


def drive(part: Part, folder: Path, arguments: argparse.Namespace, report: support.Report) -> None:
    """Audit a part, serve it, go through it, and judge."""
    figures = report.figures
    figures |= {"rows": part.rows, "wrong": len(part.wrong)}
    run = folder / "run"
    figures["audit"] = audit(part, run)
    for left in ("decisions.parquet", "retrain.json"):
        (run / left).unlink(missing_ok=True)
    figures["trainings_kept"] = len(list((run / "cache").rglob("*.npy")))
    with served(run, figures) as address, drive_steps.at_the_explorer(arguments.pictures, part.name) as person:
        done, decided = go_through(person, part, folder, address, report)
        report.gate(f"{part.name}: errors in the browser's console", len(person.errors), high=0)
        figures["page_ms"], figures["errors"] = person.loads, person.errors[:5]
    for step in STEPS:
        report.gate(f"{part.name}: {step}", float(done.get(step, False)), low=1)
    differs = drive_data.difference(part, folder / f"decided{part.ending}", decided)
    report.gate(f"{part.name}: exported rows that are not as decided", differs.amiss, high=0)
    if hasattr(os, "getloadavg"):
        figures["load_average"] = os.getloadavg()[2]  # of 15 minutes: seconds by the clock are longer on a busy machine
    figures |= {"decided": len(decided), "decided_wrong": drive_data.truly_wrong(part, decided),
                "changed": differs.changed, "guarded_cells": differs.guarded}  # fmt: skip


def go_through(
    person: Person, part: Part, folder: Path, address: str, report: support.Report
) -> tuple[dict[str, bool], dict[str, tuple[str, str | None]]]:
    """Do every step; return which were done, and what was decided."""
    done, further, figures = dict.fromkeys(STEPS, False), report.settings["further"], report.figures
    done[STEPS[0]] = person.open(address)
    first = person.first_suspect()
    done[STEPS[1]] = bool(first)
    figures["evidence"] = person.evidence()
    done[STEPS[2]] = figures["evidence"] > 0
    decided = {first: person.decide("r", first)}
    done[STEPS[3]] = decided[first][1] is not None
    person.picture("relabelled")
    person.go("Queue")
    decided |= person.decide_more(further)
    done[STEPS[4]] = len(decided) == further + 1
    person.go("Queue")
    person.look("decided")
    done[STEPS[5]] = person.export(part.ending, folder / f"decided{part.ending}").is_file()
    started = time.perf_counter()
    figures["retrained"] = person.retrain(LONGEST)
    figures["retrain_s"] = time.perf_counter() - started
    done[STEPS[6]] = set(OUTCOME) <= set(figures["retrained"])
    figures["read_as"], named = person.ask(part)
    done[STEPS[7]] = bool(figures["read_as"]) and named > 0
    person.look_around()
    return done, decided


def command(*arguments: object) -> list[str]:
    """Return the command line of the environment that runs this."""
    found = shutil.which("whence", path=str(Path(sys.executable).parent)) or shutil.which("whence")
    if found is None:
        raise SystemExit("the whence command must be installed beside this Python. Try pip install -e .")
    return [found, *map(str, arguments)]


def audit(part: Part, run: Path) -> dict[str, float]:
    """Run ``whence audit`` unless it was; return its seconds and, where the system tells, its memory."""
    kept = run.parent / "audit.json"
    if (run / "manifest.json").is_file() and (found := support.read_json(kept)):
        return dict(found)
    started = time.perf_counter()
    process = subprocess.Popen(command("audit", part.source, *part.options, "--out", run, "--quiet"),
                               stdout=subprocess.DEVNULL)  # fmt: skip
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        figures = {"peak_mb": usage.ru_maxrss / 1024, "cpu_s": usage.ru_utime + usage.ru_stime}
    else:
        code, figures = process.wait(), {}
    if code != 0:
        raise SystemExit(f"whence audit of {part.name} must end with 0, got {code}")
    figures["seconds"] = time.perf_counter() - started
    support.write_json(kept, figures)
    return figures


@contextmanager
def served(run: Path, figures: dict[str, Any]) -> Iterator[str]:
    """Run ``whence serve --edit`` meanwhile, and give the address that it prints."""
    started = time.perf_counter()
    process = subprocess.Popen(command("serve", run, "--edit", "--port", 0), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        figures["open_s"] = time.perf_counter() - started
        if not line.startswith("explorer: "):
            raise SystemExit(f"whence serve must print its address, got {line!r}")
        yield line.split()[1]
        figures["serve_peak_mb"] = peak_memory(process.pid)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def peak_memory(process: int) -> float | None:
    """Return the most memory that a process held, in MB, where the system tells."""
    path = Path(f"/proc/{process}/status")
    if not path.is_file():
        return None
    found = [line.split()[1] for line in path.read_text("utf-8").splitlines() if line.startswith("VmHWM:")]
    return float(found[0]) / 1024 if found else None


if __name__ == "__main__":
    main()
