"""One suite for every curvature and model: order, batches, traces left behind, save and load, duplicates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import whence as wh
import zoo
from whence.curvature import Curvature

COUNT = 24
CURVATURES: dict[str, Curvature] = {
    "identity": wh.Identity(),
    "exact": wh.Exact(damping=wh.Relative(0.1)),
    "kfac": wh.KFAC(fisher="sampled"),
    "kfac-joint": wh.KFAC(split=False, damping=0.05),
    "ekfac": wh.EKFAC(),
    "ekfac-sampled": wh.EKFAC(fisher="sampled"),
    "ekfac-empirical": wh.EKFAC(fisher="empirical"),
    "diagonal": wh.Diagonal(),
}
JOINT: dict[str, Curvature] = {
    "block-exact": wh.BlockExact(),
    "cg": wh.CG(tolerance=1e-11),
    "cg-ekfac": wh.CG(tolerance=1e-11, preconditioner=wh.EKFAC(), fisher="empirical"),
    "lissa": wh.LiSSA(depth=20, batch=5, require_convergence=False),
    "neumann": wh.Neumann(steps=4),
    "lanczos": wh.Lanczos(rank=12, tolerance=1e-9),
    "nystrom": wh.Nystrom(rank=12),
    "datainf": wh.DataInf(),
    "projected": wh.Projected(rank=3),
    "projected-random": wh.Projected(rank=3, kind="random"),
}
NEEDS_DATA = {"cg", "cg-ekfac", "lissa", "neumann", "datainf"}  # to be applied, not only to be fitted
MODELS = ["linear", "mlp", "binary", "regression", "conv", "text", "norms", "twice", "named", "residual"]
ROWS = [(name, curvature) for curvature in CURVATURES for name in MODELS]
ROWS += [(name, curvature) for curvature in JOINT for name in ("mlp", "text")]
CURVATURES |= JOINT
Quantities = dict[str, Tensor]


def quantities(attribution: wh.InfluenceAttribution, case: zoo.Case, order: np.ndarray) -> Quantities:
    """Return everything an attribution gives, with the columns put back by id."""
    back = np.argsort(order)
    queries = (zoo.subset(case.inputs, slice(0, 5)), case.targets[:5])
    plain, corrected = attribution.scores(queries), attribution.scores(queries, leverage_corrected=True)
    held_out = attribution.leave_one_out()
    assert [plain.ids[i] for i in back] == [f"e{i}" for i in range(COUNT)]
    signals = {
        "self": attribution.self_scores().values,
        "corrected self": attribution.self_scores(leverage_corrected=True).values,
        "losses": held_out.losses,
        "outputs": held_out.outputs.numpy(),
        "leverage": held_out.leverage,
    }
    found = {name: torch.from_numpy(values[back]).double() for name, values in signals.items()}
    found["scores"], found["corrected"] = plain.values[:, back].double(), corrected.values[:, back].double()
    return found


def attribute(name: str, curvature: str, dtype: torch.dtype, *, size: int | None, shuffled: bool) -> Quantities:
    case = zoo.make(name, count=COUNT, dtype=dtype)
    order = np.random.default_rng(0).permutation(COUNT) if shuffled else np.arange(COUNT)
    ids = [f"e{i}" for i in order]
    train = wh.as_examples((zoo.subset(case.inputs, torch.from_numpy(order)), case.targets[order]), ids=ids)
    task = wh.Task(case.model, case.loss, weight_decay=0.02)
    attribution = wh.Influence(curvature=CURVATURES[curvature], batch_size=size, dtype=dtype).fit(task, train)
    return quantities(attribution, case, order)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=["64", "32"])
@pytest.mark.parametrize("name, curvature", ROWS)
def test_batch_size_and_order_change_nothing(name: str, curvature: str, dtype: torch.dtype, tolerance: float) -> None:
    expected = attribute(name, curvature, dtype, size=COUNT, shuffled=False)
    runs = [(1, False), (7, True), (256, True)] if dtype == torch.float64 else [(7, True)]
    for size, shuffled in runs:
        found = attribute(name, curvature, dtype, size=size, shuffled=shuffled)
        for key, values in expected.items():
            error = float((found[key] - values).norm() / values.norm())
            assert error <= tolerance, f"{key} at batch size {size}: {error:.2g}"


def everything(case: zoo.Case, curvature: Curvature) -> list[Callable[[], Any]]:
    """Return calls that use all of an attribution."""
    task = wh.Task(case.model, case.loss, weight_decay=0.02)
    made: list[wh.InfluenceAttribution] = []
    return [
        lambda: made.append(wh.Influence(curvature=curvature).fit(task, case.train)),
        lambda: made[0].scores(case.train),
        lambda: made[0].scores(case.train, leverage_corrected=True),
        lambda: made[0].self_scores(),
        lambda: made[0].self_scores(leverage_corrected=True),
        lambda: made[0].leave_one_out(),
        lambda: made[0].group_scores({"some": [0, 1]}, case.train),
        lambda: made[0].parameter_change([0]),
        lambda: made[0].gradient_norm,
        lambda: made[0].summary(),
    ]


@pytest.mark.parametrize("name, curvature", ROWS)
def test_nothing_is_left_behind(name: str, curvature: str) -> None:
    """The model is bit-identical, its flags and gradients as before, no hook stays; random states are untouched."""
    case = zoo.make(name, count=COUNT, dtype=torch.float32)
    case.model.train()
    modules = list(case.model.modules())
    if len(modules) > 2:
        modules[-1].eval()  # a flag that differs from its parent's
    first = next(case.model.parameters())
    first.grad = torch.ones_like(first)
    state = {key: value.clone() for key, value in case.model.state_dict().items()}
    flags = [module.training for module in modules]
    torch.manual_seed(5)
    np.random.seed(5)
    for call in everything(case, CURVATURES[curvature]):
        call()
        assert [module.training for module in case.model.modules()] == flags
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert np.array_equal(np.random.rand(3), np.random.RandomState(5).rand(3))
    assert list(case.model.modules()) == modules
    assert all(torch.equal(value, state[key]) for key, value in case.model.state_dict().items())
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in list(case.model.parameters())[1:])
    assert all(p.requires_grad for p in case.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)


@pytest.mark.parametrize("name, curvature", ROWS)
def test_save_and_load(name: str, curvature: str, tmp_path: Path) -> None:
    case = zoo.make(name, count=COUNT)
    task = wh.Task(case.model, case.loss, weight_decay=0.02)
    train = wh.as_examples(case.train, ids=[f"e{i}" for i in range(COUNT)])
    fitted = wh.Influence(curvature=CURVATURES[curvature], batch_size=7).fit(task, train)
    expected, order = quantities(fitted, case, np.arange(COUNT)), np.arange(COUNT)
    fitted.save(tmp_path / "run")
    whole = wh.load(tmp_path / "run", task, train)
    found = quantities(whole, case, order)
    rounding = {"rtol": 1e-11, "atol": 1e-14}  # the same numbers in another memory layout
    if curvature.startswith("cg"):  # whose steps carry rounding on
        rounding = {"rtol": 1e-8, "atol": 1e-12}
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, **rounding)
    without = wh.load(tmp_path / "run", task)
    if curvature in NEEDS_DATA:
        with pytest.raises(wh.ConfigError, match="train="):
            without.scores(case.train)
        return
    torch.testing.assert_close(without.scores(case.train).values, fitted.scores(case.train).values, **rounding)
    np.testing.assert_allclose(without.self_scores(), fitted.self_scores(), **rounding)
    assert np.array_equal(without.ids, fitted.ids)
    for key, change in fitted.parameter_change(["e1", "e3"]).items():
        torch.testing.assert_close(without.parameter_change(["e1", "e3"])[key], change, rtol=1e-10, atol=1e-14)
    with pytest.raises(wh.ConfigError, match="train="):
        without.leave_one_out()


@pytest.mark.parametrize("name, curvature", ROWS)
def test_a_training_duplicate_of_the_query_is_helpful(name: str, curvature: str) -> None:
    case = zoo.make(name, count=COUNT)
    task = wh.Task(case.model, case.loss)
    curvature_of = CURVATURES[curvature]
    attribution = wh.Influence(curvature=curvature_of).fit(task, case.train)
    own = attribution.scores(case.train).values.diagonal()
    assert bool((own > 0).all())
    assert bool((torch.from_numpy(attribution.self_scores().values) > 0).all())


@pytest.mark.parametrize("curvature", CURVATURES)
def test_self_scores_are_the_diagonal(curvature: str) -> None:
    case = zoo.make("conv", count=COUNT)
    attribution = wh.Influence(curvature=CURVATURES[curvature]).fit(wh.Task(case.model, weight_decay=0.02), case.train)
    diagonal = attribution.scores(case.train).values.diagonal().numpy()
    np.testing.assert_allclose(np.asarray(attribution.self_scores()), diagonal, rtol=0.05, atol=0.02 * diagonal.max())


def test_budget_changes_nothing() -> None:
    case = zoo.make("mlp", count=COUNT)
    task = wh.Task(case.model, weight_decay=0.02)
    kept = wh.Influence(batch_size=7).fit(task, case.train)
    recomputed = wh.Influence(batch_size=7, memory_budget=0).fit(task, case.train)
    for _ in range(2):
        torch.testing.assert_close(recomputed.scores(case.train).values, kept.scores(case.train).values)
        np.testing.assert_allclose(recomputed.self_scores(), kept.self_scores())


def test_the_model_may_change_after_its_copy_was_fitted_elsewhere() -> None:
    """Two attributions of one model do not disturb each other."""
    case = zoo.make("mlp", count=COUNT)
    one = wh.Influence().fit(wh.Task(case.model), case.train)
    other = wh.Influence().fit(wh.Task(copy.deepcopy(case.model)), case.train)
    assert torch.equal(one.scores(case.train).values, other.scores(case.train).values)
