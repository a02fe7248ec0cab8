"""A small BERT trained on real text messages: masks of its own for every message, and one query shared by many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from turnover_samples import bert, masked_messages

import whence as wh
from whence.data import Batch
from whence.tasks import masks


@pytest.fixture(scope="module")
def fitted() -> tuple[wh.TurnOverAttribution, list[float]]:
    losses: list[float] = []
    train = wh.as_examples(masked_messages(40), ids=[f"sms {number}" for number in range(40)])
    recipe = wh.Recipe(build=bert, outputs=wh.turn_over_outputs, epochs=60, batch_size=10, learning_rate=3e-3)
    found = wh.TurnOver(seeds=(0,)).fit(recipe, train)
    masked = found.tasks[0].model
    recipe.train(train, start=masked, on_epoch=lambda *seen: losses.append(seen[2]))
    return found, losses


def test_it_learns_the_messages(fitted: tuple[wh.TurnOverAttribution, list[float]]) -> None:
    found, losses = fitted
    assert losses[-1] < 0.4
    assert found.self_scores().values.mean() > 0.05, "what was trained on is known better than what was not"


def test_scores_are_those_of_the_messages_repeated(fitted: tuple[wh.TurnOverAttribution, list[float]]) -> None:
    """Every pair by two plain calls of the model, one message each."""
    found, _ = fitted
    model, train = found.tasks[0].model.eval(), found.examples
    queries, labels = masked_messages(3, seed=20)
    scores = found.scores((queries, labels))
    for i in (0, 11, 39):
        for q in range(3):
            losses = []
            for flipped in (True, False):
                with torch.no_grad(), masks(model, train.keys[i : i + 1], flipped=flipped):
                    logits = model(**{name: tensor[q : q + 1] for name, tensor in queries.items()}).logits
                losses.append(float(F.cross_entropy(logits, labels[q : q + 1])))
            assert float(scores.values[q, i]) == pytest.approx(losses[0] - losses[1], abs=2e-5)


def test_a_loss_of_ones_own_gets_the_same(fitted: tuple[wh.TurnOverAttribution, list[float]]) -> None:
    found, _ = fitted

    def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        assert batch.targets is not None
        return F.cross_entropy(model(**batch.inputs).logits, batch.targets, reduction="none")

    queries = masked_messages(2, seed=20)
    own = wh.TurnOver(batch_size=16).fit(wh.Task(found.tasks[0].model, loss), found.examples).scores(queries)
    np.testing.assert_allclose(own.values, found.scores(queries).values, atol=2e-5)
