"""Summaries as self-contained pages: no asset is loaded, no script runs but the page's own two.

Every value of the data reaches the page through jinja's autoescaping or as JSON whose ``<``, ``>``, ``&`` and
``'`` are escaped, and the page's script writes it as text, never as markup. A content security policy with the
scripts' hashes holds even if that failed.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from whence.report import formats
from whence.report.charts import histogram
from whence.report.notes import digest
from whence.report.page import page_data, signal_title

__all__ = ["render", "render_explanation", "whole_page"]

_TEMPLATES = Path(__file__).parent / "templates"
_MATRIX = 14  # more classes among the suspects than this are shown as a list of pairs
_STRIP = 30  # more classes than this have no strip under the headline
_LISTED = 20


def render(summary: dict[str, Any], pages: Mapping[str, str] | None = None) -> str:
    """The report of an audit as one HTML file.

    Args:
        summary: What ``summarise`` returned, or the same read back from JSON.
        pages: Names of pages that lie beside it with what to call them, to link to.

    Returns:
        A whole page that works offline, in dark and light, on paper and on a phone. Without images it has
        about 100 kB and about 1 kB per shown suspect with short texts.

    Cost:
        One pass over ``summary["rows"]``; nothing is computed from the data.
    """
    values = {
        "summary": summary,
        "pages": dict(pages or {}),
        "data": htmlsafe_json_dumps(page_data(summary), ensure_ascii=False, allow_nan=False, separators=(",", ":")),
        "influence": _influence(summary),
        "suspicion": _suspicion(summary),
        "labels": _labels(summary),
        "strip": _strip(summary),
    }
    return whole_page("report.html", "report.js", values)


def render_explanation(explanation: dict[str, Any]) -> str:
    """The page of ``whence explain``: a query and the training rows behind its prediction.

    Args:
        explanation: A dict of format 1: ``query`` with ``id``, ``label`` (or None), ``predicted``,
            ``probabilities`` (a list of ``label`` and ``p``, highest first), ``loss`` (nats, or None) and
            ``content``; ``helpful`` and ``harmful``, each a list of ``id``, ``label``, ``score``, ``content`` and
            optionally ``standard_error``, strongest first; ``sum_score`` over all training rows (or None); ``unit``
            (``"nats"``, None if the scores only rank); ``model`` and ``data``, as in a summary; optionally
            ``method``, ``whence``, ``created`` and ``measured_label``, the label whose loss was measured.

    Returns:
        A whole page, as self-contained as ``render``'s.

    Cost:
        One pass over the named rows.
    """
    arguments = [*explanation["helpful"], *explanation["harmful"]]
    largest = max((abs(argument["score"]) for argument in arguments), default=0.0) or 1.0
    query = explanation["query"]
    cells = {cell["name"]: cell["value"] for cell in query["content"].get("cells", [])}
    measured = explanation.get("measured_label") or query["label"] or query["predicted"]
    values = {"explanation": explanation, "largest": largest, "cells": cells, "measured": measured}
    return whole_page("explain.html", "", values)


def whole_page(template: str, script: str, values: dict[str, Any], *, plots: bool = False) -> str:
    """A template filled with values, all escaped, in our style and with our scripts alone."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(formats, name) for name in formats.__all__ if name.islower()}
    environment.filters |= {"signal_title": signal_title, "by_label": _by_label}
    environment.filters |= {"digest": digest, "threshold": _threshold}
    scripts = {"theme": _source("theme.js"), "main": _source(script) if script else ""}
    hashes = [_hash(source) for source in scripts.values() if source]
    page = environment.get_template(template).render(
        values,
        style=Markup(_source("style.css") + (_source("plots.css") if plots else "")),
        scripts={name: Markup(source) for name, source in scripts.items()},
        policy=" ".join(hashes),
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate in a name cannot be written


def _source(name: str) -> str:
    """One of our own files; never data."""
    return (_TEMPLATES / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _threshold(value: float | None) -> str:
    """A threshold of suspicion, in [0, 1]: as many decimals as it takes to tell it from 1."""
    places = 2
    while value is not None and 0 < 1 - value < 0.5 * 10**-places and places < 6:
        places += 1
    return formats.fixed(value, places)


def _by_label(labels: list[str], ids: list[str]) -> list[tuple[str, list[str]]]:
    """Ids of a group of duplicates under each of their labels."""
    members: dict[str, list[str]] = {}
    for label, name in zip(labels, ids, strict=True):
        members.setdefault(label, []).append(name)
    return list(members.items())


def _influence(summary: dict[str, Any]) -> Any:
    found = summary["histogram"]
    if not found:
        return None
    return histogram(found["edges"], found["all"], found["suspects"])


def _suspicion(summary: dict[str, Any]) -> Any:
    found = summary["suspicion_histogram"]
    threshold, edges = found["threshold"], found["edges"]
    marked = [0] * len(found["counts"])
    if threshold is not None:
        marked = [
            total if (low + high) / 2 >= threshold else 0
            for total, low, high in zip(found["counts"], edges[:-1], edges[1:], strict=True)
        ]
    return histogram(edges, found["counts"], marked, threshold)


def _labels(summary: dict[str, Any]) -> dict[str, Any]:
    """Given against suggested labels: a heat table for few classes, the top pairs for any number."""
    names, counts = summary["confusion"]["classes"], summary["confusion"]["counts"]
    top = max((value for row in counts for value in row), default=0)
    pairs = [
        {"given": names[i], "suggested": names[j], "count": counts[i][j], "size": 100 * counts[i][j] / top}
        for i in range(len(names))
        for j in range(len(names))
        if counts[i][j]
    ]
    pairs.sort(key=lambda pair: -pair["count"])
    by_share = sorted(summary["per_class"], key=lambda one: (-(one["share"] or 0), one["label"]))
    return {
        "matrix": 2 < len(names) <= _MATRIX,
        "names": names,
        "counts": counts,
        "top": top,
        "pairs": pairs[:_LISTED],
        "more_pairs": max(0, len(pairs) - _LISTED),
        "classes": by_share[:_LISTED],
        "more_classes": by_share[_LISTED:],
        "largest_share": max((one["share"] or 0 for one in by_share), default=0) or 1,
    }


def _strip(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One segment per class for the strip under the headline, in per cent of all rows."""
    rows = max(summary["data"]["rows"], 1)
    if len(summary["per_class"]) > _STRIP:
        return []
    return [
        {
            "label": one["label"],
            "rows": one["rows"],
            "suspects": one["suspects"],
            "width": 100 * one["rows"] / rows,
            "marked": 100 * (one["share"] or 0),
        }
        for one in summary["per_class"]
        if one["rows"]
    ]
