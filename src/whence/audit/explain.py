"""Explaining a prediction by the training rows that helped and harmed it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.audit.folder import Run
from whence.data import LabelledData, as_examples
from whence.errors import ConfigError
from whence.methods import InfluenceAttribution
from whence.report import content_of

__all__ = ["explain"]


def explain(
    run: Run,
    data: LabelledData,
    attribution: InfluenceAttribution,
    *,
    queries: LabelledData,
    inputs: Any,
    row: int,
    measured: str | None = None,
    k: int = 10,
) -> dict[str, Any]:
    """Explain one prediction.

    Args:
        run: The audit that the model comes from.
        data: The audited data.
        attribution: The run's attribution.
        queries: Rows that may be asked about: the audited data or new rows with the same columns.
        inputs: Their model inputs [Q, ...].
        row: Position of the query among ``queries``.
        measured: Label whose loss is measured: None for the given label.
        k: How many helpful and harmful rows.

    Returns:
        The dict that `whence.report.render_explanation` takes: the query with its prediction, the most helpful
        and the most harmful training rows with their content and their score in nats (the predicted rise of the
        query's loss on removal), and the sum over all training rows.
    """
    task = attribution.task
    given = queries.classes[int(queries.labels[row])]
    label = given if measured is None else measured
    if label not in data.classes:
        raise ConfigError(f"label must be one of {', '.join(data.classes[:20])}, got {label!r}.")
    target = torch.tensor([data.classes.index(label)])
    query = as_examples((inputs[row : row + 1], target))
    with task.evaluating(), torch.no_grad():
        logits = task.forward(task.place(query.batch(np.arange(1))))[0].double().cpu()
    scores = attribution.scores(query)
    values = scores.values[0].double().cpu()
    positions = {str(name): place for place, name in enumerate(data.ids)}
    own = str(queries.ids[row]) if queries.fingerprint == data.fingerprint else None
    kept = np.array([str(name) != own for name in scores.ids.tolist()])
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
        "helpful": _named(data, positions, scores.ids[kept], values[torch.from_numpy(kept)], k, largest=True),
        "harmful": _named(data, positions, scores.ids[kept], values[torch.from_numpy(kept)], k, largest=False),
        "sum_score": float(values.sum()),
        "unit": scores.unit,
        "model": run.summary["model"],
        "data": run.summary["data"],
        "method": run.summary["method"],
    }


def _prediction(logits: Tensor, classes: tuple[str, ...], target: int) -> dict[str, Any]:
    """Return prediction, probabilities (highest first, at most ten) and loss."""
    p = logits.softmax(-1)
    order = p.argsort(descending=True)[:10].tolist()
    return {
        "predicted": classes[order[0]],
        "probabilities": [{"label": classes[c], "p": float(p[c])} for c in order],
        "loss": float(-logits.log_softmax(-1)[target]),
    }


def _named(
    data: LabelledData, positions: dict[str, int], ids: np.ndarray, values: Tensor, k: int, *, largest: bool
) -> list[dict[str, Any]]:
    """Return the k most helpful (or harmful) rows of that sign with their content."""
    order = values.argsort(descending=largest, stable=True)[:k].tolist()
    signed = [place for place in order if (values[place] > 0) == largest and values[place] != 0]
    rows = [(positions[str(ids[place])], float(values[place])) for place in signed]
    return [
        {
            "id": str(data.ids[row]),
            "label": data.classes[int(data.labels[row])],
            "score": score,
            "content": content_of(data, row),
        }
        for row, score in rows
    ]

