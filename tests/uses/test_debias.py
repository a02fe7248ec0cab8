"""Hard debiasing: what neutralising and equalising promise, whatever the vectors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from word_samples import random_vectors

import whence as wh

PAIRS = [("he", "she"), ("man", "woman"), ("king", "queen")]
WORDS = ["he", "office", "she", "man", "home", "woman", "king", "queen", "uncle", "pay"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 12), st.integers(1, 2))
def test_neutral_words_lose_the_direction_and_are_equally_near_to_both_of_a_pair(
    seed: int, width: int, components: int
) -> None:
    words = random_vectors(WORDS, width, seed)
    before = words.vectors.detach().clone()
    fair = wh.hard_debias(words, PAIRS, specific=["uncle"], components=components)
    assert torch.equal(words.vectors, before)
    assert torch.allclose(fair.vectors.norm(dim=1), torch.ones(len(WORDS), dtype=torch.float64))
    for neutral in ("office", "home", "pay"):
        for one, other in PAIRS:
            near = fair.vector(neutral) @ fair.vector(one), fair.vector(neutral) @ fair.vector(other)
            assert float(near[0]) == pytest.approx(float(near[1]), abs=1e-9)
    unit = torch.nn.functional.normalize(before, dim=1)
    assert torch.allclose(fair.vector("uncle"), unit[WORDS.index("uncle")]), "specific words keep their direction"
    differences = torch.stack([fair.vector(a) - fair.vector(b) for a, b in PAIRS])
    assert int(torch.linalg.matrix_rank(differences, tol=1e-8)) <= components, "pairs differ within the subspace"
    again = wh.hard_debias(fair, PAIRS, specific=["uncle"], components=components)
    assert torch.allclose(again.vectors, fair.vectors, atol=1e-7), "twice is once"


def test_the_direction_of_a_single_pair_is_their_difference() -> None:
    words = random_vectors(WORDS, 5)
    unit = torch.nn.functional.normalize(words.vectors.detach(), dim=1)
    direction = torch.nn.functional.normalize(unit[0] - unit[2], dim=0)
    fair = wh.hard_debias(words, [("he", "she"), ("he", "absent")])
    expected = unit[1] - (unit[1] @ direction) * direction
    assert torch.allclose(fair.vectors[1], expected / expected.norm())
    mean = (unit[0] + unit[2]) / 2
    mean = mean - (mean @ direction) * direction
    assert torch.allclose(fair.vectors[0], mean + (1 - mean.square().sum()).sqrt() * direction)


def test_weat_between_the_words_of_equalised_pairs_is_gone() -> None:
    words = random_vectors(WORDS, 6)
    weat = wh.WEAT(targets=(["he", "man", "king"], ["she", "woman", "queen"]), attributes=(["office"] * 1 + ["pay"],
                   ["home", "uncle"]))  # fmt: skip
    fair = wh.hard_debias(words, PAIRS)
    assert abs(weat.effect(words)) > 0.05
    assert abs(weat.effect(fair)) < 1e-6


def test_only_the_named_words_change() -> None:
    words = random_vectors(WORDS, 6)
    fair = wh.hard_debias(words, PAIRS, neutral=["office", "nowhere"], equalize=PAIRS[:1])
    unit = torch.nn.functional.normalize(words.vectors.detach(), dim=1)
    changed = [word for word, a, b in zip(WORDS, unit, fair.vectors, strict=True) if not torch.allclose(a, b)]
    assert changed == ["he", "office", "she"]


def test_what_is_refused() -> None:
    words = random_vectors(WORDS, 6)
    for components in (0, 4):
        with pytest.raises(wh.ConfigError, match="components must be between 1 and 3"):
            wh.hard_debias(words, PAIRS, components=components)
    with pytest.raises(wh.DataError, match="pairs must hold a set whose words are all in the vocabulary"):
        wh.hard_debias(words, [("he", "absent")])
    with pytest.raises(wh.ConfigError, match="equalize must be sets of at least two words"):
        wh.hard_debias(words, PAIRS, equalize=[("he",)])
