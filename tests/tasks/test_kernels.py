"""Kernel machines: coordinates against kernels, SVC's decision function, scores against a dual oracle and refits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

import whence as wh
from whence.tasks.kernels import Kernel, KernelSpan

KERNELS: dict[str, dict[str, Any]] = {
    "rbf": {"gamma": 0.3}, "linear": {}, "poly": {"gamma": 0.5, "degree": 2, "coef0": 1.0},
}  # fmt: skip
COUNT, QUERIES = 150, 12


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(COUNT + QUERIES, 3))
    y = np.where((x**2).sum(1) + x[:, 0] + generator.normal(size=len(x)) > 3, "far", "near")
    return x[:COUNT], y[:COUNT], x[COUNT:], y[COUNT:]


def svc(kernel: str, **more: Any) -> SVC:
    return SVC(**{"kernel": kernel, "C": 0.5, "tol": 1e-10, **KERNELS[kernel], **more})


@pytest.mark.parametrize("name", KERNELS)
def test_inner_products_are_kernels(name: str) -> None:
    x, _, asked, _ = problem()
    settings = KERNELS[name]
    gamma, offset = settings.get("gamma", 1.0), settings.get("coef0", 0.0)
    span = KernelSpan(x, Kernel(name=name, gamma=gamma, degree=settings.get("degree", 3), offset=offset))
    expected = pairwise_kernels(asked, x, metric=name, **settings)
    np.testing.assert_allclose(span.transform(asked) @ span.transform(x).T, expected, rtol=1e-6, atol=1e-8)
    a = np.random.default_rng(0).normal(size=(2, COUNT))
    np.testing.assert_allclose(span.transform(asked) @ span.weights(a).T, expected @ a.T, rtol=1e-6, atol=1e-7)
    w = span.weights(a)
    np.testing.assert_allclose((w**2).sum(1), np.diag(a @ pairwise_kernels(x, metric=name, **settings) @ a.T))


@pytest.mark.parametrize("name", KERNELS)
def test_decision_function_and_objective_are_those_of_the_svc(name: str) -> None:
    x, y, asked, labels = problem()
    fitted = make_pipeline(StandardScaler(), svc(name)).fit(x, y)
    task = wh.Task.from_sklearn(fitted, temperature=1e-5)
    examples = task.examples((asked, labels))
    outputs = task.forward(examples.batch(np.arange(QUERIES))).detach().numpy().ravel()
    np.testing.assert_allclose(outputs, fitted.decision_function(asked), rtol=1e-7, atol=1e-8)
    attribution = wh.Influence(curvature=wh.Exact()).fit(task, (x, y))
    weights = attribution.task.model.weight.detach().numpy()
    machine = fitted[-1]
    gram = pairwise_kernels(machine.support_vectors_, metric=name, **KERNELS[name])
    assert (weights**2).sum() == pytest.approx((machine.dual_coef_ @ gram @ machine.dual_coef_.T).item(), rel=1e-6)
    assert attribution.task.weight_decay == pytest.approx(2.0 / COUNT)  # 1 / (C N)


def dual_oracle(fitted: SVC, x: np.ndarray, y: np.ndarray, asked: np.ndarray, labels: np.ndarray, t: float) -> Any:
    """Return ∇m_tᵀ H⁻¹ ∇ℓ_i / N in the space of all training points' coefficients, by kernels alone."""
    signs, queried = np.where(y == fitted.classes_[1], 1.0, -1.0), np.where(labels == fitted.classes_[1], 1.0, -1.0)
    settings = {"metric": "rbf", "gamma": fitted.gamma}
    gram, cross = pairwise_kernels(x, x, **settings), pairwise_kernels(asked, x, **settings)

    def sigmoid(f: np.ndarray, s: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip((1 - s * f) / t, -500, 500)))

    own, other = (sigmoid(fitted.decision_function(z), s) for z, s in ((x, signs), (asked, queried)))
    left = np.concatenate([cross, np.ones((len(cross), 1))], 1)  # f as a function of (a, b)
    jacobian = np.concatenate([gram, np.ones((len(gram), 1))], 1)
    penalty = np.zeros((len(x) + 1, len(x) + 1))
    penalty[:-1, :-1] = gram / (fitted.C * len(x))
    hessian = jacobian.T @ ((own * (1 - own) / t)[:, None] * jacobian) / len(x) + penalty
    return (-queried * other)[:, None] * (left @ np.linalg.pinv(hessian, 1e-13) @ jacobian.T) * -(signs * own) / len(x)


def test_scores_are_those_of_the_dual_and_predict_refits() -> None:
    x, y, asked, labels = problem()
    fitted = svc("rbf").fit(x, y)
    scores = {}
    for t in (0.02, 0.1):
        attribution = wh.Influence(curvature=wh.Exact()).fit(wh.Task.from_sklearn(fitted, temperature=t), (x, y))
        scores[t] = attribution.scores((asked, labels)).values.numpy()
    support = fitted.support_
    expected = dual_oracle(fitted, x, y, asked, labels, 0.1)[:, support]
    error = np.linalg.norm(scores[0.1][:, support] - expected) / np.linalg.norm(expected)
    assert error < 0.1  # the dual also has directions of rows beyond the margin, whose curvature at t is not quite 0
    signs = np.where(labels == fitted.classes_[1], 1.0, -1.0)
    rows = support[:: max(1, len(support) // 25)]
    before = np.maximum(0, 1 - signs * fitted.decision_function(asked))
    actual = [
        np.maximum(0, 1 - signs * svc("rbf").fit(np.delete(x, row, 0), np.delete(y, row)).decision_function(asked))
        for row in rows
    ]
    change = (np.stack(actual, 1) - before[:, None]).ravel()
    assert np.corrcoef(scores[0.02][:, rows].ravel(), change)[0, 1] > 0.9


def test_the_linear_kernel_is_the_linear_machine() -> None:
    """With an intercept that no penalty reaches in either: LinearSVC with a large intercept scaling."""
    x, y, asked, labels = problem()
    kernel = svc("linear").fit(x, y)
    linear = LinearSVC(C=0.5, loss="hinge", tol=1e-10, max_iter=1_000_000, intercept_scaling=30.0).fit(x, y)
    found = [
        wh.Influence(curvature=wh.Exact()).fit(wh.Task.from_sklearn(one, temperature=0.2), (x, y))
        .scores((asked, labels)).values for one in (kernel, linear)
    ]  # fmt: skip
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=1e-4)


REFUSED: dict[str, tuple[Any, str]] = {
    "three classes": (lambda x, y: svc("rbf").fit(x, np.arange(len(x)) % 3), "must have two classes, got 3"),
    "callable": (lambda x, y: SVC(kernel=lambda a, b: a @ b.T).fit(x, y), "must have a named kernel and dense rows"),
    "sparse": (lambda x, y: svc("rbf").fit(scipy.sparse.csr_matrix(x), y), "dense rows, got sparse rows"),
    "precomputed": (lambda x, y: SVC(kernel="precomputed").fit(x @ x.T, y), "kernel must be one of.*precomputed"),
    "indefinite": (lambda x, y: SVC(kernel="sigmoid", gamma=2.0, coef0=-3.0).fit(x, y), "must be positive on"),
}


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_refusals(make: Any, message: str) -> None:
    x, y, _, _ = problem()
    with pytest.raises(wh.ConfigError, match=message):
        wh.Task.from_sklearn(make(x, y))


def test_rows_must_fit() -> None:
    x, y, _, _ = problem()
    task = wh.Task.from_sklearn(svc("rbf").fit(x, y))
    with pytest.raises(wh.DataError, match=r"X must be \[N, 3\] for this kernel, got shape \(4, 2\)"):
        task.examples((x[:4, :2], y[:4]))
    frame = task.examples((pd.DataFrame(x), y))
    assert frame.batch(np.arange(2)).inputs.shape[1] == task.model.in_features
    assert repr(task.estimator) == "kernel → SVC"
