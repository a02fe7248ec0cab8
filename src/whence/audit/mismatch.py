"""Domain mismatch on a user's table: fit, hold out, and find what stands behind a subgroup's wrong predictions."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from whence.audit.bench import Watch
from whence.audit.job import train_rows_of
from whence.curvature import Exact
from whence.data import LabelledData, id_keys, uniform
from whence.errors import ConfigError, DataError
from whence.methods import Influence
from whence.tasks import Task
from whence.tasks.defaults.tabular import TabularPreparation
from whence.uses.mismatch import DomainMismatch, domain_mismatch

__all__ = ["MismatchSettings", "mismatch_data", "subgroup_of"]

_FEATURES = 8
_CELLS = 60


@dataclass(frozen=True, kw_only=True)
class MismatchSettings:
    """Which subgroup, and how the model is fitted.

    Args:
        column: Column of the table.
        value: A value of it; for a column of numbers also LOW:HIGH, which holds LOW ≤ x < HIGH (either may be empty).
        weight_decay: λ of (λ/2)‖w‖² beside the mean loss.
        others: Further weight decays to show: how strongly rows stand out depends on it.
        held_out: Share of the rows to ask about, where the data have no split.
        shown: Training rows to list.
        seed: Seed of what is held out.

    Raises:
        ConfigError: A value is out of range.
    """

    column: str
    value: str
    weight_decay: float = 1e-4
    others: tuple[float, ...] = (1e-2, 1e-3, 1e-5)
    held_out: float = 0.5
    shown: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for decay in (self.weight_decay, *self.others):
            if not 0 < decay < float("inf"):
                raise ConfigError(f"weight decay must be positive, got {decay}. Try 1e-4.")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be a share between 0 and 1, got {self.held_out}. Try 0.5.")


def mismatch_data(
    data: LabelledData, settings: MismatchSettings, *, version: str = "", watch: Watch | None = None
) -> dict[str, Any]:
    """Fit logistic regression on a table and say why held-out rows of a subgroup are predicted wrongly.

    Args:
        data: A table.
        settings: Subgroup and model.
        version: Version to name in the result.
        watch: Who is told of progress.

    Returns:
        A JSON-able dict of format 1, which `whence.report.render_mismatch` takes.

    Raises:
        ConfigError: The data are no table, or the column or value is not in it.
        DataError: No training row is in the subgroup, or no held-out one.

    Cost: a fit and an exact curvature (at most 12,000 weights) a weight decay.
    """
    started, watch = time.perf_counter(), watch or Watch()
    inside = subgroup_of(data, settings.column, settings.value)
    rows = train_rows_of(data)
    if rows is None:
        rows = np.flatnonzero(uniform(id_keys(data.ids), settings.seed) >= settings.held_out)
    asked = np.setdiff1d(np.flatnonzero(inside), rows)
    told = f"{settings.column} = {settings.value}"
    for count, which in ((len(asked), "held-out"), (int(inside[rows].sum()), "training")):
        if not count:
            raise DataError(f"subgroup {told} must have {which} rows, got none. Name another value or split.")
    if inside[rows].all():
        raise DataError(f"subgroup {told} must leave other training rows, got all {len(rows)}. Name a rarer value.")
    train, others = data.rows(rows), data.rows(asked)
    found, sweep = None, []
    for decay in dict.fromkeys((settings.weight_decay, *settings.others)):
        watch.say(f"fitting at weight decay {decay:g}")
        one, accuracy = _judged(train, others, inside[rows], replace(settings, weight_decay=decay))
        sweep.append({"weight_decay": decay, "accuracy": accuracy, **_line(one)})
        found = one if decay == settings.weight_decay else found
    sweep.sort(key=lambda line: -line["weight_decay"])
    return {
        "format": 1, "data": {"source": data.source, "rows": len(data), "label": data.label_name},
        "subgroup": {
            "column": settings.column, "value": settings.value, "training": int(inside[rows].sum()),
            "training_rows": len(rows), "asked": len(asked),
        },
        "weight_decay": settings.weight_decay, "sweep": sweep, "found": _told(found, train, others, settings),
        "seconds": time.perf_counter() - started, "whence": version,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def subgroup_of(data: LabelledData, column: str, value: str) -> np.ndarray:
    """Return which rows have that value [N].

    Raises:
        ConfigError: The data are no table, or the column or value is not in it.
    """
    table = data.content
    if not isinstance(table, pd.DataFrame):
        raise ConfigError(f"data must be a table to have a subgroup by column, got {data.kind}. Use the library.")
    if column not in table.columns:
        names = [str(name) for name in table.columns]
        raise ConfigError(f"--column must be one of {names[:_CELLS]}, got {column!r}.")
    cells = table[column]
    if pd.api.types.is_numeric_dtype(cells):
        inside = _between(cells.to_numpy(np.float64), column, value)
    else:
        inside = cells.astype(str).to_numpy() == value
    if not inside.any():
        known = sorted({str(cell) for cell in cells.dropna()})[:12]
        raise ConfigError(f"--value must be a value of {column!r}, such as {known}, got {value!r}.")
    return np.asarray(inside)


def _between(cells: np.ndarray, column: str, value: str) -> np.ndarray:
    """Return which numbers equal a value, or lie in LOW:HIGH."""
    low, colon, high = value.partition(":")
    try:
        if not colon:
            return np.asarray(cells == float(value))
        return np.asarray((cells >= float(low or "-inf")) & (cells < float(high or "inf")))
    except ValueError:
        raise ConfigError(
            f"--value must be a number or LOW:HIGH for column {column!r} of numbers, got {value!r}."
        ) from None


def _judged(
    train: LabelledData, others: LabelledData, inside: np.ndarray, settings: MismatchSettings
) -> tuple[DomainMismatch | None, float]:
    """Return what stands behind the wrong predictions, None where there are none, and the subgroup's accuracy."""
    assert isinstance(train.content, pd.DataFrame)
    preparation = TabularPreparation.fit(train.content)
    x, asked = (preparation.transform(part).double().numpy() for part in (train, others))
    machine = LogisticRegression(
        C=1 / (settings.weight_decay * len(x)), solver="newton-cholesky", tol=1e-8, max_iter=1_000
    )
    if len(np.unique(train.labels)) < 2:
        raise DataError("training rows must have at least two classes, got one. Name another split.")
    fitted = machine.fit(x, train.labels)
    right = fitted.predict(asked) == others.labels
    if right.all():
        return None, 1.0
    task = Task.from_sklearn(fitted)
    attribution = Influence(curvature=Exact()).fit(task, task.examples((x, train.labels), ids=train.ids))
    found = domain_mismatch(
        attribution, task.examples((asked, others.labels), ids=others.ids), training_subgroup=inside,
        features=preparation.places(), shown=min(settings.shown, len(x) - 1),
    )  # fmt: skip
    return found, float(right.mean())


def _line(found: DomainMismatch | None) -> dict[str, Any]:
    """Return one row of the table of weight decays."""
    if found is None:
        return {"wrong": 0, "ratio": None, "responsible": 0, "subgroup_ratio": None}
    return {
        "wrong": len(found.wrong), "ratio": found.ratio, "responsible": len(found.responsible),
        "subgroup_ratio": found.subgroup_ratio,
    }  # fmt: skip


def _told(
    found: DomainMismatch | None, train: LabelledData, others: LabelledData, settings: MismatchSettings
) -> dict[str, Any] | None:
    """Return what the page and the terminal say of the rows and their features."""
    if found is None:
        return None
    places = {id_: position for position, id_ in enumerate(train.ids.tolist())}
    wrong = {id_: position for position, id_ in enumerate(others.ids.tolist())}
    table, held = train.content, others.content
    assert isinstance(table, pd.DataFrame) and isinstance(held, pd.DataFrame) and found.features is not None
    rows = [
        {**row, "id": str(row["id"]), "label": train.classes[train.labels[places[row["id"]]]],
         "value": _cell(table[settings.column].iloc[places[row["id"]]])}
        for row in found.rows.drop(columns="target").to_dict("records")
    ]  # fmt: skip
    features = [
        {"id": str(id_), "features": [
            {**one, "cell": _cell(table[one["feature"]].iloc[places[id_]])}
            for one in part.drop(columns="id").head(_FEATURES).to_dict("records")
        ]} for id_, part in found.features.groupby("id", sort=False)
    ]  # fmt: skip
    ranked = found.features_responsible
    assert ranked is not None
    labels = others.labels[[wrong[id_] for id_ in found.wrong.tolist()]]
    return {
        "wrong": [str(id_) for id_ in found.wrong.tolist()], "asked": found.asked, "ratio": found.ratio,
        "responsible": [str(id_) for id_ in found.responsible.tolist()], "rows": rows, "row_features": features,
        "subgroup_rows": found.subgroup_rows, "subgroup_ratio": found.subgroup_ratio,
        "subgroup_share": found.subgroup_share, "unit": found.unit,
        "wrong_labels": {name: int((labels == place).sum()) for place, name in enumerate(train.classes)},
        "median_ratio": float(found.by_query["ratio_low"].median()),
        "features": ranked.head(_FEATURES).to_dict("records"),
    }  # fmt: skip


def _cell(value: Any) -> str:
    """Return a cell as text."""
    return "missing" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
