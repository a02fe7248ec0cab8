"""Scores and signals: top and bottom against a full sort, frames, what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whence.errors import ConfigError
from whence.scores import Scores, Signal

few_values = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1e-300, 1.0, 3.0])  # ties are common


@st.composite
def score_tables(draw: st.DrawFn) -> Scores:
    queries, count = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    values = draw(st.lists(few_values, min_size=queries * count, max_size=queries * count))
    strings = draw(st.booleans())
    ids = [f"e{i}" for i in range(count)] if strings else list(range(100, 100 + count))
    table = torch.tensor(values, dtype=torch.float64).reshape(queries, count)
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    return Scores(values=table.to(dtype), query_ids=np.arange(queries), ids=np.array(ids), unit="nats")


@settings(max_examples=150, deadline=None)
@given(scores=score_tables(), k=st.integers(1, 15), largest=st.booleans())
def test_top_and_bottom_are_a_full_stable_sort(scores: Scores, k: int, largest: bool) -> None:
    frame = scores.top(k) if largest else scores.bottom(k)
    assert list(frame.columns) == ["query", "rank", "id", "score"]
    kept = min(k, len(scores.ids))
    assert len(frame) == kept * len(scores.query_ids)
    for row, (query, own) in enumerate(frame.groupby("query", sort=False)):
        values = scores.values[row].tolist()
        order = sorted(range(len(values)), key=lambda i: (-values[i] if largest else values[i], i))[:kept]
        assert query == scores.query_ids[row]
        assert own["id"].tolist() == scores.ids[order].tolist()
        assert own["score"].tolist() == [values[i] for i in order]
        assert own["rank"].tolist() == list(range(1, kept + 1))


def table() -> Scores:
    values = torch.tensor([[0.5, -1.0, 0.0], [2.0, 3.0, -4.0]], requires_grad=True)
    return Scores(values=values, query_ids=np.array(["p", "q"]), ids=np.array([10, 20, 30]), unit="nats")


def test_frames() -> None:
    frame = table().to_frame()
    assert frame.loc["q", 20] == 3.0
    assert frame.index.name == "query"
    assert table().top(1)["id"].tolist() == [10, 20]
    assert table().bottom(1)["id"].tolist() == [20, 30]


@pytest.mark.parametrize("k", [0, -1])
def test_k_is_checked(k: int) -> None:
    with pytest.raises(ConfigError, match="k must be at least 1"):
        table().top(k)


def test_shapes_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"shape \(1, 3\), got \(2, 3\)"):
        Scores(values=torch.zeros(2, 3), query_ids=np.array([0]), ids=np.arange(3), unit=None)


def test_ends_of_a_signal_are_a_full_stable_sort_with_missing_values_last() -> None:
    signal = Signal(values=np.array([1.0, np.nan, 3.0, 1.0]), ids=np.array(list("abcd")), name="s", unit=None,
                    standard_error=np.array([0.1, 0.2, 0.3, 0.4]))  # fmt: skip
    assert signal.top(9)["id"].tolist() == ["c", "a", "d", "b"]
    assert signal.bottom(3)["id"].tolist() == ["a", "d", "c"]
    assert signal.top(1).to_dict("records") == [{"rank": 1, "id": "c", "value": 3.0, "standard_error": 0.3}]
    with pytest.raises(ConfigError, match="at least 1"):
        signal.top(0)


def test_signals_behave_like_arrays() -> None:
    signal = Signal(values=np.array([3.0, 1.0, 2.0]), ids=np.array(["a", "b", "c"]), name="loss", unit="nats")
    assert len(signal) == 3
    assert signal[1] == 1.0
    assert np.argsort(signal).tolist() == [1, 2, 0]
    assert np.asarray(signal, dtype=np.float32).dtype == np.float32
    assert signal.to_series()["c"] == 2.0
    assert signal.to_series().name == "loss"
    array = np.array(signal)
    array[0] = -1.0
    assert signal[0] == 3.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_shown_in_float32(dtype: torch.dtype) -> None:
    """Every number of half precision is one of float32, so that tables of both are equal."""
    values = torch.tensor([[0.5, -1.25, 0.1], [2.0, 3.0, -4.0]]).to(dtype)
    ids = {"query_ids": np.arange(2), "ids": np.arange(3), "unit": None}
    half = Scores(values=values, standard_error=values.abs(), **ids)
    single = Scores(values=values.float(), standard_error=values.float().abs(), **ids)
    for k in (1, 3):
        pd.testing.assert_frame_equal(half.top(k), single.top(k))
        pd.testing.assert_frame_equal(half.bottom(k), single.bottom(k))
    pd.testing.assert_frame_equal(half.to_frame(), single.to_frame())
