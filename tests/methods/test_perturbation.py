"""Maps of what altering a training example does: against dense autograd, real retraining, and their own limits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import oracle
import whence as wh
import zoo

DAMPING = 0.3
CURVATURES: dict[str, Any] = {
    "exact": wh.Exact(damping=DAMPING), "ekfac": wh.EKFAC(rank_tolerance=1e-9), "kfac": wh.KFAC(),
    "diagonal": wh.Diagonal(), "block": wh.BlockExact(), "cg": wh.CG(damping=DAMPING, tolerance=1e-12),
    "datainf": wh.DataInf(),
    "identity": wh.Identity(),
}  # fmt: skip


def split(case: zoo.Case) -> tuple[tuple[Any, Tensor], tuple[Any, Tensor]]:
    """Return six rows to train on and three to ask about."""
    train, queries = np.arange(6), np.arange(6, 9)
    return (
        (zoo.subset(case.inputs, train), case.targets[train]), (zoo.subset(case.inputs, queries), case.targets[queries])
    )  # fmt: skip


def fitted(case: zoo.Case, curvature: Any, **settings: Any) -> wh.InfluenceAttribution:
    task = wh.Task(case.model, case.loss, weight_decay=0.05)
    return wh.Influence(curvature=curvature, dtype=torch.float64, **settings).fit(task, split(case)[0])


def dense(case: zoo.Case, call: Any, leaf_of: Any) -> Tensor:
    """Return the maps [Q, K, ...] by plain autograd: the Jacobian of every example's gradient in its input."""
    (inputs, targets), queries = split(case)
    loss = oracle.LOSSES[case.loss]
    model = oracle.evaluated(case.model)
    matrix = oracle.gauss_newton(case.model, loss, inputs, targets)
    matrix = matrix + (0.05 + DAMPING) * torch.eye(len(matrix), dtype=torch.float64)
    solved = torch.linalg.solve(matrix, oracle.per_example_gradients(case.model, loss, *queries).T).T  # [Q, P]
    maps = []
    for i in range(6):
        leaf = leaf_of(oracle.row(inputs, i)).detach().clone().requires_grad_()
        params = oracle.parameters(model)
        with sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative
            value = loss(call(model, params, oracle.row(inputs, i), leaf), targets[i : i + 1])
        grads = torch.autograd.grad(value, list(params.values()), create_graph=True, materialize_grads=True)
        flat = oracle.flatten(model, dict(zip(params, grads, strict=True)))
        rows = [torch.autograd.grad(solved[q] @ flat, leaf, retain_graph=True)[0][0] for q in range(3)]
        maps.append(torch.stack(rows))
    return -torch.stack(maps, 1) / 6


DIRECT = [
    "linear", "mlp", "binary", "regression", "conv", "padded-reflect", "norms", "image-norms", "residual", "groups",
    "attention", "recurrent",
]  # fmt: skip


@pytest.mark.parametrize("name", DIRECT)
def test_maps_are_those_of_dense_autograd(name: str) -> None:
    case = zoo.make(name)

    def call(model: nn.Module, params: dict[str, Tensor], inputs: Any, leaf: Tensor) -> Tensor:
        return oracle.call(model, params, leaf * 1)

    found = fitted(case, wh.Exact(damping=DAMPING)).perturbation(range(6), split(case)[1])
    expected = dense(case, call, lambda inputs: inputs)
    torch.testing.assert_close(found.values, expected, rtol=1e-7, atol=1e-10 * float(expected.abs().max()))
    torch.testing.assert_close(found.inputs, split(case)[0][0])
    assert found.unit == ("squared target" if case.loss == "mse" else "nats")
    assert repr(found).startswith("Perturbation(3 × 6 × ")


@pytest.mark.parametrize("name, key", [("named", "features"), ("named", "scale"), ("pairs", None)])
def test_named_and_several_inputs(name: str, key: str | None) -> None:
    """Dicts and tuples; a bag of embeddings has no second derivative and takes differences."""
    case = zoo.make(name)
    place = 1 if key is None else key

    def call(model: nn.Module, params: dict[str, Tensor], inputs: Any, leaf: Tensor) -> Tensor:
        if key is None:
            bag = nn.functional.embedding(inputs[0], params["bag.weight"])
            counts = (inputs[0] != 0).double()
            mean = (bag * counts[:, :, None]).sum(1) / counts.sum(1, keepdim=True).clamp(min=1)
            pair = nn.functional.bilinear(mean, leaf, params["pair.weight"], params["pair.bias"])
            return nn.functional.linear(torch.tanh(pair), params["last.weight"], params["last.bias"])
        return oracle.call(model, params, {**inputs, key: leaf})

    found = fitted(case, wh.Exact(damping=DAMPING)).perturbation(range(6), split(case)[1], at=key)
    expected = dense(case, call, lambda inputs: inputs[place])
    tolerance = 1e-7 if key is None else 1e-10
    torch.testing.assert_close(found.values, expected, rtol=1e-6, atol=tolerance * float(expected.abs().max()))


class Moved(nn.Module):
    """A model with something added to what its embedding gives."""

    def __init__(self, model: nn.Module, table: nn.Module, delta: Tensor) -> None:
        super().__init__()
        self.model, self.table, self.delta = model, table, delta

    def forward(self, index: Tensor) -> Tensor:
        handle = self.table.register_forward_hook(lambda module, args, output: output + self.delta)
        found: Tensor = self.model(index)
        handle.remove()
        return found


def windows() -> zoo.Case:
    """Return a model of five words in their order."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5)
    words = torch.randint(0, 7, (9, 5), generator=generator)
    return zoo.Case(model, words, torch.randint(0, 3, (9,), generator=generator))


@pytest.mark.parametrize("name, width", [("text", 4), ("windows", 3)])
def test_tokens_have_a_map_each(name: str, width: int) -> None:
    case = windows() if name == "windows" else zoo.make(name)
    if name == "text":  # of the padding token only zeros are known, where a norm has no derivative worth comparing
        case.inputs.clamp_(min=1)

    def call(model: nn.Module, params: dict[str, Tensor], inputs: Any, leaf: Tensor) -> Tensor:
        moved = Moved(model, next(m for m in model.modules() if isinstance(m, nn.Embedding)), leaf)
        return oracle.call(moved, {f"model.{name}": p for name, p in params.items()}, inputs)

    attribution = fitted(case, wh.Exact(damping=DAMPING))
    found = attribution.perturbation(range(6), split(case)[1])
    expected = dense(case, call, lambda inputs: torch.zeros(*inputs.shape, width, dtype=torch.float64))
    torch.testing.assert_close(found.values, expected, rtol=1e-7, atol=1e-10 * float(expected.abs().max()))
    inputs = split(case)[0][0]
    assert found.tokens is not None
    assert torch.equal(found.tokens, inputs)
    table = next(m for m in case.model.modules() if isinstance(m, nn.Embedding))
    torch.testing.assert_close(found.inputs, table(inputs).detach())
    words = [f"w{n}" for n in range(9)]
    frame = found.features(2, names=words)
    assert list(frame.columns) == ["query", "id", "rank", "feature", "value", "derivative", "effect"]
    assert len(frame) == 3 * 6 * 2
    first = frame.iloc[0]
    place, word = str(first["feature"]).split(": ")
    effects = -(found.values[0, 0] * found.inputs[0]).sum(-1)
    assert word == words[int(inputs[0, int(place)])]
    assert first["effect"] == pytest.approx(float(effects[int(place)]))
    assert abs(first["effect"]) == pytest.approx(float(effects.abs().max()))
    assert first["derivative"] == pytest.approx(float(found.values[0, 0, int(place)].norm()))


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize("curvature", CURVATURES.values(), ids=CURVATURES)
def test_small_changes_agree_with_parameter_change_and_replacements(name: str, curvature: Any) -> None:
    """∇mᵀ Δθ of the parameters' predicted change, for a swap of the old row for the altered one."""
    case = zoo.make(name)
    attribution = fitted(case, curvature)
    train, queries = split(case)
    maps = attribution.perturbation([2, 5], queries)
    generator = torch.Generator().manual_seed(3)
    delta = 1e-5 * torch.randn(2, *train[0].shape[1:], generator=generator, dtype=torch.float64)
    predicted = maps.predict(delta)
    altered = train[0][[2, 5]] + delta
    swapped = attribution.replacement_scores([2, 5], (altered, train[1][[2, 5]]), queries)
    gradients = oracle.per_example_gradients(case.model, oracle.LOSSES[case.loss], *queries)
    for k, row in enumerate([2, 5]):
        phantom = wh.as_examples((altered[k : k + 1], train[1][row : row + 1]), ids=["new"])
        change = oracle.flatten(case.model, attribution.parameter_change([row], phantoms=phantom))
        torch.testing.assert_close(swapped.values[:, k], gradients @ change, rtol=1e-6, atol=1e-14)
    scale = float(swapped.values.abs().max())
    torch.testing.assert_close(predicted.values, swapped.values, rtol=1e-3, atol=1e-4 * scale)
    assert predicted.unit == swapped.unit == (None if isinstance(curvature, wh.Identity) else "nats")


def test_a_map_is_minus_the_derivative_of_the_score() -> None:
    case = zoo.make("mlp")
    attribution = fitted(case, wh.EKFAC())
    train, queries = split(case)
    maps = attribution.perturbation([3], queries)
    delta = 1e-5 * torch.ones(1, 5, dtype=torch.float64)
    sides = [
        attribution.phantom_scores((train[0][3:4] + sign * delta, train[1][3:4]), queries).values for sign in (1, -1)
    ]
    expected = -(sides[0] - sides[1]) / 2
    torch.testing.assert_close(maps.predict(delta).values, expected, rtol=1e-5, atol=1e-12)


class Logistic:
    """Softmax regression, trained by Newton's method to the last digit."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
        self.y = (self.x[:, 0] + 0.7 * torch.randn(60, generator=generator, dtype=torch.float64) > 0).long()
        self.queries = self.x[40:], self.y[40:]
        self.x, self.y = self.x[:40], self.y[:40]
        self.recipe = wh.Recipe(build=lambda: nn.Linear(4, 2), optimizer="lbfgs", weight_decay=0.05, gradient_norm=1e-8)
        self.model = self.solve(self.x, self.y)

    def solve(self, x: Tensor, y: Tensor) -> nn.Module:
        """Return the minimiser, to a gradient norm below 1e-10."""
        ones = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        theta = torch.zeros(10, dtype=torch.float64)
        for _ in range(30):
            p = (ones @ theta.reshape(2, 5).T).softmax(1)
            gradient = (p - nn.functional.one_hot(y, 2)).T @ ones / len(x) + 0.05 * theta.reshape(2, 5)
            weights = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
            hessian = torch.einsum("ncd,ni,nj->cidj", weights, ones, ones).reshape(10, 10) / len(x)
            theta = theta - torch.linalg.solve(hessian + 0.05 * torch.eye(10, dtype=torch.float64), gradient.flatten())
        assert float(gradient.norm()) < 1e-10
        model = nn.Linear(4, 2).double()
        with torch.no_grad():
            model.weight.copy_(theta.reshape(2, 5)[:, :4])
            model.bias.copy_(theta.reshape(2, 5)[:, 4])
        return model

    def losses(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            return nn.functional.cross_entropy(model(self.queries[0]), self.queries[1], reduction="none")


def test_maps_are_the_derivative_of_real_retraining() -> None:
    """Central differences of retraining to a gradient norm of 1e-10; slope 1, within 1e-3."""
    case = Logistic()
    attribution = wh.Influence(curvature=wh.Exact()).fit(case.recipe.task(case.model), (case.x, case.y))
    rows = [1, 17, 33]
    maps = attribution.perturbation(rows, case.queries)
    step = 1e-4
    for k, row in enumerate(rows):
        for feature in range(4):
            sides = []
            for sign in (step, -step):
                x = case.x.clone()
                x[row, feature] += sign
                sides.append(case.losses(case.solve(x, case.y)))
            actual = (sides[0] - sides[1]) / (2 * step)
            found = maps.values[:, k, feature]
            assert float((found - actual).norm() / actual.norm()) < 1e-3


def test_finite_changes_of_input_and_label() -> None:
    """The difference of gradients is closer to real retraining than the map, which is blind to curvature in x."""
    case = Logistic()
    attribution = wh.Influence(curvature=wh.Exact()).fit(case.recipe.task(case.model), (case.x, case.y))
    before, errors = case.losses(case.model), []
    for row in range(8):
        delta = torch.tensor([1.5, -1.0, 0.5, 1.0], dtype=torch.float64)
        x = case.x.clone()
        x[row] += delta
        actual = case.losses(case.solve(x, case.y)) - before
        exact = attribution.replacement_scores([row], (x[row : row + 1], case.y[row : row + 1]), case.queries)
        linear = attribution.perturbation([row], case.queries).predict(delta)
        errors.append([float((found.values[:, 0] - actual).norm() / actual.norm()) for found in (exact, linear)])
    exact_error, linear_error = np.mean(errors, 0)
    assert exact_error < 0.5 * linear_error
    y = case.y.clone()
    y[5] = 1 - y[5]
    actual = case.losses(case.solve(case.x, y)) - before
    found = attribution.replacement_scores([5], (case.x[5:6], y[5:6]), case.queries).values[:, 0]
    assert float((found - actual).norm() / actual.norm()) < 0.15
    slope = float((found * actual).sum() / found.square().sum())
    assert 0.85 < slope < 1.15


@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
def test_neither_batches_nor_order_change_a_map(name: str) -> None:
    case = zoo.make(name)
    train, queries = split(case)
    whole = fitted(case, wh.EKFAC()).perturbation(range(6), queries)
    task = wh.Task(case.model, case.loss, weight_decay=0.05)
    for size in (1, 4, 6):
        order = [4, 1, 5, 0, 3, 2]
        shuffled = wh.as_examples((zoo.subset(train[0], order), train[1][order]), ids=order)
        attribution = wh.Influence(curvature=wh.EKFAC(), batch_size=size).fit(task, shuffled)
        found = attribution.perturbation([5, 0, 2], queries)
        expected = whole.values[:, [5, 0, 2]]
        assert float((found.values - expected).norm() / expected.norm()) < 1e-9
        assert found.ids.tolist() == [5, 0, 2]


def test_the_mean_over_queries_and_a_measurement_of_the_model_alone() -> None:
    case, curvature = zoo.make("mlp"), wh.EKFAC(rank_tolerance=1e-9)
    attribution = fitted(case, curvature)
    queries = split(case)[1]
    every = attribution.perturbation([1, 2], queries)
    mean = attribution.perturbation([1, 2], queries, reduce="mean")
    assert mean.query_ids.tolist() == ["mean"]
    torch.testing.assert_close(mean.values, every.values.mean(0, keepdim=True), rtol=1e-9, atol=1e-14)

    def alone(model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(queries[0]), queries[1])

    task = wh.Task(case.model, case.loss, measurement=alone, weight_decay=0.05)
    found = wh.Influence(curvature=curvature).fit(task, split(case)[0]).perturbation([1, 2])
    torch.testing.assert_close(found.values, mean.values, rtol=1e-6, atol=1e-14)
    assert found.query_ids.tolist() == ["model"]


def test_features_of_a_table_and_reach() -> None:
    case = zoo.make("linear")
    maps = fitted(case, wh.Exact(damping=DAMPING)).perturbation([4, 0], split(case)[1])
    names = ["a", "b", "c", "d", "e"]
    frame = maps.features(5, names=names)
    one = frame[(frame["query"] == 1) & (frame["id"] == 0)]
    strongest = int(maps.values[1, 1].abs().argmax())
    assert one.iloc[0]["feature"] == names[strongest]
    assert one.iloc[0]["derivative"] == pytest.approx(float(maps.values[1, 1, strongest]))
    assert one.iloc[0]["value"] == pytest.approx(float(case.inputs[0, strongest]))
    assert frame["effect"].isna().all()
    base = torch.ones(5, dtype=torch.float64)
    effects = maps.features(1, names=names, reference=base)
    expected = maps.values * (base - maps.inputs)
    assert effects["effect"].abs().to_numpy() == pytest.approx(expected.abs().amax(2).reshape(-1).numpy())
    moved = maps.predict(maps.values[0].sign())  # towards the first query's rise, as far as a box of 1 allows
    torch.testing.assert_close(moved.values[0], maps.reach().values[0])
    torch.testing.assert_close(maps.reach("l2").values, maps.values.norm(dim=2))


def test_the_model_comes_back_as_it_was() -> None:
    case = zoo.make("norms")
    case.model.train()
    before = copy.deepcopy(case.model.state_dict())
    attribution = fitted(case, wh.EKFAC())
    attribution.perturbation([0], split(case)[1])
    assert case.model.training
    assert all(torch.equal(before[name], value) for name, value in case.model.state_dict().items())
    assert all(p.grad is None for p in case.model.parameters())
    assert not any(module._forward_hooks for module in case.model.modules())


def test_what_is_refused() -> None:
    mlp, named, twice = zoo.make("mlp"), zoo.make("named"), zoo.make("twice")
    attribution = fitted(mlp, wh.EKFAC())
    queries = split(mlp)[1]
    with pytest.raises(wh.ConfigError, match="ids must name at least one"):
        attribution.perturbation([], queries)
    with pytest.raises(wh.ConfigError, match='reduce must be "mean" or None'):
        attribution.perturbation([0], queries, reduce="sum")  # type: ignore[arg-type]
    with pytest.raises(wh.ConfigError, match="at must be an input or a module"):
        attribution.perturbation([0], queries, at="nothing")
    with pytest.raises(wh.ConfigError, match="at must name what is perturbed, one of 'features', 'scale', got None"):
        fitted(named, wh.EKFAC()).perturbation([0], split(named)[1])
    with pytest.raises(wh.ConfigError, match="must be called once by the loss to be perturbed at, got 2 calls"):
        fitted(twice, wh.EKFAC()).perturbation([0], split(twice)[1])
    with pytest.raises(wh.ConfigError, match="floating-point input or a module, got input 0 of integers"):
        fitted(twice, wh.EKFAC()).perturbation([0], split(twice)[1], at=0)
    with pytest.raises(wh.ConfigError, match=r"one row an id \(2, at least one\), got 3"):
        attribution.replacement_scores([0, 1], queries, queries)
    maps = attribution.perturbation([0], queries)
    for bad, match in (
        (lambda: maps.predict(torch.zeros(4)), r"delta must have shape \(1, 5\)"),
        (lambda: maps.features(0), "top must be at least 1"),
        (lambda: maps.features(names=["a"]), r"one entry a feature \(5\), got 1"),
        (lambda: maps.features(reference=torch.zeros(2)), r"reference must have shape \(5,\)"),
        (lambda: maps.reach("l1"), 'norm must be "linf" or "l2"'),
    ):
        with pytest.raises(wh.ConfigError, match=match):
            bad()


class _Row(nn.Module):
    """A model whose inputs are one number, or one token, a row."""

    def __init__(self, first: nn.Module, size: int) -> None:
        super().__init__()
        self.first, self.last = first, nn.Linear(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.first(x if not x.is_floating_point() else x[:, None]).flatten(1))
        return found


def _of_rows(first: nn.Module, size: int, inputs: Tensor) -> wh.Perturbation:
    torch.manual_seed(0)
    targets = torch.arange(len(inputs)) % 2
    task = wh.Task(_Row(first, size).double())
    attribution = wh.Influence(curvature=wh.Exact(damping=DAMPING)).fit(task, (inputs, targets))
    return attribution.perturbation([1, 2], (inputs[:3], targets[:3]))


def test_a_bag_of_words_is_one_vector_and_has_no_map_a_word() -> None:
    words = torch.arange(40).reshape(10, 4) % 9
    found = _of_rows(nn.EmbeddingBag(9, 8), 8, words)  # 8 is a multiple of 4: nothing else would tell
    assert found.tokens is None
    frame = found.features(8)
    assert len(frame) == 3 * 2 * 8
    first = frame.iloc[0]
    assert first["derivative"] == pytest.approx(float(found.values[0, 0, int(first["feature"])]))


def test_one_number_and_one_token_a_row() -> None:
    number = _of_rows(nn.Identity(), 1, torch.linspace(-1, 1, 10, dtype=torch.float64))
    assert number.values.shape == (3, 2)
    frame = number.features(reference=0.0)
    assert frame["derivative"].to_numpy() == pytest.approx(number.values.reshape(-1).numpy())
    assert frame["effect"].to_numpy() == pytest.approx(-(number.values * number.inputs).reshape(-1).numpy())
    token = _of_rows(nn.Embedding(9, 3), 3, torch.arange(10) % 9)
    frame = token.features(names=[f"w{n}" for n in range(9)])
    assert frame["feature"].tolist() == ["0: w1", "0: w2"] * 3
    assert frame["effect"].to_numpy() == pytest.approx(-(token.values * token.inputs).sum(-1).reshape(-1).numpy())
    with pytest.raises(wh.ConfigError, match="names must name number 1, got 1 others"):
        token.features(names=["w0"])
    with pytest.raises(wh.ConfigError, match="names must name number 0, got 1 others"):
        number.features(names={1: "x"})
