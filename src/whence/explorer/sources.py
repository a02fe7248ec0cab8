"""What ``whence sources`` said of a run, for the page of groups."""

from __future__ import annotations

import json
from typing import Any

from whence.explorer.opened import Opened, finite

__all__ = ["sources_of"]

_FILE = "sources.json"
_LISTED = 40


def sources_of(opened: Opened) -> dict[str, Any] | None:
    """Return what the sources of the rows do to one another, or which rows lie apart, JSON-able.

    Args:
        opened: A run; its ``sources.json`` is read each time, so that the command may be run meanwhile.

    Returns:
        ``way`` ("groups", "known" or "automatic"), ``column``, ``created``, ``unit`` and ``said``; of groups their
        names, rows, suspects, AUC and ``effects``; else ``changed``, ``others``, ``certain`` and the ``rows`` that lie
        apart. None where nothing was said, or where the file is none of ours.
    """
    try:
        found = json.loads((opened.run.folder / _FILE).read_text(encoding="utf-8"))
        return _told(opened, found) if found["kind"] == "sources" and found["format"] == 1 else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None  # the page of groups stands without it


def _told(opened: Opened, found: dict[str, Any]) -> dict[str, Any]:
    """Return what is shown of a file.

    Raises:
        KeyError, TypeError, ValueError: It has not the form that the command writes.
    """
    unit = found["unit"]
    told = {
        "way": str(found["way"]), "column": str(found.get("column") or ""), "created": str(found["created"]),
        "unit": unit if isinstance(unit, str) else None, "said": [str(sentence) for sentence in found["said"]],
    }  # fmt: skip
    if told["way"] == "groups":
        groups = [_group(one, len(found["groups"])) for one in found["groups"]]
        sizes = [abs(value) for one in groups for value in one["effects"] if value is not None]
        return {**told, "groups": groups, "largest": max(sizes, default=0.0) or 1.0}
    rows = [str(one["id"]) for one in found["listed"][:_LISTED]]
    return {
        **told, "changed": int(found["changed"]), "others": int(found.get("others", found["rows"])),
        "certain": bool(found.get("certain", True)), "p": finite(found.get("p")),
        "rows": [{"id": name, "label": opened.label(opened.positions[name])} for name in rows
                 if name in opened.positions],
    }  # fmt: skip


def _group(one: dict[str, Any], count: int) -> dict[str, Any]:
    effects = [finite(float(value)) for value in one["effects"]]
    if len(effects) != count:
        raise ValueError("effects must be one a source")
    auc = one["auc"]
    return {"name": str(one["name"]), "rows": int(one["rows"]), "suspects": int(one["suspects"]),
            "auc": None if auc is None else finite(float(auc)), "effects": effects}  # fmt: skip
