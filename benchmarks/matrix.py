"""Task × method × metric: whence, humble baselines and other libraries on the same models, by the same ground truth.

A task is a model trained on real rows of which a tenth have a flipped label. Every method gives scores of held-out
queries and a self-score (or suspicion) of every training row, once, in a process of its own, under a time limit.
They are judged by models trained on random halves (lds), without single rows (loo), and by the flipped labels
(detection), beside processor seconds and memory.

    python benchmarks/matrix.py [--tasks mnist_mlp …] [--methods whence-ekfac …] [--metrics lds …] [--fresh] [--tiny]

Trainings and scores are kept under --folder: what a call does not ask for, or did before, is taken from there. Where
the library has changed since, --fresh measures its methods again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import matrix_tasks
import support
import tables
import whence as wh
from matrix_methods import METHODS, installed, kind
from matrix_tasks import TASKS, TITLES, TRUTHS, MatrixTask
from measure import STEPS, Measurement
from peers import EKFAC
from whence.evaluate import Judgement
from workloads import Workload

METRICS = (*TRUTHS, "seconds", "memory")
PATIENCE = 60.0  # seconds a process may take beyond its time limits: start, plain passes, a call that cannot be stopped


def main() -> None:
    """Fill the matrix task by task; write what is known after each."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    results = support.results_folder(arguments)
    asked = ("threads", "limit", "tiny", "metrics")
    report = support.Report("matrix", {name: getattr(arguments, name) for name in asked}, judged=not arguments.tiny)
    report.figures |= {"tasks": {}, "cells": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or (Path(temporary) if arguments.tiny else support.ROOT / "runs" / "matrix")
        for name in TASKS:
            if name in arguments.tasks or (folder / name / "key.txt").is_file():
                one_task(name, folder, arguments, report)
                if results is not None:
                    support.write_json(results / f"{report.name}.json", report.content(arguments.threads))
    report.close(results, arguments.threads, arguments.strict)
    tables.renew(results)


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=1)
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    made.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS), metavar="METRIC")
    made.add_argument("--limit", type=float, default=120, help="seconds a method may take on a task (default 120)")
    made.add_argument("--folder", type=Path, help="where trainings and scores are kept (default runs/matrix)")
    made.add_argument("--fresh", action="store_true", help="run methods again whose scores are kept")
    return made.parse_args()


# --- one task ------------------------------------------------------------------------------------------------------


def one_task(name: str, folder: Path, arguments: argparse.Namespace, report: support.Report) -> None:
    """Run what is missing of a task, judge everything, and put it into the report."""
    begun = time.perf_counter()
    task = matrix_tasks.load(name, arguments.tiny, folder / "cache")
    described = {**task.workload.description, "wrong": int(task.wrong.sum()), **vars(task.size)}
    print(f"{TITLES[name]}: {described}", flush=True)
    held = scores_folder(folder / name, task.fingerprint)
    wanted = installed(arguments.methods) if name in arguments.tasks else []
    run(wanted, task.workload, held, arguments)
    entries = {method: entry for method in METHODS if (entry := kept(held, method)) is not None}
    scores, suspicions = found(entries, held, task)
    judged: dict[str, Judgement] = {}
    for truth in TRUTHS:
        if truth in arguments.metrics:
            judged[truth] = task.truth(truth).judge(suspicions if truth == "detection" else scores)
    report.figures["tasks"][name] = {
        **described, "ceilings": {truth: one.ceiling for truth, one in judged.items()},
        "seconds": time.perf_counter() - begun,
    }  # fmt: skip
    cells = {method: cell(method, entry, judged, arguments.metrics) for method, entry in entries.items()}
    report.figures["cells"][name] = cells
    for method, values in cells.items():
        print(f"  {METHODS[method].label}: {values['metrics']} {values['note']}", flush=True)
    judge(report, name, judged, entries)


def scores_folder(folder: Path, fingerprint: str) -> Path:
    """Return the folder of a task's scores; scores of other weights or rows are dropped."""
    key = folder / "key.txt"
    if key.is_file() and key.read_text("ascii") != fingerprint:
        for path in (*folder.glob("*.json"), *folder.glob("*.npz")):
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    key.write_text(fingerprint, "ascii")
    return folder


def kept(held: Path, method: str) -> dict[str, Any] | None:
    """Return what is kept of a method; None where it was never run to the end."""
    entry: dict[str, Any] | None = support.read_json(held / f"{method}.json")
    return entry if entry is not None and "date" in entry else None


def cell(name: str, entry: dict[str, Any], judged: dict[str, Judgement], asked: list[str]) -> dict[str, Any]:
    """Return one method's row of the matrix: every metric that it has."""
    accuracies = {truth: one.accuracy[name] for truth, one in judged.items() if name in one.accuracy}
    metrics: dict[str, Any] = {truth: [one.value, one.low, one.high] for truth, one in accuracies.items()}
    spent, complete = processor_seconds(entry)
    if "seconds" in asked and spent:
        metrics["seconds"] = spent
    if "memory" in asked and entry["memory_mb"] is not None and kind(name) != "baseline":
        metrics["memory"] = entry["memory_mb"]
    stopped, failed, note = entry.get("stopped"), entry.get("failed"), ""
    if stopped:
        note = f"stopped after {stopped['seconds']:.0f} s of {stopped['step']}"
    if failed:
        note = f"{failed['step']}: {failed['error']}"
    plain = entry.get("pass", {}).get("cpu_seconds")
    return {
        "label": METHODS[name].label, "kind": kind(name), "metrics": metrics, "complete": complete, "note": note,
        "passes": spent / plain if plain and complete and spent else None, "steps": entry.get("cpu_seconds", {}),
        "version": entry.get("version"), "code": entry.get("code"), "date": entry["date"],
    }  # fmt: skip


def processor_seconds(entry: dict[str, Any]) -> tuple[float, bool]:
    """Return the processor seconds of all steps that were finished, and whether none was stopped or failed."""
    spent = entry.get("cpu_seconds", {})
    return sum(spent.get(step, 0.0) for step in STEPS), not ({"stopped", "failed"} & entry.keys())


def found(entries: dict[str, Any], held: Path, task: MatrixTask) -> tuple[dict[str, wh.Scores], dict[str, wh.Signal]]:
    """Return the scores and the self-scores that lie in the folder; what is not finite is a failure."""
    scores, suspicions = {}, {}
    for name, entry in entries.items():
        path = held / f"{name}.npz"
        if not path.is_file():
            continue
        with np.load(path) as file:
            arrays = dict(file)
        if not all(np.isfinite(values).all() for values in arrays.values()):
            entry["failed"] = {"step": "all", "error": "scores are not finite"}
            continue
        ids = task.bench.train.ids
        if "pairwise" in arrays:
            values = torch.from_numpy(arrays["pairwise"].astype(np.float64))
            scores[name] = wh.Scores(values=values, query_ids=task.queries.ids, ids=ids, unit=None)
        if "self" in arrays:
            suspicions[name] = wh.Signal(values=arrays["self"].astype(np.float64), ids=ids, name=name, unit=None)
    return scores, suspicions


# --- running methods -----------------------------------------------------------------------------------------------


def run(names: list[str], workload: Workload, held: Path, arguments: argparse.Namespace) -> None:
    """Run the methods whose scores are not there: the baselines in one process, each of the others in its own."""
    todo = [name for name in names if arguments.fresh or kept(held, name) is None]
    humble = [name for name in todo if kind(name) == "baseline"]
    single = [[name] for name in todo if name not in humble]
    together = [[name for group in single for name in group] + humble] if arguments.tiny else [*single, humble]
    for group in together:
        if group:
            print(f"  running {', '.join(group)} …", flush=True)
            one_process(group, workload, held, arguments)


def one_process(names: list[str], workload: Workload, held: Path, arguments: argparse.Namespace) -> None:
    """Run some methods in a process of their own; one that dies leaves entries that say so."""
    for name in names:
        for suffix in ("json", "npz"):
            (held / f"{name}.{suffix}").unlink(missing_ok=True)
    settings = {"limit": arguments.limit, "repeats": 1 if arguments.tiny else 3, "least": 1, "steady": 5.0}
    os.environ["TQDM_DISABLE"] = "1"
    context, begun = multiprocessing.get_context("spawn"), time.perf_counter()
    process = context.Process(target=measured, args=(names, workload, held, settings, arguments.threads))
    process.start()
    process.join(len(names) * (arguments.limit + PATIENCE))
    if late := process.is_alive():
        process.kill()
        process.join()
    for name in names:
        entry = support.read_json(held / f"{name}.json")
        if entry is None and kind(name) != "peer":
            raise SystemExit(f"{name} did not finish: its process ended with {process.exitcode}.")
        if entry is None:
            entry = {"seconds": {}, "repeats": 0, "memory_mb": None}
            lost = {"step": "fit", "seconds": time.perf_counter() - begun}
            died = {"step": "process", "error": f"ended with {process.exitcode}"}
            entry |= {"stopped": lost} if late else {"failed": died}
        entry["date"] = time.strftime("%Y-%m-%d", time.gmtime())
        if METHODS[name].ours:
            entry["code"] = support.code_fingerprint()
        support.write_json(held / f"{name}.json", entry)


def measured(names: list[str], workload: Workload, held: Path, settings: dict[str, Any], threads: int) -> None:
    """Measure methods in this process."""
    torch.set_num_threads(threads)
    for name in names:
        torch.manual_seed(0)  # some libraries draw from the global generator
        with warnings.catch_warnings():
            if kind(name) == "peer":
                warnings.simplefilter("ignore")
            Measurement(METHODS[name], workload, settings, held / name).run()


# --- gates ---------------------------------------------------------------------------------------------------------


def judge(report: support.Report, task: str, judged: dict[str, Judgement], entries: dict[str, Any]) -> None:
    """Hold whence against the peers, and the judge against the random baseline."""
    for truth, judgement in judged.items():
        best = {
            which: max((n for n in judgement.accuracy if kind(n) == which), default=None,
                       key=lambda name, known=judgement.accuracy: known[name].value)
            for which in ("ours", "peer")
        }  # fmt: skip
        ours, theirs = best["ours"], best["peer"]
        what = f"{task}: {truth} of the best setting of whence is not significantly below the best peer's"
        if ours is None or theirs is None:
            report.gate(what, None, low=0)
        else:
            more = judgement.gain(ours, theirs)
            named = f"{METHODS[ours].label} minus {METHODS[theirs].label}: {more}"
            report.gate(f"{what} ({named}), upper end", more.high, low=0)
        if truth == "lds" and "random" in judgement.accuracy:
            report.gate(f"{task}: LDS of random scores, lower end", judgement.accuracy["random"].low, high=0)
    rivals = [
        processor_seconds(entry)[0] for name, entry in entries.items()
        if kind(name) == "peer" and METHODS[name].method == EKFAC and "pairwise" in entry["seconds"]
    ]  # fmt: skip
    value = None
    if rivals and "whence-ekfac" in entries:
        value = min(rivals) / processor_seconds(entries["whence-ekfac"])[0]
    report.gate(f"{task}: times faster than the fastest peer's EK-FAC, in total", value, low=1)


if __name__ == "__main__":
    main()
