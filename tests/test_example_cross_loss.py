"""The story of `examples/cross_loss.py`, at a small size: removing what harms helps, and more than chance does."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_what_is_predicted_to_harm_the_probe_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    found = importlib.import_module("cross_loss").main(["--rows", "200"])
    assert found["harmful, predicted"] < 0
    assert found["harmful, actual"] < 0
    assert found["harmful, actual"] < found["random, actual"]
    told = capsys.readouterr().out
    for words in ("loss on shirts", "are shirts themselves", "without 10 random images"):
        assert words in told
