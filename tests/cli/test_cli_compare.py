"""``whence compare``: table, page, recommendation; the same seed gives the same; bad input is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_samples import EXAMPLES, Outcome, sms, write_csv

from whence.features import write_manifest

Call = Callable[..., Outcome]

CODE = """
import functools
import numpy as np
import torch
import whence as wh

def inputs(data):
    return torch.from_numpy(data.content[["a", "b"]].to_numpy(np.float32, copy=True))

def recipe(data):
    build = functools.partial(torch.nn.Linear, 2, 2)
    return wh.Recipe(build=build, optimizer="sgd", learning_rate=0.2, epochs=6, batch_size=32), inputs(data)

def model(data):
    made = torch.nn.Linear(2, 2)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]))
    return made, inputs(data)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with ten wrong labels, a column that says so, and a model's code."""
    folder = tmp_path_factory.mktemp("compare")
    generator = np.random.default_rng(0)
    label = np.arange(120) % 2
    wrong = np.arange(120) % 12 == 5
    table = {"a": label * 2 - 1 + generator.normal(0, 0.5, 120), "b": generator.normal(size=120)}
    frame = pd.DataFrame({**table, "label": np.where(wrong, 1 - label, label), "wrong": wrong.astype(int)})
    frame.to_csv(folder / "<i>data & more.csv", index=False)
    frame.assign(split=np.where(np.arange(120) < 80, "train", "test")).to_csv(folder / "split.csv", index=False)
    (folder / "model.py").write_text(CODE)
    return folder


@pytest.fixture
def compare(call: Call, place: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Return a function that compares on the table with the linear recipe."""

    def run(*arguments: object, out: str = "out", data: str = "<i>data & more.csv", func: str = "recipe") -> Outcome:
        own = ("--model", f"{place / 'model.py'}:{func}", "--label", "label")
        drop = () if "--known-errors" in arguments else ("--drop", "wrong")
        return call("compare", place / data, *own, *drop, "--out", tmp_path / out, *arguments)

    return run


SMALL = ("--subsets", 4, "--queries", 10)


def lasting(found: dict[str, Any]) -> list[Any]:
    """Everything of a table but what it cost."""
    return [
        {key: value for key, value in entry.items() if key not in ("seconds", "passes")} for entry in found["entries"]
    ]


def test_the_same_seed_gives_the_same_table(compare: Callable[..., Outcome], tmp_path: Path) -> None:
    first, second = (compare(*SMALL, "--json", out=out) for out in ("one", "two"))
    assert first.code == 0, first.err
    one, two = json.loads(first.out), json.loads(second.out)
    assert lasting(one) == lasting(two) and one["truth"] == two["truth"]
    names = [entry["name"] for entry in one["entries"]]
    assert {"EK-FAC", "K-FAC", "exact", "gradient dot product", "EK-FAC, 5 models", "kNN", "random"} <= set(names)
    scored = {entry["name"] for entry in one["entries"] if entry["accuracy"]}
    assert {"TRAK", "representer", "TracIn, 5 checkpoints", "gradient cosine", "kNN-Shapley"} <= scored
    assert "BM25" not in names and "audit's suspicion" not in names
    assert one["truth"]["rows"] == 110 and one["truth"]["queries"] == 10 and one["truth"]["seeds"] == 2
    assert any("10 of 120 rows" in sentence for sentence in one["said"])
    assert "retraining: 8 trainings" in first.err
    other = json.loads(compare(*SMALL, "--json", "--seed", 1, out="three").out)
    assert lasting(other) != lasting(one)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "cache", "comparison.html", "comparison.json", "manifest.json"
    }  # fmt: skip
    assert lasting(json.loads((tmp_path / "one" / "comparison.json").read_text())) == lasting(one)


def test_a_second_call_trains_nothing_again(compare: Callable[..., Outcome], tmp_path: Path) -> None:
    first = compare(*SMALL)
    assert first.code == 0 and "LDS" in first.out and "page:" in first.out, first.err
    again = compare(*SMALL)
    assert again.code == 0 and "0 trainings (8 more are in the cache)" in again.err
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "<i>data" not in page and "&lt;i&gt;data &amp; more.csv" in page and "feature similarity" in page
    assert "<script" in page and "http" not in page.replace("http-equiv", "")
    (tmp_path / "out" / "comparison.json").unlink()
    (tmp_path / "out" / "comparison.html").unlink()  # as an interrupted call leaves it
    assert compare(*SMALL).code == 0


def test_leave_one_out(compare: Callable[..., Outcome]) -> None:
    shown = compare("--truth", "loo", "--loo", 6, "--queries", 10, "--json")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert found["truth"]["kind"] == "loo" and found["truth"]["count"] == 6 and "14 trainings" in shown.err
    slopes = {entry["name"]: "slope" in entry["details"] for entry in found["entries"] if entry["accuracy"]}
    assert slopes["EK-FAC"] and not slopes["loss"]


def test_known_errors_and_noise(compare: Callable[..., Outcome]) -> None:
    shown = compare("--known-errors", "wrong", "--json")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    by_name = {entry["name"]: entry for entry in found["entries"]}
    assert all(by_name[name]["accuracy"] for name in ("GEX", "TRAK", "representer"))
    assert found["truth"]["count"] == 10 and found["truth"]["rows"] == 120 and found["truth"]["queries"] == 0
    assert by_name["loss"]["accuracy"][0] > 0.8 > by_name["random"]["accuracy"][0]
    assert "audit's suspicion" in by_name and "auc" in by_name["loss"]["details"]
    noisy = compare("--noise", 0.1, "--json", "--quiet", out="noise")
    assert noisy.code == 0 and json.loads(noisy.out)["truth"]["count"] == 12 and noisy.err == ""


def test_a_model_without_a_recipe(compare: Callable[..., Outcome]) -> None:
    shown = compare("--known-errors", "wrong", "--json", func="model")
    assert shown.code == 0, shown.err
    notes = {entry["name"]: entry["note"] for entry in json.loads(shown.out)["entries"]}
    assert "Recipe" in notes["EK-FAC, 5 models"] and not notes["EK-FAC"]
    for arguments in ((), ("--noise", 0.2)):
        shown = compare(*arguments, func="model", out="refused")
        assert shown.code == 2 and "(Recipe, inputs)" in shown.one_line()


def test_queries_come_from_outside_the_train_split(compare: Callable[..., Outcome]) -> None:
    shown = compare("--subsets", 4, "--queries", 12, "--rows", 50, "--seeds", 1, "--json", data="split.csv")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    assert found["truth"]["rows"] == 50 and found["truth"]["queries"] == 12 and found["truth"]["ceiling"] is None
    assert any("50 of 80 training rows" in said for said in found["said"])
    assert any("12 of 40 rows outside" in said for said in found["said"])


def test_texts_with_the_embedded_default(call: Call, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "sms.csv", sms(80), ("label", "text"))
    shown = call("compare", source, "--label", "label", "--noise", 0.1, "--json", "--out", tmp_path / "out")
    assert shown.code == 0, shown.err
    found = json.loads(shown.out)
    names = {entry["name"] for entry in found["entries"] if entry["accuracy"]}
    assert {"BM25", "audit's suspicion", "EK-FAC, as in audit"} <= names
    assert found["recommended"] is None or found["recommended"] in found["reason"]


def test_the_example_of_a_network_of_ones_own(call: Call, tmp_path: Path) -> None:
    model = f"{EXAMPLES.parent / 'mnist_mlp.py'}:mlp"
    shown = call("compare", EXAMPLES / "fashion_mnist_1000.npz", "--model", model, "--rows", 60, "--queries", 5,
                 "--truth", "known-errors", "--noise", 0.2, "--json", "--out", tmp_path / "out")  # fmt: skip
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["model"] == {"name": "mlp", "parameters": 269_322}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--truth", "magic"), ("truth", "magic")),
        (("--truth", "known-errors"), ("--known-errors", "--noise")),
        (("--noise", 0.1, "--known-errors", "wrong"), ("only one",)),
        (("--noise", 0.1, "--truth", "lds"), ("known-errors", "lds")),
        (("--noise", 1.5), ("noise", "1.5")),
        (("--noise", 0.001), ("noise", "120 labels", "Raise it")),
        (("--cache", EXAMPLES / "sms_spam.csv.gz"), ("cache", "sms_spam.csv.gz", "is a file")),
        (("--cache", EXAMPLES / "sms_spam.csv.gz" / "in"), ("cache", "is a file")),
        (("--subsets", 1), ("subsets", "1")),
        (("--loo", 0), ("loo", "0")),
        (("--seeds", 0), ("seeds", "0")),
        (("--rows", 2), ("rows", "2")),
        (("--queries", -1), ("queries", "-1")),
        (("--queries", 0), ("queries", "0")),
        (("--processes", 0), ("processes", "0")),
        (("--processes", 2), ("processes", "model.py")),
        (("--known-errors", "nope"), ("nope",)),
        (("--known-errors", "a"), ("'a'", "1/0")),
    ],
)
def test_refusals(compare: Callable[..., Outcome], tmp_path: Path, arguments: tuple[object, ...], words) -> None:
    shown = compare(*arguments)
    line = shown.one_line()
    assert shown.code in (1, 2) and shown.out == ""
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


def test_places_that_hold_something_else(compare: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    shown = compare(*SMALL)
    assert shown.code == 1 and "holds other files" in shown.one_line()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_no_errors_among_the_rows(call: Call, tmp_path: Path) -> None:
    rows = [(label, text, 0) for label, text in sms(40)]
    source = write_csv(tmp_path / "sms.csv", rows, ("label", "text", "wrong"))
    shown = call("compare", source, "--label", "label", "--text", "text", "--known-errors", "wrong",
                 "--out", tmp_path / "out")  # fmt: skip
    assert shown.code == 1 and "known errors must be some" in shown.one_line()


def test_two_processes_give_the_same_table(call: Call, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "sms.csv", sms(80), ("label", "text"))
    tables = []
    for processes in (1, 2):
        shown = call("compare", source, "--label", "label", "--subsets", 4, "--queries", 8, "--json",
                     "--processes", processes, "--out", tmp_path / f"out{processes}")  # fmt: skip
        assert shown.code == 0, shown.err
        tables.append(json.loads(shown.out))
    assert lasting(tables[0]) == lasting(tables[1]) and tables[0]["truth"] == tables[1]["truth"]
    assert len(list((tmp_path / "out2" / "cache").iterdir())) == 8


def test_a_small_ground_truth_is_named_and_costs_are_told_without_powers(call: Call, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "sms.csv", sms(24), ("label", "text"))
    shown = call("compare", source, "--label", "label", "--subsets", 4, "--seeds", 1, "--out", tmp_path / "out")
    assert shown.code == 0, shown.err
    assert "With only 4 halves and 4 queries" in " ".join(shown.out.split()) and "e+0" not in shown.out


def test_an_audit_is_not_written_over(compare: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_manifest(tmp_path / "out", {"kind": "audit"})
    assert "of kind 'comparison', got" in compare(*SMALL).one_line()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
