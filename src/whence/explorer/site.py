"""What the explorer shows, and the dicts that its pages are made of; each is also the page's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from whence.audit import Run
from whence.audit.decisions import ACTIONS, Decision, Decisions
from whence.explorer.job import Retraining
from whence.explorer.opened import Opened, finite
from whence.explorer.oracle import Oracle
from whence.explorer.problems import Problem
from whence.explorer.queue import asked_of, card_of, page_of

__all__ = ["Site", "decide", "queue_page", "row_page"]

_CHARACTERS = 20_000
_BESIDE = ["id", "label", "suspicion", "is_suspect"]
_COPIES = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """An explorer of one run.

    Args:
        opened: The run.
        decisions: What was decided.
        oracle: The model.
        retraining: The background job.
        against: Another run to compare with, or None.
        edit: Whether decisions can be made.
    """

    opened: Opened
    decisions: Decisions
    oracle: Oracle
    retraining: Retraining
    against: Run | None
    edit: bool

    @property
    def unit(self) -> str | None:
        """Unit of scores."""
        unit = self.opened.run.summary["method"].get("unit")
        return unit if isinstance(unit, str) else None

    @cached_property
    def beside(self) -> pd.DataFrame | None:
        """What the other run says, in the order of this run's rows; missing for rows that it does not have."""
        if self.against is None:
            return None
        listed = self.against.suspects[_BESIDE]
        listed = listed.assign(id=listed["id"].astype(str)).drop_duplicates("id").set_index("id")
        return listed.reindex(self.opened.ids).reset_index()


def queue_page(site: Site, given: Mapping[str, str]) -> dict[str, Any]:
    """Return one page of the rows to decide about."""
    asked = asked_of(given, site.opened)
    decided = site.decisions.all()
    return {**page_of(site.opened, decided, asked), "counts": site.decisions.counts()}


def row_page(site: Site, given: Mapping[str, str]) -> dict[str, Any]:
    """Return everything about one row: labels, signals, what helps and harms it, what it helps and harms."""
    opened = site.opened
    position = opened.position(given.get("id", ""))
    row = card_of(opened, site.decisions.all(), position, characters=_CHARACTERS)
    explanation = None if site.oracle.missing else site.oracle.explain_row(position)
    effects = None if site.oracle.missing else site.oracle.effects(position)
    shown = [*row["evidence"]] if explanation is None else [*explanation["helpful"], *explanation["harmful"]]
    return {
        "row": row,
        "signals": _signals(site, position),
        "explanation": explanation,
        "effects": effects,
        "mutual": not site.oracle.missing and site.oracle.mutual,
        "without": site.oracle.missing,
        "largest": max((abs(one["score"] or 0.0) for one in shown), default=0.0) or 1.0,
        "copies": _copies(opened, position),
        "previous": _ranked(opened, row["rank"] - 1),
        "next": _ranked(opened, row["rank"] + 1),
        "unit": site.unit,
    }


def decide(site: Site, sent: Any) -> dict[str, Any]:
    """Write a decision: {"id", "action", "label"}, the action one of four or "clear".

    Raises:
        Problem: The explorer is read-only, or a value is none that there is.
    """
    if not site.edit:
        raise Problem(403, "read_only", "the explorer must be started with --edit to decide.")
    if not isinstance(sent, dict) or not isinstance(sent.get("id"), str):
        raise Problem(400, "bad_request", 'a decision must be {"id": ..., "action": ...}.')
    position, action, label = site.opened.position(sent["id"]), sent.get("action"), sent.get("label")
    if action == "clear":
        site.decisions.take_back(sent["id"])
        return {"id": sent["id"], "decision": None, "counts": site.decisions.counts()}
    if action not in ACTIONS:
        raise Problem(400, "bad_request", f"action must be one of {', '.join(ACTIONS)} or clear, got {action!r:.80}.")
    if action == "relabel":
        label = site.opened.suggestion(position) if label is None else label
        if not isinstance(label, str) or label == site.opened.label(position):
            raise Problem(400, "bad_request", f"label must be another class than the given one, got {label!r:.80}.")
        site.opened.class_of(label)
    made = site.decisions.put(
        Decision(
            id=sent["id"], action=action, label=label if action == "relabel" else None,
            given=site.opened.label(position),
        )
    )  # fmt: skip
    return {"id": sent["id"], "decision": asdict(made), "counts": site.decisions.counts()}


def _signals(site: Site, position: int) -> list[dict[str, Any]]:
    """Return every signal of a row with its place among all rows, from 0 to 1."""
    opened = site.opened
    texts = {one["name"]: one["text"] for one in opened.run.summary["method"].get("signals", [])}
    told = []
    for name in opened.signals:
        values = opened.column(name)
        value = values[position]
        known = values[np.isfinite(values)]
        place = None if not np.isfinite(value) or len(known) < 2 else float(
            ((known < value).sum() + ((known == value).sum() - 1) / 2) / (len(known) - 1)
        )  # fmt: skip
        told.append({"name": name, "text": texts.get(name, ""), "value": finite(value), "place": finite(place)})
    return told


def _copies(opened: Opened, position: int) -> list[dict[str, Any]]:
    """Return other rows of the same content."""
    if "duplicate_of" not in opened.frame:
        return []
    first = opened.frame["duplicate_of"].astype(object)
    own, name = first.iat[position], opened.ids[position]
    head = str(own) if isinstance(own, str) else name
    members = np.flatnonzero((first == head).to_numpy(dtype=bool) | (opened.frame["id"] == head).to_numpy(dtype=bool))
    kinds = opened.frame.get("duplicate_kind")
    told = []
    for row in members.tolist():
        if row != position:
            kind = None if kinds is None else kinds.iat[row] if isinstance(kinds.iat[row], str) else kinds.iat[position]
            told.append({"id": opened.ids[row], "label": opened.label(row), "kind": kind or "exact"})
    return told[:_COPIES]


def _ranked(opened: Opened, rank: int) -> str | None:
    """Return the id of the row of a rank."""
    found = np.flatnonzero(opened.rank == rank)
    return opened.ids[int(found[0])] if len(found) else None
