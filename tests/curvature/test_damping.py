"""Damping by the evidence of the Laplace approximation, against the evidence itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

import whence as wh
import zoo
from whence.curvature.damping import evidence_shift
from whence.errors import ConfigError, NumericalError


def evidence(log_shift: float, eigenvalues: np.ndarray, norm: float, count: int) -> float:
    """Return the log marginal likelihood of the Laplace approximation, but for a constant."""
    shift = np.exp(log_shift)
    size = len(eigenvalues)
    return float(size / 2 * log_shift - count / 2 * shift * norm - 0.5 * np.log(eigenvalues + shift).sum())


@given(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12), st.integers(1, 10_000), st.floats(1e-3, 1e3),
    st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_shift_maximises_the_evidence(values: list[float], count: int, norm: float, dead: int) -> None:
    eigenvalues = np.array([*values, *([0.0] * dead)])
    weights = torch.full((4,), (norm / 4) ** 0.5, dtype=torch.float64)
    found = evidence_shift(torch.from_numpy(eigenvalues), weights, count)
    best = minimize_scalar(
        lambda x: -evidence(x, eigenvalues, norm, count), bounds=(np.log(found) - 20, np.log(found) + 20),
        method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    assert evidence(np.log(found), eigenvalues, norm, count) >= -best.fun - 1e-7 * max(1.0, abs(best.fun))


def test_more_data_need_less_damping_and_larger_weights_too() -> None:
    values = torch.logspace(-4, 0, 30)
    shifts = [evidence_shift(values, torch.ones(5), count) for count in (10, 100, 1000)]
    assert shifts == sorted(shifts, reverse=True)
    assert evidence_shift(values, 3 * torch.ones(5), 100) < shifts[1]
    assert evidence_shift(10 * values, torch.ones(5), 100) > shifts[1], "more of the weights are determined"


def test_edges() -> None:
    assert evidence_shift(torch.zeros(3), torch.ones(2), 10) == 0.0
    with pytest.raises(NumericalError, match="zeros"):
        evidence_shift(torch.ones(3), torch.zeros(2), 10)
    with pytest.raises(NumericalError, match="finite"):
        evidence_shift(torch.tensor([1.0, float("nan")]), torch.ones(2), 10)
    for curvature in (wh.EKFAC, wh.KFAC):
        with pytest.raises(ConfigError, match='"auto"'):
            curvature(damping="automatic")
        with pytest.raises(ConfigError, match="damping"):
            curvature(damping=-1.0)


def linear_blocks(model: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax regression's covariances A, G by definition, bias column included."""
    joined = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    p = model(x).softmax(1).detach()
    fisher = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
    return joined.T @ joined / len(x), fisher


@pytest.mark.parametrize("decay", [0.0, 1e-3, 10.0])
def test_kfac_takes_the_evidence_of_its_own_eigenvalues(decay: float) -> None:
    case = zoo.make("linear", count=40)
    assert isinstance(case.model, nn.Linear)
    a, g = linear_blocks(case.model, case.inputs)
    values = torch.linalg.eigvalsh(torch.kron(g, a)).clamp(min=0)
    weights = torch.cat([p.detach().reshape(-1) for p in case.model.parameters()])
    expected = max(0.0, evidence_shift(values, weights, 40) - decay)
    curvature = wh.KFAC(damping="auto", fisher="exact", split=False)
    fitted = wh.Influence(curvature=curvature).fit(wh.Task(case.model, weight_decay=decay), case.train)
    assert layers(fitted)[""]["damping"] == pytest.approx(expected, rel=1e-8)


def layers(attribution: wh.InfluenceAttribution) -> dict[str, Any]:
    found: dict[str, Any] = attribution.summary()["curvature"]["layers"]
    return found


@pytest.mark.parametrize("name", ["mlp", "conv", "text", "norms", "regression"])
@pytest.mark.parametrize("curvature", [wh.EKFAC, wh.KFAC])
def test_automatic_damping_is_that_number(name: str, curvature: Any) -> None:
    """Scores are those of the chosen number, layer by layer; nothing else depends on the rule."""
    case = zoo.make(name, count=12)
    task = wh.Task(case.model, case.loss)
    chosen = layers(wh.Influence(curvature=curvature(damping="auto", fisher="empirical")).fit(task, case.train))
    for layer, found in chosen.items():
        assert 0 < found["damping"] < float("inf")
        only = {"layers": [f"^{layer}$".replace(".", r"\.")]}
        auto = wh.Influence(curvature=curvature(damping="auto", fisher="empirical"), **only).fit(task, case.train)
        number = curvature(damping=found["damping"], fisher="empirical")
        fixed = wh.Influence(curvature=number, **only).fit(task, case.train)
        torch.testing.assert_close(auto.scores(case.train).values, fixed.scores(case.train).values)


def test_batch_size_and_order_do_not_matter() -> None:
    case = zoo.make("mlp", count=11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    found = []
    for size, rows in ((11, torch.arange(11)), (1, order), (7, order)):
        method = wh.Influence(curvature=wh.EKFAC(damping="auto", fisher="exact"), batch_size=size)
        fitted = method.fit(wh.Task(case.model), (case.inputs[rows], case.targets[rows]))
        found.append([layer["damping"] for layer in layers(fitted).values()])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-9)
