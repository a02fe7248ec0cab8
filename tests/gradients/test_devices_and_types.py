"""Compiled and wrapped models, other floating-point types, and models that take other paths in evaluation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracle
import zoo
import zoo_layers
from whence.curvature.covariance import Covariance
from whence.data import as_examples
from whence.errors import ConfigError
from whence.gradients import Gradients, GradientStream, Matrix, Outer, check_capture, find_layers
from whence.tasks import Task


def gradients_of(model: nn.Module, train: object, chunk: int = 100) -> Gradients:
    coverage = find_layers(model)
    check_capture(Task(model), coverage, as_examples(train))
    return next(iter(GradientStream(Task(model), coverage.layers, as_examples(train), chunk).training_gradients()))[1]


def relative_error(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true.double()).norm() / true.double().norm())


@pytest.mark.parametrize("name", ["mlp", "conv", "text"])
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models(name: str, whole: bool) -> None:
    case = zoo.make(name)
    expected = gradients_of(case.model, case.train)
    if whole:
        model: nn.Module = torch.compile(case.model, backend="eager")
    else:
        model = copy.deepcopy(case.model)
        model[0] = torch.compile(model[0], backend="eager")
    found = gradients_of(model, case.train)
    assert list(found.layers) == list(expected.layers)
    torch.testing.assert_close(found.dense(), expected.dense(), rtol=1e-12, atol=1e-14)
    names = dict(model.named_parameters())
    for layer in find_layers(model).layers:
        assert all(torch.equal(value, names[key]) for key, value in layer.split(layer.weights()).items())


@pytest.mark.parametrize("kind", [nn.DataParallel, torch.jit.script])
def test_wrapped_models_are_refused_with_a_remedy(kind: object) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    if kind is nn.DataParallel:
        with pytest.raises(ConfigError, match=r"DataParallel at '0'.*model\.module"):
            find_layers(nn.Sequential(nn.DataParallel(model)))
        return
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(model)
    with pytest.raises(ConfigError, match=r"TorchScript.*was scripted"):
        find_layers(scripted)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("name", ["mlp", "conv", "text", "norms", "sequence"])
def test_half_precision_models(name: str, dtype: torch.dtype, tolerance: float) -> None:
    case = zoo.make(name, dtype=dtype)
    double = zoo.Case(copy.deepcopy(case.model).double(), *(zoo._cast(x, torch.float64) for x in case.train))
    true = gradients_of(double.model, double.train).dense()
    found = gradients_of(case.model, case.train)
    assert found.dense().dtype == torch.float32  # squares of half-precision gradients would underflow
    assert relative_error(found.dense(), true) < tolerance


@pytest.mark.parametrize("name", ["linear", "attention-self", "lstm-plain", "layer-norm", "llama-norm", "bag-mean"])
def test_half_precision_layers(name: str) -> None:
    case = zoo_layers.make(name, "plain", True, dtype=torch.bfloat16)
    case.model.read = case.model.read.bfloat16()
    double = copy.deepcopy(case.model).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in case.inputs)
    true = gradients_of(double, (inputs, case.targets)).dense()
    found = gradients_of(case.model, case.train).dense()
    assert relative_error(found, true) < 0.1


class Autocast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(*inputs).float()


@pytest.mark.parametrize("name", ["mlp", "conv", "text", "image-norms"])
def test_autocast_inside_the_model(name: str) -> None:
    case = zoo.make(name, dtype=torch.float32)
    true = gradients_of(case.model, case.train).dense()
    found = gradients_of(Autocast(case.model), case.train)
    assert all(t.dtype == torch.float32 for f in found.layers.values() for k, t in f.tensors().items() if k != "index")
    assert relative_error(found.dense(), true) < 0.05


def test_hooks_of_the_user_stay_and_count() -> None:
    case = zoo.make("mlp")
    handles = [
        case.model[0].register_forward_pre_hook(lambda module, args: (args[0] * 0.5,)),
        case.model[0].register_forward_hook(lambda module, args, output: torch.sin(2 * output)),
    ]
    true = oracle.per_example_gradients(case.model, oracle.cross_entropy, *case.train)
    torch.testing.assert_close(gradients_of(case.model, case.train).dense(), true, rtol=1e-10, atol=1e-13)
    assert len(case.model[0]._forward_hooks) == len(case.model[0]._forward_pre_hooks) == 1
    for handle in handles:
        handle.remove()


def test_integer_inputs() -> None:
    """Pixels as integers, scaled inside the model."""

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.to(self.last.weight.dtype) / 255)

    model = Pixels().double()
    pixels, targets = torch.randint(0, 256, (5, 4), dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1])
    true = oracle.per_example_gradients(model, oracle.cross_entropy, pixels, targets)
    torch.testing.assert_close(gradients_of(model, (pixels, targets)).dense(), true, rtol=1e-10, atol=1e-13)


class Encoder(nn.Module):
    def __init__(self, nested: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(x.shape[1]) >= lengths[:, None]
        return self.last(self.encoder(x, src_key_padding_mask=mask)[:, 0])


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_fused_transformer_layers_do_not_bypass_hooks(nested: bool, frozen: bool) -> None:
    torch.manual_seed(0)
    model = Encoder(nested).double().eval()
    model.requires_grad_(not frozen)
    inputs = (torch.randn(6, 4, 4, dtype=torch.float64), torch.tensor([4, 2, 3, 1, 4, 2]))
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    before = torch.backends.mha.get_fastpath_enabled()
    found = gradients_of(model, (inputs, targets))
    assert torch.backends.mha.get_fastpath_enabled() == before
    params = dict(model.named_parameters())
    grown = copy.deepcopy(model).requires_grad_(True)
    for i in range(6):
        loss = oracle.cross_entropy(grown(*oracle.row(inputs, i)), targets[i : i + 1])
        grads = torch.autograd.grad(loss, list(grown.parameters()), allow_unused=True, materialize_grads=True)
        ours = {k: v for layer in find_layers(model).layers
                for k, v in layer.split(found.layers[layer.name].matrix()[i]).items()}  # fmt: skip
        for name, true in zip(params, grads, strict=True):
            torch.testing.assert_close(ours[name], true, rtol=1e-9, atol=1e-12)


def test_padding_takes_no_part_in_the_input_covariance() -> None:
    """Positions behind the loss have no gradient; what stands there changes nothing."""
    case = zoo.make("sequence")
    stream = GradientStream(Task(case.model), find_layers(case.model).layers, as_examples(case.train), 9)
    factor = next(iter(stream.training_gradients()))[1].layers["2"]
    assert isinstance(factor, Outer)
    expected = torch.from_numpy(np.asarray(case.targets != -100))
    assert torch.equal(factor.active, expected)
    covariance = Covariance(factor)
    covariance.update([factor])
    a = factor.a[expected]
    torch.testing.assert_close(covariance.mean_inputs(), a.T @ a / len(a))


def test_the_loop_and_the_vectorised_fallback_agree() -> None:
    """A model that branches on its data cannot be vectorised."""

    class Branching(nn.Module):
        def __init__(self, branching: bool) -> None:
            super().__init__()
            self.scale, self.branching = nn.Parameter(torch.ones(5)), branching
            self.last = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.branching and float(x.detach().abs().max()) > 1e9:
                return self.last(x)
            return self.last(torch.tanh(self.scale * x) + self.scale.sum())

    torch.manual_seed(0)
    one, other = Branching(False).double(), Branching(True).double()
    other.load_state_dict(one.state_dict())
    train = torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 3
    found, expected = gradients_of(other, train), gradients_of(one, train)
    assert isinstance(found.layers[find_layers(other).fallback[0]], Matrix)
    torch.testing.assert_close(found.dense(), expected.dense(), rtol=1e-12, atol=1e-14)
    true = oracle.per_example_gradients(one, oracle.cross_entropy, *train)
    torch.testing.assert_close(found.dense(), true, rtol=1e-10, atol=1e-13)
