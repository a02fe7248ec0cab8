"""The cost of retraining: what is counted, what the cache takes off, and what is left alone. No times are asserted."""

from __future__ import annotations

from pathlib import Path

import pytest
import ridge
import torch
from torch import nn

import whence as wh
from whence.errors import ConfigError
from whence.evaluate import Retraining, estimate
from whence.evaluate import cost as module


def recipe(**settings: object) -> wh.Recipe:
    return wh.Recipe(**{"build": lambda: nn.Linear(3, 2), "epochs": 40, "batch_size": 8, **settings})  # type: ignore[arg-type]


def data() -> wh.Examples:
    generator = torch.Generator().manual_seed(0)
    return wh.as_examples((torch.randn(24, 3, generator=generator), torch.arange(24) % 2))


def test_few_epochs_are_continued_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks by epochs the answer is exact."""
    now = [0.0]
    train = wh.Recipe.train

    def ticking(self: wh.Recipe, *args: object, **kwargs: object) -> nn.Module:
        now[0] += 2 + 0.5 * self.epochs
        return train(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(wh.Recipe, "train", ticking)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    made = recipe()
    found = estimate(Retraining(recipe=made, seeds=(0, 1, 2)), data(), data(), 7)
    assert (found.trainings, found.cached, found.processes, found.stack, found.epochs) == (21, 0, 1, 1, 5)
    assert found.training_seconds == pytest.approx(22) and found.seconds == pytest.approx(21 * 22)
    assert made.epochs == 40, "the recipe is left alone"
    whole = estimate(Retraining(recipe=recipe(epochs=3)), data(), data(), 2)
    assert whole.training_seconds == pytest.approx(3.5) and whole.epochs == 3
    assert str(found) == "21 trainings of 22 s: about 7.7 minutes"


def test_what_the_cache_holds_costs_nothing(tmp_path: Path) -> None:
    settings = Retraining(recipe=recipe(epochs=1), seeds=(0, 1), cache=tmp_path)
    train, sets = data(), [[], [1], [2, 3]]
    settings.measure(train, train, sets[:2])
    found = estimate(settings, train, train, sets)
    assert (found.trainings, found.cached) == (6, 4) and "4 more are in the cache" in str(found)
    assert settings.missing(train, train, sets) == 2, "the measurement is not kept as a result"
    settings.measure(train, train, sets)
    known = estimate(settings, train, train, sets)
    assert known.cached == 6 and known.seconds == 0 and known.epochs == 0
    assert str(known) == "0 trainings (6 more are in the cache)"
    assert estimate(settings, train, train, 3).cached == 0
    some = estimate(settings, train, train, 3, cached=4)
    assert (some.trainings, some.cached, some.epochs) == (6, 4, 1)
    for trainings, cached in ((3, 7), (3, -1), (sets, 1)):
        with pytest.raises(ConfigError, match="cached must be"):
            estimate(settings, train, train, trainings, cached=cached)  # type: ignore[arg-type]


def test_stacks_and_processes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_startup", lambda: 3.0)
    monkeypatch.setattr(module, "_unit", lambda *args: (8.0, 5))
    train = data()
    found = estimate(Retraining(recipe=recipe(), stack=4, processes=2), train, train, 10)
    assert (found.stack, found.processes, found.training_seconds) == (4, 2, 2.0)
    assert found.seconds == pytest.approx(3 + 8 * 2), "three stacks over two processes"
    small = estimate(Retraining(recipe=recipe(), processes=8), train, train, 1)
    assert small.processes == 1 and small.startup_seconds == 0
    threads = torch.get_num_threads()
    estimate(Retraining(recipe=recipe(), processes=2), train, train, 4)
    assert torch.get_num_threads() == threads


def test_exact_training_and_own_loops_are_measured_whole() -> None:
    train, queries = ridge.problem()
    for made in (ridge.recipe(), ridge.descending()):
        found = estimate(Retraining(recipe=made), train, queries, [["row1"], ["row2"]])
        assert found.seconds > 0 and found.trainings == 2
    spread = estimate(Retraining(recipe=ridge.recipe(), processes=2), train, queries, 2)
    assert spread.seconds > spread.startup_seconds > 0, "starting a process is measured"
    with pytest.raises(ConfigError, match="at least 1"):
        estimate(Retraining(recipe=ridge.recipe()), train, queries, 0)
