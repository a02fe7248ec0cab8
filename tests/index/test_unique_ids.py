"""Ids that repeat are refused when they come, whatever came before and in whatever pieces; integers take 8 bytes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import whence as wh
from whence.index import unique
from whence.index.unique import SeenIds

PIECES = st.lists(st.lists(st.integers(-40, 40), max_size=12), max_size=12)


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES, longest=st.sampled_from([1, 4, 2**20]), text=st.booleans())
def test_a_repeated_id_is_found_as_by_a_set(pieces: list[list[int]], longest: int, text: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unique, "_LONGEST_RUN", longest)
        seen, truth = SeenIds(), set[int]()
        for piece in pieces:
            ids = np.array([str(id_) for id_ in piece], dtype=str) if text else np.array(piece, dtype=np.int64)
            if len(set(piece)) < len(piece) or truth & set(piece):
                with pytest.raises(wh.DataError, match="must be unique") as refused:
                    seen.add(ids)
                named = int(str(refused.value).split("got ")[1].split(" twice")[0].strip("'"))
                assert named in truth or piece.count(named) > 1
            else:
                seen.add(ids)
                truth |= set(piece)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64])
def test_integers_of_all_types_are_the_same_ids(dtype: type[np.integer]) -> None:
    seen = SeenIds()
    seen.add(np.arange(5, dtype=np.int32))
    with pytest.raises(wh.DataError, match="got 4 twice"):
        seen.add(np.array([7, 4], dtype=dtype))
    with pytest.raises(wh.ConfigError, match="all integers or all strings"):
        seen.add(np.array(["a"]))


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_million_integers_take_eight_bytes_each(shuffled: bool) -> None:
    count, longest = 2**20, 2**16
    ids = np.arange(count, dtype=np.int64) * 3
    if shuffled:
        np.random.default_rng(0).shuffle(ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unique, "_LONGEST_RUN", longest)
        tracemalloc.start()
        try:
            seen = SeenIds()
            for start in range(0, count, 4096):
                seen.add(ids[start : start + 4096])
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept < 8.1 * count
    assert peak < 8.1 * count + 4 * 8 * longest
