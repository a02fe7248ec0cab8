"""A folder of images written back: files copied into folders by class, or listed."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whence.data import read
from whence.data.rewrite import check_ending, rewrite
from whence.errors import ConfigError, DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    source = tmp_path / "photos"
    for number in range(4):
        for name in ("boot/sub", "shoe"):
            (source / name).mkdir(parents=True, exist_ok=True)
            grey = np.full((5, 5), 20 * number + len(name), dtype=np.uint8)
            Image.fromarray(grey).save(source / name / f"{number}.png")
    (source / "boot" / "0.png").write_bytes((source / "boot" / "sub" / "0.png").read_bytes())
    return source


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_copied_into_the_folders_of_their_new_classes(photos: Path, tmp_path: Path) -> None:
    data, out = read(photos), tmp_path / "clean"
    assert data.ids.tolist()[0] == "boot/0.png" and check_ending(data, out) == ""
    labels, kept = data.labels.copy(), np.ones(len(data), dtype=bool)
    labels[0] = 1  # boot/0.png to shoe, where 0.png is taken
    labels[1] = 1  # boot/sub/0.png to shoe/sub
    kept[-1] = False
    assert rewrite(data, out, "", labels=labels, kept=kept) == 0
    before, after = files(photos), files(out)
    moved = {"boot/0.png": "shoe/0 (boot).png", "boot/sub/0.png": "shoe/sub/0.png"}
    assert after == {moved.get(name, name): raw for name, raw in before.items() if name != "shoe/3.png"}
    again = read(out)
    assert len(again) == len(data) - 1 and again.classes == data.classes
    assert files(photos) == before


def test_a_split_stays_before_the_class(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "split"
    for part in ("train", "test"):
        (source / part).mkdir(parents=True)
        for name, raw in files(photos).items():
            (source / part / name).parent.mkdir(parents=True, exist_ok=True)
            (source / part / name).write_bytes(raw)
    data = read(source)
    labels = data.labels.copy()
    labels[0] = 1
    rewrite(data, tmp_path / "out", "", labels=labels, kept=np.ones(len(data), dtype=bool))
    assert "test/shoe/0 (boot).png" in files(tmp_path / "out") and len(files(tmp_path / "out")) == len(data)


def test_files_are_listed_with_their_labels(photos: Path, tmp_path: Path) -> None:
    data = read(photos)
    labels, kept = data.labels.copy(), np.ones(len(data), dtype=bool)
    labels[0], kept[1] = 1, False
    out = tmp_path / "list.csv"
    rewrite(data, out, check_ending(data, out), labels=labels, kept=kept)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    names = [data.classes[label] for label in labels]
    assert rows[0] == ["file", "folder"]
    assert rows[1:] == [[id_, name] for id_, name, keep in zip(data.ids, names, kept, strict=True) if keep]


def test_refusals(photos: Path, tmp_path: Path) -> None:
    data = read(photos)
    with pytest.raises(ConfigError, match="must lie outside"):
        check_ending(data, photos / "clean")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").touch()
    with pytest.raises(ConfigError, match="must be a new or empty folder"):
        check_ending(data, tmp_path / "full")
    with pytest.raises(ConfigError, match=r"must end in .*, or name a folder"):
        check_ending(data, tmp_path / "clean.zip")
    (photos / "shoe" / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png must exist"):
        rewrite(data, tmp_path / "out", "", labels=data.labels, kept=np.ones(len(data), dtype=bool))


def test_an_image_folder_named_like_a_missing_label_is_left_out(photos: Path) -> None:
    for number in range(300):
        (photos / "shoe" / f"more{number}.png").write_bytes((photos / "shoe" / "1.png").read_bytes())
    (photos / "NA").mkdir()
    (photos / "NA" / "x.png").write_bytes((photos / "shoe" / "1.png").read_bytes())
    data = read(photos)
    assert len(data) == 309 and data.classes == ("boot", "shoe") and "1 rows without a label left out" in data.notes
