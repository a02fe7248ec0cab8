"""Groups that go, come or weigh more: exact where the objective is quadratic, closer to retraining where it is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracle
import whence as wh
import zoo

COUNT, DECAY = 40, 0.1


class Ridge:
    """Weighted least squares with weight decay on all parameters, solved in closed form."""

    def __init__(self, kept: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(COUNT + 9, 4, generator=generator, dtype=torch.float64)
        self.y = torch.randn(COUNT + 9, 3, generator=generator, dtype=torch.float64) + self.x[:, :1]
        self.kept = kept
        self.full = self.solve(torch.arange(COUNT + 9) < COUNT)
        self.model = nn.Linear(4, 3).double()
        with torch.no_grad():
            self.model.weight.copy_(self.full[:4].T)
            self.model.bias.copy_(self.full[4])
        settings: dict[str, Any] = {"weight_decay": DECAY} if kept == "mean" else {"total_decay": DECAY * COUNT}
        self.task = wh.Task(self.model, "mse", **settings)
        self.train = self.x[:COUNT], self.y[:COUNT]
        self.phantoms = wh.as_examples((self.x[COUNT:], self.y[COUNT:]), ids=[f"new {i}" for i in range(9)])

    def solve(self, weights: Tensor) -> Tensor:
        """Minimise Σ w_i mean_c (f − y)² + λ/2 (Σ w_i or N) ‖θ‖²; return θ [I, C]."""
        w = weights.double()
        a = torch.cat([self.x, torch.ones(len(self.x), 1, dtype=torch.float64)], 1)
        decay = DECAY * (float(w.sum()) if self.kept == "mean" else COUNT)
        gram = 2 / 3 * a.T @ (w[:, None] * a) + decay * torch.eye(5, dtype=torch.float64)
        return torch.linalg.solve(gram, 2 / 3 * a.T @ (w[:, None] * self.y))

    def weights(self, **changed: Any) -> Tensor:
        w = (torch.arange(COUNT + 9) < COUNT).double()
        for rows, value in changed.values():
            w[rows] = value
        return w

    def attribution(self, curvature: Any) -> wh.InfluenceAttribution:
        return wh.Influence(curvature=curvature, dtype=torch.float64).fit(self.task, self.train)


def joined(change: dict[str, Tensor]) -> Tensor:
    return torch.cat([change["weight"].T, change["bias"][None]])


@pytest.mark.parametrize("kept", ["mean", "total"])
@pytest.mark.parametrize("curvature", [wh.Exact(), wh.CG(damping=0.0, tolerance=1e-13)])
def test_the_second_order_is_exact_for_ridge(curvature: Any, kept: str) -> None:
    ridge = Ridge(kept)
    attribution = ridge.attribution(curvature)
    group = list(range(12))
    cases = [
        ({"ids": group}, ridge.weights(a=(group, 0.0))),
        ({"ids": group, "weight": -1 / COUNT}, ridge.weights(a=(group, 0.0))),
        ({"ids": group, "weight": 1 / COUNT}, ridge.weights(a=(group, 2.0))),
        ({"ids": range(20), "weight": 0.5 / COUNT}, ridge.weights(a=(slice(0, 20), 1.5))),
        ({"phantoms": ridge.phantoms}, ridge.weights(a=(slice(COUNT, None), 1.0))),
        ({"ids": [3, 5], "phantoms": ridge.phantoms},
         ridge.weights(a=([3, 5], 0.0), b=(slice(COUNT, None), 1.0))),
    ]  # fmt: skip
    for arguments, weights in cases:
        actual = ridge.solve(weights) - ridge.full
        found = joined(attribution.parameter_change(**arguments, order=2))
        torch.testing.assert_close(found, actual, rtol=1e-8, atol=1e-11)
        first = joined(attribution.parameter_change(**arguments))
        assert float((first - actual).norm() / actual.norm()) > 1e-3  # it is the order that makes it exact


@pytest.mark.parametrize("kept", ["mean", "total"])
def test_the_loss_without_a_group_is_exact_for_ridge(kept: str) -> None:
    ridge = Ridge(kept)
    queries = ridge.x[COUNT:], ridge.y[COUNT:]
    scores = ridge.attribution(wh.Exact()).group_scores({"a": range(12), "b": [20]}, queries, order=2)
    a = torch.cat([queries[0], torch.ones(9, 1, dtype=torch.float64)], 1)
    before = (a @ ridge.full - queries[1]).square().mean(1)
    for column, rows in enumerate([list(range(12)), [20]]):
        after = (a @ ridge.solve(ridge.weights(a=(rows, 0.0))) - queries[1]).square().mean(1)
        torch.testing.assert_close(scores.values[:, column], after - before, rtol=1e-8, atol=1e-11)
    assert scores.unit == "squared target"
    assert scores.ids.tolist() == ["a", "b"]


def test_up_weighting_is_the_derivative() -> None:
    """To first order a weight ε moves the parameters by −ε H⁻¹g, the same for both signs; small steps agree."""
    ridge = Ridge("mean")
    attribution = ridge.attribution(wh.Exact())
    small = 1e-6 / COUNT
    up, down = (joined(attribution.parameter_change([7], weight=sign * small)) for sign in (1, -1))
    torch.testing.assert_close(up, -down)
    actual = ridge.solve(ridge.weights(a=([7], 1 + 1e-6))) - ridge.full
    torch.testing.assert_close(up, actual, rtol=1e-5, atol=1e-14)
    removal = joined(attribution.parameter_change([7], weight=-1 / COUNT))
    torch.testing.assert_close(removal * COUNT / (COUNT - 1), joined(attribution.parameter_change([7])))


def test_phantoms() -> None:
    """An example that is there already has the phantom's score; its addition moves by what its score says."""
    case, queries = zoo.make("mlp", count=12), zoo.make("mlp", count=4, seed=1)
    attribution = wh.Influence(curvature=wh.Exact(damping=0.1)).fit(wh.Task(case.model, weight_decay=0.05), case.train)
    twins = wh.as_examples((case.inputs[[2, 7]], case.targets[[2, 7]]), ids=["twin of 2", "twin of 7"])
    scores = attribution.phantom_scores(twins, queries.train)
    torch.testing.assert_close(scores.values, attribution.scores(queries.train).values[:, [2, 7]])
    assert scores.ids.tolist() == ["twin of 2", "twin of 7"]
    change = oracle.flatten(case.model, attribution.parameter_change(phantoms=twins, weight=1 / 12))
    queried = oracle.per_example_gradients(case.model, oracle.cross_entropy, *queries.train)
    torch.testing.assert_close(-(queried @ change), scores.values.sum(1))
    added = attribution.parameter_change(phantoms=twins)
    torch.testing.assert_close(oracle.flatten(case.model, added), change * 12 / 14)


@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
def test_the_newton_step_is_dense_algebra(name: str) -> None:
    case = zoo.make(name, count=12)
    attribution = wh.Influence(curvature=wh.Exact(damping=0.1)).fit(wh.Task(case.model, weight_decay=0.05), case.train)
    group = [1, 4, 9]
    whole = oracle.gauss_newton(case.model, oracle.cross_entropy, *case.train)
    inputs = case.inputs[group]
    part = oracle.gauss_newton(case.model, oracle.cross_entropy, inputs, case.targets[group])
    eye = torch.eye(len(whole), dtype=torch.float64)
    matrix = 12 * (whole + 0.15 * eye) - 3 * (part + 0.05 * eye)
    weights = oracle.flatten(case.model, {key: p.detach() for key, p in case.model.named_parameters()})
    gradients = oracle.per_example_gradients(case.model, oracle.cross_entropy, inputs, case.targets[group])
    expected = torch.linalg.solve(matrix, gradients.sum(0) + 3 * 0.05 * weights)
    found = oracle.flatten(case.model, attribution.parameter_change(group, order=2))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
    again = wh.Influence(curvature=wh.Exact(damping=0.1), batch_size=1).fit(attribution.task, case.train)
    torch.testing.assert_close(oracle.flatten(case.model, again.parameter_change(group[::-1], order=2)), found)


def test_five_percent_of_real_images() -> None:
    """Softmax regression on pictures: the second order is closer to real retraining than the first."""
    x, y = pictures()
    train, queries = (x[:400], y[:400]), (x[400:], y[400:])
    recipe = wh.Recipe(build=lambda: nn.Linear(49, 10), optimizer="lbfgs", weight_decay=0.01, gradient_norm=1e-8)
    examples = wh.as_examples(train)
    model = recipe.train(examples)
    attribution = wh.Influence(curvature=wh.Exact()).fit(recipe.task(model), examples)
    random = np.random.default_rng(0).choice(400, 20, replace=False).tolist()
    hard = np.argsort(-np.asarray(attribution.leave_one_out().fitted_losses))[:20].tolist()
    one_class = torch.nonzero(train[1] == 3)[:20, 0].tolist()
    groups = {"random": random, "hard": hard, "class": one_class}
    first = attribution.group_scores(groups, queries).values
    second = attribution.group_scores(groups, queries, order=2).values
    for column, group in enumerate(groups.values()):
        refit = recipe.train(examples, exclude=group, start=model)
        actual = losses(refit, *queries) - losses(model, *queries)
        errors = [float((found[:, column] - actual).norm() / actual.norm()) for found in (first, second)]
        assert errors[1] < errors[0], errors
        moved = {key: refit.state_dict()[key] - value for key, value in model.state_dict().items()}
        steps = [attribution.parameter_change(group, order=order) for order in (1, 2)]
        far = [sum(float((step[key] - moved[key]).square().sum()) for key in moved) for step in steps]
        assert far[1] < far[0], far


def pictures() -> tuple[Tensor, Tensor]:
    """Return 430 pictures of Fashion-MNIST as means of 4 × 4 pixels [430, 49] in float64, and their labels."""
    with np.load(Path(__file__).parents[2] / "examples" / "data" / "fashion_mnist_1000.npz") as stored:
        means = stored["x"][:430].reshape(430, 7, 4, 7, 4).mean((2, 4)).reshape(430, 49) / 255
        labels = stored["y"][:430].astype(np.int64)
    return torch.from_numpy(means), torch.from_numpy(labels)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y, reduction="none")


def test_bad_edits() -> None:
    ridge = Ridge("mean")
    attribution = ridge.attribution(wh.Exact())
    with pytest.raises(wh.ConfigError, match="between 1 and 39 examples, got 0"):
        attribution.parameter_change()
    with pytest.raises(wh.ConfigError, match="between 1 and 39 examples, got 40"):
        attribution.parameter_change(range(COUNT))
    with pytest.raises(wh.ConfigError, match="order must be 1 or 2, got 3"):
        attribution.parameter_change([0], order=3)  # type: ignore[arg-type]
    for arguments in ({"weight": float("nan")}, {"weight": 0.1, "phantoms": ridge.phantoms}):
        with pytest.raises(wh.ConfigError, match="weight must be a finite number"):
            attribution.parameter_change([0], **arguments)
    with pytest.raises(wh.ConfigError, match="must have a curvature"):
        ridge.attribution(wh.Identity()).parameter_change([0], order=2)
    with pytest.raises(wh.ConfigError, match="total_decay must be zero or positive"):
        dataclasses.replace(ridge.task, total_decay=-1.0)
    with pytest.raises(wh.ConfigError, match=r"parameters of the model \(\['bias', 'weight'\]\), got 'b': 0"):
        dataclasses.replace(ridge.task, decay_factors={"b": 0})


def test_a_curvature_that_does_not_hold_the_group_is_refused() -> None:
    """A diagonal may be smaller than the group's own curvature: then there is no Newton step to take."""
    generator = torch.Generator().manual_seed(1)
    x = torch.ones(10, 6, dtype=torch.float64) + 0.01 * torch.randn(10, 6, generator=generator, dtype=torch.float64)
    task = wh.Task(nn.Linear(6, 1).double(), "mse")
    attribution = wh.Influence(curvature=wh.Diagonal(damping=1e-6)).fit(task, (x, x[:, 0]))
    with pytest.raises(wh.NumericalError, match="without the group must be positive definite"):
        attribution.parameter_change(range(9), order=2)
