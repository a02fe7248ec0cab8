"""The dense curvature of every layer by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.curvature.base import DEFAULT_DAMPING, Damping, Preconditioner, absolute, validate_damping, validate_fisher
from whence.curvature.blocks import BlockPreconditioner, DenseInverse, LayerInverse
from whence.curvature.exact import cross_block, shifted_inverse
from whence.errors import ConfigError
from whence.gradients import Fisher, GradientStream, decay_grids
from whence.gradients.products import Products

__all__ = ["BlockExact"]

_LARGEST = 12_000
_COLUMNS = 256


@dataclass(frozen=True, kw_only=True)
class BlockExact:
    r"""The dense Gauss–Newton matrix, or the Hessian, of every layer by itself: no cross-terms between layers.

    Args:
        damping: A number, or `Relative` to the mean eigenvalue of each block.
        hessian: Use the Hessian's blocks; indefinite ones are refused.
        fisher: "auto" is the exact Gauss–Newton matrix; "sampled" and "empirical" as in `EKFAC`.

    Raises:
        ConfigError: A layer has more than 12,000 parameters.
        NumericalError: A block plus damping and weight decay is not positive definite.

    Cost: one pass and N·P_l² operations a layer of P_l parameters; a Hessian takes P products. Memory: 3 P_l² numbers
    in float64.
    """

    damping: Damping = DEFAULT_DAMPING
    hessian: bool = False
    fisher: Fisher = "auto"

    def __post_init__(self) -> None:
        validate_damping(self.damping)
        validate_fisher(self.fisher)

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit to the training gradients."""
        for layer in stream.layers:
            size = layer.shape[0] * layer.shape[1]
            if size > _LARGEST:
                raise ConfigError(
                    f"BlockExact takes at most {_LARGEST} parameters a layer, got {size} in {layer.name!r}. "
                    "Use EKFAC() or CG(), or leave the layer out with layers=."
                )
        products = Products(stream, "hessian" if self.hessian else self.fisher, seed)
        blocks = _hessians(products) if self.hessian else _gauss_newtons(products)
        kind = "exact Hessian" if self.hessian else f"Fisher ({products.fisher})"
        decay, dtype = stream.task.weight_decay, stream.task.gradient_dtype
        decays = decay_grids(stream.task, stream.layers)
        inverses: dict[str, LayerInverse | None] = {}
        layers: dict[str, Any] = {}
        for name, matrix in blocks.items():
            damped = absolute(self.damping, float(matrix.diagonal().mean().clamp(min=0.0)))
            shift = damped + decays[name].reshape(-1).to(matrix)
            inverse, residual = shifted_inverse(matrix, shift, f"the {kind} of layer {name!r}")
            inverses[name] = DenseInverse(inverse.to(dtype))
            layers[name] = {"damping": damped, "effective_damping": damped + decay, "residual": residual}
        worst = max(entry["residual"] for entry in layers.values())
        told = {"residual": worst, "steps": 1, "converged": True, "layers": layers}
        return BlockPreconditioner(inverses, {"curvature": "block exact", "matrix": kind, **told})


def _gauss_newtons(products: Products) -> dict[str, Tensor]:
    """Return (1/N) Σ_i Σ_r g_ir g_irᵀ of every layer, in float64."""
    stream, totals = products.stream, dict[str, Tensor]()
    for chunk in stream.chunks():
        roots = [g.to(torch.float64) for g in stream.fisher(chunk, products.fisher, products.seed)]
        for name, shape in products.shapes.items():
            block = cross_block(shape, shape, roots, (name, name))
            totals[name] = totals[name] + block if name in totals else block
    upper = {name: total.triu() for name, total in totals.items()}
    return {name: (half + half.triu(1).T) / products.count for name, half in upper.items()}


def _hessians(products: Products) -> dict[str, Tensor]:
    """Return the Hessian's block of every layer, one product a column."""
    blocks, start = {}, 0
    for name, (out, inp) in products.shapes.items():
        stop = start + out * inp
        columns = []
        for first in range(start, stop, _COLUMNS):
            last = min(first + _COLUMNS, stop)
            eye = torch.zeros(last - first, products.size, dtype=products.dtype, device=products.stream.task.device)
            eye[torch.arange(last - first), torch.arange(first, last)] = 1.0
            columns.append(products.operator(len(eye))(eye)[:, start:stop])
        block = torch.cat(columns)
        blocks[name] = (block + block.T) / 2
        start = stop
    return blocks
