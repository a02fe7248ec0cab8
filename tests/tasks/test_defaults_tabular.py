"""The default for tables: features that round-trip, unseen and missing values, odd columns, small data."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from whence.data import LabelledData, as_examples
from whence.errors import DataError, RunFormatError
from whence.tasks.defaults import default_for, restore
from whence.tasks.defaults.tabular import TabularPreparation


def table(rows=200, seed=0):
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": generator.normal(40, 12, rows),
            "income": generator.lognormal(3, 1, rows) * (generator.random(rows) < 0.7),
            "job": generator.choice(np.array(["cook", "clerk", "nurse"], dtype=object), rows),
        }
    )


def labelled(content, labels=None, classes=("no", "yes")):
    labels = np.zeros(len(content), dtype=np.int64) if labels is None else labels
    ids = np.arange(len(content)).astype(str)
    return LabelledData(ids=ids, kind="tabular", content=content, labels=labels, classes=classes)


def test_a_stored_preparation_gives_the_same_features():
    data = labelled(table())
    default = default_for(data)
    settings, tensors = default.preparation.state()
    preparation, network = restore(default.name, json.loads(json.dumps(settings)), tensors, default.network)
    features = default.preparation.transform(data)
    assert torch.equal(preparation.transform(data), features)
    assert network(features).shape == (len(data), 2)


def test_numbers_are_standardised():
    features = default_for(labelled(table())).preparation.transform(labelled(table()))
    assert abs(float(features[:, 0].mean())) < 1e-5
    assert abs(float(features[:, 0].std()) - 1) < 0.05


def test_an_unseen_category_and_a_missing_value_differ_from_all_others():
    preparation = default_for(labelled(table())).preparation
    rows = table(5)
    rows["age"], rows["income"] = 40.0, 1.0
    rows["job"] = pd.Series(["cook", "clerk", "nurse", "pilot", None], dtype=object)
    assert len(torch.unique(preparation.transform(labelled(rows)), dim=0)) == 5


def test_missing_numbers_take_the_median_and_are_marked():
    content = table()
    content.loc[::4, "age"] = np.nan
    features = default_for(labelled(content)).preparation.transform(labelled(content))
    assert torch.isfinite(features).all()
    marks = features[:, 1]
    assert len(torch.unique(marks)) == 2
    assert (marks[::4] == marks[0]).all()


def test_a_value_missing_only_later_is_the_median():
    preparation = default_for(labelled(table())).preparation
    rows = table(2)
    rows.loc[0, "age"] = np.nan
    rows.loc[1, "age"] = table()["age"].median()
    features = preparation.transform(labelled(rows))
    assert features[0, 0] == pytest.approx(float(features[1, 0]))


@pytest.mark.parametrize(
    "column",
    [
        np.zeros(60),
        np.full(60, np.nan),
        np.r_[np.zeros(59), 1e30],
        np.arange(60) * 1e-30,
        np.array([f"id{i}" for i in range(60)], dtype=object),
        np.array([None] * 60, dtype=object),
    ],
    ids=["constant", "all missing", "huge", "tiny", "all different", "no category"],
)
def test_odd_columns_give_finite_features(column):
    data = labelled(pd.DataFrame({"odd": column, "age": np.arange(60.0)}))
    assert torch.isfinite(default_for(data).preparation.transform(data)).all()


def test_many_categories_take_a_bounded_number_of_inputs():
    names = np.array([f"c{i // 2}" for i in range(20_000)], dtype=object)
    preparation = TabularPreparation.fit(pd.DataFrame({"city": names}))
    features = preparation.transform(labelled(pd.DataFrame({"city": names[:10]})))
    assert features.shape[1] <= 110


def test_a_missing_column_is_refused():
    preparation = default_for(labelled(table())).preparation
    with pytest.raises(DataError, match="job"):
        preparation.transform(labelled(table().drop(columns="job")))


def test_an_incomplete_state_is_refused():
    with pytest.raises(RunFormatError, match="complete"):
        TabularPreparation.from_state({}, {})


@pytest.mark.parametrize(("rows", "classes"), [(6, 2), (60, 20)])
def test_few_rows_and_many_classes_train(rows, classes):
    names = tuple(f"c{i:02d}" for i in range(classes))
    data = labelled(table(rows), np.arange(rows) % classes, names)
    default = default_for(data)
    inputs = default.preparation.transform(data)
    outputs = default.recipe.train(as_examples((inputs, torch.from_numpy(data.labels))), seed=0)(inputs)
    assert outputs.shape == (rows, classes)
    assert torch.isfinite(outputs).all()


def test_the_default_learns_and_seeds_reproduce():
    content = table(400)
    labels = ((content["age"] > 40) ^ (content["job"] == "cook")).to_numpy().astype(np.int64)
    data = labelled(content, labels)
    default = default_for(data)
    inputs = default.preparation.transform(data)
    examples = as_examples((inputs, torch.from_numpy(labels))).select(np.arange(300))
    first, second = (default.recipe.train(examples, seed=1)(inputs) for _ in range(2))
    assert torch.equal(first, second)
    assert (first[300:].argmax(1).numpy() == labels[300:]).mean() > 0.8
