"""``whence evaluate``: what a run predicted against what happens; a page in the run, linked from its report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_samples import Outcome, sms, write_csv

Call = Callable[..., Outcome]

CODE = """
import functools
import numpy as np
import torch
import whence as wh

def recipe(data):
    inputs = torch.from_numpy(data.content[["a", "b"]].to_numpy(np.float32, copy=True))
    build = functools.partial(torch.nn.Linear, 2, 2)
    return wh.Recipe(build=build, optimizer="lbfgs", weight_decay=0.05), inputs

def model(data):
    return recipe(data)[0].build(), recipe(data)[1]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of two blurred classes with wrong labels, split and not, and a model's code."""
    folder = tmp_path_factory.mktemp("evaluate")
    generator = np.random.default_rng(0)
    label = np.arange(90) % 2
    wrong = np.arange(90) % 9 == 4
    table = {"a": label * 2 - 1 + generator.normal(0, 0.8, 90), "b": generator.normal(size=90)}
    frame = pd.DataFrame({**table, "label": np.where(wrong, 1 - label, label), "wrong": wrong.astype(int)})
    frame.to_csv(folder / "data.csv", index=False)
    frame.assign(split=np.where(np.arange(90) < 60, "train", "test")).to_csv(folder / "<b>split.csv", index=False)
    (folder / "model.py").write_text(CODE)
    return folder


@pytest.fixture
def own(call: Call, place: Path, tmp_path: Path) -> tuple[Path, tuple[str, str]]:
    """A run of the user's convex model on the split table, and the option that brings the model again."""
    model = ("--model", f"{place / 'model.py'}:recipe")
    shown = call("audit", place / "<b>split.csv", "--label", "label", "--drop", "wrong", *model,
                 "--method", "exact", "--out", tmp_path / "run")  # fmt: skip
    assert shown.code == 0, shown.err
    return tmp_path / "run", model


def test_every_part_of_a_run_with_a_users_recipe(call: Call, own: tuple[Path, tuple[str, str]]) -> None:
    run, model = own
    shown = call("evaluate", run, *model, "--loo", 12, "--lds", 8, "--remove", "5,20", "--fix", "20",
                 "--known-errors", "wrong", "--queries", 20, "--seeds", 1, "--json")  # fmt: skip
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert found["loo"]["rows"] == 12 and found["loo"]["slope"][0] > 0.5 and found["loo"]["pearson"][0] > 0.95
    assert found["lds"]["bars"][0]["own"] and found["lds"]["bars"][0]["value"][0] > 0.9
    values = {bar["name"]: bar["value"][0] for bar in found["lds"]["bars"]}
    assert values["random"] < 0.5 < max(values.values())
    assert found["detection"]["errors"] == 10 and found["detection"]["rows"] == 90
    assert {one["name"] for one in found["removal"]["measurements"]} == {"loss", "accuracy"}
    assert [point["count"] for point in found["removal"]["measurements"][0]["rankings"][0]["points"]] == [3, 12]
    assert found["fix"]["measurements"] and found["loo"]["seeds"] == 1
    assert any("outside the train split" in said for said in found["loo"]["said"])
    page = (run / "evaluation.html").read_text(encoding="utf-8")
    for anchor in ("loo", "lds", "detection", "removal", "fix"):
        assert f'id="{anchor}"' in page
    assert "<b>split" not in page and "&lt;b&gt;split.csv" in page
    assert page.count("outside the train split") == 1, "what holds for all parts is said once"
    assert 'href="evaluation.html"' in (run / "report.html").read_text(encoding="utf-8")


def test_parts_of_several_calls_stand_together(call: Call, own: tuple[Path, tuple[str, str]]) -> None:
    run, model = own
    assert call("evaluate", run, *model, "--lds", 6, "--queries", 10, "--seeds", 1).code == 0
    shown = call("evaluate", run, "--known-errors", "wrong")
    assert shown.code == 0 and "●" in shown.out and "page:" in shown.out, shown.err
    stored = json.loads((run / "evaluation.json").read_text())
    assert "lds" in stored and "detection" in stored and "removal" not in stored
    again = call("evaluate", run, *model, "--lds", 6, "--queries", 10, "--seeds", 1)
    assert again.code == 0 and json.loads((run / "evaluation.json").read_text())["lds"] == stored["lds"]
    assert len(list((run / "cache").iterdir())) == 6
    assert "0 trainings (6 more are in the cache)" in again.err
    more = call("evaluate", run, *model, "--lds", 6, "--remove", "5", "--fix", "50", "--queries", 10, "--seeds", 1)
    assert more.code == 0, more.err
    made = len(list((run / "cache").iterdir())) - 6
    assert f"{made} trainings (6 more are in the cache)" in more.err, "the estimate counts what is really trained"
    assert call("explain", run, "--query", "3", *model).code == 0


def test_without_a_split_rows_are_held_out(call: Call, place: Path, tmp_path: Path) -> None:
    run, model = tmp_path / "run", ("--model", f"{place / 'model.py'}:recipe")
    assert call("audit", place / "data.csv", "--label", "label", "--drop", "wrong", *model, "--out", run).code == 0
    shown = call("evaluate", run, *model, "--loo", 8, "--queries", 15, "--seeds", 1, "--json")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert any("15 of 90 rows" in said for said in found["loo"]["said"]) and found["loo"]["queries"] == 15
    assert any("made again without held-out rows" in said for said in found["loo"]["said"])


def test_the_embedded_default(call: Call, tmp_path: Path) -> None:
    rows = [(label, text, int(i % 10 == 7)) for i, (label, text) in enumerate(sms(120))]
    other = {"ham": "spam", "spam": "ham"}
    rows = [(other[label] if wrong else label, text, wrong) for label, text, wrong in rows]
    source = write_csv(tmp_path / "sms.csv", rows, ("label", "text", "wrong"))
    run = tmp_path / "run"
    assert call("audit", source, "--label", "label", "--text", "text", "--out", run, "-q").code == 0
    shown = call("evaluate", run, "--known-errors", "wrong", "--lds", 4, "--fix", "10", "--seeds", 1, "--json")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert found["detection"]["errors"] == 12 and found["detection"]["signals"][0]["name"] == "suspicion"
    assert {"BM25", "random", "gradient dot product"} <= {bar["name"] for bar in found["lds"]["bars"]}
    point = found["fix"]["measurements"][0]["rankings"][0]["points"][0]
    assert point["changed"] <= point["count"] and point["predicted"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--loo", "--known-errors")),
        (("--loo", 1), ("loo", "1")),
        (("--lds", 2), ("lds", "2")),
        (("--seeds", 0, "--lds", 8), ("seeds", "0")),
        (("--queries", 0, "--lds", 8), ("queries", "0")),
        (("--remove", "a,b"), ("--remove", "a,b")),
        (("--remove", "0,5"), ("remove", "0")),
        (("--fix", "150"), ("fix", "150")),
        (("--lds", 4, "--cache", "<run>/manifest.json"), ("cache", "is a file")),
        (("--known-errors", "nope"), ("nope",)),
        (("--known-errors", "text"), ("text",)),
    ],
)
def test_refusals(call: Call, audited, arguments: tuple[object, ...], words: tuple[str, ...]) -> None:
    arguments = tuple(str(part).replace("<run>", str(audited.folder)) for part in arguments)
    shown = call("evaluate", audited.folder, *arguments)
    line = shown.one_line()
    assert shown.code in (1, 2) and shown.out == ""
    for word in words:
        assert word in line
    assert not (audited.folder / "evaluation.html").exists() and not (audited.folder / "cache").exists()


def test_a_users_model_must_come_again_with_its_recipe(call: Call, own, place: Path, tmp_path: Path) -> None:
    run, _ = own
    shown = call("evaluate", run, "--lds", 4)
    assert shown.code == 2 and "--model FILE.py:FUNC must be given again" in shown.one_line()
    shown = call("evaluate", run, "--lds", 4, "--model", f"{place / 'model.py'}:model")
    assert shown.code == 2 and "(Recipe, inputs)" in shown.one_line()


def test_a_column_that_the_model_saw_is_refused(call: Call, place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call("audit", place / "data.csv", "--label", "label", "--out", run, "-q").code == 0
    shown = call("evaluate", run, "--known-errors", "wrong")
    assert shown.code == 1 and "--drop wrong" in shown.one_line()


def test_folders_that_are_no_run_and_data_that_changed(call: Call, audited, tmp_path: Path) -> None:
    assert call("evaluate", tmp_path, "--lds", 4).code == 1
    shutil.copytree(audited.folder, tmp_path / "run")
    changed = pd.read_csv(audited.source)
    changed.loc[0, "text"] = "another"
    changed.to_csv(tmp_path / "changed.csv", index=False)
    shown = call("evaluate", tmp_path / "run", "--lds", 4, "--data-source", tmp_path / "changed.csv")
    assert shown.code == 1 and "fingerprint" in shown.one_line()
