"""``whence attack``: page, JSON and altered inputs; every kind of model; bad input is one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_samples import EXAMPLES, Outcome
from torch import nn

import whence as wh
from whence.features import read_manifest, read_tensors, write_manifest
from whence.report import render_attack
from whence.uses.attack_head import split_head

Call = Callable[..., Outcome]

CODE = """
import torch
import whence as wh
from torch import nn

def inputs(data):
    return torch.from_numpy(data.content).permute(0, 3, 1, 2).float() / 255

def build():
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, 6), nn.Tanh(), nn.Linear(6, 2))

def recipe(data):
    return wh.Recipe(build=build, optimizer="sgd", learning_rate=0.2, epochs=8, batch_size=16), inputs(data)

def model(data):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(), inputs(data)

def columns(data):
    table = torch.from_numpy(data.content.to_numpy("float32", copy=True))
    return wh.Recipe(build=lambda: nn.Linear(2, 2), optimizer="lbfgs", weight_decay=0.1), table

def after(data):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 2), nn.Tanh()), inputs(data)

def whole(data):
    return build(), inputs(data).long()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty small images of two classes, a table, and models' code."""
    folder = tmp_path_factory.mktemp("attack")
    with np.load(EXAMPLES / "fashion_mnist_1000.npz") as stored:
        rows = np.flatnonzero(stored["y"] < 2)[:60]
        np.savez(folder / "<i>images.npz", x=stored["x"][rows], y=stored["y"][rows])
    generator = np.random.default_rng(0)
    label = np.arange(40) % 2
    lines = [f"{label[i] + generator.normal():.3f},{generator.normal():.3f},{label[i]}" for i in range(40)]
    (folder / "table.csv").write_text("\n".join(["a<b,c,label", *lines]) + "\n")
    (folder / "model.py").write_text(CODE)
    return folder


@pytest.fixture
def attack(call: Call, place: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Return a function that attacks the images with a model of the file."""

    def run(*arguments: object, func: str | None = "recipe", data: str = "<i>images.npz", label: str = "y") -> Outcome:
        own = () if func is None else ("--model", f"{place / 'model.py'}:{func}")
        return call("attack", place / data, *own, "--label", label, "--out", tmp_path / "out", "-q", *arguments)

    return run


def test_the_last_layer_of_a_recipe(attack: Callable[..., Outcome], tmp_path: Path) -> None:
    told = attack("--target", 3, "--target", "5", "--images", 2, "--radius", 4, "--steps", 3, "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert found["format"] == 1
    assert {row["id"] for row in found["targets"]} == {"3", "5"}
    assert len(found["altered"]) == 2
    assert not {row["id"] for row in found["altered"]} & {"3", "5"}
    for row in found["altered"]:
        assert row["before"]["kind"] == row["after"]["kind"] == row["difference"]["kind"] == "image"
        assert row["before"]["png"] != row["difference"]["png"]
        assert row["largest"] <= 4 * (1 + 1e-6)
    assert set(found["summary"]["controls"]) == {"random signs", "gradient matching", "rounded to whole levels"}
    assert "Its last layer was then trained again at every step" in found["said"][0]
    assert [row["reach"] for row in found["reach"]] == sorted((row["reach"] for row in found["reach"]), reverse=True)
    page = (tmp_path / "out" / "attack.html").read_text("utf-8")
    assert page == render_attack({key: value for key, value in found.items() if key != "page"})
    assert "&lt;i&gt;images.npz" in page
    assert "<i>images" not in page
    assert "audits your own model" in page
    altered = read_tensors(tmp_path / "out" / "altered.safetensors")
    assert altered["delta"].shape == (2, 1, 28, 28)
    assert float(altered["delta"].abs().max()) <= 4 / 255 * (1 + 1e-6)
    assert json.loads((tmp_path / "out" / "attack.json").read_text("utf-8"))["summary"] == found["summary"]


def test_what_is_printed(attack: Callable[..., Outcome]) -> None:
    told = attack("--target", 3, "--steps", 1, func="model")
    assert told.code == 0, told.err
    for words in ("of 1 predictions flip", "this attack", "random signs", "rounded to whole levels", "attack.html"):
        assert words in told.out
    given = json.loads(attack("--target", 3, "--steps", 1, "--json", func="model").out)
    lost = given["targets"][0]["margin_before"] <= 0
    assert ("predicted otherwise than labelled before" in " ".join(told.out.split())) == lost


def test_all_layers_by_the_recipe(attack: Callable[..., Outcome]) -> None:
    told = attack("--target", 3, "--steps", 1, "--layers", "all", "--radius", 20, "--norm", "l2", "--json")
    assert told.code == 0, told.err
    assert "All layers were trained again" in json.loads(told.out)["said"][0]


def test_the_embedded_model_of_images(attack: Callable[..., Outcome]) -> None:
    told = attack("--target", 3, "--steps", 1, "--json", func=None)
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert found["model"]["name"] == "image-cnn"
    assert found["summary"]["box"]["level"] == pytest.approx(1 / 255)


def test_a_table_is_altered_in_its_own_units(attack: Callable[..., Outcome], tmp_path: Path) -> None:
    told = attack(
        "--target", 7, "--steps", 4, "--radius", 0.3, "--json", func="columns", data="table.csv", label="label"
    )  # fmt: skip
    assert told.code == 0, told.err
    changes = json.loads(told.out)["altered"][0]["changes"]
    assert {change["name"] for change in changes} == {"a<b", "c"}
    assert all(abs(change["after"] - change["before"]) <= 0.3 * (1 + 1e-6) for change in changes)
    assert "a&lt;b" in (tmp_path / "out" / "attack.html").read_text("utf-8")


BAD: list[tuple[tuple[object, ...], dict[str, Any], str]] = [
    (("--target", 999), {}, "target must be an id of the data, got '999'"),
    (("--target", 3, "--norm", "l1"), {}, "norm must be"),
    (("--target", 3, "--radius", 0), {}, "radius must be positive"),
    (("--target", 3, "--layers", "first"), {}, "layers must be"),
    (("--target", 3, "--weight-decay", 0), {}, "weight_decay must be positive"),
    (("--target", 3, "--layers", "all"), {"func": "model"}, "with a recipe only"),
    (("--target", 3), {"func": "after"}, "must be those of its last layer"),
    (("--target", 3), {"func": "whole"}, "one floating-point tensor"),
    (("--target", 3), {"func": None, "data": "table.csv", "label": "label"}, "through images only"),
]


@pytest.mark.parametrize("arguments, settings, match", BAD, ids=[case[2][:20] for case in BAD])
def test_bad_input_is_one_line(
    attack: Callable[..., Outcome], arguments: tuple[object, ...], settings: dict[str, Any], match: str
) -> None:
    told = attack(*arguments, **settings)
    assert told.code != 0
    assert match in " ".join(told.one_line().split())


def test_a_model_is_split_before_its_last_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))
    frozen, head = split_head(model, torch.randn(5, 4))
    x = torch.randn(7, 4)
    torch.testing.assert_close(head(frozen(x)), model.eval()(x))
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(wh.ConfigError, match="last layer must be linear, got Conv2d"):
        split_head(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), torch.randn(2, 1, 3, 3))


def test_the_seed_is_that_of_the_model_too(attack: Callable[..., Outcome], tmp_path: Path) -> None:
    before = [
        json.loads(attack("--target", 3, "--steps", 1, "--json", "--seed", seed).out)["targets"][0]["margin_before"]
        for seed in (0, 1, 0)
    ]
    assert before[0] == before[2] != before[1]


def test_a_run_of_another_kind_is_not_replaced(attack: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_manifest(tmp_path / "out", {"kind": "audit"})
    told = attack("--target", 3, "--steps", 1)
    assert "of kind 'attack', got" in told.one_line()
    assert "of kind 'audit'" in told.one_line()
    assert read_manifest(tmp_path / "out", "audit")
    write_manifest(tmp_path / "out", {"kind": "attack"})
    assert attack("--target", 3, "--steps", 1).code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_a_file_name_that_is_no_text(call: Call, place: Path, tmp_path: Path) -> None:
    named = tmp_path / "caf\udce9.csv"
    named.write_bytes((place / "table.csv").read_bytes())
    asked = ("--label", "label", "--target", 7, "--model", f"{place / 'model.py'}:columns", "--steps", 1)
    told = call("attack", named, *asked, "--out", tmp_path / "out", "-q", "--json")
    assert told.code == 0, told.err
    stored = json.loads((tmp_path / "out" / "attack.json").read_text("utf-8"))
    assert stored["data"]["source"] == json.loads(told.out)["data"]["source"]
