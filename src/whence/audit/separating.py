"""Where rows of a run came from: what sources do to one another, or which rows are unlike those of a known one."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from whence.audit.again import Opinion, own_opinion
from whence.audit.bench import Bring, Watch
from whence.audit.comparison import data_card
from whence.audit.folder import Run
from whence.audit.treated import signal_histogram, told_rows
from whence.data import LabelledData, id_keys, uniform
from whence.data.rewrite import cells_of
from whence.errors import ConfigError, DataError
from whence.evaluate.unimodality import unimodality
from whence.scores import Scores
from whence.uses.relabel import otsu_threshold
from whence.uses.sources import separate_sources, split_sources

__all__ = ["SourceSettings", "source_run"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_MOST = 12  # sources shown
_FEWEST = 4  # rows of one
_CERTAIN = 0.001  # data of one source have reached .05


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """What is known of the sources.

    Args:
        groups: Column that names the source of every row, or None.
        known: Column that marks rows of one source by 1, true or yes; the others may be of it or not. Or None.
        references: At most so many rows of a source are asked about.
        seed: Of which.

    Raises:
        ConfigError: Both columns are named, or there are too few references.
    """

    groups: str | None = None
    known: str | None = None
    references: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.groups is not None and self.known is not None:
            raise ConfigError("only one of --groups and --known may be given, got both. Leave one out.")
        if self.references < 2:
            raise ConfigError(f"--references must be at least 2, got {self.references}.")


def source_run(
    run: Run, data: LabelledData, settings: SourceSettings, *, bring: Bring | None = None, version: str = "",
    watch: Watch | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Say what the sources of the training rows do to one another, or tell two apart.

    With a column of groups: the predicted change of the mean loss of one group's rows if all rows of another were
    removed, and how well the sizes of scores for one group's rows tell its other rows from the rest. With some rows
    known to be of one source: the others by the sizes of their scores for these. With neither: two sources are looked
    for.

    Args:
        run: An audit.
        data: The audited data.
        settings: What is known.
        bring: Returns the user's model again.
        version: To name in the result.
        watch: Who is told of progress.

    Returns:
        A JSON-able dict of format 1, which `whence.report.render_sources` takes.

    Raises:
        DataError: There is no such column, or fewer than two groups of four rows.

    Cost: scores of at most ``references`` rows a group.
    """
    watch = watch or Watch()
    watch.say("restoring the run")
    opinion = own_opinion(run, data, bring)
    page = {
        "format": 1, "kind": "sources", "whence": version,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "data": data_card(data),
        "model": run.summary["model"], "rows": len(opinion.ids), "unit": run.summary["method"]["unit"], "said": [],
    }  # fmt: skip
    places = {id_: row for row, id_ in enumerate(data.ids.tolist())}
    rows = np.array([places[id_] for id_ in opinion.ids.tolist()])
    watch.say("asking about the sources")
    if settings.groups is not None:
        return {**page, **_groups(opinion, np.array(cells_of(data, settings.groups))[rows], settings)}
    if settings.known is not None:
        marks = np.array(cells_of(data, settings.known))[rows]
        return {**page, **_known(data, opinion, marks, settings)}
    return {**page, **_automatic(data, opinion, settings)}


def _groups(opinion: Opinion, groups: Array, settings: SourceSettings) -> dict[str, Any]:
    """Return what groups do to one another."""
    names, counts = np.unique(groups, return_counts=True)
    shown = names[np.argsort(-counts, kind="stable")][:_MOST]
    shown = np.array([name for name in shown.tolist() if int((groups == name).sum()) >= _FEWEST])
    if len(shown) < 2:
        raise DataError(
            f"--groups must name at least two sources of {_FEWEST} training rows, got {len(shown)} in "
            f"{settings.groups!r} ({len(names)} values). Name another column."
        )
    places = {name: _drawn(opinion.ids, np.flatnonzero(groups == name), settings) for name in shown.tolist()}
    found = {name: opinion.attribution.scores(opinion.examples.select(rows)) for name, rows in places.items()}
    aside = np.setdiff1d(np.arange(len(groups)), np.concatenate(list(places.values())))
    drawn = _drawn(opinion.ids, np.arange(len(opinion.ids)), settings, 2)
    background = _columns(opinion.attribution.scores(opinion.examples.select(drawn)), aside)
    table: list[dict[str, Any]] = []
    for name, scores in found.items():
        values = scores.values.double().cpu().numpy().copy()  # [Q, N]
        values[np.arange(len(values)), places[name]] = 0.0  # what a row does to itself is not what its source does
        own, auc = groups == name, None
        if 0 < own[aside].sum() < len(aside):
            part = _columns(scores, aside)
            auc = separate_sources(part, part, known=own[aside], background=background).auc
        table.append({
            "name": str(name), "rows": int(own.sum()), "suspects": int(opinion.suspects[own].sum()), "auc": auc,
            "effects": [float(values[:, groups == other].sum(1).mean()) for other in shown.tolist()],
        })  # fmt: skip
    left = len(groups) - sum(entry["rows"] for entry in table)
    said = [f"{left:,} rows of smaller sources are not shown."] if left else []
    return {"way": "groups", "column": settings.groups, "groups": table, "said": said}


def _known(data: LabelledData, opinion: Opinion, marks: Array, settings: SourceSettings) -> dict[str, Any]:
    """Return which of the other rows are unlike those of a known source."""
    marked = np.isin(np.char.lower(np.char.strip(marks)), ("1", "true", "yes", "y", "t", "1.0"))
    if not _FEWEST <= marked.sum() <= len(marked) - _FEWEST:
        raise DataError(
            f"--known must mark at least {_FEWEST} rows and leave as many, got {int(marked.sum())} of {len(marked)}. "
            "Mark rows by 1, true or yes."
        )
    asked = _drawn(opinion.ids, np.flatnonzero(marked), settings)
    drawn = _drawn(opinion.ids, np.arange(len(opinion.ids)), settings, 2)
    select = opinion.examples.select
    found = separate_sources(opinion.attribution, select(asked), background=select(drawn))
    rest = np.flatnonzero(~marked)
    limit = otsu_threshold(found.signal.values[rest])
    away = rest[found.signal.values[rest] <= limit]
    order = away[np.argsort(found.signal.values[away], kind="stable")]
    return {
        "way": "known", "column": settings.known, "known": int(marked.sum()), "others": len(rest),
        "changed": len(away), "threshold": limit,
        "histogram": signal_histogram(found.signal.values[rest], found.signal.values[rest] <= limit),
        "listed": told_rows(data, opinion.ids[order], {"value": found.signal.values[order].tolist()}),
    }  # fmt: skip


def _automatic(data: LabelledData, opinion: Opinion, settings: SourceSettings) -> dict[str, Any]:
    """Return two sources that rows may come from, with how certain it is that there are two."""
    asked = _drawn(opinion.ids, np.arange(len(opinion.ids)), settings, 4)
    found = split_sources(opinion.attribution, opinion.examples.select(asked), labels=opinion.labels)
    limit = otsu_threshold(found.values)
    away = found.values > limit
    if away.sum() * 2 > len(away):
        away = ~away
    strength = np.abs(found.values - limit)
    order = np.flatnonzero(away)[np.argsort(-strength[away], kind="stable")]
    dip = unimodality(found, logarithm=False)
    return {
        "way": "automatic", "changed": int(away.sum()), "threshold": limit, "dip": dip.dip, "p": dip.p_value,
        "certain": bool(dip.p_value < _CERTAIN), "histogram": signal_histogram(found.values, away),
        "listed": told_rows(data, opinion.ids[order], {"value": found.values[order].tolist()}),
    }  # fmt: skip


def _columns(scores: Scores, columns: Array) -> Scores:
    """Return the scores of some training rows alone."""
    return Scores(
        values=scores.values[:, torch.from_numpy(columns)], query_ids=scores.query_ids, ids=scores.ids[columns],
        unit=scores.unit,
    )  # fmt: skip


def _drawn(ids: Array, rows: Array, settings: SourceSettings, times: int = 1) -> Array:
    """Return some of the rows, by their ids and the seed."""
    chance = uniform(id_keys(ids[rows]), settings.seed, 13)
    return np.sort(rows[np.argsort(chance, kind="stable")[: times * settings.references]])
