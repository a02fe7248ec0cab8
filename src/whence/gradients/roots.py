r"""Fisher roots of a chunk with their shared inputs, and products with blocks of vectors that never multiply them out.

The curvature of a chunk is Σ_i Σ_r g_ir g_irᵀ with g_ir = Σ_t δ_irt a_itᵀ. All R roots of an example share its inputs
a, so a product with Q vectors takes V a once for all of them: 2·T·O·I multiplications an example, layer and vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from whence.gradients.factors import Factor, Gradients, Lookup, Outer

__all__ = ["LayerRoots", "Roots"]

_IMAGES = 2**22


class LayerRoots(Protocol):
    """R gradients of each of B examples of one layer."""

    @property
    def count(self) -> int:
        """R."""

    @property
    def numbers(self) -> int:
        """How many numbers one example takes."""

    @property
    def images(self) -> int:
        """How many numbers `project` makes for one vector."""

    def to(self, dtype: torch.dtype) -> LayerRoots:
        """Return the roots in another floating-point type."""

    def project(self, vectors: Tensor) -> Tensor:
        """Return all inner products with vectors [Q, O, I]: [Q, R, B]."""

    def combine(self, weights: Tensor) -> Tensor:
        """Return Σ_i Σ_r weights_qri g_ir [Q, O, I] for weights [Q, R, B]."""


@dataclass(frozen=True, eq=False)
class _FactoredRoots:
    """Roots whose inputs are shared, whatever those are."""

    d: Tensor  # [R, B, T, O]

    @property
    def count(self) -> int:
        """R."""
        return len(self.d)

    @property
    def images(self) -> int:
        """How many numbers `project` makes for one vector."""
        return self.d[0].numel()

    def contracted(self, images: Tensor) -> Tensor:
        """Return the inner products [Q, R, B] with the inputs' images under vectors [B, Q, T·O]."""
        return (images @ self.d.flatten(2).permute(1, 2, 0)).permute(1, 2, 0)

    def mixed(self, weights: Tensor) -> Tensor:
        """Return Σ_r weights_qri d_ir [B, Q, T·O] for weights [Q, R, B]."""
        return weights.permute(2, 0, 1) @ self.d.flatten(2).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class OuterRoots(_FactoredRoots):
    """Roots of a linear map."""

    a: Tensor  # [B, T, I]

    @property
    def numbers(self) -> int:
        """How many numbers one example takes."""
        roots, _, positions, out = self.d.shape
        return positions * (roots * out + self.a.shape[2])

    def to(self, dtype: torch.dtype) -> OuterRoots:
        """Return the roots in another floating-point type."""
        return OuterRoots(self.d.to(dtype), self.a.to(dtype))

    def project(self, vectors: Tensor) -> Tensor:
        """Return all inner products [Q, R, B]."""
        queries, out, inp = vectors.shape
        batch, positions, _ = self.a.shape
        images = vectors.reshape(queries * out, inp) @ self.a.reshape(-1, inp).T  # [Q·O, B·T]
        images = images.reshape(queries, out, batch, positions).permute(2, 0, 3, 1).flatten(2)  # [B, Q, T·O]
        return self.contracted(images)

    def combine(self, weights: Tensor) -> Tensor:
        """Return the weighted sums [Q, O, I]."""
        batch, positions, inp = self.a.shape
        queries, out = len(weights), self.d.shape[3]
        mixed = self.mixed(weights).reshape(batch, queries, positions, out).permute(1, 3, 0, 2)  # [Q, O, B, T]
        return (mixed.reshape(queries * out, -1) @ self.a.reshape(-1, inp)).reshape(queries, out, inp)


@dataclass(frozen=True, eq=False)
class LookupRoots(_FactoredRoots):
    """Roots of an embedding."""

    index: Tensor  # [B, T]
    width: int  # V

    @property
    def numbers(self) -> int:
        """How many numbers one example takes."""
        roots, _, positions, out = self.d.shape
        return positions * (roots * out + 1)

    def to(self, dtype: torch.dtype) -> LookupRoots:
        """Return the roots in another floating-point type."""
        return LookupRoots(self.d.to(dtype), self.index, self.width)

    def project(self, vectors: Tensor) -> Tensor:
        """Return all inner products [Q, R, B]."""
        rows = vectors.transpose(1, 2)[:, self.index]  # [Q, B, T, O]
        return self.contracted(rows.flatten(2).transpose(0, 1))

    def combine(self, weights: Tensor) -> Tensor:
        """Return the weighted sums [Q, O, V]."""
        queries, out = len(weights), self.d.shape[3]
        mixed = self.mixed(weights).transpose(0, 1)  # [Q, B, T·O]
        table = mixed.new_zeros(queries, self.width, out)
        table.index_add_(1, self.index.reshape(-1), mixed.reshape(queries, -1, out))
        return table.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class DenseRoots:
    """Roots that are multiplied out."""

    m: Tensor  # [R, B, O, I]

    @property
    def count(self) -> int:
        """R."""
        return len(self.m)

    @property
    def numbers(self) -> int:
        """How many numbers one example takes."""
        return self.m[:, 0].numel()

    @property
    def images(self) -> int:
        """How many numbers `project` makes for one vector."""
        return self.m.shape[0] * self.m.shape[1]

    def to(self, dtype: torch.dtype) -> DenseRoots:
        """Return the roots in another floating-point type."""
        return DenseRoots(self.m.to(dtype))

    def project(self, vectors: Tensor) -> Tensor:
        """Return all inner products [Q, R, B]."""
        products = vectors.flatten(1) @ self.m.flatten(2).flatten(0, 1).T
        return products.reshape(len(vectors), *self.m.shape[:2])

    def combine(self, weights: Tensor) -> Tensor:
        """Return the weighted sums [Q, O, I]."""
        return (weights.flatten(1) @ self.m.flatten(2).flatten(0, 1)).reshape(len(weights), *self.m.shape[2:])


@dataclass(frozen=True, eq=False)
class Roots:
    """Fisher roots of a chunk, one entry a layer."""

    layers: Mapping[str, LayerRoots]

    @staticmethod
    def of(gradients: Sequence[Gradients]) -> Roots:
        """Return the roots from the gradients of every backward pass of one chunk."""
        names = gradients[0].layers
        return Roots({name: _shared([part.layers[name] for part in gradients]) for name in names})

    @staticmethod
    def joined(parts: Sequence[Roots]) -> list[Roots]:
        """Return the roots of several chunks as one, or as they are where their positions differ in number."""
        layers = {name: _concatenated([part.layers[name] for part in parts]) for name in parts[0].layers}
        whole = {name: roots for name, roots in layers.items() if roots is not None}
        return [Roots(whole)] if len(whole) == len(layers) else list(parts)

    @property
    def count(self) -> int:
        """R."""
        return next(iter(self.layers.values())).count

    @property
    def numbers(self) -> int:
        """How many numbers one example takes."""
        return sum(roots.numbers for roots in self.layers.values())

    @property
    def block(self) -> int:
        """How many vectors keep the intermediate results near 32 MiB."""
        return max(1, _IMAGES // max(roots.images for roots in self.layers.values()))

    def to(self, dtype: torch.dtype) -> Roots:
        """Return the roots in another floating-point type."""
        return Roots({name: roots.to(dtype) for name, roots in self.layers.items()})

    def project(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Return all inner products [Q, R, B] with vectors [Q, O, I] a layer, summed over layers."""
        return torch.stack([roots.project(vectors[name]) for name, roots in self.layers.items()]).sum(0)

    def product(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Σ_i Σ_r g_ir g_irᵀ V for vectors [Q, O, I] a layer."""
        weights = self.project(vectors)
        return {name: roots.combine(weights) for name, roots in self.layers.items()}


def _shared(factors: list[Factor]) -> LayerRoots:
    """Return the roots of one layer: factored where they have the same inputs and that takes fewer numbers."""
    first = factors[0]
    if isinstance(first, Outer) and all(isinstance(f, Outer) and _same(f.a, first.a) for f in factors):
        shared = OuterRoots(torch.stack([f.d for f in factors if isinstance(f, Outer)]), first.a)
        if shared.numbers <= len(factors) * first.d.shape[2] * first.a.shape[2]:
            return shared
    if isinstance(first, Lookup) and all(isinstance(f, Lookup) and _same(f.index, first.index) for f in factors):
        return LookupRoots(torch.stack([f.d for f in factors if isinstance(f, Lookup)]), first.index, first.width)
    return DenseRoots(torch.stack([factor.matrix() for factor in factors]))


def _concatenated(parts: list[LayerRoots]) -> LayerRoots | None:
    """Return the roots of all examples of one layer, or None if they do not fit each other."""
    first = parts[0]
    outers = [p for p in parts if isinstance(p, OuterRoots)]
    if len(outers) == len(parts) and len({p.a.shape[1] for p in outers}) == 1:
        return OuterRoots(torch.cat([p.d for p in outers], 1), torch.cat([p.a for p in outers]))
    lookups = [p for p in parts if isinstance(p, LookupRoots)]
    if isinstance(first, LookupRoots) and len(lookups) == len(parts) and len({p.index.shape[1] for p in lookups}) == 1:
        d, index = torch.cat([p.d for p in lookups], 1), torch.cat([p.index for p in lookups])
        return LookupRoots(d, index, first.width)
    dense = [p for p in parts if isinstance(p, DenseRoots)]
    return DenseRoots(torch.cat([p.m for p in dense], 1)) if len(dense) == len(parts) else None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; the same tensor is told at once."""
    return one is other or one.data_ptr() == other.data_ptr() or torch.equal(one, other)
