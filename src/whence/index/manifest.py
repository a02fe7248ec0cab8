"""The manifest of an index: what it was made of and which shards it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from whence.errors import ConfigError, RunFormatError
from whence.features import read_manifest, write_manifest
from whence.index.block import Layout

__all__ = ["DTYPES", "KIND", "IndexManifest", "dtype_of", "key_of"]

KIND = "index"
DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """What stands in ``manifest.json``.

    Args:
        identity: What the index belongs to, JSON-able: fingerprints, configs, versions. Compared on resuming.
        extra: Anything else that goes along, JSON-able; not compared.
        dtype: Storage type of features.
        shard_rows: Rows a shard.
        layers: Form of every layer; empty for an index of ids and self-scores alone.
        shards: (rows, SHA-256) of every shard.
        parts: What each extension was made of: (first shard, identity).
        error: Relative error of storage, by layer.
        complete: Whether the build was finished.
    """

    identity: Mapping[str, Any]
    dtype: str
    shard_rows: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[Layout, ...] = ()
    shards: tuple[tuple[int, str], ...] = ()
    parts: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    error: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    complete: bool = False

    def write(self, folder: Path) -> None:
        """Write it, replacing an earlier one in one step."""
        content = {
            "kind": KIND,
            "complete": self.complete,
            "identity": dict(self.identity),
            "extra": dict(self.extra),
            "dtype": self.dtype,
            "shard_rows": self.shard_rows,
            "layers": [layer.as_json() for layer in self.layers],
            "shards": [list(shard) for shard in self.shards],
            "parts": [[first, dict(identity)] for first, identity in self.parts],
            "error": {name: list(sums) for name, sums in self.error.items()},
        }
        write_manifest(folder, content)

    @staticmethod
    def read(folder: Path) -> IndexManifest:
        """Read and check a manifest.

        Raises:
            RunFormatError: There is none, it is damaged, or it is of another kind or format.
        """
        stored = read_manifest(folder, KIND)
        try:
            manifest = IndexManifest(
                identity=_mapping(stored["identity"]),
                extra=_mapping(stored["extra"]),
                dtype=str(stored["dtype"]),
                shard_rows=int(stored["shard_rows"]),
                layers=tuple(Layout.from_json(layer) for layer in stored["layers"]),
                shards=tuple((int(rows), str(digest)) for rows, digest in stored["shards"]),
                parts=tuple((int(first), _mapping(identity)) for first, identity in stored["parts"]),
                error={name: (float(a), float(b)) for name, (a, b) in _mapping(stored["error"]).items()},
                complete=stored["complete"] is True,
            )
            if manifest.dtype not in DTYPES or any(rows < 1 for rows, _ in manifest.shards):
                raise ValueError(f"dtype {manifest.dtype} or the rows of a shard")
            if len({layer.name for layer in manifest.layers}) != len(manifest.layers):
                raise ValueError("two layers of one name")
            return manifest
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RunFormatError(
                f"manifest of index {str(folder)!r} must be whole, got a wrong entry ({error!r}). Build it again."
            ) from error

    def require(self, identity: Mapping[str, Any], folder: Path) -> None:
        """Raise unless the index belongs to ``identity``.

        Raises:
            RunFormatError: An entry differs; both values are named.
        """
        for name in [*self.identity, *identity]:
            expected, found = self.identity.get(name), identity.get(name)
            if expected != found:
                raise RunFormatError(
                    f"{name} must be that of index {str(folder)!r} ({_short(expected)}), got {_short(found)}. "
                    "Use the same model, data and settings, or another folder."
                )

    def finished(self, **changes: Any) -> IndexManifest:
        """Return the manifest of the finished index."""
        return replace(self, complete=True, **changes)


def key_of(identity: Mapping[str, Any], dtype: str, shard_rows: int) -> str:
    """Return the fingerprint by which a shard says what it belongs to."""
    text = json.dumps([dict(identity), dtype, shard_rows], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dtype_of(name: str) -> torch.dtype:
    """Return a storage type.

    Raises:
        ConfigError: It is unknown.
    """
    if name not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}.")
    return DTYPES[name]


def _mapping(value: Any) -> dict[str, Any]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no object")
    return value


def _short(value: Any) -> str:
    """Return a value for a message: fingerprints cut to 12 characters."""
    text = str(value)
    return text[:12] if len(text) == 64 and all(c in "0123456789abcdef" for c in text) else text[:200]
