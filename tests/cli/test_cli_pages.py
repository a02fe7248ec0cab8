"""Every page that a command writes: nothing fails in a browser, nothing sticks out, and axe finds nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_samples import invoke, sms

CODE = """
import numpy as np
import torch
import whence as wh

def build():
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))

def recipe(data):
    inputs = torch.from_numpy(data.content.to_numpy(np.float32, copy=True))
    return wh.Recipe(build=build, optimizer="sgd", learning_rate=0.3, epochs=6, batch_size=32), inputs
"""
LISTS = {"targ1": ("Call", ["call", "txt"]), "targ2": ("Home", ["home", "later"]),
         "attr1": ("Free", ["free", "win"]), "attr2": ("You", ["you", "me"])}  # fmt: skip
SEEDS = ("--seeds", 1)
IN_RUN = {
    "relabel": SEEDS, "prune": ("--share", 0.2, *SEEDS), "cleanse": ("--share", 0.1, *SEEDS),
    "sources": ("--groups", "source"), "curves": ("--epochs", 4),
    "evaluate": ("--loo", 6, "--lds", 4, "--remove", "5,20", "--known-errors", "wrong", "--queries", 12, *SEEDS),
}  # fmt: skip
PAGES = ("report", "explain-000", "relabel", "prune", "cleanse", "sources", "curves", "evaluation", "comparison",
         "attack", "mismatch", "words")  # fmt: skip


def done(*arguments: object) -> None:
    assert invoke(arguments) == 0, arguments


def table(folder: Path) -> Path:
    """Write two blurred classes, a tenth of the labels wrong, of two sources, in two splits."""
    generator = np.random.default_rng(0)
    label = np.arange(120) % 2
    wrong = np.arange(120) % 10 == 4
    frame = pd.DataFrame({
        "id": [f"{i:03d}" for i in range(120)], "a": label * 2 - 1 + generator.normal(0, 0.8, 120).round(3),
        "b": generator.integers(0, 9, 120), "label": np.where(label ^ wrong, "<b>refund of a payment", "praise"),
        "split": np.where(np.arange(120) < 80, "train", "test"), "wrong": wrong.astype(int),
        "source": np.where(np.arange(120) % 3, "the other newspaper", "mail"),
    })  # fmt: skip
    frame.to_csv(folder / "data.csv", index=False)
    frame[frame["split"] == "test"].iloc[:30].to_csv(folder / "target.csv", index=False)
    return folder / "data.csv"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every command that writes a page, on little."""
    folder = tmp_path_factory.mktemp("pages")
    data, run = table(folder), folder / "run"
    (folder / "model.py").write_text(CODE)
    own = ("--model", f"{folder / 'model.py'}:recipe")
    plain = ("--label", "label", "--drop", "wrong", "--drop", "source")
    done("audit", data, *plain, *own, "--out", run, "-q")
    done("explain", run, "--query", "000", "--features", 2, *own)
    target = folder / "target.csv"
    for name, more in IN_RUN.items():
        told = ("--target", target) if name == "cleanse" else ()
        done(name, run, *told, *more, *own, "-q")
    done("compare", data, *plain, *own, "--subsets", 4, "--queries", 10, "--out", folder / "compared", "-q")
    few = ("--target", "081", "--images", 2, "--steps", 2)
    done("attack", data, *plain, *own, *few, "--out", folder / "attacked", "-q")
    done("mismatch", data, "--label", "label", "--drop", "source", "--column", "wrong", "--value", "1",
         "--out", folder / "mismatch.html", "-q")  # fmt: skip
    pd.DataFrame({"text": [text for _, text in sms(600)]}).to_csv(folder / "texts.csv", index_label="id")
    lists = {key: {"category": name, "examples": words} for key, (name, words) in LISTS.items()}
    (folder / "tests.json").write_text(json.dumps({"offers": lists}))
    asked = ("--weat", folder / "tests.json", "--test", "offers", "-k", 10, *SEEDS)
    done("words", folder / "texts.csv", *asked, "--width", 8, "--epochs", 2, "--min-count", 2,
         "--out", folder / "words.html", "-q")  # fmt: skip
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_anybody_can_use_it(written: Path, window, name: str) -> None:
    place = next(written.rglob(f"{name}.html"))
    window.page.goto(place.as_uri())
    window.sound_everywhere()
