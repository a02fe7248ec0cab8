"""The proximal Bregman response against closed forms and a solver of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import whence as wh
import zoo
from whence.errors import ConfigError
from whence.evaluate import agreement, pbrf

PROXIMITY = 0.05


def smooth(count: int) -> zoo.Case:
    """Return a network without kinks: at those of ReLUs the response need not be a stationary point."""
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=generator))
    return zoo.Case(model, torch.randn(count, 5, generator=generator).double(), torch.arange(count) % 3)


def test_least_squares_has_a_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()  # not trained: the response does not ask for a minimum
    task = wh.Task(model, "mse", measurement=lambda model, batch: model(batch.inputs)[:, 0])
    found = pbrf(task, (x, y), x, [0, 7, 19], proximity=PROXIMITY, gradient_norm=1e-11)
    theta = model.weight.detach()[0]
    for column, row in enumerate([0, 7, 19]):
        gram = (2 * x.T @ x - 2 * torch.outer(x[row], x[row])) / 20 + PROXIMITY * torch.eye(3, dtype=x.dtype)
        change = torch.linalg.solve(gram, 2 / 20 * x[row] * (x[row] @ theta - y[row]))
        torch.testing.assert_close(found.values[:, column], x @ change, rtol=1e-9, atol=1e-9)
    assert found.ids.tolist() == [0, 7, 19]


def divergence(start: Tensor, moved: Tensor) -> Tensor:
    """Return the mean KL(p̂ ‖ p) of logits, by definition."""
    return (start.softmax(1) * (start.log_softmax(1) - moved.log_softmax(1))).sum(1).mean()


def test_cross_entropy_is_the_kl_divergence() -> None:
    """The response found is a stationary point of the objective written with KL, by plain autograd."""
    case = smooth(15)
    model = case.model
    names = [name for name, _ in model.named_parameters()]
    start = model(case.inputs).detach()

    def moved_to(model: nn.Module) -> Tensor:
        return torch.cat([p.reshape(-1) for p in model.parameters()])

    seen: list[Tensor] = []

    def record(model: nn.Module) -> Tensor:
        seen.append(moved_to(model).detach().clone())
        return moved_to(model).sum()

    task = wh.Task(model, measurement=record)
    pbrf(task, case.train, None, [4], proximity=PROXIMITY, gradient_norm=1e-8)
    origin, response = seen
    flat = response.clone().requires_grad_()
    pieces = flat.split([p.numel() for p in model.parameters()])
    named = {n: piece.reshape(p.shape) for n, piece, p in zip(names, pieces, model.parameters(), strict=True)}
    moved = torch.func.functional_call(model, named, (case.inputs,))
    removed = nn.functional.cross_entropy(moved[4:5], case.targets[4:5])
    objective = divergence(start, moved) - removed / 15 + PROXIMITY / 2 * (flat - origin).square().sum()
    assert float(torch.autograd.grad(objective, flat)[0].norm()) < 1.1e-8
    assert float((response - origin).norm()) > 1e-3


def test_influence_is_its_linearisation() -> None:
    """With μ as damping, the Gauss–Newton influence tends to the response as the responses get smaller."""
    case = smooth(40)
    task = wh.Task(case.model)
    errors = []
    for proximity in (0.3, 3.0, 30.0):
        actual = pbrf(task, case.train, case.train, range(0, 40, 4), proximity=proximity, gradient_norm=1e-9)
        scores = wh.Influence(curvature=wh.Exact(damping=proximity)).fit(task, case.train).scores(case.train)
        found = scores.values[:, ::4]
        errors.append(float((found - actual.values).norm() / actual.values.norm()))
    assert errors[2] < 0.02 and errors == sorted(errors, reverse=True)
    assert agreement(scores, actual).pooled.slope.value == pytest.approx(1, abs=0.02)
    assert actual.unit == "nats" and actual.query_ids.tolist() == np.arange(40).tolist()


def test_the_model_is_left_alone_and_refusals() -> None:
    case = zoo.make("linear", count=9, dtype=torch.float32)
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    pbrf(wh.Task(case.model), case.train, case.train, [0], proximity=1.0)
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())
    with pytest.raises(ConfigError, match="proximity"):
        pbrf(wh.Task(case.model), case.train, case.train, [0], proximity=0.0)
    with pytest.raises(ConfigError, match="smooth"):
        pbrf(wh.Task(case.model, lambda model, batch: model(batch.inputs)[:, 0]), case.train, None, [0], proximity=1.0)
