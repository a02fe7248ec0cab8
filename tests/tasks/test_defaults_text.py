"""The default for texts: features that round-trip, odd texts, small data, and learning something."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from whence.data import LabelledData, as_examples
from whence.errors import DataError, RunFormatError
from whence.tasks.defaults import default_for, restore
from whence.tasks.defaults.reduction import leading_directions
from whence.tasks.defaults.text import TextPreparation

SPAM = ("win a free prize now", "claim your cash prize today", "free entry: call now to win", "urgent! cash waiting")
HAM = ("see you at lunch tomorrow", "are we still meeting tonight", "i will be home late today", "thanks for the lift")


def texts(rows=120):
    generator = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma"]
    labels = generator.integers(0, 2, rows)
    pools = (HAM, SPAM)
    content = [f"{pools[c][generator.integers(4)]} {' '.join(generator.choice(words, 2))}" for c in labels]
    return labelled(content, labels)


def labelled(content, labels=None, classes=("ham", "spam")):
    labels = np.zeros(len(content), dtype=np.int64) if labels is None else labels
    ids = np.arange(len(content)).astype(str)
    return LabelledData(ids=ids, kind="text", content=list(content), labels=labels, classes=classes)


def test_a_stored_preparation_gives_the_same_features():
    data = texts()
    default = default_for(data)
    settings, tensors = default.preparation.state()
    preparation, network = restore(default.name, settings, tensors, default.network)
    features = default.preparation.transform(data)
    assert torch.equal(preparation.transform(data), features)
    assert network(features).shape == (len(data), 2)


def test_features_that_fell_out_of_the_fit_are_those_of_transform():
    data = texts()
    default = default_for(data)
    torch.testing.assert_close(default.inputs, default.preparation.transform(data), rtol=1e-5, atol=1e-5)
    assert default.counts.shape[0] == len(data)


def test_the_same_seed_gives_the_same_features():
    data = texts(1400)
    first, second = (default_for(data, seed=3).preparation.transform(data) for _ in range(2))
    assert torch.equal(first, second)


def test_features_do_not_depend_on_the_labels():
    data = texts()
    flipped = data.with_labels(1 - data.labels)
    assert torch.equal(default_for(data).preparation.transform(data), default_for(flipped).preparation.transform(data))


@pytest.mark.parametrize("odd", ["", "   ", "\x00", "ẞ☃" * 9, "?" * 50_000, "unseen-everywhere"])
def test_odd_texts_give_finite_features(odd):
    data = texts()
    preparation = default_for(labelled([*data.content, odd])).preparation
    assert torch.isfinite(preparation.transform(labelled([odd, *data.content[:2]]))).all()


def test_an_empty_text_is_the_zero_vector():
    preparation = default_for(texts()).preparation
    assert not preparation.transform(labelled([""])).any()


def test_texts_without_a_common_word_are_refused():
    with pytest.raises(DataError, match="share at least one word"):
        default_for(labelled(["", "", ""]))


def test_an_incomplete_state_is_refused():
    with pytest.raises(RunFormatError, match="complete"):
        TextPreparation.from_state({}, {})


@pytest.mark.parametrize(("rows", "classes"), [(6, 2), (40, 13)])
def test_few_rows_and_many_classes_train(rows, classes):
    content = [f"word{i % 5} common{i % 3} text" for i in range(rows)]
    names = tuple(f"c{i:02d}" for i in range(classes))
    data = labelled(content, np.arange(rows) % classes, names)
    default = default_for(data)
    inputs = default.preparation.transform(data)
    model = default.recipe.train(as_examples((inputs, torch.from_numpy(data.labels))), seed=0)
    assert model(inputs).shape == (rows, classes)
    assert torch.isfinite(model(inputs)).all()


def test_the_default_learns_and_seeds_reproduce():
    data = texts(240)
    default = default_for(data)
    inputs = default.preparation.transform(data)
    examples = as_examples((inputs, torch.from_numpy(data.labels)))
    first, second = (default.recipe.train(examples.select(np.arange(160)), seed=1)(inputs) for _ in range(2))
    assert torch.equal(first, second)
    assert (first[160:].argmax(1).numpy() == data.labels[160:]).mean() > 0.95


@pytest.mark.parametrize("shape", [(400, 300), (40, 300), (300, 40)])
def test_directions_are_those_of_the_dense_decomposition(shape):
    matrix = sp.random(*shape, 0.2, "csr", dtype=np.float64, random_state=0)
    matrix = (matrix @ sp.diags_array(0.9 ** np.arange(shape[1]))).tocsr().astype(np.float32)
    directions, values = leading_directions(matrix, 8)
    _, exact, right = np.linalg.svd(matrix.toarray().astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(values, exact[:8], rtol=2e-2)
    assert np.linalg.svd(right[:8] @ directions, compute_uv=False).min() > 0.95
    np.testing.assert_allclose(directions.T @ directions, np.eye(8), atol=1e-4)


def test_directions_stop_at_the_rank():
    matrix = sp.csr_matrix(np.ones((30, 20), dtype=np.float32))
    directions, values = leading_directions(matrix, 5)
    assert directions.shape == (20, 1)
    assert values.shape == (1,)
