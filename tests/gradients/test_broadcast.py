"""Modules that are called once for all examples: positions, prompts, scales; against plain autograd, one row a call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import whence as wh
from whence.data import as_examples
from whence.gradients import GradientStream, check_capture, concatenate, find_layers
from whence.tasks import Task

V, E, C = 7, 4, 3


class Positions(nn.Module):
    """Tokens plus positions, added in one of the ways that people write."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.token, self.position, self.other = nn.Embedding(V, E), nn.Embedding(12, E), nn.Linear(E, E)
        self.head = nn.Linear(E, C)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, C]."""
        batch, length = tokens.shape
        places = torch.arange(length)
        p = self.position
        added = {
            "bert": lambda: p(places[None]),  # [1, T, E]
            "gpt": lambda: p(places),  # [T, E]
            "unsqueezed": lambda: p(places).unsqueeze(0),
            "expanded": lambda: p(places)[None].expand(batch, -1, -1),
            "repeated": lambda: p(places[None]).repeat(batch, 1, 1),
            "own": lambda: p(places.expand(batch, -1)),  # every example has its own: nothing to do
            "mapped": lambda: self.other(p(places[None])),  # a linear map of what is the same for all
        }[self.how]()
        shown = self.token(tokens) + added
        if self.how != "mapped":
            shown = self.other(shown)
        return self.head(torch.tanh(shown).mean(1))


class Rows(nn.Module):
    """An embedding of one index an example, [B]: no position."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.head = nn.Embedding(12, E), nn.Linear(E, C)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return self.head(torch.tanh(self.user(x[:, 0])))


def truth(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return every example's gradient by one autograd call."""
    found: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            found[name].append(gradient)
    return {name: torch.stack(rows) for name, rows in found.items()}


def compare(model: nn.Module, x: Tensor, y: Tensor, chunk: int) -> GradientStream:
    """Assert that captured gradients are those of autograd."""
    coverage, examples = find_layers(model), as_examples((x, y))
    task = Task(model)
    check_capture(task, coverage, examples)
    stream = GradientStream(task, coverage.layers, examples, chunk)
    found = concatenate([gradients for _, gradients in stream.training_gradients()])
    expected = truth(model, x, y)
    for layer in coverage.layers:
        wanted = torch.stack([layer.join({name: rows[i] for name, rows in expected.items()}) for i in range(len(x))])
        torch.testing.assert_close(found.layers[layer.name].matrix(), wanted, rtol=1e-9, atol=1e-12)
    return stream


@settings(max_examples=30, deadline=None)
@given(
    how=st.sampled_from(["bert", "gpt", "unsqueezed", "expanded", "repeated", "own", "mapped"]),
    count=st.integers(1, 9), length=st.integers(1, 8), chunk=st.integers(1, 9),
)  # fmt: skip
def test_every_way_of_adding_positions_equals_autograd(how: str, count: int, length: int, chunk: int) -> None:
    """Also where there are as many positions as examples in a batch, or one."""
    torch.manual_seed(0)
    model = Positions(how).double()
    x, y = torch.randint(0, V, (count, length)), torch.randint(0, C, (count,))
    compare(model, x, y, chunk)


@pytest.mark.parametrize("how", ["bert", "gpt"])
def test_positions_stay_factored(how: str) -> None:
    """What is written as most people do costs no pass by torch.func."""
    model = Positions(how).double()
    stream = compare(model, torch.randint(0, V, (6, 6)), torch.randint(0, C, (6,)), 6)
    assert all(layer.uses for layer in stream.recorded(stream.examples.batch(np.arange(2))))


def test_an_index_of_the_examples_is_no_position() -> None:
    """Even where it happens to count from zero like positions."""
    model = Rows().double()
    x = torch.arange(6)[:, None]
    stream = compare(model, x, torch.randint(0, C, (6,)), 6)
    assert stream.recorded(stream.examples.batch(np.arange(2))) is stream.layers


@pytest.mark.parametrize("how", ["bert", "gpt", "unsqueezed"])
@pytest.mark.parametrize(
    "fit",
    [
        lambda task, data: wh.Influence(curvature=wh.EKFAC()).fit(task, data),
        lambda task, data: wh.TRAK(dimension=16).fit(task, data),
        lambda task, data: wh.GradientCosine().fit(task, data),
    ],
)
def test_methods_take_such_models(how: str, fit: Callable[..., wh.InfluenceAttribution]) -> None:
    """Batch size does not matter, as the scores by id do not."""
    torch.manual_seed(1)
    model = Positions(how).double()
    x, y = torch.randint(0, V, (12, 5)), torch.randint(0, C, (12,))
    attribution = fit(wh.Task(model), (x, y))
    assert torch.isfinite(attribution.scores((x[:3], y[:3])).values).all()


class Prompted(nn.Module):
    """A learned prompt put before the tokens, through a linear map that sees it once."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.prompt, self.map = nn.Embedding(V, E), nn.Parameter(torch.randn(2, E)), nn.Linear(E, E)
        self.head = nn.Linear(E, C)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, C]."""
        before = self.map(self.prompt)[None].expand(len(tokens), -1, -1)
        return self.head(torch.tanh(torch.cat([before, self.token(tokens)], 1)).mean(1))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_cannot_be_repeated_goes_by_torch_func(count: int) -> None:
    """The model itself makes as many copies as there are examples."""
    torch.manual_seed(0)
    model = Prompted().double()
    compare(model, torch.randint(0, V, (count, 3)), torch.randint(0, C, (count,)), 4)


class Functional(nn.Module):
    """A module whose weight is used without calling it, and one that the loss does not depend on."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(V, E), nn.Linear(E, C)
        self.spare = nn.Linear(2, 2) if unused else None

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C]."""
        return self.head(torch.tanh(x @ self.first.weight.T))


def test_weights_used_without_their_module_go_by_torch_func() -> None:
    torch.manual_seed(0)
    model = Functional(unused=False).double()
    model.first.bias.requires_grad_(False)
    x, y = torch.randn(5, V, dtype=torch.float64), torch.randint(0, C, (5,))
    attribution = wh.Influence(curvature=wh.Identity()).fit(wh.Task(model), (x, y))
    weights = [model.first.weight, model.head.weight, model.head.bias]
    losses = nn.functional.cross_entropy(model(x), y, reduction="none")
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(one, weights, retain_graph=True)]) for one in losses]
    expected = torch.stack(rows) @ torch.stack(rows).T / 5
    torch.testing.assert_close(attribution.scores((x, y)).values, expected, rtol=1e-9, atol=1e-12)


def test_layers_that_the_loss_does_not_depend_on_are_named() -> None:
    x, y = torch.randn(5, V), torch.randint(0, C, (5,))
    with pytest.raises(wh.ConfigError, match="'spare' must take part in the loss"):
        wh.Influence().fit(wh.Task(Functional(unused=True)), (x, y))


def _hugging_face(kind: str) -> nn.Module:
    """Return a small randomly initialised model."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 30, "num_labels": C}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=30, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
        )
        return transformers.GPT2LMHeadModel(config)
    if kind == "distilbert":
        config = transformers.DistilBertConfig(**sizes, dim=8, n_layers=1, n_heads=2, hidden_dim=16)
        return transformers.DistilBertForSequenceClassification(config)
    prefix = {"bert": "Bert", "roberta": "Roberta"}[kind]
    config = getattr(transformers, f"{prefix}Config")(
        **sizes, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=24,
    )  # fmt: skip
    return getattr(transformers, f"{prefix}ForSequenceClassification")(config)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2"])
def test_models_of_hugging_face_are_attributed_whole(kind: str) -> None:
    """With padding; in batches as long as the sequences; whatever the batch size."""
    torch.manual_seed(0)
    model = _hugging_face(kind).double().eval()
    tokens, mask = torch.randint(3, 30, (10, 5)), torch.ones(10, 5, dtype=torch.long)
    mask[::2, 3:] = 0
    y = torch.roll(tokens, -1, 1) if kind == "gpt2" else torch.randint(0, C, (10,))
    data = {"input_ids": tokens, "attention_mask": mask}, y
    curvature = wh.EKFAC(fisher="empirical")
    several = [wh.Influence(curvature=curvature, batch_size=size).fit(wh.Task(model), data) for size in (1, 5, 10)]
    assert several[0].coverage.share == 1.0
    values = [attribution.scores(data).values for attribution in several]
    for other in values[1:]:
        assert (other - values[0]).norm() <= 1e-9 * values[0].norm()
