"""Every curvature against its dense inverse in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import oracle
import zoo
from whence.curvature import EKFAC, KFAC, Curvature, Damping, Exact, Identity, Preconditioner, Relative
from whence.data import as_examples, uniform
from whence.gradients import Gradients, GradientStream, Matrix, find_layers
from whence.tasks import Task

DECAY = 0.03


@dataclass(frozen=True)
class Fitted:
    """A case, its stream and everything dense that the oracles are made of."""

    case: zoo.Case
    stream: GradientStream
    task: Task

    def fit(self, curvature: Curvature) -> Preconditioner:
        return curvature.fit(self.stream, seed=3)

    def jacobian_gradients(self) -> list[Gradients]:
        chunk = next(iter(GradientStream(self.task, self.stream.layers, self.stream.examples, 10**6).chunks()))
        assert chunk.outputs is not None
        eye = torch.eye(chunk.outputs[0].numel(), dtype=torch.float64)
        count = len(chunk.losses)
        return [chunk.seeded(seed.expand(count, -1).reshape(chunk.outputs.shape)) for seed in eye]

    def gradients(self) -> Gradients:
        whole = GradientStream(self.task, self.stream.layers, self.stream.examples, 10**6)
        return next(iter(whole.training_gradients()))[1]

    def roots(self, fisher: str) -> Tensor:
        """Return what the Fisher's gradients are in the outputs [N, R, C]."""
        case = self.case
        if fisher == "exact":
            hessians = oracle.output_hessians(case.model, oracle.LOSSES[case.loss], case.inputs, case.targets)
            return torch.stack([oracle.symmetric_root(h).T for h in hessians])
        batch = self.task.place(self.stream.examples.batch(torch.arange(len(case.targets)).numpy()))
        with self.task.evaluating():
            outputs = self.task.forward(batch).detach().requires_grad_()
        loss = self.task.smooth_loss
        assert loss is not None and batch.targets is not None
        if fisher == "empirical":
            given = torch.autograd.grad(self.task.losses(batch, outputs).sum(), outputs)[0]
            return given.reshape(len(given), 1, -1)
        draws = [torch.from_numpy(uniform(batch.keys, 3, number)) for number in range(loss.draws(outputs))]
        sampled = loss.sample(outputs.detach(), batch.targets, torch.stack(draws, 1))
        return sampled.reshape(len(sampled), 1, -1)


def fitted(name: str, count: int = 11, chunk: int = 4, budget: int = 0, decay: float = DECAY) -> Fitted:
    case = zoo.make(name, count=count)
    task = Task(case.model, case.loss, weight_decay=decay)
    layers = find_layers(case.model).layers
    return Fitted(case, GradientStream(task, layers, as_examples(case.train), chunk, budget), task)


def shift(damping: Damping, mean: Tensor) -> float:
    return (damping.factor * float(mean) if isinstance(damping, Relative) else damping) + DECAY


def dense_inverse(curvature: KFAC | EKFAC, of: Fitted, fisher: str) -> Tensor:
    """Return the documented block-diagonal H⁻¹ [P, P], from dense per-example quantities."""
    case, roots = of.case, of.roots(fisher)
    count = len(roots)
    whole = oracle.jacobians(case.model, case.inputs, count)
    per_example = torch.einsum("nrc,ncp->nrp", roots, whole)  # [N, R, P]
    inputs, deltas = oracle.captured(case.model, case.inputs, count)
    size = per_example.shape[2]
    inverse = torch.zeros(size, size, dtype=torch.float64)
    for name, where in oracle.blocks(case.model).items():
        module = oracle.layers_of(case.model)[name]
        own = per_example[:, :, where]
        block = torch.einsum("nrp,nrq->pq", own, own) / count
        if name not in inputs and not isinstance(module, nn.Embedding):
            damped = shift(curvature.damping, block.diagonal().mean())
            inverse[where, where] = torch.linalg.inv(block + damped * torch.eye(len(block), dtype=block.dtype))
            continue
        if isinstance(module, nn.Embedding):
            tables = own.reshape(count, -1, module.embedding_dim, module.num_embeddings)
            used = (tables != 0).any(2).any(1).double().sum(0)
            a, g = torch.diag(used / used.sum()), torch.einsum("nrov,nrpv->op", tables, tables) / count
            basis = torch.kron(torch.linalg.eigh(g)[1].contiguous(), torch.eye(len(a), dtype=a.dtype))
            eigenvalues = (own @ basis).square().sum((0, 1)) / count
        else:
            fisher_deltas = oracle.fisher_deltas(deltas[name], roots)
            a, g = oracle.kronecker(inputs[name], fisher_deltas)
            eigenvalues, basis = oracle.ekfac(inputs[name], fisher_deltas)
        inverse[where, where] = _block_inverse(curvature, a, g, eigenvalues, basis)
    return inverse


def _block_inverse(curvature: KFAC | EKFAC, a: Tensor, g: Tensor, eigenvalues: Tensor, basis: Tensor) -> Tensor:
    if isinstance(curvature, EKFAC):
        return (basis / (eigenvalues + shift(curvature.damping, eigenvalues.mean()))) @ basis.T
    eye_a, eye_g = torch.eye(len(a), dtype=a.dtype), torch.eye(len(g), dtype=a.dtype)
    mean_a, mean_g = a.diagonal().mean(), g.diagonal().mean()
    damped = shift(curvature.damping, mean_a * mean_g)
    if not curvature.split:
        return torch.linalg.inv(torch.kron(g, a) + damped * torch.kron(eye_g, eye_a))
    balance = (mean_a / mean_g).sqrt()
    return torch.kron(
        torch.linalg.inv(g + damped**0.5 / balance * eye_g), torch.linalg.inv(a + damped**0.5 * balance * eye_a)
    )


def assert_applies(of: Fitted, found: Preconditioner, inverse: Tensor, low_rank: float = 1e-8) -> None:
    """Hold products, quadratic forms and leverages against a dense inverse."""
    gradients, jacobians = of.gradients(), of.jacobian_gradients()
    dense = gradients.dense()
    products = found.precondition(gradients)
    assert_norm_close(products.dense(), dense @ inverse, low_rank)
    assert_norm_close(products.inner(gradients), dense @ inverse @ dense.T, low_rank)
    multiplied = Gradients({name: Matrix(factor.matrix()) for name, factor in gradients.layers.items()})
    assert_norm_close(found.precondition(multiplied).dense(), dense @ inverse, 1e-8)
    assert_norm_close(found.quadratic(gradients), ((dense @ inverse) * dense).sum(1), 1e-8)
    assert_norm_close(found.quadratic(multiplied), ((dense @ inverse) * dense).sum(1), 1e-8)
    rows = torch.stack([j.dense() for j in jacobians], 1)
    assert_norm_close(found.leverage(jacobians), rows @ inverse @ rows.transpose(1, 2), 1e-8)


def assert_norm_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((found - expected).norm() / expected.norm())
    assert error <= tolerance, f"relative error {error:.3g}"


DAMPINGS = [Relative(0.1), 0.02]
FACTORED = ["linear", "mlp", "binary", "regression", "conv", "text", "norms", "named", "residual"]


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("fisher", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("name", FACTORED)
def test_ekfac(name: str, fisher: str, damping: Damping) -> None:
    of = fitted(name)
    curvature = EKFAC(damping=damping, fisher=fisher, rank_tolerance=1e-7)  # type: ignore[arg-type]
    assert_applies(of, of.fit(curvature), dense_inverse(curvature, of, fisher), low_rank=3e-5)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("name", FACTORED)
def test_kfac(name: str, damping: Damping, split: bool) -> None:
    of = fitted(name)
    curvature = KFAC(damping=damping, split=split, fisher="exact", rank_tolerance=1e-7)
    low_rank = 1e-8 if split else 3e-5
    assert_applies(of, of.fit(curvature), dense_inverse(curvature, of, "exact"), low_rank)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize("curvature", [KFAC, EKFAC])
def test_sequences(curvature: type[KFAC | EKFAC], fisher: str) -> None:
    of = fitted("sequence")
    config = curvature(fisher=fisher, rank_tolerance=1e-7)  # type: ignore[arg-type]
    assert_applies(of, of.fit(config), dense_inverse(config, of, fisher))


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("name", zoo.CASES)
def test_exact(name: str, damping: Damping) -> None:
    of = fitted(name, count=7)
    if name == "sequence":
        config = Exact(damping=damping, fisher="empirical")
        gradients = oracle.per_example_gradients(of.case.model, oracle.cross_entropy, *of.case.train)
        matrix = gradients.T @ gradients / len(gradients)
    else:
        config = Exact(damping=damping)
        matrix = oracle.gauss_newton(of.case.model, oracle.LOSSES[of.case.loss], *of.case.train)
    damped = shift(damping, matrix.diagonal().mean())
    inverse = torch.linalg.inv(matrix + damped * torch.eye(len(matrix), dtype=matrix.dtype))
    assert_applies(of, of.fit(config), inverse)


@pytest.mark.parametrize("name", ["linear", "mlp", "regression", "text", "twice", "conv"])
def test_exact_hessian(name: str) -> None:
    of = fitted(name, count=6)
    matrix = oracle.hessian(of.case.model, oracle.LOSSES[of.case.loss], *of.case.train)
    damping = 1.0 + float(-torch.linalg.eigvalsh(matrix)[0])
    inverse = torch.linalg.inv(matrix + (damping + DECAY) * torch.eye(len(matrix), dtype=matrix.dtype))
    assert_applies(of, of.fit(Exact(damping=damping, hessian=True)), inverse)


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_exact_with_other_fishers(fisher: str) -> None:
    of = fitted("mlp")
    whole = oracle.jacobians(of.case.model, of.case.inputs, 11)
    gradients = torch.einsum("nrc,ncp->nrp", of.roots(fisher), whole).flatten(0, 1)
    matrix = gradients.T @ gradients / 11 + (0.5 + DECAY) * torch.eye(gradients.shape[1], dtype=torch.float64)
    config = Exact(damping=0.5, fisher=fisher)  # type: ignore[arg-type]
    assert_applies(of, of.fit(config), torch.linalg.inv(matrix))


@pytest.mark.parametrize("name", zoo.CASES)
def test_identity(name: str) -> None:
    of = fitted(name)
    size = of.gradients().dense().shape[1]
    assert_applies(of, of.fit(Identity()), torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("curvature", [KFAC(), EKFAC(), KFAC(split=False), EKFAC(fisher="sampled")])
@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
def test_budget_changes_nothing(name: str, curvature: Curvature, budget: int) -> None:
    expected = fitted(name, chunk=11)
    other = fitted(name, chunk=4, budget=budget)
    gradients = expected.gradients()
    assert_norm_close(
        other.fit(curvature).precondition(gradients).dense(),
        expected.fit(curvature).precondition(gradients).dense(),
        1e-9,
    )


def library_block(found: Preconditioner, of: Fitted, name: str, damping: float) -> Tensor:
    """Return the curvature of one layer that a fitted preconditioner stands for."""
    layers = {layer.name: layer.shape for layer in of.stream.layers}
    out, inp = layers[name]
    basis = torch.eye(out * inp, dtype=torch.float64).reshape(-1, out, inp)
    zeros = {other: torch.zeros(len(basis), *shape, dtype=torch.float64) for other, shape in layers.items()}
    eye = Gradients({other: Matrix(basis if other == name else zero) for other, zero in zeros.items()})
    inverse = found.precondition(eye).layers[name].matrix().flatten(1)
    return torch.linalg.inv(inverse) - damping * torch.eye(len(inverse), dtype=torch.float64)


@pytest.mark.parametrize("name", ["linear", "mlp", "binary", "conv", "text", "residual", "twice"])
def test_ekfac_is_no_farther_from_the_fisher_than_kfac(name: str) -> None:
    of = fitted(name, count=13, decay=0.0)
    fisher = oracle.gauss_newton(of.case.model, oracle.LOSSES[of.case.loss], *of.case.train)
    eigenvalue_corrected = of.fit(EKFAC(damping=0.1, fisher="exact"))
    factored = of.fit(KFAC(damping=0.1, split=False, fisher="exact"))
    for layer, where in oracle.blocks(of.case.model).items():
        distances = [
            float((library_block(found, of, layer, 0.1) - fisher[where, where]).norm())
            for found in (eigenvalue_corrected, factored)
        ]
        assert distances[0] <= distances[1] * (1 + 1e-9) + 1e-12, layer


@pytest.mark.parametrize("config", [KFAC(split=False, damping=0.1, fisher="exact"), EKFAC(damping=0.1, fisher="exact")])
@pytest.mark.parametrize("name", ["mlp", "binary", "residual"])
def test_one_row_is_exact(name: str, config: Curvature) -> None:
    of = fitted(name, count=1, decay=0.0)
    fisher = oracle.gauss_newton(of.case.model, oracle.LOSSES[of.case.loss], *of.case.train)
    found = of.fit(config)
    for layer, where in oracle.blocks(of.case.model).items():
        torch.testing.assert_close(library_block(found, of, layer, 0.1), fisher[where, where], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("curvature", [KFAC(split=False, damping=0.1), EKFAC(damping=0.1), Exact(damping=0.1)])
def test_constant_output_curvature_is_exact(curvature: Curvature) -> None:
    """Squared error of a linear model: inputs and output Hessian are independent."""
    torch.manual_seed(0)
    case = zoo.Case(nn.Linear(4, 2).double(), torch.randn(20, 4).double(), torch.randn(20, 2).double(), "mse")
    task = Task(case.model, "mse")
    of = Fitted(case, GradientStream(task, find_layers(case.model).layers, as_examples(case.train), 8), task)
    fisher = oracle.gauss_newton(case.model, oracle.squared_error, *case.train)
    torch.testing.assert_close(library_block(of.fit(curvature), of, "", 0.1), fisher, rtol=1e-8, atol=1e-10)


LARGE = 1e9


@pytest.mark.parametrize(
    "curvature",
    [KFAC(damping=LARGE), KFAC(damping=LARGE, split=False), EKFAC(damping=LARGE), Exact(damping=LARGE),
     Exact(damping=LARGE, hessian=True)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
def test_large_damping_tends_to_dot_products(name: str, curvature: Curvature) -> None:
    of = fitted(name)
    gradients = of.gradients()
    found = of.fit(curvature)
    assert_norm_close(LARGE * found.precondition(gradients).dense(), gradients.dense(), 1e-4)
    assert_norm_close(LARGE * found.quadratic(gradients), gradients.squared_norms(), 1e-4)


def test_dead_inputs_do_no_harm() -> None:
    of = fitted("mlp", count=30)
    of.case.inputs[:, [1, 3]] = 0.0
    for curvature in (KFAC(fisher="exact"), EKFAC(fisher="exact", rank_tolerance=1e-7)):
        inverse = dense_inverse(curvature, of, "exact")
        gradients = of.gradients()
        dense = gradients.dense()
        found = of.fit(curvature)
        assert_norm_close(found.precondition(gradients).inner(gradients), dense @ inverse @ dense.T, 3e-5)
        assert_norm_close(found.quadratic(gradients), ((dense @ inverse) * dense).sum(1), 1e-8)


@pytest.mark.parametrize("curvature", [KFAC(split=False, damping=1e-6, fisher="exact", rank_tolerance=1e-7),
                                       EKFAC(damping=1e-6, fisher="exact", rank_tolerance=1e-7)])  # fmt: skip
def test_features_of_very_different_scale(curvature: KFAC | EKFAC) -> None:
    """One column in hundreds of thousands, others in units: small columns must keep their say."""
    of = fitted("linear", count=30)
    of.case.inputs[:, 0] *= 5e5
    with torch.no_grad():
        of.case.model.weight[:, 0] *= 2e-6
    gradients = of.gradients()
    dense, inverse = gradients.dense(), dense_inverse(curvature, of, "exact")
    found = of.fit(curvature)
    assert_norm_close(found.quadratic(gradients), ((dense @ inverse) * dense).sum(1), 1e-3)
    assert_norm_close(found.precondition(gradients).inner(gradients), dense @ inverse @ dense.T, 1e-3)


@pytest.mark.parametrize("curvature", [KFAC(split=False, damping=1e-3, fisher="exact"),
                                       EKFAC(damping=1e-3, fisher="exact")])  # fmt: skip
def test_single_precision_keeps_small_columns_too(curvature: KFAC | EKFAC) -> None:
    of = fitted("linear", count=30)
    of.case.inputs[:, 0] *= 5e4
    with torch.no_grad():
        of.case.model.weight[:, 0] *= 2e-5
    expected = of.fit(curvature).quadratic(of.gradients())
    task = of.task.in_dtype(torch.float32)
    single = Fitted(of.case, GradientStream(task, find_layers(task.model).layers, of.stream.examples, 4), task)
    assert_norm_close(single.fit(curvature).quadratic(single.gradients()).double(), expected, 1e-2)


@pytest.mark.parametrize("tolerance", [0.3, 0.07, 1e-3])
def test_low_rank_residual_keeps_its_promise(tolerance: float) -> None:
    of = fitted("mlp", count=200)
    exact = of.fit(EKFAC(damping=Relative(0.01), rank_tolerance=1e-7))
    coarse = of.fit(EKFAC(damping=Relative(0.01), rank_tolerance=tolerance))
    details = coarse.summary()["layers"]
    assert all(entry["rank_residual"] <= tolerance for entry in details.values())
    gradients = of.gradients()
    expected = exact.precondition(gradients).inner(gradients)
    found = coarse.precondition(gradients).inner(gradients)
    assert float((found - expected).norm() / expected.norm()) <= 3 * tolerance
