"""A ridge probe that follows the encoder: its value, its gradient, what it does not see, and real retraining."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

import whence as wh

COUNT, ALPHA, DECAY = 30, 0.05, 0.05


def data(count: int = COUNT, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    return x, torch.arange(count) % 3


def encoder(seed: int = 0, code: int = 2) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, code)).double()


def batch(x: Tensor, y: Tensor | None) -> wh.Batch:
    examples = wh.as_examples(x if y is None else (x, y))
    return examples.batch(np.arange(len(x)))


@pytest.mark.parametrize("kind", ["classes", "numbers", "one number"])
def test_values_are_those_of_scikit_learns_ridge(kind: str) -> None:
    model, (x, y), (asked, wanted) = encoder(), data(), data(7, 1)
    one_hot = np.eye(3)
    numbers: dict[str, tuple[Any, Any]] = {
        "classes": (y, wanted), "numbers": (torch.randn(COUNT, 2), torch.randn(7, 2)),
        "one number": (torch.randn(COUNT), torch.randn(7)),
    }  # fmt: skip
    targets, queries = numbers[kind]
    dense, dense_asked = (one_hot[t] if kind == "classes" else t.double().numpy().reshape(len(t), -1)
                          for t in (targets, queries))  # fmt: skip
    with torch.no_grad():
        codes, asked_codes = model(x).numpy(), model(asked).numpy()
        found = wh.RidgeProbe((x, targets), weight_decay=ALPHA)(model, batch(asked, queries))
    fitted = Ridge(alpha=ALPHA * COUNT).fit(codes, dense)
    expected = ((fitted.predict(asked_codes).reshape(dense_asked.shape) - dense_asked) ** 2).sum(1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("code", [1, 2, 6])  # with 6 of 5 units the covariance has no full rank
def test_moved_and_rotated_codes_change_nothing_and_the_gradient_does_not_see_them(code: int) -> None:
    model, probe, asked = encoder(code=code), wh.RidgeProbe(data(), weight_decay=ALPHA), batch(*data(7, 1))
    before = probe(model, asked)
    gradients = [torch.autograd.grad(one, list(model.parameters()), retain_graph=True) for one in before]
    last = model[-1]
    generator = torch.Generator().manual_seed(2)
    turning = torch.randn(code, code, dtype=torch.float64, generator=generator)
    turning = turning - turning.T
    for _, _, weight, bias in gradients:  # along a turn of the codes, d(W, b) = A (W, b), and along a move of b
        slope = (weight * (turning @ last.weight)).sum() + (bias * (turning @ last.bias)).sum()
        assert abs(slope.item()) < 1e-12
        assert float(bias.abs().max()) < 1e-12
    with torch.no_grad():
        turn = torch.linalg.matrix_exp(turning)
        last.weight.copy_(turn @ last.weight)
        last.bias.copy_(turn @ last.bias + 3)
    torch.testing.assert_close(probe(model, asked), before, rtol=1e-10, atol=0)


def test_gradient_is_that_of_differences_and_goes_through_the_probes_weights() -> None:
    model, probe, asked = encoder(), wh.RidgeProbe(data(), weight_decay=ALPHA), batch(*data(1, 1))
    weight = model[0].weight
    found = torch.autograd.grad(probe(model, asked).sum(), weight)[0][1, 2]
    values = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            weight[1, 2] += step
            values.append(probe(model, asked).item())
    assert float(found) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def squared_products(model: nn.Module, batch: wh.Batch) -> Tensor:
    """A loss of inner products of the codes of two views: it does not see rotations."""
    codes = model(batch.inputs)  # [B, 2, d]
    wanted = (batch.inputs[:, 0] * batch.inputs[:, 1]).sum(1)
    return ((codes[:, 0] * codes[:, 1]).sum(1) - wanted).square()


def test_retraining_moves_it_as_predicted() -> None:
    """Every example in turn weighs 2 % less; the codes are free to turn, which is no obstacle here."""
    x, _ = data()
    views = torch.stack([x, x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))], 1)
    recipe = wh.Recipe(
        build=encoder, loss=squared_products, optimizer="lbfgs", weight_decay=DECAY, gradient_norm=1e-6
    )  # fmt: skip
    model, queries, probe = recipe.train(views), data(7, 1), wh.RidgeProbe(data(), weight_decay=ALPHA)
    attribution = wh.Influence(curvature=wh.CG(damping=1e-6, hessian=True, tolerance=1e-8)).fit(
        recipe.task(model, probe), views
    )
    predicted = attribution.scores(queries).values[:, :8] * 0.02
    asked = batch(*queries)
    columns = []
    for row in range(8):
        weights = torch.ones(COUNT)
        weights[row] -= 0.02
        columns.append(probe(recipe.train(views, weights=weights, start=model), asked) - probe(model, asked))
    actual = torch.stack(columns, 1).detach()
    assert float((actual - predicted).norm() / actual.norm()) < 0.05


def test_results_by_id_do_not_depend_on_batches_or_order() -> None:
    x, y = data()
    task = wh.Task(encoder(), "mse", measurement=wh.RidgeProbe((x, y)), weight_decay=DECAY)
    attribution = wh.Influence(curvature=wh.Exact()).fit(task, (x, x[:, :2]))
    expected = attribution.scores((x[:5], y[:5])).values
    turned = wh.RidgeProbe((x.flip(0), y.flip(0)))
    again = wh.Influence(curvature=wh.Exact(), batch_size=7).fit(task.with_model(task.model), (x, x[:, :2]))
    for row in range(5):
        torch.testing.assert_close(again.scores((x[row : row + 1], y[row : row + 1])).values[0], expected[row])
    torch.testing.assert_close(turned(task.model, batch(x, y)), wh.RidgeProbe((x, y))(task.model, batch(x, y)))


def test_codes_are_named_and_models_in_half_precision_are_solved_in_float32() -> None:
    model, (x, y) = encoder(), data()
    inner = wh.RidgeProbe((x, y), codes=lambda model, x: model[0](x))
    assert inner(model, batch(x, y)).shape == (COUNT,)
    assert not torch.equal(inner(model, batch(x, y)), wh.RidgeProbe((x, y))(model, batch(x, y)))
    half = wh.RidgeProbe((x, y))(model.to(torch.bfloat16), batch(x, y).to(dtype=torch.bfloat16))
    assert half.dtype == torch.float32 and bool(torch.isfinite(half).all())


def test_refusals() -> None:
    model, (x, y) = encoder(), data()
    with pytest.raises(wh.ConfigError, match="weight_decay must be positive"):
        wh.RidgeProbe((x, y), weight_decay=0.0)
    with pytest.raises(wh.DataError, match="must have targets"):
        wh.RidgeProbe(x)
    with pytest.raises(wh.DataError, match="classes from 0"):
        wh.RidgeProbe((x, y - 1))
    with pytest.raises(wh.DataError, match="queries must have targets"):
        wh.RidgeProbe((x, y))(model, batch(x, None))
    for wrong in (y + 1, y.double()):
        with pytest.raises(wh.DataError, match="classes 0 … 2"):
            wh.RidgeProbe((x, y))(model, batch(x, wrong))
    for codes in (lambda model, x: model(x).sum(1), lambda model, x: None, lambda model, x: model(x)[:3]):
        with pytest.raises(wh.ConfigError, match=r"codes must be \[B, d\]"):
            wh.RidgeProbe((x, y), codes=codes)(model, batch(x, y))
