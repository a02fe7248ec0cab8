"""The last layer's response to many changes at once, against objectives written out and solved by other means."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import whence as wh
from whence.data import as_examples
from whence.errors import ConfigError

N, CLASSES = 40, 3


def network(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES, bias=bias)).double()


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 5, generator=generator).double(), torch.arange(N) % CLASSES


def mean_eigenvalue(features: Tensor, outputs: Tensor) -> float:
    """Trace of the Gauss–Newton matrix of W x by definition, over its size."""
    total = torch.zeros((), dtype=torch.float64)
    for x, f in zip(features, outputs, strict=True):
        p = f.softmax(0)
        total += torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(x, x)).trace()
    return float(total / len(features) / (CLASSES * features.shape[1]))


def objective(weight: Tensor, start: Tensor, features: Tensor, labels: Tensor, edits: tuple, decay: float) -> Tensor:
    """The objective with KL divergences, in words of torch alone."""
    removed, relabelled, new = edits
    f, f0 = features @ weight.T, features @ start.T
    kl = (f0.softmax(1) * (f0.log_softmax(1) - f.log_softmax(1))).sum()
    losses = nn.functional.cross_entropy(f, labels, reduction="none")
    changed = nn.functional.cross_entropy(f[relabelled], new, reduction="none") - losses[relabelled]
    return (kl - losses[removed].sum() + changed.sum()) / len(features) + decay / 2 * (weight - start).square().sum()


@pytest.mark.parametrize("bias", [True, False])
def test_the_response_is_where_the_written_objective_is_flat(bias: bool) -> None:
    x, y = rows()
    model = network(bias)
    before = copy.deepcopy(model.state_dict())
    task = wh.Task(model, "cross_entropy")
    removed, relabelled = [3, 20, 21], [0, 7, 30, 39]
    new = (y[relabelled] + 1) % CLASSES
    train = as_examples((x, y))
    changed = train.with_targets(y.index_copy(0, torch.tensor(relabelled), new)).select(np.array(relabelled))
    found = wh.last_layer_response(task, train, removed=removed, relabelled=changed, proximity=0.3, gradient_norm=1e-9)
    assert found is not None and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    features = model[1](model[0](x)).detach()
    last, moved = model[2], found.model[2]
    flat = [torch.cat([one.weight, one.bias[:, None]], 1) if bias else one.weight for one in (last, moved)]
    start, weight = (one.detach() for one in flat)
    inputs = torch.cat([features, torch.ones(N, 1).double()], 1) if bias else features
    decay = 0.3 * mean_eigenvalue(inputs, inputs @ start.T)
    weight.requires_grad_()
    value = objective(weight, start, inputs, y, (removed, relabelled, new), decay)
    (slope,) = torch.autograd.grad(value, weight)
    assert slope.norm() < 1e-10 and value < objective(start, start, inputs, y, (removed, relabelled, new), decay)
    assert torch.equal(found.model[0].weight, model[0].weight)


def test_one_removal_from_a_linear_model_is_the_proximal_response() -> None:
    x, y = rows()
    task = wh.Task(nn.Linear(5, CLASSES).double(), "cross_entropy")
    inputs = torch.cat([x, torch.ones(N, 1).double()], 1)
    decay = mean_eigenvalue(inputs, task.model(x).detach())
    asked = wh.pbrf(task, (x, y), (x, y), [4], proximity=decay, gradient_norm=1e-10)
    found = wh.last_layer_response(task, as_examples((x, y)), removed=[4], gradient_norm=1e-9)
    assert found is not None
    losses = [nn.functional.cross_entropy(t.model(x), y, reduction="none").detach() for t in (task, found)]
    torch.testing.assert_close(asked.values[:, 0], losses[1] - losses[0], rtol=1e-7, atol=1e-9)


def test_a_small_change_is_what_influence_of_the_last_layer_says() -> None:
    """With much damping the response is its own linearisation."""
    x, y = rows()
    model = network()
    task = wh.Task(model, "cross_entropy")
    train = as_examples((x, y))
    inputs = torch.cat([model[1](model[0](x)).detach(), torch.ones(N, 1).double()], 1)
    decay = 100 * mean_eigenvalue(inputs, model(x).detach())
    config = wh.Influence(curvature=wh.Exact(damping=decay), layers="last")
    asked = config.fit(task, train).group_scores({"gone": [1, 2, 3]}, (x, y)).values[:, 0]
    found = wh.last_layer_response(task, train, removed=[1, 2, 3], proximity=100.0)
    assert found is not None
    change = nn.functional.cross_entropy(found.model(x), y, reduction="none").detach() - nn.functional.cross_entropy(
        model(x), y, reduction="none"
    )
    scale = N / (N - 3)  # group scores are of the mean over what is left
    torch.testing.assert_close(scale * change.detach(), asked, rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("copies", [1, 400])
def test_a_change_that_is_small_beside_the_rows_is_solved_too(copies: int) -> None:
    """One row among thousands: differences of the objective are lost in rounding, its gradient is not."""
    x, y = (one.repeat_interleave(copies, 0) for one in rows())
    task = wh.Task(network().float(), "cross_entropy")
    for asked in ([0], [1]):
        assert wh.last_layer_response(task, as_examples((x.float(), y)), removed=asked) is not None


def test_nothing_changed_moves_nothing_and_order_does_not_matter() -> None:
    x, y = rows()
    task = wh.Task(network(), "cross_entropy")
    train = as_examples((x, y))
    still = wh.last_layer_response(task, train)
    assert still is not None
    torch.testing.assert_close(still.model[2].weight, task.model[2].weight, rtol=0, atol=1e-12)
    order = np.random.default_rng(0).permutation(N)
    one, two = (
        wh.last_layer_response(task, given, removed=[5, 9], gradient_norm=1e-9)
        for given in (train, train.select(order))
    )
    assert one is not None and two is not None
    torch.testing.assert_close(one.model[2].weight, two.model[2].weight, rtol=0, atol=1e-9)


class Scaled(nn.Module):
    """Ends in something that is no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.linear(x)


def test_models_without_a_last_linear_layer_have_no_response() -> None:
    x, y = rows()
    train = as_examples((x.float(), y))
    assert wh.last_layer_response(wh.Task(Scaled(), "cross_entropy"), train, removed=[1]) is None
    hand = wh.Task(nn.Linear(5, CLASSES), lambda f, t: nn.functional.cross_entropy(f, t, reduction="none"))
    assert wh.last_layer_response(hand, train, removed=[1]) is None
    with pytest.raises(ConfigError, match="proximity must be positive"):
        wh.last_layer_response(wh.Task(nn.Linear(5, CLASSES), "cross_entropy"), train, proximity=0.0)
