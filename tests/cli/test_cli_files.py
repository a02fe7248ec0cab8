"""Files as people have them: German tables, folders of images, a model in two files; and what is said of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from whence.audit.decisions import FILE, Decision, Decisions
from whence.cli import retrain
from whence.cli.retrain import telling
from whence.data import ReadOptions, read
from whence.evaluate.cost import RetrainingCost

ROWS, WRONG = 240, (7, 30)


def german(path: Path, *, seed: int = 0) -> list[str]:
    """Write a table as a German Excel does, and return its lines."""
    draw = np.random.default_rng(seed)
    lines = [";Kundennummer;Größe;Lohn;Beginn;Klasse"]
    for row in range(ROWS):
        label = row % 2
        name = ("gut ", "schlecht")[label ^ (row in WRONG)] if row != 60 else ""
        size = f"{150 + 30 * label + draw.normal() * 4:.1f}".replace(".", ",")
        wage = f"{10 + 9 * label + draw.normal():.2f}".replace(".", ",")
        lines.append(f'{row};{101000 + (row * 77) % 991};"{size}";{wage};{1 + row % 28:02d}.0{1 + row % 9}.2020;{name}')
    path.write_bytes("\r\n".join([*lines, ""]).encode("cp1252"))
    return lines


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, list[str]]:
    return tmp_path / "kunden.csv", german(tmp_path / "kunden.csv")


def test_a_german_table_is_read_told_and_written_back(call, table, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    path, lines = table
    run = tmp_path / "run"
    shown = call("audit", path, "--label", "Klasse", "--out", run)
    assert shown.code == 0, shown.err
    said = " ".join(shown.out.split())
    for told in ("data: encoding: Windows-1252", "separated by ';'", "1 rows without a label left out",
                 "columns unnamed: 0, Kundennummer left out: numbers the rows", "more in the report",
                 f"whence clean {run} --out kunden-clean.csv"):  # fmt: skip
        assert told in said, (told, said)
    report = " ".join((run / "report.html").read_text(encoding="utf-8").split())
    assert "As it was read: encoding: Windows-1252" in report and "Größe, Lohn read as numbers with a decimal" in report
    assert "separated by" not in call("audit", path, "--label", "Klasse", "--out", run, "-q").out
    shown = call("clean", run, "--action", "relabel", "--out", tmp_path / "new.csv")
    assert "240 rows written" in shown.out and "1 row without a label, not judged, kept as it is." in shown.out
    new = (tmp_path / "new.csv").read_bytes().decode("cp1252").split("\r\n")
    assert len(new) == len(lines) + 1 and new[61] == lines[61]
    changed = [row for row, (old, now) in enumerate(zip(lines, new, strict=False)) if old != now]
    assert changed and {row - 1 for row in changed} <= set(WRONG)
    assert all({old.rsplit(";", 1)[0] for old in (lines[row], new[row])} == {lines[row].rsplit(";", 1)[0]}
               for row in changed)  # fmt: skip
    shown = call("clean", run, "--out", tmp_path / "fewer.csv", "--json")
    counts = json.loads(shown.out)
    assert counts["written"] + counts["dropped"] == ROWS and counts["unlabelled"] == 1
    fewer = (tmp_path / "fewer.csv").read_bytes().decode("cp1252").split("\r\n")
    assert [line for line in lines if line in set(fewer)] == fewer[:-1] and len(fewer) == counts["written"] + 2
    shown = call("explain", run, "--query", "101077")
    assert shown.code == 1 and shown.one_line().endswith(
        "It is a value of column 'Kundennummer', of the row with id '1': ask for --query 1, or audit again with "
        "--id Kundennummer."
    )
    new_rows = tmp_path / "new rows.csv"
    new_rows.write_text("\n".join(line.rsplit(";", 1)[0] for line in lines[:9]), encoding="utf-8")
    shown = call("explain", run, "--query", "3", "--data", new_rows)
    assert shown.code == 0, shown.err


def test_an_encoding_that_is_named_is_remembered(call, table, tmp_path: Path) -> None:
    path, lines = table
    path.write_bytes("\r\n".join([*lines, ""]).encode("utf-16"))
    asked = ("audit", path, "--label", "Klasse", "--out", tmp_path / "run")
    assert "--encoding utf-16" in call(*asked).one_line()
    assert call(*asked, "--encoding", "utf16x").code == 2
    shown = call(*asked, "--encoding", "utf-16")
    assert shown.code == 0, shown.err
    assert call("explain", tmp_path / "run", "--query", "3").code == 0
    assert call("clean", tmp_path / "run", "--out", tmp_path / "new.csv").code == 0
    new = (tmp_path / "new.csv").read_bytes().decode("utf-16").split("\r\n")
    assert new[0] == lines[0] and set(new[1:-1]) < set(lines)
    assert call("plan", path, "--label", "Klasse", "--encoding", "utf-16", "--json").code == 0


def test_an_earlier_run_is_not_replaced_in_silence(call, table, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, _ = table
    german(tmp_path / "andere daten.csv", seed=1)
    assert "whence-run/report.html" in call("audit", "kunden.csv", "--label", "Klasse").out
    shown = call("audit", "kunden.csv", "--label", "Klasse")
    assert "whence-run held an earlier run, which this one replaced." in shown.out
    shown = call("audit", "andere daten.csv", "--label", "Klasse")
    assert "whence-run-andere-daten/report.html" in shown.out and "replaced" not in shown.out
    shown = call("audit", "andere daten.csv", "--label", "Klasse", "--out", "whence-run")
    assert "whence-run held an earlier run of kunden.csv, which this one replaced." in shown.out
    data = read("andere daten.csv", ReadOptions(label="Klasse"))
    Decisions(tmp_path / "whence-run", data.fingerprint).put(Decision(id="3", action="drop", label=None, given="gut"))
    assert call("audit", "andere daten.csv", "--label", "Klasse", "--out", "whence-run").code == 0
    assert len(Decisions(tmp_path / "whence-run", data.fingerprint)) == 1
    refused = call("audit", path, "--label", "Klasse", "--out", "whence-run")
    assert refused.code == 1 and f"which holds {FILE}" in refused.one_line()
    assert len(Decisions(tmp_path / "whence-run", data.fingerprint)) == 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for row in range(80):
        folder = tmp_path / "photos" / ("dark" if (row % 2) ^ (row == 5) else "light")
        folder.mkdir(parents=True, exist_ok=True)
        grey = np.clip(draw.normal(60 if row % 2 else 190, 20, (8, 8)), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"{row}.png")
    return tmp_path / "photos"


def test_images_go_into_folders_and_lists(call, photos: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "run"
    shown = call("audit", photos, "--out", run)
    assert shown.code == 0, shown.err
    assert "by design the last layer alone; --layers all traces every one" in shown.out
    assert f"whence clean {run} --out photos-clean" in shown.out
    above = pd.read_parquet(run / "suspects.parquet").set_index("id")["suspicion"]["light/5.png"]
    shown = call("clean", run, "--action", "relabel", "--above", above, "--out", tmp_path / "photos-clean")
    assert shown.code == 0 and "80 images written to" in shown.out, shown.err
    assert (tmp_path / "photos-clean" / "dark" / "5.png").read_bytes() == (photos / "light" / "5.png").read_bytes()
    refused = call("clean", run, "--out", tmp_path / "photos-clean", "--force")
    assert refused.code == 2 and "new or empty folder" in refused.one_line()
    assert call("clean", run, "--above", above, "--out", tmp_path / "kept.csv").code == 0
    kept = (tmp_path / "kept.csv").read_text(encoding="utf-8").splitlines()
    assert kept[0] == "file,folder" and "light/5.png,light" not in kept and "dark/1.png,dark" in kept
    assert not list(tmp_path.glob(".*partial*"))
    shown = call("audit", photos, "--out", tmp_path / "all", "--layers", "all")
    assert shown.code == 0 and "parameters attributed" not in shown.out
    assert call("explain", tmp_path / "all", "--query", "dark/1.png").code == 0
    assert call("audit", photos, "--out", tmp_path / "none", "--layers", "some").code == 2


MODEL = """
from beside import build

def network(data):
    import also_beside
    return also_beside.recipe(build), also_beside.inputs(data)
"""
BESIDE = """
import torch

def build():
    import used_in_training
    return torch.nn.Linear(2, 2)
"""
ALSO = """
import numpy as np
import torch
import whence as wh

def recipe(build):
    return wh.Recipe(build=build, epochs=5, learning_rate=0.1)

def inputs(data):
    return torch.from_numpy(data.content[["Größe", "Lohn"]].to_numpy(np.float32, copy=True)) / 100
"""


def test_a_model_may_import_what_lies_beside_it(call, table, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = tmp_path / "code"
    code.mkdir()
    for name, text in (("net", MODEL), ("beside", BESIDE), ("also_beside", ALSO), ("used_in_training", "")):
        (code / f"{name}.py").write_text(text, encoding="utf-8")
    path, _ = table
    asked = ("audit", path, "--label", "Klasse", "--out", tmp_path / "run", "--model", f"{code}/net.py:network")
    shown = call(*asked)
    assert shown.code == 0, shown.err
    shown = call("evaluate", tmp_path / "run", "--loo", "4", "--seeds", "1", "--model", f"{code}/net.py:network")
    assert shown.code == 0, shown.err
    (code / "net.py").write_text("import not_there_at_all\n")
    (tmp_path / "kunden.csv").unlink()
    shown = call(*asked)
    assert shown.code == 2 and "No module named 'not_there_at_all'" in shown.one_line(), "imported before data are read"


def test_a_long_retraining_says_how_to_make_it_shorter(monkeypatch, capsys) -> None:
    monkeypatch.setattr(retrain, "terminal", lambda **_: Console(file=sys.stderr, width=200))
    cost = RetrainingCost(trainings=63, cached=0, seconds=1764.0, training_seconds=28.0, startup_seconds=0.0,
                          processes=1, stack=1, epochs=4)  # fmt: skip
    with telling(True, smaller="--seeds 1, --loo 10") as watch:
        watch.estimate(cost)
    assert "shorter: --seeds 1, --loo 10; Ctrl-C keeps what is done" in capsys.readouterr().err
    with telling(True) as watch:
        watch.estimate(cost)
    assert "shorter" not in capsys.readouterr().err
