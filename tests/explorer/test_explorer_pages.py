"""The queue and a row's page: right rows in the right order, nothing of the data as markup, and the JSON twins."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np
import pytest
import torch
from explorer_client import Tags

from conftest import HOSTILE, PATH_ID
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


def test_what_a_row_helps_is_its_column_of_the_scores(opens) -> None:
    """The oracle: all scores of all rows, of which the page must show the column of the row."""
    client = opens()
    opened = client.site.opened
    _, preparation, attribution = reload_task(opened.run, opened.data)
    data = opened.data
    everything = as_examples((preparation.transform(data), torch.from_numpy(data.labels)), ids=data.ids)
    column = attribution.scores(everything).values[:, opened.positions["m4"]].double().numpy()
    found = client.site.oracle.effects(opened.positions["m4"])
    column[opened.positions["m4"]] = 0.0
    for side, sign in (("helpful", 1), ("harmful", -1)):
        expected = np.sort(sign * column)[::-1][: len(found[side])]
        np.testing.assert_allclose([sign * one["score"] for one in found[side]], expected, rtol=1e-4)
        for one in found[side]:
            assert np.isclose(column[opened.positions[one["id"]]], one["score"], rtol=1e-4)
