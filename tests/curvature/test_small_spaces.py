"""Diagonal, dense blocks, low rank, DataInf and projections against dense matrices; errors fall with the rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_against_dense import DECAY, Fitted, assert_applies, assert_norm_close, fitted, shift
from torch import Tensor, nn

import oracle
import zoo
from whence.curvature import (
    BlockExact,
    Curvature,
    DataInf,
    Diagonal,
    Exact,
    Lanczos,
    Nystrom,
    Projected,
    ProjectedPreconditioner,
    Relative,
)
from whence.data import as_examples
from whence.errors import ConfigError, NumericalError
from whence.gradients import GradientStream, find_layers
from whence.gradients.projection import random_projection
from whence.tasks import Task

KEPT = 10**9
DAMPINGS = [Relative(0.1), 0.02]
NAMES = ["linear", "mlp", "binary", "regression", "conv", "text", "norms", "image-norms", "twice", "residual"]


def dense(of: Fitted) -> Tensor:
    return oracle.gauss_newton(of.case.model, oracle.LOSSES[of.case.loss], *of.case.train)


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("name", NAMES)
def test_diagonal(name: str, damping: Any) -> None:
    of = fitted(name)
    values = dense(of).diagonal()
    inverse = torch.zeros_like(values)
    for where in oracle.blocks(of.case.model).values():
        inverse[where] = 1 / (values[where] + shift(damping, values[where].mean()))
    assert_applies(of, of.fit(Diagonal(damping=damping, fisher="exact")), torch.diag(inverse))


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_diagonal_with_other_fishers(fisher: str) -> None:
    of = fitted("mlp")
    whole = oracle.jacobians(of.case.model, of.case.inputs, 11)
    values = torch.einsum("nrc,ncp->nrp", of.roots(fisher), whole).square().sum((0, 1)) / 11
    config = Diagonal(damping=0.5, fisher=fisher)  # type: ignore[arg-type]
    assert_applies(of, of.fit(config), torch.diag(1 / (values + 0.5 + DECAY)))


def test_diagonal_is_exact_for_inputs_that_never_meet() -> None:
    """One-hot inputs and squared error: the Gauss–Newton matrix is diagonal."""
    inputs, targets = torch.eye(4).double()[[0, 1, 2, 3, 1]], torch.randn(5, 2).double()
    case = zoo.Case(nn.Linear(4, 2, bias=False).double(), inputs, targets, "mse")
    task = Task(case.model, "mse", weight_decay=DECAY)
    of = Fitted(case, GradientStream(task, find_layers(case.model).layers, as_examples(case.train), 2), task)
    inverse = torch.linalg.inv(dense(of) + (0.1 + DECAY) * eye(8))
    assert_applies(of, of.fit(Diagonal(damping=0.1, fisher="exact")), inverse)


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("name", NAMES)
def test_dense_blocks(name: str, damping: Any) -> None:
    of = fitted(name)
    matrix = dense(of)
    inverse = torch.zeros_like(matrix)
    for where in oracle.blocks(of.case.model).values():
        block = matrix[where, where]
        inverse[where, where] = torch.linalg.inv(block + shift(damping, block.diagonal().mean()) * eye(len(block)))
    found = of.fit(BlockExact(damping=damping))
    assert_applies(of, found, inverse)
    assert found.summary()["residual"] < 1e-8 and found.summary()["converged"]


def test_dense_blocks_of_one_layer_are_the_exact_curvature() -> None:
    of = fitted("linear")
    one, other = (of.fit(c).precondition(of.gradients()).dense() for c in (BlockExact(damping=0.1), Exact(damping=0.1)))
    assert_norm_close(one, other, 1e-10)


@pytest.mark.parametrize("name", ["linear", "mlp", "text"])
def test_dense_blocks_of_the_hessian(name: str) -> None:
    of = fitted(name, count=6)
    matrix = oracle.hessian(of.case.model, oracle.LOSSES[of.case.loss], *of.case.train)
    damping = 0.5 + max(0.0, float(-torch.linalg.eigvalsh(matrix)[0]))
    inverse = torch.zeros_like(matrix)
    for where in oracle.blocks(of.case.model).values():
        block = matrix[where, where]
        inverse[where, where] = torch.linalg.inv(block + (damping + DECAY) * eye(len(block)))
    assert_applies(of, of.fit(BlockExact(damping=damping, hessian=True)), inverse)


def test_an_indefinite_block_names_the_layer() -> None:
    with pytest.raises(NumericalError, match=r"layer '0'.*smallest eigenvalue of -.*hessian=False"):
        fitted("mlp", count=6, decay=0.0).fit(BlockExact(damping=0.0, hessian=True))


def test_large_blocks_are_refused_before_anything_is_made() -> None:
    case = zoo.Case(nn.Linear(6_000, 3), torch.zeros(2, 6_000), torch.tensor([0, 1]))
    stream = GradientStream(Task(case.model), find_layers(case.model).layers, as_examples(case.train), 4)
    with pytest.raises(ConfigError, match=r"at most 12000 parameters a layer, got 18003 in ''.*EKFAC"):
        BlockExact().fit(stream, seed=0)


LOW_RANK = [Lanczos(rank=200, tolerance=1e-10), Nystrom(rank=200)]


@pytest.mark.parametrize("config", LOW_RANK, ids=["lanczos", "nystrom"])
@pytest.mark.parametrize("name", NAMES)
def test_low_rank_is_exact_at_full_rank(name: str, config: Lanczos | Nystrom) -> None:
    of = fitted(name, budget=KEPT)
    matrix = dense(of)
    damped = shift(config.damping, matrix.diagonal().mean())
    found = of.fit(config)
    assert_applies(of, found, torch.linalg.inv(matrix + damped * eye(len(matrix))))
    told = found.summary()
    assert told["converged"] and told["residual"] < 1e-9 and abs(told["trace_left_out"]) < 1e-9
    assert told["effective_damping"] == pytest.approx(damped)


@pytest.mark.parametrize("rank", [1, 4, 9])
@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
def test_lanczos_finds_the_leading_eigenpairs(name: str, rank: int) -> None:
    of = fitted(name, budget=KEPT)
    matrix = dense(of)
    values, vectors = torch.linalg.eigh(matrix)
    kept = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
    found = of.fit(Lanczos(rank=rank, damping=0.05, tolerance=1e-9))
    assert_applies(of, found, torch.linalg.inv(kept + (0.05 + DECAY) * eye(len(matrix))), low_rank=1e-7)
    assert found.summary()["trace_left_out"] == pytest.approx(1 - float(values[-rank:].sum() / values.sum()), abs=1e-8)


def test_nystrom_is_its_formula() -> None:
    """Ĥ = HΩ (ΩᵀHΩ)⁻¹ ΩᵀH for whichever Ω; its range is recovered from the fit, which nothing was cut from."""
    of = fitted("conv", budget=KEPT)
    matrix = dense(of)
    found = of.fit(Nystrom(rank=5, oversample=0, damping=0.05))
    omega = torch.linalg.solve(matrix + 1e-6 * eye(len(matrix)), found.vectors.T)  # type: ignore[attr-defined]
    approximate = matrix @ omega @ torch.linalg.pinv(omega.T @ matrix @ omega) @ omega.T @ matrix
    assert float(torch.linalg.eigvalsh(matrix - approximate)[0]) > -1e-6
    inverse = torch.linalg.inv(approximate + (0.05 + DECAY) * eye(len(matrix)))
    gradients = of.gradients()
    assert_norm_close(found.precondition(gradients).dense(), gradients.dense() @ inverse, 1e-3)


@pytest.mark.parametrize("kind", [Lanczos, Nystrom])
@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
def test_low_rank_errors_fall_with_the_rank(name: str, kind: Any) -> None:
    """What is left out of the curvature only ever makes the inverse larger."""
    of = fitted(name, budget=KEPT)
    matrix, gradients = dense(of), of.gradients()
    flat = gradients.dense()
    exact = ((flat @ torch.linalg.inv(matrix + (0.05 + DECAY) * eye(len(matrix)))) * flat).sum(1)
    errors = []
    for rank in (1, 3, 6, 12, 22):
        excess = of.fit(kind(rank=rank, damping=0.05)).quadratic(gradients) - exact
        assert bool((excess > -1e-9 * exact).all())
        errors.append(float(excess.sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6 * errors[0] + 1e-9


def test_lanczos_says_when_it_has_not_converged() -> None:
    of = fitted("conv", count=30, budget=KEPT)
    with pytest.raises(NumericalError, match=r"must converge to 1e-08.*after 6 steps.*require_convergence=False"):
        of.fit(Lanczos(rank=5, max_steps=6, tolerance=1e-8))
    told = of.fit(Lanczos(rank=5, max_steps=6, tolerance=1e-8, require_convergence=False)).summary()
    assert told["converged"] is False and told["residual"] > 1e-8 and told["steps"] == 6


@pytest.mark.parametrize("kind", [Lanczos, Nystrom])
def test_low_rank_needs_damping_for_the_rest(kind: Any) -> None:
    with pytest.raises(NumericalError, match="outside the captured directions"):
        fitted("mlp", decay=0.0).fit(kind(rank=3, damping=0.0))


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("budget", [0, KEPT])
@pytest.mark.parametrize("name", NAMES)
def test_datainf(name: str, budget: int, damping: Any) -> None:
    """The mean of N dense inverses, layer by layer."""
    of = fitted(name, budget=budget)
    flat = oracle.per_example_gradients(of.case.model, oracle.LOSSES[of.case.loss], *of.case.train)
    inverse = torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float64)
    for where in oracle.blocks(of.case.model).values():
        own = flat[:, where]
        damped = shift(damping, own.square().mean())
        mean = sum(torch.linalg.inv(torch.outer(g, g) + damped * eye(len(g))) for g in own) / len(own)
        inverse[where, where] = mean
    assert_applies(of, of.fit(DataInf(damping=damping)), inverse)


def test_datainf_is_exact_for_one_row_and_never_below_the_inverse() -> None:
    of = fitted("linear", count=1)
    flat = of.gradients().dense()
    inverse = torch.linalg.inv(flat.T @ flat + (0.1 + DECAY) * eye(flat.shape[1]))
    assert_applies(of, of.fit(DataInf(damping=0.1)), inverse)
    many = fitted("linear", count=11)
    above = many.fit(DataInf(damping=0.1)).quadratic(many.gradients())
    assert bool((above >= many.fit(Exact(damping=0.1, fisher="empirical")).quadratic(many.gradients())).all())


def test_datainf_needs_damping() -> None:
    with pytest.raises(NumericalError, match=r"layer '0' must be positive.*Relative"):
        fitted("mlp", decay=0.0).fit(DataInf(damping=0.0))


def projector(of: Fitted, found: ProjectedPreconditioner) -> Tensor:
    """Return P [P, D] over all layers, from the sides that were fitted."""
    whole = [torch.einsum("ok,il->oikl", side.outputs, side.inputs) for side in found.sides.values()]
    return torch.block_diag(*(p.flatten(2).flatten(0, 1) for p in whole))


@pytest.mark.parametrize("kind", ["eigen", "random"])
@pytest.mark.parametrize("rank", [2, (1, 3), 100])
@pytest.mark.parametrize("name", NAMES)
def test_projected(name: str, rank: Any, kind: Any) -> None:
    of = fitted(name)
    matrix = dense(of)
    found = of.fit(Projected(rank=rank, kind=kind, fisher="exact"))
    assert isinstance(found, ProjectedPreconditioner)
    p = projector(of, found)
    inside = p.T @ matrix @ p
    damped = shift(Relative(0.1), inside.diagonal().mean())
    inverse = p @ torch.linalg.inv(inside + damped * eye(len(inside))) @ p.T
    assert_applies(of, found, inverse)
    gradients = of.gradients()
    features = found.features(gradients)
    assert features.shape == (11, found.summary()["features"])
    assert_norm_close(features @ features.T, gradients.dense() @ inverse @ gradients.dense().T, 1e-9)
    if rank == 100:
        whole = torch.linalg.inv(matrix + shift(Relative(0.1), matrix.diagonal().mean()) * eye(len(matrix)))
        assert_applies(of, found, whole)


def test_eigen_sides_are_the_leading_eigenvectors() -> None:
    of = fitted("mlp", count=40)
    found = of.fit(Projected(rank=2, fisher="exact"))
    assert isinstance(found, ProjectedPreconditioner)
    inputs, deltas = oracle.captured(of.case.model, of.case.inputs, 40)
    for name in inputs:
        a, g = oracle.kronecker(inputs[name], oracle.fisher_deltas(deltas[name], of.roots("exact")))
        for side, covariance in ((found.sides[name].inputs, a), (found.sides[name].outputs, g)):
            leading = torch.linalg.eigh(covariance)[1][:, -2:]
            assert_norm_close(side @ side.T, leading @ leading.T, 1e-9)


def test_projected_keeps_more_of_the_scores_with_more_rank() -> None:
    of = fitted("mlp", count=40)
    gradients = of.gradients()
    exact = of.fit(Exact(damping=0.05)).precondition(gradients).inner(gradients)
    errors = []
    for rank in (1, 2, 4, 9):
        found = of.fit(Projected(rank=rank, damping=0.05, fisher="exact")).precondition(gradients).inner(gradients)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-9


def test_random_sides_depend_on_names_and_seed_alone() -> None:
    of, more = fitted("mlp", count=11), fitted("mlp", count=23)
    one, other = (x.fit(Projected(rank=2, kind="random")) for x in (of, more))
    assert isinstance(one, ProjectedPreconditioner) and isinstance(other, ProjectedPreconditioner)
    for name, side in one.sides.items():
        assert torch.equal(side.inputs, other.sides[name].inputs)
        expected = random_projection(len(side.inputs), 2, name=f"{name}/inputs", seed=3)
        torch.testing.assert_close(side.inputs, expected)


def test_wide_projections_are_refused() -> None:
    case = zoo.Case(nn.Linear(200, 100), torch.zeros(2, 200), torch.tensor([0, 1]))
    stream = GradientStream(Task(case.model), find_layers(case.model).layers, as_examples(case.train), 4)
    with pytest.raises(ConfigError, match=r"at most 12000 features, got 20100.*Lower rank"):
        Projected(rank=500).fit(stream, seed=0)


LARGE = 1e9


@pytest.mark.parametrize(
    "curvature",
    [Diagonal(damping=LARGE), BlockExact(damping=LARGE), BlockExact(damping=LARGE, hessian=True),
     DataInf(damping=LARGE), Lanczos(rank=3, damping=LARGE), Nystrom(rank=3, damping=LARGE),
     Projected(rank=100, damping=LARGE)],
    ids=lambda c: type(c).__name__,
)  # fmt: skip
@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
def test_large_damping_tends_to_dot_products(name: str, curvature: Curvature) -> None:
    of = fitted(name, budget=KEPT)
    gradients = of.gradients()
    found = of.fit(curvature)
    assert_norm_close(LARGE * found.precondition(gradients).dense(), gradients.dense(), 1e-4)
    assert_norm_close(LARGE * found.quadratic(gradients), gradients.squared_norms(), 1e-4)


@pytest.mark.parametrize(
    "config, settings",
    [(Lanczos, {"rank": 0}), (Lanczos, {"tolerance": 0.0}), (Lanczos, {"max_steps": 0}), (Nystrom, {"rank": 2.5}),
     (Nystrom, {"oversample": -1}), (Nystrom, {"damping": -1.0}), (Projected, {"rank": 0}),
     (Projected, {"rank": (1, 0)}), (Projected, {"kind": "svd"}), (DataInf, {"damping": None}),
     (Diagonal, {"fisher": "true"}), (BlockExact, {"damping": True})],
)  # fmt: skip
def test_settings_are_checked(config: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} must"):
        config(**settings)
