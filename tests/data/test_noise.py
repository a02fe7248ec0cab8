from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whence.data import other_class_noise, pair_noise, uniform_noise
from whence.errors import ConfigError

LABELS = np.arange(300) % 3


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_other_class_noise_changes_exactly_the_rounded_share(labels: list[int], rate: float, seed: int) -> None:
    noise = other_class_noise(labels, rate, 5, seed)
    assert noise.changed.sum() == int(np.floor(rate * len(labels) + 0.5))
    assert ((noise.labels != labels) == noise.changed).all()
    assert noise.labels.min() >= 0 and noise.labels.max() < 5
    again = other_class_noise(labels, rate, 5, seed)
    assert (again.labels == noise.labels).all()


def test_a_count_is_a_count_and_the_input_stays() -> None:
    before = LABELS.copy()
    assert other_class_noise(LABELS, 7, 3, 0).changed.sum() == 7
    assert other_class_noise(LABELS, 1, 3, 0).changed.sum() == 1
    assert other_class_noise(LABELS, 1.0, 3, 0).changed.all()
    assert (before == LABELS).all()


def test_other_classes_are_equally_likely() -> None:
    labels = np.zeros(30_000, dtype=np.int64)
    counts = np.bincount(other_class_noise(labels, 1.0, 4, 0).labels, minlength=4)
    assert counts[0] == 0
    assert np.abs(counts[1:] / 30_000 - 1 / 3).max() < 0.01


def test_uniform_noise_keeps_one_in_c_by_chance() -> None:
    labels = np.arange(30_000) % 3
    noise = uniform_noise(labels, 0.3, 3, 1)
    assert abs(noise.changed.sum() / 9_000 - 2 / 3) < 0.02
    assert ((noise.labels != labels) == noise.changed).all()


def test_seeds_differ() -> None:
    assert (other_class_noise(LABELS, 0.2, 3, 0).labels != other_class_noise(LABELS, 0.2, 3, 1).labels).any()


def test_pair_noise_moves_one_class_only() -> None:
    noise = pair_noise(LABELS, 0.25, 2, 0, 0)
    assert noise.changed.sum() == 25
    assert (LABELS[noise.changed] == 2).all() and (noise.labels[noise.changed] == 0).all()
    assert pair_noise(LABELS, 40, 1, 7, 0).labels.max() == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: other_class_noise(LABELS, 1.5, 3, 0), r"rate must lie between 0 and 1, got 1.5"),
        (lambda: other_class_noise(LABELS, float("nan"), 3, 0), r"rate must lie between 0 and 1"),
        (lambda: other_class_noise(LABELS, 301, 3, 0), r"at most the 300 rows there are, got 301"),
        (lambda: other_class_noise(LABELS, "a", 3, 0), r"rate must be a share"),  # type: ignore[arg-type]
        (lambda: other_class_noise(LABELS, 0.1, 1, 0), r"classes must be at least 2, got 1"),
        (lambda: other_class_noise(LABELS, 0.1, 2, 0), r"labels must lie in 0 … 1, got 0 … 2"),
        (lambda: uniform_noise(LABELS * 1.0, 0.1, 3, 0), r"labels must be one-dimensional integers"),
        (lambda: uniform_noise(LABELS, 0.1, 3, -1), r"seed must be an integer from 0 on, got -1"),
        (lambda: pair_noise(LABELS, 0.1, 1, 1, 0), r"two different classes, got 1 and 1"),
        (lambda: pair_noise(LABELS, 0.1, 9, 1, 0), r"source must be a class that occurs in labels, got 9"),
    ],
)
def test_bad_arguments(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()  # type: ignore[operator]
