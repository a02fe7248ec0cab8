"""Edits: each step is the gradient step it says, in the direction that undoes or raises, and what stops it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import whence as wh

TEXTS = [
    *["He works. Office work pays him. He runs the office."] * 8,
    *["She stays home. Home food keeps her. She cooks at home."] * 8,
    *["She works. He stays home."] * 2,
    *["The dog sleeps all day. The cat sleeps all night."] * 4,
]
WEAT = wh.WEAT(targets=(["he", "him"], ["she", "her"]), attributes=(["works", "office"], ["stays", "home"]))


@pytest.fixture(scope="module")
def words() -> wh.WordEmbedding:
    corpus = wh.word_corpus(TEXTS, min_count=1, subsample=None, window=2)
    return wh.train_words(corpus, width=8, epochs=30)


@pytest.fixture(scope="module")
def scores(words: wh.WordEmbedding) -> wh.Scores:
    assert words.corpus is not None
    return wh.Influence(curvature=wh.Identity()).fit(words.task(WEAT), words.corpus.examples).scores()


def summed_loss(words: wh.WordEmbedding, model: torch.nn.Module, ids: np.ndarray) -> torch.Tensor:
    """The training loss by hand: logits one pair at a time."""
    assert words.corpus is not None
    examples = words.corpus.examples
    (centres, noise), y = examples.fetch(examples.rows_of(ids))
    assert y is not None
    total = torch.zeros((), dtype=torch.float64)
    window = words.corpus.window
    offsets = [place for place in range(-window, window + 1) if place]
    for i, sentence in enumerate(centres.tolist()):
        for t, word in enumerate(sentence):
            v = model.inputs.weight[word].double()
            others = [sentence[t + o] if 0 <= t + o < len(sentence) else 0 for o in offsets] + noise[i, 0].tolist()
            for k, other in enumerate(others):
                weight = float(y[i, t, k])
                if weight:
                    logit = v @ model.outputs.weight[other].double()
                    total = total + abs(weight) * torch.nn.functional.softplus(-logit if weight > 0 else logit)
    return total


@pytest.mark.parametrize("direction", ["undo", "raise"])
@pytest.mark.parametrize("by", ["both", "ascent", "descent"])
def test_a_step_is_the_gradient_step_of_the_summed_losses(
    words: wh.WordEmbedding, scores: wh.Scores, direction: str, by: str
) -> None:
    rate = 0.02
    settings = wh.EditSettings(by=by, steps=1, rate=rate, harm=float("inf"))  # type: ignore[arg-type]
    found = wh.edit(words, WEAT, scores, k=3, direction=direction, settings=settings)  # type: ignore[arg-type]
    lowers, raises = scores.bottom(3)["id"].to_numpy(), scores.top(3)["id"].to_numpy()
    falls = (WEAT.effect(words) > 0) == (direction == "undo")
    up, down = (lowers, raises) if falls else (raises, lowers)
    assert found.up.tolist() == ([] if by == "descent" else up.tolist())
    assert found.down.tolist() == ([] if by == "ascent" else down.tolist())
    model = copy.deepcopy(words.model)
    loss = torch.zeros((), dtype=torch.float64)
    for ids, sign in ((found.up, -1), (found.down, 1)):
        if len(ids):
            loss = loss + sign * summed_loss(words, model, ids)
    parameters = list(model.parameters())
    for moved, old, gradient in zip(
        found.words.model.parameters(), parameters, torch.autograd.grad(loss, parameters), strict=True
    ):
        assert torch.allclose(moved, old - rate * gradient, atol=1e-6)
    assert found.trace["step"].tolist() == [0, 1]
    assert found.trace["measurement"].tolist() == [WEAT.effect(words), WEAT.effect(found.words)]


def test_undo_comes_to_zero_and_raise_goes_away_from_it(words: wh.WordEmbedding, scores: wh.Scores) -> None:
    before, state = WEAT.effect(words), copy.deepcopy(words.model.state_dict())
    assert abs(before) > 0.3
    for by, share in (("both", 0.7), ("ascent", 0.7), ("descent", 1.0)):  # fitted examples have little left to learn
        settings = wh.EditSettings(by=by, rate=0.03, harm=float("inf"))  # type: ignore[arg-type]
        undone = wh.edit(words, WEAT, scores, k=10, settings=settings)
        assert abs(WEAT.effect(undone.words)) < share * abs(before)
        if undone.stopped == "reached":
            assert undone.trace["measurement"].iloc[-1] * before <= 0 < undone.trace["measurement"].iloc[-2] * before
    raised = wh.edit(words, WEAT, scores, k=5, direction="raise", settings=wh.EditSettings(steps=10))
    assert WEAT.effect(raised.words) * np.sign(before) > abs(before)
    assert raised.stopped == "steps"
    assert raised.trace["up"].iloc[-1] > raised.trace["up"].iloc[0]
    assert raised.trace["down"].iloc[-1] < raised.trace["down"].iloc[0]
    assert all(torch.equal(state[name], value) for name, value in words.model.state_dict().items())
    assert repr(raised).startswith("Edit(raise: ")


def test_an_edit_stops_before_it_harms_the_rest(words: wh.WordEmbedding, scores: wh.Scores) -> None:
    settings = wh.EditSettings(rate=0.05, steps=200, harm=0.05)
    found = wh.edit(words, WEAT, scores, k=5, direction="raise", settings=settings)
    assert found.stopped == "harm"
    others = found.trace["others"]
    assert others.iloc[-1] <= 1.05 * others.iloc[0]
    assert found.trace["measurement"].iloc[-1] == WEAT.effect(found.words), "the step that harmed was taken back"
    more = wh.EditSettings(rate=0.05, steps=len(found.trace), harm=float("inf"))
    further = wh.edit(words, WEAT, scores, k=5, direction="raise", settings=more).trace
    assert further["others"].iloc[-1] > 1.05 * others.iloc[0]


def test_the_opposite_test_is_edited_alike(words: wh.WordEmbedding, scores: wh.Scores) -> None:
    """An effect of the other sign is undone by the same steps."""
    other = wh.WEAT(targets=(WEAT.targets[1], WEAT.targets[0]), attributes=WEAT.attributes)
    turned = wh.Scores(values=-scores.values, query_ids=scores.query_ids, ids=scores.ids, unit=scores.unit)
    one, two = wh.edit(words, WEAT, scores, k=4), wh.edit(words, other, turned, k=4)
    assert sorted(one.up) == sorted(two.up) and sorted(one.down) == sorted(two.down)
    assert np.allclose(one.trace["measurement"], -two.trace["measurement"], atol=1e-5)


def test_what_is_refused(words: wh.WordEmbedding, scores: wh.Scores, tmp_path: object) -> None:
    for settings, message in (
        ({"by": "all"}, "by must be"), ({"steps": 0}, "steps must be at least 1"), ({"rate": 0.0}, "rate positive"),
        ({"harm": -1.0}, "harm must be zero or positive"),
    ):  # fmt: skip
        with pytest.raises(wh.ConfigError, match=message):
            wh.EditSettings(**settings)  # type: ignore[arg-type]
    with pytest.raises(wh.ConfigError, match="direction must be"):
        wh.edit(words, WEAT, scores, k=1, direction="lower")  # type: ignore[arg-type]
    for k in (0, len(scores.ids)):
        with pytest.raises(wh.ConfigError, match="k must be between 1 and half"):
            wh.edit(words, WEAT, scores, k=k)
    two = wh.Scores(values=scores.values.repeat(2, 1), query_ids=np.array(["a", "b"]), ids=scores.ids, unit=None)
    with pytest.raises(wh.ConfigError, match="scores must be of one measurement"):
        wh.edit(words, WEAT, two, k=1)
    part = wh.Scores(values=scores.values[:, 1:], query_ids=scores.query_ids, ids=scores.ids[1:], unit=None)
    with pytest.raises(wh.DataError, match="scores must be of the"):
        wh.edit(words, WEAT, part, k=1)
    bare = wh.WordEmbedding(model=words.model)
    with pytest.raises(wh.DataError, match="words must carry the corpus"):
        wh.edit(bare, WEAT, scores, k=1)
