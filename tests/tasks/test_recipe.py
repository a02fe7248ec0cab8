"""Recipes: leaving out is weight 0, the same seed is the same model, global random states stay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from whence.data import Examples, as_examples
from whence.errors import ConfigError, DataError, NumericalError
from whence.tasks import Recipe

COUNT = 40


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def jitter(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


RECIPES: dict[str, Recipe] = {
    "adam": Recipe(build=build, epochs=3, batch_size=16, learning_rate=0.01, weight_decay=0.1),
    "adamw": Recipe(build=build, optimizer="adamw", epochs=3, batch_size=16, schedule="one_cycle", weight_decay=0.1),
    "sgd": Recipe(build=build, optimizer="sgd", epochs=3, batch_size=7, learning_rate=0.1, schedule="cosine"),
    "augmented": Recipe(build=build, epochs=2, batch_size=16, augment=jitter),
    "own optimiser": Recipe(build=build, epochs=2, optimizer=lambda p: torch.optim.Adagrad(p, 0.01)),
    "lbfgs": Recipe(build=lambda: nn.Linear(5, 3), optimizer="lbfgs", weight_decay=0.05, gradient_norm=1e-8),
}
each = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def data(dtype: torch.dtype = torch.float32) -> Examples:
    case = zoo.make("linear", count=COUNT, dtype=dtype)
    return as_examples(case.train, ids=[f"e{i}" for i in range(COUNT)])


def state(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).double() for p in model.parameters()])


@each
def test_the_same_seed_is_the_same_model(recipe: Recipe) -> None:
    one, same, other = recipe.train(data(), seed=1), recipe.train(data(), seed=1), recipe.train(data(), seed=2)
    assert torch.equal(state(one), state(same))
    assert not torch.equal(state(one), state(other))
    assert not any(module.training for module in one.modules())
    assert all(p.grad is None for p in one.parameters())


@each
def test_global_random_states_stay(recipe: Recipe) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state()
    recipe.train(data(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.rand(2), np.random.RandomState(3).rand(2))


@each
def test_leaving_out_is_weight_zero(recipe: Recipe) -> None:
    """And the left-out example's label no longer matters."""
    weights = torch.ones(COUNT)
    weights[[3, 9]] = 0
    left_out = recipe.train(data(), exclude=["e3", "e9"], seed=1)
    assert torch.equal(state(left_out), state(recipe.train(data(), weights=weights, seed=1)))
    labels = data().targets
    assert labels is not None
    changed = labels.clone()
    changed[[3, 9]] = (changed[[3, 9]] + 1) % 3
    assert torch.equal(state(left_out), state(recipe.train(data(), exclude=["e9", "e3"], labels=changed, seed=1)))
    assert not torch.equal(state(left_out), state(recipe.train(data(), seed=1)))
    assert bool((weights[[0, 1]] == 1).all())


@each
def test_labels_replace_targets(recipe: Recipe) -> None:
    examples = data()
    assert examples.targets is not None
    labels = (examples.targets + 1) % 3
    relabelled = as_examples((examples.batch(np.arange(COUNT)).inputs, labels))
    assert torch.equal(state(recipe.train(examples, labels=labels)), state(recipe.train(relabelled)))


@each
def test_a_start_is_used_and_not_changed(recipe: Recipe) -> None:
    start = recipe.train(data(), seed=5)
    start.train()
    kept = copy.deepcopy(start)
    trained = recipe.train(data(), start=start, exclude=["e1"])
    assert torch.equal(state(start), state(kept))
    assert start.training
    assert not torch.equal(state(trained), state(kept))
    assert not trained.training


def test_lbfgs_forgets_its_start() -> None:
    recipe = RECIPES["lbfgs"]
    start = nn.Linear(5, 3)
    torch.testing.assert_close(state(recipe.train(data(), start=start)), state(recipe.train(data())), atol=1e-6, rtol=0)


def test_lbfgs_reaches_the_gradient_norm() -> None:
    recipe, examples = RECIPES["lbfgs"], data(torch.float64)
    weights = torch.ones(COUNT, dtype=torch.float64)
    weights[3], weights[5] = 0.0, 2.5
    model = recipe.train(examples, exclude=["e3"], weights=torch.where(weights == 0, 1.0, weights))
    batch = examples.batch(np.arange(COUNT))
    losses = nn.functional.cross_entropy(model(batch.inputs), batch.targets, reduction="none")
    parameters = list(model.parameters())
    objective = (weights * losses).sum() / weights.sum() + 0.025 * sum(p.square().sum() for p in parameters)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(objective, parameters)])
    assert float(gradient.norm()) <= 1e-8
    assert parameters[0].dtype == torch.float64


def test_lbfgs_says_when_it_does_not_converge() -> None:
    separable = (torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]))
    recipe = Recipe(build=lambda: nn.Linear(1, 2), optimizer="lbfgs", gradient_norm=1e-300)
    with pytest.raises(NumericalError, match=r"gradient norm must reach 1e-300, got .* after"):
        recipe.train(as_examples(separable))
    broken = (torch.tensor([[float("nan")], [1.0]]), torch.tensor([0, 1]))
    with pytest.raises(NumericalError, match="gradient norm must reach"):
        Recipe(build=lambda: nn.Linear(1, 2), optimizer="lbfgs", weight_decay=0.1).train(as_examples(broken))


def test_a_loss_that_grows_without_bound_is_named() -> None:
    recipe = Recipe(build=lambda: nn.Linear(5, 1), loss="mse", optimizer="sgd", learning_rate=1e6, epochs=20)
    case = zoo.make("linear", count=COUNT, dtype=torch.float32)
    with pytest.raises(NumericalError, match=r"training loss must stay finite.*in epoch \d+.*learning rate"):
        recipe.train(as_examples((case.inputs, case.inputs[:, 0])))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_is_that_of_the_objective(optimizer: Any) -> None:
    """Full batches and small steps end where L-BFGS does."""
    exact = RECIPES["lbfgs"]
    recipe = Recipe(build=lambda: nn.Linear(5, 3), optimizer=optimizer, epochs=1500, batch_size=COUNT,
                    weight_decay=0.05, learning_rate=0.03, schedule="cosine")  # fmt: skip
    torch.testing.assert_close(state(recipe.train(data())), state(exact.train(data())), atol=2e-3, rtol=0)
    assert recipe.task(nn.Linear(5, 3)).weight_decay == 0.05
    assert RECIPES["adamw"].task(nn.Linear(5, 3)).weight_decay == 0.0


def test_steps_count_steps_of_the_optimiser() -> None:
    seen: list[int] = []
    recipe = Recipe(build=build, batch_size=4, steps=5)
    examples = data()
    model = recipe.train(examples, on_epoch=lambda epoch, *_: seen.append(epoch))
    each = -(-len(examples) // 4)
    assert seen == list(range(1, -(-5 // each) + 1))
    whole = Recipe(build=build, batch_size=4, epochs=1).train(examples)
    same = Recipe(build=build, batch_size=4, steps=each).train(examples)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


def test_a_clipped_step_is_as_long_as_the_clip() -> None:
    recipe = Recipe(build=build, optimizer="sgd", momentum=0.0, learning_rate=1.0, steps=1, clip=1e-3)
    start = build()
    model = recipe.train(data(), start=start)
    moved = [(a - b).detach() for a, b in zip(model.parameters(), start.parameters(), strict=True)]
    assert float(torch.cat([m.reshape(-1) for m in moved]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_epochs_are_reported() -> None:
    seen: list[tuple[int, float]] = []
    recipe = RECIPES["adam"]
    recipe.train(data(), on_epoch=lambda epoch, model, loss: seen.append((epoch, loss)))
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert all(np.isfinite(loss) for _, loss in seen)


def test_watching_changes_nothing() -> None:
    def watch(epoch: int, model: nn.Module, loss: float) -> None:
        model.eval()
        torch.rand(5)
        model(torch.zeros(1, 5))

    recipe = RECIPES["adam"]
    assert torch.equal(state(recipe.train(data(), on_epoch=watch)), state(recipe.train(data())))


def test_a_whole_loop_of_the_users() -> None:
    calls: list[dict[str, Any]] = []

    def loop(examples: Examples, **settings: Any) -> nn.Module:
        calls.append(settings)
        torch.rand(3)
        return nn.Linear(5, 3).train()

    recipe = Recipe(train=loop, weight_decay=0.1)
    before = torch.get_rng_state()
    start = nn.Linear(5, 3)
    torch.set_rng_state(before)
    model = recipe.train(data(), exclude=["e0"], seed=7, start=start)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert calls[0]["seed"] == 7
    assert calls[0]["start"] is start
    assert calls[0]["weights"].tolist() == [0.0] + [1.0] * (COUNT - 1)
    assert torch.equal(state(recipe.train(data(), seed=7)), state(model))


@pytest.mark.parametrize(
    "settings, error, match",
    [
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ConfigError, r"labels must have one entry a row \(40\), got 3"),
        ({"weights": torch.ones(3)}, ConfigError, r"weights must have one entry a row \(40\), got 3"),
        ({"weights": torch.zeros(COUNT)}, ConfigError, "positive weight"),
        ({"weights": -torch.ones(COUNT)}, ConfigError, "weights must be"),
        ({"weights": torch.full((COUNT,), float("nan"))}, ConfigError, "weights must be"),
        ({"exclude": [f"e{i}" for i in range(COUNT)]}, ConfigError, "positive weight"),
        ({"exclude": ["nobody"]}, DataError, "'nobody'"),
    ],
)
def test_what_training_refuses(settings: dict[str, Any], error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        RECIPES["adam"].train(data(), **settings)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: Recipe(), "either build= .*or train="),
        (lambda: Recipe(build=build, train=build), "either build= .*or train="),
        (lambda: Recipe(build=build, optimizer="lamb"), "'lamb'"),  # type: ignore[arg-type]
        (lambda: Recipe(build=build, schedule="step"), "'step'"),  # type: ignore[arg-type]
        (lambda: Recipe(build=build, epochs=0), "epochs must be at least 1"),
        (lambda: Recipe(build=build, batch_size=0), "batch_size must be at least 1"),
        (lambda: Recipe(build=build, learning_rate=0.0), "learning_rate"),
        (lambda: Recipe(build=build, learning_rate=float("nan")), "learning_rate"),
        (lambda: Recipe(build=build, gradient_norm=-1.0), "gradient_norm"),
        (lambda: Recipe(build=build, weight_decay=-1.0), "weight_decay"),
    ],
)
def test_settings_are_checked(make: Callable[[], Recipe], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_schedules_stay_in_range(schedule: Any) -> None:
    recipe = Recipe(build=build, schedule=schedule)
    rates = [recipe.rate(progress) for progress in np.linspace(0.01, 1.0, 50)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(rates) > 0.95
    if schedule != "constant":
        assert rates[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam", "lbfgs"])
def test_decay_factors_hold_by_parameter(name: Any) -> None:
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.arange(40) % 2

    def build() -> nn.Module:
        return nn.Linear(3, 2).double()

    settings: dict[str, Any] = {"optimizer": name, "weight_decay": 0.3, "learning_rate": 0.05, "epochs": 400}
    model = Recipe(build=build, decay_factors={"bias": 0.0}, batch_size=40, **settings).train((x, y))
    task = Recipe(build=build, decay_factors={"bias": 0.0}, **settings).task(model)
    assert task.decay_of("bias") == 0.0 and task.decay_of("weight") == 0.3
    loss = F.cross_entropy(x @ model.weight.T + model.bias, y)
    weight, bias = torch.autograd.grad(loss, [model.weight, model.bias])
    assert (weight + 0.3 * model.weight).norm() < 1e-3  # where the objective with these factors is least
    assert bias.norm() < 1e-3


def test_factors_of_parameters_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="decay_factors"):
        Recipe(build=lambda: nn.Linear(3, 2), decay_factors={"head": 0.0}).train((torch.randn(4, 3), torch.ones(4)))


def test_batch_normalisations_are_never_given_one_example() -> None:
    sizes: list[int] = []

    class Noting(nn.BatchNorm1d):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            sizes.append(len(inputs))
            return super().forward(inputs)

    def normalised() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), Noting(4), nn.Linear(4, 2))

    x, y = torch.randn(25, 3), torch.arange(25) % 2
    Recipe(build=normalised, batch_size=8, epochs=1).train((x, y))
    assert sizes == [8, 8, 9]
    sizes.clear()
    Recipe(build=normalised, batch_size=8, steps=4).train((x, y))
    assert sizes == [8, 8, 9, 8]


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="must have parameters to train"):
        Recipe(build=lambda: nn.Linear(3, 2).requires_grad_(False)).train((torch.randn(4, 3), torch.arange(4) % 2))
