"""Exporting the audited data without its suspects, or with their labels corrected."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from whence.audit.folder import Run
from whence.data import LabelledData
from whence.errors import ConfigError, DataError

__all__ = ["Action", "clean"]

Action = Literal["drop", "relabel"]
_WRITERS = (".csv", ".csv.gz", ".parquet", ".jsonl", ".npz")


def clean(
    run: Run,
    data: LabelledData,
    out: str | Path,
    *,
    action: Action = "drop",
    least_suspicion: float | None = None,
    force: bool = False,
) -> dict[str, int]:
    """Write the audited data, reduced or corrected.

    Args:
        run: An audit.
        data: The data that was audited.
        out: New file: .csv, .csv.gz, .parquet, .jsonl (tables and texts) or .npz (images).
        action: "drop" leaves suspects out, "relabel" gives them their suggested label.
        least_suspicion: Act on rows at or above it; None for the rows that the audit called suspects.
        force: Overwrite an existing file.

    Returns:
        Counts: rows written, dropped, relabelled.

    Raises:
        ConfigError: An unknown ending or action, or the file exists.
        DataError: Nothing would be left, or the file cannot be written.
    """
    path = Path(out)
    ending = next((ending for ending in _WRITERS if path.name.lower().endswith(ending)), None)
    if ending is None or (data.kind == "image") != (ending == ".npz"):
        fitting = ".npz" if data.kind == "image" else ", ".join(_WRITERS[:-1])
        raise ConfigError(f"output must end in {fitting} for {data.kind} data, got {path.name!r}.")
    if action not in ("drop", "relabel"):
        raise ConfigError(f"action must be 'drop' or 'relabel', got {action!r}.")
    if path.exists() and not force:
        raise ConfigError(f"output must be a new file, got {str(path)!r}, which exists. Pass --force to replace it.")
    suspects = run.suspects.set_index("id").loc[data.ids.tolist()]
    chosen = suspects["is_suspect"] if least_suspicion is None else suspects["suspicion"] >= least_suspicion
    flagged = chosen.to_numpy(dtype=bool)
    labels = data.labels.copy()
    if action == "relabel":
        place = {name: number for number, name in enumerate(data.classes)}
        suggested = suspects["suggested_label"].map(place).to_numpy()
        labels[flagged] = suggested[flagged]
        kept = np.ones(len(data), dtype=bool)
    else:
        kept = ~flagged
    if not kept.any():
        raise DataError(f"at least one row must be left, got {len(data)} suspects of {len(data)} rows. Raise --above.")
    partial = path.with_name(f".{os.getpid()}.partial{ending}")
    try:
        _write(data.with_labels(labels).rows(kept), partial, ending)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path} must be writable, got: {error.strerror or error}. Choose another place.") from error
    finally:
        partial.unlink(missing_ok=True)
    changed = int((labels != data.labels).sum())
    return {"written": int(kept.sum()), "dropped": int((~kept).sum()), "relabelled": changed}


def to_frame(data: LabelledData) -> pd.DataFrame:
    """Return tables and texts as a frame: id, content columns, label, and split where there is one."""
    if isinstance(data.content, pd.DataFrame):
        frame = data.content.reset_index(drop=True).copy()
    else:
        frame = pd.DataFrame({"text": list(data.content)})
    frame.insert(0, "id", data.ids) if "id" not in frame else None
    frame[data.label_name] = [data.classes[label] for label in data.labels.tolist()]
    if data.split is not None:
        frame["split"] = data.split
    return frame


def _write(data: LabelledData, path: Path, ending: str) -> None:
    """Write the file in the format that its ending names."""
    if ending == ".npz":
        names = np.array(data.classes)[data.labels]
        np.savez_compressed(path, x=np.asarray(data.content), y=names, ids=data.ids)
        return
    frame = to_frame(data)
    if ending == ".parquet":
        frame.to_parquet(path, index=False)
    elif ending == ".jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_csv(path, index=False)
