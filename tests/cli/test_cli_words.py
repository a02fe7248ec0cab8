"""``whence words``: counts first, sentences, removal, edit, page; vectors that are loaded; what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_samples import EXAMPLES, Outcome

import whence as wh
from whence.audit import count_lists, read_texts
from whence.report import render_words

Call = Callable[..., Outcome]
SCRIPT = "<script>alert(1)</script>"
LISTS = {"targ1": ("He", ["he", "him", "Greg"]), "targ2": ("She", ["she", "her"]),
         "attr1": ("Work", ["office", "work"]), "attr2": ("Home", ["home", "food"])}  # fmt: skip
SMALL = ("--width", 8, "--epochs", 2, "--min-count", 2, "-k", 20, "--seeds", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text messages as a table and as a plain text, and word lists."""
    made = tmp_path_factory.mktemp("words")
    texts = pd.read_csv(EXAMPLES / "sms_spam.csv.gz")["text"].head(1500)
    texts.loc[texts.str.contains(r"\b(?:she|her)\b", case=False)] += f" <1 & co {SCRIPT}"
    texts.to_frame("message").assign(number=range(1500)).to_csv(made / "texts.csv", index_label="id")
    with gzip.open(made / "texts.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(texts))
    lists = {key: {"category": name, "examples": words} for key, (name, words) in LISTS.items()}
    (made / "tests.json").write_text(json.dumps({"gender": lists}))
    return made


def ask(call: Call, folder: Path, *more: object) -> Outcome:
    return call("words", folder / "texts.csv", "--weat", folder / "tests.json", "--test", "gender", *SMALL, *more)


def test_counts_sentences_removal_and_page(call: Call, folder: Path, tmp_path: Path) -> None:
    page, vectors = tmp_path / "page.html", tmp_path / "vectors.txt"
    shown = ask(call, folder, "--out", page, "--save", vectors)
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[0].startswith("He 2 of 3 words: he "), "counts come first"
    for words in ("1 of 3 in He (Greg)", "Sentences that raise it:", "without 20 that raise it", "without 20 random",
                  "edited,", "hard debiasing"):  # fmt: skip
        assert words in " ".join(shown.out.split())
    text = page.read_text(encoding="utf-8")
    assert SCRIPT not in text
    assert "<1 & co" not in text and "&lt;1 &amp; co" in text
    assert "http://" not in text.replace("http://www.w3.org/", "")
    found = json.loads(ask(call, folder, "--json", "--quiet").out)
    again = json.loads(ask(call, folder, "--json").out)
    assert {k: v for k, v in again.items() if k not in ("seconds", "created")} == {
        k: v for k, v in found.items() if k not in ("seconds", "created")
    }
    assert [one["score"] for one in found["sentences"]["raise"]] == sorted(
        one["score"] for one in found["sentences"]["raise"]
    )
    rows = {row["name"]: row for row in found["removal"]["rows"]}
    assert rows["raise"]["predicted"] < 0 < rows["lower"]["predicted"]
    assert found["removal"]["before"][0] == pytest.approx(found["measurement"]["value"], abs=1e-6), "seed 0, all texts"
    assert rows["raise"]["after"][0] == pytest.approx(
        found["removal"]["before"][0] + rows["raise"]["change"][0], abs=1e-6
    )
    value, after = found["measurement"]["value"], found["edit"]["after"]
    assert abs(after) < abs(value)
    weat = wh.WEAT.from_file(folder / "tests.json", "gender")
    assert weat.effect(wh.load_words(vectors)) == pytest.approx(value, abs=1e-5)


def test_nearness_of_two_words(call: Call, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    shown = call("words", folder / "texts.txt.gz", "--near", "Home", "work", *SMALL, "--seeds", 0, "--out", page)
    assert shown.code == 0, shown.err
    assert "home occurs" in shown.out and "similarity of home and work" in shown.out
    assert "Nearest to home" in page.read_text(encoding="utf-8")
    assert "Nothing was trained again" in page.read_text(encoding="utf-8")


def test_loaded_vectors_are_measured_and_not_traced(call: Call, folder: Path, tmp_path: Path) -> None:
    words = sorted({word for _, some in LISTS.values() for word in some} - {"Greg"} | {"man", "woman"})
    path, page = tmp_path / "v.txt", tmp_path / "page.html"
    rows = np.random.default_rng(0).normal(size=(len(words), 5))
    lines = [f"{word} {' '.join(f'{x:.5f}' for x in row)}" for word, row in zip(words, rows, strict=True)]
    path.write_text("\n".join([f"{len(words)} 5", *lines]))
    shown = call("words", "--vectors", path, "--weat", folder / "tests.json", "--test", "gender", "--out", page)
    assert shown.code == 0, shown.err
    assert "hard debiasing" in shown.out and "raise it" not in shown.out
    assert "These vectors were loaded" in page.read_text(encoding="utf-8")
    pairs = ("--pairs", "he:she,him:her")
    other = call("words", "--vectors", path, "--weat", folder / "tests.json", "--test", "gender", "--json", *pairs)
    assert json.loads(other.out)["debias"]["pairs"] == [["he", "she"], ["him", "her"]]
    assert json.loads(other.out)["debias"]["after"] == pytest.approx(0, abs=1e-6)


def test_the_page_escapes_whatever_stands_in_it(call: Call, folder: Path) -> None:
    found = json.loads(ask(call, folder, "--seeds", 0, "--json").out)
    found["measurement"]["name"] = found["data"]["source"] = found["sentences"]["raise"][0]["text"] = SCRIPT
    found["measurement"]["lists"][0]["label"] = found["measurement"]["lists"][1]["words"][0]["word"] = SCRIPT
    found["sentences"]["lower"][0]["id"] = SCRIPT
    page = render_words(found)
    assert SCRIPT not in page
    assert page.count("&lt;script&gt;alert(1)") >= 5


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--weat", "tests.json"), "--weat and --test must be given together"),
        ((), "either --weat with --test or --near"),
        (("--weat", "tests.json", "--test", "race"), "test must be one of ['gender'], got 'race'"),
        (("--near", "home", "qwertyui"), "word must be one of the"),
        (("--near", "home", "work", "--unit", "page"), "--unit must be sentence, window or document"),
        (("--near", "home", "work", "--pairs", "he"), "--pairs must be like he:she"),
        (("--near", "home", "work", "-k", "0"), "k must be at least 1"),
        (("--near", "home", "work", "--text", "nothing"), "column must be one of"),
        (("--near", "home", "work", "--vectors", "v.txt"), "either a text or --vectors must be given"),
    ],
)
def test_refusals(call: Call, folder: Path, arguments: tuple[str, ...], words: str) -> None:
    given = [folder / one if one.endswith(".json") else one for one in arguments]
    refused = call("words", folder / "texts.csv", "--width", 4, "--epochs", 1, *given)
    assert refused.code == 2
    assert words in refused.one_line()


def test_what_cannot_be_read(call: Call, folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n ")
    for path, words in ((empty, "must hold text"), (tmp_path / "none.txt", "must be readable"),
                        (tmp_path / "a.docx", "must exist")):  # fmt: skip
        refused = call("words", path, "--near", "home", "work")
        assert refused.code == 1
        assert words in refused.one_line()
    few = call("words", folder / "texts.csv", "--weat", folder / "tests.json", "--test", "gender", "--min-count", 500)
    assert few.code == 1 and "must have at least 2 words in the vocabulary" in few.one_line()
    assert ask(call, folder, "-k", 5_000).code == 2
    assert "must be an .html file" in ask(call, folder, "--out", tmp_path / "page.txt").one_line()


def test_texts_of_tables_and_paragraphs(folder: Path, tmp_path: Path) -> None:
    table = read_texts(folder / "texts.csv", id_column="id")
    assert table.ids is not None and len(table.ids) == len(table.texts) == 1500
    plain = read_texts(folder / "texts.txt.gz")
    assert plain.ids is None
    assert [one.split() for one in plain.texts] == [one.split() for one in table.texts]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a b", "long": "much longer than the other"}\n{"text": "c", "long": "x"}\n')
    assert read_texts(rows).texts == ["a b", "c"]
    assert read_texts(rows, text="long").texts[1] == "x"
    with pytest.raises(wh.ConfigError, match="columns must be of a table"):
        read_texts(folder / "texts.txt.gz", text="a")


def test_counts_of_lists(folder: Path) -> None:
    weat = wh.WEAT.from_file(folder / "tests.json", "gender")
    vocabulary = wh.Vocabulary(["he", "him", "she", "her", "office"], np.array([9, 8, 7, 6, 5]))
    found = count_lists(weat, vocabulary)
    assert [one["role"] for one in found] == ["X", "Y", "A", "B"]
    assert found[0] == {"role": "X", "label": "He", "words": [
        {"word": "he", "count": 9, "used": True}, {"word": "him", "count": 8, "used": True},
        {"word": "Greg", "count": 0, "used": False},
    ]}  # fmt: skip
