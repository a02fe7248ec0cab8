"""Verdicts: right attributions are believed, and wrong ones are caught in plain words."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import ridge
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whence as wh
from whence.errors import ConfigError
from whence.evaluate import (
    CurvePoint,
    Interval,
    Retraining,
    SubsetOutputs,
    agreement,
    detection,
    lds,
    leave_one_out,
    sample_subsets,
    train_subsets,
    verdict,
)


def scored(values: np.ndarray, ids: np.ndarray | None = None) -> wh.Scores:
    queries, count = values.shape
    return wh.Scores(
        values=torch.from_numpy(np.asarray(values)), query_ids=np.arange(queries),
        ids=np.arange(count) if ids is None else ids, unit="nats",
    )  # fmt: skip


def sample(seed: int, queries: int = 4, count: int = 60, noise: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Return right predictions of heavy-tailed changes, and the changes."""
    generator = np.random.default_rng(seed)
    predicted = generator.standard_t(4, (queries, count)) * generator.uniform(0.5, 2, (queries, 1))
    return predicted, predicted + noise * generator.normal(size=predicted.shape)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_right_predictions_are_right(seed: int) -> None:
    predicted, actual = sample(seed)
    found = verdict(agreement(scored(predicted), scored(actual), resamples=200))
    assert found.level == "right" and found.good
    assert found.sentence.startswith("Predicted removals are right to within ") and "slope 1.0" in str(found)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_a_flipped_sign_is_caught(seed: int) -> None:
    predicted, actual = sample(seed)
    found = verdict(agreement(scored(-predicted), scored(actual), resamples=200))
    assert found.level == "reversed" and "wrong sign" in found.sentence and not found.good


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(2, 1000))
def test_a_wrong_scale_is_caught_and_named(seed: int, factor: float) -> None:
    predicted, actual = sample(seed)
    large = verdict(agreement(scored(factor * predicted), scored(actual), resamples=200))
    small = verdict(agreement(scored(predicted / factor), scored(actual), resamples=200))
    assert (large.level, small.level) == ("scaled", "scaled")
    assert "times too large" in large.sentence and "times too small" in small.sentence
    named = float(large.sentence.split("changes are ")[1].split(" ")[0])
    assert named == pytest.approx(factor, rel=0.1)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_shuffled_ids_are_never_believed(seed: int) -> None:
    predicted, actual = sample(seed)
    order = np.random.default_rng(seed).permutation(60)
    found = verdict(agreement(scored(predicted, ids=order), scored(actual), resamples=200))
    assert found.level in ("unrelated", "partly", "reversed") and not found.good


def test_shuffled_ids_are_called_unrelated_as_often_as_said() -> None:
    """Also where queries resemble one another and differ in their mean, which pools to a large correlation."""
    levels = []
    for seed in range(120):
        generator = np.random.default_rng(seed)
        common = generator.normal(size=(1, 40))
        predicted = common + 0.3 * generator.normal(size=(6, 40)) + 5 * np.arange(6)[:, None]
        order = generator.permutation(40)
        found = agreement(scored(predicted, ids=order), scored(predicted), resamples=100)
        assert found.pooled.pearson.value > 0.8, "the trap"
        levels.append(verdict(found).level)
    assert np.mean([level == "unrelated" for level in levels]) > 0.92
    assert not {"right", "scaled", "shifted"} & set(levels)


def test_a_constant_and_a_weak_correlation_are_told() -> None:
    predicted, actual = sample(1)
    assert verdict(agreement(scored(predicted + 5), scored(actual), resamples=200)).level == "shifted"
    weak = agreement(scored(predicted), scored(sample(1, noise=2.0)[1]), resamples=200)
    assert verdict(weak).level == "partly" and "rank rather than measure" in verdict(weak).sentence
    few = replace(agreement(scored(predicted), scored(actual)), pooled=replace(
        agreement(scored(predicted), scored(actual)).pooled, slope=Interval(1.1, 0.7, 1.5)))  # fmt: skip
    assert verdict(few).level == "partly" and "not known well" in verdict(few).sentence


def test_on_ridge_the_three_wrong_attributions_are_caught() -> None:
    """Leverage-corrected influence is right; its sign, ids and scale are then spoilt on purpose."""
    train, queries = ridge.problem(60)
    recipe = ridge.recipe()
    actual = leave_one_out(Retraining(recipe=recipe), train, queries, train.ids)
    fitted = wh.Influence(curvature=wh.Exact()).fit(recipe.task(recipe.train(train)), train)
    scores = fitted.scores(queries, leverage_corrected=True)
    shuffled = train.ids[np.random.default_rng(0).permutation(60)]
    cases = {
        "right": scores, "reversed": replace(scores, values=-scores.values),
        "unrelated": replace(scores, ids=shuffled), "scaled": replace(scores, values=10 * scores.values),
    }  # fmt: skip
    found = {level: verdict(agreement(case, actual)) for level, case in cases.items()}
    assert {level: one.level for level, one in found.items()} == {level: level for level in cases}
    factor = float(found["scaled"].sentence.split("changes are ")[1].split(" ")[0])
    assert factor == pytest.approx(10, rel=0.1)

    subsets = sample_subsets(train, 60)
    settings_ = Retraining(recipe=recipe, measurement=ridge.output)
    outputs = train_subsets(settings_, train, queries, subsets)
    measured = wh.Influence(curvature=wh.Exact()).fit(recipe.task(recipe.train(train), ridge.output), train)
    scores = measured.scores(queries)
    cases = {"right": scores, "reversed": replace(scores, values=-scores.values),
             "unrelated": replace(scores, ids=shuffled)}  # fmt: skip
    assert {name: verdict(lds(case, subsets, outputs)).level for name, case in cases.items()} == {n: n for n in cases}
    tenfold = verdict(lds(replace(scores, values=10 * scores.values), subsets, outputs))
    assert tenfold.level == "right" and "not the scale" in tenfold.sentence


def test_chance_of_the_datamodelling_score_is_that_of_shuffles() -> None:
    """95 % of shuffles stay below it, also where all queries ask nearly the same."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(1, 40)) + 0.3 * generator.normal(size=(5, 40))
    subsets = sample_subsets(torch.zeros(40, 1), 30)
    values = torch.from_numpy(-(subsets.kept @ weights.T))[:, None]
    outputs = SubsetOutputs(values=values, query_ids=np.arange(5), unit=None)
    below = []
    for _ in range(400):
        found = lds(scored(weights, ids=generator.permutation(40)), subsets, outputs, resamples=2)
        below.append(abs(found.value) < found.chance)
    assert 0.91 < np.mean(below) < 0.99
    partly = lds(scored(weights + 2 * generator.normal(size=weights.shape)), subsets, outputs)
    assert verdict(partly).level == "partly" and "in part" in verdict(partly).sentence


def test_detection_is_told_with_its_best_or_named_signal() -> None:
    generator = np.random.default_rng(0)
    known = generator.random(400) < 0.1
    named = {
        "good": generator.normal(size=400) + 4 * known, "some": generator.normal(size=400) + 0.8 * known,
        "none": generator.normal(size=400), "flipped": -generator.normal(size=400) - 4 * known,
    }  # fmt: skip
    signals = {name: wh.Signal(values=v, ids=np.arange(400), name=name, unit=None) for name, v in named.items()}
    found = detection(known, signals, resamples=300)
    assert verdict(found) == verdict(found, of="good")
    levels = {name: verdict(found, of=name).level for name in signals}
    assert levels == {"good": "right", "some": "partly", "none": "unrelated", "flipped": "reversed"}
    assert "where a random choice holds 10 %" in verdict(found).sentence
    with pytest.raises(ConfigError, match="of must be"):
        verdict(found, of="other")


def point(change: Interval, advantage: Interval, predicted: float | None = None) -> CurvePoint:
    return CurvePoint(
        ranking="scores", measurement="accuracy", count=50, share=0.05, changed=50, value=Interval(0.9, 0.89, 0.91),
        change=change, predicted=predicted, control=Interval(0.001, -0.001, 0.003), advantage=advantage,
    )  # fmt: skip


@pytest.mark.parametrize(("level", "predicted", "sign"), [
    ("right", 0.010, 1), ("right", None, 1), ("scaled", 0.1, 1), ("reversed", 0.01, -1),
])  # fmt: skip
def test_curves_are_told_in_points(level: str, predicted: float | None, sign: int) -> None:
    change = Interval(0.012, 0.009, 0.015)
    advantage = Interval(sign * 0.011, min(sign * 0.005, sign * 0.017), max(sign * 0.005, sign * 0.017))
    curve = wh.Curve(
        treatment="removal", points=(point(change, advantage, predicted),),
        before={"loss": Interval(1, 1, 1), "accuracy": Interval(0.9, 0.9, 0.9)},
        units={"loss": "nats", "accuracy": "share right"}, examples=1000, queries=100, seeds=3, controls=3,
    )  # fmt: skip
    found = verdict(curve)
    assert found.level == level
    assert "the 50 examples (5 %) that 'scores' puts first raises accuracy by 1.20 ± 0.30 points" in found.sentence
    assert ("predicted 1.00" in found.sentence) == (predicted == 0.010)
    nothing = replace(curve, points=(point(change, Interval(0.01, -0.01, 0.03)),))
    assert verdict(nothing).level == "unrelated"
    worse = replace(curve, points=(point(Interval(-0.02, -0.03, -0.01), Interval(-0.02, -0.03, -0.01), -0.015),))
    assert verdict(worse).level == "unrelated" and "as predicted: these examples help" in verdict(worse).sentence
    single = replace(curve, points=(point(change, Interval(0.01, float("nan"), float("nan"))),))
    assert verdict(single).level == "partly" and "more seeds" in verdict(single).sentence


def test_where_everything_is_right_already_the_loss_is_told() -> None:
    change = Interval(-0.02, -0.022, -0.018)
    points = tuple(
        replace(point(one, one, one.value), measurement=name)
        for name, one in (("loss", change), ("accuracy", Interval(0.0, 0.0, 0.0)))
    )
    curve = wh.Curve(
        treatment="removal", points=points, before={"loss": Interval(0.04, 0.04, 0.04), "accuracy": Interval(1, 1, 1)},
        units={"loss": "nats", "accuracy": "share right"}, examples=1000, queries=100, seeds=2, controls=3,
    )  # fmt: skip
    found = verdict(curve)
    assert found.level == "right" and "lowers loss by 0.02 ± 0.002 nats; predicted −0.02" in found.sentence


def test_resamples_a_few_at_a_time_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    ids = {"query_ids": np.arange(9), "ids": np.arange(20), "unit": "nats"}
    one, other = (wh.Scores(values=torch.from_numpy(generator.normal(size=(9, 20))), **ids) for _ in range(2))
    found, peaks = [], []
    for numbers in (2**30, 9 * 20 * 3):
        monkeypatch.setitem(agreement.__globals__, "_NUMBERS", numbers)
        tracemalloc.start()
        found.append(agreement(one, other, resamples=400))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (found[0].pooled, found[0].within) == (found[1].pooled, found[1].within)
    assert found[0].queries == found[1].queries
    assert peaks[1] < peaks[0] / 2
