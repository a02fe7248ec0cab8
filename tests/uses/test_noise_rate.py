"""The noise estimate: recovers a known rate, is near zero on clean labels, and is finite whatever the logits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whence.errors import ConfigError, DataError
from whence.uses.noise_rate import estimate_noise


def calibrated(rows: int, classes: int, rate: float, seed: int, sharpness: float = 4.0):
    """Draw logits, true labels from their softmax, and given labels with a share moved to another class."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(rows, classes))
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    true = (p.cumsum(1) < generator.random((rows, 1))).sum(1).clip(max=classes - 1)
    wrong = generator.random(rows) < rate
    return logits, np.where(wrong, (true + generator.integers(1, classes, rows)) % classes, true), wrong


@settings(max_examples=8, deadline=None, derandomize=True)
@given(classes=st.sampled_from([2, 3, 10]), rate=st.sampled_from([0.05, 0.1, 0.2, 0.3]), seed=st.integers(0, 1000))
def test_recovers_the_rate_of_calibrated_predictions(classes: int, rate: float, seed: int) -> None:
    logits, labels, wrong = calibrated(3000, classes, rate, seed)
    found = estimate_noise(logits, labels)
    assert found.rate == pytest.approx(wrong.mean(), abs=0.04)
    assert found.interval[0] - 0.02 <= wrong.mean() <= found.interval[1] + 0.02
    assert found.temperature == pytest.approx(1, rel=0.25)
    assert found.posterior.mean() == pytest.approx(found.rate, abs=0.01)
    assert found.count == (found.posterior > 0.5).sum()
    assert wrong[found.posterior > 0.5].mean() > 0.6


@settings(max_examples=6, deadline=None, derandomize=True)
@given(rare=st.sampled_from([1, 3, 8]), rate=st.sampled_from([0.05, 0.1]), seed=st.integers(0, 1000))
def test_a_class_of_a_few_rows_takes_no_share_of_the_errors(rare: int, rate: float, seed: int) -> None:
    """With errors among two classes, a third of a few rows must not hide them."""
    two, labels, _ = calibrated(3000, 2, rate, seed)
    alone = estimate_noise(two, labels)
    logits = np.concatenate([two, np.full((3000, 1), -100.0)], 1)
    logits, labels = np.concatenate([logits, np.tile([0.0, 0.0, 3.0], (rare, 1))]), np.append(labels, [2] * rare)
    found = estimate_noise(logits, labels)
    assert found.rate == pytest.approx(alone.rate, abs=0.01)
    assert abs(found.count - alone.count) <= 0.05 * alone.count + 3


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_temperature_undoes_a_scale_of_the_logits(scale: float) -> None:
    logits, labels, wrong = calibrated(3000, 3, 0.1, 5)
    found = estimate_noise(scale * logits, labels)
    assert found.rate == pytest.approx(wrong.mean(), abs=0.04)
    assert found.temperature * scale == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize("classes", [2, 10])
def test_clean_labels_have_almost_no_noise(classes: int) -> None:
    logits, labels, _ = calibrated(2000, classes, 0.0, 1)
    found = estimate_noise(logits, labels)
    assert found.rate < 0.02 and found.count <= 0.02 * 2000


@pytest.mark.parametrize("extreme", [0.0, 1e-300, 1e3, 1e10, 1e150, 1.7e308])
def test_extreme_logits_give_finite_numbers(extreme: float) -> None:
    labels = np.arange(40) % 2
    for marked in (labels, np.where(np.arange(40) < 4, 1 - labels, labels), np.zeros(40, dtype=np.int64)):
        logits = extreme * np.stack([1 - 2 * labels, 2 * labels - 1], 1).astype(float)
        found = estimate_noise(logits, marked)
        numbers = (found.rate, *found.interval, found.temperature, *found.posterior)
        assert np.isfinite(numbers).all()
        assert 0 <= found.interval[0] <= found.rate <= found.interval[1] <= 1
        assert ((found.posterior >= 0) & (found.posterior <= 1)).all()
    if extreme >= 1e3:
        assert estimate_noise(logits, np.where(np.arange(40) < 4, 1 - labels, labels)).count == 4


def test_one_row_and_an_order_that_does_not_matter() -> None:
    assert np.isfinite(estimate_noise(np.zeros((1, 2)), [0]).rate)
    logits, labels, _ = calibrated(500, 3, 0.1, 2)
    order = np.random.default_rng(0).permutation(500)
    one, two = estimate_noise(logits, labels), estimate_noise(logits[order], labels[order])
    assert np.allclose(one.posterior[order], two.posterior, atol=1e-4) and one.rate == pytest.approx(two.rate, abs=1e-4)


@pytest.mark.parametrize(
    ("logits", "labels", "error"),
    [
        (np.zeros((3, 2)), [0, 1], DataError),
        (np.zeros(3), [0, 1, 0], DataError),
        (np.zeros((3, 1)), [0, 0, 0], DataError),
        (np.full((2, 2), np.nan), [0, 1], DataError),
        (np.full((2, 2), np.inf), [0, 1], DataError),
        (np.zeros((2, 2)), [0, 2], ConfigError),
        (np.zeros((2, 2)), [-1, 0], ConfigError),
        (np.zeros((0, 2)), np.zeros(0, dtype=np.int64), DataError),
    ],
)
def test_refusals(logits, labels, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"must"):
        estimate_noise(logits, labels)
