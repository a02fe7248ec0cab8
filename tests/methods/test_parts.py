"""What scores are made of, and relative scores: dense algebra, and the formula of the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracle
import whence as wh
import zoo

DECAY = 0.05


def influence(case: zoo.Case, **settings: Any) -> wh.InfluenceAttribution:
    task = wh.Task(case.model, case.loss, weight_decay=DECAY, **settings)
    return wh.Influence(curvature=wh.Exact(damping=0.1)).fit(task, case.train)


def dense(case: zoo.Case) -> tuple[Tensor, Tensor]:
    """Return H⁻¹ and ∇ℓ_i + λθ̂ [N, P]."""
    matrix = oracle.gauss_newton(case.model, oracle.LOSSES[case.loss], *case.train)
    weights = oracle.flatten(case.model, {name: p.detach() for name, p in case.model.named_parameters()})
    gradients = oracle.per_example_gradients(case.model, oracle.LOSSES[case.loss], *case.train) + DECAY * weights
    return torch.linalg.inv(matrix + (0.1 + DECAY) * torch.eye(len(matrix), dtype=matrix.dtype)), gradients


@pytest.mark.parametrize("name", ["mlp", "conv", "regression"])
def test_relative_scores_are_the_documented_quotients(name: str) -> None:
    case, queries = zoo.make(name, count=12), zoo.make(name, count=4, seed=1)
    inverse, gradients = dense(case)
    attribution = influence(case)
    scores = attribution.scores(queries.train).values
    moved = (gradients @ inverse / 12).norm(dim=1)
    own = ((gradients @ inverse) * gradients).sum(1) / 12
    relative = attribution.scores(queries.train, relative="parameters")
    torch.testing.assert_close(relative.values, scores / moved, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(attribution.scores(queries.train, relative="loss").values, scores / own.sqrt())
    assert relative.unit is None
    single = wh.Influence(curvature=wh.Exact(damping=0.1), batch_size=1).fit(attribution.task, case.train)
    torch.testing.assert_close(single.scores(queries.train, relative="parameters").values, relative.values)


def test_relative_scores_that_cannot_be() -> None:
    case = zoo.make("mlp", count=8)
    attribution = influence(case)
    with pytest.raises(wh.ConfigError, match='relative must be "parameters" or "loss", got \'theta\''):
        attribution.scores(case.train, relative="theta")  # type: ignore[arg-type]
    with pytest.raises(wh.ConfigError, match="without the leverage correction"):
        attribution.scores(case.train, relative="loss", leverage_corrected=True)
    plain = wh.Influence(curvature=wh.Identity()).fit(wh.Task(case.model), case.train)
    with pytest.raises(wh.ConfigError, match="must have a curvature"):
        plain.scores(case.train, relative="loss")
    assert plain.scores(case.train, relative="parameters").values.shape == (8, 8)


def test_an_example_that_moves_nothing_has_no_relative_score() -> None:
    """Beyond the margin a squared hinge has no gradient."""
    x = torch.tensor([[2.0], [-2.0], [0.1], [-0.1]], dtype=torch.float64)
    model = nn.Linear(1, 1).double()
    nn.init.constant_(model.weight, 1.0), nn.init.zeros_(model.bias)
    task = wh.Task(model, wh.tasks.SquaredHinge(), total_decay=0.4)
    attribution = wh.Influence(curvature=wh.Exact()).fit(task, (x, (x[:, 0] > 0).long()))
    for relative in ("parameters", "loss"):
        values = attribution.scores((x, (x[:, 0] > 0).long()), relative=relative).values
        assert bool((values[:, :2] == 0).all()) and bool((values[2:, 2:] != 0).any())
    parts = attribution.decomposition((x, (x[:, 0] > 0).long()))
    assert np.asarray(parts.training_factor)[:2].tolist() == [0, 0]
    assert bool(torch.isfinite(parts.resistance.values).all())


def test_logistic_regression_has_the_factors_of_the_paper() -> None:
    """Koh & Liang, §3.1: −y_t y σ(−y_t θᵀx_t) σ(−y θᵀx) x_tᵀH⁻¹x, whose negative over N is the score."""
    case, queries = zoo.make("binary", count=14), zoo.make("binary", count=5, seed=1)
    linear = nn.Linear(case.inputs.shape[1], 1, bias=False).double()
    train, asked = (case.inputs, case.targets), (queries.inputs, queries.targets)
    task = wh.Task(linear, "binary_cross_entropy", total_decay=0.7)
    parts = wh.Influence(curvature=wh.Exact()).fit(task, train).decomposition(asked)
    theta = linear.weight.detach()[0]
    x, y, xt, yt = case.inputs, 2 * case.targets.double() - 1, queries.inputs, 2 * queries.targets.double() - 1
    s, st = (x @ theta).sigmoid(), torch.sigmoid(-yt.reshape(-1) * (xt @ theta))
    hessian = (x.T * (s * (1 - s))) @ x / 14 + 0.7 / 14 * torch.eye(x.shape[1], dtype=torch.float64)
    train_factor = torch.sigmoid(-y.reshape(-1) * (x @ theta))
    sign = yt.reshape(-1, 1) * y.reshape(1, -1)
    resistance = sign * (xt @ torch.linalg.inv(hessian) @ x.T)
    torch.testing.assert_close(torch.from_numpy(parts.training_factor.values), train_factor)
    torch.testing.assert_close(torch.from_numpy(parts.query_factor.values), st)
    torch.testing.assert_close(parts.resistance.values, resistance)
    torch.testing.assert_close(parts.full.values, st[:, None] * train_factor * resistance / 14)
    torch.testing.assert_close(parts.without_training_factor.values, st[:, None] * resistance / 14)
    torch.testing.assert_close(parts.without_curvature.values, st[:, None] * train_factor * sign * (xt @ x.T) / 14)
    assert not np.any(parts.offset.values)


@pytest.mark.parametrize("name", ["mlp", "conv", "regression", "text"])
def test_the_factors_make_the_scores(name: str) -> None:
    case, queries = zoo.make(name, count=12), zoo.make(name, count=4, seed=1)
    attribution = influence(case)
    parts = attribution.decomposition(queries.train)
    torch.testing.assert_close(parts.full.values, attribution.scores(queries.train).values)
    product = parts.resistance.values * torch.from_numpy(parts.training_factor.values / 12)
    product = product * torch.from_numpy(parts.query_factor.values)[:, None]
    torch.testing.assert_close(product + torch.from_numpy(parts.offset.values)[:, None], parts.full.values)
    own = oracle.per_example_gradients(case.model, oracle.LOSSES[case.loss], *case.train)
    asked = oracle.per_example_gradients(case.model, oracle.LOSSES[case.loss], *queries.train)
    torch.testing.assert_close(parts.without_curvature.values, asked @ own.T / 12)


def test_decompositions_of_measurements_and_of_sequences() -> None:
    case = zoo.make("mlp", count=8)
    measured = influence(case, measurement=lambda model, batch: model(batch.inputs).square().sum(1))
    parts = measured.decomposition(case.train)
    assert parts.query_factor.values.tolist() == [1.0] * 8
    text = zoo.make("sequence", count=8)
    fitted = wh.Influence().fit(wh.Task(text.model), text.train)
    product = fitted.decomposition(text.train)
    again = product.resistance.values * torch.from_numpy(product.training_factor.values / 8)
    again = again * torch.from_numpy(product.query_factor.values)[:, None]
    torch.testing.assert_close(again.to(product.full.values), product.full.values)
    bare = wh.Task(case.model, lambda model, batch: -model(batch.inputs)[:, 0])
    called = wh.Influence(curvature=wh.Identity()).fit(bare, case.train)
    with pytest.raises(wh.ConfigError, match="named smooth one"):
        called.decomposition(case.train)
    with pytest.raises(wh.ConfigError, match="needs targets"):
        influence(case).decomposition(case.inputs)
