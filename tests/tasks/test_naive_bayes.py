"""The closed-form leave-one-out of naive Bayes against fitting sklearn's again without every row."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.naive_bayes import MultinomialNB

from whence.tasks.defaults.naive_bayes import naive_bayes_leave_one_out


def counts_of(rows: int = 18, words: int = 7, classes: int = 3, seed: int = 0):
    generator = np.random.default_rng(seed)
    counts = sp.csr_matrix(generator.poisson(0.8, (rows, words)) * generator.random((rows, words)))
    return counts, np.arange(rows) % classes


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
@pytest.mark.parametrize("train_rows", [None, np.arange(11)])
def test_equals_refitting_without_every_row(smoothing: float, train_rows) -> None:
    counts, labels = counts_of()
    found = naive_bayes_leave_one_out(counts, labels, 3, train_rows, smoothing)
    allowed = np.arange(18) if train_rows is None else train_rows
    for row in range(18):
        others = np.setdiff1d(allowed, [row])
        model = MultinomialNB(alpha=smoothing).fit(counts[others], labels[others])
        expected = model.predict_joint_log_proba(counts[[row]])[0] + np.log(len(others))  # log n_c, not log n_c / n
        assert np.allclose(found[row], expected, atol=1e-9)


def test_rows_outside_the_training_split_do_not_count() -> None:
    counts, labels = counts_of()
    kept = np.arange(12)
    one = naive_bayes_leave_one_out(counts, labels, 3, kept)
    changed = counts.tolil()
    changed[15] = 9.0
    two = naive_bayes_leave_one_out(changed.tocsr(), labels, 3, kept)
    assert np.allclose(np.delete(one, 15, 0), np.delete(two, 15, 0))


def test_an_empty_row_and_a_class_of_one_row_are_finite() -> None:
    counts = sp.csr_matrix(np.array([[1.0, 0, 0], [0, 0, 0], [0, 2, 1], [1, 1, 0]]))
    found = naive_bayes_leave_one_out(counts, np.array([0, 0, 1, 2]), 4)
    assert found.shape == (4, 4) and np.isfinite(found).all()
