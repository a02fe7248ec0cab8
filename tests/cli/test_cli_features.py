"""``whence explain --features``: what of a training row matters, for texts, tables, images and one's own model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_samples import EXAMPLES, Audited, Outcome

import whence as wh

Call = Callable[..., Outcome]

CODE = """
import numpy as np
import torch
import whence as wh

def columns(data):
    table = torch.from_numpy(data.content.to_numpy(np.float32, copy=True))
    return wh.Recipe(build=lambda: torch.nn.Linear(2, 2), optimizer="lbfgs", weight_decay=0.1), table
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose column "a" decides the class, "noise" does not, and one of categories."""
    folder = tmp_path_factory.mktemp("features")
    generator = np.random.default_rng(0)
    label = np.arange(80) % 2
    numbers = np.stack([2 * label - 1 + 0.7 * generator.normal(size=80), generator.normal(size=80)], 1)
    kinds = np.array(["u", "v", ""])[generator.integers(3, size=80)]
    lines = [f"{numbers[i, 0]:.3f},{numbers[i, 1]:.3f},{kinds[i]},class {label[i]}" for i in range(80)]
    (folder / "table.csv").write_text("\n".join(["a<b,noise,kind,label", *lines]) + "\n")
    (folder / "model.py").write_text(CODE)
    return folder


def explained(told: Outcome) -> dict[str, Any]:
    assert told.code == 0, told.err
    found: dict[str, Any] = json.loads(told.out)
    return found


def test_words_of_messages(call: Call, audited: Audited, tmp_path: Path) -> None:
    asked = ("explain", audited.folder, "--query", "m1", "-k", 3)
    found = explained(call(*asked, "--features", 4, "--json"))
    for side in ("helpful", "harmful"):
        for entry in found[side]:
            features = entry["features"]
            assert 1 <= len(features) <= 4
            sizes = [abs(one["effect"]) for one in features]
            assert sizes == sorted(sizes, reverse=True)
            assert all(one["name"] in entry["content"]["text"] for one in features)
    plain = explained(call(*asked, "--json"))
    assert found["query"] == plain["query"]
    assert "features" not in plain["helpful"][0]
    scores = [[entry["score"] for entry in one["helpful"]] for one in (found, plain)]
    assert scores[0] == pytest.approx(scores[1])
    page = tmp_path / "page.html"
    told = call(*asked, "--features", 2, "--out", page)
    assert told.code == 0, told.err
    assert "Under a row stands what of it matters" in page.read_text("utf-8")
    assert "must be zero or positive" in call(*asked, "--features", -1).one_line()
    assert "page must be an .html file" in call(*asked, "--out", tmp_path / "rows.csv").one_line()


def test_columns_of_a_table(call: Call, table: Path, tmp_path: Path) -> None:
    source = table / "table.csv"
    assert call("audit", source, "--label", "label", "--out", tmp_path / "run", "-q").code == 0
    found = explained(call("explain", tmp_path / "run", "--query", 3, "--features", 3, "--json"))
    names = {one["name"] for entry in found["helpful"] for one in entry["features"]}
    assert names == {"a<b", "noise", "kind"}
    values = {one["value"] for entry in found["helpful"] for one in entry["features"] if one["name"] == "kind"}
    assert values <= {"u", "v", "missing"}
    told = call("explain", tmp_path / "run", "--query", 3, "--features", 1)
    assert "noise=" in told.out
    page = (tmp_path / "run" / "explain-3.html").read_text("utf-8")
    assert "noise = " in page
    assert "<b>a<b" not in page


def test_columns_of_a_model_of_ones_own(call: Call, table: Path, tmp_path: Path) -> None:
    own = ("--model", f"{table / 'model.py'}:columns")
    settings = ("--label", "label", "--drop", "kind", "--method", "exact", *own)
    done = call("audit", table / "table.csv", *settings, "--out", tmp_path / "run", "-q")
    assert done.code == 0, done.err
    found = explained(call("explain", tmp_path / "run", "--query", 3, "--features", 2, "-k", 1, "--json", *own))
    entry = found["helpful"][0]
    assert {one["name"] for one in entry["features"]} == {"a<b", "noise"}
    frame = pd.read_csv(table / "table.csv")
    x = torch.from_numpy(frame[["a<b", "noise"]].to_numpy(np.float32, copy=True))
    y = torch.from_numpy((frame["label"] == "class 1").to_numpy(np.int64, copy=True))
    recipe = wh.Recipe(build=lambda: torch.nn.Linear(2, 2), optimizer="lbfgs", weight_decay=0.1)
    before = loss(recipe, x, y)
    for one in entry["features"]:
        altered, column = x.clone(), ["a<b", "noise"].index(one["name"])
        altered[int(entry["id"]), column] = x[:, column].median()
        actual = loss(recipe, altered, y, x[3]) - before
        assert one["effect"] == pytest.approx(actual, rel=0.4, abs=1e-4), one


def loss(recipe: wh.Recipe, x: torch.Tensor, y: torch.Tensor, query: torch.Tensor | None = None) -> float:
    """Return the loss of row 3 after training."""
    model = recipe.train(wh.as_examples((x, y)))
    asked = x[3] if query is None else query
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model(asked[None].double()), y[3:4]))


def test_pixels_of_images(call: Call, tmp_path: Path) -> None:
    with np.load(EXAMPLES / "fashion_mnist_1000.npz") as stored:
        rows = np.flatnonzero(stored["y"] < 2)[:60]
        np.savez(tmp_path / "images.npz", x=stored["x"][rows], y=stored["y"][rows])
    assert call("audit", tmp_path / "images.npz", "--label", "y", "--out", tmp_path / "run", "-q").code == 0
    found = explained(call("explain", tmp_path / "run", "--query", 3, "--features", 1, "-k", 2, "--json"))
    for entry in (*found["helpful"], *found["harmful"]):
        assert entry["map"]["kind"] == "image"
        assert (entry["map"]["width"], entry["map"]["height"]) == (28, 28)
    told = call("explain", tmp_path / "run", "--query", 3, "--features", 1, "-k", 2)
    assert told.code == 0, told.err
    assert "The maps show which pixels matter" in (tmp_path / "run" / "explain-3.html").read_text("utf-8")
