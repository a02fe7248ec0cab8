"""``whence mismatch``: rows, features, page; what is refused is one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_samples import EXAMPLES, Outcome

import whence as wh
from whence.audit.mismatch import subgroup_of
from whence.data import ReadOptions, from_frame
from whence.report import render_mismatch
from whence.tasks.defaults.tabular import TabularPreparation

Call = Callable[..., Outcome]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Census rows: of single parents in training, four, three of whom earn much."""
    with gzip.open(EXAMPLES / "adult_1000.csv.gz", "rt", encoding="utf-8") as file:
        frame = pd.read_csv(file)[["age", "education-num", "hours-per-week", "relationship", "label"]]
    alone, much = frame["relationship"].eq("Unmarried"), frame["label"].eq(">50K")
    kept = np.concatenate([np.flatnonzero(alone & much)[:3], np.flatnonzero(alone & ~much)[:1]])
    train = (~alone & (frame.index < 600)).to_numpy(copy=True)
    train[kept] = True
    path = tmp_path_factory.mktemp("mismatch") / "people.csv"
    frame.assign(split=np.where(train, "train", "test")).to_csv(path, index_label="id")
    return path


def ask(call: Call, table: Path, *more: object) -> Outcome:
    return call("mismatch", table, "--label", "label", "--column", "relationship", "--value", "Unmarried", *more)


def test_rows_features_and_weight_decays(call: Call, table: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    shown = ask(call, table, "--out", page)
    assert shown.code == 0, shown.err
    for words in ("held-out rows with relationship = Unmarried are predicted wrongly", "4 of 540 training rows",
                  "times above the next; 4 of 4 with relationship", "weight decay 0.01:"):  # fmt: skip
        assert words in " ".join(shown.out.split())
    found = json.loads(ask(call, table, "--json", "--quiet").out)
    own = [row["value"] == "Unmarried" for row in found["found"]["rows"]]
    assert own[:4] == [True] * 4
    assert [row["in_subgroup"] for row in found["found"]["rows"]] == own
    assert found["found"]["features"][0]["feature"] == "relationship"
    decays = [line["weight_decay"] for line in found["sweep"]]
    assert decays == sorted(decays, reverse=True)
    ratios = [line["subgroup_ratio"] for line in found["sweep"]]
    assert ratios[0] < ratios[-1]
    text = page.read_text(encoding="utf-8")
    assert "relationship = Unmarried are predicted wrongly" in text
    assert "http://" not in text.replace("http://www.w3.org/", "")
    again = json.loads(ask(call, table, "--json").out)
    assert {k: v for k, v in again.items() if k not in ("seconds", "created")} == {
        k: v for k, v in found.items() if k not in ("seconds", "created")
    }


def test_the_page_escapes_and_says_when_nothing_is_wrong(call: Call, table: Path) -> None:
    found = json.loads(ask(call, table, "--json").out)
    found["subgroup"]["value"] = found["found"]["rows"][0]["label"] = "<script>alert(1)</script>"
    page = render_mismatch(found)
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "are predicted right" in render_mismatch({**found, "found": None})


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--column", "relation", "--value", "x"), "--column must be one of"),
        (("--column", "relationship", "--value", "Uncle"), "--value must be a value of 'relationship', such as"),
        (("--column", "age", "--value", "young"), "--value must be a number or LOW:HIGH"),
        (("--column", "age", "--value", "40:", "--weight-decay", "0"), "weight decay must be positive"),
    ],
)
def test_refusals(call: Call, table: Path, arguments: tuple[str, ...], words: str) -> None:
    refused = call("mismatch", table, "--label", "label", *arguments)
    assert refused.code == 2
    assert words in refused.one_line()


def test_data_that_cannot_answer(call: Call, table: Path, tmp_path: Path) -> None:
    sms = call("mismatch", EXAMPLES / "sms_spam.csv.gz", "--label", "label", "--column", "text", "--value", "x")
    assert "data must be a table" in sms.one_line()
    frame = pd.read_csv(table)
    only = tmp_path / "only.csv"
    frame.assign(split=np.where(frame["relationship"].eq("Unmarried"), "train", frame["split"])).to_csv(only)
    assert "must have held-out rows, got none" in ask(call, only).one_line()
    assert "must be writable" in ask(call, table, "--out", tmp_path / "no" / "page.html").one_line()
    every = call("mismatch", table, "--label", "label", "--column", "age", "--value", "0:")
    assert "must leave other training rows, got all 540" in every.one_line()


def test_no_file_but_a_page_is_written_over(call: Call, table: Path, tmp_path: Path) -> None:
    before = table.read_bytes()
    assert "page must be an .html file" in ask(call, table, "--out", table).one_line()
    assert table.read_bytes() == before
    page = tmp_path / "page.html"
    page.write_text("<p>my own</p>")
    assert "must be a new file or an earlier page" in ask(call, table, "--out", page).one_line()
    assert page.read_text() == "<p>my own</p>"
    page.unlink()
    for _ in range(2):
        assert ask(call, table, "--out", page, "--quiet").code == 0


def test_a_weight_decay_that_is_shown_anyway_is_fitted_once(call: Call, table: Path) -> None:
    found = json.loads(ask(call, table, "--weight-decay", "1e-3", "--json", "--quiet").out)
    assert [line["weight_decay"] for line in found["sweep"]] == [1e-2, 1e-3, 1e-5]


def test_numbers_by_value_and_range() -> None:
    frame = pd.DataFrame({"age": [3.0, 10.0, 41.5, np.nan], "town": ["a", "b", None, "a"], "label": list("xyxy")})
    data = from_frame(frame, ReadOptions(label="label"))
    for value, expected in (("10", [1]), ("3:41.5", [0, 1]), (":10", [0]), ("10:", [1, 2])):
        assert np.flatnonzero(subgroup_of(data, "age", value)).tolist() == expected
    assert np.flatnonzero(subgroup_of(data, "town", "a")).tolist() == [0, 3]
    with pytest.raises(wh.ConfigError, match="--value must be a value of 'town'"):
        subgroup_of(data, "town", "c")


def test_places_of_columns_are_those_of_the_vector() -> None:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({
        "plain": generator.normal(size=40), "gaps": np.where(generator.random(40) < 0.3, np.nan, 1.5),
        "zeros": np.where(generator.random(40) < 0.5, 0.0, 2.0), "town": generator.choice(["a", "b"], 40),
        "label": generator.choice(["x", "y"], 40),
    })  # fmt: skip
    data = from_frame(frame, ReadOptions(label="label"))
    preparation = TabularPreparation.fit(data.content)
    vectors, places = preparation.transform(data), preparation.places()
    assert sorted(place for group in places.values() for place in group) == list(range(vectors.shape[1]))
    for name in places:
        changed: Any = data.content.copy()
        changed[name] = changed[name].iloc[::-1].to_numpy()
        other = preparation.transform(from_frame(changed.assign(label=frame["label"]), ReadOptions(label="label")))
        moved = np.flatnonzero((other != vectors).any(0).numpy())
        assert set(moved.tolist()) <= set(places[name])
        assert len(moved) or name == "gaps"
