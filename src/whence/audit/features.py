"""Which features of a training row matter for a prediction: its columns, its words, its pixels."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from whence.data import Examples, LabelledData
from whence.errors import ConfigError
from whence.methods import InfluenceAttribution
from whence.report import content_of

__all__ = ["Transform", "feature_effects"]

Transform = Callable[[LabelledData], Any]
_WORDS = 200


def feature_effects(
    data: LabelledData, attribution: InfluenceAttribution, transform: Transform | None, query: Examples, row: int,
    k: int,
) -> dict[str, Any]:  # fmt: skip
    """Return what of a training row matters for a query.

    The effect of a column is the predicted rise of the query's loss if the row had the column's typical value (median
    or most frequent), that of a word if the word were missing, and the model were trained again: positive = the
    feature helps. Of an image there is a map of all pixels.

    Args:
        data: The audited rows.
        attribution: Fitted to them, with its training examples.
        transform: Rows to model inputs; None where that is not known: then columns are those of the inputs.
        query: The query with the label whose loss is measured.
        row: Position of the training row in the data.
        k: So many features.

    Returns:
        ``features``, a list of ``name, value, effect``, strongest first; or ``map``, an image.

    Raises:
        ConfigError: The features of such a model are not known.
    """
    id_ = attribution.ids[np.flatnonzero(attribution.ids.astype(str) == str(data.ids[row]))[0]]
    if isinstance(data.content, np.ndarray):
        maps = attribution.perturbation([id_], query)
        return {"map": _map_of(data, maps.values[0, 0])}
    altered = _without(data, row) if transform is not None else _without_columns(data, attribution, id_)
    if not altered.names:
        return {"features": []}
    inputs = altered.inputs if transform is None else transform(altered.inputs)
    labels = torch.from_numpy(np.repeat(data.labels[row], len(altered.names)))
    scores = attribution.replacement_scores([id_] * len(altered.names), (inputs, labels), query)
    effects = scores.values[0].double().cpu()
    order = effects.abs().argsort(descending=True, stable=True)[:k].tolist()
    kept = [i for i in order if effects[i]]
    return {
        "features": [
            {"name": altered.names[i], "value": altered.values[i], "effect": float(effects[i])} for i in kept
        ]
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Altered:
    """Names and values of a row's features, and the row without each of them: as rows, or as model inputs."""

    names: list[str]
    values: list[str]
    inputs: Any


def _without(data: LabelledData, row: int) -> _Altered:
    """Return a row without each of its columns or words."""
    if isinstance(data.content, pd.DataFrame):
        names, values, content = _plain_columns(data.content, row)
    else:
        assert isinstance(data.content, list)
        text = re.findall(r"\S+", data.content[row])
        names = list(dict.fromkeys(text))[:_WORDS]
        values, content = [""] * len(names), [" ".join(w for w in text if w != word) for word in names]
    if not names:
        return _Altered([], [], None)
    rows = LabelledData(
        ids=np.arange(len(names)).astype(str), kind=data.kind, content=content,
        labels=np.repeat(data.labels[row], len(names)), classes=data.classes,
    )  # fmt: skip
    return _Altered(names, values, rows)


def _plain_columns(frame: pd.DataFrame, row: int) -> tuple[list[str], list[str], Any]:
    """Return columns that are not typical in a row, their values, and copies of the row with a typical one each."""
    names, values, copies = [], [], []
    for name in frame.columns:
        column, own = frame[name], frame[name].iloc[row]
        if pd.api.types.is_numeric_dtype(column):
            usual: Any = column.median()
        else:
            counted = column.dropna().value_counts()
            usual = counted.index[0] if len(counted) else None
        if usual is None or pd.isna(usual) or own == usual:
            continue
        copy = frame.iloc[[row]].copy()
        copy[name] = pd.Series([usual], index=copy.index, dtype=column.dtype)
        names.append(str(name))
        values.append("missing" if pd.isna(own) else f"{own:.6g}" if isinstance(own, float) else str(own))
        copies.append(copy)
    return names, values, pd.concat(copies, ignore_index=True) if copies else frame.iloc[:0]


def _without_columns(data: LabelledData, attribution: InfluenceAttribution, id_: Any) -> _Altered:
    """Return the inputs of a row without each of its columns, for a model whose inputs are the table's columns."""
    if not isinstance(data.content, pd.DataFrame):
        raise ConfigError("--features of texts needs the built-in model, got your own. Leave it out.")
    examples = attribution.examples
    every = examples.batch(np.arange(len(examples))).inputs
    names = [str(name) for name in data.content.columns]
    if not isinstance(every, Tensor) or every.shape[1:] != (len(names),):
        raise ConfigError(
            f"--features needs inputs [N, {len(names)}], one a column, got "
            f"{tuple(every.shape) if isinstance(every, Tensor) else type(every).__name__}. Leave it out."
        )
    own, usual = every[int(examples.rows_of([id_])[0])], every.median(0).values
    changed = torch.nonzero(own != usual)[:, 0].tolist()
    inputs = own.repeat(len(changed), 1)
    for place, column in enumerate(changed):
        inputs[place, column] = usual[column]
    return _Altered([names[i] for i in changed], [f"{float(own[i]):.6g}" for i in changed], inputs)


def _map_of(data: LabelledData, values: Tensor) -> dict[str, Any]:
    """Return a map [C, H, W] as an image: red raises the query's loss where it is brighter, blue lowers it."""
    if values.ndim != 3:
        raise ConfigError(f"--features of images needs inputs [N, C, H, W], got {tuple(values.shape)} a row.")
    strength = values.double().sum(0).cpu()
    strength = strength / strength.abs().max().clamp(min=1e-300)
    white = torch.ones_like(strength)
    red, blue = white - strength.clamp(max=0).abs(), white - strength.clamp(min=0)
    green = white - strength.abs()
    pixels = (torch.stack([red, green, blue], -1) * 255).round().numpy().astype(np.uint8)[None]
    image = LabelledData(ids=np.array(["map"]), kind="image", content=pixels, labels=np.array([0]), classes=("",))
    return dict(content_of(image, 0))
