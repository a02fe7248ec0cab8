"""Dense float64 oracles for small networks: plain autograd, everything multiplied out, none of the library's code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

Layered = dict[str, Tensor]  # one matrix [..., O, I + 1] a linear layer, the bias as its last column


def linear_names(model: nn.Sequential) -> list[str]:
    """Return the names of the linear layers."""
    return [name for name, module in model.named_children() if isinstance(module, nn.Linear)]


def per_example(model: nn.Sequential, x: Tensor, y: Tensor) -> Layered:
    """Return every example's gradient of its cross-entropy [B, O, I + 1], multiplied out."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(values: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, values, (inputs[None],))
        return nn.functional.cross_entropy(logits, target[None])

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    return {
        name: torch.cat([found[f"{name}.weight"], found[f"{name}.bias"][:, :, None]], 2) for name in linear_names(model)
    }


def chunked(model: nn.Sequential, x: Tensor, y: Tensor, size: int = 100) -> Iterator[tuple[slice, Layered]]:
    """Yield (rows, gradients) a chunk at a time."""
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        yield rows, per_example(model, x[rows], y[rows])


def inputs_and_deltas(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[Layered, Layered]:
    """Return every linear layer's inputs with a 1 appended [N, I + 1], and loss gradients at its outputs [N, O]."""
    inputs, outputs, h = {}, {}, x
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            inputs[name] = torch.cat([h, h.new_ones(len(h), 1)], 1).detach()
            outputs[name] = h = module(h)
        else:
            h = module(h)
    total = nn.functional.cross_entropy(h, y, reduction="sum")
    deltas = torch.autograd.grad(total, list(outputs.values()))
    return inputs, dict(zip(outputs, deltas, strict=True))


class EigenGrid:
    """EK-FAC with the empirical Fisher: bases of E[aaᵀ] and E[δδᵀ], second moments, relative damping; all dense."""

    def __init__(self, model: nn.Sequential, x: Tensor, y: Tensor, damping: float = 0.1) -> None:
        inputs, deltas = inputs_and_deltas(model, x, y)
        self.bases: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for name, a in inputs.items():
            d = deltas[name]
            q_a = torch.linalg.eigh(a.T @ a / len(x))[1]
            q_g = torch.linalg.eigh(d.T @ d / len(x))[1]
            moments = (d @ q_g).square().T @ (a @ q_a).square() / len(x)  # the gradient is δaᵀ: E[(δ̃ ã)²]
            self.bases[name] = (q_g, q_a, 1 / (moments + damping * moments.mean()))

    def precondition(self, gradients: Layered) -> Layered:
        """Return H⁻¹ g."""
        return on_grid(gradients, self.bases)


def on_grid(gradients: Layered, bases: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Layered:
    """Return Q_G ((Q_Gᵀ g Q_A) ∘ S) Q_Aᵀ for every layer's (Q_G, Q_A, S)."""
    done = {}
    for name, g in gradients.items():
        q_g, q_a, grid = bases[name]
        done[name] = q_g @ ((q_g.T @ g @ q_a) * grid) @ q_a.T
    return done


def split_kfac(model: nn.Sequential, x: Tensor, y: Tensor, gradients: Layered, damping: float = 0.1) -> Layered:
    """Return (G + √λ/π)⁻¹ g (A + π√λ)⁻¹ with the empirical Fisher, by solving dense systems."""
    inputs, deltas = inputs_and_deltas(model, x, y)
    done = {}
    for name, g in gradients.items():
        a_cov, g_cov = inputs[name].T @ inputs[name] / len(x), deltas[name].T @ deltas[name] / len(x)
        mean_a, mean_g = a_cov.diagonal().mean(), g_cov.diagonal().mean()
        root, balance = (damping * mean_a * mean_g).sqrt(), (mean_a / mean_g).sqrt()
        left = g_cov + root / balance * torch.eye(len(g_cov), dtype=g.dtype)
        right = a_cov + root * balance * torch.eye(len(a_cov), dtype=g.dtype)
        done[name] = torch.linalg.solve(right, torch.linalg.solve(left, g), left=False)
    return done


def flat(gradients: Layered) -> Tensor:
    """Return all layers next to each other [B, P]."""
    return torch.cat([g.reshape(len(g), -1) for g in gradients.values()], 1)
