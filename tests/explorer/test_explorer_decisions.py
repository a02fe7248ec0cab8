"""Decisions: written whole, merged, refused where they make no sense."""

from __future__ import annotations

import threading

import pyarrow.parquet as pq
import pytest

from whence.audit.decisions import Decision, Decisions
from whence.errors import RunFormatError


def made(name: str, action: str = "drop", label: str | None = None) -> Decision:
    return Decision(id=name, action=action, label=label, given="ham")


def test_what_was_decided_is_read_back(tmp_path) -> None:
    first = Decisions(tmp_path, "f")
    first.put(made("a"))
    first.put(made("b", "relabel", "spam"))
    first.put(made("a", "keep"))
    again = Decisions(tmp_path, "f").all()
    found = [(one.id, one.action, one.label) for one in again.values()]
    assert found == [("b", "relabel", "spam"), ("a", "keep", None)]
    assert first.counts() == {"keep": 1, "relabel": 1, "drop": 0, "unsure": 0}
    first.take_back("a")
    assert set(Decisions(tmp_path, "f").all()) == {"b"}
    assert [path.name for path in tmp_path.iterdir()] == ["decisions.parquet"]


def test_two_explorers_of_one_run_keep_each_others_decisions(tmp_path) -> None:
    one, other = Decisions(tmp_path, "f"), Decisions(tmp_path, "f")
    one.put(made("a"))
    other.put(made("b"))
    one.put(made("c"))
    assert set(one.all()) == set(other.all()) == {"a", "b", "c"}


def test_decisions_made_at_once_are_all_kept(tmp_path) -> None:
    decisions = Decisions(tmp_path, "f")
    threads = [threading.Thread(target=decisions.put, args=(made(f"r{i}"),)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Decisions(tmp_path, "f")) == 20


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    decisions = Decisions(tmp_path, "f")
    decisions.put(made("a"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whence.audit.decisions.pq.write_table", full)
    with pytest.raises(Exception, match="No space left"):
        decisions.put(made("b"))
    assert set(Decisions(tmp_path, "f").all()) == {"a"}
    assert [path.name for path in tmp_path.iterdir()] == ["decisions.parquet"]


def test_files_of_other_data_or_damaged_ones_are_refused(tmp_path) -> None:
    Decisions(tmp_path, "f").put(made("a"))
    with pytest.raises(RunFormatError, match="fingerprint g"):
        Decisions(tmp_path, "g")
    (tmp_path / "decisions.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunFormatError, match="complete file of decisions"):
        Decisions(tmp_path, "f")


def test_decisions_are_made_through_the_page(opens) -> None:
    client = opens(edit=True)
    found = client.send("/decisions.json", {"id": "m3", "action": "relabel"}).json()
    assert found["decision"]["label"] == "spam"
    assert found["counts"]["relabel"] == 1
    stored = pq.read_table(client.site.decisions.path).to_pylist()
    assert [(row["id"], row["action"], row["given"]) for row in stored] == [("m3", "relabel", "ham")]
    assert client.get("/row.json?id=m3").json()["row"]["decision"]["action"] == "relabel"
    assert client.get("/queue.json?show=decided").json()["total"] == 1
    assert client.send("/decisions.json", {"id": "m3", "action": "clear"}).json()["decision"] is None
    assert client.get("/queue.json?show=decided").json()["total"] == 0


@pytest.mark.parametrize(
    ("sent", "code"),
    [({"id": "m3", "action": "explode"}, "bad_request"), ({"id": "none", "action": "keep"}, "not_found"),
     ({"id": "m3", "action": "relabel", "label": "eggs"}, "unknown_label"), ([], "bad_request"), ({}, "bad_request"),
     ({"id": "m3", "action": "relabel", "label": "ham"}, "bad_request"), ({"id": 3, "action": "keep"}, "bad_request"),
     ({"id": "m3", "action": "relabel", "label": ["spam"]}, "bad_request"),
     ({"id": "m3", "action": {}}, "bad_request")],
)  # fmt: skip
def test_decisions_that_make_no_sense_are_refused(opens, sent, code) -> None:
    client = opens(edit=True)
    assert client.send("/decisions.json", sent).error() == code
    assert not client.site.decisions.path.exists()


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"id": NaN}', b"\xff"])
def test_bodies_that_are_no_json_are_refused(opens, body) -> None:
    answer = opens(edit=True).post("/decisions.json", body, **{"content-type": "application/json"})
    assert answer.status in (400, 413)
    assert answer.error() in ("bad_request", "too_large")


def test_other_types_of_body_are_refused(opens) -> None:
    """A form of another site can send text, never JSON."""
    body = b'{"id": "m3", "action": "drop"}'
    answer = opens(edit=True).post("/decisions.json", body, **{"content-type": "text/plain"})
    assert answer.status == 415


def test_nothing_is_decided_read_only(opens) -> None:
    client = opens()
    assert client.send("/decisions.json", {"id": "m3", "action": "drop"}).error() == "read_only"
    assert "data-action" not in client.get("/").text
    assert not client.site.decisions.path.exists()
