"""Which modules have a factored gradient, and what each one captures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.errors import ConfigError
from whence.gradients.factors import Factor, Lookup, Matrix, Outer

__all__ = ["Coverage", "Layer", "find_layers"]


class Layer(Protocol):
    """A module whose parameters are one matrix [O, I], with the factored gradient of an example."""

    @property
    def name(self) -> str:
        """Full name of the module."""

    @property
    def module(self) -> nn.Module:
        """The module."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return (O, I)."""

    def capture(self, inputs: Tensor) -> Tensor:
        """Return what must be kept of the module's input."""

    def factor(self, captured: Tensor, delta: Tensor) -> Factor:
        """Return the gradients from what was captured and the gradient at the module's output."""

    def weights(self) -> Tensor:
        """Return the module's parameters as one matrix [O, I]."""

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return a matrix [O, I] as tensors shaped like the module's parameters, by full name."""

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return tensors shaped like the module's parameters, by full name, as one matrix [O, I]."""


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """``nn.Linear``: a is the input with a 1 appended for the bias, δ the gradient at the output."""

    name: str
    module: nn.Linear

    @property
    def shape(self) -> tuple[int, int]:
        """Return (O, I)."""
        return self.module.out_features, self.module.in_features + (self.module.bias is not None)

    def capture(self, inputs: Tensor) -> Tensor:
        """Return a over all positions between the first and the last dimension [B, T, I]."""
        a = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        return _with_one(a, self.module.bias is not None)

    def factor(self, captured: Tensor, delta: Tensor) -> Outer:
        """Return δ and a over all positions."""
        return Outer(delta.reshape(len(delta), -1, delta.shape[-1]), captured)

    def weights(self) -> Tensor:
        """Return [weight, bias]."""
        return _join(self.module.weight.detach(), self.module.bias)

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return weight and bias."""
        return _split(self.name, matrix, self.module.weight, self.module.bias)

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return [weight, bias]."""
        bias = None if self.module.bias is None else named[_key(self.name, "bias")]
        return _join(named[_key(self.name, "weight")], bias)


@dataclass(frozen=True, eq=False)
class Conv2dLayer:
    """``nn.Conv2d`` with one group: a linear map of every unfolded patch."""

    name: str
    module: nn.Conv2d

    @property
    def shape(self) -> tuple[int, int]:
        """Return (O, I) with I counting the patch."""
        weight = self.module.weight
        return weight.shape[0], weight[0].numel() + (self.module.bias is not None)

    def capture(self, inputs: Tensor) -> Tensor:
        """Return the patches a [B, T, I] of all output positions."""
        m = self.module
        mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
        padded = F.pad(inputs, m._reversed_padding_repeated_twice, mode=mode)
        patches = F.unfold(padded, m.kernel_size, dilation=m.dilation, stride=m.stride)  # [B, I, T]
        return _with_one(patches.transpose(1, 2), m.bias is not None)

    def factor(self, captured: Tensor, delta: Tensor) -> Outer:
        """Return δ and a over all output positions."""
        return Outer(delta.flatten(2).transpose(1, 2), captured)

    def weights(self) -> Tensor:
        """Return [weight, bias] with the kernel flattened."""
        return _join(self.module.weight.detach().flatten(1), self.module.bias)

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return weight and bias."""
        return _split(self.name, matrix, self.module.weight, self.module.bias)

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return [weight, bias]."""
        bias = None if self.module.bias is None else named[_key(self.name, "bias")]
        return _join(named[_key(self.name, "weight")].flatten(1), bias)


@dataclass(frozen=True, eq=False)
class EmbeddingLayer:
    """``nn.Embedding``: a linear map of one-hot vectors; the parameters are taken as [E, V]."""

    name: str
    module: nn.Embedding

    @property
    def shape(self) -> tuple[int, int]:
        """Return (E, V)."""
        return self.module.embedding_dim, self.module.num_embeddings

    def capture(self, inputs: Tensor) -> Tensor:
        """Return the indices."""
        return inputs

    def factor(self, captured: Tensor, delta: Tensor) -> Lookup:
        """Return the gradients with equal indices of one example summed; the padding index has none."""
        batch = len(delta)
        index = captured.reshape(batch, -1)
        d = delta.reshape(batch, index.shape[1], -1)
        if self.module.padding_idx is not None:
            d = d * (index != self.module.padding_idx)[:, :, None]
        same = index[:, :, None] == index[:, None, :]  # [B, T, T]
        first = ~same.tril(-1).any(2)
        return Lookup((same.to(d.dtype) @ d) * first[:, :, None], index, self.module.num_embeddings)

    def weights(self) -> Tensor:
        """Return the transposed table [E, V]."""
        return self.module.weight.detach().T

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return the table."""
        return {_key(self.name, "weight"): matrix.T}

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return the transposed table."""
        return named[_key(self.name, "weight")].T


@dataclass(frozen=True, eq=False)
class NormLayer:
    """Layer, batch (frozen statistics) and group normalisation: an elementwise scale and shift, [1, P]."""

    name: str
    module: nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm

    @property
    def shape(self) -> tuple[int, int]:
        """Return (1, P)."""
        return 1, sum(p.numel() for p in self.module.parameters(recurse=False))

    def capture(self, inputs: Tensor) -> Tensor:
        """Return the normalised input, before scale and shift."""
        m = self.module
        if isinstance(m, nn.LayerNorm):
            return F.layer_norm(inputs, m.normalized_shape, eps=m.eps)
        if isinstance(m, nn.GroupNorm):
            return F.group_norm(inputs, m.num_groups, eps=m.eps)
        if m.running_mean is None:
            raise ConfigError(
                f"{self.name} normalises by batch statistics even in evaluation, so an example's gradient depends on "
                "its neighbours. Use track_running_stats=True, or leave the module out with layers=."
            )
        return F.batch_norm(inputs, m.running_mean, m.running_var, eps=m.eps)

    def factor(self, captured: Tensor, delta: Tensor) -> Matrix:
        """Return Σ_t δ_t x̂_t and Σ_t δ_t."""
        parts = []
        if self.module.weight is not None:
            parts.append(self._per_parameter(delta * captured))
        if self.module.bias is not None:
            parts.append(self._per_parameter(delta))
        return Matrix(torch.cat(parts, 1)[:, None, :])

    def weights(self) -> Tensor:
        """Return scale and shift in one row."""
        return torch.cat([p.detach().reshape(1, -1) for p in self.module.parameters(recurse=False)], 1)

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Return scale and shift."""
        named = dict(self.module.named_parameters(recurse=False))
        pieces = matrix.reshape(-1).split([p.numel() for p in named.values()])
        return {_key(self.name, key): x.reshape(p.shape) for (key, p), x in zip(named.items(), pieces, strict=True)}

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return scale and shift in one row."""
        keys = [key for key, _ in self.module.named_parameters(recurse=False)]
        return torch.cat([named[_key(self.name, key)].reshape(1, -1) for key in keys], 1)

    def _per_parameter(self, values: Tensor) -> Tensor:
        """Sum over positions, leaving one number a parameter [B, C]."""
        if isinstance(self.module, nn.LayerNorm):
            width = self.module.weight.numel()
            return values.reshape(len(values), -1, width).sum(1)
        return values.reshape(len(values), values.shape[1], -1).sum(2)


_NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


@dataclass(frozen=True, eq=False)
class Coverage:
    """Which parameters are attributed.

    Args:
        layers: The attributed layers, in the model's order.
        attributed: Number of their parameters.
        trainable: Number of all trainable parameters.
        missed: Names of modules with trainable parameters that have no factored form, with their number.
    """

    layers: tuple[Layer, ...]
    attributed: int
    trainable: int
    missed: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """Share of the trainable parameters that are attributed."""
        return self.attributed / max(1, self.trainable)


def find_layers(model: nn.Module, choice: str | Sequence[str] | None = None) -> Coverage:
    """Return the layers of a model to attribute.

    Args:
        model: Any module. Frozen parameters are left out (unless all are frozen: then none is).
        choice: None for all layers, "last" for the last one, or one or more regular expressions that are
            matched against the whole module name.

    Raises:
        ConfigError: Nothing is left to attribute.
    """
    frozen_all = not any(p.requires_grad for p in model.parameters())
    found: list[Layer] = []
    missed: list[tuple[str, int]] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if (p.requires_grad or frozen_all) and id(p) not in seen]
        if not own:
            continue
        layer = _layer(name, module)
        if layer is not None and len(own) == len(list(module.parameters(recurse=False))):
            found.append(layer)
        else:
            missed.append((name or type(model).__name__, sum(p.numel() for p in own)))
        seen.update(id(p) for p in own)
    if choice == "last":
        found = found[-1:]
    elif choice is not None:
        patterns = [choice] if isinstance(choice, str) else list(choice)
        found = [layer for layer in found if any(re.fullmatch(pattern, layer.name) for pattern in patterns)]
    if not found:
        raise ConfigError(
            "layers must name at least one trainable Linear, Conv2d, Embedding or norm layer, got none. "
            f"Modules with parameters: {[name for name, m in model.named_modules() if list(m.parameters(False))][:8]}."
        )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad or frozen_all)
    attributed = sum(layer.shape[0] * layer.shape[1] for layer in found)
    return Coverage(layers=tuple(found), attributed=attributed, trainable=trainable, missed=tuple(missed))


def _layer(name: str, module: nn.Module) -> Layer | None:
    """Return the factored form of a module, or None if it has none."""
    if isinstance(module, nn.Linear):
        return LinearLayer(name, module)
    if isinstance(module, nn.Conv2d) and module.groups == 1 and not module.transposed:
        return Conv2dLayer(name, module)
    if isinstance(module, nn.Embedding) and not module.scale_grad_by_freq and module.max_norm is None:
        return EmbeddingLayer(name, module)
    return NormLayer(name, module) if isinstance(module, _NORMS) else None


def _with_one(a: Tensor, bias: bool) -> Tensor:
    """Append a 1 for the bias."""
    return F.pad(a, (0, 1), value=1.0) if bias else a


def _join(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return [weight, bias] as one matrix."""
    return weight if bias is None else torch.cat([weight, bias.detach()[:, None]], 1)


def _split(name: str, matrix: Tensor, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """Return [weight, bias] as tensors shaped like the parameters."""
    if bias is None:
        return {_key(name, "weight"): matrix.reshape(weight.shape)}
    return {_key(name, "weight"): matrix[:, :-1].reshape(weight.shape), _key(name, "bias"): matrix[:, -1]}


def _key(name: str, parameter: str) -> str:
    """Return a parameter's full name; the root module has none of its own."""
    return f"{name}.{parameter}" if name else parameter
