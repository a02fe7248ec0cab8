from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from whence.data import ReadOptions, read
from whence.errors import DataError, MissingExtraError

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def test_texts_with_class_names(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"text": ["what a dull film", "a joy to watch", "NA", "fine by me"], "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    data = read(tmp_path / "d", ReadOptions(text="text"))
    assert data.kind == "text" and data.classes == ("neg", "pos") and data.labels.tolist() == [0, 1, 0, 1]
    assert isinstance(data.content, list) and data.content[2] == "NA"
    assert data.notes[0] == "saved dataset of 1 split(s)"


def test_splits_become_a_column_and_selections_are_respected(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"x": [1.5, 2.5, 4.5, 3.0], "label": ["a", "b", "a", "b"]})
    both = datasets.DatasetDict({"train": part.select([3, 0]), "test": part.select([1, 2])})
    both.save_to_disk(tmp_path / "d")
    data = read(tmp_path / "d")
    assert isinstance(data.content, pd.DataFrame) and data.content["x"].tolist() == [3.0, 1.5, 2.5, 4.5]
    assert data.split is not None and data.split.tolist() == ["train", "train", "test", "test"]


def test_images(tmp_path: Path) -> None:
    from PIL import Image

    pictures = [Image.fromarray(np.full((6, 5), 40 * i, dtype=np.uint8)) for i in range(4)]
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["u", "v"])})
    rows = {"picture": pictures, "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    data = read(tmp_path / "d")
    assert data.kind == "image" and isinstance(data.content, np.ndarray)
    assert data.content.shape == (4, 6, 5, 1) and data.content[:, 0, 0, 0].tolist() == [0, 40, 80, 120]


def test_several_labels_a_row_and_unlabelled_rows_are_refused(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["u", "v"])
    several = datasets.Features({"x": datasets.Value("float32"), "label": datasets.Sequence(names)})
    datasets.Dataset.from_dict({"x": [1, 2], "label": [[0], [0, 1]]}, features=several).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match=r"'label' must hold one class per row, got a list in row 0"):
        read(tmp_path / "d")
    single = datasets.Features({"x": datasets.Value("float32"), "label": names})
    datasets.Dataset.from_dict({"x": [1, 2], "label": [-1, -1]}, features=single).save_to_disk(tmp_path / "e")
    with pytest.raises(DataError, match=r"got 2 of 2 rows without one"):
        read(tmp_path / "e")


def test_damaged_folder(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"x": [1, 2], "label": ["a", "b"]}).save_to_disk(tmp_path / "d")
    for file in (tmp_path / "d").glob("*.arrow"):
        file.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"must be a whole saved dataset, got: "):
        read(tmp_path / "d")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_dict({"x": [1, 2], "label": ["a", "b"]}).save_to_disk(tmp_path / "d")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"needs the package datasets.* pip install 'whence\[hf\]'"):
        read(tmp_path / "d")
