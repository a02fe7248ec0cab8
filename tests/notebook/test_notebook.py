"""What a notebook shows: every value from data escaped, the right numbers, figures that hold what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import whence as wh
import zoo
from whence.data import LabelledData
from whence.errors import ConfigError, DataError, MissingExtraError
from whence.evaluate.compare import Entry
from whence.evaluate.statistics import Interval
from whence.notebook import figures, readable

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> $x$ \x1b[2J \u202e &amp; \"'"
EXAMPLES = Path(__file__).parents[2] / "examples"
VOID = {"img", "br"}


class Reader(HTMLParser):
    """Reads a page strictly: tags must close in order; keeps the tags and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        page.encode("utf-8")
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def harmless(page: str) -> Reader:
    """Return what was read, in which data are text alone."""
    found = Reader(page)
    assert not {tag for tag, _ in found.tags} & {"script", "iframe", "object", "link", "a"}
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/png;base64,")
    assert not set(found.text) & {"\x1b", "\u202e"}
    return found


def scores(queries: int = 2, error: bool = False, unit: str | None = "nats") -> wh.Scores:
    values = torch.tensor([[0.5, -0.25, 0.125], [1.0, 0.0, -2.0]]).repeat(queries, 1)[:queries]
    return wh.Scores(
        values=values, query_ids=np.array([f"q{i}{EVIL}" for i in range(queries)], dtype=object),
        ids=np.array(["a", EVIL, "c"], dtype=object), unit=unit, standard_error=values.abs() / 10 if error else None,
    )  # fmt: skip


def test_scores_show_both_sides_of_the_first_queries() -> None:
    found = harmless(scores()._repr_html_())
    assert "2 queries × 3 examples · nats" in found.text and "<script>alert(1)</script>" in found.text
    assert found.text.index("+0.5") < found.text.index("−0.25") and "+1" in found.text and "−2" in found.text
    assert len([1 for tag, _ in found.tags if tag == "table"]) == 4
    many = harmless(scores(9, error=True)._repr_html_())
    assert "The first 5 of 9 queries" in many.text and "± s.e." in many.text and "0.05" in many.text
    assert "rank only" in harmless(scores(unit=None)._repr_html_()).text


def test_a_million_scores_are_shown_as_briefly_as_ten() -> None:
    wide = wh.Scores(values=torch.randn(3, 20_000), query_ids=np.arange(3), ids=np.arange(20_000), unit="nats")
    assert len(wide._repr_html_()) < 12_000


@pytest.mark.parametrize("values", [[1.0, 2.0, np.nan], [np.nan], [], [3.0]])
def test_signals_show_spread_and_ends_whatever_they_hold(values: list[float]) -> None:
    ids = np.array([EVIL] * len(values), dtype=object)
    signal = wh.Signal(values=np.array(values), ids=ids, name=EVIL, unit="nats")
    found = harmless(signal._repr_html_())
    lost = int(np.isnan(values).sum())
    assert f"{len(values)} examples · nats" in found.text and ("not finite" in found.text) == bool(lost)
    assert "1 to 2" in found.text or len(values) != 3


def test_an_attribution_shows_curvature_damping_and_what_is_missed() -> None:
    case = zoo.make("mlp")
    task = wh.Task(case.model, case.loss, weight_decay=0.01)
    for curvature, words in ((wh.EKFAC(), ("ekfac", "damping", "rank residual")), (wh.Exact(damping=0.5), ("0.5",))):
        attribution = wh.Influence(curvature=curvature).fit(task, case.train)
        found = harmless(attribution._repr_html_())
        assert all(word in found.text for word in (*words, "100.0% of the parameters", "0.01", "examples"))
        assert "Not attributed" not in found.text
    part = wh.Influence(layers="last").fit(task, case.train)
    assert f"{part.coverage.share:.1%}" in harmless(part._repr_html_()).text


def test_every_fitted_method_says_what_it_is() -> None:
    case = zoo.make("mlp")
    task = wh.Task(case.model, case.loss)
    recipe = wh.Recipe(build=lambda: zoo.make("mlp").model, epochs=1)
    fitted = {
        "2 members": wh.Ensemble().fit([task, task], case.train),
        "unseen less seen": wh.TurnOver(insert=("5",)).fit(recipe, case.train),
        "rank only": wh.GradientCosine().fit(task, case.train),
        "See .diagnosis": (gex := wh.GEX(members=2, steps=2, learning_rate=0.1).fit(task, case.train)),
    }
    for words, attribution in fitted.items():
        found = harmless(attribution._repr_html_())
        assert words in found.text and "9" in found.text and ".self_scores()" in found.text
    assert gex.diagnosis.advice in harmless(gex._repr_html_()).text
    plan = harmless(wh.plan(wh.Influence(), task, case.train)._repr_html_())
    assert "peak memory, MiB" in plan.text and "scores, seconds" in plan.text


def evaluated() -> dict[str, object]:
    draw = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    ids = {"query_ids": np.arange(3), "ids": np.arange(40), "unit": "nats"}
    signal = wh.Signal(values=draw[0].numpy(), ids=np.arange(40), name="s", unit=None)
    recipe = wh.Recipe(build=lambda: torch.nn.Linear(2, 2), epochs=1)
    train = (torch.randn(20, 2), torch.arange(20) % 2)
    return {
        "agreement": wh.agreement(wh.Scores(values=draw, **ids), wh.Scores(values=2 * draw, **ids)),
        "detection": wh.detection(np.arange(40) < 5, {EVIL: signal}, resamples=20),
        "curve": wh.removal_curve(
            wh.Retraining(recipe=recipe), train, train, {EVIL: [3, 1, 2]}, sweep=wh.Sweep(shares=(0.05, 0.1))
        ),
    }


def test_what_was_evaluated_is_shown_and_drawn() -> None:
    results = evaluated()
    for name, words in (("agreement", "pooled"), ("detection", "average precision"), ("curve", "removal")):
        found = harmless(results[name]._repr_html_())
        assert words in found.text and "whence.verdict" in found.text
    detection, curve = results["detection"].plot(), results["curve"].plot("loss")
    for figure in (detection, curve):
        drawn(figure)
    assert [trace.y[-1] for trace in detection.data] == [1, 1] and detection.data[1].name == "at random"
    assert list(curve.data[0].x) == [1, 2]
    with pytest.raises(ConfigError, match="loss, accuracy"):
        results["curve"].plot("nothing")


def comparison() -> wh.Comparison:
    entries = (
        Entry(name="ekfac", baseline=False, accuracy=Interval(0.6, 0.5, 0.7), seconds=2, passes=10),
        Entry(name=EVIL, baseline=True, accuracy=Interval(0.1, np.nan, np.nan), seconds=0, passes=0),
        Entry(name="gex", baseline=False, accuracy=None, seconds=0, passes=0, note=EVIL + "\ud800"),
    )
    return wh.Comparison(
        figure="LDS", entries=entries, recommended="ekfac", reason=EVIL, ceiling=None, pass_seconds=0.1
    )


def test_a_comparison_shows_its_table_and_what_does_not_apply() -> None:
    found = harmless(comparison()._repr_html_())
    assert "0.5 to 0.7" in found.text and "(baseline)" in found.text and "gex does not apply" in found.text
    assert [attributes.get("class") for tag, attributes in found.tags if tag == "tr"] == [None, "chosen", ""]


def suspects() -> pd.DataFrame:
    given = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.95, 0.05]])
    return wh.find_label_errors(given, labels=[0, 0, 1, 1])


def test_suspects_are_shown_beside_their_content_and_stay_a_frame() -> None:
    frame = suspects()
    before = frame.copy()
    shown = wh.show(frame, rows=3)
    found = harmless(shown._repr_html_())
    assert shown.frame is frame and frame.equals(before) and "1 of 4 rows" in found.text
    contents = {
        "text": [EVIL, "b", "c", EVIL + " last"],
        "tabular": pd.DataFrame({EVIL: [EVIL, 1, 2, "cell"], "n": [1.0, np.nan, 3, 4]}),
        "image": np.random.default_rng(0).integers(0, 255, (4, 90, 70, 3), dtype=np.uint8),
    }
    for kind, content in contents.items():
        data = LabelledData(
            ids=np.array(["0", "1", "2", "3"]), kind=kind, content=content, labels=np.array([0, 0, 1, 1]),
            classes=(EVIL, "b"),
        )  # fmt: skip
        found = harmless(wh.show(frame, data=data)._repr_html_())
        assert {"text": "last", "tabular": "cell", "image": "suspicion"}[kind] in found.text
        assert ("img" in {tag for tag, _ in found.tags}) == (kind == "image")
    named = frame.assign(id=EVIL, label=EVIL, suggested_label=EVIL, evidence=[[EVIL]] * 4)
    harmless(wh.show(named)._repr_html_())


def test_what_cannot_be_shown_is_refused() -> None:
    other = LabelledData(ids=np.array(["x"]), kind="text", content=["t"], labels=np.array([0]), classes=("a", "b"))
    with pytest.raises(ConfigError, match="find_label_errors returned"):
        wh.show(pd.DataFrame({"id": [1]}))
    with pytest.raises(ConfigError, match="at least 1"):
        wh.show(suspects(), rows=0)
    with pytest.raises(DataError, match="other ids"):
        wh.show(suspects(), data=other)
    with pytest.raises(ConfigError, match="column must be one of"):
        wh.show(suspects()).plot("label", "loss")
    with pytest.raises(ConfigError, match="id of a query"):
        scores().plot("nobody")
    one, two = (wh.Signal(values=np.ones(2), ids=np.array(ids), name="s", unit=None) for ids in ([1, 2], [1, 3]))
    with pytest.raises(ConfigError, match="same examples"):
        one.plot(two)


def strings(value: object) -> list[str]:
    """Return every text of a figure's JSON."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in strings(one)]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


def drawn(figure: go.Figure) -> dict:
    """Return a figure's parts; they are of one look and hold no markup from data."""
    parts = json.loads(figure.to_json())
    parts["layout"].pop("template")
    for text in strings(parts):
        assert "<script" not in text and "<img" not in text and "$" not in text and "\x1b" not in text, text
    assert parts["layout"]["paper_bgcolor"] == figures.PAPER and parts["layout"]["title"]["text"]
    return parts


def test_scores_of_a_query_are_drawn_from_both_ends() -> None:
    figure = scores(2, error=True).plot(f"q1{EVIL}", k=1)
    drawn(figure)
    bars = figure.data[0]
    assert list(bars.x) == [1.0, -2.0] and list(bars.marker.color) == [figures.GOOD, figures.ALARM]
    assert np.allclose(bars.error_x.array, [0.1, 0.2])
    assert list(scores().plot(k=10).data[0].x) == [0.5, 0.125, -0.25]


def test_signals_are_drawn_alone_and_against_each_other_by_id() -> None:
    one = wh.Signal(values=np.array([1.0, 2.0, 3.0]), ids=np.array(["a", "b", EVIL]), name=EVIL, unit="nats")
    other = wh.Signal(values=np.array([30.0, 10.0, 20.0]), ids=np.array([EVIL, "a", "b"]), name="loss", unit=None)
    drawn(one.plot())
    assert sum(one.plot().data[0].y) == 3
    figure = one.plot(other)
    drawn(figure)
    assert list(figure.data[0].x) == [10, 20, 30] and list(figure.data[0].y) == [1, 2, 3]
    many = wh.Signal(values=np.arange(6000.0), ids=np.arange(6000), name="n", unit=None)
    assert isinstance(many.plot(many).data[0], go.Scattergl)


def test_suspects_and_comparisons_are_drawn() -> None:
    figure = wh.show(suspects()).plot("margin", "given_probability")
    drawn(figure)
    assert [len(trace.x) for trace in figure.data] == [3, 1] and figure.data[1].name == "suspects"
    drawn(comparison().plot())
    assert list(comparison().plot().data[0].marker.color) == [figures.INK, figures.GOOD]


def test_figures_and_pages_share_their_colours() -> None:
    style = (Path(wh.__file__).parent / "report" / "templates" / "style.css").read_text().split("@media")[0]
    for colour in (figures.GOOD, figures.ALARM, figures.INK, figures.SOFT, figures.BAR, figures.LINE, figures.PAPER):
        assert f": {colour};" in style


def test_without_plotly_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingExtraError, match=r"whence\[notebook\]"):
        scores().plot()


def test_what_is_shown_is_one_line_of_harmless_text() -> None:
    assert readable("a\nb\tc") == "a b c" and readable("x" * 500, 10) == "x" * 9 + "…"
    assert readable("\x1b[31m\u202e\ud800") == "␦[31m␦␦"
    assert len(readable("y" * 10_000_000)) == 120


def test_the_example_runs_and_shows_tables_and_figures() -> None:
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    assert all(cell.get("outputs", []) == [] for cell in notebook.cells)  # committed without outputs
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("text/html" in one and "whence" in one["text/html"] for one in shown) >= 4
    assert sum("application/vnd.plotly.v1+json" in one for one in shown) == 3
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert int(said.split(" of the first")[0]) >= 20


def test_a_session_without_a_notebook_loads_no_plotly() -> None:
    program = (
        "import sys, numpy as np, whence as wh\n"
        "s = wh.Signal(values=np.ones(3), ids=np.arange(3), name='n', unit=None)\n"
        "s._repr_html_(); assert 'plotly' not in sys.modules; s.plot(); assert 'plotly' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
