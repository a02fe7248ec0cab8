"""Factored gradients against one plain autograd call an example."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracle
import zoo
import zoo_layers
from whence.curvature.kronecker import FisherPass
from whence.data import Examples, as_examples
from whence.errors import ConfigError
from whence.gradients import Gradients, GradientStream, Matrix, check_capture, concatenate, find_layers, squared_norm
from whence.gradients.layers import Coverage
from whence.tasks import Task


def stream_of(case: zoo.Case, chunk: int, budget: int = 0) -> tuple[GradientStream, Coverage]:
    coverage = find_layers(case.model)
    task = Task(case.model, case.loss)
    return GradientStream(task, coverage.layers, as_examples(case.train), chunk, budget), coverage


def captured(case: zoo.Case, chunk: int) -> Gradients:
    stream, _ = stream_of(case, chunk)
    return concatenate([gradients for _, gradients in stream.training_gradients()])


@pytest.mark.parametrize("name", zoo.CASES)
def test_equal_autograd(name: str) -> None:
    case = zoo.make(name)
    truth = oracle.per_example_gradients(case.model, oracle.LOSSES[case.loss], case.inputs, case.targets)
    found = captured(case, 4)
    torch.testing.assert_close(found.dense(), truth, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.squared_norms(), truth.square().sum(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.inner(found), truth @ truth.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", zoo.CASES)
def test_inner_products_of_every_pair_of_forms(name: str) -> None:
    case = zoo.make(name)
    found, few = captured(case, 9), captured(case, 9).rows(slice(2, 5))
    multiplied = Gradients({layer: Matrix(factor.matrix()) for layer, factor in found.layers.items()})
    expected = few.dense() @ found.dense().T
    for left, right in ((few, multiplied), (multiplied.rows(slice(2, 5)), found), (few, found)):
        torch.testing.assert_close(left.inner(right), expected, rtol=1e-9, atol=1e-12)
    for factor in multiplied.layers.values():
        torch.testing.assert_close(squared_norm(factor), factor.matrix().square().sum((1, 2)))
    for factor in [*found.layers.values(), *multiplied.layers.values()]:
        torch.testing.assert_close(factor.summed(), factor.matrix().sum(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["conv", "sequence", "text"])
@pytest.mark.parametrize("few", [1, 40])
def test_inner_products_do_not_depend_on_the_cost_model(name: str, few: int) -> None:
    found = captured(zoo.make(name, count=60), 60)
    left = found.rows(slice(0, few))
    torch.testing.assert_close(left.inner(found), left.dense() @ found.dense().T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("chunk", [1, 4, 9, 100])
def test_chunks_and_budget_change_nothing(chunk: int, budget: int) -> None:
    case = zoo.make("text")
    stream, _ = stream_of(case, chunk, budget)
    whole = captured(case, 9).dense()
    for _ in range(2):
        spans, parts = zip(*stream.training_gradients(), strict=True)
        assert [i for span in spans for i in range(span.start, span.stop)] == list(range(9))
        torch.testing.assert_close(torch.cat([part.dense() for part in parts]), whole, rtol=1e-10, atol=1e-13)


def test_gradients_that_need_more_than_the_budget_are_not_kept_in_part() -> None:
    """A sequence that is padded per batch has chunks of different size: none or all are kept."""
    case = zoo.make("sequence")
    lengths = torch.tensor([5, 5, 5, 5, 5, 5, 1, 1, 1])

    def fetch(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        longest = int(lengths[torch.from_numpy(rows)].max())
        return case.inputs[rows, :longest], case.targets[rows, :longest]

    examples = Examples(ids=np.arange(9), fetch=fetch)
    coverage = find_layers(case.model)
    task = Task(case.model)
    sizes = [g.numbers for _, g in GradientStream(task, coverage.layers, examples, 3).training_gradients()]
    assert len(set(sizes)) == 2
    stream = GradientStream(task, coverage.layers, examples, 3, budget=9 * 8 * min(sizes))
    for _ in range(3):
        spans = [rows for rows, _ in stream.training_gradients()]
        assert [rows.start for rows in spans] == [0, 3, 6]
    passes = FisherPass(stream, "empirical", 0)
    for samples in (passes.first(), passes.again()):
        assert sum(len(sample[0]) for sample in samples) == 9


def test_ragged_positions_are_padded_when_joined() -> None:
    case = zoo.make("sequence")
    stream, _ = stream_of(case, 9)
    long = next(iter(stream.training_gradients()))[1]
    short_case = zoo.Case(case.model, case.inputs[:, :3], case.targets[:, :3])
    short = captured(short_case, 9)
    joined = concatenate([long, short])
    torch.testing.assert_close(joined.dense(), torch.cat([long.dense(), short.dense()]))
    torch.testing.assert_close(joined.inner(joined), joined.dense() @ joined.dense().T)


@pytest.mark.parametrize("name", ["mlp", "text", "conv", "twice"])
def test_parameters_need_no_gradient(name: str) -> None:
    case = zoo.make(name)
    expected = captured(case, 9).dense()
    case.model.requires_grad_(False)
    torch.testing.assert_close(captured(case, 9).dense(), expected)
    with torch.no_grad():
        torch.testing.assert_close(captured(case, 9).dense(), expected)
    assert not any(p.requires_grad or p.grad is not None for p in case.model.parameters())


def test_frozen_layers_are_left_out() -> None:
    case = zoo.make("mlp")
    case.model[0].requires_grad_(False)
    coverage = find_layers(case.model)
    assert [layer.name for layer in coverage.layers] == ["3", "5"]
    assert coverage.share == 1.0
    truth = oracle.per_example_gradients(case.model, oracle.cross_entropy, case.inputs, case.targets)
    where = oracle.blocks(case.model)
    torch.testing.assert_close(captured(case, 4).dense(), torch.cat([truth[:, where["3"]], truth[:, where["5"]]], 1))


def test_partly_frozen_modules_are_attributed_in_part() -> None:
    case = zoo.make("mlp")
    case.model[0].bias.requires_grad_(False)
    case.model[5].weight.requires_grad_(False)
    coverage = find_layers(case.model)
    assert [layer.shape for layer in coverage.layers] == [(8, 5), (6, 8), (3, 1)]
    assert coverage.share == 1.0
    found = captured(case, 4)
    truth = oracle.per_example_gradients(case.model, oracle.cross_entropy, case.inputs, case.targets)
    where = oracle.blocks(case.model)
    first, last = truth[:, where["0"]].reshape(-1, 8, 6), truth[:, where["5"]].reshape(-1, 3, 7)
    torch.testing.assert_close(found.layers["0"].matrix(), first[:, :, :-1])
    torch.testing.assert_close(found.layers["5"].matrix(), last[:, :, -1:])


def test_what_cannot_be_attributed_is_named_with_its_share() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 3, bias=False), nn.PReLU(3))
    coverage = find_layers(model)
    assert dict(coverage.missed) == {"0": 20}
    assert coverage.attributed == 15
    assert coverage.fallback == ("2",)
    assert coverage.share == pytest.approx(15 / 35)
    assert coverage.describe() == (
        "15 of 35 trainable parameters attributed (42.9%); cannot be attributed: '0' (57.1%)"
    )
    tables = [nn.Embedding(rows, 1, scale_grad_by_freq=True) for rows in range(1, 11)]
    line = find_layers(nn.Sequential(nn.Linear(44, 1), *tables)).describe()
    assert line.endswith("'4' (4.0%), '3' (3.0%), 2 more (3.0%)") and ": '10' (10.0%), '9' (9.0%), " in line


@pytest.mark.parametrize("choice, names", [("last", ["5"]), ("3|5", ["3", "5"]), (["0", "[35]"], ["0", "3", "5"])])
def test_layers_can_be_chosen(choice: str | list[str], names: list[str]) -> None:
    assert [layer.name for layer in find_layers(zoo.make("mlp").model, choice).layers] == names


@pytest.mark.parametrize("choice, near", [("boddy", "body"), (["head", "hea"], "head"), ("*", "regular expressions")])
def test_a_pattern_that_matches_nothing_names_near_misses(choice: str | list[str], near: str) -> None:
    with pytest.raises(ConfigError, match=near):
        find_layers(zoo.make("named").model, choice)


@pytest.mark.parametrize("name", zoo.CASES)
def test_split_and_join_are_inverse(name: str) -> None:
    case = zoo.make(name)
    coverage = find_layers(case.model)
    params = dict(case.model.named_parameters())
    for layer in coverage.layers:
        split = layer.split(layer.weights())
        for key, value in split.items():
            torch.testing.assert_close(value, params[key].detach(), rtol=0, atol=0)
        torch.testing.assert_close(layer.join(split), layer.weights(), rtol=0, atol=0)
        assert layer.weights().shape == layer.shape
    everything = torch.cat([layer.weights().reshape(-1) for layer in coverage.layers])
    torch.testing.assert_close(everything, oracle.flatten(case.model, {k: p.detach() for k, p in params.items()}))


@pytest.mark.parametrize("name", zoo.CASES)
def test_capture_check_passes(name: str) -> None:
    case = zoo.make(name)
    check_capture(Task(case.model, case.loss), find_layers(case.model), as_examples(case.train))


class Language(nn.Module):
    """GPT-2's layout: the head is registered last and shares the weight of the table, which is registered first."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.table, self.block, self.norm = nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.table(x)))).mean(1)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


@pytest.mark.parametrize(
    "model, name",
    [
        (Language(tied=True), "table"),
        (Language(tied=False), "head"),
        (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm((2, 3)), nn.PReLU()), "0"),
        (nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 2, 1), nn.BatchNorm1d(2)), "1"),
        (nn.Sequential(Own(), nn.Linear(3, 2)), "1"),
        (nn.Sequential(OrderedDict(head=nn.Linear(4, 2), table=nn.Embedding(5, 4))), "head"),
        (nn.Sequential(zoo_layers.Conv1D(3, 4), nn.LayerNorm(3)), "0"),
        (nn.Sequential(Own()), "0"),
    ],
)
def test_the_last_layer_is_the_head(model: nn.Module, name: str) -> None:
    found = find_layers(model, "last").layers
    assert [layer.name for layer in found] == [name]


def test_a_tied_head_has_the_gradients_of_its_whole_group() -> None:
    torch.manual_seed(0)
    model = Language(tied=True).double()
    examples = as_examples((torch.randint(0, 7, (5, 3)), torch.randint(0, 7, (5,))))
    coverage = find_layers(model, "last")
    check_capture(Task(model), coverage, examples)
    assert coverage.attributed == model.table.weight.numel()


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 4), Own()),
        nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 3)),
        nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3)),
        nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))),
    ],
)
def test_a_head_that_is_ambiguous_is_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"must find one head.*regular expression"):
        find_layers(model, "last")
