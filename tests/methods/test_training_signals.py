"""Signals of training by hand: early errors, forgetting, out-of-fold losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import whence as wh


def rows(count: int = 30, prefix: str = "t") -> wh.Examples:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (count,), generator=generator)
    return wh.as_examples((x, y), ids=[f"{prefix}{i}" for i in range(count)])


def linear() -> nn.Module:
    return nn.Linear(4, 3).double()


TRAIN = rows()
WHOLE = TRAIN.batch(np.arange(30))


def test_el2n_is_the_mean_norm_of_the_error() -> None:
    tasks = []
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        tasks.append(wh.Task(linear()))
    errors = torch.stack([
        (task.model(WHOLE.inputs).softmax(1) - F.one_hot(WHOLE.targets, 3)).norm(dim=1).detach() for task in tasks
    ])  # fmt: skip
    found = wh.el2n(tasks, TRAIN)
    np.testing.assert_allclose(found.values, errors.mean(0))
    assert found.standard_error is not None
    np.testing.assert_allclose(found.standard_error, errors.std(0) / 3**0.5)
    assert found.ids.tolist() == TRAIN.ids.tolist() and wh.el2n(tasks[:1], TRAIN).standard_error is None
    recipe = wh.Recipe(build=linear, epochs=1)
    trained = [recipe.task(recipe.train(TRAIN, seed=seed)) for seed in (3, 4)]
    np.testing.assert_array_equal(wh.el2n(recipe, TRAIN, seeds=(3, 4)).values, wh.el2n(trained, TRAIN).values)
    with pytest.raises(wh.ConfigError, match="at least one"):
        wh.el2n([], TRAIN)


def test_el2n_of_one_logit_is_that_of_two() -> None:
    one, two = nn.Linear(4, 1).double(), nn.Linear(4, 2).double()
    with torch.no_grad():
        two.weight.copy_(torch.cat([torch.zeros_like(one.weight), one.weight]))
        two.bias.copy_(torch.cat([torch.zeros_like(one.bias), one.bias]))
    labels = (WHOLE.targets > 0).double()
    single = wh.el2n([wh.Task(one, "binary_cross_entropy")], (WHOLE.inputs, labels[:, None]))
    np.testing.assert_allclose(single.values, wh.el2n([wh.Task(two)], (WHOLE.inputs, labels.long())).values)


class Scripted(nn.Module):
    """Predicts what a table says for the epoch that it is in."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)  # [E, N] predicted classes
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        now = self.table[(self.steps - 1).clamp(min=0), x[:, 0].long()]
        return F.one_hot(now, 2).double() * 5 + self.weight


def test_forgetting_counts_the_falls_from_right_to_wrong() -> None:
    right = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])  # by example
    labels = torch.tensor([0, 1, 0, 1])
    table = torch.where(right.T.bool(), labels, 1 - labels)
    recipe = wh.Recipe(build=lambda: Scripted(table), optimizer="sgd", epochs=4, batch_size=4)
    found = wh.forgetting(recipe, (torch.arange(4.0, dtype=torch.float64)[:, None], labels))
    assert found.values.tolist() == [0, 2, 0, 4]
    with pytest.raises(wh.ConfigError, match="by epochs"):
        wh.forgetting(wh.Recipe(train=lambda examples, **_: linear()), TRAIN)


def test_out_of_fold_losses_are_of_models_without_the_fold() -> None:
    recipe = wh.Recipe(build=linear, optimizer="lbfgs", weight_decay=0.1, gradient_norm=1e-8)
    both = wh.out_of_fold(recipe, TRAIN, folds=3, seed=1)
    found = both.loss
    np.testing.assert_allclose(F.cross_entropy(both.outputs, WHOLE.targets, reduction="none"), found.values)
    order = np.random.default_rng(0).permutation(30)
    other = wh.out_of_fold(recipe, TRAIN.select(order), folds=3, seed=1).loss
    np.testing.assert_allclose(other.values, found.values[order], rtol=1e-5)
    fold_of = []
    own = F.cross_entropy(recipe.train(TRAIN)(WHOLE.inputs), WHOLE.targets, reduction="none").detach().numpy()
    assert found.unit == "nats" and found.values.mean() > own.mean()

    class Watching(wh.Recipe):
        def train(self, examples: wh.Examples, **settings: object) -> nn.Module:  # type: ignore[override]
            fold_of.append(set(TRAIN.ids.tolist()) - set(examples.ids.tolist()))
            return super().train(examples, **settings)  # type: ignore[arg-type]

    wh.out_of_fold(Watching(build=linear, epochs=1), TRAIN, folds=3, seed=1)
    assert sorted(id_ for held in fold_of for id_ in held) == sorted(TRAIN.ids.tolist())
    for held in fold_of:
        model = recipe.train(TRAIN.select(np.flatnonzero(~np.isin(TRAIN.ids, list(held)))), seed=1)
        rows_held = TRAIN.rows_of(sorted(held))
        truth = F.cross_entropy(model(WHOLE.inputs[rows_held]), WHOLE.targets[rows_held], reduction="none")
        np.testing.assert_allclose(found.values[rows_held], truth.detach(), rtol=1e-6)
        counts = np.bincount(WHOLE.targets[rows_held], minlength=3)
        assert (abs(counts - np.bincount(WHOLE.targets, minlength=3) / 3) < 1).all()
    for folds in (1, 31):
        with pytest.raises(wh.ConfigError, match="folds must lie"):
            wh.out_of_fold(recipe, TRAIN, folds=folds)


def test_tasks_of_estimators_see_their_own_rows() -> None:
    x = 100 * np.random.default_rng(0).normal(size=(30, 3))
    y = np.array(["ham", "spam"] * 15)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    p = pipeline.predict_proba(x)
    truth = np.linalg.norm(p - np.eye(2)[(y == "spam").astype(int)], axis=1)
    np.testing.assert_allclose(wh.el2n([wh.Task.from_sklearn(pipeline)], (x, y)).values, truth, rtol=1e-9)


def test_checkpoints_of_a_recipes_own_optimiser_know_its_step_size() -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 0.25)

    recipe = wh.Recipe(build=lambda: nn.Linear(3, 2), optimizer=optimizer, epochs=2)
    run = wh.record_checkpoints(recipe, (torch.randn(8, 3), torch.arange(8) % 2), count=2)
    assert run.learning_rates == (0.25, 0.25)
