"""Leave-one-out outputs and leverage-corrected gradients, from one fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whence.curvature import Preconditioner
from whence.errors import ConfigError
from whence.gradients import Chunk, Gradients

__all__ = ["Correction", "LeaveOneOut", "correct"]

LARGEST_LEVERAGE = 0.99


@dataclass(frozen=True, kw_only=True, eq=False)
class LeaveOneOut:
    """What the model would say of every training example had it been trained without it.

    Args:
        outputs: Predicted leave-one-out outputs (logits) [N, C].
        losses: Predicted leave-one-out losses [N], in the loss's unit.
        fitted_outputs: The model's own outputs [N, C].
        fitted_losses: The model's own losses [N].
        leverage: Largest eigenvalue of W½ K W½, in [0, 1): how much of its own prediction an example fixes.
        ids: [N].
        unit: Unit of the losses.
    """

    outputs: Tensor
    losses: np.ndarray
    fitted_outputs: Tensor
    fitted_losses: np.ndarray
    leverage: np.ndarray
    ids: np.ndarray
    unit: str | None


@dataclass(frozen=True, eq=False)
class Correction:
    """One chunk's corrected quantities: residual r̃ [B, C], change of the outputs [B, C], leverage [B]."""

    residual: Tensor
    change: Tensor
    leverage: Tensor
    gradient: Tensor


def correct(chunk: Chunk, preconditioner: Preconditioner, decay: Gradients | None, count: int) -> Correction:
    r"""Return the leverage correction of one chunk.

    Removing example i moves the parameters by (nH − J_iᵀW_iJ_i)⁻¹ (J_iᵀr_i + λθ̂) to second order. With
    K = J H⁻¹ Jᵀ / n and u = J H⁻¹ λθ̂ / n that is H⁻¹(J_iᵀ r̃ + λθ̂)/n with r̃ = (I − WK)⁻¹ (r + W u), and the
    outputs of i change by K r̃ + u. Exact for quadratic losses of linear models up to the λ/n term.

    Args:
        chunk: A chunk with outputs [B, C], [B, 1] or [B].
        preconditioner: H⁻¹.
        decay: H⁻¹ λθ̂ as gradients of one example, or None without weight decay.
        count: n.

    Cost: C backward passes without weight gradients.
    Reference: Rad & Maleki (2020), approximate leave-one-out; derived here for curvature with weight decay.
    """
    loss = chunk.task.smooth_loss
    if loss is None or chunk.outputs is None or chunk.batch.targets is None:
        raise ConfigError("the leverage correction needs a named smooth loss. Use leverage_corrected=False.")
    if chunk.outputs.ndim > 2:
        raise ConfigError(
            f"the leverage correction needs outputs [B, C], got {tuple(chunk.outputs.shape)}. "
            "Use leverage_corrected=False for sequences."
        )
    outputs = chunk.outputs.detach().requires_grad_()
    with torch.enable_grad():
        losses = loss(outputs, chunk.batch.targets)
    r = torch.autograd.grad(losses.sum(), outputs)[0].reshape(len(losses), -1)  # [B, C]
    roots = loss.roots(outputs.detach(), chunk.batch.targets).reshape(-1, *r.shape).permute(1, 2, 0)  # [B, C, R]
    jacobians = _jacobians(chunk, r.shape[1])
    k = preconditioner.leverage(jacobians) / count  # [B, C, C]
    u = torch.zeros_like(r)
    if decay is not None:
        u = torch.stack([decay.inner(jacobian)[0] for jacobian in jacobians], 1) / count
    work = torch.float64
    k, r, u, roots = k.to(work), r.to(work), u.to(work), roots.to(work)
    inner = roots.transpose(1, 2) @ k @ roots  # [B, R, R]
    values, vectors = torch.linalg.eigh((inner + inner.transpose(1, 2)) / 2)
    clipped = values.clamp(min=0.0, max=LARGEST_LEVERAGE)
    right = r + (roots @ (roots.transpose(1, 2) @ u[..., None]))[..., 0]
    image = vectors.transpose(1, 2) @ (roots.transpose(1, 2) @ (k @ right[..., None]))  # [B, R, 1]
    residual = right + (roots @ (vectors @ (image / (1 - clipped)[..., None])))[..., 0]
    change = (k @ residual[..., None])[..., 0] + u
    return Correction(residual, change, clipped.amax(1), r)


def _jacobians(chunk: Chunk, outputs: int) -> list[Gradients]:
    """Return the gradients of every output."""
    assert chunk.outputs is not None
    seeds = torch.eye(outputs, dtype=chunk.outputs.dtype, device=chunk.outputs.device)
    shape = chunk.outputs.shape
    return [chunk.seeded(seed.expand(len(chunk.losses), outputs).reshape(shape)) for seed in seeds]
