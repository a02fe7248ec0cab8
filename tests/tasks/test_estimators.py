"""scikit-learn estimators: the same objective, predictions and minimum; scores against scikit-learn's own refits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import Lasso, LogisticRegression, LogisticRegressionCV, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

import whence as wh

COUNT, QUERIES = 160, 15
Measure = Callable[[Any], np.ndarray]


def problem(classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return X, y, and queries of them; labels are words."""
    generator = np.random.default_rng(classes)
    x = generator.normal(size=(COUNT + QUERIES, 4)) * [1, 2, 0.5, 1] + 1
    logits = x @ generator.normal(size=(4, classes)) + 2 * generator.normal(size=(COUNT + QUERIES, classes))
    y = np.array(["ham", "spam", "eggs"][:classes])[(logits - logits.mean(0)).argmax(1)]
    return x[:COUNT], y[:COUNT], x[COUNT:], y[COUNT:]


def log_loss(x: np.ndarray, y: np.ndarray) -> Measure:
    return lambda fitted: -np.log(fitted.predict_proba(x)[np.arange(len(y)), np.searchsorted(fitted.classes_, y)])


def squared_hinge(x: np.ndarray, y: np.ndarray) -> Measure:
    def of(fitted: Any) -> np.ndarray:
        values = fitted.decision_function(x)
        values = values[:, None] if values.ndim == 1 else values
        positions = np.searchsorted(fitted.classes_, y)
        signs = 2 * positions[:, None] - 1 if values.shape[1] == 1 else 2 * np.eye(values.shape[1])[positions] - 1
        return (np.maximum(0, 1 - signs * values) ** 2).sum(1)

    return of


def logistic(**settings: Any) -> LogisticRegression:
    return LogisticRegression(**{"tol": 1e-10, "max_iter": 10_000, **settings})


def svc(**settings: Any) -> LinearSVC:
    return LinearSVC(C=0.1, tol=1e-10, max_iter=100_000, dual=False, **settings)


CASES: dict[str, tuple[BaseEstimator, int, Callable[[np.ndarray, np.ndarray], Measure]]] = {
    "binary": (logistic(C=0.3), 2, log_loss),
    "no intercept": (logistic(C=1.0, fit_intercept=False, solver="newton-cholesky"), 2, log_loss),
    "no penalty": (logistic(C=np.inf), 2, log_loss),
    "multinomial": (logistic(C=0.1), 3, log_loss),
    "liblinear": (logistic(C=1.0, solver="liblinear", intercept_scaling=3.0), 2, log_loss),
    "weighted": (logistic(C=1.0, class_weight={"spam": 3.0}), 2, log_loss),
    "pipeline": (make_pipeline(StandardScaler(), logistic(C=0.3)), 3, log_loss),
    "svc": (svc(), 2, squared_hinge),
    "svc of three": (svc(intercept_scaling=2.0), 3, squared_hinge),
}


@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_changes_on_refitting(name: str) -> None:
    """Every step is held fixed: the scaler of a pipeline is refitted here too, and that hardly matters."""
    estimator, classes, kind = CASES[name]
    x, y, asked, labels = problem(classes)
    fitted = clone(estimator).fit(x, y)
    factor = 1 + 2 * (labels == "spam") if name == "weighted" else 1
    measure = kind(asked, labels)
    attribution = wh.Influence(curvature=wh.Exact()).fit(wh.Task.from_sklearn(fitted), (x, y))
    assert attribution.gradient_norm < 1e-6  # it is the minimum of the same objective
    rows = list(range(3, COUNT, 9))
    refits = [clone(estimator).fit(np.delete(x, row, 0), np.delete(y, row)) for row in rows]
    actual = np.stack([factor * (measure(refit) - measure(fitted)) for refit in refits], 1).ravel()
    predicted = attribution.scores((asked, labels), leverage_corrected=True).values[:, rows].numpy().ravel()
    assert np.corrcoef(predicted, actual)[0, 1] > 0.99
    slope, offset = np.polyfit(predicted, actual, 1)
    assert 0.95 < slope < 1.05
    assert abs(offset) < 0.02 * actual.std()


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_ridge_is_exact(outputs: int, intercept: bool) -> None:
    generator = np.random.default_rng(outputs)
    x = generator.normal(size=(40, 4)) + 1
    y = (x @ generator.normal(size=(4, outputs)) + generator.normal(size=(40, outputs)))[:, : outputs or 1]
    y = y[:, 0] if outputs == 1 else y
    fitted = Ridge(alpha=3.0, fit_intercept=intercept).fit(x[:30], y[:30])
    task = wh.Task.from_sklearn(fitted, measurement=lambda model, batch: model(batch.inputs).sum(1))
    attribution = wh.Influence(curvature=wh.Exact()).fit(task, (x[:30], y[:30]))
    scores = attribution.scores(x[30:], leverage_corrected=True).values.numpy()
    for row in range(30):
        refit = clone(fitted).fit(np.delete(x[:30], row, 0), np.delete(y[:30], row, 0))
        actual = (refit.predict(x[30:]) - fitted.predict(x[30:])).reshape(10, -1).sum(1)
        np.testing.assert_allclose(scores[:, row], actual, rtol=1e-8, atol=1e-11)
    group = [2, 3, 5, 7, 11, 13]
    refit = clone(fitted).fit(np.delete(x[:30], group, 0), np.delete(y[:30], group, 0))
    change = attribution.parameter_change(group, order=2)
    np.testing.assert_allclose(change["weight"].squeeze(0), refit.coef_ - fitted.coef_, rtol=1e-8, atol=1e-11)
    if intercept:
        moved = np.atleast_1d(refit.intercept_ - fitted.intercept_)
        np.testing.assert_allclose(change["bias"], moved, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("curvature", [wh.CG(damping=0.0, tolerance=1e-12), wh.BlockExact(damping=0.0)])
def test_other_exact_curvatures_leave_the_intercept_undecayed(curvature: Any) -> None:
    x, y, asked, labels = problem(3)
    task = wh.Task.from_sklearn(logistic(C=0.1).fit(x, y))
    expected = wh.Influence(curvature=wh.Exact()).fit(task, (x, y)).scores((asked, labels)).values
    found = wh.Influence(curvature=curvature).fit(task, (x, y)).scores((asked, labels)).values
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver, classes", [("lbfgs", 2), ("lbfgs", 3), ("adam", 3)])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_networks(activation: str, solver: str, classes: int) -> None:
    x, y, asked, labels = problem(classes)
    settings = {"activation": activation, "solver": solver, "alpha": 0.5, "max_iter": 300, "random_state": 0}
    fitted = MLPClassifier((5, 4), tol=1e-9, batch_size=40, **settings).fit(x, y)
    task = wh.Task.from_sklearn(fitted)
    logits = task.model(torch.from_numpy(asked)).detach()
    p = torch.cat([1 - logits.sigmoid(), logits.sigmoid()], 1) if classes == 2 else logits.softmax(1)
    np.testing.assert_allclose(p, fitted.predict_proba(asked), rtol=1e-9, atol=1e-12)
    attribution = wh.Influence().fit(task, (x, y))
    assert attribution.task.weight_decay == pytest.approx(0.5 / (COUNT if solver == "lbfgs" else 40))
    assert attribution.gradient_norm < (0.02 if (activation, solver) == ("tanh", "lbfgs") else 0.3)  # kinks, noise
    assert attribution.task.removed_decay == (0.0 if solver == "lbfgs" else attribution.task.weight_decay)
    assert attribution.scores((asked, labels)).values.shape == (QUERIES, COUNT)
    if solver == "adam":
        with pytest.raises(wh.DataError, match=f"must be the {COUNT} rows that MLPClassifier was fitted to, got 100"):
            wh.Influence().fit(task, (x[:100], y[:100]))


def test_rows_as_scikit_learn_takes_them() -> None:
    """A DataFrame with words, a sparse matrix, labels of any type, ids of the index or of one's own."""
    x, y, _, _ = problem(2)
    frame = pd.DataFrame(x, columns=list("abcd"), index=[f"row {i}" for i in range(COUNT)])
    frame["town"] = np.where(x[:, 0] > 1, "Rome", "Bonn")
    encoder = make_column_transformer((OneHotEncoder(), ["town"]), remainder="passthrough")
    fitted = Pipeline([("encode", encoder), ("none", "passthrough"), ("model", logistic(C=0.3))]).fit(frame, y == "ham")
    task = wh.Task.from_sklearn(fitted)
    attribution = wh.Influence(curvature=wh.Exact()).fit(task, (frame, pd.Series(y == "ham")))
    assert attribution.ids.tolist()[:2] == ["row 0", "row 1"]
    examples = task.examples((frame, y == "ham"), ids=np.arange(100, 100 + COUNT))
    assert examples.ids[0] == 100
    again = wh.Influence(curvature=wh.Exact()).fit(task, examples)
    torch.testing.assert_close(again.scores((frame[:3], (y == "ham")[:3])).values, attribution.scores(
        examples.select(np.arange(3))).values)  # fmt: skip
    values = examples.batch(np.arange(COUNT)).inputs.numpy()
    np.testing.assert_allclose(values @ fitted[-1].coef_[0] + fitted[-1].intercept_, fitted.decision_function(frame))
    sparse = make_pipeline(MaxAbsScaler(), svc()).fit(scipy.sparse.csr_matrix(x), y)
    dense = make_pipeline(MaxAbsScaler(), svc()).fit(x, y)
    scores = [
        wh.Influence(curvature=wh.Exact()).fit(wh.Task.from_sklearn(one), (data, y)).scores((data[:4], y[:4])).values
        for one, data in ((sparse, scipy.sparse.csr_matrix(x)), (dense, x))
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-6, atol=1e-9)
    assert wh.find_label_errors(attribution).shape[0] == COUNT


def test_runs_are_saved_and_planned(tmp_path: Any) -> None:
    x, y, asked, labels = problem(3)
    task = wh.Task.from_sklearn(logistic(C=0.1, class_weight="balanced").fit(x, y))
    attribution = wh.Influence(curvature=wh.Exact()).fit(task, (x, y))
    assert attribution.gradient_norm < 1e-6
    attribution.save(tmp_path / "run")
    loaded = wh.load(tmp_path / "run", task, (x, y))
    torch.testing.assert_close(loaded.scores((asked, labels)).values, attribution.scores((asked, labels)).values)
    with pytest.raises(wh.ConfigError, match=r"Pass load\(\.\.\., train=\(X, y\)\)"):
        wh.load(tmp_path / "run", task)
    with pytest.raises(wh.RunFormatError, match="decay must be that of run"):
        other = wh.Task(task.model, attribution.task.loss, weight_decay=attribution.task.weight_decay)
        wh.load(tmp_path / "run", other, task.examples((x, y)))
    assert wh.plan(wh.Influence(), task, (x, y), (asked, labels)).examples == COUNT


def test_the_hinge_is_smoothed() -> None:
    x, y, _, _ = problem(2)
    fitted = LinearSVC(C=0.1, loss="hinge", tol=1e-9, max_iter=1_000_000).fit(x, y)
    task = wh.Task.from_sklearn(fitted, temperature=0.05)
    assert task.loss == wh.tasks.SmoothHinge(temperature=0.05)
    assert wh.Influence(curvature=wh.Exact()).fit(task, (x, y)).gradient_norm < 0.1


BAD: list[tuple[Any, str]] = [
    (LogisticRegression(), "estimator must be fitted, got a LogisticRegression that is not"),
    (make_pipeline(StandardScaler(), LinearSVC()), "estimator must be fitted, got a LinearSVC that is not"),
    (MLPClassifier(), "must be fitted"),
    (Lasso(), r"one of \['LinearSVC', 'LogisticRegression', 'MLPClassifier', 'Ridge', 'SVC'\].*got Lasso"),
    (LogisticRegressionCV(), "got LogisticRegressionCV"),
    (torch.nn.Linear(2, 2), "got Linear"),
    (LogisticRegression(l1_ratio=1.0, solver="saga"), "must have an l2 penalty or none"),
    (LinearSVC(penalty="l1", dual=False), "must have an l2 penalty"),
    (LinearSVC(multi_class="crammer_singer"), "one against the rest"),
    (MLPClassifier(early_stopping=True, max_iter=2), "all its rows to train on"),
    (Ridge(positive=True), "one alpha and free signs"),
]


@pytest.mark.parametrize("estimator, match", BAD, ids=[str(match)[-12:] + str(i) for i, (_, match) in enumerate(BAD)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore::FutureWarning")
def test_estimators_that_cannot_be_read(estimator: Any, match: str) -> None:
    x, y, _, _ = problem(2)
    if "be fitted" not in match and hasattr(estimator, "fit") and "got Log" not in match:
        estimator = clone(estimator).fit(x, (y == "ham").astype(int))
    with pytest.raises(wh.ConfigError, match=match):
        wh.Task.from_sklearn(estimator)


def test_rows_that_do_not_fit() -> None:
    x, y, _, _ = problem(2)
    frame = pd.DataFrame(x, columns=list("abcd"))
    task = wh.Task.from_sklearn(make_pipeline(StandardScaler(), logistic()).fit(frame, y))
    bare = wh.Task.from_sklearn(logistic().fit(frame, y))
    for of, data, match in [
        (bare, (x, y[:-1]), "X and y must have as many rows as each other, got 160 and 159"),
        (bare, (x[:, :3], y), r"X must be \[N, 4\] for LogisticRegression, got shape \(160, 3\)"),
        (bare, (frame[list("bacd")], y), "columns of X must be"),
        (bare, (frame.assign(a="no"), y), "X must be numbers"),
        (task, (frame[["a"]], y), "X must be rows that step 'standardscaler' takes"),
        (task, (frame, np.where(y == "ham", "ham", "jam")), "must be among the classes .*got 'jam'"),
        (task, frame, "must have labels, got X alone"),
        (task, wh.as_examples((x, np.zeros(COUNT))), "got Examples of raw rows"),
        (wh.Task.from_sklearn(Ridge().fit(x, x[:, 0])), (x, y), "y must be numbers"),
    ]:
        with pytest.raises(wh.DataError, match=match):
            wh.Influence(curvature=wh.Exact()).fit(of, data)


@pytest.mark.parametrize("fitted", [
    lambda x, y: logistic(C=0.3).fit(x, y), lambda x, y: svc().fit(x, y), lambda x, y: Ridge(alpha=1.0).fit(x, y),
])  # fmt: skip
def test_rows_of_another_fit_are_refused(fitted: Any) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 4))
    y = (x[:, 0] + generator.normal(size=400) > 0).astype(int)
    task = wh.Task.from_sklearn(fitted(x[:200], y[:200]))
    wh.GradientDot().fit(task, (x[:200], y[:200]))
    for rows, labels in ((x[200:], y[200:]), (x[:100], y[:100]), (x[:200], 1 - y[:200]), (x[:200] + 0.5, y[:200])):
        with pytest.raises(wh.DataError, match="must be the rows that"):
            wh.GradientDot().fit(task, (rows, labels))


def test_a_perfect_fit_is_no_other_fit() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    task = wh.Task.from_sklearn(Ridge(alpha=0.0).fit(x, x @ np.arange(4.0) + 1))
    wh.GradientDot().fit(task, (x, x @ np.arange(4.0) + 1))
