"""Tiny models with data, one for every kind of layer and of calling convention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A trained-enough model with examples."""

    model: nn.Module
    inputs: Any
    targets: Tensor
    loss: str = "cross_entropy"

    @property
    def train(self) -> tuple[Any, Tensor]:
        return self.inputs, self.targets


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, -2).mean(1)


class Squeeze(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.shared, self.last = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, index: Tensor, other: Tensor) -> Tensor:
        x = self.table(index).mean(1) + 0.5 * self.table(other)
        return self.last(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 3, bias=False)

    def forward(self, features: Tensor, scale: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(torch.tanh(self.body(features)) * scale[:, None]))


class Residual(nn.Module):
    """Changes the outputs of captured layers in place and returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        h = self.first(x)
        h.relu_()
        y = self.second(h)
        y += h
        return self.last(y), None


class Attending(nn.Module):
    """A class token of its own, attention, an RMS norm written by hand, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.last = Scale(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), 1, 4), x], 1)
        return self.last(self.norm(x + self.attention(x, x, x, need_weights=False)[0])[:, 0])


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.last = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.recurrent(x)[1][0][0])


class Pairs(nn.Module):
    """A bag of words and a number of features, multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 3, mode="mean", padding_idx=0)
        self.pair, self.last = nn.Bilinear(3, 2, 4), nn.Linear(4, 3)

    def forward(self, index: Tensor, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.pair(self.bag(index), x)))


class Tied(nn.Module):
    """The output layer shares the embedding's table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.last.weight = self.table.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.last(torch.tanh(self.table(index)).mean(1))


def _classes(count: int, classes: int = 3) -> Tensor:
    return torch.randint(0, classes, (count,))


def _linear(n: int) -> Case:
    return Case(nn.Linear(5, 3), torch.randn(n, 5), _classes(n))


def _mlp(n: int) -> Case:
    model = nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)
    )
    return Case(model, torch.randn(n, 5), _classes(n))


def _binary(n: int) -> Case:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1), Squeeze())
    return Case(model, torch.randn(n, 5), (torch.rand(n) > 0.5).float(), "binary_cross_entropy")


def _regression(n: int) -> Case:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
    return Case(model, torch.randn(n, 5), torch.randn(n, 2), "mse")


def _conv(n: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.GroupNorm(2, 4),
        nn.Conv2d(4, 3, (2, 1), bias=False, dilation=(2, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 1 * 3, 3),
    )  # fmt: skip
    return Case(model, torch.randn(n, 2, 5, 5), _classes(n))


def _padded(mode: str) -> Callable[[int], Case]:
    def build(n: int) -> Case:
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding="same", dilation=2, padding_mode=mode), nn.Tanh(),
            nn.Conv2d(3, 3, (3, 2), padding=(1, 2), stride=(2, 1), padding_mode=mode), nn.Tanh(),
            nn.Flatten(), nn.LazyLinear(3),
        )  # fmt: skip
        inputs = torch.randn(n, 2, 6, 6)
        model(inputs[:1])
        return Case(model, inputs, _classes(n))

    return build


def _text(n: int) -> Case:
    model = nn.Sequential(
        nn.Embedding(9, 4, padding_idx=0), nn.LayerNorm(4), nn.Linear(4, 5), nn.Tanh(), Mean(), nn.Linear(5, 3)
    )
    return Case(model, torch.randint(0, 9, (n, 6)), _classes(n))


def _norms(n: int) -> Case:
    model = nn.Sequential(
        nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.LayerNorm((4,), bias=False), nn.Linear(4, 3)
    )
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(32, 5) * 2 + 1)
    return Case(model, torch.randn(n, 5), _classes(n))


def _image_norms(n: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 2, padding="valid"), nn.BatchNorm2d(4), nn.LayerNorm((4, 3, 3)), nn.Tanh(), nn.Flatten(),
        nn.Linear(36, 2),
    )  # fmt: skip
    return Case(model, torch.randn(n, 1, 4, 4), _classes(n, 2))


def _sequence(n: int) -> Case:
    targets = torch.randint(0, 4, (n, 5))
    targets[::3, 3:] = -100
    return Case(nn.Sequential(nn.Embedding(6, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randint(0, 6, (n, 5)), targets)


def _groups(n: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 2, groups=2), nn.Tanh(), nn.ConvTranspose2d(4, 2, 2, stride=2, padding=1), nn.Tanh(),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    return Case(model, torch.randn(n, 4, 3, 3), _classes(n))


def _attention(n: int) -> Case:
    return Case(Attending(), torch.randn(n, 3, 4), _classes(n))


def _recurrent(n: int) -> Case:
    return Case(Recurrent(), torch.randn(n, 4, 3), _classes(n))


def _pairs(n: int) -> Case:
    return Case(Pairs(), (torch.randint(0, 6, (n, 4)), torch.randn(n, 2)), _classes(n))


def _tied(n: int) -> Case:
    return Case(Tied(), torch.randint(0, 4, (n, 5)), _classes(n, 4))


def _twice(n: int) -> Case:
    return Case(Twice(), (torch.randint(0, 7, (n, 3)), torch.randint(0, 7, (n,))), _classes(n))


def _named(n: int) -> Case:
    return Case(Named(), {"features": torch.randn(n, 5), "scale": torch.rand(n) + 0.5}, _classes(n))


def _residual(n: int) -> Case:
    return Case(Residual(), torch.randn(n, 5), _classes(n))


CASES: dict[str, Callable[[int], Case]] = {
    "linear": _linear,
    "mlp": _mlp,
    "binary": _binary,
    "regression": _regression,
    "conv": _conv,
    "padded-zeros": _padded("zeros"),
    "padded-reflect": _padded("reflect"),
    "padded-circular": _padded("circular"),
    "padded-replicate": _padded("replicate"),
    "text": _text,
    "norms": _norms,
    "image-norms": _image_norms,
    "sequence": _sequence,
    "twice": _twice,
    "named": _named,
    "residual": _residual,
    "groups": _groups,
    "attention": _attention,
    "recurrent": _recurrent,
    "pairs": _pairs,
    "tied": _tied,
}


def make(name: str, *, count: int = 9, seed: int = 0, dtype: torch.dtype = torch.float64) -> Case:
    """Return a case; the model has random weights, away from zero, and no shared random state is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        case = CASES[name](count)
        model = case.model.to(dtype)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
                    for p in module.parameters(recurse=False):
                        p.add_(0.3 * torch.randn_like(p))
    cast = _cast(case.inputs, dtype)
    targets = case.targets.to(dtype) if case.targets.is_floating_point() else case.targets
    return Case(model, cast, targets, case.loss)


def subset(tree: Any, index: Any) -> Any:
    """Return some examples of a tensor, tuple or dict of tensors."""
    if isinstance(tree, dict):
        return {key: subset(value, index) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(subset(value, index) for value in tree)
    return tree[index]


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    if isinstance(tree, dict):
        return {key: _cast(value, dtype) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_cast(value, dtype) for value in tree)
    return tree.to(dtype) if tree.is_floating_point() else tree
