"""What the driven explorer is given: files with 5 % of the labels flipped, a new input, and what the export must be."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import support

WRONG = 20  # one label in so many
TINY_ROWS = 300
FORMULA = ("=", "+", "-", "@", "\t", "\r")
EXAMPLES = support.ROOT / "examples" / "data"
PARTS = ("sms", "adult", "mnist", "fashion")

Rows = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A data set to be explored.

    Args:
        name: Of the set.
        source: The file that is audited.
        options: What ``whence audit`` is told of it besides.
        ending: What is exported.
        wrong: Positions of the rows whose label was flipped.
        rows: How many there are.
        asked: A new input: ``text`` to type, ``image`` to upload, or cells to type by their column.
    """

    name: str
    source: Path
    options: tuple[str, ...]
    ending: str
    wrong: frozenset[int]
    rows: int
    asked: Mapping[str, str]


def make(name: str, folder: Path, tiny: bool) -> Part:
    """Write the file of a part."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"sms": _sms, "adult": _adult, "mnist": _images, "fashion": _images}
    return makers[name](name, folder, tiny)


def flipped(labels: np.ndarray) -> tuple[np.ndarray, frozenset[int]]:
    """Return labels with one in ``WRONG`` of another class [N], and where."""
    rng = np.random.default_rng(0)
    classes, codes = np.unique(labels, return_inverse=True)
    wrong = rng.permutation(len(codes))[: len(codes) // WRONG]
    codes[wrong] = (codes[wrong] + rng.integers(1, len(classes), len(wrong))) % len(classes)
    return classes[codes], frozenset(wrong.tolist())


def _sms(name: str, folder: Path, tiny: bool) -> Part:
    rows = read_rows(EXAMPLES / "sms_spam.csv.gz")[: TINY_ROWS if tiny else None]
    source = folder / "sms.csv.gz"
    return Part(
        name=name, source=source, options=("--label", "label"), ending=".csv.gz", wrong=_write(rows, source),
        rows=len(rows), asked={"text": "Congratulations! You have won a free ticket, call 09061701461 now to claim"},
    )  # fmt: skip


def _adult(name: str, folder: Path, tiny: bool) -> Part:
    found = EXAMPLES / "adult_1000.csv.gz" if tiny else support.need(support.data_folder() / "adult" / "adult.csv.gz")
    rows = read_rows(found)[: TINY_ROWS if tiny else None]
    source = folder / "adult.csv.gz"
    split = ("--split", "split") if "split" in rows[0] and not tiny else ()
    asked = {"age": "52", "education": "Doctorate", "occupation": "Exec-managerial", "hours-per-week": "60"}
    return Part(
        name=name, source=source, options=("--label", "label", *split, "--drop", "fnlwgt"), ending=".csv",
        wrong=_write(rows, source), rows=len(rows), asked=asked,
    )  # fmt: skip


def _images(name: str, folder: Path, tiny: bool) -> Part:
    """All training rows of MNIST, or the bundled rows of Fashion-MNIST; the new input is a row that is left out."""
    if name == "mnist" and not tiny:
        found = support.data_folder() / "mnist"
        with np.load(support.need(found / "mnist_train.npz")) as file:
            x, y = file["x"], file["y"].astype(np.int64)
        with np.load(support.need(found / "mnist_test.npz")) as file:
            new = file["x"][0]
    else:
        with np.load(EXAMPLES / "fashion_mnist_1000.npz") as file:
            x, y = file["x"], file["y"].astype(np.int64)
        x, y, new = x[:-1], y[:-1], x[-1]
        x, y = (x[:TINY_ROWS], y[:TINY_ROWS]) if tiny else (x, y)
    labels, wrong = flipped(y)
    np.savez(folder / f"{name}.npz", x=x, y=labels)
    Image.fromarray(new).save(folder / "new.png")
    return Part(
        name=name, source=folder / f"{name}.npz", options=(), ending=".npz", wrong=wrong, rows=len(y),
        asked={"image": str(folder / "new.png")},
    )  # fmt: skip


def read_rows(path: Path) -> Rows:
    """Return the rows of a CSV file, every cell as text."""
    body = path.read_bytes()
    text = (gzip.decompress(body) if path.suffix == ".gz" else body).decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _write(rows: Rows, path: Path) -> frozenset[int]:
    labels, wrong = flipped(np.array([row["label"] for row in rows]))
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        written = csv.DictWriter(file, list(rows[0]))
        written.writeheader()
        written.writerows({**row, "label": str(label)} for row, label in zip(rows, labels.tolist(), strict=True))
    return wrong


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How an exported file differs from what it should be.

    Args:
        amiss: Rows that are not as decided: another label, another cell, left out or left in.
        changed: Rows that differ from the source as decided.
        guarded: Cells with an apostrophe before what a spreadsheet would run as a formula.
    """

    amiss: int
    changed: int
    guarded: int


def difference(part: Part, exported: Path, decided: Mapping[str, tuple[str, str | None]]) -> Difference:
    """Compare an exported file with the source, row by row, without the library.

    Args:
        part: What was audited.
        exported: What was downloaded.
        decided: (action, new label) by row number.
    """
    kept = [row for row in range(part.rows) if decided.get(str(row), ("", None))[0] != "drop"]
    labels = {int(row): label for row, (action, label) in decided.items() if action == "relabel" and label is not None}
    changed = part.rows - len(kept) + len(labels)
    if part.ending != ".npz":
        before, after = read_rows(part.source), read_rows(exported)
        found = [_amiss(before[row], now, labels.get(row)) for row, now in zip(kept, after, strict=False)]
        amiss = sum(wrong for wrong, _ in found) + abs(len(after) - len(kept))
        return Difference(amiss=amiss, changed=changed, guarded=sum(count for _, count in found))
    with np.load(part.source) as old, np.load(exported) as new:
        content = [_digests(file["x"]) for file in (old, new)]
        given, now = old["y"].tolist(), new["y"].tolist()
    wanted = [(content[0][row], str(labels.get(row, given[row]))) for row in kept]
    shown = [(digest, str(label)) for digest, label in zip(content[1], now, strict=True)]
    amiss = sum(one != other for one, other in zip(wanted, shown, strict=False)) + abs(len(shown) - len(wanted))
    return Difference(amiss=amiss, changed=changed, guarded=0)


def _amiss(old: dict[str, str], new: dict[str, str], label: str | None) -> tuple[bool, int]:
    """Return whether a row is not as it should be, and how many of its cells are guarded."""
    wanted = old if label is None else {**old, "label": label}
    guarded = {name for name, cell in wanted.items() if cell.startswith(FORMULA) and new.get(name) == f"'{cell}"}
    return wanted != {**new, **{name: wanted[name] for name in guarded}}, len(guarded)


def _digests(images: np.ndarray) -> list[int]:
    return [zlib.crc32(image.tobytes()) for image in images]


def truly_wrong(part: Part, decided: Mapping[str, Any]) -> int:
    """Return how many of the decided rows have a label that was flipped."""
    return sum(int(row) in part.wrong for row in decided)
