"""A person's own model: ``--model FILE.py:FUNC`` and ``--weights``."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from whence.cli.usermodel import load_user_model
from whence.data import ReadOptions, read

CODE = """
import numpy as np
import torch
from torch import nn

def make(data):
    inputs = torch.from_numpy(data.content[["a", "b"]].to_numpy(np.float32, copy=True))
    return nn.Sequential(nn.Linear(2, 2)), inputs

def plain(data):
    return nn.Linear(2, 2)

def raises(data):
    raise RuntimeError("no such\\nluck")

def no_module(data):
    return 3

def wide(data):
    return nn.Linear(2, 5), make(data)[1]

def misfit(data):
    return nn.Linear(7, 2), make(data)[1]

def short(data):
    return nn.Linear(2, 2), make(data)[1][:3]

def broken(data):
    model, inputs = make(data)
    nn.init.constant_(model[0].weight, float("nan"))
    return model, inputs

def not_finite(data):
    model, inputs = make(data)
    return model, inputs * float("inf")

def leaves(data):
    raise SystemExit(3)

class Partly(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.table = nn.Linear(2, 2), nn.Embedding(7, 2, scale_grad_by_freq=True)

    def forward(self, x):
        return self.linear(x) + self.table(torch.zeros(len(x), dtype=torch.int64))

def partly(data):
    torch.manual_seed(0)
    return Partly(), make(data)[1]

constant = 7
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, a model's code and its weights."""
    folder = tmp_path_factory.mktemp("own")
    generator = np.random.default_rng(0)
    label = np.arange(60) % 2
    wrong = np.where(np.isin(np.arange(60), (4, 9)), 1 - label, label)
    table = {"a": label * 2 - 1 + generator.normal(0, 0.3, 60), "b": generator.normal(size=60), "label": wrong}
    pd.DataFrame(table).to_csv(folder / "data.csv", index=False)
    split = np.where(np.arange(60) < 40, "train", "test")
    pd.DataFrame({**table, "split": split}).to_csv(folder / "split.csv", index=False)
    (folder / "model.py").write_text(CODE)
    (folder / "syntax.py").write_text("def make(data:\n")
    state = {"0.weight": torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), "0.bias": torch.zeros(2)}
    save_file(state, folder / "weights.safetensors")
    torch.save(state, folder / "weights.pt")
    save_file({"1.weight": torch.zeros(2)}, folder / "other.safetensors")
    (folder / "broken.safetensors").write_bytes(b"\x00" * 20)
    torch.save(nn.Linear(2, 2), folder / "pickled.pt")
    return folder


def own(place: Path, name: str = "make", weights: str | None = "weights.safetensors") -> tuple[object, ...]:
    """Return the options that bring the model."""
    model = ("--model", f"{place / 'model.py'}:{name}")
    return model if weights is None else (*model, "--weights", place / weights)


@pytest.mark.parametrize("weights", ["weights.safetensors", "weights.pt"])
def test_audit_and_explain(call, place: Path, tmp_path: Path, weights: str) -> None:
    run = tmp_path / "run"
    shown = call("audit", place / "data.csv", "--out", run, "--label", "label", *own(place, weights=weights))
    assert shown.code == 0, shown.err
    suspects = pd.read_parquet(run / "suspects.parquet")
    assert set(suspects["id"][:2]) == {"4", "9"} and suspects["is_suspect"][:2].all()
    assert json.loads((run / "manifest.json").read_text())["model"]["embedded"] is False
    shown = call("explain", run, "--query", "4")
    assert shown.code == 2 and "--model" in shown.one_line()
    shown = call("explain", run, "--query", "4", "--json", *own(place, weights=weights))
    assert shown.code == 0, shown.err
    parsed = json.loads(shown.out)
    assert parsed["query"]["label"] != parsed["query"]["predicted"] and parsed["harmful"]
    shown = call("explain", run, "--query", "4", *own(place, weights=None))
    assert shown.code == 1 and "weights" in shown.one_line()
    assert call("clean", run, "--out", tmp_path / "clean.csv").code == 0


def test_a_model_that_learned_nothing_is_told(call, place: Path, tmp_path: Path) -> None:
    """All weights zero, as good as untrained: every row is as likely as the other class."""
    save_file({"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(2)}, tmp_path / "zero.safetensors")
    model = (*own(place, weights=None), "--weights", tmp_path / "zero.safetensors")
    shown = call("audit", place / "data.csv", "--out", tmp_path / "run", "--label", "label", "--json", *model)
    assert shown.code == 0, shown.err
    told = json.loads(shown.out)["warnings"]
    assert any(one["title"] == "The model learned little." and "audited rows" in one["text"] for one in told)


def test_inputs_are_made_where_the_function_returns_a_model_alone(call, place: Path, tmp_path: Path) -> None:
    shown = call("audit", place / "data.csv", "--out", tmp_path / "run", "--label", "label", *own(place, "plain", None))
    assert shown.code == 0, shown.err


def test_a_split_tells_which_rows_the_model_was_trained_on(call, place: Path, tmp_path: Path) -> None:
    shown = call("audit", place / "split.csv", "--out", tmp_path / "run", "--label", "label", *own(place))
    assert shown.code == 0, shown.err
    suspects = pd.read_parquet(tmp_path / "run" / "suspects.parquet")
    assert len(suspects) == 60 and set(suspects["id"][:2]) == {"4", "9"}
    shown = call("explain", tmp_path / "run", "--query", "50", "--json", *own(place))
    assert shown.code == 0, shown.err
    parsed = json.loads(shown.out)
    assert all(int(row["id"]) < 40 for side in ("helpful", "harmful") for row in parsed[side])


def test_what_cannot_be_attributed_is_told_with_its_share(call, place: Path, tmp_path: Path) -> None:
    line = "6 of 20 trainable parameters attributed (30.0%); cannot be attributed: 'table' (70.0%)"
    asked = (place / "data.csv", "--label", "label", *own(place, "partly", None))
    shown = call("plan", *asked)
    assert shown.code == 0 and line in " ".join(shown.out.split())
    shown = call("audit", *asked, "--out", tmp_path / "run")
    assert shown.code == 0 and line in " ".join(shown.out.split())
    warnings = json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"]
    assert [line in warning["text"] for warning in warnings].count(True) == 1


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("raises", None, ("RuntimeError", "no such luck")),
        ("no_module", None, ("torch.nn.Module", "int")),
        ("constant", None, ("constant",)),
        ("absent", None, ("absent",)),
        ("wide", None, ("logits", "2")),
        ("misfit", None, ("model", "inputs")),
        ("short", None, ("3", "60")),
        ("broken", None, ("finite",)),
        ("not_finite", None, ("finite",)),
        ("leaves", None, ("leaves",)),
        ("make", "absent.safetensors", ("absent.safetensors",)),
        ("make", "other.safetensors", ("must fit the model",)),
        ("make", "broken.safetensors", ("broken.safetensors",)),
        ("make", "model.py", ("model.py",)),
        ("make", "pickled.pt", ("pickled.pt", "weights_only")),
    ],
)
def test_models_that_do_not_work(call, place: Path, tmp_path: Path, name: str, weights: str | None, words) -> None:
    shown = call("audit", place / "data.csv", "--out", tmp_path / "run", "--label", "label", *own(place, name, weights))
    line = shown.one_line()
    assert shown.code in (1, 2)
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", ["model.py", ":make", "absent.py:make", "syntax.py:make", "data.csv:make"])
def test_names_that_are_no_model(call, place: Path, tmp_path: Path, spec: str, monkeypatch) -> None:
    monkeypatch.chdir(place)
    shown = call("audit", "data.csv", "--out", tmp_path / "run", "--label", "label", "--model", spec)
    assert shown.code == 2 and shown.one_line() and not list(tmp_path.iterdir())


def test_texts_need_inputs(call, place: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"label": ["a", "b"] * 8, "text": [f"word {i} here" for i in range(16)]})
    frame.to_csv(tmp_path / "texts.csv", index=False)
    shown = call(
        "audit", tmp_path / "texts.csv", "--out", tmp_path / "run", "--text", "text", *own(place, "plain", None)
    )
    assert shown.code == 2 and "inputs" in shown.one_line()


def test_the_function_is_called_under_the_seed(place: Path) -> None:
    data = read(place / "data.csv", ReadOptions(label="label"))
    torch.manual_seed(5)
    made = [load_user_model(f"{place / 'model.py'}:plain", None, data, seed=seed).model for seed in (0, 0, 1)]
    assert torch.equal(made[0].weight, made[1].weight)
    assert not torch.equal(made[0].weight, made[2].weight)
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(5)))
