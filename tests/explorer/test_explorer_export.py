"""Export: the data as decided, cell for cell; and training again in the background."""

from __future__ import annotations

import csv
import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from explorer_client import Client

from whence.audit import AgainSettings
from whence.audit.decided import DecidedSettings, retrain_run
from whence.audit.decisions import Decision
from whence.errors import ConfigError
from whence.explorer.job import Retraining


def source_rows(client: Client) -> list[dict[str, str]]:
    with Path(client.site.opened.data.source).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def exported(client: Client, ending: str = ".csv") -> list[dict[str, str]]:
    answer = client.get(f"/export/file?ending={ending}")
    assert answer.status == 200
    assert "attachment" in answer.headers["content-disposition"]
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


def test_an_export_without_decisions_is_the_data(opens) -> None:
    client = opens()
    before, after = source_rows(client), exported(client)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert old["id"] == new["id"]
        assert new["text"] == ("'" if old["text"].startswith("=") else "") + old["text"]


def test_an_export_is_the_data_as_decided(opens) -> None:
    client = opens(edit=True)
    for name, action in (("m1", "drop"), ("m3", "relabel"), ("m5", "keep"), ("m6", "unsure")):
        client.send("/decisions.json", {"id": name, "action": action})
    before = {row["id"]: row for row in source_rows(client)}
    after = {row["id"]: row for row in exported(client)}
    assert set(before) - set(after) == {"m1"}
    changed = {name for name, row in after.items() if row["label"] != before[name]["label"]}
    assert changed == {"m3"}
    told = client.get("/export.json").json()
    assert (told["written"], told["dropped"], told["relabelled"]) == (60, 1, 1)


def test_no_text_of_a_csv_is_a_formula_and_numbers_stay(opens) -> None:
    rows = {row["id"]: row["text"] for row in exported(opens())}
    assert rows["m20"].startswith("'=HYPERLINK")
    assert rows["m22"] == "-5"
    assert not any(text.startswith(("=", "@", "\t", "\r")) for text in rows.values())


@pytest.mark.parametrize(
    ("kind", "ending"), [("text", ".parquet"), ("text", ".jsonl"), ("tabular", ".csv.gz"), ("image", ".npz")]
)
def test_other_formats(opens, kind, ending) -> None:
    client = opens(kind)
    assert ending in client.get("/export.json").json()["endings"]
    assert client.get(f"/export/file?ending={ending}").status == 200


@pytest.mark.parametrize("ending", ["", ".exe", "../../x.csv", ".csv/../../y", ".npz"])
def test_endings_that_there_are_not(opens, ending) -> None:
    answer = opens().get(f"/export/file?ending={ending}")
    assert answer.status == 400


def test_nothing_is_exported_where_nothing_is_left(opens) -> None:
    client = opens("tabular", edit=True)
    for name in client.site.opened.ids:
        client.site.decisions.put(Decision(id=name, action="drop", label=None, given="yes"))
    assert client.get("/export/file?ending=.csv").status == 400


def finished(client: Client) -> dict:
    for _ in range(1200):
        told = client.get("/retrain.json").json()
        if told["state"] not in ("running", "idle"):
            return told
        time.sleep(0.05)
    raise AssertionError("training again does not end")


def test_training_again_shows_the_change_beside_the_predicted_one(opens) -> None:
    client = opens("tabular", edit=True)
    flipped = [name for name in client.site.opened.ids if int(name[1:]) % 20 == 3]
    for name in flipped:
        client.send("/decisions.json", {"id": name, "action": "relabel"})
    assert client.send("/retrain.json", {}).json()["state"] == "running"
    told = finished(client)
    assert told["state"] == "done", told["error"]
    outcome = told["outcome"]
    assert [way["kind"] for way in outcome["ways"]] == ["before", "own", "control"]
    assert -1 <= outcome["predicted"] <= 1
    assert outcome["relabelled"] >= 1
    page = client.get("/export").text
    assert "Predicted change" in page
    assert outcome["verdict"]["sentence"].replace("−", "-")[:20] in page.replace("−", "-")


def test_training_again_is_refused_read_only(opens) -> None:
    assert opens().send("/retrain.json", {}).error() == "read_only"


def test_training_again_without_a_change_says_so(opens) -> None:
    client = opens(edit=True)
    client.send("/retrain.json", {})
    told = finished(client)
    assert told["state"] == "failed"
    assert "Decide first" in told["error"]


def test_one_job_runs_at_a_time(tmp_path) -> None:
    wait = threading.Event()

    def work(watch: object) -> dict:
        wait.wait(10)
        return {"kind": "decisions"}

    job = Retraining(tmp_path, work)
    assert job.told()["outcome"] is None
    job.start()
    with pytest.raises(Exception, match="already"):
        job.start()
    wait.set()
    for _ in range(200):
        if job.told()["state"] == "done":
            break
        time.sleep(0.02)
    assert job.told()["outcome"] == {"kind": "decisions"}
    (tmp_path / "retrain.json").write_text("{")
    assert job.told()["outcome"] is None


def test_rows_left_out_alone_are_predicted_too(opens) -> None:
    opened = opens("tabular").site.opened
    made = tuple(Decision(id=name, action="drop", label=None, given=opened.label(opened.position(name)))
                 for name in opened.ids[:6])  # fmt: skip
    settings = DecidedSettings(decisions=made, training=AgainSettings(seeds=1))
    found = retrain_run(opened.run, opened.data, settings, test=opened.data.rows(np.arange(10, 40)))
    assert found["predicted_by"] == "response of the last layer" and -1 <= found["predicted"] <= 1


def test_predicted_change_is_that_of_the_margins(opens, monkeypatch) -> None:
    """Relabelling everything to the other class must predict, and give, an accuracy that falls."""
    client = opens("tabular")
    opened = client.site.opened
    other = {"yes": "no", "no": "yes"}
    rows = np.random.default_rng(0).permutation(len(opened))[:40]
    made = tuple(
        Decision(id=opened.ids[row], action="relabel", label=other[opened.label(row)], given=opened.label(row))
        for row in rows.tolist()
    )
    training = AgainSettings(seeds=1)
    test = opened.data.rows(np.setdiff1d(np.arange(len(opened)), rows))
    found = retrain_run(opened.run, opened.data, DecidedSettings(decisions=made, training=training), test=test)
    assert found["predicted"] <= 0
    assert found["ways"][1]["change"][0] <= 0
    monkeypatch.setattr("whence.audit.decided.last_layer_response", lambda *args, **more: None)
    first = retrain_run(opened.run, opened.data, DecidedSettings(decisions=made, training=training), test=test)
    assert first["predicted"] <= 0 and first["predicted_by"] == "influence, first order"
    with pytest.raises(ConfigError, match="Decide first"):
        retrain_run(opened.run, opened.data, DecidedSettings(decisions=(), training=training))
