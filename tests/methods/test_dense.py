"""The root of the inverse Gauss–Newton matrix, against the same matrix by plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import oracle
import whence as wh
import zoo
from whence.methods.dense import inverse_root

DECAY, DAMPING = 0.03, 0.02
LOSSES = {"cross_entropy": oracle.cross_entropy, "mse": oracle.squared_error, "binary_cross_entropy": oracle.binary}


def curvature(case: zoo.Case) -> Tensor:
    """Return the Gauss–Newton matrix in the order of ``model.parameters()``, one backward pass an output."""
    model = case.model.eval()
    parameters = list(model.parameters())
    count = len(case.targets)
    total = torch.zeros(1, dtype=torch.float64)
    weights = oracle.output_hessians(model, LOSSES[case.loss], case.inputs, case.targets)
    for index in range(count):
        outputs = oracle.call(model, dict(model.named_parameters()), oracle.row(case.inputs, index)).reshape(-1)
        rows = [torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True) for value in outputs]
        jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
        total = total + jacobian.T @ weights[index] @ jacobian
    return total / count


@pytest.mark.parametrize("name", ["linear", "mlp", "conv", "twice", "tied", "attention", "binary"])
def test_it_is_the_root_in_the_order_of_the_parameters(name: str) -> None:
    case = zoo.make(name, count=9)
    root = inverse_root(wh.Task(case.model, case.loss, weight_decay=DECAY), case.train, damping=DAMPING)
    assert root is not None and root.dtype == torch.float64
    assert torch.equal(root, root.tril())
    wanted = torch.linalg.inv(curvature(case) + (DECAY + DAMPING) * torch.eye(len(root), dtype=torch.float64))
    assert float((root @ root.T - wanted).norm() / wanted.norm()) < 1e-9


def test_batches_and_the_order_of_rows_do_not_matter() -> None:
    case = zoo.make("conv", count=9)
    task = wh.Task(case.model, weight_decay=DECAY)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    found = inverse_root(task, case.train)
    other = inverse_root(task, (case.inputs[order], case.targets[order]))
    assert found is not None and other is not None
    assert float((found - other).norm() / found.norm()) < 1e-9


def test_there_is_none_where_it_cannot_be_had() -> None:
    case = zoo.make("linear", count=9)
    assert inverse_root(wh.Task(case.model), case.train) is None, "singular: classes can all be shifted alike"
    assert inverse_root(wh.Task(case.model, "hinge", weight_decay=DECAY), case.train) is None, "no curvature"
    wide = nn.Linear(5, 700).double()
    assert inverse_root(wh.Task(wide, weight_decay=DECAY), case.train) is None, "4,200 parameters"
    frozen = nn.Linear(5, 3).double().requires_grad_(False)
    assert inverse_root(wh.Task(frozen, weight_decay=DECAY), case.train) is None, "nothing is trained"


def test_frozen_parameters_are_left_out() -> None:
    case = zoo.make("linear", count=9)
    model = nn.Sequential(nn.Linear(5, 4).double().requires_grad_(False), nn.Tanh(), nn.Linear(4, 3).double())
    root = inverse_root(wh.Task(model, weight_decay=DECAY), case.train)
    head = inverse_root(wh.Task(model[2], weight_decay=DECAY), (model[:2](case.inputs), case.targets))
    assert root is not None and head is not None
    assert float((root - head).norm() / head.norm()) < 1e-9
