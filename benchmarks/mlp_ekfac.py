"""EK-FAC on a 784-256-256-10 MLP, 10,000 MNIST rows, 100 queries: whence and kronfluence side by side.

Every contender runs in a process of its own (for its peak memory) on the same weights, rows and threads, and
also measures there what one plain forward+backward pass over the same rows takes, at its best batch size.

    python benchmarks/mlp_ekfac.py [--threads 2] [--repeats 7] [--peer-repeats 1] [--tiny]
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

import support
import tables
import whence as wh

STEPS = ("fit", "self", "pairwise")
WHENCE = ("whence", "whence-unbuffered")
PEERS = ("kronfluence-defaults", "kronfluence-fastest")
PASS_BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 5000, 10_000)


def build(widths: list[int]) -> nn.Sequential:
    """A ReLU MLP."""
    layers: list[nn.Module] = []
    for position, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] if position else []
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


# --- one contender, in its own process -----------------------------------------------------------------------------


def work(contender: str, folder: Path, settings: dict[str, Any]) -> None:
    """Measure one contender on what ``prepare`` left in the folder; leave figures and scores there."""
    with np.load(folder / "work.npz") as file:
        stored = {name: torch.from_numpy(file[name]) for name in file.files}
    model = build(settings["widths"])
    model.load_state_dict({name[2:]: value for name, value in stored.items() if name.startswith("w.")})
    model.eval()
    train, queries = (stored["x"], stored["y"]), (stored["xq"], stored["yq"])
    probe = torch.ones(2, requires_grad=True)
    torch.autograd.grad(probe * 2, probe, torch.ones(2))  # torch imports more at this first call: not to be counted
    run = run_whence if contender in WHENCE else run_kronfluence
    figures, scores = run(contender, model, train, queries, settings)
    np.savez(folder / f"{contender}.npz", **scores)
    support.write_json(folder / f"{contender}.json", figures)


Pair = tuple[torch.Tensor, torch.Tensor]
Outcome = tuple[dict[str, Any], dict[str, np.ndarray]]


def run_whence(contender: str, model: nn.Module, train: Pair, queries: Pair, settings: dict[str, Any]) -> Outcome:
    """Repeat fit, self-scores and scores, with a plain pass after each repetition.

    "whence" is the default: self_scores() and scores() reuse the factors that fit() kept in memory.
    "whence-unbuffered" may keep nothing (memory_budget=0): fit takes two passes, each call takes its own.
    """
    budget = {} if contender == "whence" else {"memory_budget": 0}
    task = wh.Task(model)
    runs: list[dict[str, Any]] = []
    passes: list[list[list[float]]] = []
    scores: dict[str, np.ndarray] = {}
    baseline, peak = memory(fresh=True), 0.0
    summary: dict[str, Any] = {}
    for repetition in range(settings["repeats"]):
        clocks = {step: support.Clock() for step in STEPS}
        with clocks["fit"]:
            attribution = wh.Influence(curvature=wh.EKFAC(), **budget).fit(task, train)
        with clocks["self"]:
            own = attribution.self_scores()
        with clocks["pairwise"]:
            pairs = attribution.scores(queries)
        runs.append({step: [clock.wall, clock.cpu] for step, clock in clocks.items()})
        if repetition == 0:
            peak = memory()
            scores = {"self": np.asarray(own), "pairwise": pairs.values.numpy()}
            summary = attribution.summary()["curvature"]
        del attribution, own, pairs
        passes.append(one_pass(model, train))
    if contender == "whence":  # the same damping as kronfluence's default, for the correlation only
        attribution = wh.Influence(curvature=wh.EKFAC(damping=1e-8)).fit(task, train)
        scores["self_1e-8"] = np.asarray(attribution.self_scores())
        scores["pairwise_1e-8"] = attribution.scores(queries).values.numpy()
    figures = {"runs": runs, "memory_mb": peak - baseline, "passes": passes, "summary": summary}
    return figures, scores


def run_kronfluence(contender: str, model: nn.Module, train: Pair, queries: Pair, settings: dict[str, Any]) -> Outcome:
    """Run kronfluence's EK-FAC as its users do, once or a few times."""
    import peer

    fastest = contender == "kronfluence-fastest"
    plain = copy.deepcopy(model)
    baseline, runs, peak, passes = memory(fresh=True), [], 0.0, []
    scores: dict[str, np.ndarray] = {}
    for repetition in range(settings["peer_repeats"]):
        clocks = {step: support.Clock() for step in STEPS}
        with tempfile.TemporaryDirectory() as folder:
            analysis = peer.Analysis(copy.deepcopy(model), train, queries, folder, fastest)
            with clocks["fit"]:
                analysis.fit()
            with clocks["self"]:
                own = analysis.self_scores()
            with clocks["pairwise"]:
                pairs = analysis.pairwise()
            runs.append({step: [clock.wall, clock.cpu] for step, clock in clocks.items()})
            if repetition == 0:
                peak = memory()
                scores = {"self": own, "pairwise": pairs}
                if fastest:
                    scores["pairwise_full_rank"] = analysis.pairwise(low_rank=False)
        passes += [one_pass(plain, train) for _ in range(3)]
    return {"runs": runs, "memory_mb": peak - baseline, "passes": passes}, scores


def one_pass(model: nn.Module, train: Pair) -> list[list[float]]:
    """Return seconds (wall, processor) of a forward+backward pass with weight gradients, for every batch size."""
    x, y = train
    seconds = []
    for size in PASS_BATCHES:
        with support.Clock() as clock:
            for start in range(0, len(x), size):
                model.zero_grad()
                nn.functional.cross_entropy(model(x[start : start + size]), y[start : start + size]).backward()
        seconds.append([clock.wall, clock.cpu])
    model.zero_grad()
    return seconds


def memory(*, fresh: bool = False) -> float:
    """Return this process's peak resident memory in MB; ``fresh`` starts a new peak from what is resident now.

    Linux alone can start a new peak. Elsewhere the peak is since the start, and what is added may be understated.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
    if fresh:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    lines = dict(line.split(":", 1) for line in status.read_text("ascii").splitlines())
    return float(lines["VmHWM"].split()[0]) / 2**10


# --- the whole comparison ------------------------------------------------------------------------------------------


def main() -> None:
    """Prepare, start the contenders one after the other, compare."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    settings = {
        "widths": [784, 32, 32, 10] if arguments.tiny else [784, 256, 256, 10],
        "queries": 10 if arguments.tiny else 100,
        "epochs": 2 if arguments.tiny else 5,
        "repeats": 1 if arguments.tiny else arguments.repeats,
        "peer_repeats": arguments.peer_repeats,
        "threads": arguments.threads,
    }
    if arguments.worker:
        settings = json.loads((arguments.folder / "settings.json").read_text("utf-8"))
        torch.manual_seed(0)  # kronfluence draws its sampled labels from the global generator
        work(arguments.worker, arguments.folder, settings)
        return
    installed = importlib.util.find_spec("kronfluence") is not None and not arguments.no_peers
    if not installed:
        print("kronfluence is left out (pip install -r benchmarks/requirements.txt); gates against it are not judged.")
    name = f"mlp_ekfac-{arguments.threads}-thread{'s' if arguments.threads > 1 else ''}"
    report = support.Report(name, settings, judged=not arguments.tiny)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        report.figures["model"] = prepare(folder, settings, arguments.tiny)
        measured = {}
        for contender in (*WHENCE, *(PEERS if installed else ())):
            print(f"running {contender} …", flush=True)
            command = [sys.executable, "-W", "ignore::FutureWarning", __file__, "--worker", contender]
            subprocess.run([*command, "--folder", temporary, "--threads", str(arguments.threads)], check=True)
            measured[contender] = digest(support.read_json(folder / f"{contender}.json"))
            show(contender, measured[contender])
        report.figures["contenders"] = measured
        report.figures["agreement"] = agreement(folder, list(measured))
    judge(report, measured)
    report.close(support.results_folder(arguments), arguments.threads, arguments.strict)
    tables.renew(support.results_folder(arguments))


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=2)
    made.add_argument("--repeats", type=int, default=7, help="repetitions of whence (the median counts)")
    made.add_argument("--peer-repeats", type=int, default=1, help="repetitions of kronfluence (the median counts)")
    made.add_argument("--no-peers", action="store_true", help="leave kronfluence out")
    made.add_argument("--worker", choices=(*WHENCE, *PEERS), help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return made.parse_args()


def prepare(folder: Path, settings: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """Train the MLP and leave weights and rows for the contenders."""
    rows = support.images(tiny)
    x, y = torch.from_numpy(rows["x"]), torch.from_numpy(rows["y"])
    recipe = wh.Recipe(build=lambda: build(settings["widths"]), learning_rate=1e-3, epochs=settings["epochs"])
    model = recipe.train(wh.as_examples((x, y)), seed=0)
    with torch.no_grad():
        accuracy = (model(torch.from_numpy(rows["xt"])).argmax(1).numpy() == rows["yt"]).mean()
    count = settings["queries"]
    arrays = {"x": rows["x"], "y": rows["y"], "xq": rows["xt"][:count], "yq": rows["yt"][:count]}
    weights = {f"w.{name}": value.numpy() for name, value in model.state_dict().items()}
    np.savez(folder / "work.npz", **arrays, **weights)
    support.write_json(folder / "settings.json", settings)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"MLP {settings['widths']}: {parameters} parameters, {len(x)} rows, test accuracy {accuracy:.4f}", flush=True)
    data = "Fashion-MNIST" if tiny else "MNIST"
    return {"data": data, "parameters": parameters, "rows": len(x), "queries": count, "test_accuracy": accuracy}


def digest(raw: dict[str, Any]) -> dict[str, Any]:
    """Return medians over the repetitions, of the plain pass at its best batch size too, and steps in passes."""
    passes = np.median(np.array(raw["passes"]), 0)  # [batch sizes, 2]
    best = passes[:, 0]
    plain, plain_cpu = passes.min(0).tolist()
    seconds = {step: median(run[step][0] for run in raw["runs"]) for step in STEPS}
    seconds["together"] = median(sum(run[step][0] for step in STEPS) for run in raw["runs"])
    cpu = {step: median(run[step][1] for run in raw["runs"]) for step in STEPS}
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "first_seconds": {step: raw["runs"][0][step][0] for step in STEPS},
        "repeats": len(raw["runs"]),
        "memory_mb": raw["memory_mb"],
        "pass_seconds": plain,
        "pass_batch": PASS_BATCHES[int(best.argmin())],
        "pass_sweep": dict(zip(map(str, PASS_BATCHES), best.tolist(), strict=True)),
        "in_passes": {step: value / plain for step, value in seconds.items()},
        "in_passes_by_cpu": {step: value / plain_cpu for step, value in cpu.items()},
        "summary": raw.get("summary", {}),
    }


def show(contender: str, figures: dict[str, Any]) -> None:
    """Print one contender's line."""
    parts = [f"{step} {figures['seconds'][step]:.3f} s ({figures['in_passes'][step]:.2f} passes)" for step in STEPS]
    plain = f"one pass {figures['pass_seconds']:.3f} s at batch {figures['pass_batch']}"
    by_cpu = " / ".join(f"{value:.2f}" for value in figures["in_passes_by_cpu"].values())
    memory_mb = f"{figures['memory_mb']:.0f} MB added"
    print(f"  {contender}: {', '.join(parts)}; {plain}; passes by processor time {by_cpu}; {memory_mb}", flush=True)


def agreement(folder: Path, contenders: list[str]) -> dict[str, float]:
    """Correlate the libraries' scores: of self-scores over rows, of pairwise scores the median over queries."""
    loaded = {name: dict(np.load(folder / f"{name}.npz")) for name in contenders}
    pairs = {"kept factors and none (whence)": ("whence", "", "whence-unbuffered", "")}
    if PEERS[0] in loaded:
        pairs["whence at damping 1e-8 and kronfluence's defaults"] = ("whence", "_1e-8", PEERS[0], "")
        pairs["whence and kronfluence, both at 0.1 of the mean eigenvalue"] = ("whence", "", PEERS[1], "_full_rank")
        pairs["the same, kronfluence with rank-32 queries"] = ("whence", "", PEERS[1], "")
    found: dict[str, float] = {}
    for name, (one, key, other, peer_key) in pairs.items():
        left, right = loaded[one], loaded[other]
        if peer_key == "":
            found[f"self-scores, {name}"] = float(np.corrcoef(left["self" + key], right["self"])[0, 1])
        elif peer_key == "_full_rank":
            found[f"self-scores, {name}"] = float(np.corrcoef(left["self"], right["self"])[0, 1])
        rows = zip(left["pairwise" + key], right["pairwise" + peer_key], strict=True)
        found[f"pairwise, {name}"] = float(np.median([np.corrcoef(a, b)[0, 1] for a, b in rows]))
    for name, value in found.items():
        print(f"  r of {name}: {value:.4f}")
    return found


def judge(report: support.Report, measured: dict[str, Any]) -> None:
    """Hold the figures against what the library promises."""
    ours = measured["whence"]
    peer = measured.get(PEERS[0])
    for step, least in (("fit", 50), ("self", 50), ("together", 50), ("pairwise", 20)):
        ratio = None if peer is None else peer["seconds"][step] / ours["seconds"][step]
        report.gate(f"times faster than kronfluence's defaults, {step}", ratio, low=least)
    for step, most in (("fit", 6), ("self", 3), ("pairwise", 4)):
        report.gate(f"plain passes, {step} (after fit)", ours["in_passes"][step], high=most)
    for step, most in (("self", 3), ("pairwise", 4)):
        report.gate(f"plain passes, {step}, nothing kept", measured[WHENCE[1]]["in_passes"][step], high=most)


if __name__ == "__main__":
    main()
