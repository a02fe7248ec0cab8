"""``whence retrain``: what decisions change, of text and of an own model; what it writes, prints and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_samples import Audited, Outcome, write_csv

from whence.audit import open_run, reload_data
from whence.audit.decisions import FILE, OUTCOME, Decision, Decisions

Call = Callable[..., Outcome]

CODE = """
import functools
import numpy as np
import torch
import whence as wh

def net():
    return torch.nn.Linear(2, 2)

def inputs(data):
    return torch.from_numpy(data.content[["a", "b"]].to_numpy(np.float32, copy=True))

def recipe(data):
    print("chatter of a user's model")
    return wh.Recipe(build=net, epochs=8, learning_rate=0.05, batch_size=16), inputs(data)

def trained(data):
    return net(), inputs(data)
"""


@pytest.fixture
def run(audited: Audited, tmp_path: Path) -> Path:
    """Return a copy of an audited run of messages."""
    return Path(shutil.copytree(audited.folder, tmp_path / "run"))


def decide(run: Path, *made: tuple[str, str, str | None]) -> None:
    """Write decisions as the explorer does."""
    data = reload_data(open_run(run))
    given = {str(name): data.classes[label] for name, label in zip(data.ids, data.labels, strict=True)}
    decisions = Decisions(run, data.fingerprint)
    for name, action, label in made:
        decisions.put(Decision(id=name, action=action, label=label, given=given[name]))


def right(audited: Audited, name: str) -> str:
    """Return the label that a row had before it was flipped."""
    frame = pd.read_csv(audited.source).set_index("id")
    return "ham" if frame["label"][name] == "spam" else "spam"


def test_decisions_are_measured_told_kept_and_written(call: Call, audited: Audited, run: Path, tmp_path: Path) -> None:
    relabelled = {name: right(audited, name) for name in audited.flipped[:-1]}
    dropped = audited.flipped[-1]
    decide(run, *((name, "relabel", label) for name, label in relabelled.items()), (dropped, "drop", None),
           ("m0", "keep", None), ("m1", "unsure", None))  # fmt: skip
    out = tmp_path / "decided.csv"
    shown = call("retrain", run, "--seeds", 1, "--out", out, "--no-guard")
    assert shown.code == 0, shown.err
    assert "retraining: 3 trainings" in shown.err and "predicted (response of the last layer): " in shown.out
    assert "decisions applied" in shown.out and "held out" in shown.out and str(out) in shown.out
    kept = json.loads((run / OUTCOME).read_text(encoding="utf-8"))
    assert kept["kind"] == "decisions" and np.isfinite(kept["predicted"])
    before, after = (pd.read_csv(path, dtype=str).set_index("id") for path in (audited.source, out))
    expected = before.drop(dropped)
    expected.loc[list(relabelled), "label"] = list(relabelled.values())
    assert after.equals(expected)
    again = call("retrain", run, "--seeds", 1, "--json", "--quiet")
    assert again.code == 0 and again.err == "" and again.out.count("\n") == 1
    found = json.loads(again.out)
    assert list(found)[:3] == ["format", "command", "whence"] and found["command"] == "retrain"
    assert found["file"] is None and [way["kind"] for way in found["ways"]] == ["before", "own", "control"]
    assert found["ways"] == kept["ways"], "trainings are kept and give the same again"


def test_rows_of_another_file_can_be_measured(call: Call, audited: Audited, run: Path, tmp_path: Path) -> None:
    decide(run, *((name, "relabel", right(audited, name)) for name in audited.flipped))
    frame = pd.read_csv(audited.source, dtype=str).assign(id=lambda rows: "t" + rows["id"])
    frame.iloc[:40].to_csv(tmp_path / "test.csv", index=False)
    shown = call("retrain", run, "--seeds", 1, "--test", tmp_path / "test.csv", "--json", "--quiet")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert (found["held_out"], found["relabelled"]) == (40, len(audited.flipped))
    frame.drop(columns="label").to_csv(tmp_path / "bare.csv", index=False)
    assert "--test must hold labels" in call("retrain", run, "--test", tmp_path / "bare.csv").one_line()


def test_what_cannot_be_is_refused_in_one_line(call: Call, run: Path, tmp_path: Path) -> None:
    def refused(code: int, told: str, *options: object) -> None:
        shown = call("retrain", run, *options)
        assert shown.code == code and told in shown.one_line(), shown.err

    refused(2, f"whence serve {run} --edit")
    decide(run, ("m0", "keep", None), ("m1", "unsure", None))
    refused(2, "decisions must change at least one row")
    decide(run, ("m3", "drop", None))
    refused(2, "seeds must be at least 1", "--seeds", 0)
    refused(2, "must end in", "--out", tmp_path / "decided.png")
    refused(1, "no such folder", "--out", tmp_path / "none" / "decided.csv")
    (tmp_path / "there.csv").write_text("mine")
    assert call("retrain", run, "--out", tmp_path / "there.csv").code != 0
    assert (tmp_path / "there.csv").read_text() == "mine", "a file is not replaced without --force"
    refused(2, "--model must be left out", "--model", "none.py:f")
    missing = call("retrain", tmp_path / "nowhere")
    assert missing.code == 1 and missing.one_line()
    (run / FILE).write_bytes(b"no table")
    refused(1, "complete file of decisions")


@pytest.fixture
def own(call: Call, tmp_path: Path) -> tuple[Path, Path]:
    """Return a run of a person's own model, and its file; every tenth label is wrong."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(80):
        label = i % 2
        a = 2 * label - 1 + generator.normal(0, 0.4)
        rows.append((f"r{i}", f"{a:.3f}", f"{generator.normal():.3f}", ("no", "yes")[label ^ (i % 10 == 3)]))
    source = write_csv(tmp_path / "own.csv", rows, ("id", "a", "b", "label"))
    code = tmp_path / "model.py"
    code.write_text(CODE)
    shown = call("audit", source, "--label", "label", "--model", f"{code}:recipe", "--out", tmp_path / "own")
    assert shown.code == 0, shown.err
    return tmp_path / "own", code


def test_an_own_model_is_asked_for_again_with_its_recipe(call: Call, own: tuple[Path, Path]) -> None:
    run, code = own
    decide(run, *((f"r{i}", "relabel", "yes" if i % 2 else "no") for i in range(3, 80, 10)))
    without = call("retrain", run)
    assert without.code == 2 and "--model FILE.py:FUNC must be given again" in without.one_line()
    bare = call("retrain", run, "--model", f"{code}:trained")
    assert bare.code == 2 and "must come with its recipe" in bare.one_line()
    many = call("retrain", run, "--model", f"{code}:recipe", "--processes", 2)
    assert many.code == 2 and "processes must be 1" in many.one_line()
    shown = call("retrain", run, "--model", f"{code}:recipe", "--seeds", 2, "--json")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert found["seeds"] == 2 and 0 < found["relabelled"] <= 8 and found["dropped"] == 0
    assert "chatter" in shown.err and "chatter" not in shown.out
