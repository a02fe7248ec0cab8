"""Fixtures: audited runs of every kind, once for all tests, and explorers of copies of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from explorer_client import ESCAPES, HOSTILE, PATH_ID, Client

from whence.audit import audit, write_run
from whence.data import ReadOptions, read
from whence.explorer import open_site

Open = Callable[..., Client]


def _texts(folder: Path) -> Path:
    """60 messages; some hostile, in ids, labels and texts; some labels flipped; one copy with another label."""
    rng = np.random.default_rng(0)
    spam, ham = ["prize", "winner", "cash", "claim", "free"], ["lunch", "home", "later", "meet", "sorry"]
    rows = []
    for i in range(60):
        wrong = i in (4, 11, 27)
        name = ("spam", "ham")[(i % 2) ^ wrong]
        words = " ".join(rng.choice((spam, ham)[i % 2], 6))
        rows.append({"id": f"m{i}", "text": words, "label": name})
    rows[4]["text"] += " " + HOSTILE
    rows[11]["id"], rows[11]["text"] = PATH_ID, rows[11]["text"] + " " + ESCAPES
    rows[20]["text"] = "=HYPERLINK(\"http://evil\") " + rows[20]["text"]
    rows[22]["text"] = "-5"
    rows.append({"id": "copy", "text": rows[27]["text"], "label": "spam" if rows[27]["label"] == "ham" else "ham"})
    path = folder / "texts.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def _table(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    x = rng.normal(size=80)
    shown = np.where(np.arange(80) % 20 == 3, -x, x)
    frame = pd.DataFrame({"id": [f"r{i}" for i in range(80)], "age": (40 + 10 * x).round(1),
                          "town": np.where(x > 0, "A", "B"), "label": np.where(shown > 0, "yes", "no")})  # fmt: skip
    frame.loc[5, "age"] = np.nan
    path = folder / "table.csv"
    frame.to_csv(path, index=False)
    return path


def _images(folder: Path) -> Path:
    rng = np.random.default_rng(2)
    y = np.arange(60) % 2
    x = rng.integers(0, 60, (60, 8, 8), dtype=np.uint8)
    x[y == 1, :, 4:] += 150
    y[[6, 31]] = 1 - y[[6, 31]]
    path = folder / "images.npz"
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of an audited run of every kind."""
    folder = tmp_path_factory.mktemp("explored")
    found = {}
    for name, make in (("text", _texts), ("tabular", _table), ("image", _images)):
        source, options = make(folder), ReadOptions()
        write_run(audit(read(source, options), version="test"), folder / name, source=str(source), options=options)
        found[name] = folder / name
    return found


@pytest.fixture
def opens(runs: dict[str, Path], tmp_path: Path) -> Open:
    """Return what opens an explorer of a copy of a run."""

    def of(kind: str = "text", **settings: object) -> Client:
        copy = tmp_path / kind
        if not copy.exists():
            shutil.copytree(runs[kind], copy)
        return Client(open_site(copy, **settings))

    return of
