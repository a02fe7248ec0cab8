"""``whence plan``: a table or JSON, nothing trained, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cli_samples import EXAMPLES, Outcome, sms, write_csv

Call = Callable[..., Outcome]


def test_plan_of_the_default(call: Call, tmp_path: Path, monkeypatch: object) -> None:
    source = write_csv(tmp_path / "sms.csv", sms(80), ("label", "text"))
    found = call("plan", source, "--json")
    assert found.code == 0, found.err
    planned = json.loads(found.out)
    assert (planned["examples"], planned["share"]) == (80, 1.0)
    assert planned["disk"]["float16"] < planned["disk"]["float32"]
    shown = call("plan", source)
    assert shown.code == 0
    assert "100.0% of" in shown.out and "disk of an index" in shown.out and "self-scores" in shown.out
    assert [path.name for path in tmp_path.iterdir()] == ["sms.csv"]


def test_plan_names_what_is_missed(call: Call) -> None:
    found = call("plan", EXAMPLES / "fashion_mnist_1000.npz")
    assert found.code == 0, found.err
    assert "parameters attributed, 1,000 examples" in found.out


def test_a_wrong_method_is_one_line(call: Call, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "sms.csv", sms(20), ("label", "text"))
    found = call("plan", source, "--method", "magic")
    assert found.code == 2
    assert "method must be one of" in found.one_line()
