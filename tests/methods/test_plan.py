"""Pre-flight: its arithmetic against what is then written and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import whence as wh
import zoo
from whence.errors import NumericalError


def tensor_bytes(folder: Path) -> int:
    total = 0
    for path in folder.glob("features-*.safetensors"):
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                tensor = stored.get_tensor(name)
                total += tensor.numel() * tensor.element_size()
    return total


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["mlp", "conv", "linear", "norms"])
@pytest.mark.parametrize("ids", [None, [f"row-{i * i}" for i in range(40)]], ids=["integers", "strings"])
def test_disk_is_exact_where_rows_are_alike(name: str, dtype: str, ids: list[str] | None, tmp_path: Path) -> None:
    case = zoo.make(name, count=40)
    train = wh.as_examples(case.train, ids=ids)
    config, task = wh.Influence(batch_size=8), wh.Task(case.model, case.loss)
    planned = wh.plan(config, task, train)
    attribution = config.fit(task, train)
    wh.build_index(attribution, tmp_path / "i", dtype=dtype, shard_rows=16)
    assert planned.disk[dtype] == tensor_bytes(tmp_path / "i")
    assert attribution.plan().disk == planned.disk


def test_kept_factors_are_exact_and_the_budget_counts() -> None:
    case = zoo.make("mlp", count=40)
    task = wh.Task(case.model)
    attribution = wh.Influence(batch_size=8).fit(task, case.train)
    kept = [factor for _, gradients in attribution.training_gradients() for factor in gradients.layers.values()]
    exact = sum(tensor.numel() * tensor.element_size() for factor in kept for tensor in factor.tensors().values())
    assert wh.plan(wh.Influence(batch_size=8), task, case.train).memory["kept factors"] == exact
    assert wh.plan(wh.Influence(batch_size=8, memory_budget=exact), task, case.train).memory["kept factors"] == exact
    without = wh.plan(wh.Influence(batch_size=8, memory_budget=exact - 1), task, case.train)
    assert without.memory["kept factors"] == 0
    assert without.peak_bytes == sum(without.memory.values()) - without.memory["index"]


def test_shares_and_steps() -> None:
    case = zoo.make("mlp", count=40)
    queries = (case.inputs[:3], case.targets[:3])
    planned = wh.plan(wh.Influence(layers="last"), wh.Task(case.model), case.train, queries)
    attribution = wh.Influence(layers="last").fit(wh.Task(case.model), case.train)
    assert planned.share == attribution.coverage.share < 1
    assert (planned.examples, planned.queries, planned.missed) == (40, 3, attribution.coverage.missed)
    assert set(planned.seconds) == set(planned.passes) == {"fit", "self_scores", "scores", "index"}
    assert set(attribution.plan().seconds) == {"self_scores", "scores", "index"}
    assert all(np.isfinite(value) and value > 0 for value in [*planned.seconds.values(), *planned.passes.values()])
    assert json.loads(json.dumps(planned.as_dict()))["share"] == planned.share


@pytest.mark.parametrize("curvature", [wh.EKFAC(), wh.Exact(damping=0.1), wh.Identity()], ids=repr)
def test_planning_leaves_no_trace(curvature: object) -> None:
    case = zoo.make("conv", count=30, dtype=torch.float32)
    state = {key: value.clone() for key, value in case.model.state_dict().items()}
    wh.plan(wh.Influence(curvature=curvature), wh.Task(case.model), case.train)  # type: ignore[arg-type]
    assert all(torch.equal(value, state[key]) for key, value in case.model.state_dict().items())
    assert all(p.grad is None for p in case.model.parameters())


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize(
    "curvature", [wh.Exact(), wh.EKFAC(damping=0.0), wh.KFAC(damping=0.0), wh.CG(damping=0.0, max_steps=30)], ids=repr
)
def test_few_examples_that_leave_the_curvature_singular_do_not_stop_it(curvature: Any, batch_size: int | None) -> None:
    """Twenty features and no decay: eight rows determine nothing, two hundred do."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 20, generator=generator, dtype=torch.float64)
    train = (inputs, inputs[:, :2] + torch.randn(200, 2, generator=generator, dtype=torch.float64))
    task = wh.Task(torch.nn.Linear(20, 2).double(), "mse")
    config = wh.Influence(curvature=curvature, batch_size=batch_size)
    config.fit(task, train).self_scores()
    planned = wh.plan(config, task, train)
    assert planned.examples == 200 and planned.share == 1


def test_an_indefinite_hessian_does_not_stop_it() -> None:
    case = zoo.make("mlp", count=40)
    config, task = wh.Influence(curvature=wh.Exact(hessian=True, damping=1e-9)), wh.Task(case.model)
    with pytest.raises(NumericalError):
        config.fit(task, case.train)
    assert wh.plan(config, task, case.train).seconds["fit"] > 0


def test_a_loss_that_is_not_finite_stops_it_as_it_stops_the_fit() -> None:
    case = zoo.make("mlp", count=40)
    case.inputs[0, 0] = float("nan")
    for run in (lambda: wh.Influence().fit(wh.Task(case.model), case.train),
                lambda: wh.plan(wh.Influence(), wh.Task(case.model), case.train)):  # fmt: skip
        with pytest.raises(NumericalError, match="finite"):
            run()
