"""Leaving out and retraining, against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ridge
import torch
from torch import nn

import whence as wh
from whence.errors import ConfigError, DataError, RunFormatError
from whence.evaluate import Retraining, leave_group_out, leave_one_out, retraining
from whence.methods.dense import inverse_root

GROUPS = {"first": ["row0", "row1", "row2"], "one": ["row7"], "most": [f"row{i}" for i in range(20)]}


@pytest.mark.parametrize(("recipe", "tolerance"), [(ridge.recipe(), 1e-10), (ridge.descending(), 1e-6)])
def test_ridge_is_reproduced(recipe: wh.Recipe, tolerance: float) -> None:
    train, queries = ridge.problem()
    every = np.ones(len(train), dtype=bool)
    full = ridge.losses(train, queries, every)
    ids = ["row3", "row11", "row29", "row0"]
    found = leave_one_out(Retraining(recipe=recipe), train, queries, ids)
    groups = leave_group_out(Retraining(recipe=recipe), train, queries, GROUPS)
    for scores, sets in ((found, [[id_] for id_ in ids]), (groups, list(GROUPS.values()))):
        for column, removed in enumerate(sets):
            kept = every.copy()
            kept[train.rows_of(removed)] = False
            truth = ridge.losses(train, queries, kept) - full
            np.testing.assert_allclose(scores.values[:, column], truth, rtol=tolerance, atol=tolerance)
    assert found.ids.tolist() == ids and groups.ids.tolist() == list(GROUPS)
    assert found.query_ids.tolist() == queries.ids.tolist()
    assert found.unit == "squared target" and found.standard_error is None


def test_a_measurement_of_the_model_alone() -> None:
    train, _ = ridge.problem()
    settings = Retraining(recipe=ridge.recipe(), measurement=lambda model: model.weight.square().sum())
    found = leave_one_out(settings, train, None, ["row3"])
    batch = train.batch(np.arange(len(train)))
    weights = torch.ones(len(train))
    full = ridge.solve(batch.inputs, batch.targets, weights).square().sum()
    weights[3] = 0
    without = ridge.solve(batch.inputs, batch.targets, weights).square().sum()
    np.testing.assert_allclose(found.values, [[without - full]], rtol=1e-9)
    assert found.query_ids.tolist() == ["model"] and found.unit is None


def network(*, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))


def classified(count: int = 40) -> wh.Examples:
    generator = torch.Generator().manual_seed(1)
    return wh.as_examples((torch.randn(count, 6, generator=generator), torch.arange(count) % 3))


SETTINGS = {
    "adam": {"optimizer": "adam", "weight_decay": 0.01},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "one_cycle"},
    "sgd": {"optimizer": "sgd", "schedule": "cosine", "learning_rate": 0.1},
    "augmented": {"augment": lambda x, generator: x + 0.1 * torch.randn(x.shape, generator=generator)},
    "dropout": {"build": lambda: network(dropout=0.4)},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("warm", [False, True])
def test_stacked_training_is_that_of_the_recipe(name: str, warm: bool) -> None:
    recipe = wh.Recipe(**{"build": network, "epochs": 4, "batch_size": 16, "learning_rate": 0.01, **SETTINGS[name]})
    train = classified()
    start = recipe.train(train, seed=9) if warm else None
    removed = [[], [0, 5], list(range(20)), [39]]
    one = Retraining(recipe=recipe, seeds=(0, 3), start=start).measure(train, train, removed)
    for stack in (2, 3, 8):
        many = Retraining(recipe=recipe, seeds=(0, 3), start=start, stack=stack).measure(train, train, removed)
        torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(one[:, 0], one[:, 1], atol=1e-3)


def test_the_standard_error_is_that_of_the_mean_over_seeds() -> None:
    train = classified()
    recipe = wh.Recipe(build=network, epochs=2, learning_rate=0.01)
    singles = [leave_one_out(Retraining(recipe=recipe, seeds=(s,)), train, train, [3, 4]).values for s in (0, 1, 2)]
    found = leave_one_out(Retraining(recipe=recipe, seeds=(0, 1, 2)), train, train, [3, 4])
    stacked = torch.stack(singles).numpy()
    np.testing.assert_allclose(found.values, stacked.mean(0), atol=1e-12)
    assert found.standard_error is not None
    np.testing.assert_allclose(found.standard_error, stacked.std(0, ddof=1) / 3**0.5, atol=1e-12)
    assert "standard_error" in found.top(1).columns


def test_processes_give_the_same_results() -> None:
    train, queries = ridge.problem()
    single = Retraining(recipe=ridge.recipe(), seeds=(0, 1)).measure(train, queries, [[], ["row1"], ["row2"]])
    settings = Retraining(recipe=ridge.recipe(), seeds=(0, 1), processes=2)
    assert torch.equal(settings.measure(train, queries, [[], ["row1"], ["row2"]]), single)


def tanh_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("processes", [1, 2])
def test_warm_exact_training_ends_where_it_did(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm start is preconditioned once; the gradient norm, and so the result, is that of the recipe's training."""
    recipe = wh.Recipe(build=tanh_network, optimizer="lbfgs", weight_decay=0.05, gradient_norm=3e-8)
    train = classified()
    start = recipe.train(train)
    removed = [[], [3], [4, 5], list(range(10))]
    roots: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        roots.append(1)
        return inverse_root(*args, **kwargs)

    monkeypatch.setattr(retraining, "inverse_root", counted)
    found = Retraining(recipe=recipe, start=start, processes=processes).measure(train, train, removed)
    for row, ids in enumerate(removed):
        task = recipe.task(recipe.train(train, exclude=ids, start=start))
        wanted = task.measurements(task.place(train.batch(np.arange(len(train)))))
        torch.testing.assert_close(found[row, 0], wanted.detach(), rtol=0, atol=2e-6)
    assert len(roots) == 1, "the curvature is factored once"


def test_functions_that_cannot_travel_are_named() -> None:
    train, queries = ridge.problem()
    settings = Retraining(recipe=ridge.descending(), processes=2)
    with pytest.raises(ConfigError, match="importable"):
        settings.measure(train, queries, [["row1"], ["row2"]])


class Counting:
    """A training loop that counts and can break off; neither changes what it returns."""

    fingerprint = "closed form"

    def __init__(self, limit: int) -> None:
        self.done, self.limit = 0, limit

    def __call__(self, *args: object, **kwargs: object) -> nn.Module:
        if self.done == self.limit:
            raise KeyboardInterrupt
        self.done += 1
        return ridge.closed_form(*args, **kwargs)  # type: ignore[arg-type]


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    train, queries = ridge.problem()
    removed = [[], ["row1"], ["row2"], ["row3", "row4"]]
    loop = Counting(3)
    seen: list[tuple[int, int]] = []
    settings = Retraining(
        recipe=wh.Recipe(train=loop, loss="mse"), cache=tmp_path / "cache", progress=lambda *at: seen.append(at)
    )
    with pytest.raises(KeyboardInterrupt):
        settings.measure(train, queries, removed)
    loop.limit = 100
    found = settings.measure(train, queries, removed)
    assert loop.done == 4, "what was done is not done twice"
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    fresh = Retraining(recipe=wh.Recipe(train=Counting(100), loss="mse")).measure(train, queries, removed)
    assert torch.equal(found, fresh)
    changed = train.with_targets(torch.zeros(len(train), 1, dtype=torch.float64))
    settings.measure(changed, queries, removed)
    assert loop.done == 8, "other data has other results"
    settings.measure(train, queries, [["row4", "row3"]])
    assert loop.done == 8, "a set has no order"
    next((tmp_path / "cache").iterdir()).write_bytes(b"broken")
    with pytest.raises(RunFormatError, match="Delete it"):
        settings.measure(train, queries, removed)
        settings.measure(changed, queries, removed)


def test_refusals() -> None:
    train, queries = ridge.problem()
    settings = Retraining(recipe=ridge.recipe())
    with pytest.raises(DataError, match="row99"):
        leave_one_out(settings, train, queries, ["row99"])
    with pytest.raises(ConfigError, match="at least one example"):
        leave_group_out(settings, train, queries, {"none": []})
    with pytest.raises(ConfigError, match="leave some examples"):
        settings.measure(train, queries, [train.ids])
    with pytest.raises(ConfigError, match="seeds"):
        Retraining(recipe=ridge.recipe(), seeds=(1, 1))
    with pytest.raises(ConfigError, match="processes"):
        Retraining(recipe=ridge.recipe(), processes=0)
    with pytest.raises(ConfigError, match="stack=1"):
        Retraining(recipe=ridge.recipe(), stack=2).measure(train, queries, [[]])
    normed = wh.Recipe(build=lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)))
    with pytest.raises(ConfigError, match="buffers"):
        Retraining(recipe=normed, stack=2).measure(classified(), classified(), [[]])
