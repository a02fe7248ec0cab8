"""An attack on one's own training set, from labelled data to a dict that a page shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from whence.audit.bench import Bring
from whence.audit.job import METHODS, train_rows_of
from whence.curvature import Exact
from whence.data import Examples, LabelledData, as_examples
from whence.errors import ConfigError, DataError
from whence.methods import Influence
from whence.report import attack_content
from whence.tasks import Recipe
from whence.tasks.defaults import default_for
from whence.tasks.defaults.image import ImagePreparation
from whence.uses.attack import Attack, AttackSettings, attack
from whence.uses.attack_head import split_head

__all__ = ["AttackRun", "attack_data"]

_EXACT = 4_000  # parameters of a last layer up to which its curvature is exact


@dataclass(frozen=True, kw_only=True)
class AttackRun:
    """How labelled data are attacked.

    Args:
        targets: Ids of the rows whose predictions are attacked; nothing is trained on them.
        layers: "last": the last layer is trained again at every step, exactly, on the frozen rest; "all": the whole
            model is, by its recipe.
        weight_decay: Of the last layer.
        method: Curvature for all layers.
        settings: Of the attack.
    """

    targets: tuple[str, ...]
    layers: Literal["last", "all"] = "last"
    weight_decay: float = 0.01
    method: str = "ekfac"
    settings: AttackSettings = field(default_factory=AttackSettings)

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError("targets must name at least one row, got none.")
        if self.layers not in ("last", "all"):
            raise ConfigError(f'layers must be "last" or "all", got {self.layers!r}.')
        if self.weight_decay <= 0:
            raise ConfigError(f"weight_decay must be positive, got {self.weight_decay}.")


@dataclass(frozen=True, eq=False)
class _Parts:
    """What is attacked: inputs that a box can be drawn around, what stands in front of the model, and the model."""

    inputs: Tensor
    front: nn.Module | None
    model: nn.Module | None
    recipe: Recipe | None
    name: str


def attack_data(
    data: LabelledData, wanted: AttackRun, *, bring: Bring | None = None, version: str = "",
    say: Callable[[str], None] = lambda what: None, on_step: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], Attack]:  # fmt: skip
    """Train a model, attack predictions through its training rows, and return what a page shows, and the attack.

    Args:
        data: Labelled rows; with a split, the train rows are trained on.
        wanted: Targets and settings.
        bring: Called with the data; returns the user's model. None for the embedded default, of images.
        version: Of the package.
        say: Called with every stage.
        on_step: As in `whence.attack`.

    Raises:
        ConfigError: The model cannot be attacked in this way.
        DataError: A target is unknown, or nothing is left to train on.
    """
    targets, rows = _rows(data, wanted.targets)
    say("preparing the model")
    parts = _parts(data.rows(rows), data, bring, wanted.settings.seed)
    examples = as_examples((parts.inputs, torch.from_numpy(data.labels)), ids=data.ids)
    train, asked = examples.select(rows), examples.select(targets)
    recipe, frozen, said = _trained(parts, train, wanted, len(data.classes), say)
    say("attacking")
    curvature = METHODS[wanted.method] if wanted.layers == "all" else _head_curvature(recipe)
    found = attack(
        recipe, train, asked, method=Influence(curvature=curvature), frozen=frozen, settings=wanted.settings,
        on_step=on_step,
    )  # fmt: skip
    lost = int((found.targets["margin_before"] <= 0).sum())
    if lost:
        said.append(f"{lost} of {len(targets)} targets were predicted otherwise than labelled before: none can flip.")
    names = tuple(map(str, data.content.columns)) if isinstance(data.content, pd.DataFrame) else ()
    page = {
        "format": 1,
        "whence": version,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {"source": data.source, "rows": len(data), "kind": data.kind},
        "model": {"name": parts.name},
        "said": said,
        **attack_content(found, data.classes, names),
    }
    return page, found


def _rows(data: LabelledData, targets: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of the targets and of the rows that are trained on."""
    positions = {str(name): place for place, name in enumerate(data.ids.tolist())}
    missing = [name for name in targets if name not in positions]
    if missing:
        raise DataError(f"target must be an id of the data, got {missing[0]!r}; ids look like {str(data.ids[0])!r}.")
    asked = np.array([positions[name] for name in dict.fromkeys(targets)])
    allowed = train_rows_of(data)
    rows = np.setdiff1d(np.arange(len(data)) if allowed is None else allowed, asked)
    if len(rows) < 2 or len(np.unique(data.labels[rows])) < 2:
        raise DataError(f"rows to train on must cover two classes, got {len(rows)} rows. Name fewer targets.")
    return asked, rows


class _Standardised(nn.Module):
    """Pixels in [0, 1] as the embedded network takes them."""

    def __init__(self, preparation: ImagePreparation) -> None:
        super().__init__()
        self.register_buffer("mean", preparation.mean.reshape(1, -1, 1, 1))
        self.register_buffer("scale", preparation.scale.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's inputs."""
        found: Tensor = (255 * x - self.mean) / self.scale  # type: ignore[operator]
        return found


def _parts(train: LabelledData, data: LabelledData, bring: Bring | None, seed: int) -> _Parts:
    """Return inputs, what stands in front, and the model or its recipe."""
    if bring is not None:
        own = bring(data)
        if not isinstance(own.inputs, Tensor) or not own.inputs.is_floating_point():
            raise ConfigError("inputs of your model must be one floating-point tensor to be attacked. Return it.")
        model = own.model if own.recipe is None else None
        return _Parts(own.inputs, None, model, own.recipe, own.name)
    if not isinstance(data.content, np.ndarray):
        raise ConfigError(
            f"the built-in model can be attacked through images only, got {data.kind} rows. "
            "Bring your own with --model FILE.py:FUNC."
        )
    default = default_for(train, seed=seed)
    preparation = default.preparation
    assert isinstance(preparation, ImagePreparation)
    if (preparation.height, preparation.width) != data.content.shape[1:3]:
        raise ConfigError(
            f"images must be 8 to 64 pixels a side for the built-in model, got {data.content.shape[1:3]}. "
            "Bring your own with --model FILE.py:FUNC."
        )
    pixels = torch.from_numpy(np.ascontiguousarray(data.content)).permute(0, 3, 1, 2).float() / 255
    return _Parts(pixels, _Standardised(preparation), None, default.recipe, default.name)


def _trained(
    parts: _Parts, train: Examples, wanted: AttackRun, classes: int, say: Callable[[str], None]
) -> tuple[Recipe, nn.Module | None, list[str]]:
    """Return how the attacked part is trained, what is frozen in front of it, and what was done in words."""
    if wanted.layers == "all":
        if parts.recipe is None:
            raise ConfigError("all layers can be attacked with a recipe only, got a trained model. Return a Recipe.")
        return parts.recipe, parts.front, ["All layers were trained again at every step, from the same seed."]
    model = parts.model
    if model is None:
        assert parts.recipe is not None
        say("training the model")
        inputs = train.batch(np.arange(len(train))).inputs
        seen = inputs if parts.front is None else parts.front(inputs)
        model = parts.recipe.train(as_examples((seen, train.targets), ids=train.ids), seed=wanted.settings.seed)
    some = train.batch(np.arange(min(2, len(train)))).inputs
    body, head = split_head(model, some if parts.front is None else parts.front(some))
    if head.out_features != classes:
        raise ConfigError(f"outputs of the model must be one a class ({classes}), got {head.out_features}.")
    recipe = Recipe(
        build=functools.partial(nn.Linear, head.in_features, head.out_features, bias=head.bias is not None),
        optimizer="lbfgs", weight_decay=wanted.weight_decay,
    )  # fmt: skip
    frozen = body if parts.front is None else nn.Sequential(parts.front, body)
    return recipe, frozen, [
        "The model was trained once on the original rows. Its last layer was then trained again at every step, "
        f"exactly, with a weight decay of {wanted.weight_decay:g}; the rest is frozen."
    ]  # fmt: skip


def _head_curvature(recipe: Recipe) -> Any:
    """Return the curvature for a last layer: exact where it is small enough."""
    assert recipe.build is not None
    size = sum(p.numel() for p in recipe.build().parameters())
    return Exact() if size <= _EXACT else METHODS["ekfac"]
