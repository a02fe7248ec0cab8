import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_samples import RUN, make_data, make_evidence, make_frame

from whence.data.labelled import LabelledData
from whence.report import content_of, render, render_explanation, summarise

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><script>alert(1)</script> {{ 7*7 }} <!-- ' & \u2028"
VOID = {"meta", "link", "img", "br", "input", "circle", "path", "rect"}


class Page(HTMLParser):
    """What a page holds, and whether its tags match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.script_attributes: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        self.ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        data = [i for i, attributes in enumerate(self.script_attributes) if "application/json" in attributes.values()]
        self.island = json.loads(self.scripts[data[0]]) if data else None

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice: {tag} {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")
            self.script_attributes.append(dict(attrs))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:  # a browser writes </path>
            return
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data


def words(html: str) -> str:
    return " ".join(Page(html).text.split())


def make_explanation(data: LabelledData, label: str | None = "class 0") -> dict:
    def argument(row: int, score: float) -> dict:
        return {"id": f"r{row}", "label": data.classes[int(data.labels[row])], "score": score,
                "content": content_of(data, row)}  # fmt: skip

    return {
        "format": 1,
        "query": {"id": "r0", "label": label, "predicted": "class 1", "loss": 2.3, "content": content_of(data, 0),
                  "probabilities": [{"label": "class 1", "p": 0.9}, {"label": "class 0", "p": 0.1}]},
        "helpful": [argument(1, 0.02), argument(2, 0.01)],
        "harmful": [argument(3, -0.04)],
        "sum_score": -0.5,
        "unit": "nats",
        "model": {"name": "text-mlp"},
        "data": {"source": "some.csv"},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "image", "tabular"])
def test_pages_of_every_kind_are_well_formed(kind, summary_of) -> None:
    data = make_data(kind)
    for html in (render(summary_of(data)), render_explanation(make_explanation(data))):
        page = Page(html)
        assert html.startswith("<!doctype html>")
        assert len(page.ids) == len(set(page.ids))
        tags = {tag for tag, _ in page.tags}
        assert {"header", "main", "nav", "footer", "h1"} <= tags
        targets = {a["href"][1:] for tag, a in page.tags if tag == "a"}
        assert targets <= set(page.ids)
        named = {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
        assert named <= set(page.ids)


@pytest.mark.parametrize("kind", ["text", "image", "tabular"])
def test_the_page_holds_every_shown_row_word_for_word(kind, summary_of) -> None:
    summary = summary_of(make_data(kind))
    island = Page(render(summary)).island
    assert [row["id"] for row in island["rows"]] == [row["id"] for row in summary["rows"]]
    first, packed = summary["rows"][0], island["rows"][0]
    assert island["labels"][packed["given"]] == first["label"]
    assert island["labels"][packed["suggested"]] == first["suggested_label"]
    if kind == "text":
        assert packed["content"] == first["content"]["text"]
    elif kind == "image":
        assert packed["content"] == [first["content"]["png"], 6, 8]
    else:
        assert island["columns"] == ["age", "work"]
        assert packed["content"]["values"] == [
            None if cell["missing"] else cell["value"] for cell in first["content"]["cells"]
        ]
    pooled, score, share = packed["evidence"][0]
    assert island["pool"][pooled][0] == first["evidence"][0]["id"] and (score, share) == ("−0.0300", 100)


def hostile_summary(kind: str) -> dict:
    data = make_data(kind)
    content = data.content
    texts = [HOSTILE] * len(data)
    content = texts if kind == "text" else content.assign(work=HOSTILE).rename(columns={"age": HOSTILE})
    data = LabelledData(
        ids=[f"{HOSTILE}{i}" for i in range(len(data))], kind=kind, content=content, labels=data.labels,
        classes=(HOSTILE, HOSTILE + "2"), source=HOSTILE, label_name=HOSTILE, notes=(HOSTILE,),
    )  # fmt: skip
    frame = make_frame(data).rename(columns={"margin": HOSTILE})
    frame["duplicate_of"] = [None, *[data.ids[0] if name != data.ids[0] else None for name in frame["id"][1:]]]
    return summarise(data, frame, RUN, evidence=make_evidence(data, frame))


@pytest.mark.parametrize("kind", ["text", "tabular"])
def test_hostile_data_stays_data(kind) -> None:
    page = Page(render(hostile_summary(kind)))
    assert [a.get("type") for tag, a in page.tags if tag == "script"] == [None, "application/json", None]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "<" not in page.scripts[1]
    assert " ".join(HOSTILE.split()) in " ".join(page.text.split())
    assert page.island["labels"][0] == HOSTILE


def test_hostile_data_stays_data_in_an_explanation() -> None:
    data = make_data("text")
    explanation = make_explanation(data)
    explanation["query"] |= {"label": HOSTILE, "predicted": HOSTILE, "id": HOSTILE}
    explanation["query"]["content"] = {"kind": "text", "text": HOSTILE}
    explanation["helpful"][0] |= {"id": HOSTILE, "label": HOSTILE}
    page = Page(render_explanation(explanation))
    assert len(page.scripts) == 1 and not any(tag == "img" for tag, _ in page.tags)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_nothing_is_loaded_from_anywhere(kind, summary_of) -> None:
    data = make_data(kind)
    if kind == "text":
        data = LabelledData(
            ids=data.ids, kind="text", content=["see https://example.com/a.png"] * len(data), labels=data.labels,
            classes=data.classes,
        )  # fmt: skip
    for html in (render(summary_of(data)), render_explanation(make_explanation(data))):
        page = Page(html)
        for tag, attributes in page.tags:
            assert tag not in {"iframe", "object", "embed", "base", "form action"}
            for name in ("src", "href", "srcset", "poster", "data", "action"):
                value = attributes.get(name) or "#"
                assert value.startswith(("#", "data:")), (tag, name, value)
        style = html[html.index("<style>") : html.index("</style>")]
        assert "@import" not in style and "url(" not in style


def test_the_policy_allows_exactly_the_page_s_own_scripts(summary_of) -> None:
    page = Page(render(summary_of(make_data("text"))))
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    run = {
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (page.scripts[0], page.scripts[2])
    }
    assert allowed == run


def test_the_headline_counts_in_words(summary_of) -> None:
    data = make_data("text", rows=5574)
    text = words(render(summary_of(data, make_frame(data, flagged=512))))
    assert "whence found 512 probably mislabelled rows in 5,574 (9.2 %)." in text
    assert "By its estimate 9.4 % of the labels are wrong (between 8.6 % and 10.3 %)." in text
    assert "labels 97.9 % of the rows it had not seen as given" in text and "would get 86.6 %." in text
    assert "Labels are memorised. Trust the folds." in text
    assert "3 min 07 s" in text


def test_one_suspect_is_singular_and_none_is_said(summary_of) -> None:
    data = make_data("text")
    assert "found 1 probably mislabelled row in 60" in words(render(summary_of(data, make_frame(data, flagged=1))))
    html = render(summary_of(data, make_frame(data, flagged=0)))
    assert "found no probably mislabelled rows in 60" in words(html)
    assert "No suspect has a suggested label." in words(html) and len(Page(html).island["rows"]) == 50


def test_a_page_without_rows_signals_and_numbers_still_stands() -> None:
    data = make_data("text")
    frame = make_frame(data, flagged=0).drop(columns=["self_influence", "margin", "duplicate_of", "conflict"])
    run = type(RUN)(whence="0", created="", model=type(RUN.model)(name="mine"),
                    method=type(RUN.method)(name="ranks", unit=None))  # fmt: skip
    page = Page(render(summarise(data, frame, run)))
    assert "No row is a copy of another." in page.text and page.island["unit"] is None


@pytest.mark.parametrize(("classes", "matrix"), [(2, False), (5, True), (200, False)])
def test_labels_are_a_heat_table_for_few_classes_and_a_list_of_pairs_for_many(classes, matrix, summary_of) -> None:
    data = make_data("text", rows=600, classes=classes)
    html = render(summary_of(data, make_frame(data, flagged=300)))
    assert ('class="heat"' in html) is matrix
    pairs = html[html.index('<ul class="pairs">') :]
    assert 2 <= pairs[: pairs.index("</ul>")].count("<li>") <= 20
    if classes == 200:
        assert "180 more classes" in html and len(html) < 500_000


def test_a_thousand_suspects_stay_below_a_megabyte(summary_of) -> None:
    data = make_data("text", rows=5000)
    html = render(summary_of(data, make_frame(data, flagged=1000)))
    assert len(Page(html).island["rows"]) == 1050
    assert len(html.encode()) < 1_000_000
    few = render(summary_of(data, make_frame(data, flagged=20)))
    assert len(few.encode()) < 160_000


def test_dark_light_paper_and_phone_have_styles(summary_of) -> None:
    html = render(summary_of(make_data("text")))
    for needed in ("prefers-color-scheme: dark", 'data-theme="dark"', "@media print", "max-width: 44rem",
                   "prefers-reduced-motion", ":focus-visible"):  # fmt: skip
        assert needed in html


def test_an_explanation_says_what_it_measures() -> None:
    data = make_data("text")
    text = words(render_explanation(make_explanation(data)))
    assert "The model reads this row as class 1 (90.0 %); its label says class 0." in text
    assert "+0.0200" in text and "−0.0400" in text and "Loss of “class 0”" in text
    assert "reads this row as class 1 (90.0 %). " in words(render_explanation(make_explanation(data, None)))
    agreed = words(render_explanation(make_explanation(data, "class 1")))
    assert "as it is labelled." in agreed


def test_an_explanation_without_arguments_still_stands() -> None:
    explanation = make_explanation(make_data("text")) | {"helpful": [], "harmful": [], "sum_score": None, "unit": None}
    assert Page(render_explanation(explanation)).text.count("None.") == 2


@pytest.mark.parametrize("kind", ["text", "tabular", "image"])
def test_a_browser_draws_the_cards_and_runs_nothing_else(kind, summary_of, tmp_path, window) -> None:
    summary = summary_of(make_data(kind)) if kind == "image" else hostile_summary(kind)
    (tmp_path / "report.html").write_text(render(summary), encoding="utf-8")
    window.page.goto(f"{(tmp_path / 'report.html').as_uri()}#suspect-2")
    assert "These training rows argue most against" in window.page.inner_text("#suspect-2")
    dom = window.page.content()
    assert dom.count('id="suspect-') == 6 and "owned</title>" not in dom
    page = Page(dom)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    pictures = [attributes["src"][:5] for tag, attributes in page.tags if tag == "img"]
    assert set(pictures) == ({"data:"} if kind == "image" else set())
    window.sound_everywhere()


def test_a_report_of_twenty_classes_with_long_names_fits(summary_of, tmp_path, window) -> None:
    names = tuple(f"{'verylongname' * (i % 4)} class {i}" for i in range(20))
    data = replace(make_data("text", classes=20), classes=names)
    (tmp_path / "report.html").write_text(render(summary_of(data)), encoding="utf-8")
    window.page.goto((tmp_path / "report.html").as_uri())
    window.sound_everywhere()


def test_names_that_cannot_be_encoded_do_not_stop_a_page(summary_of) -> None:
    summary = summary_of(make_data("text"))
    summary["data"]["source"] = summary["rows"][0]["id"] = "bad\ud800name"
    assert "bad?name" in render(summary).encode("utf-8").decode("utf-8")
