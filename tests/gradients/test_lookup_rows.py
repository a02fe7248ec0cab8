"""Gradients of embeddings: equal rows of an example merged, and measurements that touch few rows kept sparse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence as wh
from whence.gradients import Lookup, Matrix, by_columns, chunk_size, find_layers
from whence.gradients.factors import lookup


@pytest.mark.parametrize(("batch", "positions", "width"), [(3, 1, 4), (4, 9, 5), (4, 17, 5), (2, 60, 7), (3, 40, 1000)])
def test_equal_rows_of_an_example_are_summed_at_the_first(batch: int, positions: int, width: int) -> None:
    generator = torch.Generator().manual_seed(positions)
    d = torch.randn(batch, positions, 3, generator=generator, dtype=torch.float64)
    index = torch.randint(0, width, (batch, positions), generator=generator)
    found = lookup(d, index, width)
    true = torch.zeros(batch, width, 3, dtype=torch.float64)
    for example in range(batch):
        true[example].index_add_(0, index[example], d[example])
    torch.testing.assert_close(found.matrix(), true.transpose(1, 2))
    for example in range(batch):
        first = {int(row): place for place, row in reversed(list(enumerate(index[example].tolist())))}
        assert found.active[example].nonzero()[:, 0].tolist() == sorted(first.values())


def test_gradients_of_few_columns_are_kept_by_column() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(2, 3, 40, generator=generator)
    assert isinstance(by_columns(whole), Matrix)
    few = torch.zeros(2, 3, 40)
    few[0, :, 7], few[1, :, [2, 30]] = 1.0, torch.ones(3, 2)
    sparse = by_columns(few)
    assert isinstance(sparse, Lookup) and sparse.index.shape == (2, 3)
    torch.testing.assert_close(sparse.matrix(), few)
    none = by_columns(torch.zeros(2, 3, 40))
    assert isinstance(none, Lookup) and none.index.shape == (2, 1) and not none.matrix().any()


def test_chunks_are_sized_by_long_examples_wherever_they_stand() -> None:
    texts = ["a b.", "a b a b a b a b. " * 9]
    corpus = wh.word_corpus(texts, unit="document", min_count=1, subsample=None)
    words = wh.train_words(corpus, width=64, epochs=1)
    assert words.corpus is not None
    tables, examples = find_layers(words.model).layers, words.corpus.examples
    whole = chunk_size(words.task(), tables, examples)
    assert whole == chunk_size(words.task(), tables, examples.select(np.array([1])))
    assert whole < chunk_size(words.task(), tables, examples.select(np.array([0])))
