"""One suite for every kind of layer: factored gradients against one plain autograd call an example."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import oracle
import zoo_layers
from whence.data import as_examples
from whence.gradients import Gradients, GradientStream, check_capture, find_layers
from whence.tasks import Task
from zoo import Case

SETTINGS = [
    pytest.param(name, mode, bias, id=f"{name}-{mode}{'' if bias else '-no-bias'}")
    for name, row in zoo_layers.ROWS.items()
    for mode in ("plain", "shared", "padded")
    if mode != "padded" or row.axis is not None
    for bias in ([True, False] if row.biased else [True])
]


def truth(case: Case) -> dict[str, Tensor]:
    """Return the gradients of every example's loss by parameter name [N, ...]."""
    model = copy.deepcopy(case.model).eval()
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for i in range(len(case.targets)):
        outputs = oracle.call(model, {}, oracle.row(case.inputs, i))
        loss = oracle.cross_entropy(outputs, case.targets[i : i + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(rows, grads, strict=True):
            rows[name].append(gradient.to_dense())
    return {name: torch.stack(found) for name, found in rows.items()}


def by_parameter(case: Case, gradients: list[Gradients]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for layer in find_layers(case.model).layers:
        matrices = torch.cat([one.layers[layer.name].matrix() for one in gradients])
        assert matrices.shape[1:] == layer.shape
        for i, matrix in enumerate(matrices):
            for name, tensor in layer.split(matrix).items():
                found.setdefault(name, torch.zeros(len(matrices), *tensor.shape, dtype=tensor.dtype))[i] = tensor
    return found


@pytest.mark.parametrize("name, mode, bias", SETTINGS)
def test_equal_autograd(name: str, mode: str, bias: bool) -> None:
    case = zoo_layers.make(name, mode, bias)
    expected = truth(case)
    before = copy.deepcopy(case.model.state_dict())
    task, coverage = Task(case.model), find_layers(case.model)
    assert coverage.share == 1.0 and not coverage.missed
    for chunk in (1, 7, 9):
        stream = GradientStream(task, coverage.layers, as_examples(case.train), chunk)
        parts = [gradients for _, gradients in stream.training_gradients()]
        found = by_parameter(case, parts)
        assert found.keys() == expected.keys()
        for key, true in expected.items():
            error, size = float((found[key] - true).norm()), float(true.norm())
            assert error <= 1e-9 * size + 1e-13, f"{key} in chunks of {chunk}: {error / max(size, 1e-300):.2g}"
    whole = parts[0]
    dense = whole.dense()
    torch.testing.assert_close(whole.inner(whole), dense @ dense.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole.squared_norms(), dense.square().sum(1), rtol=1e-9, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in case.model.modules())
    assert all(p.grad is None for p in case.model.parameters())


@pytest.mark.parametrize("name", zoo_layers.ROWS)
def test_layout_round_trip_and_capture_check(name: str) -> None:
    case = zoo_layers.make(name, "plain", True)
    params = dict(case.model.named_parameters())
    coverage = find_layers(case.model)
    seen: list[str] = []
    for layer in coverage.layers:
        matrix = layer.weights()
        assert matrix.shape == layer.shape
        split = layer.split(matrix)
        seen.extend(split)
        for key, value in split.items():
            torch.testing.assert_close(value, params[key].detach(), rtol=0, atol=0)
        torch.testing.assert_close(layer.join(split), matrix, rtol=0, atol=0)
    assert sorted(seen) == sorted(params)
    check_capture(Task(case.model), coverage, as_examples(case.train))
