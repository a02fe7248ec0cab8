"""Losses against autograd: gradient, Hessian, its roots, and the covariance of sampled gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from whence.data import uniform
from whence.errors import ConfigError, DataError
from whence.tasks import (
    BinaryCrossEntropy,
    CrossEntropy,
    Hinge,
    Loss,
    MeanSquaredError,
    SmoothHinge,
    SmoothLoss,
    loss_by_name,
)

BATCH = 5


def floats(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, count: int = 4) -> Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(1))


CASES: dict[str, tuple[SmoothLoss, Tensor, Tensor]] = {
    "cross-entropy": (CrossEntropy(), floats(BATCH, 4), classes(BATCH)),
    "cross-entropy, ignored": (CrossEntropy(), floats(BATCH, 4), torch.tensor([0, -100, 2, 3, -100])),
    "binary [B]": (BinaryCrossEntropy(), floats(BATCH), classes(BATCH, count=2)),
    "binary [B, 1]": (BinaryCrossEntropy(), floats(BATCH, 1), classes(BATCH, count=2).double()),
    "binary [B, C], soft": (BinaryCrossEntropy(), floats(BATCH, 3), floats(BATCH, 3, seed=2).sigmoid()),
    "mse [B]": (MeanSquaredError(), floats(BATCH), floats(BATCH, seed=2)),
    "mse [B, C]": (MeanSquaredError(), floats(BATCH, 3), floats(BATCH, 3, seed=2)),
    "smooth hinge [B]": (SmoothHinge(temperature=0.7), floats(BATCH), classes(BATCH, count=2)),
    "smooth hinge [B, 1], ±1": (SmoothHinge(temperature=0.7), floats(BATCH, 1), 2 * classes(BATCH, count=2) - 1),
    "smooth hinge [B, C]": (SmoothHinge(temperature=0.7), floats(BATCH, 4), classes(BATCH)),
}
each = pytest.mark.parametrize("loss, outputs, targets", CASES.values(), ids=CASES)


def hessians(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the Hessian of every example's loss in its outputs [B, C, C], by autograd."""
    found = []
    for i in range(len(outputs)):
        one = outputs[i : i + 1]
        dense = torch.autograd.functional.hessian(lambda f, i=i: loss(f, targets[i : i + 1]).sum(), one)
        found.append(dense.reshape(one.numel(), one.numel()))
    return torch.stack(found)


@each
def test_hessian_and_roots(loss: SmoothLoss, outputs: Tensor, targets: Tensor) -> None:
    expected = hessians(loss, outputs, targets)
    torch.testing.assert_close(loss.hessian(outputs, targets), expected, rtol=1e-9, atol=1e-12)
    roots = loss.roots(outputs, targets)
    assert roots.shape[1:] == outputs.shape
    flat = roots.reshape(len(roots), BATCH, -1)
    torch.testing.assert_close(torch.einsum("rbc,rbd->bcd", flat, flat), expected, rtol=1e-9, atol=1e-12)


@each
def test_sampled_gradients_have_the_hessian_as_covariance(loss: SmoothLoss, outputs: Tensor, targets: Tensor) -> None:
    many = 20_000
    repeated = outputs.repeat_interleave(many, 0)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(len(repeated), loss.draws(outputs), generator=generator, dtype=torch.float64)
    sampled = loss.sample(repeated, targets.repeat_interleave(many, 0), draws).reshape(BATCH, many, -1)
    covariance = torch.einsum("bnc,bnd->bcd", sampled, sampled) / many
    torch.testing.assert_close(covariance, hessians(loss, outputs, targets), rtol=0.1, atol=0.025)
    if not isinstance(loss, SmoothHinge):
        assert float(sampled.mean(1).abs().max()) < 0.03  # labels drawn from the model: the expected score is 0


@each
def test_one_value_an_example_and_a_unit(loss: SmoothLoss, outputs: Tensor, targets: Tensor) -> None:
    values = loss(outputs, targets)
    assert values.shape == (BATCH,)
    each_alone = torch.cat([loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(BATCH)])
    torch.testing.assert_close(values, each_alone)
    assert isinstance(loss, SmoothLoss)
    assert loss.unit in ("nats", "squared target", "margin")


def test_values() -> None:
    outputs, targets = floats(BATCH, 4), classes(BATCH)
    torch.testing.assert_close(CrossEntropy()(outputs, targets), F.cross_entropy(outputs, targets, reduction="none"))
    one, labels = floats(BATCH), classes(BATCH, count=2)
    signs = 2.0 * labels - 1
    expected = -(labels * one.sigmoid().log() + (1 - labels) * (1 - one.sigmoid()).log())
    torch.testing.assert_close(BinaryCrossEntropy()(one, labels), expected)
    torch.testing.assert_close(MeanSquaredError()(outputs, outputs + 2), torch.full((BATCH,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(Hinge()(one, labels), (1 - signs * one).clamp(min=0))
    torch.testing.assert_close(Hinge()(one, signs), (1 - signs * one).clamp(min=0))
    multi = F.multi_margin_loss(outputs, targets, reduction="none")
    assert bool((Hinge()(outputs, targets) >= multi - 1e-12).all())  # the maximum, not the mean, of the violations
    for f, y in ((one, labels), (outputs, targets)):
        torch.testing.assert_close(SmoothHinge(temperature=1e-6)(f, y), Hinge()(f, y), atol=1e-5, rtol=0)
    assert not isinstance(Hinge(), SmoothLoss)


def test_extreme_outputs_stay_finite() -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 1e4]])
    targets = torch.tensor([1, 2])
    for loss in (CrossEntropy(), SmoothHinge(), SmoothHinge(temperature=1.0)):
        assert torch.isfinite(loss(outputs, targets)).all()
        assert torch.isfinite(loss.roots(outputs, targets)).all()
    assert torch.isfinite(BinaryCrossEntropy()(outputs[:, 0], targets - 1)).all()


def test_sequences_sum_over_positions_and_skip_ignored_ones() -> None:
    outputs, targets = floats(3, 5, 4), classes(3, 5)
    targets[1, 2:] = -100
    loss = CrossEntropy()
    every = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").reshape(3, 5)
    torch.testing.assert_close(loss(outputs, targets), every.sum(1))
    uniforms = torch.rand(3, loss.draws(outputs), dtype=torch.float64)
    sampled = loss.sample(outputs, targets, uniforms)
    assert sampled.shape == outputs.shape
    assert not sampled[1, 2:].any()
    assert sampled[0].any(-1).all()
    assert CrossEntropy(ignore_index=0)(outputs, classes(3, 5) * 0).tolist() == [0.0, 0.0, 0.0]


def test_sampled_labels_are_a_function_of_id_and_seed() -> None:
    outputs = floats(1, 4).expand(1000, 4)
    keys = torch.arange(1000).numpy().astype("uint64")

    def draw(order: Tensor, seed: int) -> Tensor:
        drawn = torch.from_numpy(uniform(keys[order.numpy()], seed))[:, None]
        return CrossEntropy().sample(outputs, classes(1000), drawn)

    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(torch.arange(1000), 0)[order], draw(order, 0))
    assert not torch.equal(draw(torch.arange(1000), 0), draw(torch.arange(1000), 1))


@pytest.mark.parametrize(
    "loss, outputs, targets, error, match",
    [
        (CrossEntropy(), floats(3, 4), floats(3), DataError, "class indices"),
        (CrossEntropy(), floats(3, 4), torch.tensor([0, 1, 4]), DataError, r"0\.\.3.*got 4"),
        (CrossEntropy(), floats(3, 4), torch.tensor([0, 1, -1]), DataError, r"0\.\.3.*got -1"),
        (CrossEntropy(), floats(3, 4), torch.tensor([0, 1]), DataError, r"\[B, C\]"),
        (CrossEntropy(), floats(3), torch.tensor([0, 1, 1]), DataError, r"\[B, C\]"),
        (BinaryCrossEntropy(), floats(3, 2), torch.tensor([0, 1, 1]), DataError, "as many numbers"),
        (BinaryCrossEntropy(), floats(3), torch.tensor([0, 1, 2]), DataError, "between 0 and 1"),
        (BinaryCrossEntropy(), floats(3), torch.tensor([-1, 1, 1]), DataError, "between 0 and 1"),
        (MeanSquaredError(), floats(3, 2), floats(3), DataError, "as many numbers"),
        (Hinge(), floats(3, 2), torch.tensor([0, 1, 2]), DataError, r"0\.\.1.*got 2"),
        (SmoothHinge(), floats(3, 2), torch.tensor([0, 1, -1]), DataError, r"0\.\.1.*got -1"),
        (SmoothHinge(), floats(3, 2), torch.tensor([0, 1]), DataError, "targets"),
    ],
)
def test_targets_that_do_not_fit(loss: Any, outputs: Tensor, targets: Tensor, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        loss(outputs, targets)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: loss_by_name("l2"), r"one of.*cross_entropy.*got 'l2'"),
        (lambda: SmoothHinge(temperature=0.0), "temperature"),
        (lambda: SmoothHinge(temperature=float("nan")), "temperature"),
        (lambda: CrossEntropy().roots(floats(2, 3, 4), classes(2, 3)), r"\[B, C\]"),
    ],
)
def test_settings_are_checked(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mse", "hinge", "smooth_hinge"])
def test_named_losses(name: str) -> None:
    assert isinstance(loss_by_name(name), Loss)
