"""Conjugate gradients, LiSSA and the Neumann series: answers, promises kept, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_against_dense import DECAY, Fitted, assert_applies, assert_norm_close, fitted, shift
from torch import Tensor, nn

import oracle
from whence.curvature import CG, EKFAC, KFAC, Curvature, Diagonal, Identity, LiSSA, Neumann, Relative
from whence.curvature.solve import conjugate_gradients
from whence.data import as_examples, uniform
from whence.errors import ConfigError, NumericalError
from whence.gradients import Gradients, GradientStream, Matrix
from whence.methods import Influence
from whence.tasks import Task

KEPT = 10**9


def dense(of: Fitted) -> Tensor:
    return oracle.gauss_newton(of.case.model, oracle.LOSSES[of.case.loss], *of.case.train)


def inverse_of(matrix: Tensor, shifted: float) -> Tensor:
    return torch.linalg.inv(matrix + shifted * torch.eye(len(matrix), dtype=matrix.dtype))


@pytest.mark.parametrize("damping", [Relative(0.1), 0.02])
@pytest.mark.parametrize("preconditioner", [None, EKFAC(), KFAC(), Diagonal(), KFAC(split=False)], ids=str)
@pytest.mark.parametrize("name", ["linear", "mlp", "conv", "text"])
def test_cg(name: str, preconditioner: Curvature | None, damping: Any) -> None:
    of = fitted(name, budget=KEPT)
    matrix = dense(of)
    found = of.fit(CG(damping=damping, tolerance=1e-11, preconditioner=preconditioner))
    assert_applies(of, found, inverse_of(matrix, shift(damping, matrix.diagonal().mean())))
    told = found.summary()
    assert told["converged"] and told["residual"] <= 1e-11 and 0 < told["steps"] <= 80
    assert told["effective_damping"] == pytest.approx(shift(damping, matrix.diagonal().mean()))


def test_cg_streams_beyond_the_budget() -> None:
    of = fitted("mlp", budget=0)
    matrix = dense(of)
    assert_applies(of, of.fit(CG(damping=0.02, tolerance=1e-11)), inverse_of(matrix, 0.02 + DECAY))


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_cg_with_other_fishers(fisher: str) -> None:
    of = fitted("mlp", budget=KEPT)
    whole = oracle.jacobians(of.case.model, of.case.inputs, 11)
    gradients = torch.einsum("nrc,ncp->nrp", of.roots(fisher), whole).flatten(0, 1)
    config = CG(damping=0.5, fisher=fisher, tolerance=1e-11)  # type: ignore[arg-type]
    assert_applies(of, of.fit(config), inverse_of(gradients.T @ gradients / 11, 0.5 + DECAY))


@pytest.mark.parametrize("name", ["linear", "mlp", "text"])
def test_cg_on_the_hessian(name: str) -> None:
    of = fitted(name, count=6)
    matrix = oracle.hessian(of.case.model, oracle.LOSSES[of.case.loss], *of.case.train)
    damping = 0.5 + max(0.0, float(-torch.linalg.eigvalsh(matrix)[0]))
    found = of.fit(CG(damping=damping, hessian=True, tolerance=1e-11))
    assert_norm_close(found.precondition(of.gradients()).dense(), of.gradients().dense()
                      @ inverse_of(matrix, damping + DECAY), 1e-9)  # fmt: skip


def test_negative_curvature_is_named() -> None:
    of = fitted("mlp", count=6, decay=0.0)
    with pytest.raises(NumericalError, match=r"direction of curvature -.*hessian=False.*damping"):
        found = of.fit(CG(damping=1e-6, hessian=True))
        found.precondition(of.gradients())


def test_every_query_stops_at_its_own_tolerance() -> None:
    values = torch.logspace(0, 4, 60, dtype=torch.float64)
    right = torch.zeros(4, 60, dtype=torch.float64)
    right[0, 5], right[1], right[2] = 1.0, 1.0, values.rsqrt()
    products = []

    def product(v: Tensor) -> Tensor:
        products.append(len(v))
        return v * values

    found = conjugate_gradients(product, right, None, tolerance=1e-8, max_steps=500)
    assert found.converged.all()
    assert found.steps[0] == 1 and found.steps[3] == 0 and found.steps[1] > found.steps[2] > 1
    assert products[0] == 3 and products[1] == 2
    true = (right - found.value * values).norm(dim=1) / right.norm(dim=1).clamp(1e-9)
    torch.testing.assert_close(found.residual, true)
    assert float(found.residual.max()) <= 1e-8


def test_a_good_preconditioner_takes_fewer_steps() -> None:
    """Columns of very different scale make the curvature ill-conditioned; its factors know about it."""
    of = fitted("linear", count=40, budget=KEPT, decay=0.0)
    of.case.inputs.mul_(torch.tensor([100.0, 10.0, 1.0, 0.1, 0.01], dtype=torch.float64))
    steps = {}
    for name, inner in (("none", None), ("ekfac", EKFAC(damping=1e-5))):
        found = of.fit(CG(damping=1e-5, tolerance=1e-8, preconditioner=inner))
        found.precondition(of.gradients())
        steps[name] = found.summary()["steps"]
    assert steps["ekfac"] < steps["none"] / 2


def test_cg_comes_nearer_with_every_step() -> None:
    of = fitted("conv", budget=KEPT)
    exact = of.gradients().dense() @ inverse_of(dense(of), 0.02 + DECAY)
    errors = []
    for steps in (1, 3, 6, 12, 24):
        found = of.fit(CG(damping=0.02, tolerance=1e-12, max_steps=steps, require_convergence=False))
        errors.append(float((found.precondition(of.gradients()).dense() - exact).norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 * errors[0]


@pytest.mark.parametrize(
    "config", [CG(max_steps=2), LiSSA(depth=2), Neumann(steps=1, tolerance=1e-6, require_convergence=True)]
)
def test_no_convergence_is_an_error_unless_asked_otherwise(config: Any) -> None:
    of = fitted("mlp", budget=KEPT)
    with pytest.raises(NumericalError, match=r"must converge.*require_convergence=False"):
        of.fit(config).precondition(of.gradients())
    found = of.fit(replace(config, require_convergence=False))
    assert found.summary()["converged"] is None
    found.precondition(of.gradients())
    told = found.summary()
    assert told["converged"] is False and told["residual"] > config.tolerance and told["solves"] == 11


@pytest.mark.parametrize("scale", ["auto", 20.0])
@pytest.mark.parametrize("name", ["linear", "mlp", "text"])
def test_lissa_without_sampling_tends_to_its_fixed_point(name: str, scale: Any) -> None:
    of = fitted(name, budget=KEPT)
    matrix = dense(of)
    found = of.fit(LiSSA(damping=1.0, batch=100, depth=400, scale=scale, tolerance=1e-6))
    gradients, inverse = of.gradients(), inverse_of(matrix, 1.0 + DECAY)
    assert_norm_close(found.precondition(gradients).dense(), gradients.dense() @ inverse, 1e-7)
    assert_norm_close(found.quadratic(gradients), ((gradients.dense() @ inverse) * gradients.dense()).sum(1), 1e-7)
    told = found.summary()
    assert told["damp"] * told["scale"] == pytest.approx(1.0 + DECAY)
    if scale == "auto":
        assert told["scale"] >= float(torch.linalg.eigvalsh(matrix)[-1])


def test_lissa_is_the_textbook_recursion() -> None:
    """h ← v + (1 − damp) h − H h / scale, answer h / scale, for the depth asked for."""
    of = fitted("mlp", budget=KEPT)
    matrix, v = dense(of), of.gradients().dense()
    h = v
    for _ in range(6):
        h = v + (1 - (0.3 + DECAY) / 20) * h - h @ matrix / 20
    config = LiSSA(damping=0.3, batch=100, depth=7, scale=20.0, require_convergence=False)
    assert_norm_close(of.fit(config).precondition(of.gradients()).dense(), h / 20, 1e-12)


def test_lissa_with_batches_is_near_and_repeats_bring_it_nearer() -> None:
    of = fitted("mlp", count=40, budget=KEPT)
    exact = of.gradients().dense() @ inverse_of(dense(of), 0.3 + DECAY)
    errors = []
    for repeats in (1, 8):
        config = LiSSA(damping=0.3, batch=8, depth=80, repeats=repeats, require_convergence=False)
        found = of.fit(config).precondition(of.gradients()).dense()
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 0.6 * errors[0] < 0.2


@pytest.mark.parametrize("config", [LiSSA(batch=4, depth=40, require_convergence=False), Neumann(batch=4)])
def test_batches_follow_ids_not_rows(config: Curvature) -> None:
    of = fitted("mlp", budget=KEPT)
    order = np.random.default_rng(0).permutation(11)
    rows = torch.from_numpy(order)
    shuffled = as_examples((of.case.inputs[rows], of.case.targets[rows]), ids=order.tolist())
    expected = of.fit(config).precondition(of.gradients()).dense()
    for chunk in (1, 7):
        stream = GradientStream(of.task, of.stream.layers, shuffled, chunk, KEPT)
        assert_norm_close(config.fit(stream, seed=3).precondition(of.gradients()).dense(), expected, 1e-12)
        other = config.fit(stream, seed=4).precondition(of.gradients()).dense()
        assert float((other - expected).norm() / expected.norm()) > 1e-6


@pytest.mark.parametrize("config", [LiSSA(scale=1e-3, batch=100), Neumann(step_size=1e3)])
def test_divergence_is_an_error_with_a_remedy(config: Curvature) -> None:
    of = fitted("mlp", budget=KEPT)
    with pytest.raises(NumericalError, match=r"diverges with scale.*scale=\"auto\""):
        of.fit(config).precondition(of.gradients())


def test_an_automatic_scale_is_doubled_until_it_holds() -> None:
    of = fitted("mlp", budget=KEPT)
    found = of.fit(LiSSA(damping=1.0, batch=100, depth=300, tolerance=1e-4))
    solver = found.solver  # type: ignore[attr-defined]
    timid = replace(found, solver=replace(solver, scale=solver.scale / 8))  # type: ignore[type-var]
    exact = of.gradients().dense() @ inverse_of(dense(of), 1.0 + DECAY)
    assert_norm_close(timid.precondition(of.gradients()).dense(), exact, 1e-3)


@pytest.mark.parametrize(
    "config",
    [
        LiSSA(damping=0.5, batch=4, depth=64, repeats=2, require_convergence=False),
        Neumann(damping=0.5, preconditioner=Identity(), batch=4, steps=64),
    ],
    ids=["lissa", "neumann"],
)
def test_a_row_that_diverges_leaves_the_others_alone(config: Curvature) -> None:
    """The outlier lies in a batch that power iteration does not see and alone has its direction."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    inputs[:, 2] = 0
    order = np.argsort(uniform(as_examples(inputs).keys, 0), kind="stable")
    inputs[order[5]] = torch.tensor([0.0, 0.0, 12.0], dtype=torch.float64)  # in the second of 16 batches
    train = (inputs, torch.randn(64, 1, generator=generator, dtype=torch.float64))
    queries = (torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64), torch.ones(2, 1).double())
    task = Task(nn.Linear(3, 1, bias=False).double(), "mse")
    found = {}
    for size in (1, 64):
        attribution = Influence(curvature=config, batch_size=size).fit(task, train)
        found[size] = attribution.scores(queries).values
        scales = attribution.summary()["curvature"]["scales"]
        assert list(scales.values()) == [1, 1], "one query was rescaled, the other was not"
    alone = [attribution.scores((x[None], y[None])).values for x, y in zip(*queries, strict=True)]
    assert_norm_close(found[64], found[1], 1e-9)
    assert_norm_close(torch.cat(alone), found[64], 1e-9)


@pytest.mark.parametrize("inner", [EKFAC(), KFAC(split=False), Diagonal()], ids=str)
@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_neumann_tends_to_the_exact_answer(name: str, inner: Curvature) -> None:
    of = fitted(name, budget=KEPT)
    inverse = inverse_of(dense(of), 0.3 + DECAY)
    exact = of.gradients().dense() @ inverse
    errors = []
    for steps in (1, 4, 16, 300):
        found = of.fit(Neumann(damping=0.3, preconditioner=inner, steps=steps))
        errors.append(float((found.precondition(of.gradients()).dense() - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6
    assert found.summary()["converged"] and 0 < found.summary()["step_size"] < 2


def test_neumann_is_its_recursion() -> None:
    of = fitted("mlp", budget=KEPT)
    matrix = dense(of) + (0.3 + DECAY) * torch.eye(of.gradients().dense().shape[1], dtype=torch.float64)
    flat = of.gradients().dense()
    inner = of.fit(KFAC())

    def metric(v: Tensor) -> Tensor:
        parts = v.split([o * i for o, i in (layer.shape for layer in of.stream.layers)], 1)
        named = zip(of.stream.layers, parts, strict=True)
        return inner.precondition(Gradients({la.name: Matrix(p.reshape(-1, *la.shape)) for la, p in named})).dense()

    x = torch.zeros_like(flat)
    for _ in range(5):
        x = x + 0.4 * metric(flat - x @ matrix)
    found = of.fit(Neumann(damping=0.3, preconditioner=KFAC(), steps=5, step_size=0.4))
    assert_norm_close(found.precondition(of.gradients()).dense(), x, 1e-11)


def test_one_step_of_neumann_is_its_preconditioner() -> None:
    of = fitted("mlp", budget=KEPT)
    one = of.fit(Neumann(steps=1, step_size=1.0)).precondition(of.gradients())
    gradients = of.gradients()
    whole = Gradients({name: Matrix(f.matrix()) for name, f in gradients.layers.items()})
    assert_norm_close(one.dense(), of.fit(EKFAC()).precondition(whole).dense(), 1e-12)


@pytest.mark.parametrize(
    "config, settings",
    [(CG, {"tolerance": 0.0}), (CG, {"max_steps": 0}), (CG, {"max_steps": 2.5}), (CG, {"damping": -1.0}),
     (CG, {"fisher": "true"}), (LiSSA, {"depth": 0}), (LiSSA, {"batch": None, "repeats": 0}), (LiSSA, {"scale": 0.0}),
     (LiSSA, {"tolerance": 1.0}), (Neumann, {"steps": 0}), (Neumann, {"step_size": -1.0}), (Neumann, {"batch": 0})],
)  # fmt: skip
def test_settings_are_checked(config: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{list(settings)[-1]} must"):
        config(**settings)
