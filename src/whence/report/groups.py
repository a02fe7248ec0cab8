"""Groups of duplicate rows, told from the ``duplicate_of`` column of the suspects."""

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from whence.data.labelled import LabelledData
from whence.report.cards import ReportLimits
from whence.report.content import content_of

__all__ = ["duplicate_groups", "duplicate_kinds", "duplicate_summary"]

_MEMBERS = 50  # ids listed per group; its size is given besides


def duplicate_groups(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Every member's id to the ids of its whole group, the original first; single rows are left out."""
    parents = _parents(frame)
    members: dict[str, list[str]] = defaultdict(list)
    for name in parents:
        root, seen = name, {name}
        while root in parents and parents[root] not in seen:
            root = parents[root]
            seen.add(root)
        members[root].append(name)
    groups = {}
    for root, names in members.items():
        whole = [root, *(name for name in names if name != root)]
        groups.update(dict.fromkeys(whole, whole))
    return groups


def duplicate_kinds(data: LabelledData, frame: pd.DataFrame) -> dict[str, str]:
    """For each row with an original: ``"exact"`` or ``"near"``, by the column or by comparing contents."""
    parents = _parents(frame)
    if "duplicate_kind" in frame.columns:
        given = dict(zip(frame["id"], frame["duplicate_kind"], strict=True))
        return {name: str(given[name]) for name in parents}
    rows = {str(name): row for row, name in enumerate(data.ids)}
    return {name: "exact" if _same(data, rows[name], rows[parent]) else "near" for name, parent in parents.items()}


def duplicate_summary(
    data: LabelledData,
    frame: pd.DataFrame,
    groups: dict[str, list[str]],
    kinds: dict[str, str],
    limits: ReportLimits,
) -> dict[str, Any]:
    """Counts of duplicate rows, and the groups a reader should see: conflicting labels first, then large."""
    rows = {str(name): row for row, name in enumerate(data.ids)}
    unique = {members[0]: members for members in groups.values()}
    listed = []
    for members in unique.values():
        labels = [data.classes[int(data.labels[rows[name]])] for name in members]
        listed.append((len(set(labels)) > 1, len(members), members, labels))
    listed.sort(key=lambda group: (-group[0], -group[1]))
    conflict = frame["conflict"] if "conflict" in frame.columns else pd.Series(dtype=bool)
    found = list(kinds.values())
    return {
        "exact_rows": found.count("exact"),
        "near_rows": found.count("near"),
        "conflicting_rows": int(conflict.fillna(False).astype(bool).sum()),
        "total_groups": len(listed),
        "groups": [
            {
                "ids": members[:_MEMBERS],
                "labels": labels[:_MEMBERS],
                "size": len(members),
                "content": content_of(
                    data, rows[members[0]], characters=limits.evidence_characters, cells=limits.cells
                ),
            }
            for _, _, members, labels in listed[: limits.groups]
        ],
    }


def _parents(frame: pd.DataFrame) -> dict[str, str]:
    """Id to the id it duplicates."""
    if "duplicate_of" not in frame.columns:
        return {}
    pairs = zip(frame["id"], frame["duplicate_of"], strict=True)
    return {name: str(parent) for name, parent in pairs if not pd.isna(parent) and str(parent) != name}


def _same(data: LabelledData, first: int, second: int) -> bool:
    content = data.content
    if isinstance(content, pd.DataFrame):
        return bool(content.iloc[first].equals(content.iloc[second]))
    return bool(np.array_equal(content[first], content[second]))
