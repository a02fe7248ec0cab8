"""One JSON-able dict with everything that a report, an explorer or a script needs about a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from whence.data.labelled import LabelledData
from whence.errors import DataError
from whence.report.cards import ReportLimits, RunCard
from whence.report.content import Content, content_of
from whence.report.groups import duplicate_groups, duplicate_kinds, duplicate_summary

__all__ = ["FORMAT", "Evidence", "summarise"]

FORMAT = 1
Evidence = Mapping[str, Sequence[tuple[str, float | None]]]

_NEEDED = ("id", "label", "suggested_label", "suspicion", "rank", "is_suspect")
_NOT_SIGNALS = frozenset({*_NEEDED, "evidence", "evidence_scores", "duplicate_of", "duplicate_kind", "conflict"})
_DIGITS = 6


def summarise(
    data: LabelledData,
    suspects: pd.DataFrame,
    run: RunCard,
    *,
    evidence: Evidence | None = None,
    distribution: str = "self_influence",
    limits: ReportLimits | None = None,
) -> dict[str, Any]:
    """Put a run's results into one dict of plain numbers, texts and lists.

    Args:
        data: The audited data, N rows.
        suspects: One row per row of ``data``, as ``find_label_errors`` returns it: ``id``, ``label``,
            ``suggested_label``, ``suspicion`` in [0, 1], ``rank`` (1 = most suspect), ``is_suspect``;
            optionally ``evidence`` (ids), ``duplicate_of``, ``duplicate_kind`` (``"exact"`` or ``"near"``;
            told by comparing contents if absent), ``conflict``; every other numeric column is a signal.
        run: What ran, and how long.
        evidence: For the ids of suspects, the training rows that argue most against their label with their
            score in ``run.method.unit``, most opposing first. Without it the ids of the ``evidence`` column
            are named, with no scores.
        distribution: The signal whose histogram is shown, left out if there is no such column.
        limits: How many rows, characters and bars; None for the defaults.

    Returns:
        A dict with ``"format": 1`` and no NaN or infinity (they become None), so that ``json.dumps`` with
        ``allow_nan=False`` takes it. Suspects and their neighbours below the threshold come in ``rows``.

    Raises:
        DataError: A column is missing, or an id is not in the data.

    Cost:
        One pass over ``suspects``; contents are made for the shown rows and their evidence only.
    """
    limits = limits or ReportLimits()
    frame = _checked(data, suspects)
    kinds = duplicate_kinds(data, frame)
    groups = duplicate_groups(frame)
    count = int(frame["is_suspect"].sum())
    shown = _shown(frame, limits)
    writer = _RowWriter(data, frame, evidence, groups, kinds, limits)
    spread = None
    if distribution in writer.signals:
        spread = _distribution(distribution, frame, run.method.unit, limits.bins)
    return {
        "format": FORMAT,
        "whence": run.whence,
        "created": run.created,
        "data": _data(data),
        "model": _clean(asdict(run.model)),
        "method": _method(run, writer.signals),
        "suspects": {
            "count": count,
            "share": _plain(count / len(data)),
            "shown": len(shown),
            **_clean(asdict(run.suspicion)),
        },
        "warnings": [asdict(notice) for notice in run.warnings],
        "rows": [writer.row(position) for position in shown],
        "histogram": spread,
        "suspicion_histogram": _suspicions(frame, run.suspicion.threshold, limits.bins),
        "confusion": _confusion(data, frame),
        "per_class": _per_class(data, frame),
        "duplicates": duplicate_summary(data, frame, groups, kinds, limits),
        "seconds": _clean(asdict(run.seconds)),
    }


def _checked(data: LabelledData, suspects: pd.DataFrame) -> pd.DataFrame:
    """The frame by rank, with text ids and each row's position in the data as ``_row``."""
    missing = [name for name in _NEEDED if name not in suspects.columns]
    if missing:
        raise DataError(
            f"suspects must be a frame with the columns {', '.join(_NEEDED)}, got none named "
            f"{', '.join(missing)}. Pass what find_label_errors returned."
        )
    frame = suspects.sort_values("rank", kind="stable").reset_index(drop=True)
    frame["id"] = frame["id"].astype(str)
    rows = {str(name): row for row, name in enumerate(data.ids)}
    unknown = [name for name in frame["id"] if name not in rows]
    if unknown:
        raise DataError(
            f"suspects must be rows of the data, got the id {unknown[0]!r}. "
            "Pass the data that find_label_errors was given."
        )
    frame["_row"] = [rows[name] for name in frame["id"]]
    return frame


def _shown(frame: pd.DataFrame, limits: ReportLimits) -> list[int]:
    flagged = frame["is_suspect"].to_numpy(dtype=bool)
    first = np.flatnonzero(flagged)[: limits.suspects]
    below = np.flatnonzero(~flagged)[: limits.runners_up]
    return [int(position) for position in np.sort(np.concatenate([first, below]))]


class _RowWriter:
    """Writes shown rows; holds what all of them need."""

    def __init__(
        self,
        data: LabelledData,
        frame: pd.DataFrame,
        evidence: Evidence | None,
        groups: dict[str, list[str]],
        kinds: dict[str, str],
        limits: ReportLimits,
    ) -> None:
        self.data, self.frame, self.evidence = data, frame, evidence
        self.groups, self.kinds, self.limits = groups, kinds, limits
        self.signals = [
            str(name)
            for name in frame.columns
            if name not in _NOT_SIGNALS and name != "_row" and pd.api.types.is_numeric_dtype(frame[name])
        ]
        self.places = {name: frame[name].rank(pct=True, method="average") for name in self.signals}
        self.rows = dict(zip(frame["id"], frame["_row"], strict=True))
        self.contents: dict[int, Content] = {}
        self.rows |= {str(name): row for row, name in enumerate(data.ids)}

    def row(self, position: int) -> dict[str, Any]:
        row = self.frame.iloc[position]
        name, limits = row["id"], self.limits
        suggested = row["suggested_label"]
        return {
            "id": name,
            "rank": int(row["rank"]),
            "label": str(row["label"]),
            "suggested_label": None if pd.isna(suggested) else str(suggested),
            "suspicion": _plain(row["suspicion"]),
            "is_suspect": bool(row["is_suspect"]),
            "conflict": bool(row.get("conflict", False)),
            "content": content_of(self.data, row["_row"], characters=limits.text_characters, cells=limits.cells),
            "signals": {signal: _plain(row[signal]) for signal in self.signals},
            "places": {signal: _plain(self.places[signal].iat[position]) for signal in self.signals},
            "evidence": self._evidence(name, row.get("evidence")),
            "duplicates": self._duplicates(name),
        }

    def _evidence(self, name: str, ids: Any) -> list[dict[str, Any]]:
        if self.evidence is not None:
            pairs = list(self.evidence.get(name, ()))
        else:
            pairs = [(other, None) for other in ids] if isinstance(ids, (list, tuple, np.ndarray)) else []
        return [self._argument(str(other), score) for other, score in pairs[: self.limits.evidence]]

    def _argument(self, name: str, score: float | None) -> dict[str, Any]:
        if name not in self.rows:
            raise DataError(f"evidence must name rows of the data, got the id {name!r}. Pass the evidence of this run.")
        row = self.rows[name]
        return {
            "id": name,
            "label": self.data.classes[int(self.data.labels[row])],
            "score": _plain(score),
            "content": self._content(row),
        }

    def _content(self, row: int) -> Content:
        """A training row's content; the same rows argue against many suspects, so it is kept."""
        if row not in self.contents:
            limits = self.limits
            self.contents[row] = content_of(self.data, row, characters=limits.evidence_characters, cells=limits.cells)
        return self.contents[row]

    def _duplicates(self, name: str) -> list[dict[str, str]]:
        members = [other for other in self.groups.get(name, []) if other != name]
        return [
            {
                "id": other,
                "label": self.data.classes[int(self.data.labels[self.rows[other]])],
                "kind": self.kinds.get(other) or self.kinds.get(name, "exact"),
            }
            for other in members[: self.limits.duplicates]
        ]


def _data(data: LabelledData) -> dict[str, Any]:
    return {
        "source": data.source,
        "kind": data.kind,
        "rows": len(data),
        "classes": list(data.classes),
        "class_counts": np.bincount(data.labels, minlength=len(data.classes)).tolist(),
        "label_name": data.label_name,
        "fingerprint": data.fingerprint,
        "notes": list(data.notes),
    }


def _method(run: RunCard, signals: list[str]) -> dict[str, Any]:
    method = _clean(asdict(run.method))
    method["signals"] = [{"name": name, "text": run.method.signals.get(name, "")} for name in signals]
    return method


def _distribution(name: str, frame: pd.DataFrame, unit: str | None, bins: int) -> dict[str, Any] | None:
    """Counts of one signal over all rows and over suspects; logarithmic edges where values span decades."""
    values = frame[name].to_numpy(dtype=float)
    kept = np.isfinite(values)
    if not kept.any():
        return None
    values, flagged = values[kept], frame["is_suspect"].to_numpy(dtype=bool)[kept]
    edges = _edges(values, bins)
    inside = np.clip(values, edges[0], edges[-1])
    return {
        "name": name.replace("_", "-"),
        "unit": unit,
        "edges": [_plain(edge) for edge in edges],
        "all": np.histogram(inside, edges)[0].tolist(),
        "suspects": np.histogram(inside[flagged], edges)[0].tolist(),
    }


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    low, high = np.quantile(values, [0.002, 1.0])
    positive = values[values > 0]
    if positive.size >= 0.98 * values.size and high > 0:
        low = float(np.quantile(positive, 0.005))
        if high > 30 * low:
            return np.geomspace(low, high, bins + 1)
        low = min(low, float(values.min()))
    elif high > 0 and np.quantile(values, 0.95) < high / 30:  # both signs, long tail: sinh spacing
        scale = float(np.median(np.abs(values[values != 0])))
        return np.sinh(np.linspace(np.arcsinh(low / scale), np.arcsinh(high / scale), bins + 1)) * scale
    if not high > low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _suspicions(frame: pd.DataFrame, threshold: float | None, bins: int) -> dict[str, Any]:
    edges = np.linspace(0, 1, bins + 1)
    values = frame["suspicion"].to_numpy(dtype=float)
    counts = np.histogram(np.clip(values[np.isfinite(values)], 0, 1), edges)[0]
    return {
        "edges": [_plain(edge) for edge in edges],
        "counts": counts.tolist(),
        "threshold": _plain(threshold),
    }


def _confusion(data: LabelledData, frame: pd.DataFrame) -> dict[str, Any]:
    """Suspects by given (row) and suggested (column) label, over the classes that occur among them."""
    flagged = frame[frame["is_suspect"].to_numpy(dtype=bool) & frame["suggested_label"].notna().to_numpy()]
    given, suggested = flagged["label"].astype(str), flagged["suggested_label"].astype(str)
    seen = set(given) | set(suggested)
    names = [name for name in data.classes if name in seen]
    names += sorted(seen - set(names))
    places = {name: place for place, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, ([places[name] for name in given], [places[name] for name in suggested]), 1)
    return {"classes": names, "counts": counts.tolist()}


def _per_class(data: LabelledData, frame: pd.DataFrame) -> list[dict[str, Any]]:
    size = len(data.classes)
    totals = np.bincount(data.labels, minlength=size)
    flagged = frame.loc[frame["is_suspect"].to_numpy(dtype=bool), "_row"].to_numpy(dtype=int)
    counts = np.bincount(data.labels[flagged], minlength=size)
    return [
        {
            "label": name,
            "rows": int(total),
            "suspects": int(found),
            "share": _plain(found / total) if total else None,
        }
        for name, total, found in zip(data.classes, totals, counts, strict=True)
    ]


def _plain(value: Any) -> float | None:
    """A float of six significant digits, None where it is missing or not finite."""
    if value is None or not np.isfinite(value):
        return None
    return float(f"{float(value):.{_DIGITS}g}")


def _clean(card: dict[str, Any]) -> dict[str, Any]:
    """A card's dict with its floats plain and its tuples as lists."""
    plain = {}
    for name, value in card.items():
        if isinstance(value, float):
            value = _plain(value)
        elif isinstance(value, tuple):
            value = [_plain(part) for part in value]
        plain[name] = value
    return plain
