"""Finding mislabelled rows: one suspicion a row, every signal behind it, and the evidence."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from whence.data import LabelledData
from whence.errors import ConfigError, DataError
from whence.uses.checks import check_embeddings, check_labels, check_logits, check_probabilities
from whence.uses.duplicates import Duplicates, find_duplicates
from whence.uses.noise_rate import NoiseEstimate, estimate_noise
from whence.uses.traced import Attribution, evidence_of, influence_signals, put_evidence, trusted_rows

__all__ = ["SIGNALS", "Members", "find_label_errors"]

Array: TypeAlias = "np.ndarray[Any, Any]"

SIGNALS = {
    "given_probability": "mean probability of the given label under the models that judge the row",
    "margin": "given_probability minus the highest probability of another class",
    "loss": "loss of the given label under the model that was trained on all rows, in nats",
    "bayes_loss": "leave-one-out loss of the given label under naive Bayes on words, in nats",
    "refit_loss": "loss of the given label under the model that was refitted on trusted rows only, in nats",
    "leave_one_out_loss": "predicted loss of the given label had the model been trained without the row, in nats",
    "self_influence": "predicted rise of the row's own loss on removal, in nats: how much the row explains itself",
    "class_influence": "lowest mean influence on trusted rows of one class: below zero the row harms that class",
    "neighbour_disagreement": "share of the row's nearest rows that carry another label",
}
_NEIGHBOURS = 20
_EVIDENCE_ROWS = 1_050
_TINY = 1e-12
_LARGE_LEVERAGE = 0.25
_MOST_OUTPUTS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Members:
    """Predictions of a fit on all rows and of a refit on the rows that the first one trusts.

    Args:
        logits: [N, C] of the fit on all rows.
        refit_logits: [N, C] of the refit on trusted rows; suspects are out of sample for it. None for no refit.
        others: Logits [N, C] of other models that were trained on all rows; each has the say of the first.
        judges: Leave-one-out logits [N, C] of other models, such as naive Bayes in closed form.
        attribution: Of the first model, for evidence and influence signals; None for predictions alone.
    """

    logits: Array
    refit_logits: Array | None = None
    others: tuple[Array, ...] = ()
    judges: tuple[Array, ...] = ()
    attribution: Attribution | None = None


@dataclass(frozen=True, eq=False)
class _Judgement:
    """Mean probabilities [N, C], logits to estimate the noise from [N, C], and signals [N] by name."""

    probabilities: Array
    logits: Array
    signals: dict[str, Array]


def find_label_errors(
    source: Any,
    *,
    data: LabelledData | None = None,
    labels: Any = None,
    embeddings: Any = None,
    reference: Any = None,
    evidence: int = 5,
) -> pd.DataFrame:
    r"""Rank all rows by how probably their label is wrong.

    suspicion = 1 − q[given], where q combines the probabilities that the judging models give:

    - `Members`: the normalised geometric mean of the fit on all rows, the refit on the rows with p[given] ≥ ½ max p,
      and closed-form leave-one-out judges (what ``whence audit`` uses; measured above 5-fold cross-validation);
    - an attribution: its predicted leave-one-out probabilities, or fitted ones where the loss has no such prediction;
    - probabilities [N, C], or a list of such arrays: their mean (out-of-sample ones are best);
    - None with ``embeddings``: 5-fold logistic regression on them.

    The noise rate is estimated by maximum likelihood (`estimate_noise`); as many rows as have a posterior above one
    half are called suspects, by suspicion. The suggested label maximises q over the other classes.

    Args:
        source: See above.
        data: The labelled rows, for ids, class names, duplicates and a ``reference`` column.
        labels: Class positions [N] where there is neither data nor an attribution.
        embeddings: [N, D], for the neighbour signal.
        reference: Rows known to be right, for class-based influence: positions, a [N] mask, or other labelled
            examples. By default the data's, else the 50 rows of every class that the models agree with most.
        evidence: Rows of most opposing influence to name for every suspect.

    Returns:
        All rows, most suspect first: ``id, label, suggested_label, suspicion, rank, is_suspect``, one column a
        signal (`SIGNALS`), ``evidence`` (ids), ``evidence_scores`` (theirs, below zero), ``duplicate_of``,
        ``duplicate_kind``, ``conflict``. Ids are of the attribution's type, else of the data's.
        ``frame.attrs["diagnosis"]`` holds the estimated noise and what the numbers rest on (JSON-able).

    Raises:
        ConfigError: The source is none of these, or there are no labels.
        DataError: Lengths differ or a number is not finite.

    Cost: one pass of leave-one-out or none, one of self-influence, scores of the suspects; a k-d tree or blocked
    products for neighbours.

    Reference: Koh & Liang (2017) §5.4 for self-influence; Nguyen-Duc et al. (2023) for class-based influence.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.95, 0.05]])
        >>> find_label_errors(p, labels=[0, 0, 1, 1])[["id", "suggested_label"]][:1].to_dict("list")
        {'id': [3], 'suggested_label': ['0']}
    """
    attribution = source.attribution if isinstance(source, Members) else source
    attribution = attribution if isinstance(attribution, Attribution) else None
    given, ids, names = _labels(data, labels, attribution)
    if evidence < 0:
        raise ConfigError(f"evidence must be zero or positive, got {evidence}.")
    if data is not None and attribution is not None and list(map(str, ids.tolist())) != data.ids.tolist():
        raise DataError("data must hold the rows of the attribution in their order, got other ids. Fit on this data.")
    embeddings = None if embeddings is None else check_embeddings(embeddings, len(given))
    judgement = _judge(source, given, embeddings)
    q = judgement.probabilities
    _check_columns(q, given)
    names = names if len(names) >= q.shape[1] else tuple(str(c) for c in range(q.shape[1]))
    signals = _signals(judgement, given)
    if embeddings is not None:
        signals["neighbour_disagreement"] = _disagreement(embeddings, given)
    if attribution is not None:
        held = isinstance(source, Members) and q.shape[1] <= _MOST_OUTPUTS
        trusted = trusted_rows(reference, data, attribution, signals["given_probability"], given)
        signals.update(influence_signals(attribution, trusted, leave_one_out=held))
    noise = estimate_noise(judgement.logits, given)
    frame = _ranked(ids, np.array(names, dtype=object), given, q, noise.count)
    frame = frame.assign(**signals)
    first = np.argsort(frame["rank"].to_numpy())[: min(_EVIDENCE_ROWS, noise.count + 50)]
    found = {} if attribution is None else evidence_of(attribution, attribution.examples.select(first), evidence)
    put_evidence(frame, found)
    copies = _duplicates(data, embeddings, given, ids)
    own = dict(zip(map(str, ids.tolist()), ids.tolist(), strict=True))
    originals = [] if copies is None else [None if pd.isna(one) else own[str(one)] for one in copies.duplicate_of]
    frame["duplicate_of"] = pd.Series(originals, dtype=object) if originals else None
    frame["duplicate_kind"] = copies.kind if copies is not None else ""
    frame["conflict"] = copies.conflict if copies is not None else False
    frame = frame.sort_values("rank", ignore_index=True)
    frame.attrs["diagnosis"] = _diagnosis(frame, noise, attribution, signals, q, given)
    return frame


def _labels(
    data: LabelledData | None, labels: Any, attribution: Attribution | None
) -> tuple[Array, Array, tuple[str, ...]]:
    """Return class positions, ids (the attribution's own, else the data's, which are text), and class names."""
    if data is not None:
        return data.labels, _own(data.ids if attribution is None else attribution.examples.ids), data.classes
    if labels is None and attribution is not None and attribution.examples.targets is not None:
        labels = attribution.examples.targets
    if labels is None:
        raise ConfigError("labels must be given as data=, labels= or with an attribution, got none.")
    given = check_labels(labels)
    ids = attribution.examples.ids if attribution is not None else np.arange(len(given))
    names = tuple(str(c) for c in range(int(given.max()) + 1))
    return given, _own(ids), names


def _own(ids: Array) -> Array:
    """Return ids in their own type: integers as they are, text as objects."""
    return ids if ids.dtype.kind in "iu" else ids.astype(object)


def _check_columns(q: Array, given: Array) -> None:
    """Raise unless there is a finite probability for every row and class."""
    if q.shape[0] != len(given) or not np.isfinite(q).all():
        raise DataError(f"probabilities must be finite [N, C] for {len(given)} labels, got shape {q.shape}.")
    if q.shape[1] < max(2, int(given.max()) + 1):
        raise DataError(f"probabilities must have a column a class ({int(given.max()) + 1}), got {q.shape[1]}.")


def _judge(source: Any, given: Array, embeddings: Any) -> _Judgement:
    """Return what the judging models say of every row."""
    rows = np.arange(len(given))
    if isinstance(source, Members):
        given_logits = {"logits": source.logits, "refit_logits": source.refit_logits}
        for name, logits in ((key, value) for key, value in given_logits.items() if value is not None):
            check_logits(name, logits, given)
        fitted = [np.log(_softmax(source.logits) + _TINY)]
        signals: dict[str, Array] = {"loss": -fitted[0][rows, given]}
        for logits in source.others:
            check_logits("others", logits, given)
            fitted.append(np.log(_softmax(logits) + _TINY))
        if source.refit_logits is not None:
            fitted.append(np.log(_softmax(source.refit_logits) + _TINY))
            signals["refit_loss"] = -fitted[-1][rows, given]
        judges = [_calibrated(judge, given) for judge in source.judges]
        if judges:
            signals["bayes_loss"] = -judges[0][rows, given]
        held = np.mean(judges, axis=0) if judges else fitted[-1]
        return _Judgement(_softmax(np.mean([*fitted, *judges], axis=0)), held, signals)
    if isinstance(source, Attribution):
        return _judge_attribution(source)
    if source is None:
        if embeddings is None:
            raise ConfigError("source must be an attribution, probabilities or Members, or embeddings= must be given.")
        source = _out_of_fold(np.asarray(embeddings, dtype=np.float64), given)
    q = check_probabilities(source, given)
    return _Judgement(q, np.log(q + _TINY), {})


def _judge_attribution(attribution: Any) -> _Judgement:
    """Return the predicted leave-one-out probabilities of an attribution, the fitted ones where it cannot be trusted.

    Where an example fixes most of its own prediction, or the mean example much of it (a network that fits every row),
    1/(1 − leverage) magnifies whatever is wrong with the curvature.
    """
    if not hasattr(attribution, "leave_one_out"):
        raise ConfigError("this attribution predicts no leave-one-out outputs. Pass probabilities as well.")
    held = attribution.leave_one_out()
    logits = _two_columns(held.outputs.double().numpy())
    fitted = _two_columns(held.fitted_outputs.double().numpy())
    signals = {"loss": held.fitted_losses, "leave_one_out_loss": held.losses, "leverage": held.leverage}
    mean = float(held.leverage.mean())
    own = np.clip(3 - 4 * held.leverage, 0, 1)  # whole up to a leverage of .5, none at .75
    trust = own * np.clip(2 - 4 * mean, 0, 1)  # whole up to a mean of .25, none at .5
    judged = fitted + trust[:, None] * (logits - fitted)
    if mean > _LARGE_LEVERAGE:
        warnings.warn(
            f"leave-one-out predictions are {'not' if mean >= 2 * _LARGE_LEVERAGE else 'partly'} used: the mean "
            f"leverage is {mean:.2f}, the model has nearly as many effective parameters as rows. Name the weight_decay "
            "it was trained with in Task, use more damping, or pass out-of-sample probabilities.",
            stacklevel=4,
        )
    return _Judgement(_softmax(judged), judged, signals)


def _signals(judgement: _Judgement, given: Array) -> dict[str, Array]:
    """Return what the probabilities say of every row, and the judges' own signals."""
    q = judgement.probabilities
    own = q[np.arange(len(given)), given]
    return {"given_probability": own, "margin": own - _others(q, given).max(1), **judgement.signals}


def _others(q: Array, given: Array) -> Array:
    """Return the probabilities with −1 for the given label."""
    others = q.copy()
    others[np.arange(len(given)), given] = -1.0
    return others


def _ranked(ids: Array, names: Array, given: Array, q: Array, suspects: int) -> pd.DataFrame:
    """Return the rows with their suspicion and rank; ties are broken by position."""
    rows = np.arange(len(given))
    suspicion = 1 - q[rows, given]
    rank = np.empty(len(given), dtype=np.int64)
    rank[np.lexsort((rows, -suspicion))] = rows + 1
    return pd.DataFrame(
        {
            "id": ids,
            "label": names[given],
            "suggested_label": names[_others(q, given).argmax(1)],
            "suspicion": suspicion,
            "rank": rank,
            "is_suspect": rank <= suspects,
        }
    )


def _two_columns(logits: Array) -> Array:
    """Return logits of two classes for one logit an example."""
    return logits if logits.shape[1] > 1 else np.concatenate([np.zeros_like(logits), logits], axis=1)


def _calibrated(logits: Array, given: Array) -> Array:
    """Return log-probabilities at the temperature that the noise model finds."""
    values = np.asarray(logits, dtype=np.float64)
    temperature = estimate_noise(values, given).temperature
    return np.log(_softmax(values * temperature) + _TINY)


def _softmax(logits: Array) -> Array:
    """Return probabilities in float64."""
    return torch.from_numpy(np.asarray(logits, dtype=np.float64)).softmax(1).numpy()


def _out_of_fold(embeddings: Array, given: Array) -> Array:
    """Return 5-fold out-of-sample probabilities of a logistic regression."""
    smallest = int(np.bincount(given)[np.unique(given)].min())
    if smallest < 2:
        raise DataError("every class must have at least 2 rows for out-of-fold predictions, got one with 1.")
    folds = StratifiedKFold(min(5, smallest), shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    found = cross_val_predict(model, embeddings, given, cv=folds, method="predict_proba")
    full = np.zeros((len(given), int(given.max()) + 1))
    full[:, np.unique(given)] = found
    return full


def _disagreement(embeddings: Any, given: Array) -> Array:
    """Return the share of the nearest rows, by cosine, with another label."""
    vectors = np.asarray(embeddings, dtype=np.float32).reshape(len(given), -1)
    if not np.isfinite(vectors).all():
        raise DataError("embeddings must be finite, got NaN or infinity.")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.maximum(norms, _TINY)
    count = min(_NEIGHBOURS, len(given) - 1)
    index = NearestNeighbors(n_neighbors=count + 1, algorithm="brute").fit(vectors)
    near = index.kneighbors(vectors, return_distance=False)
    other = near != np.arange(len(given))[:, None]
    differs = (given[near] != given[:, None]) & other
    return np.asarray(differs.sum(1) / np.maximum(1, other.sum(1)))


def _duplicates(data: LabelledData | None, embeddings: Any, given: Array, ids: Array) -> Duplicates | None:
    """Return duplicates by content, else by embeddings, else None."""
    if data is not None:
        return find_duplicates(data)
    if embeddings is not None:
        return find_duplicates(features=np.asarray(embeddings), labels=given, ids=[str(id_) for id_ in ids])
    return None


def _diagnosis(
    frame: pd.DataFrame,
    noise: NoiseEstimate,
    attribution: Any,
    signals: dict[str, Array],
    q: Array,
    given: Array,
) -> dict[str, Any]:
    """Return what the numbers rest on, JSON-able."""
    suspects = frame.loc[frame["is_suspect"], "suspicion"]
    diagnosis: dict[str, Any] = {
        "suspects": noise.count,
        "threshold": float(suspects.min()) if len(suspects) else None,
        "noise_rate": noise.rate,
        "noise_interval": list(noise.interval),
        "temperature": noise.temperature,
        "agreement": float((q.argmax(1) == given).mean()),
    }
    if "leverage" in signals:
        diagnosis["mean_leverage"] = float(np.mean(signals["leverage"]))
    if "loss" in signals:
        diagnosis["training_accuracy"] = float((signals["loss"] < np.log(2)).mean())
    if hasattr(attribution, "gradient_norm"):
        diagnosis["gradient_norm"] = attribution.gradient_norm
    return diagnosis
