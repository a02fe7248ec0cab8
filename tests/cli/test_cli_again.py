"""Relabel, prune, cleanse, sources, curves: what they write, print and refuse, on small real data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_samples import EXAMPLES, Outcome, write_csv

from whence.report import render_learning, render_sources, render_treated

Call = Callable[..., Outcome]

CODE = """
import functools
import numpy as np
import torch
import whence as wh

def net(width):
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))

def recipe(data):
    inputs = torch.from_numpy(data.content[["a", "b"]].to_numpy(np.float32, copy=True))
    return wh.Recipe(build=functools.partial(net, 8), epochs=8, learning_rate=0.05, batch_size=16), inputs
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with wrong labels and a hostile name of one, cells that are easily damaged, a split, and a model."""
    folder = tmp_path_factory.mktemp("again")
    generator = np.random.default_rng(0)
    true = np.arange(120) % 2
    wrong = (np.arange(120) % 10 == 3) & (np.arange(120) < 80)
    names = np.array(["<b>no</b>", "yes"])
    rows = [
        (f"{i:03d}", f"{2 * t - 1 + generator.normal(0, 0.4):.3f}", int(generator.integers(0, 9)), "?" if i % 7 else "",
         names[1 - t if w else t], "train" if i < 80 else "test", "left" if i % 3 else "right", int(i % 3 == 0))
        for i, (t, w) in enumerate(zip(true, wrong, strict=True))
    ]  # fmt: skip
    columns = ("id", "a", "b", "note", "label", "split", "source", "mine")
    write_csv(folder / "data.csv", rows, columns)
    whole = [row[:5] + row[6:] for row in rows]
    write_csv(folder / "whole.csv", whole, columns[:5] + columns[6:])
    (folder / "model.py").write_text(CODE)
    return folder


@pytest.fixture
def run(call: Call, place: Path, tmp_path: Path) -> tuple[Path, tuple[str, str]]:
    model = ("--model", f"{place / 'model.py'}:recipe")
    drop = ("--drop", "source", "--drop", "mine", "--drop", "note")
    shown = call("audit", place / "data.csv", "--label", "label", *drop, *model, "--out", tmp_path / "run")
    assert shown.code == 0, shown.err
    return tmp_path / "run", model


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_relabel_changes_labels_above_the_threshold_and_no_other_cell(call: Call, place, run, tmp_path: Path) -> None:
    folder, model = run
    out = tmp_path / "new.csv"
    shown = call("relabel", folder, "--out", out, "--seeds", 2, *model)
    assert shown.code == 0, shown.err
    found = json.loads((folder / "relabel.json").read_text(encoding="utf-8"))
    before, after = lines(place / "data.csv"), lines(out)
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert 0 < len(changed) == found["changed"] < 40 and str(len(changed)) in shown.out
    for old, new in changed:
        assert old.replace("<b>no</b>", "yes") == new.replace("<b>no</b>", "yes"), "nothing but the label changes"
    own, listed = pd.read_csv(place / "data.csv", dtype=str), {row["id"] for row in found["listed"]}
    assert listed == {old.split(",")[0] for old, _ in changed}
    assert {row[0] for row in own.loc[own["split"] == "test", ["id"]].values}.isdisjoint(listed)
    assert [way["kind"] for way in found["ways"]] == ["before", "own", "other", "other"] and found["held_out"] == 40
    for way in found["ways"]:
        value, low, high = way["accuracy"]
        assert 0 <= low <= value <= high <= 1
        assert way["change"][0] == pytest.approx(value - found["ways"][0]["accuracy"][0], abs=1e-12)
    page = (folder / "relabel.html").read_text(encoding="utf-8")
    assert "<b>no" not in page and "&lt;b&gt;no" in page
    assert 'href="relabel.html"' in (folder / "report.html").read_text(encoding="utf-8")
    twice = call("relabel", folder, "--seeds", 2, "--json", *model)
    again = json.loads(twice.out)
    assert again["ways"] == found["ways"] and again["file"] is None and "0 trainings (8 more" in twice.err
    none = json.loads(call("relabel", folder, "--threshold", "1e9", "--seeds", 1, "--json", *model).out)
    assert none["changed"] == 0 and none["ways"][1]["change"] == [0, 0, 0]


def test_prune_drops_the_lowest_by_class_and_in_rounds(call: Call, place, run, tmp_path: Path) -> None:
    folder, model = run
    out = tmp_path / "fewer.csv"
    shown = call("prune", folder, "--share", "0.25", "--balanced", "--seeds", 1, "--out", out, "--json", *model)
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert found["changed"] == 20 and found["of"] == 80
    assert len({row["dropped"] / row["rows"] for row in found["classes"]}) <= 2
    kept, before = lines(out), lines(place / "data.csv")
    assert set(kept) < set(before) and len(before) - len(kept) == 20
    assert all(line in kept for line in before if ",test," in line)
    assert [way["removed"] for way in found["ways"]][-2:] == [20, 20] and found["ways"][-1]["kind"] == "control"
    iterative = json.loads(call("prune", folder, "--iterative", "--seeds", 1, "--json", *model).out)
    assert iterative["rounds"] == 5 and iterative["changed"] == 16


def test_cleanse_leaves_out_what_harms_another_place(call: Call, place, run, tmp_path: Path) -> None:
    folder, model = run
    generator = np.random.default_rng(1)
    rows = [(f"t{i}", f"{2 * (i % 2) - 1 + generator.normal(0, 0.4):.3f}", 3, "<b>no</b>" if i % 2 == 0 else "yes")
            for i in range(60)]  # fmt: skip
    target = write_csv(tmp_path / "target.csv", rows, ("id", "a", "b", "label"))
    missing = call("cleanse", folder, "--target", target, *model)
    assert missing.code == 1 and "must have the columns" in missing.one_line()
    frame = pd.read_csv(target, dtype=str).assign(split="train", source="", mine="0", note="")
    frame.to_csv(target, index=False)
    out = tmp_path / "fitting.csv"
    shown = call("cleanse", folder, "--target", target, "--share", "0.1", "--seeds", 1, "--out", out, "--json", *model)
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert found["parts"] == {"name": 30, "choose": 0, "judge": 30} and found["changed"] == 8
    assert {row["id"] for row in found["listed"]} == {
        line.split(",")[0] for line in set(lines(place / "data.csv")) - set(lines(out))
    }
    wrong = {f"{i:03d}" for i in range(80) if i % 10 == 3}
    assert len({row["id"] for row in found["listed"]} & wrong) >= 4, "wrong labels harm"
    chosen = json.loads(call("cleanse", folder, "--target", target, "--seeds", 1, "--json", *model).out)
    assert chosen["parts"] == {"name": 20, "choose": 20, "judge": 20}
    few = tmp_path / "few.csv"
    frame.head(15).to_csv(few, index=False)
    assert "must be at least 30, got 15" in call("cleanse", folder, "--target", few, *model).one_line()


def test_sources_by_column_by_known_rows_and_by_themselves(call: Call, run) -> None:
    folder, model = run
    shown = call("sources", folder, "--groups", "source", *model)
    assert shown.code == 0, shown.err
    found = json.loads((folder / "sources.json").read_text())
    assert {group["name"]: group["rows"] for group in found["groups"]} == {"left": 53, "right": 27}
    assert all(len(group["effects"]) == 2 for group in found["groups"])
    known = json.loads(call("sources", folder, "--known", "mine", "--json", *model).out)
    assert known["known"] == 27 and 0 < known["changed"] < 53
    alone = json.loads(call("sources", folder, "--json", *model).out)
    assert alone["way"] == "automatic" and 0 < alone["changed"] <= 40
    assert "Sources" in (folder / "report.html").read_text()
    for arguments, words in (
        (("--groups", "id"), "at least two sources"), (("--groups", "nope"), "column must be one of"),
        (("--groups", "source", "--known", "mine"), "only one of"), (("--known", "source"), "must mark at least"),
    ):  # fmt: skip
        assert words in call("sources", folder, *arguments, *model).one_line()


def test_curves_show_what_is_seen_and_unseen(call: Call, run) -> None:
    folder, model = run
    shown = call("curves", folder, "--epochs", 12, *model)
    assert shown.code == 0, shown.err
    found = json.loads((folder / "curves.json").read_text())
    curves = found["curves"]
    assert curves["epoch"] == list(range(1, 13)) and found["held_out"] == 40
    assert curves["seen"][-1] < curves["unseen"][-1] and curves["seen"][-1] < curves["seen"][0]
    assert found["lowest"] == 1 + int(np.argmin(curves["unseen"]))
    assert "polyline" in (folder / "curves.html").read_text()
    assert "--epochs must be at least 2" in call("curves", folder, "--epochs", 1, *model).one_line()


@pytest.mark.parametrize("name", ["relabel", "prune", "cleanse", "sources", "curves"])
def test_what_every_one_refuses(call: Call, run, tmp_path: Path, name: str) -> None:
    folder, model = run
    target = ("--target", folder) if name == "cleanse" else ()
    assert "a run never imports code" in call(name, folder, *target).one_line()
    assert call(name, tmp_path / "none", *target, *model).code == 1
    if name in ("relabel", "prune", "cleanse"):
        assert "must end in" in call(name, folder, *target, "--out", tmp_path / "x.npz", *model).one_line()
        assert "no such folder" in call(name, folder, *target, "--out", tmp_path / "no" / "x.csv", *model).one_line()
        (tmp_path / "there.csv").write_text("mine")
        assert "--force" in call(name, folder, *target, "--out", tmp_path / "there.csv", *model).one_line()
        assert (tmp_path / "there.csv").read_text() == "mine"
        assert "seeds must be at least 1" in call(name, folder, *target, "--seeds", 0, *model).one_line()


def test_values_that_are_out_of_range(call: Call, run) -> None:
    folder, model = run
    for arguments, words in (
        (("relabel", folder, "--by", "luck"), "signal must be one of self_influence"),
        (("relabel", folder, "--scale", "root"), "--scale must be linear or log"),
        (("prune", folder, "--share", "1"), "--share must lie between 0 and 1"),
        (("cleanse", folder, "--target", folder, "--share", "0"), "--share must lie between 0 and 1"),
    ):  # fmt: skip
        assert words in call(*arguments, *model).one_line()


def test_without_a_split_the_audit_is_made_again_and_a_test_file_spares_that(call, place, tmp_path: Path) -> None:
    model = ("--model", f"{place / 'model.py'}:recipe")
    drop = ("--drop", "source", "--drop", "mine", "--drop", "note")
    folder = tmp_path / "run"
    assert call("audit", place / "whole.csv", "--label", "label", *drop, *model, "--out", folder).code == 0
    found = json.loads(call("relabel", folder, "--seeds", 1, "--json", *model).out)
    assert found["held_out"] == 24 and found["rows"] == 96
    assert any("made again without them" in sentence for sentence in found["said"])
    frame = pd.read_csv(place / "whole.csv", dtype=str).tail(30)
    frame.to_csv(tmp_path / "test.csv", index=False)
    other = json.loads(call("relabel", folder, "--seeds", 1, "--test", tmp_path / "test.csv", "--json", *model).out)
    assert other["held_out"] == 30 and other["rows"] == 120
    frame.drop(columns="label").to_csv(tmp_path / "bare.csv", index=False)
    bare = call("relabel", folder, "--test", tmp_path / "bare.csv", *model)
    assert "--test must hold labels in column 'label'" in bare.one_line()


def test_embedded_defaults_of_tables_and_images(call: Call, tmp_path: Path) -> None:
    frame = pd.read_csv(EXAMPLES / "adult_1000.csv.gz", dtype=str, keep_default_na=False).head(150)
    frame.assign(split=np.where(np.arange(150) < 110, "train", "test")).to_csv(tmp_path / "adult.csv", index=False)
    assert call("audit", tmp_path / "adult.csv", "--out", tmp_path / "adult", "-q").code == 0
    out = tmp_path / "adult-new.csv"
    assert call("relabel", tmp_path / "adult", "--out", out, "--seeds", 1, "-q").code == 0
    old, new = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (tmp_path / "adult.csv", out))
    pd.testing.assert_frame_equal(old.drop(columns="label"), new.drop(columns="label"))
    with np.load(EXAMPLES / "fashion_mnist_1000.npz", allow_pickle=False) as stored:
        x, y = stored["x"][:120], stored["y"][:120]
    np.savez(tmp_path / "f.npz", x=x, y=y, split=np.where(np.arange(120) < 90, "train", "test"))
    assert call("audit", tmp_path / "f.npz", "--out", tmp_path / "f", "-q").code == 0
    shown = call("prune", tmp_path / "f", "--share", "0.1", "--seeds", 1, "--out", tmp_path / "g.npz", "-q")
    assert shown.code == 0, shown.err
    with np.load(tmp_path / "g.npz", allow_pickle=False) as stored:
        assert stored["x"].dtype == x.dtype and stored["x"].shape == (111, 28, 28) and stored["y"].dtype == y.dtype
    assert call("curves", tmp_path / "f", "--epochs", 2, "-q").code == 0
    assert "data:image/png" in (tmp_path / "f" / "prune.html").read_text()


def test_pages_escape_what_the_data_hold(call: Call, run, tmp_path: Path) -> None:
    folder, model = run
    evil = "<script>alert(1)</script>"
    pages = ((("prune", "--seeds", 1), render_treated), (("sources", "--groups", "source"), render_sources),
             (("curves", "--epochs", 3), render_learning))  # fmt: skip
    for arguments, render in pages:
        copy = tmp_path / arguments[0]
        shutil.copytree(folder, copy)
        found = json.loads(call(arguments[0], copy, *arguments[1:], "--json", *model).out)
        found["data"]["source"] = found["model"]["name"] = evil
        for part in ("groups", "ways", "listed"):
            for one in found.get(part, []):
                one.update({key: evil for key in ("name", "label", "id") if key in one})
        page = render(found)
        assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
