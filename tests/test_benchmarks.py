"""Every benchmark runs, on a few bundled rows and without peers."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COMMANDS = [
    ["speed.py", "--models", "transformer", "--only", "whence-ekfac", "whence-last"],
    ["matrix.py", "--tasks", "sms_text", "--methods", "whence-ekfac", "whence-diagonal", "random", "knn"],
    ["brittleness.py"],
    ["oracle_gates.py"],
    ["index.py"],
    ["explorer.py", "--requests", "2"],
    ["explorer_drive.py"],
    ["predicted_change.py"],
    ["lds.py", "--no-peers"],
    ["lds_reference.py"],
    ["retraining.py"],
    ["label_errors.py", "--sets", "sms"],
    ["influence_attack.py"],
    ["influence_hinge.py"],
    ["influence_mismatch.py"],
    ["influence_mislabels.py", "--sets", "sms"],
    ["influence_groups.py"],
    ["influence_linear.py"],
    ["influence_understanding.py"],
    ["detectors.py"],
    ["turnover.py"],
    ["crossloss_mixture.py"],
    ["crossloss_digits.py", "--parts", "clustering", "contrastive"],
    ["crossloss_scale.py"],
    ["crossloss_words.py"],
]

NO_BROWSER = "a Chromium and the Python package playwright must be installed"


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_benchmark_runs_on_a_few_rows_and_writes_figures_and_tables(command: list[str], tmp_path: Path) -> None:
    script, *options = command
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    environment.pop("WHENCE_DATA", None)
    arguments = [str(BENCHMARKS / script), *options, "--tiny", "--threads", "1", "--results", str(tmp_path / "results")]
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600)
    if done.stderr.startswith(NO_BROWSER):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "results").glob("*.json")]
    assert results
    for result in results:
        assert result["gates"]
        assert {gate["verdict"] for gate in result["gates"]} == {"----"}
        assert result["machine"]["versions"]["whence"]
    readme = (tmp_path / "README.md").read_text("utf-8")
    assert "## Gates" in readme
    for text in (readme, json.dumps(results)):
        assert str(BENCHMARKS.parent) not in text, "results must not name folders of this machine"


def test_a_peer_stopped_by_the_time_limit_counts_as_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ratio, steps = importlib.import_module("gates").ratio, ("fit", "pairwise", "self")
    ours = {"seconds": {"fit": 1.0, "pairwise": 0.5, "self": 0.5}}
    complete = {"seconds": {"fit": 10.0, "pairwise": 5.0, "self": 5.0}}
    stopped = {"seconds": {"fit": 10.0}, "stopped": {"step": "pairwise", "seconds": 30.0}}
    failed = {"seconds": {"fit": 10.0}, "failed": {"step": "pairwise", "error": "no"}}
    assert ratio(complete, ours, steps, 100) == 10
    assert ratio(stopped, ours, steps, 15) == 20
    assert ratio(stopped, ours, steps, 25) is None, "a bound below the gate decides nothing"
    assert ratio(failed, ours, steps, 1) is None
