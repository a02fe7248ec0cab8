"""What is written is what is read: ids, shards, types, self-scores; what cannot be written is refused."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index_samples import KINDS, features, flat_index, random_block, random_query, write

import whence as wh
from whence.index import Block, Dense, IndexWriter

INTEGERS = st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=12, unique=True)
STRINGS = st.lists(st.text(max_size=6), min_size=1, max_size=12, unique=True)


@settings(max_examples=40, deadline=None)
@given(ids=st.one_of(INTEGERS, STRINGS), rows=st.integers(1, 5), pieces=st.integers(1, 4), seed=st.integers(0, 99))
def test_ids_and_features_come_back(ids: list[int] | list[str], rows: int, pieces: int, seed: int) -> None:
    values = torch.randn(len(ids), 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    own = np.arange(len(ids)) / 7
    with tempfile.TemporaryDirectory() as folder:
        writer = IndexWriter(folder=folder + "/i", identity={"a": 1}, dtype="float64", shard_rows=rows)
        names = np.array(ids, dtype=np.int64 if isinstance(ids[0], int) else str)
        for part in np.array_split(np.arange(len(ids)), pieces):
            if len(part):
                writer.append(values[torch.from_numpy(part)], names[part], own[part])
        index = writer.close()
        index.verify()
        assert index.ids.tolist() == [str(i) if isinstance(i, str) else i for i in names.tolist()]
        assert index.ids.dtype.kind == ("i" if isinstance(ids[0], int) else "U")
        assert len(index.manifest.shards) == -(-len(ids) // rows)
        assert np.array_equal(np.asarray(index.self_scores()), own)
        found = index.scores(wh.QueryFeatures.flat(torch.eye(4, dtype=torch.float64))).values
        assert torch.equal(found.T, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["terms", "dense", "columns"])
def test_products_are_those_of_the_matrices(kind: str, form: str, tmp_path: Path) -> None:
    block, dense = random_block(kind, 23, 0)
    part, wanted = random_query(form, 4, 1)
    index = write(tmp_path / "i", block, np.arange(23), dtype="float64", shard_rows=6)
    expected = torch.einsum("qoi,boi->qb", wanted, dense)
    asked = features(part, offset=0.5, count=10)
    torch.testing.assert_close(index.scores(asked).values, (expected + 0.5) / 10, rtol=1e-12, atol=1e-12)
    mean = index.scores(asked.mean()).values[0]
    torch.testing.assert_close(mean, ((expected + 0.5) / 10).mean(0), rtol=1e-12, atol=1e-12)
    groups = {"some": [0, 7, 22], "one": [5]}
    sums = torch.stack([(expected[:, rows] + 0.5).sum(1) / (10 - len(rows)) for rows in groups.values()], 1)
    torch.testing.assert_close(index.group_scores(groups, asked).values, sums, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, bound", [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 1.5e-2)])
def test_the_storage_error_is_the_one_that_was_made(kind: str, dtype: str, bound: float, tmp_path: Path) -> None:
    """Rows of very different sizes, far below what float16 holds, keep their relative precision."""
    block, dense = random_block(kind, 40, 2)
    sizes = torch.logspace(-12, 3, 40, dtype=torch.float64)
    fields = dict(block.parts["layer"].fields)
    main = "values" if kind == "flat" else "d"
    counts = fields.get("counts")
    fields[main] = fields[main] * (sizes if counts is None else torch.repeat_interleave(sizes, counts))[:, None]
    scaled = Block({"layer": type(block.parts["layer"])(block.parts["layer"].layout, fields)})
    index = write(tmp_path / "i", scaled, np.arange(40), dtype=dtype, shard_rows=9)
    unit = torch.eye(24, dtype=torch.float64).reshape(24, 4, 6)
    back = index.scores(features(Dense(unit))).values.T.double()
    truth = (dense * sizes[:, None, None]).flatten(1)
    alive = truth.norm(dim=1) > 0
    errors = (back - truth).norm(dim=1)[alive] / truth.norm(dim=1)[alive]
    assert float(errors.max()) <= bound
    if kind in ("flat", "outer"):
        total = float((back - truth).norm() / truth.norm())
        assert index.summary()["storage_error"]["layer"] == pytest.approx(total, rel=0.02, abs=1e-7)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    writer = IndexWriter(folder=tmp_path / "i", identity={})
    writer.append(torch.ones(2, 3), np.array([1, 2]))
    with pytest.raises(wh.DataError, match="ids must be unique, got 2 twice"):
        writer.append(torch.ones(1, 3), np.array([2]))
    with pytest.raises(wh.ConfigError, match="all integers or all strings"):
        writer.append(torch.ones(1, 3), np.array(["a"]))
    with pytest.raises(wh.ConfigError, match="form of those before"):
        writer.append(torch.ones(1, 4), np.array([5]))
    with pytest.raises(wh.ConfigError, match="one entry a row"):
        writer.append(torch.ones(2, 3), np.array([6]))
    with pytest.raises(wh.ConfigError, match="all rows or for none"):
        writer.append(torch.ones(1, 3), np.array([7]), np.ones(1))
    with pytest.raises(wh.NumericalError, match=r"layer 'flat'.*NaN"):
        writer.append(torch.full((1, 3), torch.nan), np.array([8]))
    with pytest.raises(wh.DataError, match="at least one row"):
        IndexWriter(folder=tmp_path / "empty", identity={}).close()
    for settings_, match in (({"dtype": "int8"}, "dtype must be"), ({"shard_rows": 0}, "shard_rows must be")):
        with pytest.raises(wh.ConfigError, match=match):
            IndexWriter(folder=tmp_path / "x", identity={}, **settings_)  # type: ignore[arg-type]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(wh.RunFormatError, match="holds other files"):
        IndexWriter(folder=tmp_path / "mine", identity={})


def test_queries_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    index = flat_index(tmp_path / "i", torch.ones(3, 4))
    with pytest.raises(wh.ConfigError, match="must have 4 numbers, got 5"):
        index.top(wh.QueryFeatures.flat(torch.ones(1, 5)))
    with pytest.raises(wh.ConfigError, match="must have the layers"):
        index.top(features(random_query("dense", 1, 0)[0]))
    with pytest.raises(wh.NumericalError, match="must be finite"):
        wh.QueryFeatures.flat(torch.full((1, 4), torch.inf))
    with pytest.raises(wh.ConfigError, match="k must be at least 1"):
        index.top(wh.QueryFeatures.flat(torch.ones(1, 4)), 0)
    with pytest.raises(wh.RunFormatError, match="must hold self-scores"):
        index.self_scores()
    with pytest.raises(wh.DataError, match="got 9"):
        index.group_scores({"g": [9]}, wh.QueryFeatures.flat(torch.ones(1, 4)))


def test_masks_and_their_undoing(tmp_path: Path) -> None:
    index = flat_index(tmp_path / "i", torch.arange(8.0)[:, None], shard_rows=3)
    query = wh.QueryFeatures.flat(torch.ones(1, 1))
    smaller = index.remove([7, 3])
    again = wh.open_index(tmp_path / "i")
    for one in (smaller, again):
        assert (len(one), one.ids.tolist()) == (6, [0, 1, 2, 4, 5, 6])
        assert one.top(query, 3)["id"].tolist() == [6, 5, 4]
        assert one.top(query, 99)["id"].tolist() == [6, 5, 4, 2, 1, 0]
        assert one.scores(query).values[0].tolist() == [0, 1, 2, 4, 5, 6]
        with pytest.raises(wh.DataError, match="got 3"):
            one.remove([3])
    assert again.restore([3]).ids.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert wh.open_index(tmp_path / "i").restore().ids.tolist() == list(range(8))
    assert not (tmp_path / "i" / "removed.safetensors").exists()


def test_masks_begin_with_what_the_folder_holds(tmp_path: Path) -> None:
    """An index that was opened before others masked rows or appended some undoes nothing of theirs."""
    stale = flat_index(tmp_path / "i", torch.arange(8.0)[:, None], shard_rows=3)
    stale.remove([1])
    assert stale.remove([2]).ids.tolist() == [0, 3, 4, 5, 6, 7]
    assert wh.open_index(tmp_path / "i").ids.tolist() == [0, 3, 4, 5, 6, 7]
    assert stale.restore([1]).ids.tolist() == [0, 1, 3, 4, 5, 6, 7]
    writer = IndexWriter(folder=tmp_path / "i", identity={"more": 1}, shard_rows=3, extends=stale)
    writer.append(torch.ones(1, 1), np.array([8]))
    writer.close().remove([8])
    assert stale.remove([0]).ids.tolist() == [1, 3, 4, 5, 6, 7]
    assert stale.restore().ids.tolist() == list(range(9))
    shutil.rmtree(tmp_path / "i")
    flat_index(tmp_path / "i", torch.ones(8, 1), shard_rows=3)
    with pytest.raises(wh.RunFormatError, match="must be the one that was opened"):
        stale.remove([0])


def test_a_stale_index_cannot_append_an_id_twice(tmp_path: Path) -> None:
    stale = flat_index(tmp_path / "i", torch.ones(3, 1))
    for again in (False, True):
        writer = IndexWriter(folder=tmp_path / "i", identity={"more": again}, extends=stale)
        if again:
            with pytest.raises(wh.DataError, match="unique, got 7 twice"):
                writer.append(torch.ones(1, 1), np.array([7]))
        else:
            writer.append(torch.ones(1, 1), np.array([7]))
            writer.close()
    assert wh.open_index(tmp_path / "i").ids.tolist() == [0, 1, 2, 7]


def test_no_queries_are_refused() -> None:
    with pytest.raises(wh.ConfigError, match="at least one query, got none"):
        wh.QueryFeatures.flat(torch.empty(0, 4))


@pytest.mark.parametrize(
    "stored, named",
    [({"loss": "a"}, r"loss must be .*\(a\), got b"), ({"examples": 4}, r"examples must be .*\(4\), got 9"),
     ({"layers": ["flat", "more"]}, r"layers must be .*flat.*more.*got \['layer'\]")],
)  # fmt: skip
def test_queries_of_another_fit_are_refused(stored: dict[str, object], named: str, tmp_path: Path) -> None:
    block, _ = random_block("outer", 4, 0)
    writer = IndexWriter(folder=tmp_path / "i", identity=stored)
    writer.append(block, np.arange(4))
    asked = replace(features(random_query("dense", 1, 0)[0], count=9), loss="b")
    with pytest.raises(wh.RunFormatError, match=named):
        writer.close().top(asked)
