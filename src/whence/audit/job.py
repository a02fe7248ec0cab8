"""The main job: from labelled data to a list of suspects with evidence and a summary."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from whence.audit.members import Fits, OnStage, fit_members, held_out_accuracy, predict
from whence.curvature import EKFAC, KFAC, Curvature, Exact, Identity, Relative
from whence.data import Examples, LabelledData, as_examples
from whence.errors import ConfigError, DataError, WhenceError
from whence.methods import Influence, InfluenceAttribution
from whence.report import (
    MethodCard,
    ModelCard,
    Notice,
    ReportLimits,
    RunCard,
    SecondsCard,
    SuspicionCard,
    summarise,
)
from whence.tasks import Task
from whence.tasks.defaults import Default, default_for
from whence.uses.label_errors import SIGNALS, Members, find_label_errors

__all__ = ["METHODS", "Audit", "UserModel", "audit", "train_rows_of"]

METHODS: dict[str, Curvature] = {
    "ekfac": EKFAC(),
    "kfac": KFAC(),
    "exact": Exact(damping=Relative(0.1)),
    "identity": Identity(),
}
_FAR_FROM_STATIONARY = 0.3
_TINY_CLASS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class UserModel:
    """A user's own trained model with its inputs.

    Args:
        model: Gives logits [B, C] for the classes of the data, in their order.
        inputs: What it is called with: tensor, tuple or dict of tensors [N, ...], in row order.
        name: What to call it.
    """

    model: nn.Module
    inputs: Any
    name: str = "your model"


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """A finished audit.

    Args:
        data: What was audited.
        suspects: As `find_label_errors` returns it.
        summary: What the report shows, JSON-able.
        attribution: Influence of the training rows.
        default: The embedded default, or None for a user's model.
        fits: The two fits behind the suspicions, or None for a user's model.
        layers: Layers that were attributed.
        seed: Seed of everything.
    """

    data: LabelledData
    suspects: pd.DataFrame
    summary: dict[str, Any]
    attribution: InfluenceAttribution
    default: Default | None
    fits: Fits | None
    layers: str | None
    seed: int


@dataclass(kw_only=True)
class _Clock:
    """Seconds of each stage."""

    start: float = field(default_factory=time.perf_counter)
    last: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        now = time.perf_counter()
        passed, self.last = now - self.last, now
        return passed


def audit(  # noqa: PLR0913 - the settings of the main job
    data: LabelledData,
    *,
    model: UserModel | None = None,
    reference: LabelledData | None = None,
    method: str = "ekfac",
    seed: int = 0,
    version: str = "",
    on_stage: OnStage | None = None,
    limits: ReportLimits | None = None,
) -> Audit:
    """Find the rows that are probably mislabelled, with evidence.

    Args:
        data: Labelled rows with at least two classes.
        model: A user's own trained model; None trains the embedded default for the kind of data, twice.
        reference: Other rows whose labels are known to be right, for class-based influence; with an embedded default.
        method: Curvature for influence: "ekfac", "kfac", "exact", "identity".
        seed: Seed of training and of sampled labels.
        version: Version to name in the summary.
        on_stage: Called with (stage, epochs); may return a callback for epochs.
        limits: How much goes into the summary.

    Returns:
        Suspects, summary and the attribution behind them.

    Raises:
        ConfigError: An unknown method, or a model that does not fit the data.
        DataError: The data cannot be learned from.

    Cost: two fits of the embedded default (a third, on four fifths of the rows, reports held-out accuracy), one
    influence fit, and scores of the suspects.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if reference is not None and model is not None:
        raise ConfigError(
            "reference rows of a file must go with the embedded default, got a model of your own. Mark reference rows "
            "by a column of the data instead."
        )
    clock = _Clock()
    default = default_for(data, seed=seed) if model is None else None
    inputs = _inputs(default, model, data)
    examples = as_examples((inputs, torch.from_numpy(data.labels)), ids=data.ids)
    train_rows = train_rows_of(data)
    layers = None if default is None or data.kind != "image" else "last"
    fits: Fits | None = None
    prepared = clock.lap()
    if default is not None:
        fits = fit_members(
            examples,
            default.recipe,
            refit=default.refit,
            counts=default.counts,
            train_rows=train_rows,
            seed=seed,
            on_stage=on_stage,
        )
        task, logits = default.recipe.task(fits.model), fits.logits
        held_out = _held_out(data, examples, default, logits, train_rows, seed, on_stage)
    else:
        assert model is not None
        task = Task(model.model, "cross_entropy")
        logits, held_out = _user_logits(task, examples, data), None
    trained = clock.lap()
    training = examples if train_rows is None else examples.select(train_rows)
    if on_stage:
        on_stage(f"tracing influence ({method})", 0)
    attribution = Influence(curvature=_curvature(method, default), layers=layers, seed=seed).fit(task, training)
    source: Any = attribution
    if fits is not None:
        shown = attribution if train_rows is None else None
        source = Members(
            logits=fits.logits, refit_logits=fits.refit_logits, judges=fits.judges, attribution=shown
        )
    elif train_rows is not None:  # the attribution covers the training rows, the list all rows
        source = torch.from_numpy(logits).softmax(1)
    trusted = None if reference is None or default is None else _trusted(reference, data, default)
    suspects = find_label_errors(source, data=data, embeddings=_neighbour_features(inputs, task), reference=trusted)
    scored = clock.lap()
    run = RunCard(
        whence=version,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=_model_card(task, default, model, logits, data, held_out, trained),
        method=_method_card(attribution, method, scored),
        suspicion=_suspicion(suspects),
        seconds=SecondsCard(read=prepared, train=trained, score=scored, total=prepared + trained + scored),
        warnings=tuple(_notices(suspects, data, logits, held_out)),
    )
    pairs = zip(suspects["id"], suspects["evidence"], suspects["evidence_scores"], strict=True)
    evidence = {str(id_): list(zip(ids, scores, strict=True)) for id_, ids, scores in pairs}
    summary = summarise(data, suspects, run, evidence=evidence, limits=limits)
    return Audit(
        data=data,
        suspects=suspects,
        summary=summary,
        attribution=attribution,
        default=default,
        fits=fits,
        layers=layers,
        seed=seed,
    )


def _curvature(method: str, default: Default | None) -> Curvature:
    """Return the method's curvature, damped as the embedded recipe needs it: its networks are stopped early."""
    curvature = METHODS[method]
    if default is None or isinstance(curvature, Identity):
        return curvature
    assert isinstance(curvature, (EKFAC, KFAC, Exact))
    return replace(curvature, damping=Relative(default.damping))


def train_rows_of(data: LabelledData) -> np.ndarray | None:
    """Return the rows of the train split, or None where there is no such split."""
    if data.split is None:
        return None
    train = np.char.startswith(np.char.lower(data.split.astype(str)), "train")
    return np.flatnonzero(train) if train.any() and not train.all() else None


def _held_out(
    data: LabelledData,
    examples: Examples,
    default: Default,
    logits: np.ndarray,
    train_rows: np.ndarray | None,
    seed: int,
    on_stage: OnStage | None,
) -> float | None:
    """Return accuracy on rows that were not trained on: the other splits, or a fifth that is left out once more."""
    if train_rows is None:
        return held_out_accuracy(examples, default.recipe, seed=seed, on_stage=on_stage)
    other = np.setdiff1d(np.arange(len(data)), train_rows)
    return float((logits[other].argmax(1) == data.labels[other]).mean())


def _inputs(default: Default | None, model: UserModel | None, data: LabelledData) -> Any:
    """Return the inputs of the network, one row a row of the data."""
    if default is not None:
        return default.preparation.transform(data) if default.inputs is None else default.inputs
    assert model is not None
    return model.inputs


def _trusted(reference: LabelledData, data: LabelledData, default: Default) -> Examples:
    """Return reference rows as examples, their labels numbered as the data's classes are."""
    numbers = {name: number for number, name in enumerate(data.classes)}
    unknown = [reference.classes[c] for c in np.unique(reference.labels) if reference.classes[c] not in numbers]
    if unknown:
        raise DataError(f"reference labels must be classes of the data, got {unknown[0]!r}. Leave such rows out.")
    labels = np.array([numbers[reference.classes[c]] for c in reference.labels], dtype=np.int64)
    return as_examples((default.preparation.transform(reference), torch.from_numpy(labels)))


def _user_logits(task: Task, examples: Examples, data: LabelledData) -> np.ndarray:
    """Return the user's model's outputs, checked against the classes."""
    try:
        logits = predict(task, examples)
    except (MemoryError, WhenceError):
        raise
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(
            f"model must run on its inputs, got {type(error).__name__}: {error}. "
            "Let FUNC(data) return the pair (model, inputs) that fits."
        ) from error
    if logits.ndim != 2 or logits.shape[1] != len(data.classes):
        raise ConfigError(
            f"model must give logits [B, {len(data.classes)}] (classes {', '.join(data.classes[:8])}), "
            f"got {tuple(logits.shape)}."
        )
    if not torch.isfinite(logits).all():
        raise ConfigError("model must give finite logits, got NaN or infinity. Check its weights and inputs.")
    return logits.numpy()


def _neighbour_features(inputs: Any, task: Task) -> Any:
    """Return features for neighbours: what the last layer sees where the network says so, else the inputs."""
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point():
        return None
    features = getattr(task.model, "features", None)
    if features is None or inputs.ndim < 3:
        return inputs.flatten(1).numpy()
    with task.evaluating(), torch.no_grad():
        return torch.cat([features(part.to(task.device, task.dtype)).cpu() for part in inputs.split(1024)]).numpy()


def _model_card(
    task: Task,
    default: Default | None,
    model: UserModel | None,
    logits: np.ndarray,
    data: LabelledData,
    held_out: float | None,
    seconds: float,
) -> ModelCard:
    """Say which model judged."""
    counts = np.bincount(data.labels)
    return ModelCard(
        name=default.name if default is not None else model.name if model is not None else "model",
        description=default.description if default is not None else "A model that you brought.",
        parameters=sum(p.numel() for p in task.model.parameters()),
        held_out_accuracy=held_out,
        majority_accuracy=float(counts.max() / counts.sum()),
        training_accuracy=float((logits.argmax(1) == data.labels).mean()),
        seconds=seconds,
    )


def _method_card(attribution: InfluenceAttribution, method: str, seconds: float) -> MethodCard:
    """Say how influence was computed."""
    return MethodCard(
        name=f"influence, {method}",
        description="Predicted change of a row's loss if a training row is removed and the model trained again.",
        unit=None if method == "identity" else "nats",
        attributed_share=attribution.coverage.share,
        seconds=seconds,
        signals=SIGNALS,
    )


def _suspicion(suspects: pd.DataFrame) -> SuspicionCard:
    """Return threshold and noise of a list of suspects."""
    diagnosis = suspects.attrs["diagnosis"]
    low, high = diagnosis["noise_interval"]
    return SuspicionCard(
        threshold=diagnosis["threshold"], noise_rate=diagnosis["noise_rate"], noise_interval=(low, high)
    )


def _notices(
    suspects: pd.DataFrame, data: LabelledData, logits: np.ndarray, held_out: float | None
) -> Sequence[Notice]:
    """Return what a reader must know before trusting the list."""
    diagnosis = suspects.attrs["diagnosis"]
    notices = []
    fitted = float((logits.argmax(1) == data.labels).mean())
    if fitted >= 0.995 and (held_out is None or held_out < fitted - 0.03):
        notices.append(
            Notice(
                title="The model has memorised the labels.",
                text=f"It gives {fitted:.1%} of its training rows their given label, wrong ones included, so its loss "
                "says little. Self-influence and neighbours still separate; out-of-sample predictions would be better.",
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
    counts = np.bincount(data.labels, minlength=len(data.classes))
    majority = float(counts.max() / counts.sum())
    if held_out is not None and held_out < majority + 0.02:
        notices.append(
            Notice(
                title="The model learned little.",
                text=f"It labels {held_out:.1%} of new rows as given, no better than always answering the most "
                f"frequent class ({majority:.1%}). Its suspicions are close to guesses: bring a better model.",
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
