"""Tasks: calling conventions, evaluation mode, fingerprints, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from whence.data import as_examples
from whence.errors import ConfigError
from whence.tasks import MeanSquaredError, Task


class Returns(nn.Module):
    """A model whose result is wrapped."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.wrap = nn.Linear(5, 3).double(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(
    "wrap, outputs",
    [
        (lambda f: f, None),
        (lambda f: SimpleNamespace(logits=f, hidden=None), None),
        (lambda f: (f, "more"), None),
        (lambda f: [f], None),
        (lambda f: {"scores": f}, lambda model, batch: model(batch.inputs)["scores"]),
    ],
)
def test_outputs(wrap: Callable[[Tensor], Any], outputs: Any) -> None:
    case = zoo.make("linear")
    model = Returns(wrap)
    batch = as_examples(case.train).batch(torch.arange(4).numpy())
    found = Task(model, outputs=outputs).forward(batch)
    torch.testing.assert_close(found, model.inner(case.inputs[:4]))


@pytest.mark.parametrize("wrap", [lambda f: {"scores": f}, lambda f: (), lambda f: ("no", f), lambda f: None])
def test_outputs_that_are_not_found(wrap: Callable[[Tensor], Any]) -> None:
    batch = as_examples(zoo.make("linear").train).batch(torch.arange(4).numpy())
    with pytest.raises(ConfigError, match=r"model outputs must be.*Task\(outputs="):
        Task(Returns(wrap)).forward(batch)


@pytest.mark.parametrize(
    "build, match",
    [
        (lambda: Task(lambda x: x), "must be a torch.nn.Module, got function"),  # type: ignore[arg-type]
        (lambda: Task(nn.Linear(1, 1), "l2"), "'l2'"),
        (lambda: Task(nn.Linear(1, 1), 3), "loss must be a name or a callable, got int"),  # type: ignore[arg-type]
        (lambda: Task(nn.Linear(1, 1), measurement="l2"), "'l2'"),
        (lambda: Task(nn.Linear(1, 1), measurement=3), "measurement must be a name"),  # type: ignore[arg-type]
        (lambda: Task(nn.Linear(1, 1), weight_decay=-0.1), "weight_decay"),
        (lambda: Task(nn.Linear(1, 1), weight_decay=float("nan")), "weight_decay"),
    ],
)
def test_what_is_refused(build: Callable[[], Task], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build()


@pytest.mark.parametrize("broken", [False, True])
def test_evaluation_restores_every_flag(broken: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model.train()
    model[2].eval()
    before = [module.training for module in model.modules()]
    try:
        with Task(model).evaluating():
            assert not any(module.training for module in model.modules())
            if broken:
                raise RuntimeError
    except RuntimeError:
        pass
    assert [module.training for module in model.modules()] == before


def test_types_and_places() -> None:
    case = zoo.make("named", dtype=torch.float32)
    task = Task(case.model)
    assert task.dtype == torch.float32
    assert task.in_dtype(torch.float32) is task
    double = task.in_dtype(torch.float64)
    assert double.dtype == torch.float64
    assert task.dtype == torch.float32
    batch = double.place(as_examples(case.train).batch(torch.arange(3).numpy()))
    assert batch.inputs["features"].dtype == torch.float64
    assert batch.targets is not None
    assert batch.targets.dtype == torch.int64
    torch.testing.assert_close(double.losses(batch).float(), task.losses(task.place(batch)))


def test_fingerprints_follow_the_weights() -> None:
    one, same, other = zoo.make("norms"), zoo.make("norms"), zoo.make("norms", seed=1)
    assert Task(one.model).weights_fingerprint() == Task(same.model).weights_fingerprint()
    assert Task(one.model).weights_fingerprint() != Task(other.model).weights_fingerprint()
    same.model[1].running_mean += 1e-9
    assert Task(one.model).weights_fingerprint() != Task(same.model).weights_fingerprint()
    single = zoo.make("norms", dtype=torch.float32)
    assert Task(one.model).weights_fingerprint() != Task(single.model).weights_fingerprint()


def test_units_and_smoothness() -> None:
    model = nn.Linear(2, 2)

    def own(model: nn.Module, batch: Any) -> Tensor:
        return model(batch.inputs).sum(1)

    assert Task(model).unit == "nats"
    assert Task(model, measurement="mse").unit == "squared target"
    assert Task(model, measurement=own).unit is None
    assert Task(model, own).smooth_loss is None
    assert Task(model, "hinge").smooth_loss is None
    assert isinstance(Task(model, "mse").smooth_loss, MeanSquaredError)
