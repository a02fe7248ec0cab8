"""The page of ``whence words``: the sentences behind a measurement of word vectors, and what changes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from whence.report.html import whole_page
from whence.report.plots import Axis, Plot, axis, curve

__all__ = ["render_words"]

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LONGEST = 600  # characters of a sentence; of a document its beginning
_SIDES = {"X": "target", "Y": "other-target", "A": "attribute", "B": "other-attribute"}


def render_words(found: dict[str, Any]) -> str:
    """The page of what in a text makes words lie as they do.

    Args:
        found: A dict of format 1: ``data``, ``measurement`` (``kind``, ``name``, ``unit``, ``value``, ``p_value``,
            ``lists``, ``missing``, ``associations``, ``nearest``), ``sentences`` (None, or ``scored``, ``raise`` and
            ``lower``, lists of ``id``, ``document``, ``text``, ``score``), ``removal`` (None, or ``k``, ``seeds``,
            ``draws``, ``before``, ``rows`` of ``name``, ``predicted``, ``change``, ``after``, ``p_value``), ``edit``
            (None, or ``k``, ``steps``, ``stopped``, ``after``, ``p_value``, ``trace``), ``debias`` (None, or ``pairs``,
            ``after``, ``p_value``), ``seconds``, ``whence`` and ``created``.

    Returns:
        A whole page, as self-contained as that of an audit.
    """
    measurement, removal = found["measurement"], found["removal"]
    sides = _sides(measurement)
    sentences = found["sentences"]
    marked = sentences and {
        side: [{**one, "pieces": _pieces(_cut(one["text"]), sides)} for one in sentences[side]]
        for side in ("raise", "lower")
    }
    changes = _changes(found)
    values: dict[str, Any] = {
        "found": found, "told": measurement, "removal": removal, "marked": marked, "changes": changes,
        "scale": _scale(changes), "trace": _trace(found["edit"]), "reach": _reach(measurement["associations"]),
        "largest": max((abs(one["score"]) for side in (marked or {}).values() for one in side), default=1.0) or 1.0,
    }  # fmt: skip
    return whole_page("words.html", "", values, plots=True)


def _sides(measurement: dict[str, Any]) -> dict[str, str]:
    """Return for every word asked about the class it is marked with."""
    if measurement["lists"] is None:
        first, second = measurement["nearest"]
        return {second["word"].lower(): _SIDES["Y"], first["word"].lower(): _SIDES["X"]}
    words = [(word, one["role"]) for one in measurement["lists"] for word in one["words"]]
    return {word["word"].lower(): _SIDES[role] for word, role in words if word["used"]}


def _cut(text: str) -> str:
    """Return the beginning of a long text."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…"


def _pieces(text: str, sides: dict[str, str]) -> list[tuple[str, str]]:
    """Return the text in pieces, each with the class of the word asked about that it is, or an empty one."""
    pieces, start = [], 0
    for found in _WORD.finditer(text):
        side = sides.get(found.group().lower().replace("’", "'"))
        if side:
            pieces += [(text[start : found.start()], ""), (found.group(), side)]
            start = found.end()
    return [*pieces, (text[start:], "")]


def _changes(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one line for every way to change the measurement, the value before it first."""
    told, removal, edit, fair = (found[name] for name in ("measurement", "removal", "edit", "debias"))
    lines = [_line("these vectors", [told["value"], None, None], told["p_value"])]
    if removal is not None:
        names = {
            "raise": f"without {removal['k']} {found['data']['unit']}s that raise it",
            "lower": f"without {removal['k']} that lower it", "random": f"without {removal['k']} random ones",
        }  # fmt: skip
        lines.append(_line("trained again with everything", removal["before"], None, own=False))
        for row in removal["rows"]:
            own = row["name"] != "random"
            lines.append(_line(names[row["name"]], row["after"], row["p_value"], row["predicted"], own=own))
    if edit is not None:
        lines.append(_line(f"edited, {edit['steps']} steps", [edit["after"], None, None], edit["p_value"]))
    if fair is not None:
        lines.append(_line("hard debiasing", [fair["after"], None, None], fair["p_value"], own=False))
    return lines


def _line(
    name: str, after: list[float | None], p_value: float | None, predicted: float | None = None, *, own: bool = True
) -> dict[str, Any]:
    """Return one line of the table of changes."""
    return {"name": name, "after": after, "p_value": p_value, "predicted": predicted, "own": own}


def _scale(lines: Sequence[dict[str, Any]]) -> Axis:
    """Return an axis that holds all values, and zero."""
    return axis([value for line in lines for value in line["after"] if value is not None], include=[0.0])


def _reach(associations: list[dict[str, Any]] | None) -> Axis | None:
    """Return an axis for the associations of single words, and zero."""
    return None if associations is None else axis([one["association"] for one in associations], include=[0.0])


def _trace(edit: dict[str, Any] | None) -> Plot | None:
    """Return the measurement step by step."""
    if edit is None or len(edit["trace"]) < 2:
        return None
    steps = [one["step"] for one in edit["trace"]]
    values = [one["measurement"] for one in edit["trace"]]
    x, y = Axis(low=0.0, high=float(steps[-1])), axis(values, include=[0.0])
    lines = (
        curve(x, y, [0, steps[-1]], [0, 0], kind="ideal", name="zero"),
        curve(x, y, steps, values, kind="own", name="the measurement"),
    )
    return Plot(x=x, y=y, lines=lines)
