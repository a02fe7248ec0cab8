"""Linear datamodelling score and agreement, against definitions and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import ridge
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

import whence as wh
from whence.errors import ConfigError
from whence.evaluate import (
    Retraining,
    SubsetOutputs,
    Subsets,
    agreement,
    gain,
    lds,
    leave_one_out,
    sample_subsets,
    train_subsets,
)


def scored(values: Tensor, ids: np.ndarray | None = None, query_ids: np.ndarray | None = None) -> wh.Scores:
    queries, count = values.shape
    return wh.Scores(
        values=values, query_ids=np.arange(queries) if query_ids is None else query_ids,
        ids=np.arange(count) if ids is None else ids, unit=None,
    )  # fmt: skip


def linear(weights: Tensor, subsets: Subsets, noise: float = 0.0, seeds: int = 1) -> SubsetOutputs:
    """Return outputs that are linear in which examples are kept."""
    kept = torch.from_numpy(subsets.kept).double()
    clean = kept @ weights.T  # [M, Q]
    generator = torch.Generator().manual_seed(0)
    noisy = clean[:, None] + noise * torch.randn(len(kept), seeds, len(weights), generator=generator)
    return SubsetOutputs(values=noisy, query_ids=np.arange(len(weights)), unit=None)


def test_a_linear_function_has_score_one() -> None:
    """Removal raises the measurement by −w, so −w is the score."""
    subsets = sample_subsets(torch.zeros(20, 1), 40)
    weights = torch.randn(3, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs = linear(weights, subsets)
    assert lds(scored(-weights), subsets, outputs).value == pytest.approx(1, abs=1e-12)
    assert lds(scored(weights), subsets, outputs).value == pytest.approx(-1, abs=1e-12)
    order = np.random.default_rng(0).permutation(20)
    shuffled = scored(-weights[:, torch.from_numpy(order)], ids=order)
    assert lds(shuffled, subsets, outputs).value == pytest.approx(1, abs=1e-12), "ids, not positions, are matched"
    assert abs(lds(scored(-weights[:, torch.from_numpy(order)]), subsets, outputs).value) < 0.7


def test_ridge_with_a_linear_measurement() -> None:
    """Exact group effects of a linear model are nearly additive; the score of influence is close to one."""
    train, queries = ridge.problem(60)
    settings = Retraining(recipe=ridge.recipe(), measurement=ridge.output)
    subsets = sample_subsets(train, 60, fraction=0.9)
    outputs = train_subsets(settings, train, queries, subsets)
    task = ridge.recipe().task(ridge.recipe().train(train), ridge.output)
    scores = wh.Influence(curvature=wh.Exact()).fit(task, train).scores(queries)
    assert lds(scores, subsets, outputs).value > 0.97
    for row in (0, 59):
        kept = torch.from_numpy(subsets.kept[row].astype(np.float32))
        batch = train.batch(np.arange(len(train)))
        theta = ridge.solve(batch.inputs, batch.targets, kept)
        truth = queries.batch(np.arange(len(queries))).inputs @ theta
        torch.testing.assert_close(outputs.values[row, 0], truth[:, 0], rtol=1e-10, atol=1e-10)


@given(
    hnp.arrays(np.float64, (2, 9), elements=st.integers(-3, 3).map(float)),
    hnp.arrays(np.float64, (12, 2, 2), elements=st.integers(-3, 3).map(float)),
)
@settings(max_examples=50, deadline=None)
def test_the_score_is_scipys_rank_correlation_ties_included(values: np.ndarray, outputs: np.ndarray) -> None:
    subsets = sample_subsets(torch.zeros(9, 1), 12, seed=3)
    found = lds(
        scored(torch.from_numpy(values)), subsets,
        SubsetOutputs(values=torch.from_numpy(outputs), query_ids=np.arange(2), unit=None),
    )  # fmt: skip
    for query in range(2):
        predicted = np.array([values[query][~kept].sum() for kept in subsets.kept])
        actual = outputs[:, :, query].mean(1)
        constant = len(set(predicted)) == 1 or len(set(actual)) == 1
        truth = 0.0 if constant else scipy.stats.spearmanr(predicted, actual).statistic
        assert found.per_query[query] == pytest.approx(truth, abs=1e-10)


def test_reliability_of_noisy_trainings() -> None:
    """The reliability predicts how well two sets of trainings agree; its root bounds what truth itself reaches."""
    subsets = sample_subsets(torch.zeros(50, 1), 400)
    weights = torch.randn(20, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    both = linear(weights, subsets, noise=8.0, seeds=10)
    first, second = (
        SubsetOutputs(values=both.values[:, part], query_ids=both.query_ids, unit=None)
        for part in (slice(0, 5), slice(5, 10))
    )
    found = lds(scored(-weights), subsets, first)
    between = np.mean([
        scipy.stats.spearmanr(first.values.mean(1)[:, q], second.values.mean(1)[:, q]).statistic for q in range(20)
    ])  # fmt: skip
    assert found.reliability == pytest.approx(between, abs=0.02)
    assert found.value == pytest.approx(found.ceiling, abs=0.02)
    assert np.isnan(lds(scored(-weights), subsets, linear(weights, subsets)).reliability)


def test_paired_gains_are_narrower_than_unpaired_ones() -> None:
    subsets = sample_subsets(torch.zeros(30, 1), 60)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    outputs = linear(weights, subsets, noise=3.0, seeds=2)
    rough = weights + torch.randn(40, 30, generator=generator, dtype=torch.float64)
    good, bad = lds(scored(-weights), subsets, outputs), lds(scored(-rough), subsets, outputs)
    found = gain(good, bad)
    assert found.value == pytest.approx(good.value - bad.value)
    assert 0 < found.low < found.value < found.high
    assert gain(good, good).high == 0
    assert good.interval.low < good.value < good.interval.high


def test_subsets_depend_on_seed_and_ids_alone() -> None:
    ids = np.arange(50)
    order = np.random.default_rng(0).permutation(50)
    one = sample_subsets(wh.as_examples(torch.zeros(50, 1), ids=ids), 5, seed=2)
    other = sample_subsets(wh.as_examples(torch.zeros(50, 1), ids=ids[order]), 5, seed=2)
    np.testing.assert_array_equal(one.kept[:, order], other.kept)
    assert (one.kept.sum(1) == 25).all()
    assert not np.array_equal(one.kept, sample_subsets(torch.zeros(50, 1), 5, seed=3).kept)
    assert len({row.tobytes() for row in one.kept}) == 5
    shares = sample_subsets(torch.zeros(50, 1), 2000).kept.mean(0)
    assert abs(shares - 0.5).max() < 0.05, "every example is in half of them"


def test_agreement_is_scipys() -> None:
    generator = torch.Generator().manual_seed(4)
    predicted = torch.randn(3, 12, generator=generator, dtype=torch.float64).round(decimals=1)
    actual = 1.3 * predicted + 0.2 + 0.3 * torch.randn(3, 12, generator=generator, dtype=torch.float64)
    order = np.random.default_rng(0).permutation(12)
    found = agreement(scored(predicted[:, torch.from_numpy(order)], ids=order), scored(actual))
    for line, x, y in [
        *((found.queries[q], predicted[q], actual[q]) for q in range(3)),
        (found.pooled, predicted.reshape(-1), actual.reshape(-1)),
    ]:
        truth = scipy.stats.linregress(x, y)
        assert line.slope.value == pytest.approx(truth.slope)
        assert line.intercept.value == pytest.approx(truth.intercept)
        assert line.pearson.value == pytest.approx(truth.rvalue)
        assert line.spearman.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        assert line.slope.low < truth.slope < line.slope.high
        assert line.count == len(x)
    frame = found.to_frame()
    assert frame.shape == (4, 12) and frame.loc["pooled", ("slope", "value")] == found.pooled.slope.value


def test_agreement_catches_wrong_scores() -> None:
    train, queries = ridge.problem(40)
    settings = Retraining(recipe=ridge.recipe())
    actual = leave_one_out(settings, train, queries, train.ids)
    task = ridge.recipe().task(ridge.recipe().train(train))
    scores = wh.Influence(curvature=wh.Exact()).fit(task, train).scores(queries, leverage_corrected=True)
    right = agreement(scores, actual).pooled
    assert right.pearson.value > 0.99 and right.slope.value == pytest.approx(1, abs=0.1)
    wrong = wh.Scores(values=-10 * scores.values, query_ids=scores.query_ids, ids=scores.ids, unit=scores.unit)
    assert agreement(wrong, actual).pooled.slope.high < 0


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="fraction"):
        sample_subsets(torch.zeros(4, 1), 3, fraction=1.0)
    subsets = sample_subsets(torch.zeros(6, 1), 4)
    outputs = linear(torch.zeros(2, 6, dtype=torch.float64), subsets)
    with pytest.raises(ConfigError, match="every example"):
        lds(scored(torch.zeros(2, 5)), subsets, outputs)
    with pytest.raises(ConfigError, match="every query"):
        lds(scored(torch.zeros(1, 6)), subsets, outputs)
    with pytest.raises(ConfigError, match="subsets"):
        lds(scored(torch.zeros(2, 6)), sample_subsets(torch.zeros(6, 1), 5), outputs)
    with pytest.raises(ConfigError, match="at least 3"):
        agreement(scored(torch.zeros(1, 2)), scored(torch.zeros(1, 2)))
    with pytest.raises(ConfigError, match="every example"):
        agreement(scored(torch.zeros(1, 3)), scored(torch.zeros(1, 4)))
