"""What a person decided about rows, kept in ``decisions.parquet`` of the run folder."""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whence.data import LabelledData
from whence.errors import DataError, RunFormatError

__all__ = ["ACTIONS", "FILE", "OUTCOME", "Decision", "Decisions", "applied", "read_outcome", "write_outcome"]

ACTIONS = ("keep", "relabel", "drop", "unsure")
FILE = "decisions.parquet"
OUTCOME = "retrain.json"
_COLUMNS = ("id", "action", "label", "given", "decided")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One decision.

    Args:
        id: Of the row.
        action: "keep", "relabel", "drop" or "unsure".
        label: The new label for "relabel", else None.
        given: The label that the row had.
        decided: When, as ISO 8601 text.
    """

    id: str
    action: str
    label: str | None
    given: str
    decided: str = ""


class Decisions:
    """The decisions about a run's rows, on disk after every change.

    The file is replaced in one step, so that a reader or a crash sees all of it as it was or as it is. What another
    program wrote in between is read first and kept.

    Args:
        folder: The run.
        fingerprint: Of the audited data, written along: decisions about other data are refused.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.path = folder / FILE
        self.fingerprint = fingerprint
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._made: dict[str, Decision] = {}
        with self._lock:
            self._refresh()

    def __len__(self) -> int:
        """Return how many rows are decided."""
        return len(self.all())

    def all(self) -> dict[str, Decision]:
        """Return the decisions by id, oldest first."""
        with self._lock:
            self._refresh()
            return dict(self._made)

    def counts(self) -> dict[str, int]:
        """Return how many rows have each action."""
        counted = Counter(one.action for one in self.all().values())
        return {action: counted[action] for action in ACTIONS}

    def put(self, decision: Decision) -> Decision:
        """Write a decision, in place of an earlier one about the same row."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        made = Decision(**{**asdict(decision), "decided": now})
        with self._lock:
            self._refresh()
            self._write({**{k: v for k, v in self._made.items() if k != made.id}, made.id: made})
        return made

    def take_back(self, id_: str) -> None:
        """Forget the decision about a row."""
        with self._lock:
            self._refresh()
            self._write({k: v for k, v in self._made.items() if k != id_})

    def _refresh(self) -> None:
        """Read the file again where it is not the one that was last read or written."""
        stamp = _stamp(self.path)
        if stamp == self._seen:
            return
        self._made = {} if stamp is None else _read(self.path, self.fingerprint)
        self._seen = stamp

    def _write(self, made: dict[str, Decision]) -> None:
        partial = self.path.with_name(f".{FILE}.{os.getpid()}.partial")
        columns = {name: pa.array([getattr(one, name) for one in made.values()], pa.string()) for name in _COLUMNS}
        table = pa.table(columns).replace_schema_metadata({"whence.data": self.fingerprint})
        try:
            with partial.open("wb") as file:
                pq.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        except OSError as error:
            raise DataError(f"{self.path} must be writable, got: {error.strerror or error}.") from error
        finally:
            partial.unlink(missing_ok=True)
        self._made, self._seen = made, _stamp(self.path)


def applied(data: LabelledData, decisions: Iterable[Decision]) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of the rows after decisions [N], and which rows stay [N]; "keep" and "unsure" change nothing.

    Raises:
        DataError: A decision is about a row or class that there is not.
    """
    labels, kept = data.labels.copy(), np.ones(len(data), dtype=bool)
    places = {str(name): place for place, name in enumerate(data.ids.tolist())}
    classes = {name: place for place, name in enumerate(data.classes)}
    for one in decisions:
        if one.id not in places or (one.action == "relabel" and one.label not in classes):
            raise DataError(f"decisions must be about rows and classes of the data, got {one.id!r}, {one.label!r}.")
        if one.action == "drop":
            kept[places[one.id]] = False
        elif one.action == "relabel" and one.label is not None:
            labels[places[one.id]] = classes[one.label]
    return labels, kept


def write_outcome(folder: Path, found: dict[str, Any]) -> None:
    """Write what training again with the decisions gave, in one step.

    Raises:
        DataError: The run cannot be written to.
    """
    path = folder / OUTCOME
    partial = path.with_name(f".{OUTCOME}.{os.getpid()}.partial")
    text = json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        # what cannot be written, half a surrogate pair in a cell, becomes its escape in JSON
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path} must be writable, got: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """Return what `write_outcome` wrote last; None where there is nothing, or something else."""
    try:
        found = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("kind") == "decisions" else None


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is replaced; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def _read(path: Path, fingerprint: str) -> dict[str, Decision]:
    """Return the decisions of a file.

    Raises:
        RunFormatError: It is damaged, or about other data.
    """
    try:
        table = pq.read_table(path)
        rows = table.select(list(_COLUMNS)).to_pylist()
        about = (table.schema.metadata or {}).get(b"whence.data", b"").decode()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        cause = " ".join(str(error).split())[:200]
        raise RunFormatError(f"{path} must be a complete file of decisions, got: {cause}. Move it away.") from error
    if about != fingerprint:
        raise RunFormatError(
            f"{path} must be about the audited data (fingerprint {fingerprint[:12]}), got {about[:12] or 'none'}. "
            "Move it away."
        )
    wrong = [row for row in rows if row["action"] not in ACTIONS or not isinstance(row["id"], str)]
    if wrong:
        raise RunFormatError(f"{path} must hold {', '.join(ACTIONS)}, got {wrong[0]['action']!r}. Move it away.")
    return {row["id"]: Decision(**row) for row in rows}
