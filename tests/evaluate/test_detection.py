"""Detection of known errors against scikit-learn, and against averages over all orders of ties."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

import whence as wh
from whence.errors import ConfigError
from whence.evaluate import detection
from whence.evaluate.ranked import Ranked


def signal(values: object, name: str = "suspicion", ids: np.ndarray | None = None) -> wh.Signal:
    array = np.asarray(values, dtype=np.float64)
    return wh.Signal(values=array, ids=np.arange(len(array)) if ids is None else ids, name=name, unit=None)


def sample(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    known = generator.random(count) < 0.2
    return known, generator.normal(size=count) + known


def test_without_ties_the_figures_are_scikit_learns() -> None:
    known, values = sample()
    found = detection(known, signal(values), resamples=200).detectors["suspicion"]
    assert found.auc.value == pytest.approx(sklearn.metrics.roc_auc_score(known, values), abs=1e-12)
    assert found.average_precision.value == pytest.approx(
        sklearn.metrics.average_precision_score(known, values), abs=1e-12
    )
    order = np.argsort(-values)
    for share in (0.01, 0.1, 0.5):
        count = round(share * 200)
        assert found.precision[share].value == pytest.approx(known[order[:count]].mean())
        assert found.found[share].value == pytest.approx(known[order[:count]].sum() / known.sum())
    np.testing.assert_allclose(found.curve, np.concatenate([[0], np.cumsum(known[order])]) / known.sum())
    for interval in (found.auc, found.average_precision, found.precision[0.1], found.found[0.1]):
        assert interval.low < interval.value < interval.high


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=5))
def test_ties_count_as_the_average_over_their_orders(rows: list[tuple[int, bool]]) -> None:
    values, known = np.array([v for v, _ in rows]), np.array([k for _, k in rows])
    if known.all() or not known.any():
        known[0] = not known[0]
    orders = [o for o in permutations(range(len(rows))) if all(values[a] >= values[b] for a, b in pairwise(o))]
    areas, precisions, curves = [], [], []
    for order in orders:
        hits = known[list(order)]
        ranked = np.arange(len(rows), 0, -1)
        areas.append(sklearn.metrics.roc_auc_score(hits, ranked))
        precisions.append(sklearn.metrics.average_precision_score(hits, ranked))
        curves.append(np.concatenate([[0], np.cumsum(hits)]) / hits.sum())
    found = detection(known, signal(values), resamples=2, shares=(0.5,)).detectors["suspicion"]
    assert found.auc.value == pytest.approx(np.mean(areas), abs=1e-12)
    assert found.average_precision.value == pytest.approx(np.mean(precisions), abs=1e-12)
    np.testing.assert_allclose(found.curve, np.mean(curves, 0), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_resamples_are_the_metrics_of_repeated_examples(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values, known = generator.integers(0, 4, 12), generator.random(12) < 0.5
    known[:2] = [True, False]
    counts = generator.multinomial(10, np.full(12, 1 / 12), 3)
    counts[:, :2] += 1
    found = Ranked.of(values, known, counts)
    at = np.array([1, 5, 12])
    for row, taken in enumerate(counts):
        repeated = Ranked.of(np.repeat(values, taken), np.repeat(known, taken))
        assert found.auc()[row] == pytest.approx(
            sklearn.metrics.roc_auc_score(np.repeat(known, taken), np.repeat(values, taken))
        )
        assert found.average_precision()[row] == pytest.approx(repeated.average_precision(), abs=1e-12)
        np.testing.assert_allclose(found.found(at)[row], repeated.found(at), atol=1e-12)


def test_a_constant_signal_is_chance() -> None:
    known, _ = sample(500)
    found = detection(known, signal(np.zeros(500)), resamples=50).detectors["suspicion"]
    assert found.auc.value == 0.5
    assert found.average_precision.value == pytest.approx(known.mean(), abs=0.02)
    assert found.precision[0.1].value == pytest.approx(known.mean())
    assert found.found[0.1].value == pytest.approx(0.1)


def test_signals_are_matched_by_id_and_compared_in_pairs() -> None:
    known, values = sample()
    order = np.random.default_rng(1).permutation(200)
    worse = values + np.random.default_rng(2).normal(size=200)
    found = detection(
        np.flatnonzero(known), {"a": signal(values), "b": signal(values[order], ids=order), "c": signal(worse)}
    )
    assert found.errors == known.sum() and found.count == 200
    first, second = found.detectors["a"], found.detectors["b"]
    assert first.auc == second.auc and first.average_precision == second.average_precision
    assert found.gain("a", "b") == found.gain("b", "a", "auc")
    assert found.gain("a", "b").high == 0
    gain = found.gain("a", "c", "auc")
    assert gain.value == pytest.approx(first.auc.value - found.detectors["c"].auc.value)
    width = first.auc.high - first.auc.low + found.detectors["c"].auc.high - found.detectors["c"].auc.low
    assert gain.high - gain.low < width, "pairs share the examples"
    frame = found.to_frame()
    assert frame.loc["a", ("auc", "value")] == first.auc.value and frame.shape == (3, 3 * (2 + 2 * 6))
    curve = found.curve("a", points=10)
    assert curve["found"].iloc[[0, -1]].tolist() == [0, 1] and len(curve) == 11


def test_order_and_seed_repeat_exactly() -> None:
    known, values = sample()
    one, two, other = (detection(known, signal(values), seed=seed, resamples=100) for seed in (0, 0, 1))
    assert one.detectors["suspicion"].auc == two.detectors["suspicion"].auc != other.detectors["suspicion"].auc


def test_refusals() -> None:
    one = signal([1.0, 2.0, 3.0])
    for known in ([True, True, True], [False, False, False], []):
        with pytest.raises(ConfigError, match="not all"):
            detection(np.array(known, dtype=bool) if known else np.array([], dtype=int), one)
    with pytest.raises(ConfigError, match="mask"):
        detection(np.array([True, False]), one)
    with pytest.raises(ConfigError, match="known error"):
        detection([7], one)
    with pytest.raises(ConfigError, match="finite"):
        detection([1], signal([1.0, np.inf, 0.0]))
    with pytest.raises(ConfigError, match="every example"):
        detection([1], {"a": one, "b": signal([1.0, 2.0])})
    with pytest.raises(ConfigError, match="shares"):
        detection([1], one, shares=())
    with pytest.raises(ConfigError, match="resamples"):
        detection([1], one, resamples=0)
    with pytest.raises(ConfigError, match="signals"):
        detection([1], {})
