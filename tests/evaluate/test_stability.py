"""Stability across seeds against SciPy, and the dip against a linear programme."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whence as wh
from whence.errors import ConfigError
from whence.evaluate import stability, unimodality
from whence.evaluate.unimodality import dip


def scored(values: np.ndarray, ids: np.ndarray | None = None) -> wh.Scores:
    return wh.Scores(
        values=torch.from_numpy(values), query_ids=np.arange(len(values)),
        ids=np.arange(values.shape[1]) if ids is None else ids, unit=None,
    )  # fmt: skip


def members() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    train, asked = generator.integers(0, 3, 50), generator.integers(0, 3, 8)
    truth = generator.normal(size=(8, 50))
    noise = np.where(asked[:, None] == train[None], 0.3, 3.0)
    return [truth + noise * generator.normal(size=truth.shape) for _ in range(3)], train, asked


def test_agreement_by_class_is_scipys() -> None:
    values, train, asked = members()
    found = stability([scored(v) for v in values], train, torch.from_numpy(asked), k=5)
    same = asked[:, None] == train[None]
    for pairs, mask in ((found.same, same), (found.different, ~same), (found.every, np.ones_like(same))):
        correlations, overlaps = [], []
        for q in range(8):
            for a, b in combinations(values, 2):
                one, other = a[q, mask[q]], b[q, mask[q]]
                correlations.append(scipy.stats.spearmanr(one, other).statistic)
                k = min(5, len(one))
                overlaps.append(len(set(np.argsort(-one)[:k]) & set(np.argsort(-other)[:k])) / k)
        assert pairs.spearman.value == pytest.approx(np.mean(correlations))
        assert pairs.overlap.value == pytest.approx(np.mean(overlaps))
        assert pairs.chance == pytest.approx(np.mean([min(5, m.sum()) / m.sum() for m in mask]))
        assert pairs.count == mask.sum() and pairs.spearman.low < pairs.spearman.value < pairs.spearman.high
    assert found.same.spearman.low > found.different.spearman.high and found.members == 3
    assert found.to_frame().loc["same class", ("spearman", "value")] == found.same.spearman.value


def test_members_are_matched_by_id_and_ties_are_not_favoured() -> None:
    values, train, asked = members()
    order = np.random.default_rng(1).permutation(50)
    one = stability([scored(v) for v in values], train, asked)
    other = stability([scored(values[0]), scored(values[1][:, order], order), scored(values[2])], train, asked)
    assert one.every == other.every and one.same == other.same
    flat = stability([scored(np.zeros((8, 50)))] * 2, train, asked, k=5)
    assert flat.every.spearman.value == 0
    assert flat.every.overlap.value == pytest.approx(flat.every.chance), "equal scores overlap as random ones do"
    assert stability([scored(values[0])] * 2, train, asked).every.overlap.value == 1


def test_refusals_of_stability() -> None:
    values, train, asked = members()
    with pytest.raises(ConfigError, match="2 members"):
        stability([scored(values[0])], train, asked)
    with pytest.raises(ConfigError, match="one class a row"):
        stability([scored(v) for v in values], train[:4], asked)
    with pytest.raises(ConfigError, match="every example"):
        stability([scored(values[0]), scored(values[1][:, :9])], train, asked)
    with pytest.raises(ConfigError, match="two examples"):
        stability([scored(v) for v in values], train, asked + 10)
    with pytest.raises(ConfigError, match="finite"):
        stability([scored(np.full((8, 50), np.nan))] * 2, train, asked)
    with pytest.raises(ConfigError, match="k must"):
        stability([scored(v) for v in values], train, asked, k=0)


def nearest_single_hill(values: np.ndarray) -> float:
    """Return the distance to the nearest distribution function with one mode: a linear programme for every mode.

    Unknown are its values at the points from the left and from the right, which differ at the mode alone.
    """
    x, counts = np.unique(values, return_counts=True)
    points, up = len(x), np.cumsum(counts) / len(values)
    low, best = up - counts / len(values), 1.0
    left, right, distance = np.arange(points), points + np.arange(points), 2 * points
    for mode in range(points):
        rows: list[dict[int, float]] = []
        bounds: list[float] = []

        def add(row: dict[int, float], bound: float, rows: list = rows, bounds: list = bounds) -> None:
            rows.append(row)
            bounds.append(bound)

        for j in range(points):
            for at, target in ((left[j], low[j]), (right[j], up[j])):
                add({at: 1, distance: -1}, target)
                add({at: -1, distance: -1}, -target)
            add({left[j]: 1, right[j]: -1}, 0)
            if j != mode:
                add({left[j]: -1, right[j]: 1}, 0)
            if j + 1 < points:
                add({right[j]: 1, left[j + 1]: -1}, 0)
        for j in range(1, points - 1):
            if j == mode:
                continue
            sign = 1 if j < mode else -1
            before, after = 1 / (x[j] - x[j - 1]), 1 / (x[j + 1] - x[j])
            add({right[j - 1]: -sign * before, left[j]: sign * (before + after), left[j + 1]: -sign * after}, 0)
        table = np.zeros((len(rows), 2 * points + 1))
        for number, row in enumerate(rows):
            table[number, list(row)] = list(row.values())
        cost = np.eye(1, 2 * points + 1, distance)[0]
        best = min(best, scipy.optimize.linprog(cost, A_ub=table, b_ub=bounds, bounds=(0, 1)).fun)
    return best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 11), st.booleans())
def test_the_dip_is_the_distance_to_a_single_hill(seed: int, count: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    values = generator.normal(size=count) + 4 * (np.arange(count) % 2)
    if ties:
        values = np.round(values)
    truth = max(nearest_single_hill(values), 0.5 / count)
    assert dip(values) == pytest.approx(truth, rel=2e-3 if ties else 1e-7)
    assert dip(3 * values[::-1] - 2) == pytest.approx(dip(values), rel=1e-6), "scale, place and order do not matter"


def test_p_values_are_those_of_uniform_samples() -> None:
    generator = np.random.default_rng(0)
    for count in (17, 150):
        drawn = np.array([
            unimodality(signal(generator.random(count)), logarithm=False).p_value for _ in range(300)
        ])  # fmt: skip
        for level in (0.05, 0.25, 0.5):
            assert np.mean(drawn <= level) == pytest.approx(level, abs=3 * np.sqrt(level / 300))


def signal(values: np.ndarray) -> wh.Signal:
    return wh.Signal(values=values, ids=np.arange(len(values)), name="self-influence", unit="nats")


def test_one_hill_and_two() -> None:
    generator = np.random.default_rng(0)
    one = unimodality(signal(generator.lognormal(size=500)))
    hills = np.concatenate([generator.normal(size=400), 7 + 0.5 * generator.normal(size=100)])
    two = unimodality(signal(np.exp(hills)))
    assert one.unimodal and not two.unimodal and two.p_value <= 0.001
    assert "more than one hill" in str(two) and "one hill is enough" in str(one)
    assert unimodality(signal(np.full(9, 2.0))).dip == pytest.approx(1 / 18)
    with pytest.raises(ConfigError, match="positive"):
        unimodality(signal(np.array([1.0, 2, 0, 4])))
    with pytest.raises(ConfigError, match="at least 4"):
        unimodality(signal(np.ones(3)))
