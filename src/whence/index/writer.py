"""Writing an index shard by shard; a killed run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from whence.errors import ConfigError, DataError, RunFormatError
from whence.features import MANIFEST, check_target
from whence.index.block import Block, Layout, concatenate, encode, stored_error
from whence.index.index import Index, open_index
from whence.index.manifest import IndexManifest, dtype_of, key_of
from whence.index.shards import read_shard, shard_path, verify_shard, write_shard
from whence.index.unique import SeenIds

__all__ = ["IndexWriter"]

_PIECE = 2048


@dataclass(kw_only=True)
class IndexWriter:
    """Writes features with ids to a folder, shard by shard.

    A shard is written to a temporary name and renamed. If the folder holds finished shards of the same identity
    (an interrupted run), they are verified and kept, and `start` says with which row to go on.

    Args:
        folder: A new folder, an interrupted or finished index of the same identity.
        identity: What the features belong to, JSON-able: fingerprints, configs, versions.
        dtype: Storage: "float32", "float16", "bfloat16" or "float64". Products are taken in float32 (float64).
        shard_rows: Rows a shard; memory is two shards, and 8 bytes an integer id.
        extra: What else the manifest should hold, JSON-able.
        extends: A finished index to append to; its own features stay as they are.

    Raises:
        ConfigError: A setting cannot work.
        RunFormatError: The folder holds something else, or an index of another identity; both are named.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = IndexWriter(folder=folder + "/index", identity={"method": "mine"}, shard_rows=2)
        ...     writer.append(torch.eye(3), np.array(["a", "b", "c"]))
        ...     index = writer.close()
        ...     index.ids.tolist()
        ['a', 'b', 'c']
    """

    folder: str | Path
    identity: Mapping[str, Any]
    dtype: str = "float32"
    shard_rows: int = 8192
    extra: Mapping[str, Any] = field(default_factory=dict)
    extends: Index | None = None

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        self._stored_as = dtype_of(self.dtype)
        if self.extends is not None:  # rows may have been appended since it was opened
            self.extends = self.extends.reopened()
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows must be at least 1, got {self.shard_rows}.")
        self._key = key_of(self.identity, self.dtype, self.shard_rows)
        self._blocks: list[Block] = []
        self._ids: list[np.ndarray] = []
        self._own: list[np.ndarray] = []
        self._error: dict[str, tuple[float, float]] = {}
        self._written: list[dict[str, Any]] = []
        self._seen = SeenIds()
        self._with_self: bool | None = None
        self._manifest = self._begin()
        self._first = len(self._manifest.shards) if self.extends is not None else 0
        self._base = sum(rows for rows, _ in self._manifest.shards) if self.extends is not None else 0
        self._layouts = list(self._manifest.layers) if self.extends is not None else None
        if self.extends is not None:
            for shard in self.extends.shards():
                self._seen.add(shard.ids())
            self._with_self = self.extends.has_self_scores
        self._resume()

    @property
    def described(self) -> Mapping[str, Any]:
        """What the folder's manifest holds as ``extra``: that of the run which began it."""
        return self._manifest.extra

    def describe(self, extra: Mapping[str, Any]) -> None:
        """Replace what the folder's manifest holds as ``extra``."""
        self._manifest = replace(self._manifest, extra=dict(extra))
        self._manifest.write(Path(self.folder))

    @property
    def start(self) -> int:
        """Row (of those that are being written) with which to go on."""
        return sum(int(shard["rows"]) for shard in self._written) + sum(len(ids) for ids in self._ids)

    def append(self, features: Tensor | Block, ids: np.ndarray, self_scores: np.ndarray | None = None) -> None:
        """Add some rows.

        Args:
            features: Flat features [B, D], or a `Block`.
            ids: Their ids [B], integers or strings, different from all before.
            self_scores: Their self-scores [B], for all rows or for none.

        Raises:
            DataError: An id repeats.
            ConfigError: Lengths, layers or the kind of ids differ from those before.
            NumericalError: A feature is not finite.
        """
        block = Block.flat(features) if isinstance(features, Tensor) else features
        ids = np.asarray(ids)
        self._check(block, ids, self_scores)
        self._seen.add(ids)
        done = 0
        while done < len(ids):
            left = self.shard_rows - sum(len(part) for part in self._ids)
            room = min(left, _PIECE)
            some = slice(done, min(done + room, len(ids)))
            if block.parts:
                self._take(block.rows(some))
            self._ids.append(ids[some])
            if self_scores is not None:
                self._own.append(np.asarray(self_scores)[some])
            done = some.stop
            if some.stop - some.start == left:
                self._flush()

    def close(self) -> Index:
        """Write the last rows and the manifest; return the index."""
        if self._ids:
            self._flush()
        if not self._written:
            raise DataError("an index must have at least one row, got none. Append features first.")
        folder = Path(self.folder)
        new = tuple((int(shard["rows"]), str(shard["sha256"])) for shard in self._written)
        old = self._manifest
        if self.extends is not None:
            shards, parts = (*old.shards, *new), (*old.parts, (self._first, dict(self.identity)))
        elif old.complete:  # verified again; what was appended later stays
            shards, parts = (*new, *old.shards[len(new) :]), old.parts
        else:
            shards, parts = new, ((0, dict(self.identity)),)
        error = old.error if old.complete and self.extends is None else self._errors()
        old.finished(layers=tuple(self._layouts or ()), shards=shards, parts=parts, error=error).write(folder)
        return open_index(folder)

    def _errors(self) -> dict[str, tuple[float, float]]:
        """Return squared error and squared norm of every layer, over all shards."""
        sums = dict(self._manifest.error)
        for shard in self._written:
            for name, (wrong, whole) in shard["error"].items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + wrong, before[1] + whole)
        return sums

    def _take(self, block: Block) -> None:
        """Encode some rows and measure what storing them costs in precision."""
        stored = encode(block, self._stored_as)
        for name, (wrong, whole) in stored_error(block, stored).items():
            before = self._error.get(name, (0.0, 0.0))
            self._error[name] = (before[0] + wrong, before[1] + whole)
        self._blocks.append(stored)

    def _check(self, block: Block, ids: np.ndarray, self_scores: np.ndarray | None) -> None:
        """Raise unless some rows fit those before."""
        if block.parts and len(block) != len(ids):
            raise ConfigError(f"ids must have one entry a row ({len(block)}), got {len(ids)}.")
        if self._layouts is None:
            self._layouts = block.layouts
        if block.layouts != self._layouts:
            raise ConfigError(f"features must have the form of those before ({self._layouts}), got {block.layouts}.")
        if self_scores is not None and len(self_scores) != len(ids):
            raise ConfigError(f"self_scores must have one entry a row ({len(ids)}), got {len(self_scores)}.")
        if self._with_self is None:
            self._with_self = self_scores is not None
        if self._with_self != (self_scores is not None):
            raise ConfigError("self_scores must be given for all rows or for none, got both.")

    def _begin(self) -> IndexManifest:
        """Return the manifest to build on, written if the folder is new."""
        folder = Path(self.folder)
        if self.extends is not None:
            manifest = IndexManifest.read(folder)
            if (self.dtype, self.shard_rows) != (manifest.dtype, manifest.shard_rows):
                raise ConfigError(f"dtype and shard_rows must be those of the index ({manifest.dtype}, "
                                  f"{manifest.shard_rows}), got {self.dtype}, {self.shard_rows}.")  # fmt: skip
            return manifest
        if (folder / MANIFEST).is_file():
            manifest = IndexManifest.read(folder)
            settings = {"dtype": self.dtype, "shard_rows": self.shard_rows}
            stored = {"dtype": manifest.dtype, "shard_rows": manifest.shard_rows}
            IndexManifest(identity=stored, dtype="", shard_rows=1).require(settings, folder)
            manifest.require(self.identity, folder)
            return manifest
        check_target(folder)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = IndexManifest(
            identity=dict(self.identity), dtype=self.dtype, shard_rows=self.shard_rows, extra=dict(self.extra)
        )
        manifest.write(folder)
        return manifest

    def _resume(self) -> None:
        """Keep the finished shards that belong to this index, each verified."""
        folder, row = Path(self.folder), self._base
        while (path := shard_path(folder, self._first + len(self._written))).is_file():
            try:
                metadata = verify_shard(path)
            except RunFormatError:
                return  # damaged: written again
            if metadata.get("key") != self._key or metadata.get("start") != row:
                return
            self._layouts = [Layout.from_json(layer) for layer in metadata["layers"]]
            shard = read_shard(path, self._layouts, metadata)
            self._seen.add(shard.ids())
            self._with_self = shard.self_scores is not None
            self._written.append(metadata)
            row += int(metadata["rows"])

    def _flush(self) -> None:
        """Write one shard."""
        number = self._first + len(self._written)
        row = self._base + sum(int(shard["rows"]) for shard in self._written)
        block = concatenate(self._blocks) if self._blocks else Block({})
        own = np.concatenate(self._own) if self._own else None
        path = shard_path(Path(self.folder), number)
        error = {name: [float(f"{value:.6g}") for value in sums] for name, sums in self._error.items()}
        try:
            layers = [layout.as_json() for layout in self._layouts or ()]
            about = {"start": row, "key": self._key, "layers": layers, "error": error}
            self._written.append(write_shard(path, block, np.concatenate(self._ids), own, about))
        except OSError as refused:
            raise RunFormatError(
                f"{path} must be writable, got: {refused.strerror or refused}. Free some space and start again: "
                "finished shards are kept."
            ) from refused
        self._blocks, self._ids, self._own, self._error = [], [], [], {}


