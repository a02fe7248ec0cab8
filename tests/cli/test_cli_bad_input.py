"""Bad input: one line that names cause and remedy, exit code 1 or 2, no traceback, nothing left behind."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_samples import write_csv

import whence.cli.audit as audit_module
from whence.tasks import Recipe


def texts(count: int = 24, **columns: list[object]) -> pd.DataFrame:
    """Two easy classes of texts."""
    words = ("good fine lovely", "bad awful dreadful")
    table = {"label": [str(i % 2) for i in range(count)], "text": [f"{words[i % 2]} {i // 4}" for i in range(count)]}
    return pd.DataFrame({**table, **columns})


def numbers(count: int = 24, **columns: object) -> pd.DataFrame:
    """Two easy classes of rows of numbers."""
    generator = np.random.default_rng(0)
    label = np.arange(count) % 2
    return pd.DataFrame(
        {"a": label + generator.normal(0, 0.1, count), "b": generator.normal(size=count), "label": label, **columns}
    )


def save(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, index=False)
    return path


REFUSED = {
    "one class": (texts(label=["x"] * 24), (), ("class", "x")),
    "continuous": (texts(label=[f"{i}.37" for i in range(24)]), (), ("class",)),
    "several labels": (texts(label=[["a", "b"]] * 24), (), ("one class per row",)),
    "empty texts": (texts(text=[""] * 24), ("--text", "text"), ("text",)),
    "wrong label column": (texts(), ("--label", "nope"), ("nope", "text")),
    "wrong text column": (texts(), ("--text", "nope"), ("nope",)),
    "wrong id column": (texts(), ("--id", "nope"), ("nope",)),
    "repeated ids": (texts(id=["same"] * 24), ("--id", "id"), ("same", "unique")),
    "wrong reference column": (texts(), ("--reference", "nope"), ("nope",)),
    "dropped column missing": (texts(), ("--drop", "nope"), ("nope",)),
    "unknown method": (texts(), ("--method", "magic"), ("magic", "ekfac")),
    "nothing but labels": (texts().drop(columns="text"), (), ("column",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_data(call, tmp_path: Path, case: str) -> None:
    frame, options, named = REFUSED[case]
    if case == "several labels":
        file = tmp_path / "data.jsonl"
        frame.to_json(file, orient="records", lines=True)
    else:
        file = save(frame, tmp_path / "data.csv")
    shown = call("audit", file, "--out", tmp_path / "run", *options)
    line = shown.one_line()
    assert shown.code in (1, 2) and shown.out == ""
    for word in named:
        assert word in line
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff\xfe" * 50, b"label,text\n"])
@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data.jsonl", "data.npz", "data.xyz"])
def test_unreadable_files(call, tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    shown = call("audit", tmp_path / name, "--out", tmp_path / "run")
    assert shown.code in (1, 2) and name in shown.one_line()
    assert not (tmp_path / "run").exists()


def test_missing_and_infinite_numbers(call, tmp_path: Path) -> None:
    frame = numbers()
    frame.loc[3, "a"] = np.nan
    frame["empty"] = np.nan
    assert call("audit", save(frame, tmp_path / "nan.csv"), "--out", tmp_path / "nan", "-q").code == 0
    frame.loc[4, "b"] = np.inf
    shown = call("audit", save(frame, tmp_path / "inf.csv"), "--out", tmp_path / "inf", "-q")
    if shown.code:
        shown.one_line()
        assert not (tmp_path / "inf").exists()
    np.savez(tmp_path / "nan.npz", x=np.full((20, 3), np.nan), y=np.arange(20) % 2)
    shown = call("audit", tmp_path / "nan.npz", "--out", tmp_path / "npz", "-q")
    if shown.code:
        shown.one_line()


@pytest.mark.parametrize("labels", [["rare"] + ["a", "b"] * 12, [f"c{i}" for i in range(25)]])
def test_classes_with_one_row_work(call, tmp_path: Path, labels: list[str]) -> None:
    for name, frame in (("text", texts(25, label=labels)), ("table", numbers(25, label=labels))):
        shown = call("audit", save(frame, tmp_path / f"{name}.csv"), "--out", tmp_path / name, "--label", "label")
        assert shown.code == 0 or (shown.one_line() and not (tmp_path / name).exists()), shown.err
        if labels[0] == "rare":
            assert shown.code == 0 and "fewer than" in shown.out


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_very_few_rows(call, tmp_path: Path, rows: int) -> None:
    for name, frame in (("text", texts(rows)), ("table", numbers(rows))):
        shown = call("audit", save(frame, tmp_path / f"{name}.csv"), "--out", tmp_path / name, "--label", "label")
        assert shown.code == 0 or shown.one_line()


def test_some_empty_texts_work(call, tmp_path: Path) -> None:
    frame = texts()
    frame.loc[[2, 5], "text"] = ""
    shown = call("audit", save(frame, tmp_path / "data.csv"), "--out", tmp_path / "run", "--text", "text")
    assert shown.code == 0, shown.err


def test_many_categories(call, tmp_path: Path) -> None:
    frame = numbers(60, city=[f"city {i}" for i in range(60)])
    assert call("audit", save(frame, tmp_path / "data.csv"), "--out", tmp_path / "run", "-q").code == 0


def test_an_output_folder_with_other_files_is_left_alone(call, tmp_path: Path, monkeypatch) -> None:
    file = save(texts(), tmp_path / "data.csv")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for out in (tmp_path / "mine", file, tmp_path / "mine" / ".."):
        shown = call("audit", file, "--out", out)
        assert shown.code in (1, 2) and "output must be" in shown.one_line()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    shown = call("audit", file, "--out", ".")
    assert shown.code in (1, 2) and "output must be" in shown.one_line()
    assert {path.name for path in tmp_path.iterdir()} == {"data.csv", "mine", "empty"}
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_default_folder_with_other_files_is_refused_before_the_data_is_read(
    call, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(audit_module, "read", unreachable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whence-run").mkdir()
    (tmp_path / "whence-run" / "thesis.tex").write_text("years of work")
    shown = call("audit", "data.csv")
    assert shown.code == 1 and "'whence-run', which holds other files" in shown.one_line()
    assert [path.name for path in tmp_path.rglob("*")] == ["whence-run", "thesis.tex"]


@pytest.mark.parametrize("out", ["data.csv/run", "locked/run", "locked/new/run", "locked/old", "x" * 300, "x" * 250])
def test_an_unwritable_place_is_refused_before_the_data_is_read(call, tmp_path: Path, monkeypatch, out: str) -> None:
    monkeypatch.setattr(audit_module, "read", unreachable)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "locked")  # root may write anywhere
    (tmp_path / "locked" / "old").mkdir(parents=True)
    (tmp_path / "locked" / "old" / "manifest.json").write_text("{}")
    (tmp_path / "data.csv").touch()
    before = sorted(tmp_path.rglob("*"))
    shown = call("audit", tmp_path / "data.csv", "--out", tmp_path / out)
    assert shown.code == 1 and "writable" in shown.one_line()
    assert sorted(tmp_path.rglob("*")) == before


def unreachable(*arguments: object) -> None:
    raise AssertionError("too late")


@pytest.mark.parametrize("writer", ["to_parquet", "write_tensors", "render"])
def test_a_full_disk_leaves_nothing(call, tmp_path: Path, monkeypatch, writer: str) -> None:
    def full(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    target = pd.DataFrame if writer == "to_parquet" else sys.modules["whence.audit.folder"]
    monkeypatch.setattr(target, writer, full)
    shown = call("audit", save(texts(), tmp_path / "data.csv"), "--out", tmp_path / "run")
    assert shown.code == 1 and "No space left on device" in shown.one_line()
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """A limit on file size stops a write as a full disk does."""
    save(texts(), tmp_path / "data.csv")
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "sys.argv = ['whence', 'audit', 'data.csv', '--out', 'run']; from whence.cli import main; main()"
    )
    shown = subprocess.run([sys.executable, "-B", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 1 and "Traceback" not in shown.stderr, shown.stderr
    assert "File too large" in shown.stderr and shown.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_interrupting_training_leaves_nothing(call, tmp_path: Path, monkeypatch) -> None:
    def stage(self, name: str, epochs: int):
        def epoch(number: int, model: torch.nn.Module, loss: float) -> None:
            raise KeyboardInterrupt

        return epoch

    monkeypatch.setattr(audit_module.Stages, "__call__", stage)
    shown = call("audit", save(texts(), tmp_path / "data.csv"), "--out", tmp_path / "run")
    assert shown.code == 130 and "nothing was written" in shown.err and "Traceback" not in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_a_diverging_loss_is_named(call, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Recipe, "rate", lambda self, progress: float("inf"))
    shown = call("audit", save(numbers(), tmp_path / "data.csv"), "--out", tmp_path / "run")
    assert shown.code == 1 and "finite" in shown.one_line() and not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run(call, audited, tmp_path: Path) -> None:
    shutil.copytree(audited.folder, tmp_path / "run")
    for breakage in ("manifest.json", "suspects.parquet", "summary.json", "model.safetensors"):
        broken = tmp_path / "broken"
        shutil.copytree(audited.folder, broken)
        (broken / breakage).write_bytes(b"{}")
        for command in (("explain", broken, "--query", "m1"), ("clean", broken, "--out", tmp_path / "out.csv")):
            shown = call(*command)
            if command[0] == "explain" or breakage in ("manifest.json", "suspects.parquet"):
                assert shown.code == 1 and "run" in shown.one_line().lower()
        shutil.rmtree(broken)
        (tmp_path / "out.csv").unlink(missing_ok=True)
    for folder in (tmp_path, tmp_path / "absent"):
        shown = call("explain", folder, "--query", "m1")
        assert shown.code == 1 and "manifest.json" in shown.one_line()


def test_data_that_changed_since_the_audit(call, audited, tmp_path: Path) -> None:
    frame = pd.read_csv(audited.source)
    frame.loc[0, "text"] = "another text"
    changed = save(frame, tmp_path / "changed.csv")
    stored = json.loads((audited.folder / "manifest.json").read_text())["data"]["fingerprint"][:12]
    for command in ("explain", "clean"):
        more = ("--query", "m1") if command == "explain" else ("--out", tmp_path / "out.csv")
        shown = call(command, audited.folder, *more, "--data-source", changed)
        line = shown.one_line()
        found = re.findall(r"\b[0-9a-f]{12}\b", line)
        assert shown.code == 1 and stored in found and len(set(found)) == 2
    assert call("clean", audited.folder, "--out", tmp_path / "out.csv", "--data-source", tmp_path / "no.csv").code == 1


def test_questions_that_cannot_be_answered(call, audited, tmp_path: Path) -> None:
    other = save(numbers(), tmp_path / "numbers.csv")
    for options, code, word in (
        (("--query", "nobody"), 1, "nobody"),
        ((), 2, "--query"),
        (("--query", "m1", "-k", "0"), 2, "-k"),
        (("--query", "m1", "--as-label", "eggs"), 2, "eggs"),
        (("--query", "m1", "--out", tmp_path / "no" / "page.html"), 1, "writable"),
        (("--query", "1", "--data", other), 1, "numbers.csv"),
        (("--query", "1", "--data", tmp_path / "no.csv"), 1, "no.csv"),
    ):
        shown = call("explain", audited.folder, *options)
        assert shown.code == code and word in shown.one_line(), options


def test_hostile_text_is_harmless(call, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    evil = "\x1b[2J\x1b]0;owned\x07[red]hi[/red] [/] </script><script>alert(1)</script> <img src=x onerror=alert(1)> \\"
    names = ["\x1b[31mA[bold]</script>", "B[/]<b>\\"]
    rows = [(f"{i}\x1b[1m[/x]<i>", names[i % 2], f"{'good' if i % 2 else 'bad'} {evil} {i // 3}") for i in range(24)]
    file = write_csv(tmp_path / "evil[red].csv", rows, ("id", "label", "text[/]"))
    run = tmp_path / "run[bold]"
    shown = [call("audit", file, "--out", run, "--label", "label", "--id", "id")]
    shown.append(call("explain", run, "--query", rows[3][0]))
    shown.append(call("clean", run, "--out", tmp_path / "[red]out.csv"))
    for outcome in shown:
        assert outcome.code == 0, outcome.err
        assert "\x1b" not in outcome.out + outcome.err and "\x07" not in outcome.out
    assert "[red]" in shown[0].out and "run[bold]" in shown[0].out and "[red]out.csv" in shown[2].out
    for page in run.glob("*.html"):
        text = page.read_text()
        assert "<script>alert" not in text and "<img src=x" not in text
    failed = call("explain", run, "--query", "\x1b[31m[red]none\nsecond")
    assert "\x1b" not in failed.one_line() and failed.code == 1
    failed = call("audit", file, "--out", tmp_path / "other", "--label", "\x1b[31m[red]none")
    assert "\x1b" not in failed.one_line() and "[red]" in failed.one_line()
