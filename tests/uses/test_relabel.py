"""Relabel, prune, separate sources: brute force, rules, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whence as wh

finite = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))


def signal(values: Any, ids: Any = None) -> wh.Signal:
    given_values = np.asarray(values, dtype=np.float64)
    return wh.Signal(values=given_values, ids=np.arange(len(given_values)) if ids is None else np.asarray(ids),
                     name="self-influence", unit=None)  # fmt: skip


def between(values: np.ndarray, limit: float) -> float:
    low, high = values[values <= limit], values[values > limit]
    return 0.0 if not len(low) or not len(high) else len(low) * len(high) * (low.mean() - high.mean()) ** 2


@settings(max_examples=150, deadline=None)
@given(st.lists(finite, min_size=2, max_size=30).filter(lambda values: max(values) - min(values) > 1e-2))
def test_otsu_is_the_best_of_all_thresholds(values: list[float]) -> None:
    array = np.array(values)
    best = max(between(array, limit) for limit in array)
    assert between(array, wh.otsu_threshold(array)) == pytest.approx(best, rel=1e-6)


def test_otsu_on_a_logarithmic_scale() -> None:
    values = np.array([1e-8, 2e-8, 1e-7, 0.5, 1.0, 300.0])
    assert np.count_nonzero(values > wh.otsu_threshold(values)) == 1
    assert np.count_nonzero(values > wh.otsu_threshold(values, scale="log")) == 3
    with_zero = np.array([0.0, *values])
    assert np.count_nonzero(with_zero > wh.otsu_threshold(with_zero, scale="log")) == 3
    for wrong, message in (([1.0, 1.0], "different"), ([np.nan, 1.0], "finite"), ([], "finite")):
        with pytest.raises(wh.DataError, match=message):
            wh.otsu_threshold(wrong)
    with pytest.raises(wh.DataError, match="positive"):
        wh.otsu_threshold([-1.0, 0.0], scale="log")
    with pytest.raises(wh.ConfigError, match="scale"):
        wh.otsu_threshold([0.0, 1.0], scale="root")  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 20), st.integers(2, 5), st.integers(0, 10_000))
def test_only_rows_above_change_and_to_the_best_other_label(count: int, classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values, p = generator.exponential(size=count), generator.dirichlet(np.ones(classes), count)
    labels = generator.integers(0, classes, count)
    ids = [f"r{i}" for i in range(count)]
    frame = wh.relabel(signal(values, ids), p, labels)
    assert frame["id"].tolist() == ids and frame["old"].tolist() == labels.tolist()
    limit = frame.attrs["threshold"]
    assert frame["above"].tolist() == (values > limit).tolist() and 0 < frame["above"].sum() < count
    for i in range(count):
        new = labels[i]
        if values[i] > limit:
            new = max((c for c in range(classes) if c != labels[i]), key=lambda c: p[i, c])
        assert frame["new"][i] == new
    none = wh.relabel(signal(values, ids), p, labels, threshold=np.inf)
    assert (none["new"] == none["old"]).all() and not none["above"].any()


def test_relabel_names_classes_and_refuses_nonsense() -> None:
    frame = wh.relabel(signal([0, 9]), [[0.2, 0.8], [0.3, 0.7]], [1, 1], classes=["ham", "spam"])
    assert frame["new"].tolist() == ["spam", "ham"]
    for p, labels, message in (
        ([[1.0, 0.0]], [0, 1], "must be"), ([[0.5, 0.5]] * 2, [0, 2], "positions"),
        ([[0.5, 0.5]] * 2, [0.0, 1.0], "positions"), ([[np.nan, 0.5]] * 2, [0, 1], "finite"),
    ):  # fmt: skip
        with pytest.raises(wh.DataError, match=message):
            wh.relabel(signal([0, 1]), p, labels)


def test_prune_drops_the_lowest_globally_or_by_class() -> None:
    values = np.array([5.0, 1, 4, 0, 3, 2])
    assert wh.prune(signal(values), 0.5).tolist() == [3, 1, 5]
    labels = [0, 0, 0, 0, 1, 1]
    dropped = wh.prune(signal(values), 0.5, balanced=True, labels=labels)
    assert dropped.tolist() == [3, 1, 5]
    skewed = np.array([0.0, 1, 2, 3, 10, 11])
    assert wh.prune(signal(skewed), 0.5).tolist() == [0, 1, 2]
    assert wh.prune(signal(skewed), 0.5, balanced=True, labels=labels).tolist() == [0, 1, 4]
    assert len(wh.prune(signal(values), 0.0)) == 0
    for share in (-0.1, 1.0):
        with pytest.raises(wh.ConfigError, match="share"):
            wh.prune(signal(values), share)
    with pytest.raises(wh.ConfigError, match="labels"):
        wh.prune(signal(values), 0.5, balanced=True)
    with pytest.raises(wh.DataError, match="one a row"):
        wh.prune(signal(values), 0.5, balanced=True, labels=[0])
    with pytest.raises(wh.DataError, match="finite"):
        wh.prune(signal([np.nan, 1.0]), 0.5)


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 60), st.floats(0, 0.95), st.integers(1, 6))
def test_rounds_drop_as_many_and_ask_of_what_is_left(count: int, share: float, rounds: int) -> None:
    asked: list[int] = []

    def moving(left: np.ndarray) -> wh.Signal:
        asked.append(len(left))
        return signal((left * 7919 * len(asked)) % 101, left)

    dropped = wh.prune_iteratively(moving, np.arange(count), share, rounds=rounds)
    assert abs(len(dropped) - min(share * count, count - 1)) <= 0.5 + 1e-9
    assert len(set(dropped.tolist())) == len(dropped) and len(asked) == rounds
    assert asked == sorted(asked, reverse=True)
    once = wh.prune_iteratively(lambda left: signal(left % 7, left), np.arange(count), share, rounds=1)
    assert once.tolist() == np.argsort(np.arange(count) % 7, kind="stable")[: len(dropped)].tolist()


def test_iterative_pruning_is_balanced_and_checks_ids() -> None:
    ids, labels = np.arange(40), np.arange(40) % 2
    dropped = wh.prune_iteratively(lambda left: signal(left, left), ids, 0.5, rounds=2, balanced=True, labels=labels)
    assert abs((dropped % 2 == 0).sum() - (dropped % 2 == 1).sum()) <= 1
    with pytest.raises(wh.DataError, match="others"):
        wh.prune_iteratively(lambda left: signal(ids), ids, 0.5, rounds=2)
    with pytest.raises(wh.ConfigError, match="rounds"):
        wh.prune_iteratively(lambda left: signal(left, left), ids, 0.5, rounds=0)


def test_sources_are_told_apart_by_their_mean_score() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 30, generator=generator)
    known = np.arange(30) < 10
    values[:, :10] += 5
    scores = wh.Scores(values=values, query_ids=np.arange(6), ids=np.arange(30), unit=None)
    found = wh.separate_sources(scores, known=known)
    assert found.auc == 1.0
    np.testing.assert_allclose(found.signal.values, values.mean(0).numpy(), rtol=1e-5)
    assert wh.separate_sources(scores).auc is None

    train = (torch.randn(30, 3, generator=generator), torch.randint(0, 2, (30,), generator=generator))
    attribution = wh.GradientDot().fit(wh.Task(torch.nn.Linear(3, 2)), train)
    queries = (train[0][:5], train[1][:5])
    by_attribution = wh.separate_sources(attribution, queries)
    np.testing.assert_allclose(
        by_attribution.signal.values, attribution.scores(queries).values.mean(0).numpy(), rtol=1e-4, atol=1e-7
    )
    with pytest.raises(wh.ConfigError, match="reference"):
        wh.separate_sources(attribution)
    for mask in (np.ones(30, dtype=bool), known.astype(int), known[:5]):
        with pytest.raises(wh.DataError, match="known must be"):
            wh.separate_sources(scores, known=mask)


def test_signals_classes_and_labels_are_checked() -> None:
    nan = wh.Signal(values=np.array([1.0, np.nan]), ids=np.arange(2), name="s", unit=None)
    known = wh.Signal(values=np.array([1.0, 2.0]), ids=np.arange(2), name="s", unit=None)
    with pytest.raises(wh.DataError, match="signal must be finite"):
        wh.relabel(nan, [[0.5, 0.5]] * 2, [0, 1], threshold=0.5)
    with pytest.raises(wh.DataError, match=r"one a column of probabilities \(2\), got 1"):
        wh.relabel(known, [[0.5, 0.5]] * 2, [0, 1], classes=["a"])
    with pytest.raises(wh.DataError, match=r"one an id \(2\), got 3"):
        wh.prune_iteratively(lambda left: known, np.arange(2), 0.5, labels=[0, 1, 0])


def two_sources(seed: int) -> tuple[wh.Scores, np.ndarray, np.ndarray]:
    """Scores whose sign tells classes and whose size tells sources."""
    generator = np.random.default_rng(seed)
    source, labels = generator.random(80) < 0.3, np.arange(80) % 2
    sign = np.where(labels[:, None] == labels[None], 1.0, -1.0)
    size = np.where(source[:, None] == source[None], 1.0, 0.1) * generator.gamma(4, size=(80, 80))
    scale = generator.exponential(size=80)[:, None] * generator.exponential(size=80)[None]
    values = torch.from_numpy(sign * size * scale)
    return wh.Scores(values=values, query_ids=np.arange(80), ids=np.arange(80), unit="nats"), source, labels


def part(scores: wh.Scores, rows: np.ndarray) -> wh.Scores:
    return wh.Scores(
        values=scores.values[torch.from_numpy(rows)], query_ids=scores.query_ids[rows], ids=scores.ids, unit="nats"
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sizes_tell_sources_where_signs_of_classes_cancel(seed: int) -> None:
    scores, source, labels = two_sources(seed)
    known = part(scores, np.flatnonzero(source)[:12])
    sums = wh.separate_sources(known, known=source).auc
    sizes = wh.separate_sources(known, known, background=scores, known=source)
    assert sizes.auc is not None and sums is not None and sizes.auc > 0.95 > sums
    direction = wh.split_sources(scores, (torch.zeros(80, 1), torch.from_numpy(labels)), labels=labels)
    side = direction.values > wh.otsu_threshold(direction.values)
    assert max((side == source).mean(), (side != source).mean()) > 0.95
    other = torch.from_numpy(np.random.default_rng(seed).exponential(size=80))
    scaled = wh.Scores(values=scores.values * other, query_ids=scores.query_ids, ids=scores.ids, unit="nats")
    again = wh.separate_sources(part(scaled, np.flatnonzero(source)[:12]), part(scaled, np.flatnonzero(source)[:12]),
                                background=scaled)  # fmt: skip
    assert np.corrcoef(again.signal.values, sizes.signal.values)[0, 1] > 0.9, "an example's own scale plays no part"


def test_splitting_refuses_what_does_not_fit() -> None:
    scores, _, labels = two_sources(0)
    for reference, given_labels in (((torch.zeros(80, 1), None), labels), ((torch.zeros(3, 1), torch.zeros(3)), labels),
                                    ((torch.zeros(80, 1), torch.zeros(80)), labels[:5])):  # fmt: skip
        with pytest.raises(wh.DataError, match="labels must be one a training example"):
            wh.split_sources(scores, reference, labels=given_labels)
