"""The class-based reduction against the formula, whatever holds the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import whence as wh


def scores(queries: int, rows: int, seed: int = 0) -> wh.Scores:
    values = torch.randn(queries, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return wh.Scores(values=values, query_ids=np.arange(queries), ids=np.arange(rows), unit="nats")


@given(st.lists(st.integers(-2, 3), min_size=1, max_size=30), st.integers(1, 9), st.integers(0, 5))
def test_is_the_lowest_mean_of_a_class(labels: list[int], rows: int, seed: int) -> None:
    found = scores(len(labels), rows, seed)
    values, known = found.values.numpy(), np.array(labels)
    truth = np.stack([values[known == c].mean(0) for c in sorted(set(labels))])
    np.testing.assert_allclose(wh.class_based(found, labels=labels).values, -truth.min(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(wh.class_means(found, labels=labels).values.numpy(), truth, rtol=1e-9, atol=1e-12)
    plain = wh.class_based(found, labels=labels, reduction="mean")
    np.testing.assert_allclose(plain.values, -values.mean(0), rtol=1e-9, atol=1e-12)


def fitted() -> tuple[wh.InfluenceAttribution, wh.Examples]:
    torch.manual_seed(0)
    x = torch.randn(40, 3, dtype=torch.float64)
    train = wh.as_examples((x, torch.arange(40) % 3))
    reference = wh.as_examples((torch.randn(150, 3, dtype=torch.float64), torch.arange(150) % 3))
    task = wh.Task(torch.nn.Linear(3, 3).double(), weight_decay=0.1)
    return wh.Influence(curvature=wh.KFAC()).fit(task, train), reference


def test_an_attribution_and_an_index_give_what_all_scores_give(tmp_path: Path) -> None:
    attribution, reference = fitted()
    truth = wh.class_based(attribution.scores(reference), labels=reference.targets)
    streamed = wh.class_based(attribution, reference)
    np.testing.assert_allclose(streamed.values, truth.values, rtol=1e-9)
    assert streamed.unit == "nats"
    gex = wh.GEX(members=3, steps=2).fit(attribution.task, attribution.examples)
    index, features = gex.build_index(tmp_path / "index", dtype="float64"), gex.query_features(reference)
    from_index = wh.class_based(index, features, labels=reference.targets)
    np.testing.assert_allclose(from_index.values, wh.class_based(gex, reference).values, rtol=1e-9)


def test_references_are_balanced_and_leave_out_what_is_excluded() -> None:
    data = wh.as_examples((torch.zeros(100, 2), torch.tensor([0] * 80 + [1] * 20)))
    chosen = wh.sample_references(data, per_class=15, seed=1, exclude=[80, 81])
    assert chosen.targets is not None
    assert torch.bincount(chosen.targets).tolist() == [15, 15]
    assert not {80, 81} & set(chosen.ids.tolist())
    assert wh.sample_references(data, per_class=15, seed=1, exclude=[80, 81]).ids.tolist() == chosen.ids.tolist()
    assert len(wh.sample_references(data, per_class=50)) == 70


def test_a_row_with_a_wrong_label_is_the_most_harmful() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64) + 3.0 * y[:, None]
    given_labels = y.clone()
    given_labels[7] = 1 - given_labels[7]
    recipe = wh.Recipe(build=lambda: torch.nn.Linear(2, 2), optimizer="lbfgs", weight_decay=0.01)
    model = recipe.train(wh.as_examples((x[:100], given_labels[:100])))
    attribution = wh.Influence(curvature=wh.Exact()).fit(recipe.task(model), (x[:100], given_labels[:100]))
    assert wh.class_based(attribution, (x[100:], y[100:])).values.argmax() == 7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: wh.class_based(scores(4, 3)), wh.ConfigError, "must have labels"),
        (lambda: wh.class_based(scores(4, 3), labels=[0, 1]), wh.DataError, "one a reference"),
        (lambda: wh.class_based(scores(2, 3), labels=[0, 1], reduction="sum"), wh.ConfigError, "reduction"),
        (lambda: wh.class_based(3, (torch.zeros(2, 1), torch.tensor([0, 1]))), wh.ConfigError, "must be Scores"),
        (lambda: wh.class_based(fitted()[0], torch.zeros(2, 3)), wh.ConfigError, "must have labels"),
        (lambda: wh.sample_references(torch.zeros(2, 3)), wh.ConfigError, "one label a row"),
        (lambda: wh.sample_references((torch.zeros(2, 3), torch.zeros(2)), per_class=0), wh.ConfigError, "least 1"),
    ],
)  # fmt: skip
def test_what_it_refuses(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_labels_that_do_not_fit_the_references_are_refused() -> None:
    attribution, reference = fitted()
    for labels in ([0, 1], [0] * 151):
        with pytest.raises(wh.DataError, match=r"one a reference \(150\)"):
            wh.class_based(attribution, reference, labels=labels)
    for missing, told in ((float("nan"), "nan"), (None, "None")):
        with pytest.raises(wh.DataError, match=f"got {told} for 1 reference"):
            wh.class_based(scores(3, 4), labels=np.array(["a", missing, "b"], dtype=object))
    with pytest.raises(wh.DataError, match="got nan for 1 reference"):
        wh.class_based(scores(3, 4), labels=[0.0, float("nan"), 1.0])


def test_references_of_an_estimator_are_rows_and_labels_as_it_takes_them() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 3)), np.array(["ham", "spam", "eggs"] * 10)
    task = wh.Task.from_sklearn(LogisticRegression().fit(x, y))
    attribution = wh.Influence(curvature=wh.Exact()).fit(task, (x, y))
    truth = wh.class_based(attribution.scores((x, y)), labels=y)
    np.testing.assert_allclose(wh.class_based(attribution, (x, y)).values, truth.values, rtol=1e-9)


def estimator_task() -> tuple[wh.Task, np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(40, 3))
    y = np.array(["ham", "spam"] * 20)
    x[:, 0] += 2 * (y == "spam")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, tol=1e-8)).fit(100 * x, y)
    return wh.Task.from_sklearn(pipeline), 100 * x, y


@pytest.mark.parametrize("method", [wh.GradientCosine(), wh.Similarity(), wh.GradientDot()])
def test_references_are_made_as_the_source_makes_them(method: Any) -> None:
    task, x, y = estimator_task()
    attribution = method.fit(task, (x, y))
    found = wh.class_based(attribution, (x[:10], y[:10]))
    truth = wh.class_based(attribution.scores((x[:10], y[:10])), labels=y[:10])
    np.testing.assert_allclose(found.values, truth.values, rtol=1e-9)
    separated = wh.separate_sources(attribution, (x[:10], y[:10]))
    np.testing.assert_allclose(separated.signal.values, attribution.scores((x[:10], y[:10])).values.mean(0), rtol=1e-9)


def test_references_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    attribution, reference = fitted()
    made: list[int] = []
    read = wh.Task.examples
    monkeypatch.setattr(wh.Task, "examples", lambda task, data, **more: made.append(len(data)) or read(task, data))
    wh.class_based(attribution, (reference.batch(np.arange(150)).inputs, reference.targets))
    assert made == [2, 150]  # the pair, and the examples that were made of it when they are scored


def test_no_references_and_scores_that_are_not_finite_are_refused() -> None:
    found = scores(3, 4)
    found.values[1, 2] = float("nan")
    with pytest.raises(wh.DataError, match="got NaN or infinity for example 2"):
        wh.class_based(found, labels=[0, 1, 0])
    for labels, reduction in (([], "class"), (None, "mean")):
        with pytest.raises(wh.DataError, match="at least one, got none"):
            wh.class_based(scores(0, 4), labels=labels, reduction=reduction)


def test_a_mean_needs_no_labels() -> None:
    found = scores(5, 4)
    plain = wh.class_based(found, reduction="mean")
    np.testing.assert_allclose(plain.values, -found.values.mean(0).numpy(), rtol=1e-12)
