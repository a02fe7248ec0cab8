"""The dense curvature of all attributed parameters together, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from whence.curvature.base import Damping, Preconditioner, absolute, square_root, validate_damping, validate_fisher
from whence.errors import ConfigError, NumericalError
from whence.gradients import Fisher, Gradients, GradientStream, Matrix, Outer, decay_grids

__all__ = ["Exact", "ExactPreconditioner", "cross_block", "exact_from_state", "shifted_inverse"]

_LARGEST = 12_000
_LARGEST_TOLD = 4_000  # beyond it eigenvalues for a message take longer than a user waits
_WEIGHTED_GRAMS = 256


@dataclass(frozen=True, kw_only=True)
class Exact:
    r"""The dense Gauss–Newton matrix (1/N) Σ_i J_iᵀ W_i J_i, or the Hessian, of all attributed parameters.

    The Gauss–Newton matrix equals the Hessian for models that are linear in their parameters. The Hessian of a
    non-convex network is usually indefinite; it is then refused, unless damping makes it definite.

    Args:
        damping: A number (default 0, for strictly convex objectives) or `Relative` to the mean eigenvalue.
        hessian: Use the exact Hessian of the training loss instead of the Gauss–Newton matrix.
        fisher: "auto" is the exact Gauss–Newton; "empirical" and "sampled" as in `EKFAC`.

    Raises:
        ConfigError: More than 12,000 parameters are attributed.
        NumericalError: The curvature plus damping and weight decay is not positive definite.

    Cost: N·P² operations and 3 P² numbers of memory in float64; a Hessian takes P Hessian-vector products.
    Reference: Koh & Liang (2017), §2; Martens (2020) for the Gauss–Newton matrix.
    """

    damping: Damping = 0.0
    hessian: bool = False
    fisher: Fisher = "auto"

    def __post_init__(self) -> None:
        validate_damping(self.damping)
        validate_fisher(self.fisher)

    def fit(self, stream: GradientStream, *, seed: int) -> Preconditioner:
        """Fit to the training gradients. The stream's task should be in float64."""
        shapes = {layer.name: layer.shape for layer in stream.layers}
        size = sum(out * inp for out, inp in shapes.values())
        if size > _LARGEST:
            raise ConfigError(
                f"Exact takes at most {_LARGEST} parameters, got {size}. Use EKFAC(), or fewer layers with layers=."
            )
        matrix = _hessian(stream, size) if self.hessian else _gauss_newton(stream, shapes, self.fisher, seed)
        kind = "exact Hessian" if self.hessian else "exact Gauss-Newton"
        damped = absolute(self.damping, float(matrix.diagonal().mean()))
        decays = decay_grids(stream.task, stream.layers)
        shift = damped + torch.cat([decays[name].reshape(-1) for name in shapes]).to(matrix)
        inverse, residual = shifted_inverse(matrix, shift, f"the {kind} matrix")
        details = {"curvature": kind, "damping": damped, "residual": residual, "parameters": size,
                   "effective": size - float((shift * inverse.diagonal()).sum())}  # fmt: skip
        return ExactPreconditioner(inverse, shapes, details)


@dataclass(frozen=True, eq=False)
class ExactPreconditioner:
    """H⁻¹ [P, P] over all layers together."""

    inverse: Tensor
    shapes: Mapping[str, tuple[int, int]]
    details: dict[str, Any]

    def precondition(self, gradients: Gradients) -> Gradients:
        """Return H⁻¹ g, multiplied out."""
        return self._times(gradients, self.inverse)

    def root(self, noise: Gradients) -> Gradients:
        """Return R ε with R Rᵀ = H⁻¹, of standard normal ε: a draw from a Gaussian of that covariance."""
        return self._times(noise, self._root.T)

    @cached_property
    def _root(self) -> Tensor:
        return square_root(self.inverse)

    def quadratic(self, gradients: Gradients) -> Tensor:
        """Return gᵀ H⁻¹ g [B]."""
        return self.leverage([gradients])[:, 0, 0]

    def leverage(self, jacobians: list[Gradients]) -> Tensor:
        """Return J H⁻¹ Jᵀ [B, C, C]; layers without positions are never multiplied out."""
        names = list(self.shapes)
        starts = dict(zip(names, _offsets(self.shapes), strict=True))
        total: Tensor | None = None
        for one in names:
            for other in names:
                block = self._block(starts, one, other)
                part = _contract(block, [j.layers[one] for j in jacobians], [j.layers[other] for j in jacobians])
                total = part if total is None else total + part
        assert total is not None
        return total

    def summary(self) -> dict[str, Any]:
        """Return what was fitted."""
        return self.details

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return settings and tensors."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"kind": "exact", "shapes": shapes, "details": self.details}, {"inverse": self.inverse}

    def _times(self, gradients: Gradients, matrix: Tensor) -> Gradients:
        """Return dense gradients [B, P] times a matrix [P, P], layer by layer."""
        flat = gradients.dense().to(matrix.dtype) @ matrix  # [B, P]
        pieces = flat.split([out * inp for out, inp in self.shapes.values()], 1)
        named = zip(self.shapes.items(), pieces, strict=True)
        dtype = next(iter(next(iter(gradients.layers.values())).tensors().values())).dtype
        return Gradients({name: Matrix(piece.reshape(-1, *shape).to(dtype)) for (name, shape), piece in named})

    def _block(self, starts: dict[str, int], one: str, other: str) -> Tensor:
        """Return the block of two layers [O, I, O', I']."""
        (out, inp), (out2, inp2) = self.shapes[one], self.shapes[other]
        rows = slice(starts[one], starts[one] + out * inp)
        columns = slice(starts[other], starts[other] + out2 * inp2)
        return self.inverse[rows, columns].reshape(out, inp, out2, inp2)


def exact_from_state(settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> ExactPreconditioner:
    """Restore what `ExactPreconditioner.state` returned."""
    shapes = {name: (shape[0], shape[1]) for name, shape in settings["shapes"].items()}
    return ExactPreconditioner(tensors["inverse"], shapes, settings["details"])


def _contract(block: Tensor, left: list[Any], right: list[Any]) -> Tensor:
    """Return J_left block J_rightᵀ [B, C, C]."""
    out, inp, out2, inp2 = block.shape
    x, y = left[0], right[0]
    plain = all(isinstance(f, Outer) and f.d.shape[1] == 1 for f in (x, y))
    if plain and out * out2 <= _WEIGHTED_GRAMS:
        a, a2 = x.a[:, 0].to(block.dtype), y.a[:, 0].to(block.dtype)
        middle = a.new_zeros(len(a), out, out2)
        for o in range(out):
            for o2 in range(out2):
                middle[:, o, o2] = ((a @ block[o, :, o2, :]) * a2).sum(1)
        d = torch.stack([f.d[:, 0] for f in left], 1).to(block.dtype)  # [B, C, O]
        d2 = torch.stack([f.d[:, 0] for f in right], 1).to(block.dtype)
        product: Tensor = d @ middle @ d2.transpose(1, 2)
        return product
    flat = torch.stack([f.matrix().flatten(1) for f in left], 1).to(block.dtype)  # [B, C, O·I]
    flat2 = torch.stack([f.matrix().flatten(1) for f in right], 1).to(block.dtype)
    return (flat @ block.reshape(out * inp, out2 * inp2)) @ flat2.transpose(1, 2)


def _gauss_newton(stream: GradientStream, shapes: dict[str, tuple[int, int]], fisher: Fisher, seed: int) -> Tensor:
    """Return (1/N) Σ_i Σ_r g_ir g_irᵀ over the roots r of the output Hessian, in float64."""
    size = sum(out * inp for out, inp in shapes.values())
    names, starts = list(shapes), _offsets(shapes)
    total: Tensor | None = None
    kind: Fisher = "exact" if fisher == "auto" and stream.task.smooth_loss is not None else fisher
    for chunk in stream.chunks():
        roots = [g.to(torch.float64) for g in stream.fisher(chunk, kind, seed)]
        if total is None:
            total = torch.zeros(size, size, dtype=torch.float64, device=roots[0].dense().device)
        for i, one in enumerate(names):
            for j in range(i, len(names)):
                block = cross_block(shapes[one], shapes[names[j]], roots, (one, names[j]))
                rows = slice(starts[i], starts[i] + block.shape[0])
                columns = slice(starts[j], starts[j] + block.shape[1])
                total[rows, columns] += block
    assert total is not None
    upper = total.triu()
    return (upper + upper.triu(1).T) / len(stream.examples)


def cross_block(
    shape: tuple[int, int], shape2: tuple[int, int], roots: list[Gradients], names: tuple[str, str]
) -> Tensor:
    """Return Σ_i Σ_r of one pair of layers [O·I, O'·I'], by weighted Gram products where there are no positions."""
    (out, inp), (out2, inp2) = shape, shape2
    x, y = roots[0].layers[names[0]], roots[0].layers[names[1]]
    plain = all(isinstance(f, Outer) and f.d.shape[1] == 1 for f in (x, y))
    if plain and out * out2 <= _WEIGHTED_GRAMS and isinstance(x, Outer) and isinstance(y, Outer):
        d = torch.stack([r.layers[names[0]].tensors()["d"][:, 0] for r in roots])  # [R, B, O]
        d2 = torch.stack([r.layers[names[1]].tensors()["d"][:, 0] for r in roots])
        weights = torch.einsum("rbo,rbp->opb", d, d2)
        block = d.new_zeros(out, inp, out2, inp2)
        same = names[0] == names[1]
        for o in range(out):
            for o2 in range(o if same else 0, out2):
                block[o, :, o2, :] = (x.a[:, 0] * weights[o, o2, :, None]).T @ y.a[:, 0]
        return block.reshape(out * inp, out2 * inp2)
    flat = torch.cat([r.layers[names[0]].matrix().flatten(1) for r in roots])
    flat2 = torch.cat([r.layers[names[1]].matrix().flatten(1) for r in roots])
    return flat.T @ flat2


def _hessian(stream: GradientStream, size: int) -> Tensor:
    """Return the Hessian of the mean training loss over the attributed parameters, one product a column."""
    task = stream.task
    named = dict(task.model.named_parameters())
    keys = [name for layer in stream.layers for name in layer.split(layer.weights())]
    copies = {name: named[name].detach().clone().requires_grad_() for name in keys}
    identity = torch.eye(size, dtype=torch.float64)
    directions = [_as_parameters(stream, row) for row in identity]
    columns = torch.zeros(size, size, dtype=torch.float64, device=task.device)
    wrapper = _MeanLoss(stream)
    with task.evaluating(), torch.enable_grad():
        for batch in stream.examples.batches(4096):
            value = torch.func.functional_call(wrapper, {f"model.{k}": p for k, p in copies.items()}, (batch,))
            gradients = torch.autograd.grad(value, list(copies.values()), create_graph=True)
            for column, direction in enumerate(directions):
                seeds = [direction[key] for key in copies]
                product = torch.autograd.grad(
                    gradients, list(copies.values()), seeds, retain_graph=True, materialize_grads=True
                )
                columns[:, column] += _as_vector(stream, dict(zip(copies, product, strict=True)))
    columns /= len(stream.examples)
    return (columns + columns.T) / 2


class _MeanLoss(nn.Module):
    """Summed training loss of a batch, with replaceable parameters."""

    def __init__(self, stream: GradientStream) -> None:
        super().__init__()
        self.model = stream.task.model
        self.task = stream.task

    def forward(self, batch: Any) -> Tensor:
        """Return the sum over the batch."""
        return self.task.losses(self.task.place(batch)).sum()


def _as_parameters(stream: GradientStream, vector: Tensor) -> dict[str, Tensor]:
    """Return a vector [P] as tensors by parameter name."""
    pieces = vector.to(stream.task.device).split([layer.shape[0] * layer.shape[1] for layer in stream.layers])
    named: dict[str, Tensor] = {}
    for layer, piece in zip(stream.layers, pieces, strict=True):
        named.update(layer.split(piece.reshape(layer.shape)))
    return named


def _as_vector(stream: GradientStream, named: dict[str, Tensor]) -> Tensor:
    """Return tensors by parameter name as a vector [P]."""
    return torch.cat([layer.join(named).reshape(-1) for layer in stream.layers])


def _offsets(shapes: Mapping[str, tuple[int, int]]) -> list[int]:
    """Return where each layer starts in the concatenation."""
    starts, total = [], 0
    for out, inp in shapes.values():
        starts.append(total)
        total += out * inp
    return starts


def shifted_inverse(matrix: Tensor, shift: Tensor, what: str) -> tuple[Tensor, float]:
    """Return the inverse of a curvature plus a shift [P], which is added in place, and the residual of a probe.

    Where the shift leaves some parameters out, directions in which there is no curvature at all (a common shift of all
    softmax biases) are left out of the inverse: no gradient of the loss has a part in them.

    Raises:
        NumericalError: The curvature is not finite, or not positive definite with the shift.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise NumericalError(f"{what} must be finite, got NaN or infinity. Check the inputs and the loss.")
    matrix.diagonal().add_(shift)
    flat, scale = _flat_directions(matrix, shift), float(matrix.diagonal().mean())
    if flat.shape[1]:
        matrix += scale * flat @ flat.T
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0 or float(factor.diagonal().min()) ** 2 <= 1e-14 * float(matrix.diagonal().max()):
        raise NumericalError(_indefinite(matrix, float(shift.max()), what))
    inverse = torch.cholesky_inverse(factor)
    probe = torch.ones(len(matrix), dtype=matrix.dtype, device=matrix.device)
    residual = float((matrix @ (inverse @ probe) - probe).norm() / probe.norm())
    return inverse - flat @ flat.T / scale if flat.shape[1] else inverse, residual


def _flat_directions(matrix: Tensor, shift: Tensor) -> Tensor:
    """Return an orthonormal basis [P, R] of the null space of a positive semidefinite matrix with a shift.

    A null vector lies in the coordinates that are not shifted, so that only their block is decomposed.
    """
    left = (shift == 0).nonzero()[:, 0]
    if not 0 < len(left) < len(shift):
        return matrix.new_zeros(len(matrix), 0)
    values, vectors = torch.linalg.eigh(matrix[left][:, left])
    null = vectors[:, values.abs() <= 1e-12 * float(matrix.diagonal().max())]
    basis = matrix.new_zeros(len(matrix), null.shape[1])
    basis[left] = null
    return basis


def _indefinite(matrix: Tensor, shift: float, what: str) -> str:
    """Return the message for a curvature that is not positive definite."""
    eigenvalues = torch.linalg.eigvalsh(matrix) if len(matrix) <= _LARGEST_TOLD else None
    least = "not positive" if eigenvalues is None else f"{float(eigenvalues[0]):.3g}"
    negative = "" if eigenvalues is None else f" ({int((eigenvalues < 0).sum())} of {len(matrix)} negative)"
    remedy = "Use the Gauss-Newton matrix (hessian=False) or raise" if "Hessian" in what else "Raise"
    return (
        f"{what} plus damping and weight decay ({shift:.3g}) must be positive definite, got a smallest eigenvalue of "
        f"{least}{negative}. {remedy} damping."
    )
