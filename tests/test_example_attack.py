"""The story of `examples/attack.py`, at a small size: what is predicted comes true, and chance does not do it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_the_attack_that_is_told_happens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    found = importlib.import_module("attack").main(["--rows", "60", "--steps", "3"])
    assert found["predicted"] == pytest.approx(found["actual"], rel=0.2)
    assert found["replaced"] == pytest.approx(found["actual"], rel=0.3)
    assert found["drop"] > found["random"]
    told = capsys.readouterr().out
    for words in ("training images that could move this prediction", "pixels of image", "random changes of the same"):
        assert words in told
