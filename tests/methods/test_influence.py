"""Influence: what it computes, from dense pieces; what it refuses."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oracle
import whence as wh
import zoo
from whence.tasks.losses import MeanSquaredError

DECAY = 0.05


def per_example(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.inputs), batch.targets, reduction="none")


def dense_inverse(case: zoo.Case, damping: float = 0.1) -> Tensor:
    matrix = oracle.gauss_newton(case.model, oracle.LOSSES[case.loss], *case.train)
    return torch.linalg.inv(matrix + (damping + DECAY) * torch.eye(len(matrix), dtype=matrix.dtype))


def influence(case: zoo.Case, damping: float = 0.1, **settings: Any) -> wh.InfluenceAttribution:
    task = wh.Task(case.model, case.loss, weight_decay=DECAY, **settings)
    return wh.Influence(curvature=wh.Exact(damping=damping)).fit(task, case.train)


def removal_gradients(case: zoo.Case) -> Tensor:
    """Return ∇ℓ_i + λθ̂ [N, P]."""
    weights = oracle.flatten(case.model, {name: p.detach() for name, p in case.model.named_parameters()})
    return oracle.per_example_gradients(case.model, oracle.LOSSES[case.loss], *case.train) + DECAY * weights


@pytest.mark.parametrize("name", ["linear", "mlp", "binary", "regression", "conv", "text", "twice", "named"])
def test_scores_are_the_documented_formula(name: str) -> None:
    case, queries = zoo.make(name, count=12), zoo.make(name, count=4, seed=1)
    inverse, removal = dense_inverse(case), removal_gradients(case)
    queried = oracle.per_example_gradients(case.model, oracle.LOSSES[case.loss], *queries.train)
    expected = queried @ inverse @ removal.T / 12
    attribution = influence(case)
    scores = attribution.scores(queries.train)
    torch.testing.assert_close(scores.values, expected, rtol=1e-8, atol=1e-12)
    own = oracle.per_example_gradients(case.model, oracle.LOSSES[case.loss], *case.train)
    expected_own = ((own @ inverse) * removal).sum(1) / 12
    np.testing.assert_allclose(attribution.self_scores(), expected_own, rtol=1e-8, atol=1e-12)
    assert scores.unit == wh.Task(case.model, case.loss).unit
    assert attribution.self_scores().unit == scores.unit
    assert scores.query_ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("curvature", [wh.Exact(damping=0.1), wh.EKFAC(), wh.KFAC(), wh.Identity()])
@pytest.mark.parametrize("name", ["mlp", "text", "conv"])
def test_groups_and_parameter_changes_agree(name: str, curvature: Any) -> None:
    case, queries = zoo.make(name, count=12), zoo.make(name, count=4, seed=1)
    attribution = wh.Influence(curvature=curvature).fit(wh.Task(case.model, weight_decay=DECAY), case.train)
    groups = attribution.group_scores({"a": [0, 5, 7], "b": np.array([2])}, queries.train)
    single = attribution.scores(queries.train).values
    torch.testing.assert_close(groups.values[:, 0], single[:, [0, 5, 7]].sum(1) * 12 / 9)
    torch.testing.assert_close(groups.values[:, 1], single[:, 2] * 12 / 11)
    assert groups.ids.tolist() == ["a", "b"]
    change = attribution.parameter_change([0, 5, 7])
    assert {key: value.shape for key, value in change.items()} == {k: p.shape for k, p in case.model.named_parameters()}
    queried = oracle.per_example_gradients(case.model, oracle.cross_entropy, *queries.train)
    predicted = queried @ oracle.flatten(case.model, change)
    tolerance = 1e-8 if not isinstance(curvature, wh.EKFAC) else 0.02
    torch.testing.assert_close(predicted, groups.values[:, 0], rtol=10 * tolerance, atol=tolerance)


def test_parameter_change_is_dense_algebra() -> None:
    case = zoo.make("mlp", count=12)
    change = oracle.flatten(case.model, influence(case).parameter_change([1, 4]))
    expected = dense_inverse(case) @ removal_gradients(case)[[1, 4]].sum(0) / 10
    torch.testing.assert_close(change, expected, rtol=1e-8, atol=1e-12)


def squared_outputs(model: nn.Module, batch: Any) -> Tensor:
    return model(batch.inputs).square().sum(1)


@pytest.mark.parametrize("measurement", ["mse", squared_outputs])
def test_a_measurement_that_differs_from_the_loss(measurement: Any) -> None:
    case, queries = zoo.make("mlp", count=12), zoo.make("mlp", count=4, seed=1)
    targets = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if measurement == "mse":
        queried = oracle.per_example_gradients(case.model, oracle.squared_error, queries.inputs, targets)
    else:
        queried = oracle.per_example_gradients(case.model, lambda f, y: f.square().sum(), queries.inputs, targets)
    attribution = influence(case, measurement=measurement)
    scores = attribution.scores((queries.inputs, targets))
    torch.testing.assert_close(scores.values, queried @ dense_inverse(case) @ removal_gradients(case).T / 12)
    assert scores.unit == ("squared target" if measurement == "mse" else None)
    assert attribution.self_scores().unit == "nats"
    if measurement is squared_outputs:
        torch.testing.assert_close(attribution.scores(queries.inputs).values, scores.values)  # needs no targets


def test_a_measurement_of_the_model_alone() -> None:
    case = zoo.make("mlp", count=12)
    attribution = influence(case, measurement=lambda model: model[0].weight.square().sum())
    weights = {name: torch.zeros_like(p) for name, p in case.model.named_parameters()}
    weights["0.weight"] = 2 * case.model[0].weight.detach()
    gradient = oracle.flatten(case.model, weights)
    scores = attribution.scores()
    torch.testing.assert_close(scores.values[0], removal_gradients(case) @ dense_inverse(case) @ gradient / 12)
    assert scores.query_ids.tolist() == ["model"]
    assert attribution.group_scores({"all but one": range(11)}).values.shape == (1, 1)


@pytest.mark.parametrize("curvature", [wh.EKFAC, wh.KFAC, wh.Exact])
def test_a_callable_loss_gets_the_empirical_fisher(curvature: Any) -> None:
    case = zoo.make("mlp", count=12)
    named = wh.Influence(curvature=curvature(damping=0.1, fisher="empirical")).fit(wh.Task(case.model), case.train)
    called = wh.Influence(curvature=curvature(damping=0.1)).fit(wh.Task(case.model, per_example), case.train)
    scores = called.scores(case.train)
    torch.testing.assert_close(scores.values, named.scores(case.train).values)
    assert scores.unit is None
    assert called.self_scores().unit is None
    with pytest.raises(wh.ConfigError, match="named smooth loss"):
        called.leave_one_out()
    with pytest.raises(wh.ConfigError, match="leverage_corrected=False"):
        called.scores(case.train, leverage_corrected=True)


def test_identity_ranks_only() -> None:
    case = zoo.make("mlp")
    attribution = wh.Influence(curvature=wh.Identity()).fit(wh.Task(case.model), case.train)
    assert attribution.scores(case.train).unit is None
    gradients = oracle.per_example_gradients(case.model, oracle.cross_entropy, *case.train)
    torch.testing.assert_close(attribution.scores(case.train).values, gradients @ gradients.T / 9)


@pytest.mark.parametrize("curvature", [wh.EKFAC(fisher="sampled"), wh.KFAC(fisher="empirical"), wh.Identity()])
def test_sequences(curvature: Any) -> None:
    """Positions whose target is ignored count nothing."""
    case = zoo.make("sequence", count=12)
    attribution = wh.Influence(curvature=curvature).fit(wh.Task(case.model), case.train)
    changed = case.inputs.clone()
    changed[case.targets == -100] = (changed[case.targets == -100] + 1) % 6
    again = wh.Influence(curvature=curvature).fit(wh.Task(case.model), (changed, case.targets))
    if isinstance(curvature, wh.Identity):
        torch.testing.assert_close(attribution.scores(case.train).values, again.scores((changed, case.targets)).values)
    assert bool((attribution.scores(case.train).values.diagonal() > 0).all())
    with pytest.raises(wh.ConfigError, match=r"outputs \[B, C\]"):
        attribution.leave_one_out()


def test_layers_can_be_chosen() -> None:
    case = zoo.make("mlp", count=12)
    attribution = wh.Influence(curvature=wh.Identity(), layers="last").fit(wh.Task(case.model), case.train)
    gradients = oracle.per_example_gradients(case.model, oracle.cross_entropy, *case.train)
    last = gradients[:, oracle.blocks(case.model)["5"]]
    torch.testing.assert_close(attribution.scores(case.train).values, last @ last.T / 12)
    assert attribution.summary()["attributed_share"] == pytest.approx(21 / (48 + 48 + 21))
    assert set(attribution.parameter_change([0])) == {"5.weight", "5.bias"}


def test_computing_in_another_type() -> None:
    single = zoo.make("mlp", count=12, dtype=torch.float32)
    model = zoo.make("mlp", count=12, dtype=torch.float32).model.double()
    double = zoo.Case(model, single.inputs.double(), single.targets)
    expected = influence(double).scores(double.train).values
    assert expected.dtype == torch.float64
    in_double = influence(single).scores(single.train).values  # Exact computes in float64 by itself
    torch.testing.assert_close(in_double, expected)
    assert single.model[0].weight.dtype == torch.float32
    task = wh.Task(single.model, weight_decay=DECAY)
    in_single = wh.Influence(curvature=wh.Exact(damping=0.1), dtype=torch.float32).fit(task, single.train)
    torch.testing.assert_close(in_single.scores(single.train).values.double(), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(in_single.self_scores(), influence(double).self_scores(), rtol=1e-3)
    ekfac = wh.Influence(dtype=torch.float64).fit(wh.Task(single.model), single.train)
    assert ekfac.scores(single.train).values.dtype == torch.float64


@pytest.mark.parametrize("ids", [["a", "b", "c"], [30, 10, 20], np.array([7, 8, 9]), torch.tensor([3, 2, 1])])
def test_ids(ids: Any) -> None:
    case = zoo.make("linear", count=3)
    plain = list(ids.tolist() if hasattr(ids, "tolist") else ids)
    attribution = wh.Influence().fit(wh.Task(case.model), wh.as_examples(case.train, ids=ids))
    assert attribution.ids.tolist() == plain
    scores = attribution.scores(wh.as_examples(case.train, ids=["x", "y", "z"]))
    assert scores.to_frame().loc["y", plain[2]] == scores.values[1, 2].item()
    assert attribution.group_scores({"g": [plain[0]]}, case.train).values.shape == (3, 1)
    with pytest.raises(wh.DataError, match="'nobody'"):
        attribution.parameter_change(["nobody"])
    with pytest.raises(wh.DataError, match="999"):
        attribution.group_scores({"g": [999]}, case.train)


def test_groups_must_leave_something() -> None:
    case = zoo.make("linear", count=4)
    attribution = wh.Influence().fit(wh.Task(case.model), case.train)
    for removed in ([], [0, 1, 2, 3]):
        with pytest.raises(wh.ConfigError, match="between 1 and 3 examples"):
            attribution.group_scores({"g": removed}, case.train)
        with pytest.raises(wh.ConfigError, match="between 1 and 3 examples"):
            attribution.parameter_change(removed)
    with pytest.raises(wh.ConfigError, match="at least one group"):
        attribution.group_scores({}, case.train)
    twice = attribution.group_scores({"g": [1, 1, 2]}, case.train).values
    torch.testing.assert_close(twice, attribution.group_scores({"g": [1, 2]}, case.train).values)


def test_duplicate_ids_are_refused() -> None:
    case = zoo.make("linear", count=4)
    with pytest.raises(wh.DataError, match="got 'b' 2 times"):
        wh.as_examples(case.train, ids=["a", "b", "b", "c"])


@pytest.mark.parametrize("how", ["in place", "step", "load", "replaced", "running statistics"])
def test_a_model_that_changes_after_the_fit_is_refused(how: str) -> None:
    case = zoo.make("norms", count=8)
    attribution = wh.Influence().fit(wh.Task(case.model), case.train)
    attribution.scores(case.train)
    first = case.model[0].weight
    with torch.no_grad():
        if how == "in place":
            first += 1
        elif how == "step":
            first.grad = torch.ones_like(first)
            torch.optim.SGD([first], 0.1).step()
        elif how == "load":
            case.model.load_state_dict(zoo.make("norms", seed=3).model.state_dict())
        elif how == "replaced":
            case.model[0].weight = nn.Parameter(first + 1)
        else:
            case.model.train()(case.inputs)
            case.model.eval()
    for call in (lambda: attribution.scores(case.train), attribution.self_scores, attribution.leave_one_out,
                 lambda: attribution.parameter_change([0])):  # fmt: skip
        with pytest.raises(wh.ConfigError, match="weights have changed"):
            call()


@pytest.mark.parametrize("where", ["train", "queries"])
def test_bad_inputs_name_the_example(where: str) -> None:
    case, queries = zoo.make("mlp"), zoo.make("mlp", seed=1)
    (case if where == "train" else queries).inputs[4, 0] = float("nan")
    task = wh.Task(case.model)
    ids = [f"row {i}" for i in range(9)]
    with pytest.raises(wh.NumericalError, match="example 'row 4'"):
        attribution = wh.Influence().fit(task, wh.as_examples(case.train, ids=ids))
        attribution.scores(wh.as_examples(queries.train, ids=ids))


def test_a_loss_that_ignores_the_model_is_refused() -> None:
    case = zoo.make("mlp")
    other = zoo.make("mlp", seed=1).model

    def detached(model: nn.Module, batch: Any) -> Tensor:
        return per_example(model, batch).detach()

    def elsewhere(model: nn.Module, batch: Any) -> Tensor:
        return per_example(other, batch)

    for loss in (detached, elsewhere):
        with pytest.raises(wh.ConfigError, match=r"must depend on|must take part"):
            wh.Influence().fit(wh.Task(case.model, loss), case.train)
        attribution = wh.Influence().fit(wh.Task(case.model, measurement=loss), case.train)
        with pytest.raises(wh.ConfigError, match="must depend on"):
            attribution.scores(case.train)


@pytest.mark.parametrize(
    "measurement, queries, match",
    [
        (None, None, "without queries needs"),
        (lambda model: model[0].weight, None, "must be a scalar"),
        (lambda model, batch: model(batch.inputs).mean(), "train", "one value an example"),
        (lambda model, batch: model(batch.inputs).mean(1).tolist(), "train", "one value an example"),
    ],
)
def test_bad_measurements(measurement: Any, queries: str | None, match: str) -> None:
    case = zoo.make("mlp")
    attribution = wh.Influence().fit(wh.Task(case.model, measurement=measurement), case.train)
    with pytest.raises(wh.ConfigError, match=match):
        attribution.scores(case.train if queries else None)


def test_training_examples_need_targets() -> None:
    case = zoo.make("mlp")
    with pytest.raises(wh.ConfigError, match="needs targets"):
        wh.Influence().fit(wh.Task(case.model), case.inputs)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"memory_budget": -1}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(wh.ConfigError, match=next(iter(settings))):
        wh.Influence(**settings)  # type: ignore[arg-type]


def test_gradient_norm_is_zero_at_the_optimum() -> None:
    case = zoo.make("linear", count=40)
    recipe = wh.Recipe(build=lambda: nn.Linear(5, 3), optimizer="lbfgs", weight_decay=DECAY, gradient_norm=1e-9)
    task = recipe.task(recipe.train(wh.as_examples(case.train)))
    assert wh.Influence(curvature=wh.Exact()).fit(task, case.train).gradient_norm < 1e-8
    far = wh.Influence().fit(wh.Task(case.model), case.train)
    gradients = oracle.per_example_gradients(case.model, oracle.cross_entropy, *case.train)
    assert far.gradient_norm == pytest.approx(float(gradients.mean(0).norm() / gradients.norm(dim=1).mean()))


def test_a_measurement_by_loss_object() -> None:
    case = zoo.make("regression")
    named = wh.Influence().fit(wh.Task(case.model, "mse", measurement="mse"), case.train)
    given = wh.Influence().fit(wh.Task(case.model, MeanSquaredError(), measurement=MeanSquaredError()), case.train)
    assert torch.equal(named.scores(case.train).values, given.scores(case.train).values)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("curvature", [wh.EKFAC(damping=1e-6, fisher="exact"), wh.KFAC(damping=1e-6, fisher="exact")])
def test_models_in_half_precision_keep_gradients_in_single(
    curvature: Any, dtype: torch.dtype, tolerance: float
) -> None:
    """Weak damping would overflow float16, squares of gradients underflow; the comparison takes strong damping."""
    case = zoo.make("mlp", count=24, dtype=torch.float32)
    half = copy.deepcopy(case.model).to(dtype)
    weak = wh.Influence(curvature=curvature).fit(wh.Task(half, weight_decay=DECAY), case.train)
    assert weak.scores(case.train).values.dtype == torch.float32
    assert bool(torch.isfinite(weak.scores(case.train).values).all()) and np.isfinite(weak.self_scores()).all()
    strong = wh.Influence(curvature=dataclasses.replace(curvature, damping=1.0))
    found = strong.fit(wh.Task(half, weight_decay=DECAY), case.train).scores(case.train).values
    single = wh.Task(copy.deepcopy(half).float(), weight_decay=DECAY)
    expected = strong.fit(single, case.train).scores(case.train).values
    assert float((found - expected).norm() / expected.norm()) <= tolerance


def test_the_curvature_of_a_model_serves_another_nearby() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.arange(30) % 3
    first, second = torch.nn.Linear(4, 3).double(), torch.nn.Linear(4, 3).double()
    fitted = wh.Influence(curvature=wh.Exact()).fit(wh.Task(first, weight_decay=0.1), (x, y))
    moved = fitted.at(second, (x + 0.1, y))
    own = wh.Influence(curvature=wh.Exact()).fit(wh.Task(second, weight_decay=0.1), (x + 0.1, y))
    gradients = [torch.cat([part.dense() for _, part in one.training_gradients()]) for one in (moved, own)]
    torch.testing.assert_close(*gradients)
    decayed = own.decayed_weights
    assert decayed is not None
    truth = gradients[1] @ fitted.preconditioner.inverse @ (gradients[1] + decayed.dense()).T / 30  # type: ignore[attr-defined]
    torch.testing.assert_close(moved.scores((x + 0.1, y)).values, truth)
    torch.testing.assert_close(fitted.at(first, (x, y)).scores((x, y)).values, fitted.scores((x, y)).values)
    with pytest.raises(wh.ConfigError, match="must have the layers that were fitted"):
        fitted.at(torch.nn.Linear(4, 2).double(), (x, y % 2))
