"""The audit from Python: run folder, split, members, notices; what is on disk is what was computed."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from whence.audit import UserModel, audit, clean, open_run, reload_data, reload_task, train_rows_of, write_run
from whence.audit.blinded import blinded
from whence.data import ReadOptions, read
from whence.errors import ConfigError, DataError, RunFormatError
from whence.uses.label_errors import Members

ROWS = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small table with a split, with two labels flipped, and its finished audit."""
    folder = tmp_path_factory.mktemp("audit")
    generator = np.random.default_rng(0)
    true = np.arange(ROWS) % 2
    given = np.where(np.isin(np.arange(ROWS), (4, 51)), 1 - true, true)
    table = pd.DataFrame({"a": true * 2 - 1 + generator.normal(0, 0.3, ROWS), "b": generator.normal(size=ROWS)})
    table["colour"] = np.where(true, "red", "blue")
    table["label"] = np.array(["no", "yes"])[given]
    table["split"] = np.where(np.arange(ROWS) < 45, "train", "test")
    table.to_csv(folder / "data.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def result(place: Path):
    return audit(read(place / "data.csv"), seed=1, version="9.9")


@pytest.fixture(scope="module")
def run(place: Path, result):
    write_run(result, place / "run", source=str(place / "data.csv"), options=ReadOptions())
    return open_run(place / "run")


def test_a_split_is_trained_on_and_every_row_is_judged(result) -> None:
    assert train_rows_of(result.data).tolist() == list(range(45))
    assert len(result.suspects) == ROWS and set(result.suspects["id"][:2]) == {"4", "51"}
    assert len(result.attribution.examples) == 45
    trained = set(result.data.ids[:45].tolist())
    evidence = dict(zip(result.suspects["id"], result.suspects["evidence"], strict=True))
    for name in ("4", "51"):  # the second is held out: training rows alone can argue against it
        assert evidence[name] and set(evidence[name]) <= trained - {name}
    scores = result.suspects.set_index("id").loc["51", "evidence_scores"]
    assert scores == sorted(scores) and max(scores) < 0
    assert result.summary["whence"] == "9.9" and 0 <= result.summary["model"]["held_out_accuracy"] <= 1
    json.dumps(result.summary, allow_nan=False)
    assert train_rows_of(result.data.rows(np.arange(45))) is None


def test_what_is_on_disk_is_what_was_computed(result, run) -> None:
    stored = pd.read_parquet(run.folder / "suspects.parquet")
    assert stored["id"].tolist() == result.suspects["id"].tolist()
    assert np.array_equal(stored["suspicion"], result.suspects["suspicion"])
    assert run.summary == json.loads(json.dumps(result.summary))
    data = reload_data(run)
    task, preparation, attribution = reload_task(run, data)
    x = preparation.transform(data)
    with torch.no_grad():
        assert torch.equal(task.model(x), result.attribution.task.model(x))
    assert attribution.ids.tolist() == result.attribution.ids.tolist()


def test_a_failed_write_keeps_the_earlier_run(result, run, monkeypatch) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.folder.iterdir())

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("whence.audit.folder.write_attribution", stop)
    with pytest.raises(KeyboardInterrupt):
        write_run(result, run.folder, source="data.csv", options=ReadOptions())
    assert sorted((path.name, path.stat().st_mtime_ns) for path in run.folder.iterdir()) == before
    assert not [name for name in os.listdir(run.folder.parent) if "partial" in name]


def test_clean_counts_and_keeps_the_split(run, tmp_path: Path) -> None:
    data = reload_data(run)
    least = float(run.suspects["suspicion"][1])
    dropped = clean(run, data, tmp_path / "a.csv", least_suspicion=least)
    assert dropped == {"written": ROWS - 2, "dropped": 2, "relabelled": 0, "unlabelled": 0}
    changed = clean(run, data, tmp_path / "b.parquet", action="relabel", least_suspicion=least)
    assert changed == {"written": ROWS, "dropped": 0, "relabelled": 2, "unlabelled": 0}
    again = read(tmp_path / "b.parquet")
    assert again.split is not None and again.split.tolist() == data.split.tolist()
    assert [str(i) for i in np.flatnonzero(again.labels != data.labels)] == ["4", "51"]
    assert list(pd.read_csv(tmp_path / "a.csv")) == ["a", "b", "colour", "label", "split"]
    with pytest.raises(ConfigError, match="drop"):
        clean(run, data, tmp_path / "c.csv", action="burn")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least one row"):
        clean(run, data, tmp_path / "c.csv", least_suspicion=0.0)


def test_the_order_of_rows_in_a_file_is_part_of_what_was_audited(run, place: Path, tmp_path: Path) -> None:
    pd.read_csv(place / "data.csv").iloc[::-1].to_csv(tmp_path / "turned.csv", index=False)
    with pytest.raises(RunFormatError, match="fingerprint"):
        reload_data(run, tmp_path / "turned.csv")


def test_a_models_own_rows_and_a_memorising_model_is_named(place: Path) -> None:
    data = read(place / "data.csv").rows(np.arange(40))
    one_hot = 20 * torch.eye(2)[torch.from_numpy(data.labels)]
    model = nn.Linear(2, 2, bias=False)
    nn.init.eye_(model.weight)
    found = audit(data, model=UserModel(model=model, inputs=one_hot, name="oracle"), method="identity")
    assert any("hardly any is wrong, or it has learned" in notice["title"] for notice in found.summary["warnings"])
    assert found.summary["model"]["name"] == "oracle" and found.default is None


def test_the_default_judges_with_a_model_that_sees_no_wrong_label(place: Path) -> None:
    data = read(place / "data.csv")
    true = np.arange(ROWS) % 2
    model = nn.Linear(2, 2, bias=False)
    nn.init.eye_(model.weight)

    def first_two(labels: np.ndarray, second_opinion: bool) -> tuple[set[str], bool]:
        brought = UserModel(model=model, inputs=40 * torch.eye(2)[torch.from_numpy(labels)])
        found = audit(data, model=brought, method="identity", second_opinion=second_opinion)
        told = any("sees hardly any wrong label" in notice["title"] for notice in found.summary["warnings"])
        assert told == ("bayes_loss" in found.suspects or "refit_loss" in found.suspects)
        return set(found.suspects["id"][:2]), told

    assert first_two(data.labels, True) == ({"4", "51"}, True)
    assert first_two(data.labels, False) == ({"0", "1"}, False)  # all alike to a model that learned every label
    assert first_two(true, True) == ({"4", "51"}, False)  # it sees them by itself


def test_few_wrong_labels_are_believed_unless_another_model_sees_twice_as_many() -> None:
    labels = np.arange(300) % 2
    seen = 6 * (2 * np.eye(2)[np.where(np.arange(300) < 30, 1 - labels, labels)] - 1)  # a tenth is wrong
    other = Members(logits=seen, refit_logits=None, judges=())
    assert blinded(0.0, other, labels) and blinded(0.02, other, labels)
    assert not blinded(0.02, Members(logits=6 * (2 * np.eye(2)[labels] - 1), refit_logits=None, judges=()), labels)
    assert not blinded(0.05, other, labels)  # it sees some by itself, and is left alone


def test_unknown_methods_and_models_that_do_not_fit(place: Path) -> None:
    data = read(place / "data.csv")
    with pytest.raises(ConfigError, match="ekfac"):
        audit(data, method="magic")
    with pytest.raises(ConfigError, match="logits"):
        audit(data, model=UserModel(model=nn.Linear(2, 3), inputs=torch.zeros(ROWS, 2)))
    with pytest.raises(ConfigError, match="run on its inputs"):
        audit(data, model=UserModel(model=nn.Linear(2, 2), inputs=torch.zeros(ROWS, 5)))
    with pytest.raises(ConfigError, match="finite"):
        audit(data, model=UserModel(model=nn.Linear(2, 2), inputs=torch.full((ROWS, 2), torch.nan)))
