"""Products of the training curvature with blocks of vectors, over all training examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.data import Batch
from whence.gradients.layers import Layer
from whence.gradients.roots import Roots
from whence.gradients.stream import Fisher, GradientStream
from whence.tasks import Task

__all__ = ["Operator", "Products", "join_vectors", "split_vectors"]

Operator = Callable[[Tensor], Tensor]
_THICK = 256


@dataclass(frozen=True, eq=False)
class Products:
    r"""The curvature of the mean training loss as a linear map of blocks of vectors [Q, P].

    Gauss–Newton and Fisher: (1/N) Σ_i Σ_r g_ir (g_irᵀ v), from the factored roots g_ir; without roots (sequences,
    where the exact expectation has none, or few vectors and many classes) as Jᵀ W J v by two backward passes through
    the same graph. Hessian: a second backward pass.

    Args:
        stream: The training gradients.
        kind: "hessian", or a kind of Fisher matrix; "auto" is the exact Gauss–Newton matrix, or the empirical Fisher
            of a loss without a likelihood.
        seed: Seed of sampled labels.

    Cost: kept roots (within the stream's budget) take 2 P multiplications an example and vector and no pass.
    Otherwise each product of Q vectors is one pass: a forward and R backward passes without weight gradients plus the
    same 2 P Q, or a forward pass and about 4 P Q multiplications, whichever is less. A Hessian: about 6 P Q.
    """

    stream: GradientStream
    kind: Fisher | Literal["hessian"] = "auto"
    seed: int = 0
    _kept: dict[int, Roots] = field(default_factory=dict, repr=False)
    _thick: list[Roots] = field(default_factory=list, repr=False)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(O, I) of every layer."""
        return {layer.name: layer.shape for layer in self.stream.layers}

    @property
    def size(self) -> int:
        """P."""
        return sum(out * inp for out, inp in self.shapes.values())

    @property
    def count(self) -> int:
        """N."""
        return len(self.stream.examples)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type to solve in: float64 where the device has it."""
        return torch.float32 if self.stream.task.device.type == "mps" else torch.float64

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.count // self.stream.chunk)

    @cached_property
    def fisher(self) -> Fisher:
        """The kind of Fisher matrix: the Gauss–Newton matrix's where this is a Hessian."""
        if self.kind in ("auto", "hessian"):
            return "exact" if self.stream.task.smooth_loss is not None else "empirical"
        chunk = self.stream.run(self.stream.examples.batch(np.arange(1)), np.arange(1))
        return self.stream.resolve(self.kind, chunk)  # type: ignore[arg-type]

    def operator(self, block: int) -> Operator:
        """Return the map v ↦ (1/N) Σ_i H_i v for blocks of about ``block`` vectors [Q, P]."""

        def apply(vectors: Tensor) -> Tensor:
            total = torch.zeros_like(vectors)
            if self._factored(block):
                for roots in self._all_roots():
                    self._add(total, roots, vectors)
            else:
                for number in range(self.chunks):
                    total += self._by_autograd(number, vectors)
            return total.div_(self.count)

        return apply

    def partial(self, number: int, block: int) -> Operator:
        """Return the map of one chunk alone, scaled so that its mean over all chunks is `operator`'s."""

        def apply(vectors: Tensor) -> Tensor:
            if not self._factored(block):
                return self._by_autograd(number, vectors).mul_(self.chunks / self.count)
            total = torch.zeros_like(vectors)
            self._add(total, self._roots(number), vectors)
            return total.mul_(self.chunks / self.count)

        return apply

    def mean_eigenvalue(self) -> float:
        """Return tr(H) / P of the Gauss–Newton matrix or Fisher.

        Of the Gauss–Newton matrix for a Hessian too, whose own trace may be negative. For sequences from one sampled
        label a position, which is unbiased. Cost: one pass.
        """
        total = 0.0
        kind: Fisher = "sampled" if self._probe is None and self.fisher == "exact" else self.fisher
        for chunk in self.stream.chunks():
            for gradients in self.stream.fisher(chunk, kind, self.seed):
                total += float(gradients.squared_norms().sum(dtype=self.dtype))
        return total / (self.count * self.size)

    @cached_property
    def _probe(self) -> Roots | None:
        """The roots of the first example, or None where there are none to be had."""
        stream = self.stream
        chunk = stream.run(stream.examples.batch(np.arange(1)), np.arange(1))
        if self.fisher == "exact" and (chunk.outputs is None or chunk.outputs.ndim > 2):
            return None
        return Roots.of(stream.fisher(chunk, self.fisher, self.seed))

    @cached_property
    def _fits(self) -> bool:
        """Whether the roots of all examples fit the stream's budget."""
        if self._probe is None:
            return False
        itemsize = torch.empty((), dtype=self.stream.task.gradient_dtype).element_size()
        return self._probe.numbers * itemsize * self.count <= self.stream.budget

    def _factored(self, block: int) -> bool:
        """Whether products go by roots: always where they are kept, else where R backward passes are worth it."""
        if self.kind == "hessian" or self._probe is None:
            return False
        return self._fits or self.fisher != "exact" or self._probe.count <= 2 * block

    def _add(self, total: Tensor, roots: Roots, vectors: Tensor) -> None:
        """Add the sum of the products of some examples."""
        roots = roots.to(vectors.dtype)
        step = roots.block
        for start in range(0, len(vectors), step):
            part = split_vectors(vectors[start : start + step], self.shapes)
            total[start : start + step] += join_vectors(roots.product(part))

    def _all_roots(self) -> Iterator[Roots]:
        """Yield the roots of all examples; where they are kept, thin chunks are joined to thick ones."""
        if not self._fits or self._kept:
            yield from (self._roots(number) for number in range(self.chunks))
            return
        if not self._thick:
            several, made = max(1, _THICK // self.stream.chunk), list[Roots]()
            for start in range(0, self.chunks, several):
                parts = [self._computed(number) for number in range(start, min(start + several, self.chunks))]
                made.extend(Roots.joined(parts))
            self._thick.extend(made)  # all at once: a pass that fails leaves nothing behind
        yield from self._thick

    def _roots(self, number: int) -> Roots:
        """Return the roots of one chunk, kept where they fit the budget."""
        if number in self._kept:
            return self._kept[number]
        roots = self._computed(number)
        if self._fits:
            self._kept[number] = roots
        return roots

    def _computed(self, number: int) -> Roots:
        """Return the roots of one chunk, by a forward pass and R backward passes."""
        rows = self._rows(number)
        chunk = self.stream.run(self.stream.examples.batch(rows), rows)
        return Roots.of(self.stream.fisher(chunk, self.fisher, self.seed))

    def _rows(self, number: int) -> np.ndarray:
        """Return the rows of a chunk."""
        start = number * self.stream.chunk
        return np.arange(start, min(start + self.stream.chunk, self.count))

    def _by_autograd(self, number: int, vectors: Tensor) -> Tensor:
        """Return the sum of a chunk's products by automatic differentiation, one vector after the other."""
        stream = self.stream
        batch = stream.task.place(stream.examples.batch(self._rows(number)))
        product = _hessian_product if self.kind == "hessian" else _gauss_newton_product
        apply = product(stream.task, stream.layers, batch)
        rows = [apply(_as_parameters(stream.layers, vector.to(stream.task.dtype))) for vector in vectors]
        return torch.stack([_as_vector(stream.layers, row) for row in rows]).to(vectors.dtype)


def split_vectors(vectors: Tensor, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Return vectors [Q, P] as [Q, O, I] by layer."""
    pieces = vectors.split([out * inp for out, inp in shapes.values()], 1)
    return {name: x.reshape(-1, *shape) for (name, shape), x in zip(shapes.items(), pieces, strict=True)}


def join_vectors(layers: Mapping[str, Tensor]) -> Tensor:
    """Return [Q, O, I] by layer as vectors [Q, P]."""
    return torch.cat([matrices.flatten(1) for matrices in layers.values()], 1)


class _Evaluated(nn.Module):
    """Outputs or summed training loss of a batch, with replaceable parameters."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, what: Literal["outputs", "loss"], batch: Batch) -> Tensor:
        """Return the outputs, or the sum of the losses."""
        return self.task.forward(batch) if what == "outputs" else self.task.losses(batch).sum()


def _evaluate(task: Task, copies: Mapping[str, Tensor], what: Literal["outputs", "loss"], batch: Batch) -> Tensor:
    """Evaluate with other parameters; attention without its fused kernels, which cannot be differentiated twice."""
    replaced = {f"model.{name}": p for name, p in copies.items()}
    with sdpa_kernel(SDPBackend.MATH):
        value: Tensor = torch.func.functional_call(_Evaluated(task), replaced, (what, batch))
    return value


def _copies(task: Task, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Return differentiable copies of the attributed parameters."""
    named = dict(task.model.named_parameters())
    keys = [name for layer in layers for name in layer.split(layer.weights())]
    return {name: named[name].detach().clone().requires_grad_() for name in keys}


def _hessian_product(task: Task, layers: Sequence[Layer], batch: Batch) -> Callable[[dict[str, Tensor]], Any]:
    """Return v ↦ Σ_i ∇²ℓ_i v of a batch."""
    copies = _copies(task, layers)
    with task.evaluating(), torch.enable_grad():
        value = _evaluate(task, copies, "loss", batch)
        first = torch.autograd.grad(value, list(copies.values()), create_graph=True, materialize_grads=True)

    def apply(direction: dict[str, Tensor]) -> dict[str, Tensor]:
        product = _pull(first, list(copies.values()), [direction[name] for name in copies])
        return dict(zip(copies, product, strict=True))

    return apply


def _gauss_newton_product(task: Task, layers: Sequence[Layer], batch: Batch) -> Callable[[dict[str, Tensor]], Any]:
    """Return v ↦ Σ_i J_iᵀ W_i J_i v of a batch; J v is the derivative of Jᵀ u in u, so any model will do."""
    loss, targets = task.smooth_loss, batch.targets
    assert loss is not None and targets is not None
    copies = _copies(task, layers)
    values = list(copies.values())
    with task.evaluating(), torch.enable_grad():
        outputs = _evaluate(task, copies, "outputs", batch)
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, values, u, create_graph=True, materialize_grads=True)
        f = outputs.detach().requires_grad_()
        slope = torch.autograd.grad(loss(f, targets).sum(), f, create_graph=True)

    def apply(direction: dict[str, Tensor]) -> dict[str, Tensor]:
        pushed = _pull(pulled, [u], [direction[name] for name in copies])
        weighted = _pull(slope, [f], pushed)
        return dict(zip(copies, _pull([outputs], values, weighted), strict=True))

    return apply


def _pull(values: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the seeded gradients; values without a graph count nothing, and the graph stays."""
    live = [(value, seed) for value, seed in zip(values, seeds, strict=True) if value.requires_grad]
    if not live:
        return tuple(torch.zeros_like(x) for x in inputs)
    heads, cotangents = zip(*live, strict=True)
    return torch.autograd.grad(heads, inputs, cotangents, retain_graph=True, materialize_grads=True)


def _as_parameters(layers: Sequence[Layer], vector: Tensor) -> dict[str, Tensor]:
    """Return a vector [P] as tensors by parameter name."""
    pieces = vector.split([layer.shape[0] * layer.shape[1] for layer in layers])
    named: dict[str, Tensor] = {}
    for layer, piece in zip(layers, pieces, strict=True):
        named.update(layer.split(piece.reshape(layer.shape)))
    return named


def _as_vector(layers: Sequence[Layer], named: dict[str, Tensor]) -> Tensor:
    """Return tensors by parameter name as a vector [P]."""
    return torch.cat([layer.join(named).reshape(-1) for layer in layers])
