"""What capture refuses, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from whence.data import as_examples
from whence.errors import ConfigError, DataError, NumericalError
from whence.gradients import Gradients, GradientStream, Lookup, Matrix, check_capture, chunk_size, find_layers, record
from whence.tasks import Task


class FunctionalUse(nn.Module):
    """Uses a layer's weight outside the layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(F.linear(torch.tanh(self.first(x)), self.first.weight)))


class Tied(nn.Module):
    """The output layer shares the embedding's table."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(4, 3), nn.Linear(3, 4, bias=bias)
        self.last.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.table(x)))


class Folded(nn.Module):
    """Folds positions into the batch before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, positions, _ = x.shape
        return self.last(x.flatten(0, 1)).reshape(batch, positions, 3).mean(1)


class SequenceFirst(nn.Module):
    """Feeds a layer [T, B, C] instead of [B, T, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.transpose(0, 1)).mean(0)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(input=x)


def check(model: nn.Module, inputs: Tensor, layers: str | None = None) -> None:
    examples = as_examples((inputs, torch.zeros(len(inputs), dtype=torch.int64)))
    check_capture(Task(model.double()), find_layers(model, layers), examples)


FLOATS = torch.linspace(-1, 1, 30, dtype=torch.float64).sin()


@pytest.mark.parametrize(
    "build, inputs, named",
    [
        (FunctionalUse, FLOATS.reshape(6, 5), "'first'"),
        (lambda: Tied(bias=True), torch.arange(4), "'table'"),
        (lambda: Tied(bias=False), torch.arange(4), "'table'"),
        (Folded, FLOATS.reshape(2, 3, 5), "'last'.*folds the batch"),
        (SequenceFirst, FLOATS.reshape(2, 3, 5), "'last'"),
        (SequenceFirst, FLOATS[:20].reshape(2, 2, 5), "'last'"),
        (Unused, FLOATS.reshape(6, 5), "'idle'.*take part"),
        (Keyword, FLOATS.reshape(6, 5), "'last'.*one tensor"),
    ],
)
def test_what_would_be_wrong_is_refused(build: Callable[[], nn.Module], inputs: Tensor, named: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=f"layer {named}"):
        check(build(), inputs)


def test_the_offending_layer_can_be_left_out() -> None:
    torch.manual_seed(0)
    check(FunctionalUse(), FLOATS.reshape(6, 5), "last")
    check(Unused(), FLOATS.reshape(6, 5), "used")


def test_batch_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ConfigError, match="batch statistics"):
        check(model, FLOATS.reshape(6, 5))


def test_examples_that_interact_are_refused() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.raises(ConfigError, match="interact"):
        check(nn.Sequential(nn.Linear(5, 3), Centred()), FLOATS.reshape(6, 5))


def test_nothing_to_attribute() -> None:
    with pytest.raises(ConfigError, match="at least one trainable"):
        find_layers(nn.Sequential(nn.PReLU()))
    with pytest.raises(ConfigError, match="at least one trainable"):
        find_layers(nn.Linear(2, 2), "no such layer")


def test_grouped_convolutions_are_reported_as_missed() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 2, groups=2), nn.Conv1d(4, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    assert [name for name, _ in find_layers(model).missed] == ["0", "1"]


@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
def test_hooks_are_gone_even_after_an_error(name: str) -> None:
    case = zoo.make(name)
    coverage = find_layers(case.model)
    with pytest.raises(RuntimeError, match="inside"), record(case.model, coverage.layers):
        raise RuntimeError("inside")
    assert not any(module._forward_hooks for module in case.model.modules())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_bad_input_names_the_example(broken: float) -> None:
    case = zoo.make("mlp")
    case.inputs[6, 2] = broken
    examples = as_examples(case.train, ids=[f"row {i}" for i in range(9)])
    stream = GradientStream(Task(case.model), find_layers(case.model).layers, examples, 4)
    with pytest.raises(NumericalError, match="row 6"):
        list(stream.training_gradients())


def test_a_bad_gradient_names_the_layer() -> None:
    """√|x| has a finite value and an infinite slope at 0."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs().sqrt()

    model = nn.Sequential(nn.Linear(2, 3), Root(), nn.Linear(3, 2)).double()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    examples = as_examples((torch.ones(3, 2, dtype=torch.float64), torch.tensor([0, 1, 0])))
    stream = GradientStream(Task(model), find_layers(model).layers, examples, 3)
    with pytest.raises(NumericalError, match="layer '0' must be finite"):
        list(stream.training_gradients())


def test_a_target_out_of_range_is_named() -> None:
    case = zoo.make("linear")
    case.targets[3] = 7
    stream = GradientStream(Task(case.model), find_layers(case.model).layers, as_examples(case.train), 9)
    with pytest.raises(DataError, match=r"0\.\.2.*got 7"):
        list(stream.training_gradients())


def test_embeddings_are_never_multiplied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of 50,000 and 2,000 examples would take 3 GB."""

    def refuse(self: Lookup) -> Tensor:
        raise AssertionError("multiplied out")

    monkeypatch.setattr(Lookup, "matrix", refuse)
    words = 50_000
    lookup = Lookup(torch.ones(2_000, 1, 8), torch.arange(2_000)[:, None] * 7, words)
    dense = Matrix(torch.arange(words, dtype=torch.float32).expand(1, 8, words))
    products = Gradients({"table": dense}).inner(Gradients({"table": lookup}))
    torch.testing.assert_close(products[0], 8.0 * 7 * torch.arange(2_000))
    torch.testing.assert_close(Gradients({"table": lookup}).inner(Gradients({"table": dense})), products.T)
    assert lookup.summed().shape == (8, words)
    assert int(lookup.summed()[0].count_nonzero()) == 2_000


def test_chunks_are_small_for_large_factors() -> None:
    small, large = zoo.make("linear"), zoo.make("linear")
    assert chunk_size(Task(small.model), find_layers(small.model).layers, as_examples(small.train)) == 1024
    wide = nn.Linear(100_000, 3).double()
    large = zoo.Case(wide, torch.zeros(2, 100_000, dtype=torch.float64), torch.tensor([0, 1]))
    assert 1 <= chunk_size(Task(wide), find_layers(wide).layers, as_examples(large.train)) <= 11
