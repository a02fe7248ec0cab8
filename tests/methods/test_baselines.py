"""Humble baselines: formulas by hand, ties, determinism, independence of batch and order."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import whence as wh
from whence.methods.baselines.neighbours import nearest_weights


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def rows(count: int, seed: int, prefix: str) -> wh.Examples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return wh.as_examples(
        (inputs, torch.randint(0, 3, (count,), generator=generator)), ids=[f"{prefix}{i}" for i in range(count)]
    )


TRAIN, QUERIES = rows(23, 1, "t"), rows(9, 2, "q")
TEXTS = {
    name: " ".join(np.random.default_rng(place).choice(["ab", "bc", "cd", "de", "ef", "fg", "gh"], 12))
    for place, name in enumerate([*TRAIN.ids.tolist(), *QUERIES.ids.tolist()])
}
BASELINES: dict[str, Any] = {
    "random": wh.RandomBaseline(seed=3),
    "loss": wh.LossBaseline(),
    "margin": wh.MarginBaseline(),
    "neighbours": wh.Neighbours(k=4),
    "shapley": wh.NeighbourShapley(k=4),
    "similarity": wh.Similarity(),
    "plain similarity": wh.Similarity(signed=False),
    "bm25": wh.BM25(texts=TEXTS),
}


@pytest.mark.parametrize("name", BASELINES)
def test_order_and_batch_change_nothing_by_id(name: str) -> None:
    task = wh.Task(network())
    whole = BASELINES[name].fit(task, TRAIN)
    shuffled = np.random.default_rng(0).permutation(len(TRAIN))
    other = BASELINES[name].fit(task, TRAIN.select(shuffled))
    scores = whole.scores(QUERIES)
    assert scores.unit is None and scores.values.shape == (9, 23) and torch.isfinite(scores.values).all()
    moved = other.scores(QUERIES).values[:, np.argsort(shuffled)]
    assert torch.allclose(scores.values, moved, rtol=0, atol=1e-12)
    for size in (1, 7):
        parts = [whole.scores(QUERIES.select(np.arange(s, min(s + size, 9)))).values for s in range(0, 9, size)]
        assert torch.allclose(torch.cat(parts), scores.values, rtol=0, atol=1e-12)
    first, second = whole.suspicion().to_series(), other.suspicion().to_series()
    assert np.allclose(first, second.loc[first.index], rtol=0, atol=1e-12)
    assert np.array_equal(first, BASELINES[name].fit(task, TRAIN).suspicion().to_series())


def test_the_model_is_left_alone() -> None:
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for baseline in BASELINES.values():
        baseline.fit(wh.Task(model), TRAIN).suspicion()
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_random_depends_on_the_seed_and_is_uniform() -> None:
    one, other = (wh.RandomBaseline(seed=seed).fit(None, TRAIN).scores(QUERIES).values for seed in (0, 1))
    assert not torch.equal(one, other)
    many = wh.as_examples((torch.zeros(400, 1), torch.zeros(400)))
    found = wh.RandomBaseline().fit(None, many).scores(many).values.numpy()
    assert abs(found.mean()) < 0.01 and abs(found.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(found)[np.triu_indices(400, 1)]).mean() < 0.06


def test_loss_and_margin_are_what_the_model_says() -> None:
    task = wh.Task(network())
    batch = TRAIN.batch(np.arange(len(TRAIN)))
    p = task.model(batch.inputs).detach().softmax(1)
    labels = TRAIN.targets
    assert labels is not None
    own = p[torch.arange(len(p)), labels]
    assert np.allclose(wh.LossBaseline().fit(task, TRAIN).suspicion(), -own.log())
    best_other = torch.stack([max(row[c] for c in range(3) if c != y) for row, y in zip(p, labels, strict=True)])
    margin = wh.MarginBaseline().fit(task, TRAIN)
    assert np.allclose(margin.suspicion(), (1 - own + best_other) / 2)
    sign = torch.where(QUERIES.targets[:, None] == labels[None], 1.0, -1.0)  # type: ignore[index]
    assert torch.allclose(margin.scores(QUERIES).values, sign * torch.from_numpy(margin.suspicion().values))


def test_margin_of_one_logit_is_that_of_two() -> None:
    one, two = nn.Linear(4, 1).double(), nn.Linear(4, 2).double()
    with torch.no_grad():
        two.weight.copy_(torch.cat([torch.zeros_like(one.weight), one.weight]))
        two.bias.copy_(torch.cat([torch.zeros_like(one.bias), one.bias]))
    binary = TRAIN.with_targets((TRAIN.targets > 0).double())  # type: ignore[operator]
    single = wh.MarginBaseline().fit(wh.Task(one, "binary_cross_entropy"), binary).suspicion()
    classes = binary.with_targets(binary.targets.long())  # type: ignore[union-attr]
    assert np.allclose(single, wh.MarginBaseline().fit(wh.Task(two), classes).suspicion())


def test_similarity_by_hand() -> None:
    model = network()
    hidden = model[:2](TRAIN.batch(np.arange(23)).inputs).detach().numpy()  # type: ignore[index]
    asked = model[:2](QUERIES.batch(np.arange(9)).inputs).detach().numpy()  # type: ignore[index]
    cosine = asked @ hidden.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(hidden, axis=1)
    plain = wh.Similarity(signed=False).fit(wh.Task(model), TRAIN)
    assert np.allclose(plain.scores(QUERIES).values, cosine)
    own = hidden @ hidden.T / np.linalg.norm(hidden, axis=1)[:, None] / np.linalg.norm(hidden, axis=1)
    labels = TRAIN.targets.numpy()  # type: ignore[union-attr]
    for i, value in enumerate(plain.suspicion().values):
        rest = np.arange(23) != i
        same, other = rest & (labels == labels[i]), labels != labels[i]
        assert value == pytest.approx(own[i][other].max() - own[i][same].max())


def test_similarity_of_positions_and_of_a_function() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    sequence = wh.as_examples((torch.randn(6, 7, 4), torch.tensor([0, 1] * 3)))
    task = wh.Task(model, outputs=lambda m, batch: m(batch.inputs).mean(1))
    found = wh.Similarity(signed=False).fit(task, sequence).scores(sequence).values
    hidden = model[0](sequence.batch(np.arange(6)).inputs).mean(1).detach().double()
    assert torch.allclose(found, nn.functional.cosine_similarity(hidden[:, None], hidden[None], dim=2), atol=1e-6)
    given = wh.Similarity(signed=False, features=lambda m, batch: m[0](batch.inputs).mean(1))
    assert torch.allclose(given.fit(task, sequence).scores(sequence).values, found)
    with pytest.raises(wh.ConfigError, match="features must have shape"):
        wh.Similarity(features=lambda m, batch: batch.inputs).fit(task, sequence)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 15), st.randoms(use_true_random=False)
)
def test_neighbours_share_ties(levels: list[int], k: int, random: Any) -> None:
    similarity = torch.tensor([levels], dtype=torch.float64)
    weights = nearest_weights(similarity, k)[0]
    assert weights.sum().item() == pytest.approx(1.0)
    taken = min(k, len(levels))
    for level in range(4):
        expected = max(0, min(levels.count(level), taken - sum(other > level for other in levels)))
        held = [w for w, found in zip(weights.tolist(), levels, strict=True) if found == level]
        assert sum(held) == pytest.approx(expected / taken)
        assert len(set(held)) <= 1
    order = list(range(len(levels)))
    random.shuffle(order)
    assert torch.allclose(nearest_weights(similarity[:, order], k)[0], weights[order])


def test_neighbours_by_sorting() -> None:
    task = wh.Task(network())
    cosine = wh.Similarity(signed=False).fit(task, TRAIN)
    labels = TRAIN.targets.numpy()  # type: ignore[union-attr]
    own = cosine.scores(TRAIN).values.numpy()
    np.fill_diagonal(own, -2)
    near = np.argsort(-own, axis=1)[:, :4]
    expected = (labels[near] != labels[:, None]).mean(1)
    assert np.allclose(wh.Neighbours(k=4).fit(task, TRAIN).suspicion(), expected)
    assert wh.Neighbours(k=50).fit(task, TRAIN).suspicion().values.max() <= 1


def plain_bm25(query: str, documents: list[str], k1: float, b: float) -> list[float]:
    """Word by word, as the formula is written."""
    tokens = [re.findall(r"\w+", document.lower()) for document in documents]
    mean = sum(map(len, tokens)) / len(tokens)
    found = []
    for words in tokens:
        counts, total = Counter(words), 0.0
        for word in re.findall(r"\w+", query.lower()):
            holding = sum(word in other for other in tokens)
            idf = math.log(1 + (len(tokens) - holding + 0.5) / (holding + 0.5))
            if counts[word]:
                total += idf * counts[word] * (k1 + 1) / (counts[word] + k1 * (1 - b + b * len(words) / mean))
        found.append(total)
    return found


WORD = st.sampled_from(["free", "Prize", "naïve", "42", "it's", "x_y", "-"])
TEXT = st.lists(WORD, max_size=8).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=7), TEXT, st.floats(0, 3), st.floats(0, 1))
def test_bm25_is_its_formula(documents: list[str], query: str, k1: float, b: float) -> None:
    train = wh.as_examples((torch.zeros(len(documents), 1), torch.zeros(len(documents))))
    asked = wh.as_examples((torch.zeros(1, 1), torch.zeros(1)), ids=["q"])
    baseline = wh.BM25(texts={**dict(enumerate(documents)), "q": query}, k1=k1, b=b)
    if not any(re.findall(r"\w", document) for document in documents):
        with pytest.raises(wh.DataError, match="at least one word"):
            baseline.fit(None, train)
        return
    found = baseline.fit(None, train).scores(asked).values[0].numpy()
    assert np.allclose(found, plain_bm25(query, documents, k1, b), rtol=1e-9, atol=1e-12)


def test_a_flipped_label_is_most_suspect() -> None:
    """Two far-apart groups with one wrong label: every baseline that looks at labels finds it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1] * 10)
    inputs = torch.randn(20, 2, generator=generator) * 0.1 + torch.where(labels[:, None] == 1, 3.0, -3.0)
    texts = {i: f"{'spam prize' if label else 'home dinner'} {i}" for i, label in enumerate(labels.tolist())}
    labels[7] = 0
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        model[1].bias.zero_()
    task, train = wh.Task(model), wh.as_examples((inputs, labels))
    for baseline in (wh.LossBaseline(), wh.MarginBaseline(), wh.Neighbours(k=5), wh.Similarity(), wh.BM25(texts=texts)):
        assert int(np.argmax(baseline.fit(task, train).suspicion())) == 7, baseline


def test_a_class_of_one_row_has_a_finite_suspicion() -> None:
    train = wh.as_examples((torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1])))
    task = wh.Task(network())
    for baseline in (wh.Similarity(), wh.Neighbours(k=3), wh.BM25(texts=dict.fromkeys(range(5), "one word"))):
        assert np.isfinite(np.asarray(baseline.fit(task, train).suspicion())).all()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: wh.RandomBaseline(seed=-1), "seed"),
        (lambda: wh.Neighbours(k=0), "k must"),
        (lambda: wh.BM25(texts={}, k1=-1), "k1"),
        (lambda: wh.BM25(texts={}, b=1.5), "b must"),
        (lambda: wh.LossBaseline().fit(wh.Task(network()), TRAIN).scores(torch.zeros(2, 4)), "label"),
    ],
)
def test_refusals(make: Any, word: str) -> None:
    with pytest.raises(wh.ConfigError, match=word):
        make()


def test_bm25_needs_every_text() -> None:
    with pytest.raises(wh.DataError, match="'t0'"):
        wh.BM25(texts={}).fit(None, TRAIN)


def nan_model() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(6, 3)
    x[4, 1] = float("nan")
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (x, torch.tensor([0, 1] * 3))


@pytest.mark.parametrize("baseline", [wh.LossBaseline(), wh.MarginBaseline(), wh.Neighbours(k=2), wh.Similarity(),
                                      wh.NeighbourShapley(k=2)])  # fmt: skip
def test_a_row_that_is_not_finite_is_named(baseline: Any) -> None:
    model, train = nan_model()
    with pytest.raises(wh.NumericalError, match="for example 4"):
        baseline.fit(wh.Task(model), train).suspicion()


@pytest.mark.parametrize("baseline", [wh.Neighbours(k=2), wh.Similarity(), wh.NeighbourShapley(k=2), wh.LossBaseline()])
def test_labels_of_one_logit_may_have_a_column(baseline: Any) -> None:
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0.0, 1.0] * 3, dtype=torch.float64)
    task = wh.Task(nn.Linear(3, 1).double(), "binary_cross_entropy")
    flat, column = (baseline.fit(task, (x, labels)).scores((x, labels)).values for labels in (y, y[:, None]))
    torch.testing.assert_close(flat, column)


def test_a_label_that_is_no_class_is_named() -> None:
    train = torch.randn(4, 3), torch.tensor([0, 1, 5, 0])
    with pytest.raises(wh.DataError, match=r"positions 0 … 1, got 5 for example 2"):
        wh.MarginBaseline().fit(wh.Task(nn.Linear(3, 2)), train)
    with pytest.raises(wh.DataError, match=r"positions 0 … 1, got 5 for example 2"):
        wh.el2n([wh.Task(nn.Linear(3, 2))], train)
