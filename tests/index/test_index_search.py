"""Top-k: the first k of a full, stable sort, whatever the shards, their order, ties and bounds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import KINDS, features, flat_index, random_block, random_query, write

import whence as wh
from whence.index import Block, Layout, Part, Products, TopK, best
from whence.index.products import Begun


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=30),
    k=st.integers(1, 35), rows=st.integers(1, 9), largest=st.booleans(),
)  # fmt: skip
def test_top_k_is_the_head_of_a_stable_sort(values: list[list[int]], k: int, rows: int, largest: bool) -> None:
    matrix = torch.tensor(values, dtype=torch.float32)
    queries = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    with tempfile.TemporaryDirectory() as folder:
        index = flat_index_of(folder, matrix, rows)
        found = (index.top if largest else index.bottom)(wh.QueryFeatures.flat(queries), k)
    scores = (queries @ matrix.T).numpy()
    order = np.argsort(-scores if largest else scores, axis=1, kind="stable")[:, :k]
    assert found["id"].tolist() == order.reshape(-1).tolist()
    assert found["score"].tolist() == np.take_along_axis(scores, order, 1).reshape(-1).tolist()
    assert found["rank"].tolist() == list(range(1, order.shape[1] + 1)) * 3


def flat_index_of(folder: str, matrix: torch.Tensor, rows: int) -> wh.Index:
    return flat_index(Path(folder) / "i", matrix, shard_rows=rows)


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.integers(-4, 4), min_size=1, max_size=25), k=st.integers(1, 6),
    cuts=st.tuples(st.integers(0, 25), st.integers(0, 25)), order=st.permutations(range(3)),
)  # fmt: skip
def test_merging_is_associative_and_knows_no_order(
    values: list[int], k: int, cuts: tuple[int, int], order: list[int]
) -> None:
    column = torch.tensor(values, dtype=torch.float32)[:, None]
    whole = TopK.empty(1, k).update(column, np.arange(len(values)))
    pieces = np.split(np.arange(len(values)), sorted(min(cut, len(values)) for cut in cuts))
    states = [TopK.empty(1, k).update(column[torch.from_numpy(piece)], piece) for piece in pieces]
    a, b, c = (states[i] for i in order)
    updated = TopK.empty(1, k)
    for i in order:
        updated = updated.update(column[torch.from_numpy(pieces[i])], pieces[i])
    for state in (a.merge(b).merge(c), a.merge(b.merge(c)), updated):
        assert np.array_equal(state.values[0], whole.values[0])
        assert np.array_equal(state.rows[0], whole.rows[0])


@pytest.mark.parametrize("heavy", [False, True], ids=["alike", "heavy-tailed"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_bounds_skip_no_row_that_belongs(kind: str, dtype: str, heavy: bool, tmp_path: Path) -> None:
    """Thousands of rows, so that bounds are used; norms alike (all survive) or of many orders of magnitude."""
    count = 3000
    block, _ = random_block(kind, count, 3)
    if heavy:
        part = block.parts["layer"]
        main = "values" if kind == "flat" else "d"
        sizes = torch.exp(3 * torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
        spread = sizes if "counts" not in part.fields else torch.repeat_interleave(sizes, part.fields["counts"])
        block = Block({"layer": Part(part.layout, {**part.fields, main: part.fields[main] * spread[:, None]})})
    index = write(tmp_path / "i", block, np.arange(count), dtype=dtype, shard_rows=1100)
    for form in ("terms", "dense"):
        for removed in ([], [5, 17, 2999]):
            one = index.remove(removed) if removed else index.restore()
            asked = features(random_query(form, 2, 4)[0])
            scores = one.scores(asked)
            for found, expected in ((one.top(asked, 7), scores.top(7)), (one.bottom(asked, 7), scores.bottom(7))):
                assert found["id"].tolist() == expected["id"].tolist()
                np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-4)


def test_bounds_are_bounds_and_few_rows_are_finished() -> None:
    block, dense = random_block("outer", 2000, 5)
    part = block.parts["layer"]
    sizes = torch.logspace(-6, 0, 2000, dtype=torch.float64)[:, None]
    scaled = Block({"layer": Part(part.layout, {"d": part.fields["d"] * sizes, "a": part.fields["a"]}, None,
                                  part.fields["a"].norm(dim=1).float())})  # fmt: skip
    query, matrix = random_query("terms", 1, 6)
    products = Products.of(features(query), scaled.layouts, torch.float64)
    exact = torch.einsum("qoi,boi->bq", matrix, dense * sizes[:, :, None])
    begun = products.begin(scaled)
    assert bool((begun.total >= exact.abs()).all())
    torch.testing.assert_close(products.finish(scaled, begun, torch.arange(2000)), exact, rtol=1e-10, atol=1e-14)
    some = torch.tensor([3, 1999, 700])
    torch.testing.assert_close(products.finish(scaled, begun, some), exact[some], rtol=1e-10, atol=1e-14)
    touched: list[int] = []

    class Counting(Products):
        def _layer(self, block: Block, begun: Begun, name: str, rows: torch.Tensor, *, whole: bool) -> torch.Tensor:
            touched.append(len(rows))
            return super()._layer(block, begun, name, rows, whole=whole)

    counting = Counting(products.kernels, products.queries, products.width, products.dtype)
    state = best([(0, scaled, None)], counting, 5)
    assert state.rows[0].tolist() == exact[:, 0].argsort(descending=True)[:5].tolist()
    assert sum(touched) < 1200


def test_blocks_without_norms_are_searched_too() -> None:
    """What is computed as it is searched has no norms, so no bounds."""
    block, dense = random_block("outer", 2000, 7)
    query, matrix = random_query("terms", 1, 8)
    state = best([(0, block, None)], Products.of(features(query), block.layouts, torch.float64), 5)
    exact = torch.einsum("qoi,boi->b", matrix, dense)
    assert state.rows[0].tolist() == exact.argsort(descending=True)[:5].tolist()


def test_pieces_stay_small_whatever_the_block() -> None:
    """Rows a piece times numbers a row never pass the buffer, so memory does not grow with N."""
    for kind, layout in (("outer", (256, 785)), ("flat", (1, 512))):
        out, inp = layout
        spec = Layout(name="layer", kind=kind, out=out, inp=inp)  # type: ignore[arg-type]
        fields = {"values": torch.zeros(50_000, 1).expand(-1, inp)} if kind == "flat" else {
            "d": torch.zeros(50_000, 1).expand(-1, out), "a": torch.zeros(50_000, 1).expand(-1, inp),
        }  # fmt: skip
        block = Block({"layer": Part(spec, fields)})
        query = features(random_query("terms" if kind == "outer" else "dense", 100, 0, out=out, inp=inp)[0])
        for stored in (torch.float32, torch.float16):
            products = Products.of(query, [spec], stored)
            assert products.rows_a_piece(block) * products.width <= 2**20
            assert products.rows_a_piece(block) <= 4096
