"""Damage and hostility: whatever lies in a folder, the outcome is the right answer or one RunFormatError."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import flat_index

import whence as wh
from whence.index import IndexWriter

QUERY = wh.QueryFeatures.flat(torch.ones(1, 4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    flat_index(tmp_path / "i", torch.arange(40.0).reshape(10, 4), shard_rows=4)
    return tmp_path / "i"


def everything(folder: Path) -> None:
    index = wh.open_index(folder)
    index.verify()
    index.top(QUERY, 3)
    assert index.ids.tolist() == list(range(10))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "flipped", "other shard", "other index"])
def test_a_damaged_shard_is_named(folder: Path, damage: str) -> None:
    path = folder / "features-00001.safetensors"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "other shard":
        shutil.copy(folder / "features-00000.safetensors", path)
    elif damage == "other index":
        flat_index(folder.parent / "other", torch.ones(10, 4), shard_rows=4)
        shutil.copy(folder.parent / "other" / path.name, path)
    else:
        flipped = bytearray(whole)
        flipped[-3] ^= 1
        path.write_bytes({"empty": b"", "cut": whole[:-5], "garbage": b"\xff" * 99, "flipped": bytes(flipped)}[damage])
    with pytest.raises(wh.RunFormatError, match=r"features-00001\.safetensors"):
        everything(folder)


def test_a_damaged_mask(folder: Path) -> None:
    wh.open_index(folder).remove([2])
    path = folder / "removed.safetensors"
    for content in (b"", b"\xff" * 30, (folder / "features-00000.safetensors").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(wh.RunFormatError, match="removed"):
            wh.open_index(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["format", "kind", "complete", "identity", "extra", "dtype", "shard_rows", "layers", "shards", "parts", "error"]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=JSON)
def test_a_manifest_with_anything_in_it(folder: Path, key: str, value: Any) -> None:
    path = folder / "manifest.json"
    good = path.read_text()
    manifest = json.loads(good)
    manifest[key] = value
    path.write_text(json.dumps(manifest))
    try:
        everything(folder)
    except wh.WhenceError:
        pass
    finally:
        path.write_text(good)


@pytest.mark.parametrize("layers", [
    [{"name": "../../x", "kind": "flat", "out": 1, "inp": 4}], [{"name": "flat", "kind": "pickle", "out": 1, "inp": 4}],
    [{"name": "flat", "kind": "flat", "out": -1, "inp": -4}], [{"name": "flat", "kind": "outer", "out": 2, "inp": 2}],
    [{"name": "flat", "kind": "flat", "out": 1, "inp": 10**18}],
])  # fmt: skip
def test_hostile_layers(folder: Path, layers: list[dict[str, Any]]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "layers": layers}))
    before = sorted(path for path in folder.parent.rglob("*"))
    with pytest.raises(wh.WhenceError):
        everything(folder)
    assert sorted(path for path in folder.parent.rglob("*")) == before


def test_no_path_comes_from_a_file(folder: Path) -> None:
    """A manifest names no files: shards are found by their number, so none can lie elsewhere."""
    assert "safetensors" not in (folder / "manifest.json").read_text()


def test_an_unfinished_index_is_not_opened(tmp_path: Path) -> None:
    writer = IndexWriter(folder=tmp_path / "i", identity={"a": 1}, shard_rows=2)
    writer.append(torch.ones(5, 4), torch.arange(5).numpy())
    with pytest.raises(wh.RunFormatError, match="interrupted build"):
        wh.open_index(tmp_path / "i")
    with pytest.raises(wh.RunFormatError, match=r"a must be that of index.*\(1\), got 2"):
        IndexWriter(folder=tmp_path / "i", identity={"a": 2}, shard_rows=2)
    with pytest.raises(wh.RunFormatError, match=r"dtype must be that of index.*float32.*got float16"):
        IndexWriter(folder=tmp_path / "i", identity={"a": 1}, shard_rows=2, dtype="float16")
    resumed = IndexWriter(folder=tmp_path / "i", identity={"a": 1}, shard_rows=2)
    assert resumed.start == 4
    resumed.append(torch.ones(1, 4), torch.arange(4, 5).numpy())
    assert resumed.close().ids.tolist() == [0, 1, 2, 3, 4]


def test_a_damaged_shard_is_written_again_and_the_good_ones_are_not(tmp_path: Path) -> None:
    values = torch.arange(24.0).reshape(6, 4)
    index = flat_index(tmp_path / "i", values, shard_rows=2)
    before = {path.name: path.read_bytes() for path in index.folder.iterdir()}
    path = index.folder / "features-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    stamp = (index.folder / "features-00000.safetensors").stat().st_mtime_ns
    writer = IndexWriter(folder=index.folder, identity={"method": "test"}, shard_rows=2)
    assert writer.start == 4
    writer.append(values[4:], torch.arange(4, 6).numpy())
    writer.close().verify()
    assert {path.name: path.read_bytes() for path in index.folder.iterdir()} == before
    assert (index.folder / "features-00000.safetensors").stat().st_mtime_ns == stamp
