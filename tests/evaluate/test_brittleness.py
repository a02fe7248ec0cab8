"""Brittleness on a classifier in closed form, where the smallest set is known by trying all sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import whence as wh
from whence.errors import ConfigError
from whence.evaluate import FlipSearch, Retraining, brittleness

COUNT = 40


def voting(examples: Any, *, weights: Tensor, seed: int, start: nn.Module | None) -> nn.Module:
    """Train by votes: each example kept adds its input to the logits of its class; the seed adds to class 0."""
    batch = examples.batch(np.arange(len(examples)))
    votes = weights.double()[:, None] * batch.inputs
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.stack([votes[batch.targets == c].sum(0) for c in (0, 1)]))
        model.bias.copy_(torch.tensor([0.1 * seed, 0.0]))
    return model


def problem() -> tuple[wh.Examples, wh.Examples]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(COUNT, 2, generator=generator, dtype=torch.float64)
    ids = [f"row{i}" for i in range(COUNT)]
    train = wh.as_examples((x, (torch.arange(COUNT) % 5 < 2).long()), ids=ids)
    asked = torch.tensor([[1.0, 0.2], [0.1, 1.0]], dtype=torch.float64)
    return train, wh.as_examples((asked, torch.tensor([0, 0])), ids=["p", "q"])


def truth(train: wh.Examples, queries: wh.Examples, removed: np.ndarray, seed: int = 0) -> Tensor:
    """Return the margin of class 0 of every query, by definition."""
    x, y = train.fetch(np.arange(COUNT))
    kept = torch.ones(COUNT, dtype=torch.float64)
    kept[torch.from_numpy(removed)] = 0
    votes = kept * torch.where(y == 0, 1.0, -1.0).double()
    return queries.fetch(np.arange(len(queries)))[0] @ (x.T @ votes) + 0.1 * seed


def effects(train: wh.Examples, queries: wh.Examples) -> wh.Scores:
    """Return how the margin of class 0, which both queries are in, changes when an example is removed."""
    x, y = train.fetch(np.arange(COUNT))
    values = queries.fetch(np.arange(len(queries)))[0] @ x.T * torch.where(y == 0, -1.0, 1.0)
    return wh.Scores(values=values, query_ids=queries.ids, ids=train.ids, unit="logits")


def smallest(train: wh.Examples, queries: wh.Examples, scores: wh.Scores, query: int) -> int:
    order = np.argsort(scores.values[query].numpy())
    return next(k for k in range(COUNT) if truth(train, queries, order[:k])[query] <= 0)


@pytest.mark.parametrize("of", ["margin", "loss"])
def test_the_smallest_set_in_the_order_of_scores_is_found(of: str) -> None:
    train, queries = problem()
    scores = effects(train, queries)
    given_ = wh.Scores(values=-scores.values, query_ids=queries.ids, ids=train.ids, unit="nats")
    found = brittleness(
        Retraining(recipe=wh.Recipe(train=voting)), train, queries, scores if of == "margin" else given_,
        search=FlipSearch(of=of, largest=0.6),
    )  # fmt: skip
    for column, one in enumerate(found.queries):
        size = smallest(train, queries, scores, column)
        order = np.argsort(scores.values[column].numpy())
        assert one.query == queries.ids[column] and one.target == 0
        assert one.size == size and one.ids.tolist() == train.ids[order[:size]].tolist()
        after = float(truth(train, queries, order[:size])[column])
        assert one.found.actual.value == pytest.approx(after) and after <= 0
        assert one.margin.value == pytest.approx(float(truth(train, queries, order[:0])[column]))
        for trial in one.tried:
            fall = float(scores.values[column][torch.from_numpy(order[: trial.size].copy())].sum())
            wanted = one.margin.value + COUNT / (COUNT - trial.size) * fall
            assert (trial.predicted is None) == (of == "loss")
            assert trial.predicted is None or trial.predicted == pytest.approx(wanted)
            assert trial.flipped == float(trial.actual.value <= 0)
        assert one.random.value > 0 and one.random_flipped == 0, "as many random examples do not flip it"
    frame = found.to_frame()
    assert frame["size"].tolist() == [one.size for one in found.queries] and frame["flipped"].tolist() == [1, 1]


def test_a_prediction_that_nothing_flips_has_no_size() -> None:
    train, queries = problem()
    found = brittleness(
        Retraining(recipe=wh.Recipe(train=voting)), train, queries, effects(train, queries),
        search=FlipSearch(largest=0.05),
    )  # fmt: skip
    for one in found.queries:
        assert one.size is None and one.found.size == found.largest == 2 and one.found.flipped == 0
        assert [trial.size for trial in one.tried] == [0, 2], "none is predicted to, so the largest decides"
    assert found.to_frame()["size"].isna().all()


def test_seeds_are_averaged_and_targets_that_are_not_predicted_need_nothing() -> None:
    train, queries = problem()
    scores = effects(train, queries)
    settings_ = Retraining(recipe=wh.Recipe(train=voting), seeds=(0, 5, 10))
    found = brittleness(settings_, train, queries, scores, search=FlipSearch(largest=0.6, controls=2))
    for column, one in enumerate(found.queries):
        order = np.argsort(scores.values[column].numpy())
        whole, after, before = (
            np.mean([float(truth(train, queries, order[:k], seed)[column]) for seed in (0, 5, 10)])
            for k in (0, one.size, one.size - 1)
        )
        assert one.margin.value == pytest.approx(whole) and after <= 0 < before
    wrong = queries.with_targets(torch.tensor([1, 1]))
    flipped = wh.Scores(values=-scores.values, query_ids=queries.ids, ids=train.ids, unit="logits")
    for one in brittleness(settings_, train, wrong, flipped).queries:
        assert (one.size, one.found.size, len(one.ids), len(one.tried)) == (0, 0, 0, 1) and one.margin.value < 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_any_order_gives_a_set_that_flips(seed: int) -> None:
    """Scores that mean nothing still give a verified set, and no smaller one that was tried flips."""
    train, queries = problem()
    generator = torch.Generator().manual_seed(seed)
    scores = wh.Scores(
        values=torch.randn(2, COUNT, generator=generator), query_ids=queries.ids, ids=train.ids, unit=None
    )
    settings_, search = Retraining(recipe=wh.Recipe(train=voting)), FlipSearch(largest=0.9)
    found = brittleness(settings_, train, queries, scores, search=search)
    for column, one in enumerate(found.queries):
        removed = train.rows_of(one.ids)
        assert one.size is None or float(truth(train, queries, removed)[column]) <= 0
        assert all(trial.actual.value > 0 for trial in one.tried if one.size is None or trial.size < one.size)


def test_refusals() -> None:
    train, queries = problem()
    settings_ = Retraining(recipe=wh.Recipe(train=voting))
    for search in ({"of": "logit"}, {"largest": 1.0}, {"controls": 0}):
        with pytest.raises(ConfigError):
            FlipSearch(**search)
    with pytest.raises(ConfigError, match="every query"):
        brittleness(settings_, train, queries.select(np.array([0])), effects(train, queries.select(np.array([1]))))
    with pytest.raises(ConfigError, match="one class"):
        brittleness(settings_, train, queries.fetch(np.arange(2))[0], effects(train, queries))
