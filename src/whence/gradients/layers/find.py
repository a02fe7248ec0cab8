"""Which parameters of a model are attributed, and how."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from whence.errors import ConfigError
from whence.gradients.layers.attention import attention
from whence.gradients.layers.base import Form, Piece, Site, Slot, Source
from whence.gradients.layers.bilinear import bilinear
from whence.gradients.layers.convolution import convolution
from whence.gradients.layers.linear import LinearSource, linear
from whence.gradients.layers.lookup import embedding
from whence.gradients.layers.norm import norm
from whence.gradients.layers.order import TimeMajor, time_major_modules
from whence.gradients.layers.recurrent import recurrent
from whence.gradients.layers.shared import Layer, layout

__all__ = ["Coverage", "find_layers"]

_COMPILED = "_orig_mod."
_LINEAR_LIKE = (nn.Linear, nn.Bilinear, _ConvNd)
_NEVER_HEADS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
_NAMED = 8
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


@dataclass(frozen=True, eq=False)
class Coverage:
    """Which parameters are attributed.

    Args:
        layers: The attributed layers, in the model's order.
        attributed: Number of their parameters.
        trainable: Number of all trainable parameters.
        missed: Names of modules with trainable parameters that cannot be attributed, with their number.
    """

    layers: tuple[Layer, ...]
    attributed: int
    trainable: int
    missed: tuple[tuple[str, int], ...]

    def __repr__(self) -> str:
        """Return the counts."""
        return f"Coverage({self.counted})"

    @property
    def counted(self) -> str:
        """The counts as text."""
        number = len(self.layers)
        return f"{self.attributed:,} of {self.trainable:,} parameters in {number:,} layer{'' if number == 1 else 's'}"

    @property
    def share(self) -> float:
        """Share of the trainable parameters that are attributed."""
        return self.attributed / max(1, self.trainable)

    @property
    def fallback(self) -> tuple[str, ...]:
        """Names of the layers without a factored form, whose gradients cost another pass."""
        return tuple(layer.name for layer in self.layers if not layer.uses)

    def describe(self) -> str:
        """Return one line: the share that is attributed, and what cannot be with its share, largest first."""
        line = f"{self.attributed:,} of {self.trainable:,} trainable parameters attributed ({self.share:.1%})"
        largest = sorted(self.missed, key=lambda entry: -entry[1])
        parts = [f"{name!r} ({count / max(1, self.trainable):.1%})" for name, count in largest[:_NAMED]]
        more = sum(count for _, count in largest[_NAMED:])
        if more:
            parts.append(f"{len(largest) - _NAMED} more ({more / max(1, self.trainable):.1%})")
        return f"{line}; cannot be attributed: {', '.join(parts)}" if parts else line


def find_layers(model: nn.Module, choice: str | Sequence[str] | None = None) -> Coverage:
    """Return the layers of a model to attribute.

    Every trainable parameter belongs to one layer, of the module that holds it or, where several modules share it, of
    the first of them. Kinds of module without a factored form are attributed by ``torch.func``.

    Args:
        model: Any module. Frozen parameters are left out (unless all are frozen: then none is).
        choice: None for all layers, "last" for the head (the linear map or convolution that the model registers
            last, whatever it shares its weight with), or one or more regular expressions that are matched against
            the whole layer name.

    Raises:
        ConfigError: Nothing is left to attribute, "last" is ambiguous, or the model is wrapped for several devices.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 2))
        >>> [layer.name for layer in find_layers(model).layers]
        ['0', '1', '2']
        >>> find_layers(model, "last").describe()
        '8 of 24 trainable parameters attributed (33.3%)'
    """
    _check_wrappers(model)
    frozen_all = not any(p.requires_grad for p in model.parameters())
    canonical = {id(p): name for name, p in model.named_parameters() if p.requires_grad or frozen_all}
    uses: list[tuple[Source | None, Slot]] = []
    missed: list[tuple[str, int]] = []
    counted: set[str] = set()
    transposed = time_major_modules(model)
    for site in _sites(model, canonical):
        if _refused(site.module, site):
            new = {full: site.module._parameters[key] for key, full in site.names.items() if full not in counted}
            missed.append((site.name or type(model).__name__, sum(p.numel() for p in new.values() if p is not None)))
        else:
            uses.extend(_uses(site, _inner(site, canonical), transposed))
        counted.update(site.names.values())
    layers = _grouped(uses)
    found = _head(layers, uses) if choice == "last" and layers else _chosen(layers, choice, missed)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad or frozen_all)
    attributed = sum(layer.shape[0] * layer.shape[1] for layer in found)
    return Coverage(layers=tuple(found), attributed=attributed, trainable=trainable, missed=tuple(missed))


def _sites(model: nn.Module, canonical: dict[int, str]) -> Iterator[Site]:
    """Yield every module with attributable parameters; names as they are without compilation."""
    claimed: set[int] = set()
    for name, module in model.named_modules():
        names = {key: canonical[id(p)] for key, p in module._parameters.items() if id(p) in canonical}
        if names and id(module) not in claimed:
            yield Site(_plain(name), module, names)
        if isinstance(module, nn.MultiheadAttention) and _ordinary(module):
            claimed.add(id(module.out_proj))


def _plain(name: str) -> str:
    """Return a module's name without what ``torch.compile`` puts into it."""
    return (name + ".").replace(_COMPILED, "").removesuffix(".")


def _inner(site: Site, canonical: dict[int, str]) -> Site:
    """Return the output projection of an attention module, or the module itself."""
    if not isinstance(site.module, nn.MultiheadAttention):
        return site
    inner = site.module.out_proj
    names = {key: canonical[id(p)] for key, p in inner._parameters.items() if id(p) in canonical}
    return Site(site.below("out_proj"), inner, names)


def _refused(module: nn.Module, site: Site) -> bool:
    """Whether gradients of a module's parameters have no meaning here, or taking them would change the module."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and (
        module.max_norm is not None or module.scale_grad_by_freq
    ):
        return True
    lazy = nn.parameter.UninitializedParameter
    own = [module._parameters[key] for key in site.names]
    return any(p is None or isinstance(p, lazy) or not p.is_floating_point() for p in own)


def _ordinary(module: nn.Module) -> bool:
    """Whether a module of one of torch's classes still has its class's forward, and no parameter is computed."""
    if hasattr(module, "parametrizations") or {"weight_g", "weight_orig"} & set(module._parameters):
        return False
    modules = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules")]
    known = modules[0] if modules[0] is not nn.Module else type(module)  # a user's own class is looked at by itself
    own, original = (getattr(kind, "forward", None) for kind in (type(module), known))
    return own is original and "forward" not in module.__dict__


def _uses(site: Site, inner: Site, transposed: set[int]) -> Iterator[tuple[Source | None, Slot]]:
    """Yield a module's slots with the source that records them, then the parameters that no source knows."""
    source = _source(site, inner) if _ordinary(site.module) else None
    known: set[str] = set()
    if source is not None:
        if id(site.module) in transposed:
            source = TimeMajor(source.name, source.module, source.slots, source)
        for slot in source.slots:
            known.update(piece.name for piece in slot.pieces)
            yield source, slot
    form: Form = "row"
    rest = tuple(Piece(full, site.module, key, form) for key, full in site.names.items() if full not in known)
    if rest:
        yield None, Slot(site.name, rest)


def _source(site: Site, inner: Site) -> Source | None:
    """Return what records a module's calls, or None if its kind is not known."""
    found: Source | None = attention(site, inner)
    for kind in (linear, convolution, embedding, bilinear, recurrent, norm):
        found = found or kind(site)
    return found if found is not None and found.slots else None


def _grouped(uses: list[tuple[Source | None, Slot]]) -> list[Layer]:
    """Return one layer for all slots that share a parameter; by ``torch.func`` if one of them has no source."""
    groups: list[list[tuple[Source | None, Slot]]] = []
    for use in uses:
        names = {piece.name for piece in use[1].pieces}
        meets = [g for g in groups if any(piece.name in names for _, slot in g for piece in slot.pieces)]
        if not meets:
            groups.append([use])
            continue
        for other in meets[1:]:
            meets[0].extend(other)
            groups.remove(other)
        meets[0].append(use)
    layers = []
    taken: set[str] = set()
    for group in groups:
        name = _free(group[0][1].name, taken)
        taken.add(name)
        known = [(source, slot) for source, slot in group if source is not None]
        layer = layout(name, known) if len(known) == len(group) else _row(name, [slot for _, slot in group])
        layers.append(layer)
    return layers


def _free(name: str, taken: set[str]) -> str:
    """Return a name that no other layer has (a module may hold a known matrix and parameters of its own)."""
    while name in taken:
        name += ".rest" if name else "rest"
    return name


def _row(name: str, slots: list[Slot]) -> Layer:
    """Return the layer of parameters whose gradients are taken by ``torch.func``."""
    pieces = {piece.name: replace(piece, form="row") for slot in slots for piece in slot.pieces}
    return Layer(name, Slot(name, tuple(pieces.values())), ())


def _chosen(layers: list[Layer], choice: str | Sequence[str] | None, missed: list[tuple[str, int]]) -> list[Layer]:
    """Return the layers that a choice names."""
    if choice is not None:
        patterns = [choice] if isinstance(choice, str) else list(choice)
        names = [layer.name for layer in layers]
        for pattern in patterns:
            if not any(_matches(pattern, name) for name in names):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:8]
                raise ConfigError(
                    f"layers must be regular expressions of whole names of attributable layers, got {pattern!r} "
                    f"which matches none. Did you mean one of {near}?"
                )
        layers = [layer for layer in layers if any(_matches(pattern, layer.name) for pattern in patterns)]
    if not layers:
        raise ConfigError(
            "layers must name at least one trainable layer that can be attributed, got none. "
            f"Modules that cannot: {[name for name, _ in missed][:8]}."
        )
    return layers


def _head(layers: list[Layer], uses: list[tuple[Source | None, Slot]]) -> list[Layer]:
    """Return the layer of the linear-like module that is registered last.

    Raises:
        ConfigError: There is none, or another kind of module that may be the head comes after it.
    """
    if len(layers) == 1:
        return layers
    slots = [slot for _, slot in uses]
    linear_like = [number for number, use in enumerate(uses) if _is_linear_like(*use)]
    found: list[Layer] = []
    rivals = slots
    if linear_like:
        last = slots[linear_like[-1]].pieces[0].owner
        own = {piece.name for slot in slots for piece in slot.pieces if piece.owner is last}
        found = [layer for layer in layers if own & {piece.name for piece in layer.slot.pieces}]
        held = {piece.name for layer in found for piece in layer.slot.pieces}
        rivals = [slot for slot in slots[linear_like[-1] + 1 :] if _may_be_head(slot, held)]
    if found and not rivals:
        return found
    names = dict.fromkeys([*(layer.name for layer in found), *(slot.name for slot in rivals)])
    raise ConfigError(
        'layers="last" must find one head, the linear map or convolution that is registered last, got '
        f"{list(names)[:4]}. Name the layer with a regular expression."
    )


def _is_linear_like(source: Source | None, slot: Slot) -> bool:
    return isinstance(source, LinearSource) or isinstance(slot.pieces[0].owner, _LINEAR_LIKE)


def _may_be_head(slot: Slot, held: set[str]) -> bool:
    """Whether parameters outside a layer hold a matrix that is neither a table nor a scale."""
    if any(isinstance(piece.owner, _NEVER_HEADS) for piece in slot.pieces):
        return False
    return any(piece.name not in held and piece.parameter.ndim > 1 for piece in slot.pieces)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ConfigError(
            f"layers must be regular expressions, got {pattern!r} ({error}). Escape it with re.escape."
        ) from None


def _check_wrappers(model: nn.Module) -> None:
    """Raise if the model is wrapped in something that hooks cannot look into."""
    for name, module in model.named_modules():
        if type(module).__name__ in _WRAPPERS:
            raise ConfigError(
                f"model must run on one device, got {type(module).__name__}{f' at {name!r}' if name else ''}. "
                "Pass the module inside, model.module."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(
                f"model must be made of ordinary modules, got TorchScript{f' at {name!r}' if name else ''}. "
                "Pass the model that was scripted or traced."
            )
