from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whence.data import from_arrays, from_frame
from whence.errors import ConfigError, DataError
from whence.uses.duplicates import Duplicates, find_duplicates
from whence.uses.similar import SimilarTexts, SimilarVectors, leaders, normalised

SENTENCE = "Congratulations! You have won a prize of 1000 pounds, call 0900 1234 now to claim it"


def of_texts(texts: list[str], labels: list[Any] | None = None, **more: Any) -> Duplicates:
    return find_duplicates(
        from_arrays(texts, labels or ["u", "v"] * (len(texts) // 2) + ["u"] * (len(texts) % 2)), **more
    )


def test_exact_near_and_alone() -> None:
    texts = [SENTENCE, "see you at noon", SENTENCE, SENTENCE.replace("1234", "1239"), "something else entirely"]
    found = of_texts(texts, ["s", "h", "s", "h", "h"])
    assert found.group.tolist() == [0, -1, 0, 0, -1]
    assert found.kind.tolist() == ["exact", "", "exact", "near", ""]
    assert found.duplicate_of.tolist() == [None, None, "0", "0", None]
    assert found.conflict.tolist() == [True, False, True, True, False]
    assert found.content.tolist() == [0, 1, 0, 3, 4]
    assert (found.exact_rows, found.near_rows, found.conflicting_rows) == (1, 1, 3)
    assert [group.tolist() for group in found.groups()] == [[0, 2, 3]]
    frame = found.to_frame()
    assert list(frame.columns) == ["id", "group", "kind", "duplicate_of", "conflict"] and len(frame) == len(found) == 5


def test_same_words_are_near_and_equal_labels_do_not_conflict() -> None:
    found = of_texts(["You WON a  prize!!", "you won a prize", "nothing at all here"], ["s", "s", "h"])
    assert found.kind.tolist() == ["near", "near", ""] and not found.conflict.any()


def test_a_copy_of_a_near_copy_names_the_first_equal_row() -> None:
    other = SENTENCE.replace("1234", "1239")
    found = of_texts([SENTENCE, other, other])
    assert found.duplicate_of.tolist() == [None, "0", "1"]
    assert (found.exact_rows, found.near_rows) == (1, 1)


def test_blank_texts_are_nobodys_copies() -> None:
    found = of_texts(["", "", "  ", "word"])
    assert found.group.tolist() == [-1] * 4 and found.exact_rows == 0


def test_similarity_one_means_exact_only() -> None:
    texts = ["You WON a  prize!!", "you won a prize", "you won a prize"]
    found = of_texts(texts, similarity=1.0)
    assert found.group.tolist() == [-1, 0, 0] and found.similarity == 1.0


def test_groups_do_not_grow_by_chains() -> None:
    words = [f"word{i:02d}" for i in range(40)]
    texts = [" ".join(words[shift : shift + 30]) for shift in (0, 2, 4, 6)]
    found = of_texts(texts, similarity=0.8)
    assert found.group.tolist() == [0, 0, 1, 1]


def jaccard(first: str, second: str) -> float:
    sets = []
    for text in (first, second):
        padded = f" {' '.join(text.casefold().split())} ".ljust(4)
        sets.append({padded[i : i + 4] for i in range(len(padded) - 3)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text("ab c", min_size=4, max_size=24).filter(lambda text: len(text.strip()) > 1), min_size=2, max_size=12
    ),
    st.sampled_from([0.5, 0.7, 0.8, 0.9, 1.0]),
)
def test_pairs_of_texts_are_those_of_the_definition(texts: list[str], similarity: float) -> None:
    everyone = np.arange(len(texts))
    left, right = SimilarTexts(texts, similarity).pairs(everyone, everyone)
    found = {(i, j) for i, j in zip(left.tolist(), right.tolist(), strict=True) if i != j}
    expected = {
        (int(i), int(j))
        for i in everyone
        for j in everyone
        if i != j and jaccard(texts[i], texts[j]) >= similarity - 1e-9
    }
    assert found == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(2, 30), st.sampled_from([0.5, 0.9, 0.99]), st.integers(0, 10**6))
@example(30, 2, 0.99, 1)
def test_pairs_of_vectors_are_those_of_the_definition(n: int, d: int, similarity: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors = np.repeat(generator.normal(size=(n, d)), 2, axis=0) + 0.2 * generator.normal(size=(2 * n, d))
    vectors[0] = 0.0
    norms = np.linalg.norm(vectors, axis=1)
    cosine = vectors @ vectors.T / np.outer(norms, np.where(norms > 0, norms, 1) + 1e-30).clip(1e-30)
    sure, possible = (pairs_of(np.triu(cosine >= similarity + margin, 1)) for margin in (1e-6, -1e-6))
    similar = SimilarVectors(vectors, similarity)
    found = similar.all_pairs()
    assert found is not None
    assert sure <= set(zip(*map(np.ndarray.tolist, found), strict=True)) <= possible
    everyone = np.arange(2 * n)
    left, right = similar.pairs(everyone, everyone)
    upper = left < right
    assert sure <= set(zip(left[upper].tolist(), right[upper].tolist(), strict=True)) <= possible


def pairs_of(holds: np.ndarray) -> set[tuple[int, int]]:
    first, second = np.nonzero(holds)
    return set(zip(first.tolist(), second.tolist(), strict=True))


def test_block_by_block_gives_the_groups_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    vectors = np.repeat(generator.normal(size=(700, 20)), 3, axis=0) + 0.05 * generator.normal(size=(2100, 20))
    vectors = vectors[generator.permutation(len(vectors))]
    similar = SimilarVectors(vectors, 0.99)
    whole = leaders(similar)
    monkeypatch.setattr("whence.uses.similar.BUDGET_CANDIDATES", 0)
    assert similar.all_pairs() is None
    np.testing.assert_array_equal(leaders(similar), whole)
    assert (whole <= np.arange(2100)).all() and len(np.unique(whole)) >= 700


def test_thousands_of_equal_templates_stay_quick_and_say_if_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{SENTENCE} reference {i:05d} thank you for reading all of it" for i in range(3000)]
    found = of_texts(texts)
    assert (found.group == 0).all() and found.near_rows == 2999
    monkeypatch.setattr("whence.uses.similar.BUDGET_PAIRS", 1000)
    assert of_texts(texts).notes == ("some near duplicates of very common texts may be missing",)


def test_images() -> None:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    x[3] = x[1]
    x[4] = np.clip(x[2].astype(int) + generator.integers(-3, 4, (28, 28)), 0, 255)
    x[5] = 0
    found = find_duplicates(from_arrays(x, [0, 1, 0, 0, 0, 1]))
    assert found.kind.tolist() == ["", "exact", "near", "exact", "near", ""]
    assert found.conflict.tolist() == [False, True, False, True, False, False]
    assert found.duplicate_of.tolist() == [None, None, None, "1", "2", None]


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (4, 17, 40, 3), (4, 5, 200)])
def test_images_of_any_size(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    x[3] = x[0]
    assert find_duplicates(from_arrays(x, [0, 1, 0, 1])).duplicate_of[3] == "0"


def test_tables() -> None:
    frame = pd.DataFrame(
        {
            "x": [0.1, 0.1 + 1e-9, 0.1, np.nan, np.nan, 0.2],
            "z": [0.0, 1234.2, 1234.24, 5.0, 5.0, 7.0],
            "c": ["u", "u", "U ", None, None, "u"],
            "label": list("ababab"),
        }
    )
    frame.loc[0, "z"] = 1234.2
    found = find_duplicates(from_frame(frame))
    assert found.kind.tolist() == ["near", "near", "near", "exact", "exact", ""]
    assert found.duplicate_of.tolist() == [None, "0", "0", None, "3", None]
    exact = find_duplicates(from_frame(frame), similarity=1.0)
    assert exact.kind.tolist() == ["", "", "", "exact", "exact", ""]


def test_minus_zero_equals_zero_in_tables() -> None:
    frame = pd.DataFrame({"x": [0.0, -0.0, 1.0], "z": [3.0, 3.0, 4.0], "label": list("aba")})
    assert find_duplicates(from_frame(frame)).exact_rows == 1


def test_features_with_and_without_data() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(30, 8)).astype(np.float32)
    features[7] = features[2]
    features[9] = features[3] + 0.01 * generator.normal(size=8)
    alone = find_duplicates(features=features)
    assert alone.kind[[2, 3, 7, 9]].tolist() == ["exact", "near", "exact", "near"] and not alone.conflict.any()
    labels = ["a"] * 29 + ["b"]
    labels[9] = "b"
    named = find_duplicates(features=features, labels=labels, ids=[f"r{i}" for i in range(30)])
    assert named.duplicate_of[9] == "r3" and np.flatnonzero(named.conflict).tolist() == [3, 9]
    data = from_arrays(features, labels)
    assert find_duplicates(data, features=features).duplicate_of[7] == "2"


def test_row_order_only_decides_who_is_first() -> None:
    texts = [SENTENCE, "see you at noon today", SENTENCE.replace("1234", "1299"), "see you at noon today", "alone here"]
    there = of_texts(texts, list("ababa"))
    back = of_texts(texts[::-1], list("ababa"))
    assert (there.kind[::-1] == back.kind).all() and (there.conflict[::-1] == back.conflict).all()


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_inputs(size: int) -> None:
    data = from_arrays(["some text here", "other"], ["a", "b"]).rows(range(size))
    assert len(find_duplicates(data)) == size
    assert len(find_duplicates(features=np.zeros((size, 3)))) == size


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ConfigError, r"data or features must be given, got neither"),
        ({"features": np.eye(3), "similarity": 0.0}, ConfigError, r"similarity must lie in \(0, 1\], got 0.0"),
        ({"features": np.zeros(3)}, DataError, r"features must be numbers of shape \[N, D\]"),
        ({"features": np.full((2, 2), np.nan)}, DataError, r"features must be finite"),
        ({"features": np.eye(3), "labels": [1]}, DataError, r"ids and labels must have one entry per row \(3\)"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_duplicates(**arguments)
    with pytest.raises(DataError, match=r"one row per row of data \(2\), got 3"):
        find_duplicates(from_arrays(["a", "b"], [0, 1]), features=np.eye(3))


def test_normalised_keeps_short_texts() -> None:
    assert normalised("C++") == "C++" and normalised("Hello,  WORLD!") == "hello world"


def test_sms_spam_has_403_repeated_texts() -> None:
    from pathlib import Path

    from whence.data import read

    data = read(Path(__file__).resolve().parents[2] / "examples" / "data" / "sms_spam.csv.gz")
    found = find_duplicates(data)
    assert found.exact_rows == 403 and 100 <= found.near_rows <= 160
    assert all(data.content[row].strip() for group in found.groups() for row in group)  # type: ignore[index,union-attr]
