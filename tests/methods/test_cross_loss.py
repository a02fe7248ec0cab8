"""A measurement that is not the loss: of a query, of a group of queries, of the model alone; one and the same path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oracle
import whence as wh
import zoo
from whence.curvature import Curvature
from whence.tasks import CrossEntropy

COUNT, ASKED, DECAY, WEAK = 12, 5, 0.05, 0.01
CURVATURES: dict[str, Curvature] = {
    "identity": wh.Identity(),
    "exact": wh.Exact(damping=0.1),
    "kfac": wh.KFAC(),
    "kfac-joint": wh.KFAC(split=False, damping=0.05, rank_tolerance=1e-9),
    "ekfac": wh.EKFAC(rank_tolerance=1e-9),  # a low-rank grid meets factored queries, the whole grid dense ones
    "diagonal": wh.Diagonal(),
    "block-exact": wh.BlockExact(),
    "cg": wh.CG(tolerance=1e-12),
    "lissa": wh.LiSSA(depth=20, batch=5, require_convergence=False),
    "neumann": wh.Neumann(steps=4),
    "lanczos": wh.Lanczos(rank=12, tolerance=1e-9),
    "nystrom": wh.Nystrom(rank=12),
    "datainf": wh.DataInf(),
    "projected": wh.Projected(rank=3),
}


def influence(curvature: Curvature) -> Callable[[wh.Task, Any], Any]:
    return lambda task, train: wh.Influence(curvature=curvature).fit(task, train)


def tracin(projection: int | None) -> Callable[[wh.Task, Any], Any]:
    def fit(task: wh.Task, train: Any) -> Any:
        other = zoo.make("mlp", count=COUNT, seed=7).model
        return wh.TracIn(checkpoints=[task.model, other], learning_rates=[1.0, 0.5], projection=projection).fit(
            task, train
        )

    return fit


METHODS: dict[str, Callable[[wh.Task, Any], Any]] = {
    **{name: influence(curvature) for name, curvature in CURVATURES.items()},
    "gradient-dot": lambda task, train: wh.GradientDot().fit(task, train),
    "gradient-cosine": lambda task, train: wh.GradientCosine().fit(task, train),
    "tracin": tracin(None),
    "tracin-projected": tracin(40),
}
LINEAR = [name for name in METHODS if name != "gradient-cosine"]  # a cosine is not linear in the measurement


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.inputs), batch.targets, reduction="none")


def energy(model: nn.Module, batch: Any) -> Tensor:
    return model(batch.inputs).square().sum(1)


def size(model: nn.Module) -> Tensor:
    return model[0].weight.exp().sum() + model[-1].weight.square().sum()


def asked(seed: int = 1) -> tuple[Tensor, Tensor]:
    queries = zoo.make("mlp", count=ASKED, seed=seed)
    return queries.inputs, queries.targets


def scores(fit: Callable[[wh.Task, Any], Any], measurement: Any, queries: Any = None) -> Tensor:
    case = zoo.make("mlp", count=COUNT)
    return fit(wh.Task(case.model, measurement=measurement, weight_decay=DECAY), case.train).scores(queries).values


def same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> bool:
    return float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


@pytest.mark.parametrize("method", METHODS)
def test_measuring_the_loss_is_ordinary_influence(method: str) -> None:
    """To the bit where it is named; a callable that computes it goes by plain autograd."""
    fit = METHODS[method]
    ordinary = scores(fit, None, asked())
    assert torch.equal(scores(fit, "cross_entropy", asked()), ordinary)
    assert torch.equal(scores(fit, CrossEntropy(), asked()), ordinary)
    assert same(scores(fit, own_loss, asked()), ordinary, 1e-8)


@pytest.mark.parametrize("method", LINEAR)
def test_a_group_of_queries_is_the_mean_of_its_rows(method: str) -> None:
    """A measurement of the model alone that closes over the queries: ordinary influence too, if it is their loss."""
    fit, (inputs, targets) = METHODS[method], asked()
    together = scores(fit, lambda model: F.cross_entropy(model(inputs), targets))
    assert together.shape == (1, COUNT)
    assert same(together[0], scores(fit, None, asked()).mean(0), 1e-8)


@pytest.mark.parametrize("method", LINEAR)
def test_scores_are_linear_in_the_measurement(method: str) -> None:
    fit, queries = METHODS[method], asked()
    both = scores(fit, lambda model, batch: 2 * own_loss(model, batch) + energy(model, batch), queries)
    assert same(both, 2 * scores(fit, own_loss, queries) + scores(fit, energy, queries), 1e-8)
    alone = scores(fit, lambda model: 2 * size(model) + model[0].bias.sum())
    assert same(alone, 2 * scores(fit, size) + scores(fit, lambda model: model[0].bias.sum()), 1e-8)


def test_the_cosine_of_a_model_alone_is_that_of_a_query() -> None:
    inputs, targets = asked()
    alone = scores(METHODS["gradient-cosine"], lambda model: F.cross_entropy(model(inputs[:1]), targets[:1]))
    assert same(alone, scores(METHODS["gradient-cosine"], None, (inputs[:1], targets[:1])))


def divergence(outputs: Tensor, targets: Tensor) -> Tensor:
    return (torch.xlogy(targets, targets) - targets * outputs.log_softmax(1)).sum()


class AutoEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


PROBE = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def probed(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model.encoder(batch.inputs) @ PROBE.T, batch.targets, reduction="none")


class Story:
    """A model trained without labels, and a question with labels."""

    def __init__(
        self, model: nn.Module, train: Any, loss: Any, dense_loss: Any, measurement: Any, measured: Any
    ) -> None:
        self.model, self.train, self.loss, self.dense_loss = model.double(), train, loss, dense_loss
        self.measurement, self.measured = measurement, measured

    def rows(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the measurement of every query [Q], without gradients."""
        with torch.no_grad():
            return torch.stack([self.measured(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])


def story(name: str) -> Story:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(COUNT, 4, dtype=torch.float64)
        if name == "auto-encoder":
            measured = lambda model, x, y: F.cross_entropy(model.encoder(x) @ PROBE.T, y)  # noqa: E731 - one line a story
            return Story(AutoEncoder(), (x, x), "mse", oracle.squared_error, probed, measured)
        encoder = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        model = wh.DeepClustering(encoder, torch.randn(2, 2))
        train = x, torch.rand(COUNT, 2, dtype=torch.float64).softmax(1)
        measured = lambda model, x, y: F.cross_entropy(model(x), y)  # noqa: E731
        return Story(model, train, wh.KullbackLeibler(), divergence, "cross_entropy", measured)


def dense_scores(told: Story, gradients: Tensor) -> Tensor:
    """Return ∇mᵀ (G + λ + damping)⁻¹ (∇ℓ_i + λθ̂) / N of measurement gradients [Q, P]."""
    matrix = oracle.gauss_newton(told.model, told.dense_loss, *told.train)
    inverse = torch.linalg.inv(matrix + (DECAY + 0.1) * torch.eye(len(matrix), dtype=matrix.dtype))
    weights = oracle.flatten(told.model, {name: p.detach() for name, p in told.model.named_parameters()})
    removal = oracle.per_example_gradients(told.model, told.dense_loss, *told.train) + DECAY * weights
    return gradients @ inverse @ removal.T / COUNT


def dense_gradient(model: nn.Module, measure: Callable[[nn.Module], Tensor]) -> Tensor:
    """Return the gradient of a scalar of a model [P], by autograd on a copy."""
    copied = oracle.evaluated(model)
    named = dict(copied.named_parameters())
    found = torch.autograd.grad(measure(copied), list(named.values()), allow_unused=True, materialize_grads=True)
    return oracle.flatten(copied, dict(zip(named, found, strict=True)))


@pytest.mark.parametrize("name", ["auto-encoder", "clustering"])
def test_dense_oracle_of_models_without_labels(name: str) -> None:
    told = story(name)
    x = torch.randn(ASKED, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 1, 0, 1])
    rows = [
        dense_gradient(told.model, lambda model, i=i: told.measured(model, x[i : i + 1], y[i : i + 1]))
        for i in range(ASKED)
    ]
    expected = dense_scores(told, torch.stack(rows))
    for curvature in (wh.Exact(damping=0.1), wh.CG(damping=0.1, tolerance=1e-12)):
        task = wh.Task(told.model, told.loss, measurement=told.measurement, weight_decay=DECAY)
        attribution = wh.Influence(curvature=curvature).fit(task, told.train)
        assert same(attribution.scores((x, y)).values, expected, 1e-8)
        for order in (slice(None, None, -1), slice(0, 1)):  # the other queries of a call change nothing
            part = torch.arange(ASKED).numpy()[order].copy()
            assert same(attribution.scores((x[part], y[part])).values, expected[part], 1e-8)
    mean = wh.Task(told.model, told.loss, measurement=lambda model: told.measured(model, x, y), weight_decay=DECAY)
    together = wh.Influence(curvature=wh.Exact(damping=0.1)).fit(mean, told.train)
    assert same(together.scores().values[0], expected.mean(0), 1e-8)
    assert together.scores().unit is None


def effect(model: nn.Module) -> Tensor:
    """An effect size over rows of an embedding, as a word test has it: a mean difference over a standard deviation."""
    vectors = F.normalize(model[0].weight, dim=1)
    association = vectors[:4] @ vectors[4:6].mean(0) - vectors[:4] @ vectors[6:8].mean(0)
    return (association[:2].mean() - association[2:].mean()) / association.std()


def test_dense_oracle_of_an_effect_size_of_the_model_alone() -> None:
    case = zoo.make("text", count=COUNT)
    gradient = dense_gradient(case.model, effect)
    told = Story(case.model, case.train, "cross_entropy", oracle.cross_entropy, None, None)
    task = wh.Task(case.model, measurement=effect, weight_decay=DECAY)
    attribution = wh.Influence(curvature=wh.Exact(damping=0.1)).fit(task, case.train)
    expected = dense_scores(told, gradient[None])
    assert same(attribution.scores().values, expected, 1e-8)
    groups = attribution.group_scores({"three": [0, 4, 9]}).values
    assert same(groups[0], expected[0, [0, 4, 9]].sum()[None] * COUNT / (COUNT - 3), 1e-8)


@pytest.mark.parametrize("measurement", [energy, None], ids=["query", "model"])
def test_save_load_index_batches_and_order(measurement: Any, tmp_path: Path) -> None:
    """What holds for ordinary influence holds for any measurement."""
    case, order = zoo.make("mlp", count=COUNT), np.random.default_rng(0).permutation(COUNT)
    queries = None if measurement is None else asked()
    task = wh.Task(case.model, measurement=size if measurement is None else measurement, weight_decay=DECAY)
    fitted = wh.Influence(curvature=wh.EKFAC(), batch_size=COUNT).fit(task, case.train)
    expected = fitted.scores(queries)
    for batch in (1, 7):
        train = wh.as_examples((case.inputs[order], case.targets[order]), ids=order)
        again = wh.Influence(curvature=wh.EKFAC(), batch_size=batch).fit(task, train).scores(queries)
        assert same(again.values[:, np.argsort(order)], expected.values)
    fitted.save(tmp_path / "run")
    assert same(wh.load(tmp_path / "run", task).scores(queries).values, expected.values)
    index = wh.build_index(fitted, tmp_path / "index", dtype="float32")
    found = index.scores(fitted.query_features(queries))
    assert same(found.values.double(), expected.values, 1e-5)
    assert found.query_ids.tolist() == expected.query_ids.tolist()


def retrained(told: Story, weights: Tensor, start: nn.Module) -> nn.Module:
    recipe = wh.Recipe(
        build=lambda: nn.Identity(), loss=told.loss, optimizer="lbfgs", weight_decay=WEAK, gradient_norm=1e-7
    )  # fmt: skip
    return recipe.train(told.train, start=start, weights=weights)


@pytest.mark.parametrize("name", ["auto-encoder", "clustering"])
def test_real_retraining_on_the_loss_moves_the_measurement_as_predicted(name: str) -> None:
    """Every example in turn weighs 2 % less: to first order 2 % of its removal. Training is on the model's own loss."""
    told = story(name)
    told.model = retrained(told, torch.ones(COUNT), told.model)
    x = torch.randn(ASKED, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    queries = x, torch.tensor([0, 1, 1, 0, 1])
    task = wh.Task(told.model, told.loss, measurement=told.measurement, weight_decay=WEAK)
    curvature = wh.Exact(hessian=True, damping=1e-7)  # rotations of the code change no loss: flat directions
    predicted = wh.Influence(curvature=curvature).fit(task, told.train).scores(queries).values * 0.02
    before = told.rows(told.model, *queries)
    lighter = 1 - 0.02 * torch.eye(COUNT)
    after = torch.stack([told.rows(retrained(told, row, told.model), *queries) for row in lighter], 1)
    assert same(after - before[:, None], predicted, 0.05)


# ---- refusals


def fitted(measurement: Any, layers: Any = None) -> Any:
    case = zoo.make("mlp", count=COUNT)
    return wh.Influence(curvature=wh.Identity(), layers=layers).fit(
        wh.Task(case.model, measurement=measurement), case.train
    )


WRONG_OF_QUERIES: dict[str, tuple[Any, str]] = {
    "mean over the batch": (lambda model, batch: own_loss(model, batch).mean(), "one value an example"),
    "one value an output": (lambda model, batch: model(batch.inputs), "one value an example"),
    "not a tensor": (lambda model, batch: [1.0], "got list"),
    "of the model": (size, "without queries"),
    "argmax": (lambda model, batch: model(batch.inputs).argmax(1), "be differentiable"),
    "detached": (lambda model, batch: energy(model, batch).detach(), "be differentiable"),
    "a constant": (lambda model, batch: batch.inputs[:, 0], "must depend on the parameters"),
    "accuracy": (wh.Accuracy(), "be differentiable"),
}


@pytest.mark.parametrize("name", WRONG_OF_QUERIES)
def test_measurements_of_queries_that_are_refused(name: str) -> None:
    measurement, message = WRONG_OF_QUERIES[name]
    with pytest.raises(wh.ConfigError, match=message):
        fitted(measurement).scores(asked())


WRONG_OF_MODELS: dict[str, tuple[Any, str]] = {
    "a vector": (lambda model: model[0].weight, r"scalar tensor .* got \(\d+, \d+\)"),
    "a number": (lambda model: float(size(model).detach()), "got float"),
    "of queries": (energy, "Pass queries"),
    "a loss": ("mse", "Pass queries"),
    "the loss": (None, "Pass queries"),
    "detached": (lambda model: size(model).detach(), "be differentiable"),
    "a count": (lambda model: (model[0].weight > 0).sum(), "be differentiable"),
    "another model": (lambda model: nn.Linear(2, 2).weight.sum(), "must depend on the parameters"),
}


@pytest.mark.parametrize("name", WRONG_OF_MODELS)
def test_measurements_of_models_that_are_refused(name: str) -> None:
    measurement, message = WRONG_OF_MODELS[name]
    with pytest.raises(wh.ConfigError, match=message):
        fitted(measurement).scores()


def test_a_measurement_of_other_parameters_than_the_attributed_is_refused() -> None:
    first = lambda model: model[0].weight.square().sum()  # noqa: E731
    assert fitted(first).scores().values.abs().sum() > 0
    with pytest.raises(wh.ConfigError, match=r"depends on \['0.weight'\] alone. Attribute their layers"):
        fitted(first, layers="last").scores()
    with pytest.raises(wh.ConfigError, match="depends on"):
        fitted(lambda model, batch: model[0](batch.inputs).sum(1), layers="last").scores(asked())


def test_a_measurement_that_is_not_finite_names_the_query() -> None:
    with pytest.raises(wh.NumericalError, match="of query 0 must be finite"):
        fitted(lambda model, batch: (energy(model, batch) * 0).sqrt()).scores(asked())
    with pytest.raises(wh.NumericalError, match="of the model must be finite"):
        fitted(lambda model: (size(model) * 0).log()).scores()
    with pytest.raises(wh.NumericalError, match="measurement must be finite, got nan for example 0"):
        fitted("mse").scores((asked()[0], torch.full((ASKED, 3), torch.nan, dtype=torch.float64)))


def test_methods_that_measure_outputs_of_their_own_say_so() -> None:
    case = zoo.make("mlp", count=COUNT)
    task = wh.Task(case.model, measurement=energy)
    for method in (wh.TRAK(dimension=8), wh.Representer()):
        with pytest.raises(wh.ConfigError, match="measurement must be left out"):
            method.fit(task, case.train)
        with pytest.raises(wh.ConfigError, match="must be asked with queries"):
            method.fit(wh.Task(case.model), case.train).scores()
