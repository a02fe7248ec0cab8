"""Training again after a person's decisions: the change of held-out accuracy, beside the predicted one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.audit.again import Again, AgainSettings, again
from whence.audit.bench import Bring, Watch
from whence.audit.decisions import Decision, applied
from whence.audit.folder import Run
from whence.audit.treated import Way, measure_ways, page_of, random_ids, verdict_on
from whence.data import Examples, LabelledData
from whence.errors import ConfigError, DataError
from whence.evaluate.measurements import Margin
from whence.evaluate.response import last_layer_response

__all__ = ["DecidedSettings", "retrain_run"]

_FEWEST = 10
_QUERIES = 256  # scored at a time: scores of all queries and rows may not fit into memory


@dataclass(frozen=True, kw_only=True)
class DecidedSettings:
    """Which decisions are applied.

    Args:
        decisions: What was decided; "keep" and "unsure" change nothing.
        training: How to train again.
    """

    decisions: tuple[Decision, ...]
    training: AgainSettings = field(default_factory=AgainSettings)


def retrain_run(
    run: Run, data: LabelledData, settings: DecidedSettings, *, bring: Bring | None = None,
    test: LabelledData | None = None, version: str = "", watch: Watch | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train with and without the decisions, and measure rows that were held out.

    Rows that are held out are measured with the labels that were decided for them, and without those that were dropped:
    before and after alike. Beside the rows as they are and the decisions stand as many rows treated at random.

    The prediction is the response of the model's last layer (`last_layer_response`); where there is none, influence of
    first order, a sum over rows that overshoots for many labels that the model does not doubt.

    Args:
        run: An audit.
        data: The audited data.
        settings: What was decided, and how to train again.
        bring: Returns the user's model again.
        test: Rows with right labels to measure, instead of held-out ones.
        version: To name in the result.
        watch: Who is told of progress.

    Returns:
        As pages of treatments, with ``predicted``: the change of accuracy from the predicted margin of every held-out
        row, and ``predicted_by``: by what.

    Raises:
        ConfigError: Nothing was decided that changes anything.
        DataError: Too few held-out rows are left.

    Cost: 3 · seeds + 1 trainings and a response or an influence fit; without a split and ``test`` an audit more.
    """
    watch = watch or Watch()
    labels, kept = applied(data, settings.decisions)
    if kept.all() and np.array_equal(labels, data.labels):
        raise ConfigError("decisions must change at least one row, got none that drops or relabels. Decide first.")
    prepared = again(run, data, settings.training, bring=bring, test=test, watch=watch)
    if test is None:
        prepared = _judged(prepared, data, labels, kept)
    train = prepared.bench.train
    places = {id_: row for row, id_ in enumerate(data.ids.tolist())}
    rows = np.array([places[id_] for id_ in train.ids.tolist()], dtype=np.int64)
    new, dropped = labels[rows], ~kept[rows]
    changed = (new != data.labels[rows]) & ~dropped
    if not (dropped | changed).any():
        raise ConfigError("decisions must change at least one row that is trained on, got held-out rows alone.")
    removed, relabelled = train.ids[dropped], train.ids[changed]
    drawn = random_ids(train, len(removed) + len(relabelled), settings.training.seed)
    ways = [
        Way(name="decisions applied", removed=removed, relabelled=relabelled),
        Way(name="as many rows left out at random", removed=drawn, kind="control"),
    ]
    treated = measure_ways(prepared, ways, labels=new, watch=watch)
    own, chance = treated.found[1:]
    watch.say("predicting the change")
    return page_of(
        prepared, treated, "decisions", version,
        verdict=verdict_on(own.over(treated.before, treated.seed), subject="Applying the decisions",
                           against="training on the rows as they are"),
        against=verdict_on(own.over(chance, treated.seed), subject="Applying the decisions",
                           against="leaving out as many rows at random"),
        after=1, changed=int(dropped.sum() + changed.sum()), dropped=int(dropped.sum()), of=len(train),
        relabelled=int(changed.sum()), **_predicted(prepared, removed, relabelled, new),
    )  # fmt: skip


def _judged(prepared: Again, data: LabelledData, labels: np.ndarray, kept: np.ndarray) -> Again:
    """Return the same, measured on held-out rows as they were decided."""
    queries = prepared.bench.queries
    assert queries is not None
    places = {id_: row for row, id_ in enumerate(data.ids.tolist())}
    rows = np.array([places[id_] for id_ in queries.ids.tolist()], dtype=np.int64)
    if int(kept[rows].sum()) < _FEWEST:
        raise DataError(f"at least {_FEWEST} held-out rows must be left to measure, got {int(kept[rows].sum())}.")
    asked = queries.with_targets(torch.from_numpy(labels[rows])).select(np.flatnonzero(kept[rows]))
    moved = int(((labels != data.labels) | ~kept)[rows].sum())
    said = prepared.said
    if moved:
        said = (*said, f"{moved:,} of the decisions fall among the held-out rows: nothing is trained on them, and they "
                "are measured as decided, before and after alike.")  # fmt: skip
    return replace(prepared, bench=replace(prepared.bench, queries=asked), said=said)


def _predicted(prepared: Again, removed: np.ndarray, relabelled: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    """Return the predicted change of accuracy, and by what it was predicted.

    By the response of the last layer where the model has one, else by influence of first order: the sign of every
    margin plus the sum of its predicted changes.
    """
    bench, queries = prepared.bench, prepared.bench.queries
    assert queries is not None
    task = replace(
        prepared.recipe.task(prepared.recipe.train(bench.train, seed=int(prepared.run.manifest["seed"]))),
        measurement=Margin(),
    )  # fmt: skip
    right = None
    if len(relabelled):
        right = bench.train.with_targets(torch.from_numpy(new.copy())).select(bench.train.rows_of(relabelled))
    now = _margins(task, queries)
    moved = last_layer_response(task, bench.train, removed=removed, relabelled=right)
    if moved is not None:
        after, by = _margins(moved, queries), "response of the last layer"
    else:
        asked = prepared.own.attribution.config.fit(task, bench.train)
        parts = [queries.select(rows) for rows in np.array_split(np.arange(len(queries)), -(-len(queries) // _QUERIES))]
        change = torch.cat([_first_order(asked, removed, right, part) for part in parts])
        after, by = now + change, "influence, first order"
    return {"predicted": float(((after > 0).double() - (now > 0).double()).mean()), "predicted_by": by}


def _first_order(asked: Any, removed: np.ndarray, right: Examples | None, queries: Examples) -> Tensor:
    """Return the sum of the predicted changes of every query's margin [Q]."""
    change = torch.zeros(len(queries), dtype=torch.float64)
    if len(removed):
        change += asked.group_scores({"removed": removed}, queries).values[:, 0].double().cpu()
    if right is not None:
        change += asked.replacement_scores(right.ids, right, queries).values.double().cpu().sum(1)
    return change


def _margins(task: Any, queries: Examples) -> Tensor:
    """Return the margin of every query [Q]."""
    parts = []
    with task.evaluating(), torch.no_grad():
        for batch in queries.batches(1024):
            parts.append(task.measurements(task.place(batch)).double().cpu())
    return torch.cat(parts)
