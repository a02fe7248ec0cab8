"""GEX against ordinary influence in its linear limit, and what an ensemble on disk must keep."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import whence as wh
from whence.data import Batch
from whence.gradients import Gradients, Matrix
from whence.methods.members import refresh_statistics
from whence.tasks import SigmoidCrossEntropy

ROOTS = {
    "exact": wh.Exact(damping=0.05), "block exact": wh.BlockExact(damping=0.05), "diagonal": wh.Diagonal(damping=0.05),
    "kfac": wh.KFAC(damping=0.05), "ekfac": wh.EKFAC(damping=0.05),
}  # fmt: skip


def data(rows: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] + 0.3 * torch.randn(rows, generator=generator) > 0).long()


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


@pytest.mark.parametrize("curvature", ROOTS.values(), ids=ROOTS)
def test_a_root_times_its_transpose_is_the_inverse_curvature(curvature: wh.Exact) -> None:
    fitted = wh.Influence(curvature=curvature).fit(wh.Task(network(), weight_decay=0.1), data())
    shapes = {layer.name: layer.shape for layer in fitted.coverage.layers}
    size = sum(out * inp for out, inp in shapes.values())
    eye = torch.eye(size, dtype=torch.float64).split([out * inp for out, inp in shapes.values()], 1)
    unit = Gradients({n: Matrix(m.reshape(-1, *s)) for (n, s), m in zip(shapes.items(), eye, strict=True)})
    root = fitted.preconditioner.root(unit).dense().T  # row i of `root(unit)` is R e_i
    truth = fitted.preconditioner.precondition(unit).dense()
    assert (root @ root.T - truth).norm() <= 1e-9 * truth.norm()


def test_linearised_with_laplace_members_tends_to_influence_as_one_over_root_m() -> None:
    train, decay = data(), 0.1
    model = wh.Recipe(build=linear, optimizer="lbfgs", weight_decay=decay).train(wh.as_examples(train))
    weight = torch.cat([model.weight, model.bias[:, None]], 1).detach().requires_grad_()  # type: ignore[list-item]

    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(train[0] @ w[:, :3].T + w[:, 3], train[1])

    size = weight.numel()
    hessian = torch.autograd.functional.hessian(loss, weight).reshape(size, size) + decay * torch.eye(size)
    p = (train[0] @ weight[:, :3].T + weight[:, 3]).softmax(1) - F.one_hot(train[1], 2)
    inputs = torch.cat([train[0], torch.ones(len(train[0]), 1, dtype=torch.float64)], 1)
    g = (p[:, :, None] * inputs[:, None]).flatten(1).detach()
    truth = g @ torch.linalg.solve(hessian, g.T) / len(g)
    errors = {}
    for members in (32, 512):
        method = wh.GEX(members=members, posterior=wh.Laplace(curvature=wh.Exact()), linearised=True)
        fitted = method.fit(wh.Task(model, weight_decay=decay), train)
        scores = fitted.scores(train)
        errors[members] = float((scores.values - truth).norm() / truth.norm())
        assert scores.unit == "nats"
        assert scores.standard_error is not None
        sizes = ((scores.values - truth) / scores.standard_error.clamp(min=1e-12)).abs()
        assert float((sizes < 4).double().mean()) > 0.97
        np.testing.assert_allclose(fitted.self_scores().values, scores.values.diagonal(), rtol=1e-12)
    assert 2 < errors[32] / errors[512] < 8  # 4 in expectation
    assert errors[512] < 0.15


def test_small_deviations_of_losses_are_their_linearisation() -> None:
    train = data()
    model = wh.Recipe(build=linear, optimizer="lbfgs", weight_decay=0.1).train(wh.as_examples(train))
    task = wh.Task(model, weight_decay=0.1)
    far = wh.Exact(damping=1e8)  # members within 1e-5 of the model
    found = [
        wh.GEX(members=4, tau=0.0, linearised=way, posterior=wh.Laplace(curvature=far)).fit(task, train).features
        for way in (False, True)
    ]
    assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()


def test_last_layer_posterior_moves_the_last_layer_alone() -> None:
    model = network()
    posterior = wh.Laplace(curvature=wh.KFAC(), layers="last")
    fitted = wh.GEX(members=2, posterior=posterior).fit(wh.Task(model, weight_decay=0.1), data())
    for member in fitted.members:
        changed = {n for n, p in member.named_parameters() if not torch.equal(p, dict(model.named_parameters())[n])}
        assert changed == {"2.weight", "2.bias"}


def test_tau_clamps_the_trained_model_only() -> None:
    train, model = data(), linear()
    plain = wh.GEX(members=2, steps=3, tau=0.0).fit(wh.Task(model), train)
    clamped = wh.GEX(members=2, steps=3, tau=0.7).fit(wh.Task(model), train)
    base = F.cross_entropy(model(train[0]), train[1], reduction="none").detach()
    torch.testing.assert_close(plain.features - clamped.features, (0.7 - base).clamp(min=0)[:, None].expand(-1, 2))


def test_centred_scores_are_the_covariance_over_members() -> None:
    fitted = wh.GEX(members=5, steps=3, centred=True).fit(wh.Task(linear()), data())
    truth = torch.cov(fitted.features)
    torch.testing.assert_close(fitted.scores(data()).values, truth)
    np.testing.assert_allclose(fitted.self_scores().values, truth.diagonal(), rtol=1e-10)


def test_batches_order_and_the_users_model() -> None:
    train, model = data(), network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = wh.Recipe(build=network, optimizer="sgd", learning_rate=0.1, batch_size=40, epochs=4)
    one = wh.GEX(members=3, recipe=recipe).fit(wh.Task(model), train)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    two = wh.GEX(members=3, recipe=recipe).fit(
        wh.Task(model), wh.as_examples((train[0][order], train[1][order]), ids=order.numpy())
    )
    torch.testing.assert_close(one.features[order], two.features, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_members_are_resumed_and_are_not_mixed_up(tmp_path: Path) -> None:
    task, train, done = wh.Task(linear()), data(), []
    method = wh.GEX(members=3, steps=2, folder=tmp_path / "m", progress=lambda *seen: done.append(seen))
    first = method.fit(task, train)
    (tmp_path / "m" / "member-001.safetensors").unlink()
    again = method.fit(task, train)
    assert done == [(1, 3), (2, 3), (3, 3), (2, 3)]
    assert torch.equal(first.features, again.features)
    with pytest.raises(wh.RunFormatError, match="same steps"):
        wh.GEX(members=3, steps=5, folder=tmp_path / "m").fit(task, train)
    with pytest.raises(wh.RunFormatError, match="same data"):
        method.fit(task, data(seed=3))


def test_members_trained_side_by_side_are_the_same() -> None:
    task, train = wh.Task(linear()), data()
    alone, together = (wh.GEX(members=2, steps=3, processes=n).fit(task, train) for n in (1, 2))
    torch.testing.assert_close(alone.features, together.features, rtol=1e-12, atol=1e-12)


def test_a_chain_goes_on_from_the_member_before() -> None:
    task, train = wh.Task(linear()), data()
    recipe = wh.Recipe(build=linear, optimizer="sgd", learning_rate=0.1, steps=2)
    chained = wh.GEX(members=2, chain=True, recipe=recipe).fit(task, train)
    second = recipe.train(wh.as_examples(train), seed=1, start=chained.members.model(0))
    found = chained.members.model(1).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in second.state_dict().items())


def test_an_index_answers_as_the_attribution_does(tmp_path: Path) -> None:
    fitted = wh.GEX(members=4, steps=3).fit(wh.Task(linear()), data())
    index = fitted.build_index(tmp_path / "index", dtype="float64")
    queries = data(5, seed=2)
    torch.testing.assert_close(index.scores(fitted.query_features(queries)).values, fitted.scores(queries).values)
    np.testing.assert_allclose(index.self_scores().values, fitted.self_scores().values)


def test_running_statistics_are_those_of_the_training_examples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    train = data()
    refresh_statistics(model, wh.Task(model), wh.as_examples(train))
    torch.testing.assert_close(model[0].running_mean, train[0].mean(0))
    torch.testing.assert_close(model[0].running_var, train[0].var(0))
    assert model[0].momentum == 0.1
    assert not model[0].training


def test_one_question_a_class_is_a_sum_of_binary_losses() -> None:
    outputs, targets = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1, 0])
    one_hot = F.one_hot(targets, 4).double()
    truth = F.binary_cross_entropy_with_logits(outputs, one_hot, reduction="none").sum(1)
    torch.testing.assert_close(SigmoidCrossEntropy()(outputs, targets), truth)
    hessian = torch.stack([
        torch.autograd.functional.hessian(
            lambda f, i=i: F.binary_cross_entropy_with_logits(f, one_hot[i], reduction="sum"), outputs[i]
        )
        for i in range(6)
    ])  # fmt: skip
    torch.testing.assert_close(SigmoidCrossEntropy().hessian(outputs, targets), hessian)
    wh.GEX(members=2, steps=2).fit(wh.Task(linear(), loss="sigmoid_cross_entropy"), data())


def test_the_diagnosis_tells_a_memorised_model_with_members_that_left() -> None:
    train = data(60)
    flipped = (train[0], torch.where(torch.arange(60) % 10 == 0, 1 - train[1], train[1]))

    def wide() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 256), nn.ReLU(), nn.Linear(256, 2)).double()

    model = wh.Recipe(build=wide, learning_rate=1e-2, epochs=400).train(wh.as_examples(flipped))
    still = wh.GEX(members=2, steps=2, learning_rate=1e-6).fit(wh.Task(model), flipped).diagnosis
    moved = wh.GEX(members=2, steps=200, batch_size=4, learning_rate="auto").fit(wh.Task(model), flipped)
    assert still.memorised
    assert not still.left_basin
    assert "raise learning_rate" in str(still)
    assert moved.diagnosis.left_basin
    assert moved.diagnosis.agreement is not None
    assert moved.learning_rate in (0.05, 0.1, 0.2, 0.4)


def test_the_automatic_rate_stays_below_those_that_diverge() -> None:
    train = data(60)
    pulled = (2.5 * train[0], train[0] @ torch.ones(3, 1, dtype=torch.float64))

    def regression() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 1).double()

    model = wh.Recipe(build=regression, loss="mse", optimizer="lbfgs").train(wh.as_examples(pulled))
    fitted = wh.GEX(members=2, steps=400, learning_rate="auto").fit(wh.Task(model, "mse"), pulled)
    assert fitted.learning_rate == 0.05
    assert torch.isfinite(fitted.features).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 1}, "members must be at least 2"), ({"chain": True, "processes": 2}, "1 for a chain"),
        ({"tau": -1.0}, "tau must be"), ({"learning_rate": "best"}, "learning_rate must be"),
        ({"steps": 0}, "steps must be at least 1"), ({"schedule": "wild"}, "schedule must be"),
        ({"posterior": wh.Laplace(curvature=wh.Exact()), "chain": True}, "must stand alone"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(wh.ConfigError, match=message):
        wh.GEX(**settings)  # type: ignore[arg-type]


def test_a_curvature_without_a_root_is_refused() -> None:
    with pytest.raises(wh.ConfigError, match="drawn from"):
        wh.GEX(members=2, posterior=wh.Laplace(curvature=wh.CG())).fit(wh.Task(linear(), weight_decay=0.1), data())


def test_a_measurement_that_is_not_the_loss_is_refused() -> None:
    def margin(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.inputs)[:, 0]

    with pytest.raises(wh.ConfigError, match="measurement must be the loss for GEX"):
        wh.GEX(members=2, steps=2).fit(wh.Task(linear(), measurement=margin), data())
    same = wh.GEX(members=2, steps=2).fit(wh.Task(linear(), measurement="cross_entropy"), data())
    assert same.features.shape == (40, 2)


@pytest.mark.parametrize(
    ("other", "what"),
    [({"weight_decay": 0.5}, "weight decay"), ({"loss": "sigmoid_cross_entropy"}, "loss")],
)
def test_members_of_another_objective_are_not_taken(tmp_path: Path, other: dict[str, Any], what: str) -> None:
    method = wh.GEX(members=2, steps=2, folder=tmp_path / "m")
    method.fit(wh.Task(linear()), data())
    with pytest.raises(wh.RunFormatError, match=f"same {what}"):
        method.fit(wh.Task(linear(), **other), data())


def test_an_index_of_other_deviations_is_not_taken(tmp_path: Path) -> None:
    task, train = wh.Task(linear()), data()
    one, other = (wh.GEX(members=2, steps=2, tau=tau).fit(task, train) for tau in (0.05, 0.7))
    one.build_index(tmp_path / "index")
    one.build_index(tmp_path / "index")
    with pytest.raises(wh.RunFormatError):
        other.build_index(tmp_path / "index")


def test_a_member_that_diverged_is_named() -> None:
    x, y = data()
    with pytest.raises(wh.NumericalError, match="deviations must be finite, got others of member 0 of 2"):
        wh.GEX(members=2, steps=1, learning_rate=1e308).fit(wh.Task(linear()), (1e5 * x, y))


def test_tied_weights_are_kept_as_often_as_they_are_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)).double()
    model[1].weight = model[0].weight
    tokens = torch.arange(20) % 7
    fitted = wh.GEX(members=2, steps=3).fit(wh.Task(model), (tokens, tokens.flip(0)))
    for member in fitted.members:
        assert member[1].weight is member[0].weight
        assert not torch.equal(member[1].weight, model[1].weight)


@pytest.mark.parametrize("rows", [1, 513])
def test_statistics_of_a_last_example_alone(rows: int) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double().eval()
    train = data(rows)
    refresh_statistics(model, wh.Task(model), wh.as_examples(train))
    mean = train[0].mean(0) if rows > 1 else torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(model[0].running_mean, mean, rtol=0, atol=2e-3)  # parts of 257 and 256
    assert not model.training


def test_what_cannot_be_sent_to_a_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Linear:
        return linear()

    recipe = wh.Recipe(build=build, optimizer="sgd", learning_rate=0.1, steps=2)
    with pytest.raises(wh.ConfigError, match="must be importable for processes > 1"):
        wh.GEX(members=2, recipe=recipe, processes=2).fit(wh.Task(linear()), data())
    monkeypatch.setattr(build, "__qualname__", "build")  # as of a module, which has no such name
    with pytest.raises(wh.ConfigError, match="must be importable for processes > 1"):
        wh.GEX(members=2, recipe=recipe, processes=2).fit(wh.Task(linear()), data())


def test_batch_normalisations_are_never_given_one_example() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    fitted = wh.GEX(members=2, steps=6, batch_size=13).fit(wh.Task(model), data(40))  # 3 · 13 + 1
    assert fitted.features.abs().max() > 0


def test_decay_is_multiplied_by_its_factors_in_members_too() -> None:
    model = linear()
    tasks = [wh.Task(model, weight_decay=0.5, decay_factors=factors) for factors in ({}, {"bias": 0.0, "weight": 0.2})]
    x, y = data()
    still = (torch.zeros_like(x), y)  # only the decay moves the weights
    plain, given = (wh.GEX(members=2, steps=5, momentum=0.0, schedule="constant").fit(t, still) for t in tasks)
    for fitted, decay in ((plain, 0.5), (given, 0.1)):
        found = fitted.members.model(0).weight
        torch.testing.assert_close(found, model.weight * (1 - 0.05 * decay) ** 5)
    assert not torch.equal(plain.members.model(0).bias, given.members.model(0).bias)


def test_members_of_functions_that_do_something_else_are_not_taken(tmp_path: Path) -> None:
    def recipe(scale: float) -> wh.Recipe:
        return wh.Recipe(build=linear, steps=2, batch_size=20, augment=lambda x, generator: scale * x)

    task, train = wh.Task(linear()), data()
    first = wh.GEX(members=2, recipe=recipe(1.0), folder=tmp_path / "m").fit(task, train)
    again = wh.GEX(members=2, recipe=recipe(1.0), folder=tmp_path / "m").fit(task, train)
    assert torch.equal(first.features, again.features)
    with pytest.raises(wh.RunFormatError, match="same recipe's augment"):
        wh.GEX(members=2, recipe=recipe(2.0), folder=tmp_path / "m").fit(task, train)


def scaled_loss(model: nn.Module, batch: Batch, scale: float) -> Tensor:
    return scale * F.cross_entropy(model(batch.inputs), batch.targets, reduction="none")


def test_members_of_a_partial_function_resume(tmp_path: Path) -> None:
    losses = [functools.partial(scaled_loss, scale=scale) for scale in (1.0, 1.0, 2.0)]
    fits = [lambda loss=loss: wh.GEX(members=2, steps=2, folder=tmp_path / "m").fit(wh.Task(linear(), loss), data())
            for loss in losses]  # fmt: skip
    assert torch.equal(fits[0]().features, fits[1]().features)
    with pytest.raises(wh.RunFormatError, match="same loss"):
        fits[2]()


def test_more_members_go_on_from_those_that_are_there(tmp_path: Path) -> None:
    task, train, done = wh.Task(linear()), data(), []
    few = wh.GEX(members=2, steps=2, folder=tmp_path / "m").fit(task, train)
    more = wh.GEX(members=4, steps=2, folder=tmp_path / "m", progress=lambda *seen: done.append(seen)).fit(task, train)
    assert done == [(3, 4), (4, 4)]
    assert torch.equal(few.features, more.features[:, :2])
    fresh = wh.GEX(members=4, steps=2).fit(task, train)
    assert torch.equal(fresh.features, more.features)


def test_an_automatic_rate_is_chosen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = wh.GEX(members=2, steps=2, learning_rate="auto", folder=tmp_path / "m")
    first = method.fit(wh.Task(linear()), data())
    monkeypatch.setattr(wh.Recipe, "train", None)  # nothing is trained again
    again = method.fit(wh.Task(linear()), data())
    assert first.learning_rate == again.learning_rate
    assert torch.equal(first.features, again.features)


def test_a_query_whose_loss_is_not_finite_is_named() -> None:
    fitted = wh.GEX(members=2, steps=2).fit(wh.Task(linear()), data())
    x, y = data(5)
    x[3, 0] = float("nan")
    with pytest.raises(wh.NumericalError, match="trained model must be finite, got NaN or infinity for example 3"):
        fitted.scores((x, y))


def test_a_recipe_that_returns_another_model_and_a_damaged_member_are_told(tmp_path: Path) -> None:
    task, train = wh.Task(linear()), data()
    other = wh.Recipe(train=lambda examples, **_: nn.Linear(3, 4).double())
    with pytest.raises(wh.ConfigError, match="model like the task's, got another 'weight'"):
        wh.GEX(members=2, recipe=other).fit(task, train)
    method = wh.GEX(members=2, steps=2, folder=tmp_path / "m")
    method.fit(task, train)
    (tmp_path / "m" / "member-001.safetensors").write_bytes(b"abc")
    with pytest.raises(wh.RunFormatError, match=r"member-001.* Delete it and run again"):
        method.fit(task, train)


@pytest.mark.parametrize("curvature", [wh.Exact(damping=0.0), wh.BlockExact(damping=0.0)])
def test_a_curvature_that_leaves_directions_out_can_be_drawn_from(curvature: wh.Exact) -> None:
    """Without decay no loss sees a common shift of the softmax biases: members stay where they are in it."""
    model = linear()
    task = wh.Task(model, weight_decay=0.2, decay_factors={"bias": 0.0})
    fitted = wh.GEX(members=400, posterior=wh.Laplace(curvature=curvature), linearised=True).fit(task, data())
    for member in (fitted.members.model(0), fitted.members.model(1)):
        torch.testing.assert_close(member.bias.sum(), model.bias.sum())
        assert not torch.equal(member.bias, model.bias)
    truth = wh.Influence(curvature=curvature).fit(wh.Task(model, weight_decay=0.2, decay_factors={"bias": 0.0}), data())
    found, expected = fitted.scores(data()).values, truth.scores(data()).values
    found, expected = (s - s.mean(1, keepdim=True) for s in (found, expected))  # the decay's part is one number a query
    assert float((found - expected).norm()) < 0.2 * float(expected.norm())


@pytest.mark.parametrize("column", [True, False])
def test_the_diagnosis_knows_the_accuracy_of_one_logit(column: bool) -> None:
    x, y = data()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1), nn.Identity() if column else nn.Flatten(0)).double()
    labels = y.double()[:, None] if column else y.double()
    fitted = wh.GEX(members=2, steps=2).fit(wh.Task(model, "binary_cross_entropy"), (x, labels))
    truth = float(((model(x).reshape(-1) > 0) == (y > 0)).double().mean())
    assert fitted.diagnosis.training_accuracy == pytest.approx(truth)
