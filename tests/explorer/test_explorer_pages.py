"""The queue and a row's page: right rows in the right order, nothing of the data as markup, and the JSON twins."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np
import pytest
import torch
from explorer_client import HOSTILE, PATH_ID, Tags

from whence.audit import reload_task
from whence.data import as_examples

KINDS = ("text", "tabular", "image")


@pytest.mark.parametrize("kind", KINDS)
def test_pages_and_their_twins_tell_the_same(opens, kind) -> None:
    client = opens(kind, edit=True)
    found = client.get("/queue.json?show=all").json()
    page = client.get("/?show=all").text
    assert found["total"] == len(client.site.opened)
    assert [row["rank"] for row in found["rows"]] == list(range(1, len(found["rows"]) + 1))
    first = found["rows"][0]
    row = client.get(f"/row.json?id={first['id']}").json()
    assert row["row"]["suggested_label"] == first["suggested_label"]
    assert row["explanation"]["helpful"]
    tags = Tags(page)
    assert tags.found.count("li") >= len(found["rows"])
    assert client.get(f"/row?id={first['id']}").status == 200
    for sheet in (page, client.get(f"/row?id={first['id']}").text):
        tags = Tags(sheet)
        assert not tags.handlers()
        assert all(address.startswith(("/", "#", "data:")) for address in tags.addresses())


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_on_exactly_one_page(opens, kind) -> None:
    client = opens(kind)
    seen = []
    pages = client.get("/queue.json?show=all").json()["pages"]
    for page in range(1, pages + 1):
        seen += [row["id"] for row in client.get(f"/queue.json?show=all&page={page}").json()["rows"]]
    frame = client.site.opened.frame
    assert seen == frame.sort_values("rank")["id"].tolist()
    assert client.get("/queue.json?show=all&page=999999").json()["asked"]["page"] == pages


@pytest.mark.parametrize("sort", ["suspicion", "loss", "self_influence", "margin"])
@pytest.mark.parametrize("ascending", [0, 1])
def test_rows_are_sorted_by_any_signal(opens, sort, ascending) -> None:
    client = opens()
    shown = [row["id"] for row in client.get(f"/queue.json?show=all&sort={sort}&ascending={ascending}").json()["rows"]]
    values = client.site.opened.frame.set_index("id")[sort]
    expected = np.sort(values.to_numpy())[:: 1 if ascending else -1][: len(shown)]
    np.testing.assert_allclose(values[shown].to_numpy(), expected)


def test_filters_leave_the_rows_that_match(opens) -> None:
    client = opens(edit=True)
    frame = client.site.opened.frame
    found = client.get("/queue.json?show=all&given=ham&suggested=spam").json()
    assert found["total"] == int(((frame["label"] == "ham") & (frame["suggested_label"] == "spam")).sum())
    assert client.get("/queue.json?show=suspects").json()["total"] == int(frame["is_suspect"].sum())
    assert client.get("/queue.json?show=conflicts").json()["total"] == int(frame["conflict"].sum())
    assert [row["id"] for row in client.get("/queue.json?show=all&search=ALERT(1)").json()["rows"]] == ["m4"]
    suspect = frame.loc[frame["is_suspect"], "id"].iloc[0]
    client.send("/decisions.json", {"id": suspect, "action": "unsure"})
    assert suspect not in [row["id"] for row in client.get("/queue.json?show=undecided").json()["rows"]]
    assert [row["id"] for row in client.get("/queue.json?show=all&action=unsure").json()["rows"]] == [suspect]


@pytest.mark.parametrize(
    "query", ["show=none", "sort=secret", "sort=id", "given=eggs", "page=0", "page=-1", "page=x", "page=9999999999",
              "column=nothing&value=x", "column=(label)&value=eggs", "page=%D9%A3"]
)  # fmt: skip
def test_addresses_that_make_no_sense_are_told_so(opens, query) -> None:
    client = opens()
    answer = client.get(f"/queue.json?{query}")
    assert (answer.status, answer.error() in ("bad_request", "unknown_label")) == (400, True)
    page = client.get(f"/?{query}")
    assert page.status == 400
    assert "That is not possible" in page.text


@pytest.mark.parametrize("name", ["nobody", "", "../../etc/passwd", "\x1b[31m", "%00", "<script>", "x" * 5000])
def test_rows_that_are_not_there(opens, name) -> None:
    client = opens()
    assert client.get(f"/row.json?id={quote(name)}").error() == "not_found"
    page = client.get(f"/row?id={quote(name)}")
    assert page.status == 404
    assert "<script>" not in page.text.replace('<script src="/static/', "")


def test_ids_that_look_like_paths_are_only_names(opens) -> None:
    client = opens(edit=True)
    found = client.get(f"/row.json?id={quote(PATH_ID)}").json()
    assert found["row"]["id"] == PATH_ID
    page = client.get("/?show=all&search=etc").text
    links = [value for _, name, value in Tags(page).attributes if name == "href" and value.startswith("/row?")]
    assert client.get(links[0]).status == 200
    assert client.send("/decisions.json", {"id": PATH_ID, "action": "drop"}).status == 200
    assert [path.name for path in client.site.decisions.path.parent.parent.iterdir()] == ["text"]


def test_hostile_text_stays_text(opens) -> None:
    client = opens(edit=True)
    for path in ("/?show=all&search=alert", "/row?id=m4", f"/?show=all&search={quote(HOSTILE)}"):
        tags = Tags(client.get(path).text)
        assert not tags.handlers()
        assert {src for tag, name, src in tags.attributes if tag == "script" and name == "src"} <= {
            "/static/theme.js", "/static/explorer.js",
        }  # fmt: skip
        assert tags.found.count("img") == 0
        assert tags.found.count("script") == 2


def test_escape_codes_are_shown_and_never_sent(opens) -> None:
    client = opens()
    for path in (f"/row?id={quote(PATH_ID)}", f"/row.json?id={quote(PATH_ID)}", "/?show=all", "/queue.json?show=all"):
        assert b"\x1b" not in client.get(path).body


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_row_helps_is_its_column_of_the_scores(opens, kind) -> None:
    """The oracle: all scores of all rows, of which the page must show the column of the row."""
    client = opens(kind)
    opened = client.site.opened
    _, preparation, attribution = reload_task(opened.run, opened.data)
    data = opened.data
    everything = as_examples((preparation.transform(data), torch.from_numpy(data.labels)), ids=data.ids)
    column = attribution.scores(everything).values[:, 4].double().numpy()
    page = client.get(f"/row.json?id={opened.ids[4]}").json()
    assert (page["effects"] is None) == page["mutual"]
    found = page["effects"] or page["explanation"]
    column[4] = 0.0
    for side, sign in (("helpful", 1), ("harmful", -1)):
        expected = np.sort(sign * column)[::-1][: len(found[side])]
        shown = [sign * one["score"] for one in found[side]]
        np.testing.assert_allclose(shown, expected, rtol=1e-3)
        for one in found[side]:
            assert np.isclose(column[opened.positions[one["id"]]], one["score"], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_influence_between_classes_is_the_mean_of_scores(opens, kind) -> None:
    client = opens(kind)
    data = client.site.opened.data
    _, preparation, attribution = reload_task(client.site.opened.run, data)
    everything = as_examples((preparation.transform(data), torch.from_numpy(data.labels)), ids=data.ids)
    scores = attribution.scores(everything).values.double().numpy()
    found = np.array(client.get("/classes.json").json()["influence"])
    classes = range(len(data.classes))
    expected = [[scores[data.labels == b][:, data.labels == a].mean() for a in classes] for b in classes]
    # scores take a curvature of chosen rank, means of gradients the whole: a few per cent apart
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["map", "classes", "groups", "why", "compare", "export"])
def test_every_page_has_a_twin_and_loads_nothing_from_elsewhere(opens, kind, name) -> None:
    client = opens(kind, edit=True)
    assert client.get(f"/{name}.json").status == 200
    page = client.get(f"/{name}")
    assert page.status == 200
    tags = Tags(page.text)
    assert not tags.handlers()
    assert all(address.startswith(("/", "#", "data:")) for address in tags.addresses())
    fields = [one for one in tags.attributes if one[0] in ("input", "select", "textarea") and one[1] == "name"]
    assert page.text.count("<label") >= len(fields) - page.text.count('type="hidden"')


def test_class_counts_are_those_of_the_list(opens) -> None:
    client = opens()
    frame = client.site.opened.frame
    pairs = client.get("/classes.json").json()["pairs"]
    flagged = frame[frame["is_suspect"]]
    for pair in pairs:
        rows = (flagged["label"] == pair["given"]) & (flagged["suggested_label"] == pair["suggested"])
        assert pair["count"] == int(rows.sum())
        asked = client.get(f"/queue.json?show=suspects&given={pair['given']}&suggested={pair['suggested']}").json()
        assert asked["total"] == pair["count"]
    disagreed = client.get("/classes.json?rows=disagreed").json()["pairs"]
    assert sum(pair["count"] for pair in disagreed) == int((frame["margin"] < 0).sum())


@pytest.mark.parametrize(("kind", "column"), [("text", "(label)"), ("text", "(copies)"), ("tabular", "town"),
                                              ("tabular", "age"), ("image", "(suggested label)")])  # fmt: skip
def test_groups_hold_every_row_once(opens, kind, column) -> None:
    client = opens(kind)
    found = client.get(f"/groups.json?column={quote(column)}").json()
    assert sum(one["rows"] for one in found["groups"]) == len(client.site.opened)
    assert sum(one["suspects"] for one in found["groups"]) == int(client.site.opened.flagged.sum())
    for one in found["groups"]:
        asked = client.get(f"/queue.json?show=all&column={quote(column)}&value={quote(one['value'])}").json()
        assert asked["total"] == one["rows"]


def test_points_are_the_columns(opens) -> None:
    client = opens(edit=True)
    client.send("/decisions.json", {"id": "m2", "action": "keep"})
    found = client.get("/points.json").json()
    frame = client.site.opened.frame
    np.testing.assert_allclose(found["x"]["values"], frame["self_influence"], rtol=1e-3)
    np.testing.assert_allclose(found["y"]["values"], frame["loss"], rtol=1e-3)
    assert found["suspect"] == frame["is_suspect"].astype(int).tolist()
    assert found["decided"] == [2]
    assert client.get("/card.json?position=2").json()["id"] == "m2"
    for position in ("-1", "61", "x", "", "9" * 20):
        assert client.get(f"/card.json?position={position}").error() == "not_found"
    assert client.get("/points.json?x=evidence").error() == "bad_request"


def test_ranges_choose_the_rows_between(opens) -> None:
    client = opens()
    frame = client.site.opened.frame
    low, high = frame["loss"].quantile([0.3, 0.7])
    rows = client.get(f"/queue.json?show=all&ranges=loss:{low}:{high};margin:-1:0.5").json()
    expected = frame["loss"].between(low, high) & frame["margin"].between(-1, 0.5)
    assert rows["total"] == int(expected.sum())
    for ranges in ("loss", "loss:1:0", "loss:a:b", "id:0:1", "loss:nan:nan", ";;", "loss:0:1;" * 20):
        assert client.get(f"/queue.json?ranges={quote(ranges)}").error() == "bad_request"


def test_two_runs_are_compared_by_id(opens, runs) -> None:
    client = opens(against=runs["text"])
    found = client.get("/compare.json").json()
    assert found["agreement"] == 1.0
    assert found["counts"]["first"] == found["counts"]["second"] == found["labels_differ"] == found["missing"] == 0
    assert found["counts"]["both"] == int(client.site.opened.flagged.sum())
    other = opens("image", against=runs["text"]).get("/compare.json").json()
    assert other["shared"] == 0
    assert other["agreement"] is None


def test_longest_cells_neither_break_nor_swell_a_page(opens, monkeypatch) -> None:
    client = opens()
    client.site.opened.data.content[4] = "word <b> " * 1_200_000
    for path in ("/?show=all&search=word", "/row?id=m4", "/row.json?id=m4"):
        answer = client.get(path)
        assert answer.status == 200
        assert len(answer.body) < 300_000
