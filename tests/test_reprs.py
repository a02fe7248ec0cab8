"""What a session shows of objects that hold models and arrays: one short line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import whence as wh
import zoo
from whence.gradients import find_layers


def test_what_holds_a_model_or_shards_is_shown_in_one_line(tmp_path: Path) -> None:
    case = zoo.make("mlp")
    task = wh.Task(case.model, case.loss, weight_decay=0.01)
    attribution = wh.Influence().fit(task, case.train)
    total = sum(p.numel() for p in case.model.parameters())
    counts = f"{total} of {total} parameters in 3 layers"
    assert repr(attribution) == f"InfluenceAttribution(EKFAC, 9 examples, {counts})"
    assert repr(attribution.coverage) == f"Coverage({counts})"
    assert repr(task) == "Task(Sequential, CrossEntropy(ignore_index=-100), weight_decay=0.01)"
    ensemble = wh.Ensemble().fit([task, task], case.train)
    assert repr(ensemble) == "EnsembleAttribution(2 members, 9 examples)"
    index = wh.build_index(attribution, tmp_path / "i")
    assert repr(index) == f"Index({str(tmp_path / 'i')!r}, 9 examples, float32)"


class Shifted(torch.nn.Module):
    """Adds a parameter that is used by no known kind of module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.shift = torch.nn.Linear(4, 3), torch.nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).cumsum(1) + self.shift.cumsum(0)


def test_layers_say_how_they_are_attributed() -> None:
    coverage = find_layers(Shifted())
    assert sorted(map(repr, coverage.layers)) == ["Layer('', 1 × 3, by torch.func)", "Layer('linear', 3 × 5)"]
    assert repr(find_layers(Shifted(), "linear")) == "Coverage(15 of 18 parameters in 1 layer)"


def test_results_are_shown_in_one_line() -> None:
    values = torch.tensor([[0.5, -0.25], [1.0, 0.0]])
    scores = wh.Scores(values=values, query_ids=np.arange(2), ids=np.arange(2), unit="nats")
    assert repr(scores) == str(scores) == "Scores(2 queries × 2 examples, -0.25 … 1 nats)"
    signal = wh.Signal(values=np.array([1.0, 2.0]), ids=np.arange(2), name="loss", unit=None, standard_error=np.ones(2))
    assert repr(signal) == "Signal('loss', 2 examples, 1 … 2 without a unit, with standard errors)"
    empty = wh.Signal(values=np.array([]), ids=np.array([]), name="none", unit="nats")
    assert repr(empty) == "Signal('none', 0 examples, none nats)"
    recipe = wh.Recipe(build=lambda: torch.nn.Linear(2, 2), epochs=1)
    train = (torch.randn(20, 2), torch.arange(20) % 2)
    curve = wh.removal_curve(wh.Retraining(recipe=recipe), train, train, [3, 1, 2], sweep=wh.Sweep(shares=(0.05, 0.1)))
    told = "Curve(removal by ids; 1 to 2 of 20 examples; loss, accuracy; 1 seeds, 3 controls)"
    assert repr(curve) == told
    comparison = wh.Comparison(
        figure="LDS", entries=(), recommended=None, reason="", ceiling=None, pass_seconds=0.1
    )
    assert repr(comparison) == "Comparison(0 methods by LDS, recommended: none, for none beats chance)"
