"""The main job: from labelled data to a list of suspects with evidence and a summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from whence.audit.blinded import blinded, sees_some
from whence.audit.cards import Finished, run_card
from whence.audit.members import Fits, OnStage, fit_members, held_out_accuracy, predict
from whence.curvature import EKFAC, KFAC, Curvature, Exact, Identity, Relative
from whence.data import Examples, LabelledData, as_examples
from whence.errors import ConfigError, DataError, WhenceError
from whence.methods import Influence, InfluenceAttribution
from whence.report import ReportLimits, SecondsCard, summarise
from whence.tasks import Recipe, Task
from whence.tasks.defaults import Default, default_for
from whence.uses.label_errors import Members, find_label_errors
from whence.uses.noise_rate import estimate_noise
from whence.uses.traced import evidence_of, put_evidence

__all__ = ["METHODS", "Audit", "UserModel", "audit", "train_rows_of"]

METHODS: dict[str, Curvature] = {
    "ekfac": EKFAC(),
    "kfac": KFAC(),
    "exact": Exact(damping=Relative(0.1)),
    "identity": Identity(),
}
_TRACED, _EVIDENCE = 1_000, 5  # first rows of the list that are traced, and rows against each


@dataclass(frozen=True, kw_only=True, eq=False)
class UserModel:
    """A user's own trained model with its inputs.

    Args:
        model: Gives logits [B, C] for the classes of the data, in their order.
        inputs: What it is called with: tensor, tuple or dict of tensors [N, ...], in row order.
        name: What to call it.
        recipe: How it is trained, so that it can be trained again without some rows; None where that is not known.
    """

    model: nn.Module
    inputs: Any
    name: str = "your model"
    recipe: Recipe | None = None

    @property
    def task(self) -> Task:
        """The model with the objective of its recipe, or with a plain cross-entropy."""
        return Task(self.model, "cross_entropy") if self.recipe is None else self.recipe.task(self.model)


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
    layers: str = "auto",
    second_opinion: bool = True,
    seed: int = 0,
    version: str = "",
    on_stage: OnStage | None = None,
    limits: ReportLimits | None = None,
) -> Audit:
    """Find the rows that are probably mislabelled, with evidence.

    A user's model that sees hardly any wrong label has learned them, or there are few. The embedded default is then
    trained as well, and judges with it where the model sees none (below .5 %), or few (below 3 %) and the default twice
    as many. Measured on models that fit their noise, average precision with and without: MNIST .996 and
    .346, CIFAR-10N .780 and .530, SMS .967 and .503, AG News .839 and .552 (`make reproduce-detectors`).

    Args:
        data: Labelled rows with at least two classes.
        model: A user's own trained model; None trains the embedded default for the kind of data, twice.
        reference: Other rows whose labels are known to be right, for class-based influence (the suspicion does without:
            adding that influence made it worse on SMS and AG News); with an embedded default.
        method: Curvature for influence: "ekfac", "kfac", "exact", "identity".
        layers: Which are traced: "all", "last", or "auto": all, but of the embedded network for images the last,
            because convolutions cost most.
        second_opinion: Whether the default may judge with a user's model; False for the user's model alone.
        seed: Seed of training and of sampled labels.
        version: Version to name in the summary.
        on_stage: Called with (stage, epochs); may return a callback for epochs.
        limits: How much goes into the summary.

    Returns:
        Suspects, summary and the attribution behind them.

    Raises:
        ConfigError: An unknown method, or a model that does not fit the data.
        DataError: The data cannot be learned from.

    Cost: two fits of the embedded default (a third, on four fifths of the rows, reports held-out accuracy; for a user's
    model none, or two where it sees hardly any wrong label), one influence fit, and scores of the suspects.
    """
    _check(method, model, reference)
    if layers not in ("auto", "last", "all"):
        raise ConfigError(f"layers must be auto, last or all, got {layers!r}.")
    clock = _Clock()
    job = _prepare(data, model, (layers, seed), on_stage)
    prepared = clock.lap()
    judged = _judge(job, second_opinion)
    trained = clock.lap()
    attribution = _attribute(job, judged, method)
    suspects = _suspects(job, judged, attribution, reference)
    scored = clock.lap()
    found = Finished(
        data=data,
        model=_named(job),
        method=method,
        attribution=attribution,
        logits=judged.logits,
        held_out=judged.held_out,
        opinion=judged.opinion is not None,
        second="" if judged.fits is None else judged.fits.second,
        suspects=suspects,
        seconds=SecondsCard(read=prepared, train=trained, score=scored, total=prepared + trained + scored),
    )
    summary = summarise(data, suspects, run_card(found, version), evidence=_evidence(suspects), limits=limits)
    return Audit(
        data=data,
        suspects=suspects,
        summary=summary,
        attribution=attribution,
        default=job.default,
        fits=judged.fits,
        layers=job.layers,
        seed=seed,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """What is audited: the rows as the network takes them, and the network to be (the default) or a user's."""

    data: LabelledData
    model: UserModel | None
    default: Default | None
    inputs: Any
    examples: Examples
    train_rows: np.ndarray | None
    layers: str | None
    seed: int
    on_stage: OnStage | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """The trained model that is explained, and what it says of every row."""

    task: Task
    logits: np.ndarray
    held_out: float | None
    fits: Fits | None
    opinion: Fits | None = None


def _check(method: str, model: UserModel | None, reference: LabelledData | None) -> None:
    """Raise unless the settings fit each other."""
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if reference is not None and model is not None:
        raise ConfigError(
            "reference rows of a file must go with the embedded default, got a model of your own. Mark reference rows "
            "by a column of the data instead."
        )


def _prepare(
    data: LabelledData, model: UserModel | None, settings: tuple[str, int], on_stage: OnStage | None
) -> _Job:  # fmt: skip
    """Return the rows as examples of the network; ``settings``: which layers, and the seed."""
    layers, seed = settings
    default = default_for(data, seed=seed) if model is None else None
    inputs = _inputs(default, model, data)
    return _Job(
        data=data,
        model=model,
        default=default,
        inputs=inputs,
        examples=as_examples((inputs, torch.from_numpy(data.labels)), ids=data.ids),
        train_rows=train_rows_of(data),
        layers="last" if layers == "last" or (layers == "auto" and model is None and data.kind == "image") else None,
        seed=seed,
        on_stage=on_stage,
    )


def _judge(job: _Job, second_opinion: bool) -> _Judged:
    """Train the embedded default, twice, or take the user's model as it is."""
    default = job.default
    if default is None:
        assert job.model is not None
        task = job.model.task
        logits = _user_logits(task, job.examples, job.data)
        opinion = _opinion(job, logits) if second_opinion else None
        return _Judged(task=task, logits=logits, held_out=None, fits=None, opinion=opinion)
    fits = _fits(job, default, job.examples)
    held_out = _held_out(job, default, fits.logits)
    return _Judged(task=default.recipe.task(fits.model), logits=fits.logits, held_out=held_out, fits=fits)


def _fits(job: _Job, default: Default, examples: Examples) -> Fits:
    """Train the embedded default on all rows and on those that it trusts."""
    return fit_members(
        examples,
        default.recipe,
        refit=default.refit,
        counts=default.counts,
        train_rows=job.train_rows,
        seed=job.seed,
        on_stage=job.on_stage,
    )


def _opinion(job: _Job, logits: np.ndarray) -> Fits | None:
    """Return the embedded default's fits where the user's model has learned wrong labels; None where it sees them."""
    rows = np.arange(len(job.data)) if job.train_rows is None else job.train_rows
    given = job.data.labels[rows]
    rate = estimate_noise(logits[rows], given).rate
    if sees_some(rate):
        return None
    default = default_for(job.data, seed=job.seed)
    examples = as_examples((_inputs(default, None, job.data), torch.from_numpy(job.data.labels)), ids=job.data.ids)
    try:
        fits = _fits(job, default, examples)
    except DataError:  # the default learned no two classes: nothing to add
        return None
    refit = None if fits.refit_logits is None else fits.refit_logits[rows]
    judges = tuple(judge[rows] for judge in fits.judges)
    other = Members(logits=fits.logits[rows], refit_logits=refit, judges=judges)
    return fits if blinded(rate, other, given) else None


def _attribute(job: _Job, judged: _Judged, method: str) -> InfluenceAttribution:
    """Fit influence to the training rows."""
    training = job.examples if job.train_rows is None else job.examples.select(job.train_rows)
    if job.on_stage:
        job.on_stage(f"tracing influence ({method})", 0)
    config = Influence(curvature=_curvature(method, job.default), layers=job.layers, seed=job.seed)
    return config.fit(judged.task, training)


def _suspects(
    job: _Job, judged: _Judged, attribution: InfluenceAttribution, reference: LabelledData | None
) -> pd.DataFrame:
    """Rank the rows by what the models and the attribution say."""
    source: Any = attribution
    if judged.fits is not None:
        fits = judged.fits
        shown = attribution if job.train_rows is None else None
        source = Members(logits=fits.logits, refit_logits=fits.refit_logits, judges=fits.judges, attribution=shown)
    elif judged.opinion is not None:
        fits, shown = judged.opinion, attribution if job.train_rows is None else None
        source = Members(
            logits=judged.logits,
            others=(fits.logits,),
            refit_logits=fits.refit_logits,
            judges=fits.judges,
            attribution=shown,
        )
    elif job.train_rows is not None:  # the attribution covers the training rows, the list all rows
        source = torch.from_numpy(judged.logits).softmax(1)
    trusted = None if reference is None or job.default is None else _trusted(reference, job.data, job.default)
    features = _neighbour_features(job.inputs, judged.task)
    frame = find_label_errors(source, data=job.data, embeddings=features, reference=trusted)
    if job.train_rows is not None:  # evidence lies among the training rows alone, for rows of all splits
        first = frame["id"].iloc[: min(_TRACED, int(frame["is_suspect"].sum()) + 50)].to_numpy()
        asked = job.examples.select(job.examples.rows_of(first))
        put_evidence(frame, evidence_of(attribution, asked, _EVIDENCE))
    return frame


def _evidence(suspects: pd.DataFrame) -> dict[str, list[tuple[str, float]]]:
    """Return the evidence of every row with its scores, by id."""
    pairs = zip(suspects["id"], suspects["evidence"], suspects["evidence_scores"], strict=True)
    return {str(id_): list(zip(ids, scores, strict=True)) for id_, ids, scores in pairs}


def _named(job: _Job) -> tuple[str, str]:
    """Return the model's name and description."""
    if job.default is not None:
        return job.default.name, job.default.description
    assert job.model is not None
    return job.model.name, "A model that you brought."


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


def _held_out(job: _Job, default: Default, logits: np.ndarray) -> float | None:
    """Return accuracy on rows that were not trained on: the other splits, or a fifth that is left out once more."""
    if job.train_rows is None:
        return held_out_accuracy(job.examples, default.recipe, seed=job.seed, on_stage=job.on_stage)
    other = np.setdiff1d(np.arange(len(job.data)), job.train_rows)
    return float((logits[other].argmax(1) == job.data.labels[other]).mean())


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
    except MemoryError:
        raise
    except Exception as error:  # whatever the user's code raises, or what the task says of it
        cause = error.__cause__ or error
        if isinstance(cause, WhenceError):
            raise
        raise ConfigError(
            f"model must run on its inputs, got {type(cause).__name__}: {cause}. "
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
