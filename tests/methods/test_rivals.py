"""The rivals: dense float64 formulas, cases in which they are exact, batches, order, and what they leave behind."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracle
import whence as wh
import zoo
from whence.methods.baselines.shapley import shapley_values
from whence.methods.random_features import RandomFeatures

COUNT = 24


def case_and_task(name: str, dtype: torch.dtype = torch.float64) -> tuple[zoo.Case, wh.Task]:
    case = zoo.make(name, count=COUNT, dtype=dtype)
    return case, wh.Task(case.model, case.loss)


def moved(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return other weights of a model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }  # fmt: skip


def gradients_at(case: zoo.Case, state: dict[str, Tensor]) -> Tensor:
    model = oracle.evaluated(case.model)
    model.load_state_dict(state)
    return oracle.per_example_gradients(model, oracle.LOSSES[case.loss], case.inputs, case.targets)


def makers(case: zoo.Case, size: int | None = None) -> dict[str, Any]:
    states = [moved(case.model, seed) for seed in (0, 1)]
    found: dict[str, Any] = {
        "dot": wh.GradientDot(batch_size=size),
        "cosine": wh.GradientCosine(batch_size=size),
        "tracin": wh.TracIn(checkpoints=states, learning_rates=[0.5, 2.0], batch_size=size),
        "tracin-last": wh.TracIn(checkpoints=states, layers="last", batch_size=size),
        "tracin-projected": wh.TracIn(checkpoints=states, projection=40, batch_size=size),
    }
    if case.loss in ("cross_entropy", "binary_cross_entropy"):
        found["trak"] = wh.TRAK(dimension=12, damping=0.1, batch_size=size)
        found["representer"] = wh.Representer()
        found["trak-members"] = wh.TRAK(members=states, dimension=12, damping=wh.Relative(0.1), batch_size=size)
    return found


KINDS = ["dot", "cosine", "tracin", "tracin-last", "tracin-projected", "trak", "trak-members"]
ROWS = [(kind, name) for kind in KINDS for name in ("mlp", "conv", "text", "binary", "named")]


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_batches_and_order_change_nothing_by_id(kind: str, name: str) -> None:
    case, task = case_and_task(name)
    queries = (zoo.subset(case.inputs, slice(0, 5)), case.targets[:5])
    found = []
    for size, shuffled in ((COUNT, False), (1, True), (7, True)):
        order = np.random.default_rng(0).permutation(COUNT) if shuffled else np.arange(COUNT)
        data = (zoo.subset(case.inputs, torch.from_numpy(order)), case.targets[order])
        fitted = makers(case, size)[kind].fit(task, wh.as_examples(data, ids=[f"e{i}" for i in order]))
        scores, own = fitted.scores(queries), fitted.self_scores()
        back = np.argsort(order)
        assert scores.unit is None and own.unit is None
        assert [scores.ids[i] for i in back] == [f"e{i}" for i in range(COUNT)]
        found.append((scores.values[:, back].double(), torch.from_numpy(own.values[back])))
    for values, own_values in found[1:]:
        assert (values - found[0][0]).norm() <= 1e-9 * found[0][0].norm()
        assert (own_values - found[0][1]).norm() <= 1e-9 * found[0][1].norm()


@pytest.mark.parametrize("kind", [*KINDS, "representer"])
def test_nothing_is_left_behind(kind: str) -> None:
    case, task = case_and_task("mlp")
    case.model.train()
    before = {key: value.clone() for key, value in case.model.state_dict().items()}
    torch.manual_seed(5)
    fitted = makers(case)[kind].fit(task, case.train)
    fitted.scores(case.train)
    fitted.self_scores()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert all(torch.equal(before[key], value) for key, value in case.model.state_dict().items())
    assert case.model.training and all(p.grad is None for p in case.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.model.modules())


@pytest.mark.parametrize("name", ["mlp", "conv", "text", "binary", "regression"])
def test_dot_cosine_and_tracin_are_the_dense_formulas(name: str) -> None:
    case, task = case_and_task(name)
    g = oracle.per_example_gradients(case.model, oracle.LOSSES[case.loss], case.inputs, case.targets)
    dot = wh.GradientDot().fit(task, case.train)
    torch.testing.assert_close(dot.scores(case.train).values, g @ g.T / COUNT, rtol=1e-9, atol=1e-12)
    unit = g / g.norm(dim=1, keepdim=True)
    cosine = wh.GradientCosine().fit(task, case.train)
    torch.testing.assert_close(cosine.scores(case.train).values, unit @ unit.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(cosine.self_scores().values, 1.0)
    rates, states = (0.5, 2.0), [moved(case.model, seed) for seed in (0, 1)]
    truth = torch.zeros(COUNT, COUNT, dtype=torch.float64)
    for rate, state in zip(rates, states, strict=True):
        one = gradients_at(case, state)
        truth += rate * one @ one.T / COUNT
    tracin = wh.TracIn(checkpoints=states, learning_rates=rates).fit(task, case.train)
    torch.testing.assert_close(tracin.scores(case.train).values, truth, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(tracin.self_scores().values, truth.diagonal(), rtol=1e-8)


def test_an_example_without_a_gradient_has_a_cosine_of_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    x[2] = 0
    fitted = wh.GradientCosine().fit(wh.Task(model), (x, y))
    values = fitted.scores((x, y)).values
    assert torch.isfinite(values).all() and not values[2].any() and not values[:, 2].any()
    assert fitted.self_scores().values.tolist() == [1, 1, 0, 1]


def test_tracin_at_one_checkpoint_is_the_gradient_dot_product() -> None:
    case, task = case_and_task("mlp")
    tracin = wh.TracIn(checkpoints=[case.model]).fit(task, case.train).scores(case.train).values
    assert torch.equal(tracin, wh.GradientDot().fit(task, case.train).scores(case.train).values)


def test_projection_is_exact_at_full_rank_and_right_in_the_mean() -> None:
    case, task = case_and_task("mlp")
    exact = wh.TracIn(checkpoints=[case.model]).fit(task, case.train)
    whole = wh.TracIn(checkpoints=[case.model], projection=10_000).fit(task, case.train)
    truth = exact.scores(case.train).values
    torch.testing.assert_close(whole.scores(case.train).values, truth, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(whole.self_scores().values, exact.self_scores().values, rtol=1e-8)

    def error(dimension: int, seeds: int) -> float:
        drawn = [
            wh.TracIn(checkpoints=[case.model], projection=dimension, seed=seed).fit(task, case.train)
            for seed in range(seeds)
        ]
        mean = torch.stack([one.scores(case.train).values for one in drawn]).mean(0)
        return float((mean - truth).norm() / truth.norm())

    assert error(8, 60) < 0.4 * error(8, 1)
    assert error(40, 1) < error(8, 1)


def test_as_many_features_as_fit() -> None:
    case, task = case_and_task("mlp")
    layers = wh.Influence(curvature=wh.Identity()).fit(task, case.train).coverage.layers
    sizes = [min(3, layer.shape[0]) * min(3, layer.shape[1]) for layer in layers]
    project = RandomFeatures.of(task, layers, sum(sizes), 0)
    assert [side.ranks[0] * side.ranks[1] for side in project.sides.values()] == sizes
    fewer = RandomFeatures.of(task, layers, sum(sizes) - 1, 0)
    assert all(max(side.ranks) <= 2 for side in fewer.sides.values())
    with pytest.raises(wh.ConfigError, match="number of layers"):
        RandomFeatures.of(task, layers, len(layers) - 1, 0)


def test_recorded_checkpoints_are_those_of_the_training(tmp_path: Path) -> None:
    case, _ = case_and_task("mlp")
    train = wh.as_examples(case.train)
    recipe = wh.Recipe(
        build=lambda: zoo.make("mlp").model, optimizer="sgd", learning_rate=0.2, schedule="cosine", epochs=6
    )
    run = wh.record_checkpoints(recipe, train, count=3)
    assert run.epochs == (2, 4, 6) and len(run) == 3
    assert run.learning_rates == pytest.approx([0.1 * (1 + math.cos(math.pi * p)) for p in (1 / 6, 3 / 6, 5 / 6)])
    last, again = run.weights[-1], recipe.train(train).state_dict()
    assert all(torch.equal(last[key], again[key]) for key in again)
    assert not torch.equal(run.weights[0]["0.weight"], last["0.weight"])
    task = wh.Task(run.model)
    expected = wh.TracIn(checkpoints=run).fit(task, train).scores(case.train).values
    torch.save(run.weights[0], tmp_path / "a.pt")
    given = [tmp_path / "a.pt", run.weights[1], run.model]
    same = wh.TracIn(checkpoints=given, learning_rates=run.learning_rates).fit(task, train)
    torch.testing.assert_close(same.scores(case.train).values, expected)


def log_odds_gradients(case: zoo.Case, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return ∇ log(p / (1 − p)) [N, P] and 1 − p [N] by autograd through the probability itself."""
    model, rows, doubts = oracle.evaluated(model), [], []
    for i in range(COUNT):
        params = oracle.parameters(model)
        outputs = oracle.call(model, params, oracle.row(case.inputs, i)).reshape(-1)
        y = case.targets[i]
        if case.loss == "binary_cross_entropy":
            p = outputs.sigmoid()[0] if y > 0.5 else 1 - outputs.sigmoid()[0]
        else:
            p = outputs.softmax(0)[y]
        grads = torch.autograd.grad((p / (1 - p)).log(), list(params.values()))
        rows.append(oracle.flatten(model, dict(zip(params, grads, strict=True))))
        doubts.append(1 - p.detach())
    return torch.stack(rows), torch.stack(doubts)


@pytest.mark.parametrize("name", ["linear", "mlp", "binary"])
def test_trak_is_the_dense_formula_where_nothing_is_projected_away(name: str) -> None:
    case, task = case_and_task(name)
    states, damping = [moved(case.model, seed) for seed in (0, 1)], 0.05
    kernels, doubts = [], []
    for state in states:
        model = oracle.evaluated(case.model)
        model.load_state_dict(state)
        phi, doubt = log_odds_gradients(case, model)
        gram = phi.T @ phi + damping * COUNT * torch.eye(phi.shape[1], dtype=torch.float64)
        kernels.append(phi @ torch.linalg.inv(gram) @ phi.T)
        doubts.append(doubt)
    truth = torch.stack(kernels).mean(0) * torch.stack(doubts).mean(0)
    fitted = wh.TRAK(members=states, dimension=10_000, damping=damping).fit(task, case.train)
    torch.testing.assert_close(fitted.scores(case.train).values, truth, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fitted.self_scores().values, truth.diagonal(), rtol=1e-7)


def test_trak_of_a_logistic_regression_is_its_newton_step_without_the_weights() -> None:
    """One logit, no bias: φ_i = ±x_i, so τ = ± x_q (XᵀX)⁻¹ x_i (1 − p_i), which needs no damping."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = (torch.rand(40, generator=generator) > 0.5).double()
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Flatten(0)).double()
    fitted = wh.TRAK(damping=0.0).fit(wh.Task(model, "binary_cross_entropy"), (x, y))
    sign = 2 * y - 1
    p = torch.sigmoid(sign * model(x)).detach()
    truth = sign[:, None] * (x @ torch.linalg.inv(x.T @ x) @ x.T) * (sign * (1 - p))
    torch.testing.assert_close(fitted.scores((x, y)).values, truth, rtol=1e-8, atol=1e-10)


def test_rivals_are_refused_what_they_cannot_explain() -> None:
    case, task = case_and_task("regression")
    for method in (wh.TRAK(), wh.Representer()):
        with pytest.raises(wh.ConfigError, match="must be a cross-entropy"):
            method.fit(task, case.train)
    settings: list[tuple[type, dict[str, Any], str]] = [
        (wh.TracIn, {"checkpoints": []}, "at least one"),
        (wh.TracIn, {"checkpoints": [{}], "learning_rates": [1, 2]}, "one a checkpoint"),
        (wh.TracIn, {"checkpoints": [{}], "projection": 0}, "projection"),
        (wh.TRAK, {"dimension": 0}, "dimension"),
        (wh.TRAK, {"members": []}, "members"),
        (wh.Representer, {"weight_decay": 0}, "weight_decay"),
        (wh.NeighbourShapley, {"k": 0}, "k must be"),
    ]
    for kind, arguments, message in settings:
        with pytest.raises(wh.ConfigError, match=message):
            kind(**arguments)
    with pytest.raises(wh.ConfigError, match="weights of the task's model"):
        wh.TracIn(checkpoints=[{"a": torch.zeros(1)}]).fit(task, case.train)
    with pytest.raises(wh.ConfigError, match="a model, a state dict or a path"):
        wh.TracIn(checkpoints=[3]).fit(task, case.train)


@pytest.mark.parametrize("kind", ["tracin-projected", "trak-members"])
def test_an_index_answers_as_the_attribution_does(kind: str, tmp_path: Path) -> None:
    case, task = case_and_task("mlp")
    fitted = makers(case)[kind].fit(task, case.train)
    index = fitted.build_index(tmp_path / "index", dtype="float64")
    queries = (zoo.subset(case.inputs, slice(0, 5)), case.targets[:5])
    torch.testing.assert_close(index.scores(fitted.query_features(queries)).values, fitted.scores(queries).values)
    np.testing.assert_allclose(index.self_scores().values, fitted.self_scores().values)


def test_a_duplicate_of_the_query_is_helpful() -> None:
    case, task = case_and_task("mlp")
    fitted = {kind: method.fit(task, case.train) for kind, method in makers(case).items()}
    fitted["representer"] = wh.Representer().fit(task, case.train)
    for kind, one in fitted.items():
        assert bool((one.scores(case.train).values.diagonal() > 0).all()), kind


# --- representer points --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "binary"])
def test_representer_values_sum_to_the_logits_of_the_fitted_head(name: str) -> None:
    case, task = case_and_task(name)
    decay, features = 0.05, lambda model, batch: batch.inputs
    fitted = wh.Representer(weight_decay=decay, features=features, gradient_norm=2e-9).fit(task, case.train)
    x = torch.cat([case.inputs, torch.ones(COUNT, 1, dtype=torch.float64)], 1)
    classes = 1 if name == "binary" else int(case.targets.max()) + 1
    theta = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-12, tolerance_change=0,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        f = x @ theta
        losses = (nn.functional.binary_cross_entropy_with_logits(f[:, 0], case.targets) if classes == 1
                  else nn.functional.cross_entropy(f, case.targets))  # fmt: skip
        value = losses + decay / 2 * theta.square().sum()
        value.backward()
        return value

    optimizer.step(objective)
    logits = (x @ theta).detach()
    own, sign = case.targets.long()[:, None], 2 * case.targets - 1
    truth = logits[:, 0] * sign if classes == 1 else logits.gather(1, own)[:, 0]
    values = fitted.scores(case.train).values
    torch.testing.assert_close(values.sum(1), truth, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fitted.self_scores().values, values.diagonal(), rtol=1e-9)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    other = wh.Representer(weight_decay=decay, features=features, gradient_norm=2e-9).fit(
        task, wh.as_examples((case.inputs[order], case.targets[order]), ids=order.numpy())
    )
    torch.testing.assert_close(other.scores(case.train).values, values[:, order], rtol=1e-5, atol=1e-7)


def test_a_class_that_no_training_example_has_can_be_asked_about() -> None:
    case, task = case_and_task("mlp")
    few = wh.as_examples(case.train).select(np.flatnonzero(case.targets.numpy() < case.targets.max().item()))
    assert torch.isfinite(wh.Representer().fit(task, few).scores(case.train).values).all()


# --- Shapley values of neighbours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_shapley_values_are_those_over_all_orders(k: int) -> None:
    generator = np.random.default_rng(k)
    similarity, right = generator.normal(size=(3, 5)), generator.random((3, 5)) > 0.5
    found = shapley_values(torch.from_numpy(similarity), torch.from_numpy(right), k)
    for q in range(3):
        def worth(players: tuple[int, ...], q: int = q) -> float:
            near = sorted(players, key=lambda i: -similarity[q, i])[:k]
            return sum(right[q, i] for i in near) / k

        truth = np.zeros(5)
        for order in itertools.permutations(range(5)):
            for place, player in enumerate(order):
                truth[player] += worth(order[: place + 1]) - worth(order[:place])
        np.testing.assert_allclose(found[q], truth / math.factorial(5), atol=1e-12)
        assert float(found[q].sum()) == pytest.approx(worth(tuple(range(5))))


def test_an_example_is_not_its_own_neighbour_when_it_is_suspected() -> None:
    case, task = case_and_task("mlp")
    train = wh.as_examples(case.train)
    suspicion = wh.NeighbourShapley(k=3).fit(task, train).suspicion().values
    total = np.zeros(COUNT)
    for i in range(COUNT):
        rest = np.delete(np.arange(COUNT), i)
        fitted = wh.NeighbourShapley(k=3).fit(task, train.select(rest))
        total[rest] += fitted.scores(train.select(np.array([i]))).values.numpy()[0]
    np.testing.assert_allclose(suspicion, -total / (COUNT - 1), atol=1e-12)


@pytest.mark.parametrize("method", [wh.TRAK(dimension=4), wh.Representer()])
def test_labels_that_are_no_class_are_refused(method: Any) -> None:
    with pytest.raises(wh.DataError, match="got -100"):
        method.fit(wh.Task(nn.Linear(3, 2)), (torch.randn(4, 3), torch.tensor([0, 1, -100, 0])))
