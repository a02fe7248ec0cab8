"""WEAT against its definition word by word, its derivative, and permutations counted one by one."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from word_samples import Vectors, random_vectors

import whence as wh
from whence.tasks.words.vocabulary import Vocabulary

X, Y, A, B = ["he", "man", "son"], ["she", "woman", "girl"], ["office", "pay", "work"], ["home", "child"]
WORDS = ["the", *Y, *A, "of", *X, *B, "a"]


def test_of(**changes: object) -> wh.WEAT:
    return wh.WEAT(**{"targets": (X, Y), "attributes": (A, B), **changes})  # type: ignore[arg-type]


test_of.__test__ = False  # type: ignore[attr-defined]


def cosine(words: Vectors, one: str, other: str) -> float:
    a, b = words.vector(one).tolist(), words.vector(other).tolist()
    return sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def by_hand(words: Vectors, x: list[str], y: list[str], a: list[str], b: list[str]) -> float:
    """The definition, one cosine at a time."""

    def s(word: str) -> float:
        return statistics.mean(cosine(words, word, c) for c in a) - statistics.mean(cosine(words, word, c) for c in b)

    one, two = [s(word) for word in x], [s(word) for word in y]
    return (statistics.mean(one) - statistics.mean(two)) / statistics.stdev(one + two)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 20), st.floats(0.01, 100))
def test_effect_is_the_definition_whatever_the_vectors_lengths(seed: int, width: int, factor: float) -> None:
    words = random_vectors(WORDS, width, seed)
    effect = test_of().effect(words)
    assert effect == pytest.approx(by_hand(words, X, Y, A, B), rel=1e-9, abs=1e-12)
    with torch.no_grad():
        words.model.inputs.weight[::2] *= factor
    assert test_of().effect(words) == pytest.approx(effect, rel=1e-9, abs=1e-12)
    assert test_of(targets=(Y, X)).effect(words) == pytest.approx(-effect, rel=1e-9, abs=1e-12)
    assert test_of(attributes=(B, A)).effect(words) == pytest.approx(-effect, rel=1e-9, abs=1e-12)
    assert abs(effect) < 2


def test_words_in_one_direction_have_the_largest_effect() -> None:
    words = random_vectors(WORDS, 3)
    with torch.no_grad():
        for group, vector in ((X, [1.0, 0, 0]), (A, [1.0, 0, 0]), (Y, [0.0, 1, 0]), (B, [0.0, 1, 0])):
            for word in group:
                words.vector(word).copy_(torch.tensor(vector))
    weat = test_of()
    assert weat.effect(words) == pytest.approx(2 * math.sqrt(5 / 6))  # sample deviation of three ones and three −1
    assert weat.p_value(words) == pytest.approx(1 / math.comb(6, 3))
    assert weat.p_value(words, two_sided=True) == pytest.approx(2 / math.comb(6, 3))
    assert test_of(targets=(Y, X)).p_value(words) == 1.0
    assert weat.associations(words)["word"].tolist() == [*X, *Y]


def test_derivative_is_that_of_differences_and_only_of_the_words_used() -> None:
    words, weat = random_vectors(WORDS, 4), test_of()
    table = words.model.inputs.weight
    gradient = torch.autograd.grad(weat(words.model), table)[0]
    used = [WORDS.index(word) for word in (*X, *Y, *A, *B)]
    assert torch.nonzero(gradient.abs().sum(1))[:, 0].tolist() == sorted(used)
    step = 1e-6
    for row, place in itertools.product(used, range(4)):
        values = []
        for sign in (step, -2 * step):
            with torch.no_grad():
                table[row, place] += sign
            values.append(weat.effect(words))
        with torch.no_grad():
            table[row, place] += step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(gradient[row, place]), abs=1e-7)


def test_it_is_a_measurement_of_the_model_alone() -> None:
    words, weat = random_vectors(WORDS), test_of()
    task = wh.Task(words.model, lambda model, batch: batch.inputs, measurement=weat)
    assert task.measure_model().item() == weat.effect(words) == weat.effect(words.model)
    assert task.unit == "standard deviations"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(2, 4), st.booleans())
def test_p_value_counts_every_partition(seed: int, first: int, second: int, two_sided: bool) -> None:
    x, y = [f"x{i}" for i in range(first)], [f"y{i}" for i in range(second)]
    words = random_vectors([*x, *y, *A, *B], 5, seed)
    weat = test_of(targets=(x, y))
    s = {row.word: row.association for row in weat.associations(words).itertuples()}
    assert list(s) == sorted(s, key=lambda word: -s[word])

    def difference(chosen: tuple[str, ...]) -> float:
        rest = [word for word in s if word not in chosen]
        value = statistics.mean(s[w] for w in chosen) - statistics.mean(s[w] for w in rest)
        return abs(value) if two_sided else value

    observed = difference(tuple(x))
    every = [difference(chosen) for chosen in itertools.combinations([*x, *y], first)]
    expected = sum(value >= observed - 1e-12 for value in every) / len(every)
    assert weat.p_value(words, two_sided=two_sided) == pytest.approx(expected)
    assert expected >= 1 / len(every)


def test_drawn_partitions_agree_with_all_of_them() -> None:
    x, y = [f"x{i}" for i in range(7)], [f"y{i}" for i in range(6)]
    words = random_vectors([*x, *y, *A, *B], 5, 3)
    weat = test_of(targets=(x, y))
    exact = weat.p_value(words)
    drawn = weat.p_value(words, permutations=1_500, seed=1)
    assert 0.02 < exact < 0.98
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 1_500))
    assert drawn == weat.p_value(words, permutations=1_500, seed=1) != weat.p_value(words, permutations=1_500, seed=2)
    assert weat.p_value(words, permutations=1_716) == exact, "all C(13, 7) = 1,716 partitions are counted"


def test_drawn_partitions_are_not_contiguous_and_equally_likely() -> None:
    """Under no difference at all, p-values of many tests are spread evenly over 0 … 1."""
    x, y = [f"x{i}" for i in range(10)], [f"y{i}" for i in range(10)]
    found = [
        test_of(targets=(x, y)).p_value(random_vectors([*x, *y, *A, *B], 5, seed), permutations=400, seed=seed)
        for seed in range(200)
    ]
    assert np.mean(found) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 200))
    assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 200))


def test_counts_and_missing_words() -> None:
    counts = np.arange(1, len(WORDS) + 1)
    vocabulary = Vocabulary(WORDS, counts)
    weat = test_of(targets=(["He", "man", "Greg"], ["she", "woman", "Amy"]), labels=("men", "women", "pay", "home"))
    frame = weat.counts(vocabulary)
    assert frame.columns.tolist() == ["list", "word", "count", "used"]
    assert frame["word"].tolist() == ["He", "man", "Greg", "she", "woman", "Amy", *A, *B]
    assert frame.loc[frame["word"] == "He", "count"].item() == counts[WORDS.index("he")], "in lower case"
    assert frame.loc[~frame["used"], "word"].tolist() == ["Greg", "Amy"]
    assert frame.loc[~frame["used"], "count"].tolist() == [0, 0]
    assert "1 of 3 in men (Greg); 1 of 3 in women (Amy)" in weat.missing(vocabulary)
    assert test_of().missing(vocabulary) == ""
    words = random_vectors(WORDS)
    assert weat.effect(words) == pytest.approx(by_hand(words, ["he", "man"], ["she", "woman"], A, B))
    assert test_of().counts(words.vocabulary)["count"].isna().all(), "vectors that came without counts"


def test_what_is_refused() -> None:
    words = random_vectors(WORDS)
    with pytest.raises(wh.DataError, match=r"list 'X' of WEAT must have at least 2 words .* got 1; not there: Bob"):
        test_of(targets=(["he", "Bob", "Tim"], Y)).effect(words)
    with pytest.raises(wh.DataError, match="at least 2 words"):
        test_of(targets=(["he", "He"], Y)).effect(words)
    for changes, message in (
        ({"targets": (X, [*Y, "He"])}, "targets must not share words"),
        ({"attributes": (A, [])}, "attributes must be two lists"),
        ({"attributes": ("office", "home")}, "attributes must be two lists"),
    ):
        with pytest.raises(wh.ConfigError, match=message):
            test_of(**changes)
    with pytest.raises(wh.ConfigError, match="permutations must be at least 1"):
        test_of().p_value(words, permutations=0)
    with torch.no_grad():
        words.model.inputs.weight.copy_(torch.ones_like(words.model.inputs.weight))
    with pytest.raises(wh.NumericalError, match="associations of WEAT must differ"):
        test_of().effect(words)


def test_from_a_file(tmp_path: Path) -> None:
    lists = {key: {"category": key.upper(), "examples": given}
             for key, given in zip(("targ1", "targ2", "attr1", "attr2"), (X, Y, A, B), strict=True)}  # fmt: skip
    path = tmp_path / "tests.json"
    path.write_text(json.dumps({"one": lists, "half": {"targ1": lists["targ1"]}, "flat": [1]}))
    weat = wh.WEAT.from_file(path, "one")
    assert weat.labels == ("TARG1", "TARG2", "ATTR1", "ATTR2")
    assert (weat.name, weat.lists) == ("one", tuple(map(tuple, (X, Y, A, B))))
    for name, error, message in (
        ("two", wh.ConfigError, r"test must be one of \['flat', 'half', 'one'\], got 'two'"),
        ("half", wh.DataError, "test 'half' must have targ1, targ2, attr1, attr2"),
        ("flat", wh.DataError, "test 'flat' must have"),
    ):
        with pytest.raises(error, match=message):
            wh.WEAT.from_file(path, name)
    path.write_text("{")
    with pytest.raises(wh.DataError, match="must be a JSON file"):
        wh.WEAT.from_file(path, "one")
    with pytest.raises(wh.DataError, match="must be a JSON file"):
        wh.WEAT.from_file(tmp_path / "none.json", "one")
