"""What capture refuses, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from whence.data import Batch, as_examples
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
    """Calls a layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(input=x)


class Scaled(nn.Module):
    """A scale that may be called with another tensor, which it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.weight * (x if other is None else x + other)


class TwoTensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x, x.flip(0))


def check(model: nn.Module, inputs: Tensor, layers: str | None = None) -> None:
    examples = as_examples((inputs, torch.zeros(len(inputs), dtype=torch.int64)))
    check_capture(Task(model.double()), find_layers(model, layers), examples)


FLOATS = torch.linspace(-1, 1, 30, dtype=torch.float64).sin()


@pytest.mark.parametrize(
    "build, inputs, named",
    [
        (FunctionalUse, FLOATS.reshape(6, 5), "'first'"),
        (SequenceFirst, FLOATS.reshape(2, 3, 5), "'last'"),
        (SequenceFirst, FLOATS[:20].reshape(2, 2, 5), "'last'"),
        (Unused, FLOATS.reshape(6, 5), "'idle'.*take part"),
        (TwoTensors, FLOATS.reshape(6, 5), "'scale'.*one tensor"),
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


    check(Keyword(), FLOATS.reshape(6, 5))


class AlwaysTraining(nn.Module):
    """Puts a part into training mode before every call."""

    def __init__(self, part: nn.Module, *sizes: int) -> None:
        super().__init__()
        self.part, self.sizes = part, sizes

    def forward(self, x: Tensor) -> Tensor:
        self.part.train()
        y = self.part(x.reshape(len(x), *self.sizes))
        return (y[0] if isinstance(y, tuple) else y).flatten(1)


@pytest.mark.parametrize(
    "model, named",
    [
        (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False)), "'1'.*batch statistics"),
        (nn.Sequential(nn.Linear(5, 3), AlwaysTraining(nn.BatchNorm1d(3), 3)), "'1.part'.*training mode"),
        (AlwaysTraining(nn.InstanceNorm1d(1, affine=True, track_running_stats=True), 1, 5), "'part'.*training mode"),
        (AlwaysTraining(nn.LSTM(1, 3, num_layers=2, dropout=0.5, batch_first=True), 5, 1), "'part'.*training mode"),
    ],
)
def test_modules_in_training_mode_are_refused_before_they_change(model: nn.Module, named: str) -> None:
    before = {key: value.clone() for key, value in model.double().state_dict().items()}
    with pytest.raises(ConfigError, match=named):
        check(model, FLOATS.reshape(6, 5))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_training_mode_of_attention_is_refused() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(5, 1, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            self.attention.train()
            return self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]

    with pytest.raises(ConfigError, match=r"'attention'.*training mode"):
        check(Attend(), FLOATS.reshape(6, 5))


class Blind(nn.Module):
    """Fits its data so well that no gradient is left, and uses a weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(torch.tanh(F.linear(torch.tanh(self.first(x)), self.first.weight)))
        return y + 1e4 * torch.eye(3, dtype=y.dtype)[0]


@pytest.mark.parametrize("named_loss", [True, False])
def test_vanished_gradients_do_not_hide_a_wrong_layer(named_loss: bool) -> None:
    torch.manual_seed(0)
    model = Blind().double()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert batch.targets is not None
        return F.cross_entropy(model(batch.inputs), batch.targets, reduction="none")

    task = Task(model, "cross_entropy" if named_loss else loss)
    examples = as_examples((FLOATS.reshape(6, 5), torch.zeros(6, dtype=torch.int64)))
    stream = GradientStream(task, find_layers(model).layers, examples, 6)
    assert not next(stream.training_gradients())[1].dense().any()
    with pytest.raises(ConfigError, match="layer 'first' must equal"):
        check_capture(task, find_layers(model), examples)
    check_capture(task, find_layers(model, "last"), examples)


def test_tiny_gradients_do_not_hide_a_wrong_layer() -> None:
    """Of a softmax inside the model that is saturated at e⁻⁹⁰: outputs and loss have gradients of that size."""

    class Saturated(Blind):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(super().forward(x) - (1e4 - 90) * torch.eye(3, dtype=x.dtype)[0], 1)

    torch.manual_seed(0)
    model = Saturated().double()
    examples = as_examples((FLOATS.reshape(6, 5), torch.eye(3, dtype=torch.float64)[[0] * 6]))
    task = Task(model, "mse")
    stream = GradientStream(task, find_layers(model).layers, examples, 6)
    assert 0 < float(next(stream.training_gradients())[1].dense().abs().max()) < 1e-30
    with pytest.raises(ConfigError, match="layer 'first' must equal"):
        check_capture(task, find_layers(model), examples)


def test_the_batch_where_another_dimension_has_its_size() -> None:
    """[T, B, C] with T = B is told by the module that says so, not by sizes."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 1, 4, dropout=0.0).double()

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.transpose(0, 1)).mean(0)

    inputs = torch.randn(6, 3, 4, dtype=torch.float64)
    examples = as_examples((inputs, torch.tensor([0, 1, 2, 3, 0, 1])))
    task = Task(First())
    coverage = find_layers(task.model)
    parts = {}
    for chunk in (1, 3, 6):
        stream = GradientStream(task, coverage.layers, examples, chunk)
        parts[chunk] = torch.cat([gradients.dense() for _, gradients in stream.training_gradients()])
    torch.testing.assert_close(parts[3], parts[1], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(parts[6], parts[1], rtol=1e-10, atol=1e-13)


def test_examples_that_interact_are_refused() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.raises(ConfigError, match="interact"):
        check(nn.Sequential(nn.Linear(5, 3), Centred()), FLOATS.reshape(6, 5))


def test_nothing_to_attribute() -> None:
    with pytest.raises(ConfigError, match="at least one trainable"):
        find_layers(nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)))
    with pytest.raises(ConfigError, match="at least one trainable"):
        find_layers(nn.Tanh())


@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
def test_hooks_are_gone_even_after_an_error(name: str) -> None:
    case = zoo.make(name)
    coverage = find_layers(case.model)
    with pytest.raises(RuntimeError, match="inside"), record(case.model, coverage.layers, 1):
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


class Gated(nn.Module):
    """A network with a branch that only some rows take, whose module the branch goes around."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        taken = (x[:, :1] > 0).to(x)
        called = self.branch(x) * 0.0
        return self.first(x) + called + taken * F.linear(x, self.branch.weight)


def test_a_layer_that_is_dead_in_the_first_and_last_row_is_looked_at_in_others() -> None:
    x = torch.randn(40, 3, dtype=torch.float64)
    x[[0, -1], 0] = -1.0
    x[1:-1, 0] = 1.0
    model = Gated().double()
    with pytest.raises(ConfigError, match="'branch'"):
        check_capture(Task(model), find_layers(model), as_examples((x, torch.arange(40) % 2)))
