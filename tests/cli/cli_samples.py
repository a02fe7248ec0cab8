"""Small data, and the command line called as a person calls it."""

import csv
import gzip
import sys
from dataclasses import dataclass
from pathlib import Path

from whence.cli import main as command_line

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


@dataclass(frozen=True)
class Outcome:
    """What a call printed and how it ended."""

    code: int
    out: str
    err: str

    def one_line(self) -> str:
        """Return the error, which must be a single line without a traceback."""
        assert "Traceback" not in self.err + self.out
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


def invoke(arguments: tuple[object, ...]) -> int:
    """Run the command line with these arguments and return its exit code."""
    before = sys.argv
    sys.argv = ["whence", *map(str, arguments)]
    try:
        command_line()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def sms(count: int) -> list[tuple[str, str]]:
    """Return (label, text) of the first messages: as many spam as ham."""
    with gzip.open(EXAMPLES / "sms_spam.csv.gz", "rt", encoding="utf-8") as file:
        rows = [(row["label"], row["text"]) for row in csv.DictReader(file)]
    spam, ham = ([row for row in rows if row[0] == name][: count // 2] for name in ("spam", "ham"))
    return [row for pair in zip(spam, ham, strict=True) for row in pair]


def write_csv(path: Path, rows: list[tuple[object, ...]], names: tuple[str, ...]) -> Path:
    """Write a table with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    return path


@dataclass(frozen=True)
class Audited:
    """A finished audit on disk, and the rows whose label was flipped."""

    folder: Path
    source: Path
    flipped: tuple[str, ...]
    rows: int
