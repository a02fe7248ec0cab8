"""How many labels are wrong: maximum likelihood of a noise model over a model's predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from whence.errors import ConfigError, DataError

__all__ = ["NoiseEstimate", "estimate_noise"]

Array: TypeAlias = "np.ndarray[Any, Any]"

_LARGEST_SAMPLE = 20_000
_LARGEST_LOGIT = 1e100  # differences and products of larger ones overflow
_TEMPERATURES = (np.log(0.3), np.log(6.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseEstimate:
    """The estimated label noise.

    Args:
        rate: Share of wrong labels in [0, 1].
        interval: 95 % interval of the rate under the chosen model.
        posterior: Probability that each label is wrong [N].
        count: Number of rows whose posterior exceeds a half.
        temperature: Factor on the logits that makes the predictions calibrated under the model.
    """

    rate: float
    interval: tuple[float, float]
    posterior: Array
    count: int
    temperature: float


def estimate_noise(logits: Any, labels: Any) -> NoiseEstimate:
    r"""Estimate how many labels are wrong, and which.

    With π = softmax(T·logits) for the true class, the given label g has probability
    (1 − ε) π_g + ε Σ_{y≠g} π_y q_g/(1 − q_y): a wrong label lands on another class in proportion to q, which is
    uniform, or the classes' own frequencies where these are more likely (a class of six rows in four thousand takes no
    half of the errors). ε and the temperature T maximise the likelihood; T keeps a hard but clean data set from looking
    noisy. The posterior of a wrong label is the second term's share. Systematic confusions, such as people's, are
    partly learned by any model and are then under-counted: on CIFAR-10N the estimate is a third to a half of the truth.
    (A matrix of confusions in place of ε finds more there, but calls 2 % of clean news wrong.)

    Args:
        logits: [N, C] of a model that did not learn the wrong labels, such as one that was refitted on the rows it
            trusts, or out-of-fold logits. In-sample logits of a model that fitted the noise give a rate of 0.
        labels: [N] int, positions of classes.

    Raises:
        DataError: Shapes contradict each other or a logit is not finite.

    Cost: a few hundred passes over at most 20,000 rows of C numbers.
    """
    values, given = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or len(values) != len(given) or values.shape[1] < 2:
        raise DataError(f"logits must be [N, C] for {len(given)} labels with C >= 2, got {values.shape}.")
    if len(given) == 0:
        raise DataError("labels must have at least one row, got none.")
    if not np.isfinite(values).all():
        raise DataError("logits must be finite, got NaN or infinity. Check the model's outputs.")
    if given.min() < 0 or given.max() >= values.shape[1]:
        raise ConfigError(f"labels must lie in 0..{values.shape[1] - 1}, got {given.min()}..{given.max()}.")
    values = np.clip(values, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    step = -(-len(given) // _LARGEST_SAMPLE)
    sample = slice(0, None, step)
    fits = [_fit(values[sample], given[sample], landing) for landing in _landings(given, values.shape[1])]
    best = max(fits, key=lambda fit: fit.likelihood)
    posterior, slope = _posterior(values, given, best)
    rate, temperature = best.rate, best.temperature
    error = 1 / max(np.sqrt((slope**2).sum()), 1e-12)
    interval = (max(0.0, rate - 1.96 * error), min(1.0, rate + 1.96 * error))
    return NoiseEstimate(
        rate=rate,
        interval=interval,
        posterior=posterior,
        count=int((posterior > 0.5).sum()),
        temperature=temperature,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    """ε and T of one distribution q [C] of where wrong labels land, with the mean log-likelihood."""

    rate: float
    temperature: float
    landing: Array
    likelihood: float


def _landings(labels: Array, classes: int) -> list[Array]:
    """Return where wrong labels may land: anywhere alike, or as the classes are frequent."""
    uniform = np.full(classes, 1 / classes)
    if classes == 2:  # there is only one other class
        return [uniform]
    counts = np.bincount(labels, minlength=classes) + 1.0
    return [uniform, counts / counts.sum()]


def _fit(logits: Array, labels: Array, landing: Array) -> _Fit:
    """Return the most likely ε and T."""
    classes = logits.shape[1]

    def loss(parameters: Array) -> float:
        rate, temperature = _unpack(parameters, classes)
        right, landed = _terms(logits, labels, temperature, landing)
        return float(-np.log((1 - rate) * right + rate * landed + 1e-300).mean())

    starts = (np.array([-4.0, 0.0]), np.array([-2.0, 0.3]))
    best = min((minimize(loss, start, method="Nelder-Mead") for start in starts), key=lambda result: float(result.fun))
    rate, temperature = _unpack(best.x, classes)
    return _Fit(rate=rate, temperature=temperature, landing=landing, likelihood=-float(best.fun))


def _unpack(parameters: Array, classes: int) -> tuple[float, float]:
    """Return ε in (0, 1 − 1/C) and T from unconstrained parameters."""
    rate = float(expit(parameters[0])) * (1 - 1 / classes)
    return rate, float(np.exp(np.clip(parameters[1], *_TEMPERATURES)))


def _terms(logits: Array, labels: Array, temperature: float, landing: Array) -> tuple[Array, Array]:
    """Return π of the given label, and the probability of the given label if it is wrong [N]."""
    probabilities = np.exp(log_softmax(temperature * logits, axis=1))
    right = probabilities[np.arange(len(labels)), labels]
    others = probabilities @ (1 / (1 - landing)) - right / (1 - landing[labels])
    return right, landing[labels] * np.maximum(others, 0.0)


def _posterior(logits: Array, labels: Array, fit: _Fit) -> tuple[Array, Array]:
    """Return the posterior of a wrong label and the derivative of every log-likelihood in ε."""
    right, landed = _terms(logits, labels, fit.temperature, fit.landing)
    wrong = fit.rate * landed
    total = (1 - fit.rate) * right + wrong + 1e-300
    return wrong / total, (landed - right) / total
