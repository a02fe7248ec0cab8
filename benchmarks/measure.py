"""One contender on one workload in a process of its own: times, peak memory, a plain pass, and the scores.

Started by ``speed.py``, which gives several contenders to one process only where nothing is judged.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import peers
import support
import whence as wh
import workloads
from workloads import Workload

STEPS = ("fit", "pairwise", "self")
FEATURES = "features"  # of the training examples alone, where the method has any; not part of the total
REFERENCE = "reference"
_FULL_RANK = 1e-6


class OverTime(BaseException):
    """The time limit; not an `Exception`, so that no library mistakes it for its own."""


def main() -> None:
    """Measure contenders, or compute the exact scores, and leave the outcomes in the folder."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("folder", type=Path, help="holds settings.json and weights.npz; the outcomes go there")
    made.add_argument("contenders", nargs="+", choices=(REFERENCE, *peers.CONTENDERS))
    arguments = made.parse_args()
    settings = support.read_json(arguments.folder / "settings.json")
    support.limit_threads(settings["threads"])
    with np.load(arguments.folder / "weights.npz") as file:
        state = {name: torch.from_numpy(file[name]) for name in file.files}
    workload = workloads.plan(settings["model"], settings["tiny"]).workload(settings["model"], state)
    for name in arguments.contenders:
        torch.manual_seed(0)  # some libraries draw from the global generator
        if name == REFERENCE:
            np.savez(arguments.folder / f"{name}.npz", **reference(workload))
        else:
            Measurement(peers.CONTENDERS[name], workload, settings, arguments.folder / name).run()


class Measurement:
    """Repeats fit, scores and self-scores of a contender until the time is used or the repetitions are enough."""

    def __init__(
        self, contender: peers.Contender, workload: Workload, settings: dict[str, Any], target: Path
    ) -> None:
        self.contender, self.workload, self.settings, self.target = contender, workload, settings, target
        self.plain = PlainPass(workload)
        self.runs: list[dict[str, list[float]]] = []
        self.passes: list[dict[str, list[float]]] = []
        self.scores: dict[str, np.ndarray] = {}
        self.entry: dict[str, Any] = {"version": metadata.version(contender.library), "memory_mb": None}
        self.step, self.since, self.baseline = "fit", 0.0, 0.0

    def run(self) -> None:
        """Measure, and write the outcome also when the library fails or takes too long."""
        make = self.contender.load()
        probe = torch.ones(2, requires_grad=True)
        torch.autograd.grad(probe * 2, probe, torch.ones(2))  # torch imports more at this first call: not to be counted
        try:
            self._repeat(make)
        except OverTime:
            if len(self.runs) == 1:  # a later repetition is only left out
                self.entry["stopped"] = {"step": self.step, "seconds": time.perf_counter() - self.since}
        except Exception as error:  # another library's refusal is a result
            if self.contender.ours:
                raise
            self.entry["failed"] = {"step": self.step, "error": f"{type(error).__name__}: {error}"[:300]}
        if not self.plain.seconds:
            self.plain.sweep()
        self.entry |= {**digest(self.runs), **self.plain.digest()}
        np.savez(self.target.with_suffix(".npz"), **self.scores)
        support.write_json(self.target.with_suffix(".json"), self.entry)

    def _repeat(self, make: Callable[[Workload, Path], peers.Run]) -> None:
        """Repeat until the repetitions are enough or their time is used; a plain pass after each of ours."""
        least, used = self.settings["least"] if self.contender.ours else 1, 0.0
        while len(self.runs) < self.settings["repeats"] and (len(self.runs) < least or used < self.settings["steady"]):
            self.runs.append({})
            with tempfile.TemporaryDirectory() as folder, time_limit(self.settings["limit"] - used):
                self._once(make, Path(folder))
            used += sum(wall for wall, _ in self.runs[-1].values())
            if self.contender.ours or len(self.runs) == 1:
                self.plain.sweep()

    def _once(self, make: Callable[[Workload, Path], peers.Run], folder: Path) -> None:
        """Run the three steps; the first time keep scores and peak memory."""
        first, own = len(self.runs) == 1, self.workload.with_copied_model()
        if first:
            self.baseline = memory(fresh=True)
        with self._timed("fit"):
            analysis = make(own, folder)
            analysis.fit()
        for step, call in (("pairwise", analysis.pairwise), ("self", analysis.self_scores)):
            with self._timed(step):
                found = call()
            if found is None:
                del self.runs[-1][step]
            elif first:
                self.scores[step] = np.asarray(found)
        if hasattr(analysis, "features"):
            with self._timed(FEATURES):
                analysis.features()
        if first:
            self.entry["summary"] = analysis.summary() if hasattr(analysis, "summary") else None

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        self.step, self.since = step, time.perf_counter()
        try:
            with support.Clock() as clock:
                yield
        finally:
            if len(self.runs) == 1:
                self.entry["memory_mb"] = memory() - self.baseline
        self.runs[-1][step] = [clock.wall, clock.cpu]


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OverTime` in the block after so many seconds, where the system can interrupt."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise OverTime

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class PlainPass:
    """A forward+backward pass with weight gradients over the training rows, at several batch sizes."""

    def __init__(self, workload: Workload) -> None:
        self.model, (self.x, self.y) = copy.deepcopy(workload.model), workload.train
        whole = [size for size in workload.pass_batches if size >= len(self.x)]  # all of them are one batch
        self.sizes = [size for size in workload.pass_batches if size not in whole[1:]]
        self.seconds: dict[int, list[list[float]]] = {}

    def sweep(self) -> None:
        """Measure every batch size, from the second time on the three best only."""
        for size in self.sizes:
            with support.Clock() as clock:
                for start in range(0, len(self.x), size):
                    rows = slice(start, start + size)
                    self.model.zero_grad()
                    workloads.per_example(self.model(self.x[rows]), self.y[rows]).mean().backward()
            self.seconds.setdefault(size, []).append([clock.wall, clock.cpu])
        self.model.zero_grad()
        self.sizes = sorted(self.sizes, key=lambda size: self._median(size)[0])[:3]

    def digest(self) -> dict[str, Any]:
        """Return the median seconds at the best batch size."""
        best = min(self.seconds, key=lambda size: self._median(size)[0])
        wall, cpu = self._median(best)
        sweep = {str(size): self._median(size)[0] for size in self.seconds}
        count = len(self.seconds[best])
        return {"pass": {"seconds": wall, "cpu_seconds": cpu, "batch": best, "sweep": sweep, "runs": count}}

    def _median(self, size: int) -> list[float]:
        return np.median(np.array(self.seconds[size]), 0).tolist()


def digest(runs: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Return medians over the repetitions that are complete, or the steps of the first that were done."""
    complete = [run for run in runs if run.keys() == runs[0].keys()]
    done = list(runs[0])
    return {
        "seconds": {step: median(run[step][0] for run in complete) for step in done},
        "cpu_seconds": {step: median(run[step][1] for run in complete) for step in done},
        "total": median(sum(run[step][0] for step in STEPS if step in run) for run in complete),
        "first_seconds": {step: runs[0][step][0] for step in done},
        "spread": {step: [choose(run[step][0] for run in complete) for choose in (min, max)] for step in done},
        "repeats": len(complete),
    }


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


def reference(workload: Workload) -> dict[str, np.ndarray]:
    """Return what scores are correlated with: the whole eigen-grid and plain dot products, for each set of layers.

    Keys are "layers/what/step"; "low" is the grid at kronfluence's default damping.
    """
    choices: dict[str, Any] = {"all": None, "last": "last"}
    if not workload.linear_only:
        choices["linear"] = [re.escape(name) for name in workload.linear_layers]
    found: dict[str, np.ndarray] = {}
    task = wh.Task(workload.model)
    for layers, choice in choices.items():
        curvatures: dict[str, Any] = {"dot": wh.Identity()}
        if layers != "last":
            curvatures["exact"] = wh.EKFAC(rank_tolerance=_FULL_RANK)
            curvatures["low"] = wh.EKFAC(rank_tolerance=_FULL_RANK, damping=1e-8)
        for name, curvature in curvatures.items():
            attribution = wh.Influence(curvature=curvature, layers=choice).fit(task, workload.train)
            found[f"{layers}/{name}/pairwise"] = attribution.scores(workload.queries).values.numpy()
            found[f"{layers}/{name}/self"] = np.asarray(attribution.self_scores())
    return found


if __name__ == "__main__":
    main()
