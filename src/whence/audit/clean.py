"""Exporting the audited data without its suspects, or with their labels corrected."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

import numpy as np

from whence.audit.folder import Run
from whence.data import LabelledData
from whence.data.rewrite import check_ending, rewrite
from whence.errors import ConfigError, DataError

__all__ = ["Action", "check_output", "clean", "write_rows"]

Action = Literal["drop", "relabel"]


def clean(
    run: Run,
    data: LabelledData,
    out: str | Path,
    *,
    action: Action = "drop",
    least_suspicion: float | None = None,
    force: bool = False,
) -> dict[str, int]:
    """Write the audited data, reduced or corrected; what does not change stays the user's own, byte for byte in text.

    Rows without a label were not judged: they are written as they are.

    Args:
        run: An audit.
        data: The data that was audited.
        out: New file: .csv, .csv.gz, .tsv, .parquet, .jsonl (tables, texts, lists of image files) or .npz (arrays and
            images); or a new folder, for a folder of images.
        action: "drop" leaves suspects out, "relabel" gives them their suggested label.
        least_suspicion: Act on rows at or above it; None for the rows that the audit called suspects.
        force: Overwrite an existing file.

    Returns:
        Counts: rows written (all), dropped, relabelled, and written without a label.

    Raises:
        ConfigError: An unknown ending or action, or the file exists.
        DataError: Nothing would be left, or the file cannot be written.
    """
    check_output(data, out, force=force)
    if action not in ("drop", "relabel"):
        raise ConfigError(f"action must be 'drop' or 'relabel', got {action!r}.")
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
    unlabelled = write_rows(data, out, labels=labels, kept=kept)
    changed, written = int((labels != data.labels).sum()), int(kept.sum()) + unlabelled
    return {"written": written, "dropped": int((~kept).sum()), "relabelled": changed, "unlabelled": unlabelled}


def check_output(data: LabelledData, out: str | Path, *, force: bool = False) -> None:
    """Raise unless a file can take these data, before anything is computed.

    Raises:
        ConfigError: An unknown ending, or the file exists.
    """
    path = Path(out)
    check_ending(data, path)
    if path.exists() and not (force or path.is_dir()):
        raise ConfigError(f"output must be a new file, got {str(path)!r}, which exists. Pass --force to replace it.")


def write_rows(
    data: LabelledData, out: str | Path, *, labels: np.ndarray, kept: np.ndarray, guarded: bool = False
) -> int:  # fmt: skip
    """Write rows to a file whole or not at all, every cell but changed labels as the user had it.

    Args:
        data: What was audited.
        out: The file.
        labels: Class positions [N].
        kept: Which rows to write [N].
        guarded: As in `whence.data.rewrite.rewrite`: no text becomes a formula in a spreadsheet.

    Returns:
        How many rows without a label, which were not judged, were written beside those that are kept.

    Raises:
        DataError: The file cannot be written.
    """
    path = Path(out)
    ending = check_ending(data, path)
    partial = path.with_name(f".{os.getpid()}.partial{ending}")
    try:
        unlabelled = rewrite(data, partial, ending, labels=labels, kept=kept, guarded=guarded)
        os.replace(partial, path)
        return unlabelled
    except OSError as error:
        raise DataError(f"{path} must be writable, got: {error.strerror or error}. Choose another place.") from error
    finally:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
