"""Deep embedded clustering: assignments and targets by their formulas, training to a minimum, membership explained."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import whence as wh
from whence.tasks import target_distribution

DECAY = 0.01


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int = 20, seed: int = 0) -> Tensor:
    """Return three groups of points in the plane."""
    centres = torch.tensor([[0.0, 3.0], [-2.6, -1.5], [2.6, -1.5]], dtype=torch.float64)
    noise = torch.randn(3, count, 2, generator=generator(seed), dtype=torch.float64)
    return (centres[:, None] + noise).reshape(-1, 2)


def encoder() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4))


@functools.cache
def found() -> wh.Clustering:
    return wh.train_clustering(points(), encoder=encoder(), clusters=3, weight_decay=DECAY, gradient_norm=1e-7)


# ---- the pieces


@pytest.mark.parametrize("degrees", [1.0, 2.5])
def test_assignments_are_those_of_student_t(degrees: float) -> None:
    z, centres = torch.randn(5, 4, generator=generator(0)), torch.randn(3, 4, generator=generator(1))
    q = wh.DeepClustering(nn.Identity(), centres, degrees)(z).softmax(1)
    for i in range(5):
        kernel = torch.stack([(1 + (z[i] - c).square().sum() / degrees) ** (-(degrees + 1) / 2) for c in centres])
        torch.testing.assert_close(q[i], kernel / kernel.sum())


def test_targets_are_sharpened_and_balanced() -> None:
    q = torch.rand(6, 3, generator=generator(0)).softmax(1)
    p = target_distribution(q)
    for i in range(6):
        raw = torch.stack([q[i, k] ** 2 / q[:, k].sum() for k in range(3)])
        torch.testing.assert_close(p[i], raw / raw.sum())


def probabilities(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, generator=generator(seed), dtype=torch.float64).mul(3).softmax(1)


def test_the_loss_is_the_divergence_and_its_curvature_the_derivative_of_its_gradient() -> None:
    loss, p = wh.KullbackLeibler(), probabilities(4, 0)
    outputs = torch.randn(4, 3, generator=generator(1), dtype=torch.float64)
    expected = F.kl_div(outputs.log_softmax(1), p, reduction="none").sum(1)
    torch.testing.assert_close(loss(outputs, p), expected)
    assert bool((loss(p.log(), p).abs() < 1e-12).all())
    hot = F.one_hot(torch.tensor([0, 2, 1, 1]), 3).double()
    torch.testing.assert_close(loss(outputs, hot), F.cross_entropy(outputs, hot.argmax(1), reduction="none"))
    twice = [
        torch.func.jacrev(torch.func.jacrev(lambda f, i=i: loss(f[None], p[i : i + 1]).sum()))(outputs[i])
        for i in range(4)
    ]
    hessian = torch.stack(twice)
    torch.testing.assert_close(loss.hessian(outputs, p), hessian)
    roots = loss.roots(outputs, p)
    torch.testing.assert_close(torch.einsum("rbi,rbj->bij", roots, roots), hessian)
    many = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    drawn = torch.stack([loss.sample(outputs, p, many[i].expand(4, loss.draws(outputs))) for i in range(1000)])
    torch.testing.assert_close(torch.einsum("rbi,rbj->bij", drawn, drawn) / 1000, hessian, rtol=0, atol=5e-3)


@pytest.mark.parametrize("targets", [torch.tensor([0, 1]), torch.ones(2, 3), torch.tensor([[2.0, -1.0, 0.0]] * 2)])
def test_targets_that_are_no_probabilities_are_refused(targets: Tensor) -> None:
    with pytest.raises(wh.DataError, match="targets must be probabilities"):
        wh.KullbackLeibler()(torch.zeros(2, 3), targets)


# ---- training


def test_training_ends_at_a_minimum_of_the_frozen_objective() -> None:
    clustering = found()
    model = clustering.model
    inputs, targets = points(), clustering.examples.targets
    assert targets is not None
    loss = F.kl_div(model(inputs).log_softmax(1), targets, reduction="none").sum(1).mean()
    decay = sum(p.square().sum() for p in model.parameters()) * DECAY / 2
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss + decay, list(model.parameters()))])
    assert float(gradient.norm()) <= 1e-7
    assert next(model.parameters()).dtype == torch.float64
    assert clustering.moved[-1] == 0


def test_separate_groups_become_the_clusters() -> None:
    labels = found().labels.reshape(3, -1)
    assert sorted(labels.mode(1).values.tolist()) == [0, 1, 2]
    assert float((labels == labels.mode(1).values[:, None]).double().mean()) > 0.95


def test_the_encoder_and_random_states_are_left_alone_and_training_repeats() -> None:
    own = encoder()
    before, state = {k: v.clone() for k, v in own.state_dict().items()}, torch.get_rng_state()
    again = wh.train_clustering(points(), encoder=own, clusters=3, weight_decay=DECAY, gradient_norm=1e-7)
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), found().model.parameters(), strict=True))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight_decay": 0.0}, "weight_decay must be positive"),
        ({"clusters": 1}, "clusters must be at least 2"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"clusters": 99}, "as many rows as clusters"),
        ({"degrees": 0.0}, "degrees must be positive"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(wh.ConfigError, match=message):
        wh.train_clustering(points(), **{"encoder": encoder(), "clusters": 3, **settings})


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(wh.ConfigError, match="encoder must return"):
        wh.DeepClustering(nn.Identity(), torch.zeros(3, 2))(torch.zeros(5, 4))
    with pytest.raises(wh.ConfigError, match="centres must be"):
        wh.DeepClustering(nn.Identity(), torch.zeros(1, 2))


# ---- explaining membership


def test_membership_is_explained_as_leaving_out_and_training_again_shows() -> None:
    clustering = found()
    new = points(2, seed=5)
    queries = clustering.questions(new)
    assert torch.equal(queries.targets, clustering.memberships(new).argmax(1))
    asked = clustering.questions(new, [0] * 6)
    assert asked.targets.tolist() == [0] * 6
    curvature = wh.Exact(hessian=True, damping=1e-7)
    scores = wh.Influence(curvature=curvature).fit(clustering.task(), clustering.examples).scores(queries)
    assert scores.unit == "nats"
    ids = list(range(0, 60, 6))
    retraining = wh.Retraining(recipe=clustering.recipe, start=clustering.model, measurement="cross_entropy")
    actual = wh.leave_one_out(retraining, clustering.examples, queries, ids).values.flatten()
    predicted = scores.values[:, ids].flatten()
    assert float(torch.corrcoef(torch.stack([predicted, actual]))[0, 1]) > 0.98
    assert 0.9 < float((predicted * actual).sum() / predicted.square().sum()) < 1.2


@pytest.mark.parametrize("curvature", [wh.Exact(), wh.EKFAC(), wh.BlockExact()])
def test_batches_and_order_change_nothing(curvature: Any) -> None:
    """The centres are parameters of no layer: they take the path of custom parameters."""
    clustering, order = found(), np.random.default_rng(0).permutation(60)
    queries = clustering.questions(points(2, seed=5))
    expected = wh.Influence(curvature=curvature, batch_size=60).fit(clustering.task(), clustering.examples)
    assert expected.coverage.share == 1
    values = expected.scores(queries).values
    for size in (1, 7):
        shuffled = wh.Influence(curvature=curvature, batch_size=size).fit(
            clustering.task(), clustering.examples.select(order)
        )
        found_values = shuffled.scores(queries).values[:, np.argsort(order)]
        assert float((found_values - values).norm() / values.norm()) < 1e-9
