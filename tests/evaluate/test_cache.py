"""The retraining cache: what makes another recipe, what does not, and what cannot be told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import whence as wh
from whence.errors import ConfigError
from whence.evaluate import Retraining
from whence.tasks.describe import describe

WIDTH = 4


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


def cnn(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))


def closing(value: Any) -> Callable[[], Any]:
    return lambda: value


def defaulting(value: Any) -> Callable[..., Any]:
    def build(width: Any = value) -> Any:
        return width

    return build


def naming(value: Any) -> Callable[..., Any]:
    def build(*, width: Any = value) -> Any:
        return width

    return build


def globally(value: Any) -> Any:
    source = "def build(): return WIDTH"
    space = {"WIDTH": value, "__name__": "script"}
    exec(source, space)
    return space["build"]


@dataclass(frozen=True)
class Settled:
    width: int

    def __call__(self) -> nn.Module:
        return mlp(self.width)


class Plain:
    def __init__(self, width: Any) -> None:
        self.width = width

    def __call__(self) -> Any:
        return self.width

    def method(self) -> Any:
        return self.width


class Slotted:
    __slots__ = ("width",)

    def __init__(self, width: Any) -> None:
        self.width = width

    def __call__(self) -> Any:
        return self.width


def classed(value: Any) -> type:
    class Net(nn.Module):
        width = value

        def size(self) -> Any:
            return self.width

    return Net


def module(value: float) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(value)).requires_grad_(False)


def seeded(value: float) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return module(value)


MAKERS: dict[str, Callable[[Any], Any]] = {
    "closure": closing,
    "default": defaulting,
    "keyword default": naming,
    "global": globally,
    "partial": lambda value: partial(mlp, value),
    "partial keyword": lambda value: partial(mlp, width=value),
    "partial of partial": lambda value: partial(partial(mlp, value)),
    "dataclass": Settled,
    "object": Plain,
    "slots": Slotted,
    "method": lambda value: Plain(value).method,
    "class": classed,
    "module": lambda value: closing(seeded(value)),
    "list": lambda value: closing([1, {"a": value}]),
    "tensor": lambda value: closing(torch.tensor([value])),
    "array": lambda value: closing(torch.tensor([value]).numpy()),
    "inner function": lambda value: closing(closing(value)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_recipes_that_differ_in_one_value_are_others(name: str) -> None:
    make = MAKERS[name]
    assert describe(make(0.25)) == describe(make(0.25))
    assert describe(make(0.25)) != describe(make(0.5))


def test_other_functions_and_kinds_are_others() -> None:
    made = [partial(mlp, 64), partial(cnn, 64), partial(mlp, 128), mlp, cnn, Settled(64), Plain(64), Slotted(64),
            closing(1), closing(1.0), closing("1"), closing(True), closing(torch.float32), closing((1,)), closing([1]),
            nn.Linear, nn.Bilinear, torch.tanh, torch.relu, nn.functional.relu, torch.Tensor.exp, "mlp",
            None]  # fmt: skip
    assert len({describe(one) for one in made}) == len(made)


def test_loops_of_references_end() -> None:
    def first(depth: int) -> Any:
        return second(depth - 1) if depth else None

    def second(depth: int) -> Any:
        return first(depth)

    held: list[Any] = []
    held.append(held)
    assert describe(first, closing(held)) == describe(first, closing(held))


def test_the_description_is_the_same_in_every_process() -> None:
    here = Path(__file__).parent
    code = (
        "import test_cache as t; from whence.tasks.describe import describe; "
        "print(describe(*[make(.25) for make in t.MAKERS.values()], lambda x: x in {'a', 'b', 'c', 'd'}))"
    )
    found = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(here)}
        found.add(subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True).stdout)
    assert len(found) == 1


def constant(examples: Any, *, weights: Tensor, seed: int, start: Any, value: float) -> nn.Module:
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


def test_a_cache_keeps_recipes_apart(tmp_path: Path) -> None:
    train = wh.as_examples((torch.ones(4, 2).double(), torch.zeros(4, 1).double()))
    for value in (1.0, 2.0, 1.0):
        recipe = wh.Recipe(train=partial(constant, value=value), loss="mse")
        found = Retraining(recipe=recipe, cache=tmp_path).measure(train, train, [[]])
        assert float(found[0, 0, 0]) == (2 * value) ** 2
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_described_is_refused_only_with_a_cache(tmp_path: Path) -> None:
    train = wh.as_examples((torch.ones(4, 2).double(), torch.zeros(4, 1).double()))
    lock = threading.Lock()

    def loop(examples: Any, **settings: Any) -> nn.Module:
        with lock:
            return constant(examples, **settings, value=1.0)

    recipe = wh.Recipe(train=loop, loss="mse")
    Retraining(recipe=recipe).measure(train, train, [[]])
    with pytest.raises(ConfigError, match=r"describable, got 'lock'.*fingerprint"):
        Retraining(recipe=recipe, cache=tmp_path).measure(train, train, [[]])
    with pytest.raises(ConfigError, match="describable, got 'Generator'"):
        describe(closing(torch.Generator()))
    loop.fingerprint = "ones"  # type: ignore[attr-defined]
    Retraining(recipe=recipe, cache=tmp_path).measure(train, train, [[]])
