"""Tokens as examples, and the class-based reduction over tags, against gradients that autograd gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import whence as wh


class Tagger(nn.Module):
    """Reads a sequence both ways; every token sees its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.mix = nn.Linear(12, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words)
        left, right = torch.roll(x, 1, 1), torch.roll(x, -1, 1)
        return self.out(torch.tanh(self.mix(torch.cat([left, x, right], -1))))


def sentences(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 9, (count, 6), generator=generator)
    tags = words % 3
    length = torch.randint(2, 7, (count, 1), generator=generator)
    return words, torch.where(torch.arange(6)[None] < length, tags, -100)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tagger().double()


def gradients(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, np.ndarray]:
    """Gradient and tag of every labelled token, by autograd on that token's loss alone."""
    rows, tags = [], []
    for words, given in zip(*data, strict=True):
        logs = model(words[None])[0].log_softmax(-1)
        for place, tag in enumerate(given.tolist()):
            if tag != -100:
                found = torch.autograd.grad(-logs[place, tag], list(model.parameters()), retain_graph=True)
                rows.append(torch.cat([part.flatten() for part in found]))
                tags.append(tag)
    return torch.stack(rows), np.array(tags)


def test_every_labelled_token_is_an_example_of_its_own(model: nn.Module) -> None:
    data = sentences(7, 1)
    found = wh.tokens(data)
    assert len(found) == int((data[1] != -100).sum()) and repr(found) == f"Tokens({len(found)} of 7 sequences)"
    task = wh.Task(model, "cross_entropy")
    whole = wh.as_examples(data)
    alone = torch.cat([task.losses(batch).detach() for batch in found.examples.batches(5)])
    summed = torch.zeros(7, dtype=alone.dtype).index_add(0, torch.from_numpy(found.sequences), alone)
    torch.testing.assert_close(summed, task.losses(whole.batch(np.arange(7))).detach())
    assert found.examples.ids[0] == "0:0" and (data[1].numpy()[found.sequences, found.positions] == found.tags).all()


def test_token_scores_and_their_reduction_are_those_of_autograd(model: nn.Module) -> None:
    train, reference = sentences(8, 2), sentences(5, 3)
    task = wh.Task(model, "cross_entropy")
    g, _ = gradients(model, train)
    r, tags = gradients(model, reference)
    truth = (r @ g.T / len(g)).numpy()
    fitted = wh.Influence(curvature=wh.Identity()).fit(task, wh.tokens(train).examples)
    got = fitted.scores(wh.tokens(reference).examples).values.numpy()
    np.testing.assert_allclose(got, truth, rtol=1e-9, atol=1e-12)
    means = np.stack([truth[tags == c].mean(0) for c in range(3)])
    found = wh.class_based_tokens(fitted, reference)
    np.testing.assert_allclose(found.values, -means.min(0), rtol=1e-9, atol=1e-12)
    assert found.ids.tolist() == wh.tokens(train).examples.ids.tolist()
    plain = wh.class_based_tokens(fitted, wh.tokens(reference), reduction="mean")
    np.testing.assert_allclose(plain.values, -truth.mean(0), rtol=1e-9, atol=1e-12)
    other = np.arange(30).reshape(5, 6) % 2
    own = wh.tokens(reference)
    by = other[own.sequences, own.positions]
    halves = np.stack([truth[by == c].mean(0) for c in range(2)])
    for given in (other, by):
        np.testing.assert_allclose(
            wh.class_based_tokens(fitted, reference, tags=given).values, -halves.min(0), rtol=1e-9, atol=1e-12
        )


def test_tokens_of_a_sequence_add_up_to_it_and_rows_of_sequences_work_too(model: nn.Module) -> None:
    train, reference = sentences(6, 4), sentences(4, 5)
    task = wh.Task(model, "cross_entropy")
    fitted = wh.Influence(curvature=wh.EKFAC()).fit(task, train)
    own = wh.tokens(reference)
    alone = fitted.scores(own.examples).values
    whole = torch.zeros(4, 6, dtype=alone.dtype).index_add(0, torch.from_numpy(own.sequences), alone)
    torch.testing.assert_close(whole, fitted.scores(reference).values, rtol=1e-9, atol=1e-12)
    means = np.stack([alone.numpy()[own.tags == c].mean(0) for c in np.unique(own.tags)])
    np.testing.assert_allclose(wh.class_based_tokens(fitted, reference).values, -means.min(0), rtol=1e-9, atol=1e-12)


def test_a_token_with_a_wrong_tag_harms_most() -> None:
    words, tags = sentences(60, 6)
    wrong = tags.clone()
    wrong[3, 1] = (tags[3, 1] + 1) % 3
    recipe = wh.Recipe(build=Tagger, epochs=30, learning_rate=0.02, batch_size=16)
    fitted = wh.GradientDot().fit(recipe.task(recipe.train((words, wrong), seed=0)), wh.tokens((words, wrong)).examples)
    harm = wh.class_based_tokens(fitted, sentences(40, 7))
    assert harm.ids[int(np.argmax(harm.values))] == "3:1"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: wh.tokens((torch.zeros(2, 3), torch.tensor([0, 1]))), wh.ConfigError, r"\[N, T\]"),
        (lambda: wh.tokens(torch.zeros(2, 3)), wh.ConfigError, "got none"),
        (lambda: wh.tokens((torch.zeros(2, 3), torch.full((2, 3), -100))), wh.DataError, "labelled tokens"),
        (lambda: wh.class_based_tokens(None, sentences(3, 0), tags=[1, 2]), wh.DataError, "one a token"),
    ],
)
def test_what_it_refuses(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
