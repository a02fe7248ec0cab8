"""Cleansing drops what the validation set calls harmful; learning curves separate what was seen from what was not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import whence as wh


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Dropout(), nn.Linear(48, 2))


def converted() -> nn.Module:
    return wh.turn_over(build())


def data(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator)
    return x, (x[:, 0] + x[:, 1] > 0).long()


def test_rows_of_another_rule_are_dropped_and_accuracy_rises() -> None:
    x, y = data(200, 0)
    odd = np.arange(200) % 5 == 0
    mixed = wh.as_examples((x, torch.where(torch.from_numpy(odd), 1 - y, y)), ids=[f"r{i}" for i in range(200)])
    recipe = wh.Recipe(build=build, epochs=40, learning_rate=1e-2)
    fitted = wh.TurnOver(seeds=range(8)).fit(recipe, mixed)
    found = wh.cleanse(fitted, data(100, 1), share=0.2)
    assert len(found.dropped) == 40
    assert odd[mixed.rows_of(found.dropped)].mean() > 0.5
    assert sorted([*found.kept, *found.dropped]) == sorted(mixed.ids)
    assert list(found.harm.values[mixed.rows_of(found.dropped)]) == sorted(found.harm.values)[::-1][:40]
    held, labels = data(500, 2)
    accuracy = [
        float((model(held).argmax(1) == labels).float().mean())
        for model in (recipe.train(mixed), found.retrain(recipe, mixed))
    ]
    assert accuracy[1] > accuracy[0]


def test_only_harmful_rows_are_dropped() -> None:
    values = torch.tensor([[0.4, -0.2, 0.1, 0.3], [0.2, -0.2, 0.3, 0.1]])
    scores = wh.Scores(values=values, query_ids=np.arange(2), ids=np.array(["a", "b", "c", "d"]), unit=None)
    found = wh.cleanse(scores, share=0.5)
    assert found.dropped.tolist() == ["b"]
    np.testing.assert_allclose(found.harm.values, -values.mean(0), rtol=1e-6)
    with pytest.raises(wh.ConfigError, match="share must lie between"):
        wh.cleanse(scores, share=1.0)


def test_the_unseen_curve_stands_for_test_data() -> None:
    x, y = data(80, 0)
    noisy = (x, torch.where(torch.arange(80) % 6 == 0, 1 - y, y))
    held, labels = data(300, 3)
    test = (held, torch.where(torch.arange(300) % 6 == 0, 1 - labels, labels))
    recipe = wh.Recipe(build=converted, outputs=wh.turn_over_outputs, epochs=40, learning_rate=1e-2)
    curves = wh.SeenUnseen(recipe, noisy, test, every=2)
    model = recipe.train(wh.as_examples(noisy), on_epoch=curves)
    frame = curves.to_frame()
    assert frame.index.tolist() == list(range(2, 41, 2))
    assert frame["unseen"].iloc[-1] > frame["seen"].iloc[-1]
    assert curves.correlation("test") == pytest.approx(np.corrcoef(frame["unseen"], frame["test"])[0, 1])
    assert curves.correlation() == pytest.approx(np.corrcoef(frame["unseen"], frame["test_parts"])[0, 1])
    assert curves.correlation() > 0.8
    plain = recipe.train(wh.as_examples(noisy))
    assert all(torch.equal(v, plain.state_dict()[n]) for n, v in model.state_dict().items()), "measuring changed it"
    last = nn.functional.cross_entropy(model(test[0]), test[1])
    assert frame["test"].iloc[-1] == pytest.approx(float(last.detach()), rel=1e-5)


def test_curves_that_say_nothing_are_refused() -> None:
    recipe = wh.Recipe(build=converted, outputs=wh.turn_over_outputs, epochs=1)
    with pytest.raises(wh.ConfigError, match="every must be"):
        wh.SeenUnseen(recipe, data(5, 0), every=0)
    with pytest.raises(wh.ConfigError, match="at least 3 epochs"):
        wh.SeenUnseen(recipe, data(5, 0)).correlation()
    assert wh.SeenUnseen(recipe, data(5, 0)).to_frame().empty


def test_another_training_begins_other_curves() -> None:
    recipe = wh.Recipe(build=converted, outputs=wh.turn_over_outputs, epochs=2)
    curves = wh.SeenUnseen(recipe, data(20, 0))
    for seed in (0, 1):
        recipe.train(data(20, 0), seed=seed, on_epoch=curves)
    assert curves.to_frame().index.tolist() == [1, 2]
    alone = wh.SeenUnseen(recipe, data(20, 0))
    recipe.train(data(20, 0), seed=1, on_epoch=alone)
    assert curves.to_frame().equals(alone.to_frame())
