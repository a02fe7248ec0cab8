"""Fit, scores of 100 queries and self-scores: whence beside kronfluence, captum, pyDVL, traker and dattri.

Every contender runs in a process of its own (for its peak memory) on the same weights, rows and threads, and
measures there also what one plain forward+backward pass over the same rows takes, at its best batch size. A run
of some contenders or models renews their entries in the results and leaves the others.

    python benchmarks/speed.py [--threads 2] [--models mlp cnn transformer] [--only whence-ekfac …] [--tiny]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gates
import peers
import support
import tables
import workloads
from measure import REFERENCE

MEASURE = Path(__file__).with_name("measure.py")
KEY = "reference.txt"


def main() -> None:
    """Prepare the models, start the contenders one after the other, compare."""
    arguments = parse()
    name = f"speed-{arguments.threads}-thread{'s' if arguments.threads > 1 else ''}"
    results = support.results_folder(arguments)  # None: nothing is written
    known = (results and support.read_json(results / f"{name}.json")) or {}
    figures = known.get("figures", {"models": {}, "contenders": {}})
    settings = {key: getattr(arguments, key) for key in ("threads", "limit", "repeats", "least", "steady", "tiny")}
    report = support.Report(name, settings, judged=not arguments.tiny, figures=figures)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or (Path(temporary) if arguments.tiny else support.ROOT / "runs" / "speed")
        for model in arguments.models:
            for _ in compare(model, folder / model, figures, settings, chosen(arguments, model)):
                if results is not None:  # a later contender may be interrupted
                    support.write_json(results / f"{name}.json", report.content(arguments.threads))
    gates.judge(report, figures["contenders"])
    report.close(results, arguments.threads, arguments.strict)
    tables.renew(results)


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=2)
    made.add_argument("--models", nargs="+", choices=workloads.MODELS, default=list(workloads.MODELS))
    made.add_argument("--only", nargs="+", choices=peers.CONTENDERS, default=list(peers.CONTENDERS), metavar="NAME")
    made.add_argument("--limit", type=float, default=400, help="seconds a contender may take on a model (default 400)")
    made.add_argument("--repeats", type=int, default=7, help="most repetitions (the median counts)")
    made.add_argument("--least", type=int, default=2, help="least repetitions of whence; of the others it is 1")
    made.add_argument("--steady", type=float, default=60, help="no further repetition after so many seconds of them")
    made.add_argument("--folder", type=Path, help="where weights and scores are kept (default runs/speed)")
    arguments = made.parse_args()
    if arguments.tiny:
        arguments.repeats = arguments.least = 1
    return arguments


def chosen(arguments: argparse.Namespace, model: str) -> list[str]:
    """Return the contenders to run on a model; those that cannot be imported are named."""
    names = []
    for name in arguments.only:
        contender = peers.CONTENDERS[name]
        if not contender.installed:
            print(f"{name} is left out: {contender.library} is not installed (benchmarks/requirements.txt).")
        elif model not in contender.models:
            print(f"{name} is left out on {model}: {contender.note or 'it does not take such layers.'}")
        else:
            names.append(name)
    return names


def compare(
    model: str, folder: Path, figures: dict[str, Any], settings: dict[str, Any], names: list[str]
) -> Iterator[None]:
    """Run contenders on one model and put their entries into the figures; yields after every process."""
    weights, described = prepare(model, folder, settings["tiny"])
    support.limit_threads(settings["threads"])
    support.write_json(folder / "settings.json", {**settings, "model": model})
    entries = figures["contenders"].setdefault(model, {})
    if entries and figures["models"].get(model, {}).get("weights") != weights:
        print(f"{model}: the weights are new; {len(entries)} earlier entries on other weights are dropped.")
        entries.clear()
    figures["models"][model] = {**described, "weights": weights}
    print(f"{model}: {described}", flush=True)
    key = f"{weights} {support.code_fingerprint()}"
    if not is_current(folder, key):
        if failure := start(folder, [REFERENCE], None):
            raise SystemExit(f"the exact scores of {model} could not be computed: {failure}.")
        (folder / KEY).write_text(key, "ascii")
    with np.load(folder / f"{REFERENCE}.npz") as file:
        exact = dict(file)
    for group in [names] if settings["tiny"] else [[name] for name in names]:
        print(f"running {', '.join(group)} …", flush=True)
        for name, entry in measured(group, folder, settings).items():
            entry["agreement"] = agreement(peers.CONTENDERS[name], folder / f"{name}.npz", exact)
            entry |= {"date": time.strftime("%Y-%m-%d", time.gmtime()), "limit": settings["limit"]}
            if peers.CONTENDERS[name].ours:
                entry["code"] = support.code_fingerprint()
            entries[name] = entry
            show(name, entry)
        figures["contenders"][model] = {known: entries[known] for known in peers.CONTENDERS if known in entries}
        yield


def prepare(model: str, folder: Path, tiny: bool) -> tuple[str, dict[str, Any]]:
    """Train a model, on one thread, unless its weights are there; return their fingerprint and a description."""
    support.limit_threads(1)
    plan = workloads.plan(model, tiny)
    path = folder / "weights.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{name: value.numpy() for name, value in plan.train().state_dict().items()})
    with np.load(path) as file:
        state = {name: torch.from_numpy(file[name]) for name in file.files}
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values()))
    digest.update(b"".join(array.tobytes() for array in plan.arrays.values()))
    return digest.hexdigest()[:12], plan.workload(model, state).description


def is_current(folder: Path, key: str) -> bool:
    """Whether the exact scores in the folder are of these weights and this code."""
    marker = folder / KEY
    return marker.is_file() and marker.read_text("ascii") == key


def measured(names: list[str], folder: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Run contenders in one process and return their entries; if it dies, entries that say so."""
    for name in names:
        for kind in ("json", "npz"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    begun = time.perf_counter()
    # a contender's own alarm comes first, unless one call of it takes that long
    failure = start(folder, names, len(names) * (2 * settings["limit"] + 120)) if names else None
    entries = {}
    for name in names:
        entry: dict[str, Any] | None = support.read_json(folder / f"{name}.json")
        if entry is None:
            entry = {"seconds": {}, "repeats": 0, "memory_mb": None}
            lost = {"step": "fit", "seconds": time.perf_counter() - begun}
            entry |= {"stopped": lost} if failure is None else {"failed": {"step": "", "error": failure}}
        if peers.CONTENDERS[name].ours and not ({"fit", "pairwise", "self"} <= entry["seconds"].keys()):
            raise SystemExit(f"{name} did not finish: {failure or 'the time limit'}")
        entries[name] = entry
    return entries


def start(folder: Path, names: list[str], patience: float | None) -> str | None:
    """Run ``measure.py``; return what went wrong, None if nothing did or patience ended."""
    warnings = [] if all(name == REFERENCE or peers.CONTENDERS[name].ours for name in names) else ["-W", "ignore"]
    command = [sys.executable, *warnings, str(MEASURE), str(folder), *names]
    try:
        done = subprocess.run(command, timeout=patience, env={**os.environ, "TQDM_DISABLE": "1"})
    except subprocess.TimeoutExpired:
        return None
    return f"its process ended with {done.returncode}" if done.returncode else None


def agreement(contender: peers.Contender, path: Path, exact: dict[str, np.ndarray]) -> dict[str, float]:
    """Correlate scores with the exact ones: pairwise the median over queries, self-scores over rows.

    "exact" is the whole eigen-grid and "low" the same at a damping of 1e-8, on the contender's own layers (for
    the last layer alone: on all); "dot" are gradient dot products on its own layers.
    """
    if not path.is_file():
        return {}
    with np.load(path) as file:
        scores = dict(file)
    layers = contender.layers if f"{contender.layers}/dot/self" in exact else "all"
    found = {}
    for what in ("exact", "low", "dot"):
        held = "all" if layers == "last" and what != "dot" else layers
        for step, values in scores.items():
            truth = exact[f"{held}/{what}/{step}"]
            rows = zip(np.atleast_2d(values), np.atleast_2d(truth), strict=True)
            with np.errstate(invalid="ignore", divide="ignore"):
                found[f"{what}/{step}"] = float(np.median([np.corrcoef(a, b)[0, 1] for a, b in rows]))
    return found


def show(name: str, entry: dict[str, Any]) -> None:
    """Print one contender's line."""
    parts = [f"{step} {seconds:.3f} s" for step, seconds in entry["seconds"].items()]
    if "pass" in entry:
        plain = entry["pass"]["seconds"]
        passes = " / ".join(f"{seconds / plain:.2f}" for seconds in entry["seconds"].values())
        parts.append(f"{passes} passes of {plain:.3f} s (batch {entry['pass']['batch']})")
    if entry["memory_mb"] is not None:
        parts.append(f"{entry['memory_mb']:.0f} MB added")
    if stopped := entry.get("stopped"):
        parts.append(f"stopped after {stopped['seconds']:.0f} s of {stopped['step']}")
    if failed := entry.get("failed"):
        parts.append(f"failed in {failed['step']}: {failed['error']}")
    parts += [f"r {what} {value:.4f}" for what, value in entry["agreement"].items()]
    print(f"  {name}: " + "; ".join(parts), flush=True)


if __name__ == "__main__":
    main()
