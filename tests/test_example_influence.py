"""The stories of `examples/mismatch.py`, `mislabels.py` and `understanding.py`, at a small size."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports an example."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def test_the_rows_that_speak_for_a_dropped_population(story: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = story("mismatch").main(["--rows", "300"])
    assert found["0.0001"] > 1 > found["0.01"], "the weaker the weight decay, the more four rows decide"
    assert 0 < found["wrong"] < found["asked"]
    told = capsys.readouterr().out
    assert "relationship" in told.split("what of the responsible rows matters")[1].splitlines()[2]


def test_wrong_labels_come_first(story: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = story("mislabels").main(["--rows", "200", "--draws", "1"])
    assert found["random"] == pytest.approx(10)
    assert all(share > 3 * found["random"] for name, share in found.items() if name != "random")
    assert "held-out loss" in capsys.readouterr().out


def test_photographs_are_needed(
    story: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for value in (None, str(tmp_path)):
        if value is None:
            monkeypatch.delenv("WHENCE_DATA", raising=False)
        else:
            monkeypatch.setenv("WHENCE_DATA", value)
        assert story("understanding").main([]) == {}
        told = capsys.readouterr().out
        assert "WHENCE_DATA" in told
        assert told.count("\n") == 1


def test_two_models_two_reasons(story: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On clothes in the photographs' format, since these may not be bundled; the claim itself is about photographs."""
    numpy = importlib.import_module("numpy")
    with numpy.load(EXAMPLES / "data" / "fashion_mnist_1000.npz") as stored:
        kept = numpy.isin(stored["y"], (2, 9))
        x, y = stored["x"][kept], (stored["y"][kept] == 9).astype(numpy.uint8)
    padded = numpy.repeat(numpy.pad(x, ((0, 0), (2, 2), (2, 2)))[..., None], 3, 3)
    split = numpy.where(numpy.arange(len(y)) < 120, "train", "test")
    (tmp_path / "dogfish").mkdir()
    numpy.savez(tmp_path / "dogfish" / "dogfish_32.npz", x=padded, y=y, split=split)
    monkeypatch.setenv("WHENCE_DATA", str(tmp_path))
    found = story("understanding").main(["--rows", "60"])
    assert set(found) == {"RBF-SVM", "network"}
    assert all(-1 < correlation < 0 for correlation in found.values())
