"""Scores and leave-one-out predictions against closed forms and real retraining.

Sign, unit and 1/n are what these tests fix: score = (measurement without i) − (measurement with i), in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import whence as wh

COUNT = 40


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


class Ridge:
    """Linear least squares with weight decay (the bias is decayed too), solved in closed form."""

    def __init__(self, outputs: int, decay: float, bias: bool = True) -> None:
        generator = torch.Generator().manual_seed(outputs)
        self.x = torch.randn(COUNT, 4, generator=generator, dtype=torch.float64)
        self.y = torch.randn(COUNT, outputs, generator=generator, dtype=torch.float64) + self.x[:, :1]
        self.decay, self.bias = decay, bias
        self.queries = torch.randn(6, 4, generator=generator, dtype=torch.float64)
        self.model = nn.Linear(4, outputs, bias=bias).double()
        solution = self.solve(torch.arange(COUNT))
        with torch.no_grad():
            self.model.weight.copy_(solution[:4].T)
            if bias:
                self.model.bias.copy_(solution[4])

    def design(self, x: Tensor) -> Tensor:
        return with_one(x) if self.bias else x

    def solve(self, rows: Tensor) -> Tensor:
        """Minimise mean_i mean_c (f_c − y_c)² + λ/2 ‖θ‖² over some rows; return θ [I, C]."""
        a, y = self.design(self.x[rows]), self.y[rows]
        scale = 2.0 / (len(rows) * y.shape[1])
        gram = scale * a.T @ a + self.decay * torch.eye(a.shape[1], dtype=a.dtype)
        return torch.linalg.solve(gram, scale * a.T @ y)

    def without(self, row: int) -> Tensor:
        return self.solve(torch.tensor([i for i in range(COUNT) if i != row]))

    def attribution(self, **settings: Any) -> wh.InfluenceAttribution:
        task = wh.Task(self.model, "mse", weight_decay=self.decay, **settings)
        return wh.Influence(curvature=wh.Exact()).fit(task, (self.x, self.y))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_least_squares_is_exact(outputs: int, bias: bool) -> None:
    """Without weight decay the corrected score of a linear measurement is the real change, to rounding."""
    ridge = Ridge(outputs, 0.0, bias)
    attribution = ridge.attribution(measurement=lambda model, batch: model(batch.inputs).sum(1))
    scores = attribution.scores(ridge.queries, leverage_corrected=True).values
    held_out = attribution.leave_one_out()
    full = ridge.design(ridge.queries) @ ridge.solve(torch.arange(COUNT))
    for row in range(COUNT):
        theta = ridge.without(row)
        actual = (ridge.design(ridge.queries) @ theta - full).sum(1)
        torch.testing.assert_close(scores[:, row], actual, rtol=1e-8, atol=1e-10)
        outputs_of = ridge.design(ridge.x[row : row + 1]) @ theta
        torch.testing.assert_close(held_out.outputs[row : row + 1], outputs_of, rtol=1e-8, atol=1e-10)
        assert held_out.losses[row] == pytest.approx(float((outputs_of - ridge.y[row]).square().mean()), rel=1e-8)
    a = ridge.design(ridge.x)
    hat = (a @ torch.linalg.inv(a.T @ a) @ a.T).diagonal()
    np.testing.assert_allclose(held_out.leverage, hat, rtol=1e-8)
    torch.testing.assert_close(held_out.fitted_outputs, a @ ridge.solve(torch.arange(COUNT)))
    assert held_out.unit == "squared target"


@pytest.mark.parametrize("decay", [0.01, 0.3, 3.0])
def test_ridge_is_exact_but_for_the_decay_of_one_example(decay: float) -> None:
    """Retraining drops λ of one example too: the exact Hessian is nH − H_i − λI, the corrected score has nH − H_i.

    The dense formula with the λ term is the real change to rounding; the library's differs from it by at most
    1/(n − 1), relative, in every eigendirection.
    """
    ridge = Ridge(2, decay)
    attribution = ridge.attribution(measurement=lambda model, batch: model(batch.inputs).sum(1))
    scores = attribution.scores(ridge.queries, leverage_corrected=True).values
    plain = attribution.scores(ridge.queries).values
    a, q, full = ridge.design(ridge.x), ridge.design(ridge.queries), ridge.solve(torch.arange(COUNT))
    eye = torch.eye(5, dtype=torch.float64)
    hessian = a.T @ a / COUNT + decay * eye  # 2/C = 1
    actual, exact = torch.empty_like(scores), torch.empty_like(scores)
    for row in range(COUNT):
        actual[:, row] = (q @ (ridge.without(row) - full)).sum(1)
        residual = a[row] @ full - ridge.y[row]
        removal = torch.outer(a[row], residual) + decay * full
        corrected = COUNT * hessian - torch.outer(a[row], a[row])
        exact[:, row] = (q @ torch.linalg.solve(corrected - decay * eye, removal)).sum(1)
        ours = (q @ torch.linalg.solve(corrected, removal)).sum(1)
        torch.testing.assert_close(scores[:, row], ours, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(exact, actual, rtol=1e-8, atol=1e-11)
    error = float((scores - actual).norm() / actual.norm())
    assert error <= 1.5 / (COUNT - 1)
    assert error < 0.5 * float((plain - actual).norm() / actual.norm()) or decay > 1


def slope(actual: np.ndarray, predicted: np.ndarray) -> float:
    """Return the least-squares slope of actual on predicted, with an intercept."""
    return float(np.polyfit(predicted.reshape(-1), actual.reshape(-1), 1)[0])


def correlation(actual: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.corrcoef(actual.reshape(-1), predicted.reshape(-1))[0, 1])


@pytest.fixture(scope="module")
def softmax() -> dict[str, Any]:
    """Softmax regression with noisy labels, and real refits without each of 40 random rows."""
    generator = torch.Generator().manual_seed(0)
    count, classes = 240, 4
    x = torch.randn(count + 20, 6, generator=generator, dtype=torch.float64)
    centres = torch.randn(classes, 6, generator=generator, dtype=torch.float64)
    y = (x @ centres.T + torch.randn(count + 20, classes, generator=generator, dtype=torch.float64)).argmax(1)
    train, queries = wh.as_examples((x[:count], y[:count])), (x[count:], y[count:])
    recipe = wh.Recipe(
        build=lambda: nn.Linear(6, classes), optimizer="lbfgs", weight_decay=0.01, gradient_norm=2e-8
    )  # fmt: skip
    model = recipe.train(train)
    rows = np.random.default_rng(0).choice(count, 40, replace=False)
    refits = [recipe.train(train, exclude=[row], start=model) for row in rows.tolist()]
    return {"recipe": recipe, "model": model, "train": train, "queries": queries, "rows": rows, "refits": refits}


def losses(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y, reduction="none").numpy()


def test_softmax_regression_against_refits(softmax: dict[str, Any]) -> None:
    attribution = wh.Influence(curvature=wh.Exact()).fit(softmax["recipe"].task(softmax["model"]), softmax["train"])
    base = losses(softmax["model"], *softmax["queries"])
    actual = np.stack([losses(refit, *softmax["queries"]) - base for refit in softmax["refits"]], 1)
    plain = attribution.scores(softmax["queries"]).values[:, softmax["rows"]].numpy()
    corrected = attribution.scores(softmax["queries"], leverage_corrected=True).values[:, softmax["rows"]].numpy()
    assert correlation(actual, plain) > 0.99
    assert 0.99 < slope(actual, plain) < 1.12
    assert correlation(actual, corrected) > 0.999
    assert 0.98 < slope(actual, corrected) < 1.02
    assert abs(float(np.polyfit(corrected.reshape(-1), actual.reshape(-1), 1)[1])) < 0.02 * actual.std()
    assert np.linalg.norm(actual - corrected) < 0.6 * np.linalg.norm(actual - plain)


def test_self_scores_and_leave_one_out_against_refits(softmax: dict[str, Any]) -> None:
    attribution = wh.Influence(curvature=wh.Exact()).fit(softmax["recipe"].task(softmax["model"]), softmax["train"])
    batch = softmax["train"].batch(softmax["rows"])
    own = losses(softmax["model"], batch.inputs, batch.targets)
    held = np.array([losses(refit, batch.inputs, batch.targets)[i] for i, refit in enumerate(softmax["refits"])])
    with torch.no_grad():
        outputs = torch.stack([refit(batch.inputs)[i] for i, refit in enumerate(softmax["refits"])])
    predicted = attribution.leave_one_out()
    np.testing.assert_allclose(predicted.fitted_losses[softmax["rows"]], own, rtol=1e-9)
    rise = (predicted.losses - predicted.fitted_losses)[softmax["rows"]]
    assert slope(held - own, rise) == pytest.approx(1, abs=0.03)
    moved = (outputs - predicted.fitted_outputs[softmax["rows"]]).numpy()
    foreseen = (predicted.outputs - predicted.fitted_outputs)[softmax["rows"]].numpy()
    assert np.linalg.norm(moved - foreseen) < 0.05 * np.linalg.norm(moved)
    plain = np.asarray(attribution.self_scores())[softmax["rows"]]
    corrected = np.asarray(attribution.self_scores(leverage_corrected=True))[softmax["rows"]]
    assert np.abs(held - own - corrected).sum() < np.abs(held - own - plain).sum()
    assert ((predicted.leverage >= 0) & (predicted.leverage < 1)).all()


def test_group_removal_against_a_refit(softmax: dict[str, Any]) -> None:
    attribution = wh.Influence(curvature=wh.Exact()).fit(softmax["recipe"].task(softmax["model"]), softmax["train"])
    group = softmax["rows"][:12].tolist()
    refit = softmax["recipe"].train(softmax["train"], exclude=group, start=softmax["model"])
    base = losses(softmax["model"], *softmax["queries"])
    actual = losses(refit, *softmax["queries"]) - base
    predicted = attribution.group_scores({"twelve": group}, softmax["queries"]).values[:, 0].numpy()
    assert correlation(actual, predicted) > 0.98
    assert 0.9 < slope(actual, predicted) < 1.25
    change = attribution.parameter_change(group)
    before, after = softmax["model"].state_dict(), refit.state_dict()
    moved = torch.cat([(after[key] - before[key]).flatten() for key in ("weight", "bias")])
    foreseen = torch.cat([change["weight"].flatten(), change["bias"]])
    assert float(torch.cosine_similarity(moved, foreseen, 0)) > 0.98


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "binary_cross_entropy": lambda f: (f[:, 0] > 0).double(),
    "smooth_hinge": lambda f: (f[:, 0] > 0).double(),
}


@pytest.mark.parametrize("name, settings", [("binary_cross_entropy", {}), ("smooth_hinge", {"temperature": 0.5})])
def test_other_losses_against_refits(name: str, settings: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(150, 4, generator=generator, dtype=torch.float64)
    y = LOSSES[name](x + torch.randn(150, 1, generator=generator, dtype=torch.float64))
    train, queries = wh.as_examples((x[:120], y[:120])), (x[120:], y[120:])
    loss = name if not settings else wh.tasks.SmoothHinge(**settings)
    recipe = wh.Recipe(
        build=lambda: nn.Linear(4, 1), loss=loss, optimizer="lbfgs", weight_decay=0.02, gradient_norm=2e-8
    )
    model = recipe.train(train)
    task = recipe.task(model)
    attribution = wh.Influence(curvature=wh.Exact()).fit(task, train)
    rows = list(range(0, 120, 8))

    def measured(of: nn.Module) -> np.ndarray:
        batch = wh.as_examples(queries).batch(np.arange(30))
        return task.with_model(of).losses(batch).detach().numpy()

    refits = [recipe.train(train, exclude=[row], start=model) for row in rows]
    actual = np.stack([measured(refit) - measured(model) for refit in refits], 1)
    corrected = attribution.scores(queries, leverage_corrected=True).values[:, rows].numpy()
    assert correlation(actual, corrected) > 0.999
    assert 0.97 < slope(actual, corrected) < 1.03


def test_an_example_that_fixes_its_own_prediction_stays_finite() -> None:
    """A feature that only one example has: leverage is near 1 and is bounded."""
    x = torch.zeros(20, 3, dtype=torch.float64)
    x[:, 0] = torch.linspace(-1, 1, 20)
    x[7, 2] = 100.0
    y = (x[:, 0] > 0).long()
    recipe = wh.Recipe(build=lambda: nn.Linear(3, 2), optimizer="lbfgs", weight_decay=1e-4, gradient_norm=1e-9)
    train = wh.as_examples((x, y))
    attribution = wh.Influence(curvature=wh.Exact()).fit(recipe.task(recipe.train(train)), train)
    held_out = attribution.leave_one_out()
    assert np.isfinite(held_out.losses).all()
    assert (held_out.leverage < 1).all()
    assert torch.isfinite(attribution.scores(train, leverage_corrected=True).values).all()
