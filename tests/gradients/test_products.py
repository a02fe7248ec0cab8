"""Products of the curvature with vectors against dense matrices, by every way of computing them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import oracle
import zoo
from whence.data import as_examples
from whence.gradients import GradientStream, find_layers
from whence.gradients.products import Products
from whence.gradients.projection import random_normal, random_projection
from whence.tasks import Task

CASES = ["linear", "mlp", "binary", "regression", "conv", "text", "norms", "image-norms", "twice", "named", "residual"]


def stream_of(case: zoo.Case, *, chunk: int = 4, budget: int = 0) -> GradientStream:
    task = Task(case.model, case.loss)
    return GradientStream(task, find_layers(case.model).layers, as_examples(case.train), chunk, budget)


def probes(size: int, count: int = 3) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm() / expected.norm()) < 1e-11


@pytest.mark.parametrize("name", CASES)
def test_gauss_newton_by_roots_kept_or_not_and_by_autograd(name: str) -> None:
    case = zoo.make(name, count=6)
    matrix = oracle.gauss_newton(case.model, oracle.LOSSES[case.loss], *case.train)
    vectors = probes(len(matrix))
    for budget, block in ((10**9, 1), (0, 100), (0, 1)):
        products = Products(stream_of(case, budget=budget))
        apply = products.operator(block)
        for _ in range(2):
            assert_close(apply(vectors), vectors @ matrix)
        assert bool(products._thick) == (budget > 0)
        assert_close(products._by_autograd(0, vectors) + products._by_autograd(1, vectors), 6 * vectors @ matrix)
        assert products.mean_eigenvalue() == pytest.approx(float(matrix.diagonal().mean()), rel=1e-10)


@pytest.mark.parametrize("name", ["linear", "mlp", "regression", "conv", "text", "twice", "residual"])
def test_hessian(name: str) -> None:
    case = zoo.make(name, count=6)
    matrix = oracle.hessian(case.model, oracle.LOSSES[case.loss], *case.train)
    vectors = probes(len(matrix))
    assert_close(Products(stream_of(case), "hessian").operator(3)(vectors), vectors @ matrix)


def test_sequences_have_the_exact_expectation_at_every_position() -> None:
    case = zoo.make("sequence", count=6)
    jacobian = oracle.jacobians(case.model, case.inputs, 6).unflatten(1, (5, 4))  # [N, T, C, P]
    p = torch.stack([oracle.call(case.model, dict(case.model.named_parameters()), oracle.row(case.inputs, i))[0]
                     for i in range(6)]).detach().softmax(-1)  # [N, T, C]  # fmt: skip
    weights = (torch.diag_embed(p) - p[..., :, None] * p[..., None, :]) * (case.targets != -100)[..., None, None]
    matrix = torch.einsum("ntcp,ntcd,ntdq->pq", jacobian, weights, jacobian) / 6
    vectors = probes(len(matrix))
    assert_close(Products(stream_of(case, budget=10**9)).operator(3)(vectors), vectors @ matrix)


@pytest.mark.parametrize("name", ["mlp", "conv", "text", "norms"])
def test_empirical(name: str) -> None:
    case = zoo.make(name, count=6)
    gradients = oracle.per_example_gradients(case.model, oracle.LOSSES[case.loss], *case.train)
    vectors = probes(gradients.shape[1])
    for budget in (0, 10**9):
        products = Products(stream_of(case, budget=budget), "empirical")
        assert_close(products.operator(1)(vectors), vectors @ gradients.T @ gradients / 6)


def test_a_callable_loss_has_the_empirical_fisher() -> None:
    case = zoo.make("mlp", count=6)
    task = Task(case.model, lambda m, b: nn.functional.cross_entropy(m(b.inputs), b.targets, reduction="none"))
    stream = GradientStream(task, find_layers(case.model).layers, as_examples(case.train), 4)
    gradients = oracle.per_example_gradients(case.model, oracle.cross_entropy, *case.train)
    vectors = probes(gradients.shape[1])
    assert_close(Products(stream).operator(1)(vectors), vectors @ gradients.T @ gradients / 6)


@pytest.mark.parametrize("chunk", [1, 4, 6])
def test_chunks_average_to_the_whole(chunk: int) -> None:
    products = Products(stream_of(zoo.make("conv", count=6), chunk=chunk, budget=10**9))
    vectors = probes(products.size)
    parts = [products.partial(number, 3)(vectors) for number in range(products.chunks)]
    assert_close(torch.stack(parts).mean(0), products.operator(3)(vectors))


def test_many_vectors_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    products = Products(stream_of(zoo.make("text", count=6), budget=10**9))
    vectors = probes(products.size, 7)
    expected = products.operator(7)(vectors)
    monkeypatch.setattr("whence.gradients.roots._IMAGES", 1)
    assert products._roots(0).block == 1
    assert_close(products.operator(7)(vectors), expected)


class Attention(nn.Module):
    """Attention by the fused kernel, whose gradient cannot be differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x)[:, None].chunk(3, -1)
        mixed: Tensor = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed[:, 0].mean(1))


def test_fused_attention_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    case = zoo.Case(Attention().double(), torch.randn(5, 3, 4).double(), torch.tensor([0, 1, 2, 0, 1]))
    by_roots, vectors = Products(stream_of(case, budget=10**9)), probes(60 + 15)
    assert_close(Products(stream_of(case))._by_autograd(0, vectors), by_roots.partial(0, 3)(vectors) * 5 / 2)


def test_random_numbers_depend_on_their_indices_alone() -> None:
    wide = random_normal(50, 40, name="a", seed=1)
    assert torch.equal(wide[:20, :7], random_normal(20, 7, name="a", seed=1))
    assert not torch.equal(wide, random_normal(50, 40, name="b", seed=1))
    assert not torch.equal(wide, random_normal(50, 40, name="a", seed=2))
    many = random_normal(400, 500, name="a", seed=0)
    assert abs(float(many.mean())) < 0.01 and abs(float(many.std()) - 1) < 0.01
    assert float((many.T @ many / 400 - torch.eye(500)).abs().max()) < 0.35


def test_random_projections_keep_inner_products_in_the_mean() -> None:
    x, y = probes(30, 2)
    found = [
        float((x @ p) @ (y @ p)) for p in (random_projection(30, 6, name="layer", seed=seed) for seed in range(400))
    ]
    spread = torch.tensor(found).std() / len(found) ** 0.5
    assert abs(sum(found) / len(found) - float(x @ y)) < 4 * spread
    p = random_projection(30, 6, name="layer", seed=0)
    torch.testing.assert_close(p.T @ p, 5 * torch.eye(6, dtype=torch.float64))
