"""Ridge regression solved in closed form: the truth for everything that retrains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import whence as wh

DECAY = 0.2
FEATURES = 4


def problem(count: int = 30, queries: int = 5) -> tuple[wh.Examples, wh.Examples]:
    """Return training examples with string ids, and queries."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count + queries, FEATURES, generator=generator, dtype=torch.float64)
    y = x[:, :1] - 0.5 * x[:, 1:2] + torch.randn(len(x), 1, generator=generator, dtype=torch.float64)
    ids = [f"row{i}" for i in range(count)]
    train = wh.as_examples((x[:count], y[:count]), ids=ids)
    return train, wh.as_examples((x[count:], y[count:]), ids=np.arange(100, 100 + queries))


def solve(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Minimise Σ w (f − y)² / Σ w + λ/2 ‖θ‖²; return θ [F, 1]."""
    shares = weights.to(x) / weights.to(x).sum()
    gram = 2 * x.T @ (shares[:, None] * x) + DECAY * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, 2 * x.T @ (shares[:, None] * y))


def closed_form(examples: Any, *, weights: Tensor, seed: int, start: nn.Module | None) -> nn.Module:
    """Train as a user's own loop would."""
    batch = examples.batch(np.arange(len(examples)))
    model = nn.Linear(FEATURES, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(solve(batch.inputs, batch.targets, weights).T)
    return model


def output(model: nn.Module, batch: Any) -> Tensor:
    """Measure the output itself, which is linear in the parameters."""
    found: Tensor = model(batch.inputs)[:, 0]
    return found


def recipe() -> wh.Recipe:
    """Return the closed form as a recipe."""
    return wh.Recipe(train=closed_form, loss="mse", weight_decay=DECAY)


def descending(gradient_norm: float = 1e-8) -> wh.Recipe:
    """Return the same objective for L-BFGS."""
    return wh.Recipe(
        build=lambda: nn.Linear(FEATURES, 1, bias=False).double(), loss="mse", weight_decay=DECAY, optimizer="lbfgs",
        gradient_norm=gradient_norm,
    )  # fmt: skip


def losses(train: wh.Examples, queries: wh.Examples, kept: np.ndarray) -> np.ndarray:
    """Return the queries' squared errors after training on some rows, by dense algebra."""
    x, y = (np.asarray(t) for t in train.fetch(np.arange(len(train))))
    xq, yq = (np.asarray(t) for t in queries.fetch(np.arange(len(queries))))
    x, y = x[kept], y[kept]
    gram = 2 * x.T @ x / len(x) + DECAY * np.eye(x.shape[1])
    theta = np.linalg.solve(gram, 2 * x.T @ y / len(x))
    found: np.ndarray = ((xq @ theta - yq) ** 2)[:, 0]
    return found
