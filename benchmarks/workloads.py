"""The models and real data that speed is measured on: an MLP, a CNN and a small transformer."""

from __future__ import annotations

import copy
import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import support
import whence as wh

MODELS = ("mlp", "cnn", "transformer")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A trained model with its training rows and queries; every loss is a cross-entropy, summed over positions.

    Args:
        name: One of ``MODELS``.
        model: In evaluation mode.
        train: Inputs and targets of the N training examples.
        queries: Inputs and targets of the Q queries.
        pass_batches: Batch sizes at which a plain forward+backward pass is tried.
    """

    name: str
    model: nn.Module
    train: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]
    pass_batches: tuple[int, ...]

    def with_copied_model(self) -> Workload:
        """Return the same with a model that may be modified."""
        return replace(self, model=copy.deepcopy(self.model))

    @property
    def sequences(self) -> bool:
        """Whether an example has positions with a target each."""
        return self.train[1].ndim == 2

    @property
    def linear_layers(self) -> list[str]:
        """Names of the linear and convolutional layers: all that some libraries attribute."""
        return [name for name, m in self.model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]

    @property
    def linear_only(self) -> bool:
        """Whether those layers hold all parameters."""
        held = sum(p.numel() for name in self.linear_layers for p in self.model.get_submodule(name).parameters())
        return held == sum(p.numel() for p in self.model.parameters())

    @property
    def description(self) -> dict[str, Any]:
        """What the tables say about it."""
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "rows": len(self.train[0]),
            "queries": len(self.queries[0]),
            "shape": list(self.train[0].shape[1:]),
            "query_loss": float(losses(self.model, *self.queries).mean()),
        }


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of every example [B], without a graph."""
    with torch.no_grad():
        return per_example(model(x), y)


def per_example(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of every example [B], summed over its positions."""
    flat = nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.reshape(len(outputs), -1).sum(1)


# --- models --------------------------------------------------------------------------------------------------------


def mlp(widths: list[int]) -> nn.Sequential:
    """A ReLU MLP."""
    layers: list[nn.Module] = []
    for position, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] if position else []
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


def cnn(channels: tuple[int, int], hidden: int) -> nn.Sequential:
    """Two 3×3 convolutions with pooling, two linear layers, for images of 28×28."""
    first, second = channels
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(second * 49, hidden), nn.ReLU(), nn.Linear(hidden, 10),
    )  # fmt: skip


class Block(nn.Module):
    """A pre-norm transformer block with causal attention spelled out, so that every library can follow it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream [B, T, E] after this block."""
        x = x + self.out(self._attend(self.norm(x)))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    def _attend(self, x: Tensor) -> Tensor:
        """Mix the positions [B, T, E]."""
        batch, length, width = x.shape
        shape = batch, length, self.heads, width // self.heads
        q, k, v = (layer(x).reshape(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = q @ k.transpose(-1, -2) / math.sqrt(shape[-1])  # [B, heads, T, T]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        mixed = weights.masked_fill(later, float("-inf")).softmax(-1) @ v
        return mixed.transpose(1, 2).reshape(batch, length, width)


class Transformer(nn.Module):
    """A decoder over a small vocabulary with learned positions and an untied head."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, vocabulary] of tokens [B, T]."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        x = self.token(tokens) + self.position(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


# --- workloads -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to build and train a model, and on what."""

    build: Callable[[], nn.Module]
    arrays: dict[str, np.ndarray]
    training: dict[str, Any] = field(default_factory=dict)
    pass_batches: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048, 5000, 10_000)

    def train(self) -> nn.Module:
        """Train the model."""
        recipe = wh.Recipe(build=self.build, learning_rate=1e-3, **self.training)
        return recipe.train(wh.as_examples((self._tensor("x"), self._tensor("y"))), seed=0)

    def workload(self, name: str, state: dict[str, Tensor]) -> Workload:
        """Return the workload with the trained weights."""
        model = self.build().eval()
        model.load_state_dict(state)
        train, queries = (self._tensor("x"), self._tensor("y")), (self._tensor("xq"), self._tensor("yq"))
        return Workload(name=name, model=model, train=train, queries=queries, pass_batches=self.pass_batches)

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])


def plan(name: str, tiny: bool) -> Plan:
    """Return how a workload is made."""
    if name == "transformer":
        return _text(tiny)
    rows = support.images(tiny)
    count = 10 if tiny else 100
    arrays = {"x": rows["x"], "y": rows["y"], "xq": rows["xt"][:count], "yq": rows["yt"][:count]}
    if name == "mlp":
        widths = [784, 32, 32, 10] if tiny else [784, 256, 256, 10]
        return Plan(build=lambda: mlp(widths), arrays=arrays, training={"epochs": 15 if tiny else 5})
    for key in ("x", "xq"):
        arrays[key] = arrays[key].reshape(-1, 1, 28, 28)
    channels, hidden = ((4, 8), 16) if tiny else ((16, 32), 128)
    sizes = (32, 128, 512)
    return Plan(
        build=lambda: cnn(channels, hidden), arrays=arrays, training={"epochs": 15 if tiny else 3}, pass_batches=sizes
    )


def _text(tiny: bool) -> Plan:
    """Next-character prediction; the queries are the last sequences of the text."""
    length, rows, count = (12, 60, 6) if tiny else (64, 2000, 100)
    tokens, vocabulary = _characters(tiny)
    wanted = rows + count
    spread = tokens[: len(tokens) // wanted * wanted].reshape(wanted, -1)[:, : length + 1]
    x, y = np.ascontiguousarray(spread[:, :-1]), np.ascontiguousarray(spread[:, 1:])
    width, layers, heads = (16, 2, 2) if tiny else (144, 4, 4)
    return Plan(
        build=lambda: Transformer(vocabulary, length, width, layers, heads),
        arrays={"x": x[:rows], "y": y[:rows], "xq": x[rows:], "yq": y[rows:]},
        training={"epochs": 15 if tiny else 5, "batch_size": 32},
        pass_batches=(16, 64),
    )


def _characters(tiny: bool) -> tuple[np.ndarray, int]:
    """Return the text as numbers of its characters, and how many characters there are."""
    if tiny:
        path = support.ROOT / "examples" / "data" / "sms_spam.csv.gz"
    else:
        path = support.need(support.data_folder() / "tinyshakespeare" / "tinyshakespeare.txt.gz")
    raw = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
    letters, tokens = np.unique(raw, return_inverse=True)
    return tokens.astype(np.int64), len(letters)
