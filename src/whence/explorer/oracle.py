"""The run's model at hand: explains rows of the data and new ones, one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from whence.audit import Query, explain, reload_task
from whence.audit.bench import Bring
from whence.audit.explain import inputs_of
from whence.data import LabelledData, as_examples
from whence.explorer.opened import Opened, finite
from whence.gradients import Gradients, Matrix
from whence.methods import InfluenceAttribution

__all__ = ["Oracle", "OwnModel"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Make: TypeAlias = Callable[[LabelledData], Any]

_NO_MODEL = (
    "The run used your own model, whose code is never imported from a run: start whence serve with --model "
    "FILE.py:FUNC to ask it. Below is the evidence that the audit kept."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnModel:
    """A user's model, brought again.

    Args:
        attribution: Returns the run's attribution with it.
        inputs: Makes its inputs of rows.
        bring: Returns it with its recipe, untrained, for training again.
    """

    attribution: Callable[[], InfluenceAttribution]
    inputs: Make
    bring: Bring


class Oracle:
    """Answers why a row is predicted as it is, from the features that the run stored.

    The attribution is read when it is first asked for and then kept.

    Args:
        opened: The run.
        own: The user's model, for a run that was made with one.
    """

    def __init__(self, opened: Opened, own: OwnModel | None = None) -> None:
        self.opened, self.own = opened, own
        self._lock = threading.Lock()
        self._loaded: tuple[InfluenceAttribution, Any, Make] | None = None
        self._offsets: Array | None = None
        self._between: Array | None = None

    @property
    def missing(self) -> str | None:
        """Why nothing can be asked; None where it can."""
        embedded = self.opened.run.manifest["model"]["embedded"]
        return None if embedded or self.own is not None else _NO_MODEL

    @property
    def mutual(self) -> bool:
        """Whether rows help each other equally: where no weight decay leaves with a row."""
        with self._lock:
            return self._load()[0].decayed_weights is None

    def explain_row(self, position: int, *, measured: str | None = None, k: int = 8) -> dict[str, Any]:
        """Explain a row of the data; see `whence.audit.explain`."""
        with self._lock:
            attribution, inputs, _ = self._load()
            data = self.opened.data
            asked = Query(rows=data, inputs=inputs, position=position)
            return explain(self.opened.run, data, attribution, asked, measured=measured, k=k)

    def explain_new(
        self, rows: LabelledData, *, labelled: bool, measured: str | None = None, k: int = 8
    ) -> dict[str, Any]:
        """Explain the first of new rows."""
        with self._lock:
            attribution, _, make = self._load()
            asked = Query(rows=rows, inputs=make(rows), position=0, labelled=labelled)
            return explain(self.opened.run, self.opened.data, attribution, asked, measured=measured, k=k)

    def self_influence(self) -> Array:
        """Return the self-influence of every row [N]; NaN for rows that were not trained on. One pass."""
        with self._lock:
            signal = self._load()[0].self_scores()
        values = np.full(len(self.opened), np.nan)
        values[[self.opened.positions[str(one)] for one in signal.ids.tolist()]] = signal.values
        return values

    def effects(self, position: int, k: int = 8) -> dict[str, Any] | None:
        r"""Return the training rows whose own loss a training row helps and harms most.

        score[q, i] for all q: (∇ℓ_iᵀH⁻¹∇ℓ_q + ∇ℓ_qᵀH⁻¹λθ̂)/N, for H⁻¹ is symmetric.

        Returns:
            None for a row that was not trained on, and where there is no weight decay's part: then scores are mutual,
            and the lists are those of what helps and harms the row itself.
        """
        with self._lock:
            attribution, inputs, _ = self._load()
            data, name = self.opened.data, self.opened.ids[position]
            ids = [str(one) for one in attribution.ids.tolist()]
            if name not in set(ids) or attribution.decayed_weights is None:
                return None
            offsets = self._decay_part(attribution)
            target = torch.from_numpy(data.labels[position : position + 1])
            asked = as_examples((inputs_of(inputs, slice(position, position + 1)), target))
            values = attribution.products(asked, attribution.training_gradients)[0][0].double().cpu().numpy()
            scores = (values + offsets) / len(ids)
            order = np.argsort(-scores, kind="stable")
            order = order[[ids[place] != name for place in order.tolist()]]
            sides = {
                "helpful": [self._entry(ids[at], scores[at]) for at in order[:k].tolist() if scores[at] > 0],
                "harmful": [self._entry(ids[at], scores[at]) for at in order[::-1][:k].tolist() if scores[at] < 0],
            }
            largest = max((abs(one["score"]) for side in sides.values() for one in side), default=0.0)
            return {**sides, "largest": largest or 1.0}

    def between_classes(self) -> Array:
        r"""Return how much the mean loss of a class would change without one average row of another [C, C].

        M[b, a] = ḡ_bᵀ H⁻¹ ḡ_a / N, ḡ_c the mean training gradient of class c (the weight decay's part added), in the
        unit of scores: row b is helped (positive) or harmed by column a. One pass over the features, once.
        """
        with self._lock:
            if self._between is None:
                self._between = self._class_influence()
            return self._between

    def _class_influence(self) -> Array:
        attribution = self._load()[0]
        data, positions = self.opened.data, self.opened.positions
        labels = data.labels[[positions[str(one)] for one in attribution.ids.tolist()]]
        size = len(data.classes)
        counts = np.bincount(labels, minlength=size)
        sums: dict[str, Tensor] = {}
        for rows, gradients in attribution.training_gradients():
            own = labels[rows]
            for name, factor in gradients.layers.items():
                parts = [factor.rows(torch.from_numpy(np.flatnonzero(own == c))).summed() for c in range(size)]
                sums[name] = torch.stack(parts) + sums.get(name, torch.zeros(()))
        weights = torch.from_numpy(1 / np.maximum(counts, 1))
        means = Gradients({name: Matrix(total * weights.to(total)[:, None, None]) for name, total in sums.items()})
        asked = attribution.preconditioner.precondition(means)
        values = asked.inner(means).double().cpu().numpy()  # [C asked about, C that leaves]
        if attribution.decayed_weights is not None:
            values = values + asked.inner(attribution.decayed_weights).double().cpu().numpy()
        values[counts == 0] = np.nan
        values[:, counts == 0] = np.nan
        between: Array = values / len(attribution.ids)
        return between

    def _entry(self, name: str, score: float) -> dict[str, Any]:
        row = self.opened.positions[name]
        content = self.opened.content(row, 400)
        return {"id": name, "label": self.opened.label(row), "score": finite(score) or 0.0, "content": content}

    def _decay_part(self, attribution: InfluenceAttribution) -> Array:
        """Return ∇ℓ_qᵀH⁻¹λθ̂ of every training row [N]; one pass, once."""
        if self._offsets is None:
            assert attribution.decayed_weights is not None
            offsets = np.zeros(len(attribution.ids))
            decay = attribution.preconditioner.precondition(attribution.decayed_weights)
            for rows, gradients in attribution.training_gradients():
                offsets[rows] = decay.inner(gradients)[0].double().cpu().numpy()
            self._offsets = offsets
        return self._offsets

    def _load(self) -> tuple[InfluenceAttribution, Any, Make]:
        """Return the attribution, the inputs of the data's rows, and what makes inputs of new ones."""
        if self._loaded is None:
            if self.own is not None:
                # what a function of the user's makes of a row may depend on the others: theirs are made together
                self._loaded = (self.own.attribution(), self.own.inputs(self.opened.data), self.own.inputs)
            else:
                _, preparation, attribution = reload_task(self.opened.run, self.opened.data)
                make = preparation.transform
                self._loaded = (attribution, _Lazily(self.opened.data, make), make)
        return self._loaded


class _Lazily:
    """Inputs of rows that are made when they are asked for, the last ones kept: a page needs one of 60,000."""

    def __init__(self, data: LabelledData, make: Make) -> None:
        self.data, self.make = data, make
        self._last: tuple[range, Any] | None = None

    def __getitem__(self, rows: slice) -> Any:
        """Return the inputs of some rows."""
        asked = range(*rows.indices(len(self.data)))
        if self._last is None or self._last[0] != asked:
            self._last = (asked, self.make(self.data.rows(asked)))
        return self._last[1]
