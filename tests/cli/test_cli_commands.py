"""The commands end to end on a small file: what they write and print."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_samples import EXAMPLES, sms, write_csv

import whence
from whence.data import read
from whence.uses.label_errors import SIGNALS


def test_version_and_help_through_a_real_process() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "from whence.cli import main; main()", "--version"], capture_output=True, text=True
    )
    assert (shown.returncode, shown.stdout.strip(), shown.stderr) == (0, f"whence {whence.__version__}", "")


def test_no_arguments_shows_help_and_an_unknown_command_is_a_usage_error(call) -> None:
    assert "audit" in call().out + call().err
    assert call("frobnicate").code == 2
    assert call("audit").code == 2


def test_the_run_folder_is_complete(audited) -> None:
    names = {path.name for path in audited.folder.iterdir()}
    assert {"manifest.json", "summary.json", "suspects.parquet", "model.safetensors", "report.html"} <= names
    manifest = json.loads((audited.folder / "manifest.json").read_text())
    assert manifest["data"]["fingerprint"] == read(audited.source).fingerprint
    summary = json.loads((audited.folder / "summary.json").read_text())
    assert summary["format"] == 1 and summary["data"]["rows"] == audited.rows
    assert not list(audited.folder.parent.glob(".*partial*"))
    report = (audited.folder / "report.html").read_text()
    assert report.lstrip().lower().startswith("<!doctype html") and 'http-equiv="refresh"' not in report


def test_every_row_is_a_suspect_with_a_rank(audited) -> None:
    suspects = pd.read_parquet(audited.folder / "suspects.parquet")
    assert {"id", "label", "suggested_label", "suspicion", "rank"} <= set(suspects)
    assert {"loss", "self_influence", "class_influence", "margin", "bayes_loss"} <= set(suspects)
    assert sorted(suspects["id"]) == sorted(f"m{i}" for i in range(audited.rows))
    assert suspects["rank"].tolist() == list(range(1, audited.rows + 1))
    assert suspects["suspicion"].is_monotonic_decreasing and suspects["suspicion"].between(0, 1).all()
    assert (suspects["label"] != suspects["suggested_label"]).all()
    numbers = suspects.select_dtypes("number")
    assert np.isfinite(numbers.to_numpy()).all()
    for name in SIGNALS:
        if name in suspects:
            assert suspects[name].dtype.kind == "f", name
    assert len(set(suspects["id"][:16]) & set(audited.flipped)) >= 5


def test_audit_prints_ids_ranks_and_the_next_command_on_eighty_columns(call, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = write_csv(
        tmp_path / "t.csv", [(i % 2, f"{'good' if i % 2 else 'bad'} word {i}") for i in range(40)], ("label", "text")
    )
    shown = call("audit", file, "--out", tmp_path / "run")
    assert shown.code == 0 and shown.err == ""
    assert "rank" in shown.out and "suspicion" in shown.out and " id " in shown.out
    assert "whence explain" in shown.out and "report:" in shown.out


def test_the_same_seed_gives_the_same_run_and_json_parses(call, tmp_path: Path) -> None:
    frame = pd.read_csv(EXAMPLES / "adult_1000.csv.gz").head(150)
    file = tmp_path / "adult.csv"
    frame.to_csv(file, index=False)
    found = []
    for name in ("one", "two"):
        shown = call("audit", file, "--out", tmp_path / name, "--seed", 3, "--json", "--method", "identity")
        parsed = json.loads(shown.out)
        assert parsed["data"]["rows"] == 150 and parsed["data"]["kind"] == "tabular" and shown.err == ""
        found.append(pd.read_parquet(tmp_path / name / "suspects.parquet"))
    pd.testing.assert_frame_equal(found[0], found[1])


def test_reference_rows_of_a_file_change_class_influence_alone(call, tmp_path: Path) -> None:
    rows = sms(120)
    data = write_csv(tmp_path / "data.csv", rows[:80], ("label", "text"))
    vouched = write_csv(tmp_path / "right.csv", rows[80:], ("label", "text"))
    call("audit", data, "--out", tmp_path / "plain", "--quiet")
    assert call("audit", data, "--out", tmp_path / "with", "--reference", vouched, "--quiet").code == 0
    plain, with_file = (pd.read_parquet(tmp_path / name / "suspects.parquet") for name in ("plain", "with"))
    assert plain["suspicion"].equals(with_file["suspicion"])
    assert not np.allclose(plain["class_influence"], with_file["class_influence"])
    unlabelled = write_csv(tmp_path / "bare.csv", [(text,) for _, text in rows[80:]], ("text",))
    failed = call("audit", data, "--out", tmp_path / "bad", "--reference", unlabelled, "--quiet")
    assert failed.code == 1 and "labels" in failed.one_line()
    strange = write_csv(tmp_path / "strange.csv", [("eggs", "an omelette"), *rows[80:]], ("label", "text"))
    failed = call("audit", data, "--out", tmp_path / "bad", "--reference", strange, "--quiet")
    assert failed.code == 1 and "eggs" in failed.one_line()


def test_a_run_replaces_an_earlier_run(call, tmp_path: Path) -> None:
    file = write_csv(
        tmp_path / "t.csv", [(i % 2, f"{'good' if i % 2 else 'bad'} word {i}") for i in range(20)], ("label", "text")
    )
    (tmp_path / "run").mkdir()
    for _ in range(2):
        assert call("audit", file, "--out", tmp_path / "run", "-q").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", "run"}


def test_explain_prints_and_writes_a_page(call, audited) -> None:
    query = audited.flipped[0]
    shown = call("explain", audited.folder, "--query", query, "-k", 3)
    assert shown.code == 0 and shown.err == ""
    assert f"row {query}" in shown.out and "helped" in shown.out and "harmed" in shown.out and "nats" in shown.out
    page = (audited.folder / f"explain-{query}.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html")


def test_explain_as_json_orders_both_sides(call, audited) -> None:
    shown = json.loads(call("explain", audited.folder, "--query", "m1", "--json", "-k", 5).out)
    helpful, harmful = ([row["score"] for row in shown[side]] for side in ("helpful", "harmful"))
    assert 0 < len(helpful) <= 5 and 0 < len(harmful) <= 5
    assert helpful == sorted(helpful, reverse=True) and min(helpful) > 0
    assert harmful == sorted(harmful) and max(harmful) < 0
    assert "m1" not in {row["id"] for side in ("helpful", "harmful") for row in shown[side]}
    assert shown["unit"] == "nats" and shown["query"]["label"] == shown["measured_label"]
    other = json.loads(call("explain", audited.folder, "--query", "m1", "--json", "--as-label", "spam").out)
    p = {entry["label"]: entry["p"] for entry in other["query"]["probabilities"]}
    assert other["measured_label"] == "spam" and other["query"]["loss"] == pytest.approx(-np.log(p["spam"]), abs=1e-6)


def test_explain_a_row_of_a_new_file(call, audited, tmp_path: Path) -> None:
    file = write_csv(
        tmp_path / "new.csv",
        [("a", "spam", "win a prize now, call free"), ("b", "ham", "ok see you")],
        ("id", "label", "text"),
    )
    shown = json.loads(call("explain", audited.folder, "--data", file, "--query", "b", "--json").out)
    assert shown["query"]["id"] == "b" and shown["query"]["content"]["text"] == "ok see you"


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet", "jsonl"])
@pytest.mark.parametrize("action", ["drop", "relabel"])
def test_clean_writes_a_file_that_reads_back(call, audited, tmp_path: Path, ending: str, action: str) -> None:
    suspects = pd.read_parquet(audited.folder / "suspects.parquet").set_index("id")
    threshold = float(suspects["suspicion"].sort_values().iloc[-6])
    out = tmp_path / f"clean.{ending}"
    shown = call("clean", audited.folder, "--out", out, "--action", action, "--above", threshold)
    assert shown.code == 0, shown.err
    before, after = read(audited.source), read(out)
    labels = {str(i): after.classes[c] for i, c in zip(after.ids, after.labels, strict=True)}
    given = {str(i): before.classes[c] for i, c in zip(before.ids, before.labels, strict=True)}
    acted = set(suspects.index[suspects["suspicion"] >= threshold])
    assert len(acted) == 6
    if action == "drop":
        assert labels == {i: c for i, c in given.items() if i not in acted}
    else:
        assert labels == {i: suspects["suggested_label"][i] if i in acted else c for i, c in given.items()}
    texts = dict(zip(before.ids.tolist(), before.content, strict=True))
    assert all(texts[i] == text for i, text in zip(after.ids.tolist(), after.content, strict=True))


def test_clean_refuses_what_it_cannot_do(call, audited, tmp_path: Path) -> None:
    existing = tmp_path / "there.csv"
    existing.write_text("mine")
    for code, arguments in (
        (2, ("--out", existing)),
        (2, ("--out", tmp_path / "x.npz")),
        (2, ("--out", tmp_path / "x.txt")),
        (2, ("--out", tmp_path / "x.csv", "--action", "burn")),
        (2, ("--out", tmp_path / "x.csv", "--above", 2)),
        (1, ("--out", tmp_path / "x.csv", "--above", 0)),
        (1, ("--out", tmp_path / "no" / "x.csv")),
        (1, ("--out", tmp_path / "no" / "x.parquet")),
    ):
        shown = call("clean", audited.folder, *arguments)
        assert shown.code == code, arguments
        shown.one_line()
    assert existing.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["there.csv"]
    assert call("clean", audited.folder, "--out", existing, "--force").code == 0
    assert len(read(existing)) <= audited.rows


def test_a_failed_clean_keeps_the_file_it_was_to_replace(call, audited, tmp_path: Path, monkeypatch) -> None:
    existing = tmp_path / "there.csv"
    existing.write_text("mine")

    def full(data, path, ending, **settings) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["whence.audit.clean"], "rewrite", full)
    shown = call("clean", audited.folder, "--out", existing, "--force")
    assert shown.code == 1 and "No space left" in shown.one_line()
    assert existing.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_images_audit_explain_and_clean_to_npz(call, tmp_path: Path) -> None:
    with np.load(EXAMPLES / "fashion_mnist_1000.npz", allow_pickle=False) as stored:
        x, y = stored["x"], stored["y"]
    kept = np.flatnonzero(np.isin(y, np.unique(y)[:2]))[:60]
    np.savez(tmp_path / "two.npz", x=x[kept], y=y[kept])
    shown = call("audit", tmp_path / "two.npz", "--out", tmp_path / "run", "-q")
    assert shown.code == 0 and "trainable parameters attributed" in shown.out  # the head alone, by choice
    assert call("explain", tmp_path / "run", "--query", "0").code == 0
    shown = call("clean", tmp_path / "run", "--out", tmp_path / "clean.npz", "--action", "relabel")
    assert shown.code == 0, shown.err
    before, after = read(tmp_path / "two.npz"), read(tmp_path / "clean.npz")
    assert after.ids.tolist() == before.ids.tolist() and np.array_equal(after.content, before.content)
    assert call("clean", tmp_path / "run", "--out", tmp_path / "clean.csv").code == 2


def test_methods_are_listed(call) -> None:
    listed = json.loads(call("methods", "--json").out)["methods"]
    audited = {entry["name"] for entry in listed if entry["call"] == f"--method {entry['name']}"}
    assert audited == {"ekfac", "kfac", "exact", "identity"}
    assert {"cg", "lissa", "neumann", "lanczos", "nystrom", "datainf", "projected", "diagonal"} < {
        entry["name"] for entry in listed
    }
    assert "ekfac" in call("methods").out
