"""Explaining a prediction by the training rows that helped and harmed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.audit.features import Transform, feature_effects
from whence.audit.folder import Run
from whence.data import LabelledData, as_examples
from whence.errors import ConfigError
from whence.methods import EnsembleAttribution, InfluenceAttribution
from whence.report import content_of

__all__ = ["Query", "explain", "inputs_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """A row that is asked about.

    Args:
        rows: The audited data, or new rows with the same columns.
        inputs: Their model inputs [Q, ...], or a tuple or dict of them.
        position: Which of them.
        labelled: Whether its label was given, rather than filled in.
        transform: Rows to model inputs, where that is known.
    """

    rows: LabelledData
    inputs: Any
    position: int
    labelled: bool = True
    transform: Transform | None = None


def explain(
    run: Run,
    data: LabelledData,
    attribution: InfluenceAttribution | EnsembleAttribution,
    query: Query,
    *,
    measured: str | None = None,
    k: int = 10,
    features: int = 0,
) -> dict[str, Any]:
    """Explain one prediction.

    Args:
        run: The audit that the model comes from.
        data: The audited data.
        attribution: The run's attribution; an ensemble's scores come with their standard error, and its prediction is
            the mean of the members' log-probabilities.
        query: What is asked about.
        measured: Label whose loss is measured: None for the given label.
        k: How many helpful and harmful rows.
        features: How many features of each of these rows to name (see `feature_effects`); the attribution must then
            have its training examples.

    Returns:
        The dict that `whence.report.render_explanation` takes: the query with its prediction, the most helpful
        and the most harmful training rows with their content and their score in nats (the predicted rise of the
        query's loss on removal), and the sum over all training rows.
    """
    queries, row = query.rows, query.position
    given = queries.classes[int(queries.labels[row])] if query.labelled else None
    label = measured if measured is not None else given
    logits = _logits(attribution, query)
    if label is None:
        label = data.classes[int(logits.argmax())]
    if label not in data.classes:
        raise ConfigError(f"label must be one of {', '.join(data.classes[:20])}, got {label!r}.")
    target = torch.tensor([data.classes.index(label)])
    scores = attribution.scores(as_examples((_one(query), target)))
    values = scores.values[0].double().cpu()
    positions = {str(name): place for place, name in enumerate(data.ids)}
    own = str(queries.ids[row]) if queries.fingerprint == data.fingerprint else None
    kept = np.array([str(name) != own for name in scores.ids.tolist()])
    shown = torch.from_numpy(kept)
    errors = None if scores.standard_error is None else scores.standard_error[0].double().cpu()[shown]
    named = _Named(data, positions, scores.ids[kept], values[shown], errors)
    sides = {side: named.extreme(k, largest=side == "helpful") for side in ("helpful", "harmful")}
    if features and isinstance(attribution, InfluenceAttribution):
        asked = as_examples((_one(query), target))
        for entry in (entry for side in sides.values() for entry in side):
            place = positions[entry["id"]]
            entry.update(feature_effects(data, attribution, query.transform, asked, place, features))
    return {
        "format": 1,
        "whence": run.manifest["whence"],
        "created": run.manifest["created"],
        "query": {
            "id": str(queries.ids[row]),
            "label": given,
            **_prediction(logits, data.classes, int(target)),
            "content": content_of(queries, row),
        },
        "measured_label": label,
        **sides,
        "sum_score": float(values.sum()),
        "unit": scores.unit,
        "model": run.summary["model"],
        "data": run.summary["data"],
        "method": run.summary["method"],
    }


def inputs_of(inputs: Any, rows: slice) -> Any:
    """Return the inputs of some rows: of a tensor [N, ...], or of every one in a tuple, list or dict.

    Example:
        >>> inputs_of({"tokens": torch.arange(3), "mask": torch.ones(3, 2)}, slice(1, 2))
        {'tokens': tensor([1]), 'mask': tensor([[1., 1.]])}
    """
    if isinstance(inputs, Mapping):
        return {name: inputs_of(value, rows) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs_of(value, rows) for value in inputs)
    return inputs[rows]


def _one(query: Query) -> Any:
    """Return the query's model input with a batch of one."""
    return inputs_of(query.inputs, slice(query.position, query.position + 1))


def _logits(attribution: InfluenceAttribution | EnsembleAttribution, query: Query) -> Tensor:
    """Return the model's log-probabilities of the classes for the query [C], the mean over members."""
    tasks = attribution.tasks if isinstance(attribution, EnsembleAttribution) else (attribution.task,)
    batch = as_examples((_one(query), None)).batch(np.arange(1))
    members = []
    for task in tasks:
        with task.evaluating(), torch.no_grad():
            members.append(task.forward(task.place(batch))[0].double().cpu().log_softmax(-1))
    return torch.stack(members).mean(0)


def _prediction(logits: Tensor, classes: tuple[str, ...], target: int) -> dict[str, Any]:
    """Return prediction, probabilities (highest first, at most ten) and loss."""
    p = logits.softmax(-1)
    order = p.argsort(descending=True)[:10].tolist()
    return {
        "predicted": classes[order[0]],
        "probabilities": [{"label": classes[c], "p": float(p[c])} for c in order],
        "loss": float(-logits.log_softmax(-1)[target]),
    }


@dataclass(frozen=True, eq=False)
class _Named:
    """Scores of training rows for one query, with what it takes to show them."""

    data: LabelledData
    positions: dict[str, int]
    ids: np.ndarray
    values: Tensor
    errors: Tensor | None

    def extreme(self, k: int, *, largest: bool) -> list[dict[str, Any]]:
        """Return the k most helpful (or harmful) rows of that sign with their content."""
        order = self.values.argsort(descending=largest, stable=True)[:k].tolist()
        signed = [place for place in order if (self.values[place] > 0) == largest and self.values[place] != 0]
        return [self._entry(place) for place in signed]

    def _entry(self, place: int) -> dict[str, Any]:
        row = self.positions[str(self.ids[place])]
        error = {} if self.errors is None else {"standard_error": float(self.errors[place])}
        return {
            "id": str(self.data.ids[row]),
            "label": self.data.classes[int(self.data.labels[row])],
            "score": float(self.values[place]),
            **error,
            "content": content_of(self.data, row),
        }
