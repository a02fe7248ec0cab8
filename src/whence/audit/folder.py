"""A run folder: written whole or not at all, read back with every mismatch named."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from whence.audit.decisions import FILE
from whence.audit.job import Audit
from whence.data import LabelledData, ReadOptions, read
from whence.errors import RunFormatError
from whence.features import read_manifest, read_tensors, staged, write_manifest, write_tensors
from whence.index import open_index
from whence.methods import InfluenceAttribution, load
from whence.methods.saved import write_attribution
from whence.report import render
from whence.tasks import Task
from whence.tasks.defaults import restore

__all__ = ["Run", "check_decisions", "open_run", "reload_data", "reload_task", "write_run"]

KIND = "audit"
_SUMMARY = frozenset({"data", "model", "method"})
_SUSPECTS = frozenset({"id", "suggested_label", "suspicion", "is_suspect"})
_MANIFEST = frozenset({"whence", "created", "data", "model"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """An audit on disk.

    Args:
        folder: Where it lies.
        manifest: What was run on what.
        suspects: Every row of the data, by rank.
        summary: What the report shows.
    """

    folder: Path
    manifest: dict[str, Any]
    suspects: pd.DataFrame
    summary: dict[str, Any]


def write_run(audit: Audit, out: str | Path, *, source: str, options: ReadOptions) -> Path:
    """Write an audit to a folder: manifest, summary, suspects, weights, attribution, report.

    Args:
        audit: The audit.
        out: New folder, or an earlier run, which is replaced once this one is complete.
        source: Path of the data as the user gave it; `explain` and `clean` read it again.
        options: How it was read.

    Returns:
        Path of ``report.html``. A person's decisions about the same data, in an earlier run, come into the new one.

    Raises:
        RunFormatError: The folder holds something else or cannot be written; nothing is left behind.
    """
    out = Path(out)
    check_decisions(out, audit.data)
    with staged(out) as partial:
        if (out / FILE).is_file():
            shutil.copy2(out / FILE, partial / FILE)
        audit.suspects.to_parquet(partial / "suspects.parquet", index=False)
        text = json.dumps(audit.summary, indent=1, allow_nan=False, ensure_ascii=False)
        (partial / "summary.json").write_text(text + "\n", encoding="utf-8")
        (partial / "report.html").write_text(render(audit.summary), encoding="utf-8")
        write_tensors(partial / "model.safetensors", audit.attribution.task.model.state_dict())
        attribution = partial / "attribution"
        attribution.mkdir()
        write_attribution(audit.attribution, attribution)
        settings: dict[str, Any] | None = None
        if audit.default is not None:
            settings, tensors = audit.default.preparation.state()
            write_tensors(partial / "preparation.safetensors", tensors)
        write_manifest(
            partial,
            {
                "kind": KIND,
                "whence": audit.summary["whence"],
                "created": audit.summary["created"],
                "seed": audit.seed,
                "data": {
                    "source": source,
                    "options": asdict(options),
                    "fingerprint": audit.data.fingerprint,
                    "classes": list(audit.data.classes),
                    "kind": audit.data.kind,
                },
                "model": {
                    "name": audit.summary["model"]["name"],
                    "embedded": audit.default is not None,
                    "preparation": settings,
                    "network": None if audit.default is None else dict(audit.default.network),
                    "layers": audit.layers,
                },
            },
        )
    return out / "report.html"


def check_decisions(out: str | Path, data: LabelledData) -> None:
    """Raise where a run about to be replaced holds a person's decisions about other data, which would be lost.

    Raises:
        RunFormatError: It does.
    """
    folder = Path(out)
    if not (folder / FILE).is_file():
        return
    try:
        found = read_manifest(folder, KIND)["data"]["fingerprint"]
    except (RunFormatError, KeyError, TypeError):
        found = None
    if found != data.fingerprint:
        raise RunFormatError(
            f"output must be a folder without decisions about other data, got {str(folder)!r}, which holds {FILE}. "
            "Choose another folder, or remove that file."
        )


def open_run(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        RunFormatError: It is incomplete, damaged or of another kind.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, KIND)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        suspects = pd.read_parquet(folder / "suspects.parquet")
    except (OSError, ValueError) as error:
        raise RunFormatError(f"run {str(folder)!r} must be complete, got: {error}. Run the audit again.") from error
    entries = set(summary) if isinstance(summary, dict) else set()
    missing = [
        *sorted(_SUMMARY - entries),
        *sorted(_SUSPECTS - set(suspects.columns)),
        *sorted(_MANIFEST - set(manifest)),
    ]
    if missing:
        raise RunFormatError(f"run {str(folder)!r} must be complete, got no {', '.join(missing)}. Run the audit again.")
    return Run(folder=folder, manifest=manifest, suspects=suspects, summary=summary)


def reload_data(run: Run, source: str | Path | None = None) -> LabelledData:
    """Read the audited data again and check that it is the same.

    Args:
        run: The audit.
        source: Where the data lies now; None for where it was.

    Raises:
        RunFormatError: Its fingerprint differs; both are named.
    """
    stored = run.manifest["data"]
    options = {**stored["options"], "drop": tuple(stored["options"]["drop"])}
    data = read(stored["source"] if source is None else source, ReadOptions(**options))
    if data.fingerprint != stored["fingerprint"]:
        raise RunFormatError(
            f"data must be that of run {str(run.folder)!r} (fingerprint {stored['fingerprint'][:12]}), got "
            f"{data.fingerprint[:12]} from {data.source}. Audit it again, or name the old file with --data-source."
        )
    return data


def reload_task(run: Run, data: LabelledData) -> tuple[Task, Any, InfluenceAttribution]:
    """Return task, preparation and attribution of a run with an embedded model."""
    model = run.manifest["model"]
    if not model["embedded"]:
        raise RunFormatError(
            f"run {str(run.folder)!r} was made with your own model, whose code is never imported from a run. "
            "Pass --model FILE.py:FUNC again."
        )
    preparation, network = restore(
        model["name"], model["preparation"], read_tensors(run.folder / "preparation.safetensors"), model["network"]
    )
    try:
        network.load_state_dict(read_tensors(run.folder / "model.safetensors"))
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:200]
        raise RunFormatError(f"weights of run {str(run.folder)!r} must fit its network, got: {cause}.") from error
    identity = open_index(run.folder / "attribution").manifest.identity
    task = Task(network.eval(), "cross_entropy", weight_decay=identity["weight_decay"])
    return task, preparation, load(run.folder / "attribution", task)
