"""How commands behave among other programs: JSON, exit codes, colours, completion, near misses, Ctrl-C, the doctor."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from cli_samples import write_csv

import whence
from whence.cli import app, environment, main
from whence.data.misses import check_the_path, did_you_mean

COMMANDS = {one.name: one.callback for one in app.registered_commands}
TALKS_ELSEWHERE = {"serve"}  # its answers are pages, each with a .json twin
MODEL = """
import time, torch

def model(data):
    print("chatter of a user's model")
    return torch.nn.Linear(2, 2)

def slow(data):
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    rows = [(i % 2, i % 2 + i / 100, -i) for i in range(30)]
    return write_csv(tmp_path / "numbers.csv", rows, ("label", "a", "b"))


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - TALKS_ELSEWHERE))
def test_every_command_has_json_and_quiet_and_an_example(name: str) -> None:
    parameters = inspect.signature(COMMANDS[name]).parameters
    assert {"as_json", "quiet"} <= set(parameters)
    assert f"Example: whence {name}" in (COMMANDS[name].__doc__ or "")


def alone(shown, command: str) -> dict:
    """Return the one object on the one line of standard output; nothing else was printed anywhere."""
    assert shown.code == 0 and shown.err == "" and shown.out.count("\n") == 1
    found = json.loads(shown.out)
    assert list(found)[:3] == ["format", "command", "whence"]
    assert (found["format"], found["command"], found["whence"]) == (1, command, whence.__version__)
    return found


def test_json_has_one_shape(call, audited, table, tmp_path: Path) -> None:
    assert len(alone(call("methods", "--json"), "methods")["methods"]) > 10
    explained = alone(call("explain", audited.folder, "--query", "m1", "--json"), "explain")
    assert explained["query"]["id"] == "m1"
    cleaned = alone(call("clean", audited.folder, "--out", tmp_path / "clean.csv", "--json"), "clean")
    assert cleaned["written"] + cleaned["dropped"] == audited.rows and cleaned["relabelled"] == 0
    assert Path(cleaned["file"]).is_file() and cleaned["action"] == "drop"
    assert alone(call("plan", table, "--label", "label", "--json"), "plan")["examples"] == 30
    told = alone(call("audit", table, "--label", "label", "--out", tmp_path / "run", "--json"), "audit")
    assert Path(told["report"]).is_file()


def test_what_a_user_s_model_prints_does_not_reach_standard_output(call, table, tmp_path: Path) -> None:
    shown = call("plan", table, "--label", "label", "--model", f"{tmp_path}/model.py:model", "--json")
    assert shown.code == 0 and json.loads(shown.out)["command"] == "plan"
    assert shown.err == "chatter of a user's model\n"
    before = sys.stdout
    assert call("plan", table, "--label", "label", "--model", f"{tmp_path}/model.py:none").code == 2
    assert sys.stdout is before


def test_exit_codes(call, audited, table) -> None:
    assert call("methods").code == 0
    for arguments, code in (
        (("audit", "nowhere.csv"), 1),
        (("explain", audited.folder, "--query", "nobody"), 1),
        (("explain", audited.folder), 2),
        (("audit", table, "--method", "magic"), 2),
    ):
        shown = call(*arguments)
        assert shown.code == code and shown.out == "" and shown.one_line()
    for arguments in (("audit",), ("audit", table, "--frobnicate"), ("audit", table, "--seed", "x"), ("frobnicate",)):
        shown = call(*arguments)
        assert shown.code == 2 and shown.out == "" and "Usage" in shown.err
    assert "Did you mean 'audit'?" in call("audti").err
    assert "130 stopped by Ctrl-C" in " ".join(call("--help").out.split())


def test_errors_are_no_json_and_leave_standard_output_empty(call) -> None:
    shown = call("audit", "nowhere.csv", "--json")
    assert shown.code == 1 and shown.out == "" and "nowhere.csv" in shown.one_line()


@pytest.mark.parametrize("command", [("methods",), ("doctor",), ("audit", "nowhere.csv", "-q")])
def test_no_color_leaves_no_escape_codes(call, command, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = call(*command)
    assert "\x1b[" in shown.out + shown.err
    monkeypatch.setenv("NO_COLOR", "1")
    shown = call(*command)
    assert "\x1b[" not in shown.out + shown.err and shown.out + shown.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_options_and_methods(call, shell: str, monkeypatch) -> None:
    monkeypatch.setenv("_WHENCE_COMPLETE", f"source_{shell}")
    assert "_WHENCE_COMPLETE=complete_" in call().out

    def completed(line: str) -> str:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        typed = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        for name, value in {"_WHENCE_COMPLETE": f"complete_{shell}", **words, **typed}.items():
            monkeypatch.setenv(name, value)
        return call().out

    assert "explain" in completed("whence exp") and "audit" not in completed("whence exp")
    assert "--method" in completed("whence audit --meth")
    found = completed("whence audit x.csv --method k")
    assert "kfac" in found and "exact" not in found


def test_near_misses_are_named(call, audited, table, tmp_path: Path) -> None:
    folder = audited.folder
    for arguments, code, meant in (
        (("audit", tmp_path / "number.csv"), 1, "numbers.csv"),
        (("audit", tmp_path / "NUMBERS.CSV"), 1, "numbers.csv"),
        (("explain", folder.parent / "runn", "--query", "m1"), 1, "run"),
        (("explain", folder, "--query", "M1"), 1, "m1"),
        (("plan", table, "--label", "labl"), 1, "label"),
        (("plan", table, "--label", "label", "--model", f"{tmp_path}/modle.py:model"), 2, "model.py"),
        (("plan", table, "--label", "label", "--model", f"{tmp_path}/model.py:modle"), 2, "model"),
    ):
        shown = call(*arguments)
        assert shown.code == code and f"Did you mean '{meant}'" in shown.one_line(), shown.err
    assert "no folder 'absent'" in call("audit", tmp_path / "absent" / "numbers.csv").one_line()


def test_what_is_near_and_what_is_not(tmp_path: Path) -> None:
    assert did_you_mean("x", ["completely", "different"]) == "" and did_you_mean("a", []) == ""
    assert did_you_mean("mails_nope.csv", ["small.csv", "five.csv"]) == "", "all they share is the ending"
    assert did_you_mean("smal.csv", ["small.csv", "five.csv"]) == "Did you mean 'small.csv'?"
    assert did_you_mean("ALPHA", ["alpha", "Alpha"]) == "Did you mean 'alpha'?"
    assert check_the_path(tmp_path / "nothing" / "like" / "it") == "There is no folder 'nothing'. Check the path."
    (tmp_path / ".nothingg").touch()
    assert check_the_path(tmp_path / "nothing") == "Check the path."


def test_ctrl_c_in_a_real_process(table, tmp_path: Path) -> None:
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also where tests run unheard
    program = [sys.executable, "-c", f"{heard}; from whence.cli import main; main()"]
    asked = ["plan", str(table), "--label", "label", "--model", f"{tmp_path}/model.py:slow", "--json"]
    job = subprocess.Popen([*program, *asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert job.stdout is not None and job.stderr is not None
    assert job.stderr.readline() == "begun\n"
    job.send_signal(signal.SIGINT)
    out, told = job.communicate(timeout=60)
    assert (job.returncode, out, told) == (130, "", "stopped: nothing was written.\n")


def test_the_doctor_tells_what_there_is(call, table, tmp_path: Path) -> None:
    found = alone(call("doctor", "--data", table, "--out", tmp_path / "runs" / "one", "--json"), "doctor")
    assert found["ok"] and found["problems"] == [] and not (tmp_path / "runs").exists()
    assert found["packages"]["torch"] == torch.__version__ and found["extras"]["hf"]["packages"]
    assert found["system"]["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert found["devices"][0]["name"] == "cpu" and found["devices"][0]["works"]
    assert found["folders"]["data"]["exists"] and found["folders"]["runs"]["writable"]
    assert found["processors"]["threads"] == torch.get_num_threads()
    shown = call("doctor")
    assert shown.code == 0 and "Ready." in shown.out and torch.__version__ in shown.out


def test_the_doctor_tells_what_is_wrong(call, table, tmp_path: Path, monkeypatch) -> None:
    shown = call("doctor", "--data", tmp_path / "number.csv")
    assert shown.code == 1 and "Did you mean 'numbers.csv'?" in shown.out and "Ready." not in shown.out
    shown = call("doctor", "--out", table / "run", "--json")  # below a file
    assert shown.code == 1 and json.loads(shown.out)["problems"] == [
        f"{table / 'run'} cannot be written to: numbers.csv is a file. Choose another --out."
    ]
    monkeypatch.setattr(environment, "devices", lambda: [
        {"name": "cuda:0", "description": "[red]broken", "float64": True, "works": False, "reason": "no kernel image"}
    ])  # fmt: skip
    monkeypatch.setattr(environment, "packages", lambda: ({"torch": None}, {"hf": {"datasets": None}}))
    monkeypatch.setattr(environment, "processors", lambda: {"count": 2, "usable": 2, "threads": 64})
    monkeypatch.setenv("COLUMNS", "200")
    shown = call("doctor")
    assert shown.code == 1 and "[red]broken" in shown.out and "OMP_NUM_THREADS=2" in shown.out
    assert "no kernel image" in shown.out and "torch is missing" in shown.out and "whence[hf]" in shown.out


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_the_doctor_finds_folders_that_cannot_be_written_to(call, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    shown = call("doctor", "--out", tmp_path / "locked" / "run", "--json")
    found = json.loads(shown.out)
    assert shown.code == 1 and not found["ok"] and "cannot be written" in found["problems"][0]


def test_a_warning_is_a_note_without_a_line_of_source(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def command() -> None:
        warnings.warn("sizes are\x1b[31m doubtful", stacklevel=1)

    monkeypatch.setitem(main.__globals__, "app", lambda **_: command())
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        main()
    shown = capsys.readouterr()
    assert shown.err == "note: sizes are [31m doubtful\n" and shown.out == ""
