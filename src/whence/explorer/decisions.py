"""What a person decided about rows, kept in ``decisions.parquet`` of the run folder."""

from __future__ import annotations

import datetime
import os
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from whence.errors import DataError, RunFormatError

__all__ = ["ACTIONS", "FILE", "Decision", "Decisions"]

ACTIONS = ("keep", "relabel", "drop", "unsure")
FILE = "decisions.parquet"
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
