"""The queue of rows to decide about: filtered, sorted and cut into pages on the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias
from urllib.parse import urlencode

import numpy as np

from whence.audit.decisions import Decision
from whence.explorer.groups import rows_of_group
from whence.explorer.opened import Opened, finite
from whence.explorer.problems import Problem
from whence.explorer.ranges import rows_between

__all__ = ["PER_PAGE", "SHOWN", "Asked", "asked_of", "card_of", "page_of", "rows_asked"]

Array: TypeAlias = "np.ndarray[Any, Any]"

PER_PAGE = 20
SHOWN = ("suspects", "undecided", "decided", "conflicts", "all")
_TEXTS = ("show", "given", "suggested", "action", "search", "column", "value", "ranges", "sort")
_EVIDENCE = 5
_LONGEST_SEARCH = 200


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which rows, in which order, which page of them.

    Args:
        show: "suspects", "undecided" (suspects without a decision), "decided", "conflicts" or "all".
        given: Given label, "" for any.
        suggested: Suggested label, "" for any.
        action: Decided action, "" for any.
        search: Part of a row's text, cells or id.
        column: Column of `whence.explorer.groups`, "" for none.
        value: Its value.
        ranges: Signals between two values, see `whence.explorer.ranges`; "" for any.
        sort: A signal, or "row" for the order of the data.
        ascending: Smallest first.
        page: From 1.
    """

    show: str = ""
    given: str = ""
    suggested: str = ""
    action: str = ""
    search: str = ""
    column: str = ""
    value: str = ""
    ranges: str = ""
    sort: str = "suspicion"
    ascending: bool = False
    page: int = 1

    def query(self, **changed: Any) -> str:
        """Return the part of an address after the question mark, with some settings changed."""
        plain = asdict(Asked())
        told = {name: value for name, value in asdict(replace(self, **changed)).items() if value != plain[name]}
        return urlencode({name: int(value) if isinstance(value, bool) else value for name, value in told.items()})


def asked_of(given: Mapping[str, str], opened: Opened) -> Asked:
    """Return what an address asks for.

    Raises:
        Problem: A setting has no such value.
    """
    told = {name: given.get(name, "") for name in _TEXTS}
    told["show"] = told["show"] or ("suspects" if opened.flagged.any() else "all")
    told["sort"] = told["sort"] or "suspicion"
    told["search"] = told["search"][:_LONGEST_SEARCH].strip()
    asked = Asked(
        **told, ascending=given.get("ascending", "") in ("1", "true", "on"), page=_page(given.get("page", "1"))
    )
    if asked.show not in SHOWN:
        raise Problem(400, "bad_request", f"show must be one of {', '.join(SHOWN)}, got {asked.show[:80]!r}.")
    if asked.sort not in (*opened.signals, "row"):
        known = ", ".join((*opened.signals, "row"))
        raise Problem(400, "bad_request", f"sort must be one of {known}, got {asked.sort[:80]!r}.")
    for name in (asked.given, asked.suggested):
        if name:
            opened.class_of(name)
    return asked


def _page(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 9 or int(text) < 1:
        raise Problem(400, "bad_request", f"page must be a number from 1, got {text[:80]!r}.")
    return int(text)


def rows_asked(opened: Opened, decided: Mapping[str, Decision], asked: Asked) -> Array:
    """Return the positions of all rows that are asked for, in their order.

    Cost: a few passes over columns; a search reads every row's text.
    """
    kept = _shown(opened, decided, asked.show)
    if asked.given:
        kept &= opened.given == opened.class_of(asked.given)
    if asked.suggested:
        kept &= opened.suggested == opened.class_of(asked.suggested)
    if asked.action:
        kept &= _mask(opened, [name for name, one in decided.items() if one.action == asked.action])
    if asked.column:
        kept &= rows_of_group(opened, asked.column, asked.value)
    if asked.ranges:
        kept &= rows_between(opened, asked.ranges)
    rows = np.flatnonzero(kept)
    if asked.search:
        rows = rows[[_holds(opened, row, asked.search.casefold()) for row in rows.tolist()]]
    return _sorted(opened, rows, asked)


def _shown(opened: Opened, decided: Mapping[str, Decision], show: str) -> Array:
    if show == "suspects":
        return opened.flagged.copy()
    if show == "undecided":
        return opened.flagged & ~_mask(opened, list(decided))
    if show == "decided":
        return _mask(opened, list(decided))
    if show == "conflicts" and "conflict" in opened.frame:
        return opened.frame["conflict"].to_numpy(dtype=bool).copy()
    return np.full(len(opened), show == "all")


def _mask(opened: Opened, ids: list[str]) -> Array:
    mask = np.zeros(len(opened), dtype=bool)
    mask[[opened.positions[name] for name in ids if name in opened.positions]] = True
    return mask


def _holds(opened: Opened, row: int, needle: str) -> bool:
    content = opened.data.content
    if needle in opened.ids[row].casefold():
        return True
    if isinstance(content, list):
        return needle in content[row].casefold()
    if isinstance(content, np.ndarray):
        return False
    return any(needle in str(content.iat[row, column]).casefold() for column in range(content.shape[1]))


def _sorted(opened: Opened, rows: Array, asked: Asked) -> Array:
    """Return rows in order; missing values last, ties by rank."""
    if asked.sort == "row":
        return rows if asked.ascending else rows[::-1]
    values = opened.column(asked.sort)[rows]
    order: Array = np.lexsort((opened.rank[rows], values if asked.ascending else -values, np.isnan(values)))
    return rows[order]


def page_of(opened: Opened, decided: Mapping[str, Decision], asked: Asked) -> dict[str, Any]:
    """Return one page of the queue, JSON-able."""
    rows = rows_asked(opened, decided, asked)
    pages = max(1, -(-len(rows) // PER_PAGE))
    page = min(asked.page, pages)
    shown = rows[(page - 1) * PER_PAGE : page * PER_PAGE]
    return {
        "asked": asdict(replace(asked, page=page)),
        "total": len(rows),
        "pages": pages,
        "first": (page - 1) * PER_PAGE + 1 if len(rows) else 0,
        "rows": [card_of(opened, decided, int(row)) for row in shown],
    }


def card_of(
    opened: Opened, decided: Mapping[str, Decision], row: int, *, characters: int = 600, cells: int = 24
) -> dict[str, Any]:
    """Return what is shown of a row, JSON-able: content, labels, suspicion, evidence, decision."""
    name, entry = opened.ids[row], opened.frame.iloc[row]
    made = decided.get(name)
    return {
        "id": name,
        "rank": int(opened.rank[row]),
        "label": opened.label(row),
        "suggested_label": opened.suggestion(row),
        "suspicion": finite(entry["suspicion"]),
        "is_suspect": bool(opened.flagged[row]),
        "conflict": bool(entry.get("conflict", False)),
        "content": opened.content(row, characters, cells),
        "evidence": _evidence(opened, entry),
        "decision": None if made is None else {"action": made.action, "label": made.label, "decided": made.decided},
    }


def _evidence(opened: Opened, entry: Any) -> list[dict[str, Any]]:
    """Return the training rows that argue most against a row's label."""
    ids, scores = entry.get("evidence"), entry.get("evidence_scores")
    if not isinstance(ids, (list, np.ndarray)):
        return []
    told = []
    for place, name in enumerate([str(name) for name in ids][:_EVIDENCE]):
        row = opened.positions.get(name)
        if row is not None:
            score = scores[place] if isinstance(scores, (list, np.ndarray)) and place < len(scores) else None
            told.append({"id": name, "label": opened.label(row), "score": finite(score),
                         "content": opened.content(row, 240, 24)})  # fmt: skip
    return told
