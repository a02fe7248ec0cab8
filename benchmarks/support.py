"""What the benchmarks share: arguments, data, machine, gates, and results on disk."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PEERS = ("kronfluence", "captum", "pyDVL", "traker", "dattri", "cleanlab")
PACKAGES = ("whence", "torch", "numpy", "scipy", "scikit-learn", *PEERS)


def parser(description: str, threads: int) -> argparse.ArgumentParser:
    """Arguments every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--threads", type=int, default=threads, help=f"threads of every process (default {threads})")
    made.add_argument("--tiny", action="store_true", help="a few hundred bundled rows: does it run, nothing is judged")
    made.add_argument("--results", type=Path, default=None, help="folder of the results (default benchmarks/results)")
    made.add_argument("--strict", action="store_true", help="exit with 1 if a gate fails")
    return made


def results_folder(arguments: argparse.Namespace) -> Path | None:
    """Where to write; tiny runs write nothing unless they are told where."""
    if arguments.results is None:
        return None if arguments.tiny else RESULTS
    folder: Path = arguments.results
    return folder


def limit_threads(count: int) -> None:
    """Set the number of threads of this process and of those it starts. Call before importing torch."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def data_folder() -> Path:
    """Return the folder of real data sets, or stop with one line that says how to name it."""
    folder = Path(os.environ.get("WHENCE_DATA", ROOT / ".." / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit("WHENCE_DATA must name the folder of data sets (mnist/, sms_spam/, …), which was not found.")
    return folder


def need(path: Path) -> Path:
    """Return the path of a data file, or stop with one line."""
    if not path.is_file():
        raise SystemExit(f"WHENCE_DATA must hold {path.parent.name}/{path.name}, which was not found.")
    return path


def images(tiny: bool) -> dict[str, np.ndarray]:
    """Return x [N, 784] in 0 … 1 and y [N] of the training rows, and xt, yt of the test rows.

    The first 10,000 rows of the MNIST training file and the whole test file; tiny: bundled Fashion-MNIST rows.
    """
    if tiny:
        with np.load(ROOT / "examples" / "data" / "fashion_mnist_1000.npz") as file:
            x, y = file["x"], file["y"]
        parts = {"x": x[:400], "y": y[:400], "xt": x[400:500], "yt": y[400:500]}
    else:
        folder = data_folder() / "mnist"
        with np.load(need(folder / "mnist_train.npz")) as train, np.load(need(folder / "mnist_test.npz")) as test:
            parts = {"x": train["x"][:10_000], "y": train["y"][:10_000], "xt": test["x"], "yt": test["y"]}
    flat = {name: a.reshape(len(a), -1).astype(np.float32) / 255 for name, a in parts.items() if name.startswith("x")}
    return {name: flat.get(name, a.astype(np.int64)) for name, a in parts.items()}


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine and the software: what a reader needs to judge a time, and nothing that names a host."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def code_fingerprint() -> str:
    """SHA-256 over the library's source: results of different code are told apart by it."""
    digest = hashlib.sha256()
    source = ROOT / "src" / "whence"
    for path in sorted(source.rglob("*.py")):
        digest.update(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class Clock:
    """Seconds of a block: by the wall, and of this process's processors."""

    wall = 0.0
    cpu = 0.0

    def __enter__(self) -> Clock:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._start[0]
        self.cpu = time.process_time() - self._start[1]


@dataclass
class Report:
    """Figures and gates of one run; prints them as they come and writes them as JSON."""

    name: str
    settings: dict[str, Any]
    judged: bool = True
    figures: dict[str, Any] = field(default_factory=dict)
    gates: list[dict[str, Any]] = field(default_factory=list)

    def gate(self, what: str, value: float | None, low: float | None = None, high: float | None = None) -> None:
        """Print and keep whether low <= value <= high; None is 'not measured'."""
        bounds = " and ".join(
            f"{sign} {bound:g}" for sign, bound in ((">=", low), ("<=", high)) if bound is not None
        )
        if value is None or not self.judged:
            verdict = "----"
        else:
            good = np.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
            verdict = "PASS" if good else "FAIL"
        number = None if value is None or not np.isfinite(value) else float(value)
        self.gates.append({"gate": what, "value": number, "low": low, "high": high, "verdict": verdict})
        shown = "not measured" if value is None else f"{value:.6g}"
        print(f"{verdict}  {what}: {shown} (must be {bounds})", flush=True)

    @property
    def failed(self) -> int:
        """How many gates failed."""
        return sum(gate["verdict"] == "FAIL" for gate in self.gates)

    def close(self, folder: Path | None, threads: int, strict: bool) -> None:
        """Write the results, renew the tables, and end the process with 1 if asked to be strict."""
        counts = {verdict: sum(g["verdict"] == verdict for g in self.gates) for verdict in ("PASS", "FAIL", "----")}
        print(f"{self.name}: {counts['PASS']} gates pass, {counts['FAIL']} fail, {counts['----']} not judged")
        if folder is not None:
            write_json(folder / f"{self.name}.json", self.content(threads))
        if strict and self.failed:
            raise SystemExit(1)

    def content(self, threads: int) -> dict[str, Any]:
        """Return what is written."""
        return {
            "benchmark": self.name,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "code": code_fingerprint(),
            "machine": machine(threads),
            "settings": self.settings,
            "figures": self.figures,
            "gates": self.gates,
        }


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    partial.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON file, or return None where there is none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _plain(value: Any) -> Any:
    """Return JSON's own types, floats to 6 digits, NaN as null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _processor() -> str:
    """Return the processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
