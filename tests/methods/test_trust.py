"""Effective parameters against dense matrices, and what is said where there are more of them than examples."""

from __future__ import annotations

import pytest
import torch

import oracle
import whence as wh
import zoo


@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_effective_parameters_are_the_trace_of_g_times_the_inverse(damping: float) -> None:
    case = zoo.make("mlp")
    g = oracle.gauss_newton(case.model, oracle.cross_entropy, case.inputs, case.targets)
    shift = damping + 0.02
    expected = float(torch.linalg.solve(g + shift * torch.eye(len(g), dtype=g.dtype), g).trace())
    task = wh.Task(case.model, case.loss, weight_decay=0.02)
    attribution = wh.Influence(curvature=wh.Exact(damping=damping)).fit(task, case.train)
    assert attribution.summary()["effective_parameters"] == pytest.approx(expected, rel=1e-8)
    if expected <= len(case.inputs):
        assert attribution.doubt is None


@pytest.mark.parametrize("curvature", [wh.EKFAC(damping=0.3), wh.KFAC(damping=0.3, split=False)], ids=["ekfac", "kfac"])
def test_factored_curvatures_add_up_their_own_spectra(curvature: object) -> None:
    """tr G H⁻¹ = P − shift · tr H⁻¹, with H⁻¹ by products with every unit vector of every layer."""
    case = zoo.make("mlp")
    task = wh.Task(case.model, case.loss, weight_decay=0.02)
    attribution = wh.Influence(curvature=curvature).fit(task, case.train)
    trace = 0.0
    for layer in attribution.coverage.layers:
        out, inp = layer.shape
        units = torch.eye(out * inp, dtype=torch.float64).reshape(-1, out, inp)
        zeros = {other.name: torch.zeros(out * inp, *other.shape, dtype=torch.float64)
                 for other in attribution.coverage.layers}  # fmt: skip
        asked = wh.gradients.Gradients({name: wh.gradients.Matrix(units if name == layer.name else zero)
                                        for name, zero in zeros.items()})  # fmt: skip
        found = attribution.preconditioner.precondition(asked).layers[layer.name].matrix()
        trace += float((found.reshape(out * inp, -1) * units.reshape(out * inp, -1)).sum())
    expected = attribution.coverage.attributed - 0.32 * trace
    assert attribution.summary()["effective_parameters"] == pytest.approx(expected, rel=1e-6)


def test_more_of_them_than_examples_is_said_with_the_scores_and_nowhere_else() -> None:
    case = zoo.make("mlp")
    task = wh.Task(case.model, case.loss)
    wild = wh.Influence(curvature=wh.EKFAC(damping=1e-9)).fit(task, case.train)
    assert "effective parameters an example" in repr(wild.scores(case.train))
    assert "effective parameters an example" in repr(wild.self_scores())
    assert "effective parameters an example" in repr(wild.group_scores({"all": [0, 1]}, case.train))
    assert "use damping=" in wild.scores(case.train)._repr_html_() + wild.self_scores()._repr_html_()
    calm = wh.Influence(curvature=wh.EKFAC(damping=10.0)).fit(task, case.train)
    assert calm.doubt is None and "doubtful" not in repr(calm.scores(case.train))
    ranks = wh.Influence(curvature=wh.Identity()).fit(task, case.train)
    assert ranks.doubt is None and ranks.summary()["effective_parameters"] is None
