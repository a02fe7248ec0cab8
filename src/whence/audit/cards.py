"""What a run says of itself: model, method, times, and what a reader must know before trusting the list."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from whence.data import LabelledData
from whence.methods import InfluenceAttribution
from whence.report import MethodCard, ModelCard, Notice, RunCard, SecondsCard, SuspicionCard
from whence.uses.label_errors import SIGNALS

__all__ = ["Finished", "run_card"]

_FAR_FROM_STATIONARY = 0.3
_TINY_CLASS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """What an audit found.

    Args:
        data: What was audited.
        model: Name and description of the model.
        method: Name of the curvature.
        attribution: Influence of the training rows.
        logits: What the model gives for every row [N, C].
        held_out: Accuracy on rows that were not trained on, where it was measured.
        opinion: Whether the embedded default judged with the user's model, which sees hardly any wrong label.
        second: What a second model that judges with the first has not seen, if there is one.
        suspects: As `find_label_errors` returns it.
        seconds: Times of the stages.
    """

    data: LabelledData
    model: tuple[str, str]
    method: str
    attribution: InfluenceAttribution
    logits: np.ndarray
    held_out: float | None
    suspects: pd.DataFrame
    seconds: SecondsCard
    opinion: bool = False
    second: str = ""

    @property
    def judge(self) -> str:
        """Who judges where the model fits every label."""
        if self.second:
            return f"The list can be right all the same: it rests on a second model as well, {self.second}."
        return "The list comes from this model alone: read its first rows with care."


def run_card(found: Finished, version: str) -> RunCard:
    """Return everything about a run that is not a row of data."""
    return RunCard(
        whence=version,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=_model_card(found),
        method=_method_card(found),
        suspicion=_suspicion(found.suspects),
        seconds=found.seconds,
        warnings=tuple(_notices(found)),
    )


def _model_card(found: Finished) -> ModelCard:
    """Say which model judged."""
    data, counts = found.data, np.bincount(found.data.labels)
    return ModelCard(
        name=found.model[0],
        description=found.model[1],
        parameters=sum(p.numel() for p in found.attribution.task.model.parameters()),
        held_out_accuracy=found.held_out,
        majority_accuracy=float(counts.max() / counts.sum()),
        training_accuracy=float((found.logits.argmax(1) == data.labels).mean()),
        seconds=found.seconds.train,
    )


def _method_card(found: Finished) -> MethodCard:
    """Say how influence was computed."""
    return MethodCard(
        name=f"influence, {found.method}",
        description="Predicted change of a row's loss if a training row is removed and the model trained again.",
        unit=None if found.method == "identity" else "nats",
        attributed_share=found.attribution.coverage.share,
        seconds=found.seconds.score,
        signals=SIGNALS,
    )


def _suspicion(suspects: pd.DataFrame) -> SuspicionCard:
    """Return threshold and noise of a list of suspects."""
    diagnosis = suspects.attrs["diagnosis"]
    low, high = diagnosis["noise_interval"]
    return SuspicionCard(
        threshold=diagnosis["threshold"], noise_rate=diagnosis["noise_rate"], noise_interval=(low, high)
    )


def _notices(found: Finished) -> Sequence[Notice]:
    """Return what a reader must know before trusting the list."""
    fitted = float((found.logits.argmax(1) == found.data.labels).mean())
    return [*_notices_of_fit(found, fitted), *_notices_of_classes(found, fitted)]


def _notices_of_fit(found: Finished, fitted: float) -> list[Notice]:
    """Return what the model's fit to the labels says: ``fitted`` is the share of rows it labels as given."""
    held_out, coverage = found.held_out, found.attribution.coverage
    diagnosis = found.suspects.attrs["diagnosis"]
    notices = []
    if coverage.missed:
        notices.append(
            Notice(
                title="Some parameters cannot be attributed.",
                text=f"Influence leaves their part out: {coverage.describe()}.",
            )
        )
    if found.opinion:
        notices.append(
            Notice(
                title="The model sees hardly any wrong label: hardly any is wrong, or it has learned them.",
                text=f"It gives {fitted:.1%} of the rows their given label. The embedded default was therefore trained "
                "on them as well and judges with it.",
            )
        )
    elif fitted >= 0.995 and (held_out is None or held_out < fitted - 0.03):
        notices.append(
            Notice(
                title="The model fits every label, wrong ones included.",
                text=f"It gives {fitted:.1%} of its training rows their given label, so its own loss says little of "
                f"them. {found.judge}",
            )
        )
    if diagnosis.get("gradient_norm", 0.0) > _FAR_FROM_STATIONARY:
        notices.append(
            Notice(
                title="The model is far from a stationary point.",
                text=f"The mean training gradient has {diagnosis['gradient_norm']:.0%} of the norm of a single one. "
                "Influence then predicts a further step of training rather than training again.",
            )
        )
    return notices


def _notices_of_classes(found: Finished, fitted: float) -> list[Notice]:
    """Return what the classes' sizes say: a model no better than the most frequent class, classes of few rows."""
    data, held_out = found.data, found.held_out
    notices = []
    counts = np.bincount(data.labels, minlength=len(data.classes))
    majority = float(counts.max() / counts.sum())
    best, rows = (fitted, "the audited") if held_out is None else (held_out, "new")
    if best < majority + 0.02:
        notices.append(
            Notice(
                title="The model learned little.",
                text=f"It labels {best:.1%} of {rows} rows as given, no better than always answering the most "
                f"frequent class ({majority:.1%}). Its suspicions are close to guesses: bring a better model, or its "
                "trained weights.",
            )
        )
    rare = [name for name, count in zip(data.classes, counts.tolist(), strict=True) if 0 < count < _TINY_CLASS]
    if rare:
        notices.append(
            Notice(
                title=f"{len(rare)} of {len(data.classes)} classes have fewer than {_TINY_CLASS} rows.",
                text=f"Suspicion is unreliable there: {', '.join(rare[:10])}.",
            )
        )
    return notices
