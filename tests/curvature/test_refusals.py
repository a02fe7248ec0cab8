"""What curvatures refuse, and how they say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from whence.curvature import EKFAC, KFAC, Curvature, Exact, Relative
from whence.data import as_examples
from whence.errors import ConfigError, NumericalError
from whence.gradients import GradientStream, find_layers
from whence.tasks import Task


def stream_of(case: zoo.Case, loss: Any = None, **settings: Any) -> GradientStream:
    task = Task(case.model, case.loss if loss is None else loss, **settings)
    return GradientStream(task, find_layers(case.model).layers, as_examples(case.train), 4)


@pytest.mark.parametrize("config", [KFAC, EKFAC, Exact])
@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf"), "some", None, True])
def test_damping_is_checked(config: Callable[..., Curvature], damping: Any) -> None:
    with pytest.raises(ConfigError, match="damping must be"):
        config(damping=damping)


@pytest.mark.parametrize("factor", [-0.1, float("inf"), float("nan")])
def test_relative_damping_is_checked(factor: float) -> None:
    with pytest.raises(ConfigError, match="Relative"):
        Relative(factor)


@pytest.mark.parametrize("config", [KFAC, EKFAC])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, -0.1, float("nan")])
def test_rank_tolerance_is_checked(config: Callable[..., Curvature], tolerance: float) -> None:
    with pytest.raises(ConfigError, match="rank_tolerance"):
        config(rank_tolerance=tolerance)


@pytest.mark.parametrize("config", [KFAC, EKFAC, Exact])
def test_fisher_is_checked(config: Callable[..., Curvature]) -> None:
    with pytest.raises(ConfigError, match="fisher must be one of"):
        config(fisher="true")


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
@pytest.mark.parametrize("config", [KFAC, EKFAC, Exact])
def test_a_callable_loss_has_no_likelihood(config: Callable[..., Curvature], fisher: str) -> None:
    case = zoo.make("linear")

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch.inputs), batch.targets, reduction="none")

    with pytest.raises(ConfigError, match="likelihood"):
        config(fisher=fisher).fit(stream_of(case, loss), seed=0)


@pytest.mark.parametrize("curvature", [KFAC(damping=0.0), KFAC(damping=0.0, split=False), EKFAC(damping=0.0)])
def test_a_singular_curvature_names_the_layer(curvature: Curvature) -> None:
    case = zoo.make("mlp", count=2)
    with pytest.raises(NumericalError, match=r"layer '0' must be invertible.*Relative"):
        curvature.fit(stream_of(case), seed=0)


def test_weight_decay_alone_makes_it_invertible() -> None:
    EKFAC(damping=0.0).fit(stream_of(zoo.make("mlp", count=2), weight_decay=0.1), seed=0)


def test_an_indefinite_hessian_is_refused_with_what_was_found() -> None:
    case = zoo.make("mlp", count=6)
    with pytest.raises(NumericalError, match=r"exact Hessian.*smallest eigenvalue of -.*negative.*hessian=False"):
        Exact(hessian=True).fit(stream_of(case), seed=0)
    with pytest.raises(NumericalError, match=r"Gauss-Newton matrix.*Raise damping"):
        Exact().fit(stream_of(case), seed=0)


def test_exact_refuses_large_models_before_it_allocates() -> None:
    case = zoo.Case(nn.Linear(6_000, 3), torch.zeros(2, 6_000), torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match=r"at most 12000 parameters, got 18003"):
        Exact().fit(stream_of(case), seed=0)


def test_exact_expectation_over_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"outputs must be \[B, C\].*sampled"):
        EKFAC(fisher="exact").fit(stream_of(zoo.make("sequence")), seed=0)


@pytest.mark.parametrize("name, resolved", [("binary", "exact"), ("linear", "exact"), ("sequence", "sampled")])
def test_auto_fisher(name: str, resolved: str) -> None:
    stream = stream_of(zoo.make(name))
    assert stream.resolve("auto", next(iter(stream.chunks()))) == resolved
