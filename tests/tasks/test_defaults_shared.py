"""The embedded default for tables, and what the defaults share: state, seeds, odd columns, few and many classes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from whence.audit.members import fit_members, held_out_accuracy
from whence.data import LabelledData, ReadOptions, as_examples, read
from whence.errors import DataError, RunFormatError
from whence.tasks.defaults import default_for, restore
from whence.tasks.defaults.perceptron import perceptron, perceptron_config, perceptron_recipe
from whence.tasks.defaults.tabular import TabularPreparation, tabular_default

DATA = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture(scope="module")
def adult() -> LabelledData:
    return read(DATA / "adult_1000.csv.gz", ReadOptions()).rows(np.arange(300))


def table(content: pd.DataFrame, labels=None, classes: int = 2) -> LabelledData:
    labels = np.arange(len(content)) % classes if labels is None else labels
    names = tuple(str(c) for c in range(classes))
    return LabelledData(
        ids=np.arange(len(content)).astype(str), kind="tabular", content=content, labels=labels, classes=names
    )


def test_state_restores_the_same_transform(adult: LabelledData) -> None:
    default = default_for(adult, seed=0)
    settings, tensors = default.preparation.state()
    settings = json.loads(json.dumps(settings, allow_nan=False))
    preparation, network = restore(default.name, settings, tensors, json.loads(json.dumps(default.network)))
    x = default.preparation.transform(adult)
    assert torch.equal(preparation.transform(adult), x) and x.dtype == torch.float32 and torch.isfinite(x).all()
    assert network(x[:3]).shape == (3, 2)
    assert torch.equal(preparation.transform(adult.rows([7, 3])), x[[7, 3]])


def test_unseen_missing_and_infinite_values(adult: LabelledData) -> None:
    preparation = default_for(adult).preparation
    odd = adult.content.head(4).copy()
    for name in odd.columns:
        if odd[name].dtype.kind == "f":
            odd[name] = [np.nan, np.inf, -np.inf, 1e300]
        else:
            odd[name] = pd.Series([None, "never seen", "", "Private"], dtype=object)
    x = preparation.transform(table(odd))
    assert torch.isfinite(x).all() and x.abs().max() < 2000


def test_categories_have_one_indicator_each() -> None:
    column = pd.Series(["a", "a", "b", "b", "rare", None, "c", "c"], dtype=object)
    preparation = TabularPreparation.fit(pd.DataFrame({"x": column}))
    new = pd.DataFrame({"x": pd.Series(["c", "b", "a", "unseen", None, "rare"], dtype=object)})
    x = preparation.transform(table(new)).numpy()
    assert np.array_equal(x, np.eye(5)[[2, 1, 0, 3, 4, 3]])


def test_many_categories_share_one_indicator() -> None:
    column = pd.Series([f"city {i // 2}" for i in range(600)], dtype=object)
    assert (
        TabularPreparation.fit(pd.DataFrame({"x": column})).transform(table(pd.DataFrame({"x": column}))).shape[1]
        <= 102
    )


def test_constant_empty_and_skewed_numbers() -> None:
    frame = pd.DataFrame(
        {"constant": 3.0, "empty": np.nan, "skewed": np.exp(np.arange(40) / 2), "zeros": np.arange(40) % 3 * 1.0}
    )
    x = TabularPreparation.fit(frame).transform(table(frame))
    assert torch.isfinite(x).all() and x.abs().max() <= 6


def test_missing_columns_and_other_kinds_are_refused(adult: LabelledData) -> None:
    preparation = default_for(adult).preparation
    with pytest.raises(DataError, match="columns it was trained on"):
        preparation.transform(table(adult.content.iloc[:, 1:], adult.labels))
    text = LabelledData(ids=np.array(["0"]), kind="text", content=["a"], labels=np.array([0]), classes=("a", "b"))
    with pytest.raises(DataError, match="table"):
        preparation.transform(text)
    with pytest.raises(DataError, match="table"):
        tabular_default(text)
    turned = adult.content.copy()
    number = next(name for name in turned.columns if turned[name].dtype.kind == "f")
    turned[number] = "words"
    with pytest.raises(DataError, match="numbers"):
        preparation.transform(table(turned, adult.labels))


def test_damaged_settings_are_refused() -> None:
    for name, network in (("tabular-mlp", {"inputs": 3}), ("other", {})):
        with pytest.raises(RunFormatError):
            restore(name, {"numbers": [], "categories": []}, {}, network)
    with pytest.raises(RunFormatError):
        TabularPreparation.from_state({}, {})


def test_a_seed_gives_the_same_weights(adult: LabelledData) -> None:
    def train(seed: int) -> nn.Module:
        default = default_for(adult, seed=seed)
        recipe = perceptron_recipe(default.network, rows=100_000, epochs=2, decay=0.1)
        examples = as_examples((default.preparation.transform(adult), torch.from_numpy(adult.labels)))
        return recipe.train(examples, seed=seed)

    one, two, other = (torch.cat([p.flatten() for p in train(seed).parameters()]) for seed in (4, 4, 5))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("kind", ["text", "tabular"])
@pytest.mark.parametrize(("classes", "rows_each"), [(2, 2), (200, 2), (5, 1)])
def test_few_rows_and_many_classes(kind: str, classes: int, rows_each: int) -> None:
    labels = np.repeat(np.arange(classes), rows_each)
    if kind == "tabular":
        content = pd.DataFrame({"a": labels * 1.0, "b": [f"v{c}" for c in labels]})
        data = table(content, labels, classes)
    else:
        content = [f"text about topic{c} and more" for c in labels]
        names = tuple(str(c) for c in range(classes))
        ids = np.arange(len(labels)).astype(str)
        data = LabelledData(ids=ids, kind="text", content=content, labels=labels, classes=names)
    default = default_for(data)
    x = default.preparation.transform(data)
    assert torch.isfinite(x).all()
    examples = as_examples((x, torch.from_numpy(labels)), ids=data.ids)
    recipe = perceptron_recipe(default.network, rows=20_000, epochs=8, decay=0.0)
    fits = fit_members(examples, recipe, refit=recipe, counts=default.counts)
    assert fits.logits.shape == fits.refit_logits.shape == (len(labels), classes)
    assert np.isfinite(fits.logits).all() and all(np.isfinite(judge).all() for judge in fits.judges)
    accuracy = held_out_accuracy(examples, recipe)
    assert accuracy is None if len(labels) < 50 else 0 <= accuracy <= 1


def test_training_rows_alone_are_learned(adult: LabelledData) -> None:
    default = default_for(adult)
    x, targets = default.preparation.transform(adult), torch.from_numpy(adult.labels)
    recipe = perceptron_recipe(default.network, rows=100_000, epochs=2, decay=0.1)
    rows = np.arange(200)
    one = fit_members(as_examples((x, targets)), recipe, train_rows=rows)
    changed = targets.clone()
    changed[200:] = 1 - changed[200:]
    two = fit_members(as_examples((x, changed)), recipe, train_rows=rows)
    assert np.array_equal(one.logits, two.logits) and np.array_equal(one.refit_logits, two.refit_logits)


def test_perceptron_settings() -> None:
    config = perceptron_config(inputs=3, classes=2, hidden=(5, 4), input_dropout=0.1, dropout=0.2)
    shapes = [tuple(p.shape) for p in perceptron(config).parameters()]
    assert shapes == [(5, 3), (5,), (4, 5), (4,), (2, 4), (2,)]
    assert perceptron_recipe(config, rows=10, epochs=30, decay=0).epochs == 100
    assert perceptron_recipe(config, rows=10**6, epochs=30, decay=0, share=0.5).epochs == 15
    for broken in ({}, {**config, "hidden": None}, {**config, "dropout": "much"}):
        with pytest.raises(RunFormatError):
            perceptron(broken)
