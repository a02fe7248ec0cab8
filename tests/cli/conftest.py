"""Fixtures: a call of the command line, and one finished audit."""

import os
import sys
from collections.abc import Callable

import pytest
from cli_samples import Audited, Outcome, invoke, sms, write_csv

Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs ``whence ARGS`` in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = invoke(arguments)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    """Audit 160 messages, 8 of them mislabelled, once for all tests."""
    folder = tmp_path_factory.mktemp("audited")
    flips = set(range(3, 160, 20))
    other = {"ham": "spam", "spam": "ham"}
    rows = [(f"m{i}", other[label] if i in flips else label, text) for i, (label, text) in enumerate(sms(160))]
    source = write_csv(folder / "sms.csv", rows, ("id", "label", "text"))
    stdout = sys.stdout
    with open(os.devnull, "w") as sys.stdout:
        try:
            code = invoke(("audit", source, "--out", folder / "run"))
        finally:
            sys.stdout = stdout
    assert code == 0
    return Audited(folder / "run", source, tuple(f"m{i}" for i in sorted(flips)), 160)
