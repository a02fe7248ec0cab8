"""The index on disk: query latency, a million rows, growth with N, and the pre-flight against what then happens.

Every part runs in a process of its own, for its memory. "Private" is RssAnon: what the process holds beside files.

    python benchmarks/index.py [--threads 2] [--parts latency synthetic growth plan] [--tiny]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import support
import tables
import whence as wh
import workloads

PARTS = ("latency", "synthetic", "growth", "plan")
WIDTHS = [784, 256, 256, 10]
ROWS = 60_000


def main() -> None:
    """Run the parts that were asked for, each in its own process."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    if arguments.worker:
        settings = json.loads(arguments.worker)
        torch.set_num_threads(arguments.threads)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found = WORK[settings["part"]](Path(folder), settings)
        print(json.dumps(found), flush=True)
        return
    folder = support.results_folder(arguments)
    for part in arguments.parts:
        settings = {"tiny": arguments.tiny, "threads": arguments.threads}
        name = f"index_{part}-{arguments.threads}"
        report = support.Report(name, settings, judged=not arguments.tiny)
        JUDGES[part](report, arguments)
        report.close(folder, arguments.threads, arguments.strict)
    tables.renew(folder)


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=2)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--folder", type=Path, default=None, help="where indices are written for a while (2 GB)")
    made.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    return made.parse_args()


def measure(arguments: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(arguments.threads)]
    command += ["--worker", json.dumps({"tiny": arguments.tiny, **settings})]
    command += ["--folder", str(arguments.folder)] if arguments.folder else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- what is judged ------------------------------------------------------------------------------------------------


def judge_latency(report: support.Report, arguments: argparse.Namespace) -> None:
    """One query against the MLP's training rows."""
    for dtype in ("float32", "float16"):
        found = measure(arguments, part="latency", dtype=dtype)
        report.figures[dtype] = found
        if dtype == "float32":
            report.gate("top-10 of one query, 60,000 MNIST rows, median ms", found["query_ms"], high=50)
            report.gate("top-10 against the full sort of the scores, share of equal ids", found["agrees"], low=1)
        report.gate(f"{dtype}: private memory while querying, MB", found["private_mb"], high=1024)


def judge_synthetic(report: support.Report, arguments: argparse.Namespace) -> None:
    """A million rows of 512 numbers."""
    found = measure(arguments, part="synthetic", dtype="float32")
    report.figures["float32"] = found
    report.gate("a million rows of 512, one query, median s", found["one_s"], high=0.5)
    report.gate("a million rows of 512, 100 queries, s", found["hundred_s"], high=2)
    report.gate("a million rows of 512, private memory, MB", found["private_mb"], high=1024)


def judge_growth(report: support.Report, arguments: argparse.Namespace) -> None:
    """Time and memory of fit, index and queries, from a sixth of the rows to all."""
    small, large = (measure(arguments, part="growth", share=share) for share in (6, 1))
    report.figures |= {"small": small, "large": large}
    ratio = large["rows"] / small["rows"]
    for step in ("fit_s", "index_s", "scan_s"):
        report.gate(f"{step}: time against linear growth", large[step] / small[step] / ratio, low=0.85, high=1.15)
    grown = large["peak_private_mb"] / small["peak_private_mb"]
    report.gate("peak private memory, all rows against a sixth", grown, low=0.9, high=1.1)


def judge_plan(report: support.Report, arguments: argparse.Namespace) -> None:
    """The pre-flight's seconds and bytes against what then happens."""
    found = measure(arguments, part="plan")
    report.figures |= found
    for name, (planned, real) in found["pairs"].items():
        report.gate(f"plan: {name}, predicted against real", planned / real, low=0.5, high=2)


# --- what is measured, in its own process --------------------------------------------------------------------------


def latency(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Index all rows, then ask single queries, the mean of a hundred, and a hundred."""
    attribution, queries = fitted(settings)
    index = wh.build_index(attribution, folder / "index", dtype=settings["dtype"])
    features = attribution.query_features(queries)
    del attribution
    seconds, agrees = [], []
    for number in range(len(features)):
        one = features.rows(slice(number, number + 1))
        seconds.append(clocked(lambda one=one: index.top(one, 10)))
        if number < 10:
            full = index.scores(one)
            agrees.append(float(np.mean(index.top(one, 10)["id"].to_numpy() == full.top(10)["id"].to_numpy())))
    return {
        "rows": len(index),
        "query_ms": 1e3 * median(seconds[1:]),
        "query_ms_worst": 1e3 * max(seconds[1:]),
        "scan_ms": 1e3 * median(clocked(lambda: index.scores(features.rows(slice(0, 1)))) for _ in range(5)),
        "hundred_ms": 1e3 * median(clocked(lambda: index.top(features, 10)) for _ in range(3)),
        "mean_ms": 1e3 * median(clocked(lambda: index.top(features.mean(), 10)) for _ in range(3)),
        "agrees": float(np.mean(agrees)),
        "private_mb": private_mb(),
        "megabytes": index.summary()["bytes"] / 1e6,
        "storage_error": index.summary()["storage_error"],
    }


def synthetic(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write random rows piece by piece and query them."""
    rows, width, piece = (20_000, 64, 5_000) if settings["tiny"] else (1_000_000, 512, 50_000)
    generator = torch.Generator().manual_seed(0)
    writer = wh.IndexWriter(
        folder=folder / "index", identity={"method": "synthetic"}, dtype=settings["dtype"], shard_rows=32_768
    )
    for start in range(0, rows, piece):
        writer.append(torch.randn(piece, width, generator=generator), np.arange(start, start + piece))
    index = writer.close()
    queries = torch.randn(100, width, generator=generator)
    ten = [wh.QueryFeatures.flat(query[None]) for query in queries[:10]]
    clocked(lambda: index.top(ten[0], 10))
    with PeakPrivate() as peak:
        one = median(clocked(lambda query=query: index.top(query, 10)) for query in ten)
        hundred = median(clocked(lambda: index.top(wh.QueryFeatures.flat(queries), 10)) for _ in range(3))
    return {"rows": rows, "width": width, "one_s": one, "hundred_s": hundred, "private_mb": peak.megabytes}


def growth(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Fit, index and scan a share of the rows; inputs are read from a file as they are needed."""
    rows = support_rows(settings["tiny"])
    count = len(rows["y"]) // settings["share"]
    task, _ = model_of(settings, rows)
    examples = streamed(rows, count, folder)
    del rows
    config = wh.Influence(curvature=wh.EKFAC(), memory_budget=0)
    figures: dict[str, Any] = {"rows": count}
    with PeakPrivate() as peak:
        start = time.perf_counter()
        attribution = config.fit(task, examples)
        figures["fit_s"] = time.perf_counter() - start
        figures["index_s"] = clocked(lambda: wh.build_index(attribution, folder / "index", shard_rows=2048))
        index = wh.open_index(folder / "index")
        features = attribution.query_features(examples.select(np.arange(min(100, count))))
        index.top(features, 10)
        figures["scan_s"] = median(clocked(lambda: index.top(features, 10)) for _ in range(3))
        figures["stream_s"] = clocked(lambda: wh.top(attribution, examples.select(np.arange(min(10, count))), 10))
    return {**figures, "peak_private_mb": peak.megabytes}


def give_back() -> None:
    """Return memory that is free but held by the allocator to the system, where that can be asked for."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def planned(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Predict, then do."""
    rows = support_rows(settings["tiny"])
    task, queries = model_of(settings, rows)
    train = tensors(rows, len(rows["y"]))
    config = wh.Influence(curvature=wh.EKFAC())
    few = (train[0][:256], train[1][:256])
    config.fit(task, few).scores(queries)  # the first call of anything in a process pays for loading it
    forecast = wh.plan(config, task, train, queries)
    pairs: dict[str, tuple[float, float]] = {}
    give_back()
    before = private_mb()
    with PeakPrivate() as peak:
        start = time.perf_counter()
        attribution = config.fit(task, train)
        pairs["fit"] = forecast.seconds["fit"], time.perf_counter() - start
        pairs["self_scores"] = forecast.seconds["self_scores"], clocked(attribution.self_scores)
        pairs["scores"] = forecast.seconds["scores"], clocked(lambda: attribution.scores(queries))
    pairs["memory"] = forecast.peak_bytes / 2**20, max(1.0, peak.megabytes - before)
    pairs["index"] = forecast.seconds["index"], clocked(lambda: wh.build_index(attribution, folder / "index"))
    pairs["disk"] = forecast.disk["float32"], wh.open_index(folder / "index").summary()["bytes"]
    return {"pairs": pairs, "plan": forecast.as_dict()}


JUDGES: dict[str, Callable[[support.Report, argparse.Namespace], None]] = {
    "latency": judge_latency, "synthetic": judge_synthetic, "growth": judge_growth, "plan": judge_plan,
}  # fmt: skip
WORK: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "latency": latency, "synthetic": synthetic, "growth": growth, "plan": planned,
}  # fmt: skip


# --- data and clocks -----------------------------------------------------------------------------------------------


def support_rows(tiny: bool) -> dict[str, np.ndarray]:
    """Return MNIST's training file as bytes and its first 100 test rows; tiny: the bundled rows."""
    if tiny:
        found = support.images(True)
        return {"x": (found["x"] * 255).astype(np.uint8), "y": found["y"], "xt": found["xt"], "yt": found["yt"]}
    folder = support.data_folder() / "mnist"
    with np.load(folder / "mnist_train.npz") as train, np.load(folder / "mnist_test.npz") as test:
        x, y, xt, yt = train["x"][:ROWS], train["y"][:ROWS], test["x"][:100], test["y"][:100]
    return {"x": x.reshape(len(x), -1), "y": y.astype(np.int64),
            "xt": xt.reshape(100, -1).astype(np.float32) / 255, "yt": yt.astype(np.int64)}  # fmt: skip


Pair = tuple[torch.Tensor, torch.Tensor]


def tensors(rows: dict[str, np.ndarray], count: int) -> Pair:
    """Return the first rows as tensors."""
    return torch.from_numpy(rows["x"][:count].astype(np.float32) / 255), torch.from_numpy(rows["y"][:count])


def streamed(rows: dict[str, np.ndarray], count: int, folder: Path) -> wh.Examples:
    """Return the first rows as examples that are read from a file batch by batch."""
    np.save(folder / "x.npy", rows["x"][:count])
    inputs = np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False)
    targets = torch.from_numpy(rows["y"][:count].copy())

    def fetch(index: np.ndarray) -> Pair:
        return torch.from_numpy(inputs[index].astype(np.float32) / 255), targets[torch.from_numpy(index)]

    return wh.Examples(ids=np.arange(count), fetch=fetch)


def model_of(settings: dict[str, Any], rows: dict[str, np.ndarray]) -> tuple[wh.Task, Pair]:
    """Train the MLP on at most 10,000 rows for 5 epochs (the same for every N), and return it with the queries."""
    widths = [784, 32, 32, 10] if settings["tiny"] else WIDTHS
    recipe = wh.Recipe(build=lambda: workloads.mlp(widths), epochs=5, batch_size=128)
    few = wh.as_examples(tensors(rows, min(10_000, len(rows["y"]))))
    model = recipe.train(few, seed=0)
    return wh.Task(model), (torch.from_numpy(rows["xt"]), torch.from_numpy(rows["yt"]))


def fitted(settings: dict[str, Any]) -> tuple[wh.InfluenceAttribution, Pair]:
    """Fit EK-FAC to all rows."""
    rows = support_rows(settings["tiny"])
    task, queries = model_of(settings, rows)
    config = wh.Influence(curvature=wh.EKFAC(), memory_budget=0)
    return config.fit(task, tensors(rows, len(rows["y"]))), queries


def clocked(run: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    with support.Clock() as clock:
        run()
    return clock.wall


def private_mb() -> float:
    """Return this process's RssAnon in MB (Linux; elsewhere NaN)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    lines = dict(line.split(":", 1) for line in status.read_text("ascii").splitlines())
    return float(lines["RssAnon"].split()[0]) / 2**10


class PeakPrivate:
    """The largest RssAnon of a block, looked at a hundred times a second."""

    megabytes = 0.0

    def __enter__(self) -> PeakPrivate:
        self.megabytes, self._over = private_mb(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.megabytes = max(self.megabytes, private_mb())


if __name__ == "__main__":
    main()
