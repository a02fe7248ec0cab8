"""The readers on real public data: what is recognised without options, and the counts the publishers state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from whence.data import Kind, LabelledData, ReadOptions, read


def counts(data: LabelledData) -> dict[str, int]:
    return dict(zip(data.classes, np.bincount(data.labels).tolist(), strict=True))


@pytest.mark.parametrize(
    ("file", "label", "kind", "rows", "expected"),
    [
        ("sms_spam/sms_spam.csv.gz", None, "text", 5574, {"ham": 4827, "spam": 747}),
        ("rotten_tomatoes/rt_polarity.csv.gz", None, "text", 10662, {"0": 5331, "1": 5331}),
        ("sst2/sst2.csv.gz", None, "text", 9613, None),
        ("trec/trec_questions.csv.gz", "coarse", "text", 5952, None),
        ("ag_news/ag_news_test7600.csv.gz", None, "text", 7600, {"0": 1900, "1": 1900, "2": 1900, "3": 1900}),
        ("imdb/imdb.csv.gz", None, "text", 7055, None),
        ("newsgroups/newsgroups5.csv.xz", "group", "text", 4997, None),
        ("wiki_npov/wiki_npov.csv.gz", None, "text", 11946, {"0": 10103, "1": 1843}),
        ("fiction/fiction.jsonl.gz", "genre", "text", 15, {"romance": 5, "scifi": 10}),
        ("adult/adult.csv.gz", None, "tabular", 48842, {"<=50K": 37155, ">50K": 11687}),
        ("german_credit/german_credit.csv.gz", "credit", "tabular", 1000, {"1": 700, "2": 300}),
        ("spambase/spambase.csv.gz", "result", "tabular", 4601, {"0": 2788, "1": 1813}),
        (
            "diabetes130/diabetic_data.csv.gz", "readmitted", "tabular", 101766,
            {"<30": 11357, ">30": 35545, "NO": 54864},
        ),
        ("mnist/mnist_test.npz", None, "image", 10000, None),
        ("fashion_mnist/fashion_mnist_test.npz", None, "image", 10000, {str(i): 1000 for i in range(10)}),
        ("dogfish/dogfish_32.npz", None, "image", 1000, {"0": 500, "1": 500}),
    ],
)  # fmt: skip
def test_every_set_is_recognised(
    real_data: Path, file: str, label: str | None, kind: Kind, rows: int, expected: dict[str, int] | None
) -> None:
    data = read(real_data / file, ReadOptions(label=label))
    assert data.kind == kind and len(data) == rows == len(set(data.ids.tolist()))
    if expected is not None:
        assert counts(data) == expected


def test_details_of_real_tables(real_data: Path) -> None:
    adult = read(real_data / "adult" / "adult.csv.gz")
    assert isinstance(adult.content, pd.DataFrame)
    assert adult.split is not None and (adult.split == "train").sum() == 32561
    assert adult.content.isna().any(axis=1).sum() == 3620
    assert adult.content["age"].dtype == np.float64 and set(adult.content["sex"]) == {"Male", "Female"}
    imdb = read(real_data / "imdb" / "imdb.csv.gz")
    assert imdb.ids[0].startswith("train/") and imdb.split is not None
    assert any(note.startswith("columns not used: stars") for note in imdb.notes)


def test_images_in_class_folders_of_a_zip(real_data: Path, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(real_data / "dogfish" / "dogfish_jpeg64.zip") as archive:
        archive.extractall(tmp_path)
    data = read(tmp_path)
    assert counts(data) == {"dog": 500, "fish": 500} and isinstance(data.content, np.ndarray)
    assert data.content.shape == (1000, 64, 64, 3)
    assert data.split is not None and (data.split == "test").sum() == 100
    assert any(note.startswith("9 of 1000 images are greyscale") for note in data.notes)


def test_bundled_samples(samples: Path) -> None:
    sms = read(samples / "sms_spam.csv.gz")
    assert sms.kind == "text" and counts(sms) == {"ham": 4827, "spam": 747}
    fashion = read(samples / "fashion_mnist_1000.npz")
    assert fashion.kind == "image" and len(fashion) == 1000 and len(fashion.classes) == 10
    adult = read(samples / "adult_1000.csv.gz")
    assert adult.kind == "tabular" and len(adult) == 1000 and adult.classes == ("<=50K", ">50K")
    assert set(adult.split.tolist() if adult.split is not None else []) == {"train"}
