"""``whence serve`` as a command: a person's own model from the first page to training again; how it begins and ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from cli_samples import Audited, Outcome, write_csv
from safetensors.torch import load_file

from whence.explorer import Problem, Site
from whence.explorer.pages import PAGES, page_html
from whence.explorer.site import decide, row_page
from whence.explorer.why import answer_page

Call = Callable[..., Outcome]

CODE = """
import functools
import numpy as np
import torch
import whence as wh

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    def forward(self, a, b):
        return self.linear(torch.cat([a, b], 1))

def table(data):
    return torch.from_numpy(data.content[["a", "b"]].to_numpy(np.float32, copy=True))

def recipe(data):
    print("chatter of a user's model")
    return wh.Recipe(build=functools.partial(torch.nn.Linear, 2, 2), epochs=60, learning_rate=0.05), table(data)

def parts(data):
    whole = table(data)
    whole = whole - whole.mean(0) if len(whole) > 1 else whole
    return Net(), {"a": whole[:, :1], "b": whole[:, 1:]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, every tenth label wrong, and a file of models."""
    folder = tmp_path_factory.mktemp("serve")
    generator = np.random.default_rng(0)
    rows = []
    for i in range(80):
        a = 2 * (i % 2) - 1 + generator.normal(0, 0.4)
        rows.append((f"r{i}", f"{a:.3f}", f"{generator.normal():.3f}", ("no", "yes")[(i % 2) ^ (i % 10 == 3)],
                     "<b>web</b>" if i % 3 else "desk"))  # fmt: skip
    write_csv(folder / "own.csv", rows, ("id", "a", "b", "label", "source"))
    (folder / "model.py").write_text(CODE)
    return folder


@pytest.fixture
def audits(call: Call, place: Path, tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    def of(function: str, *options: object) -> tuple[Path, str]:
        spec = f"{place / 'model.py'}:{function}"
        own = ("--label", "label", "--drop", "source", "--model", spec, *options)
        shown = call("audit", place / "own.csv", *own, "--out", tmp_path / "run")
        assert shown.code == 0, shown.err
        return tmp_path / "run", spec

    return of


@pytest.fixture
def opened(call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Site]:
    """Return what opens an explorer by the command, without listening."""

    def of(*arguments: object) -> Site:
        sites: list[Site] = []
        monkeypatch.setattr("whence.cli.serve.serve", lambda site, settings, ready: sites.append(site))
        shown = call("serve", *arguments)
        assert shown.code == 0, shown.err
        return sites[0]

    return of


def finished(site: Site) -> dict:
    """Wait for training again."""
    until = time.monotonic() + 120
    while site.retraining.told()["state"] == "running" and time.monotonic() < until:
        time.sleep(0.05)
    return site.retraining.told()


def test_an_own_model_from_the_first_page_to_training_again(audits, opened) -> None:
    run, spec = audits("recipe")
    site = opened(run, "--edit", "--model", spec)
    wrong = [f"r{i}" for i in range(3, 80, 10)]
    page = row_page(site, {"id": wrong[0]})
    assert page["explanation"] and page["explanation"]["harmful"] and page["signals"]
    asked = answer_page(site, {"cell-0": "1.2", "cell-1": "0"}, None)
    assert asked["explanation"]["query"]["predicted"] == "yes" and asked["explanation"]["helpful"]
    for name in wrong:
        decide(site, {"id": name, "action": "relabel"})
    site.retraining.start()
    told = finished(site)
    assert (told["state"], told["error"]) == ("done", "")
    assert [way["kind"] for way in told["outcome"]["ways"]] == ["before", "own", "control"]


def test_without_a_recipe_all_but_training_again_works(audits, opened, place: Path) -> None:
    run, spec = audits("parts", "--no-second-opinion")
    site = opened(run, "--edit", "--model", spec)
    page = row_page(site, {"id": "r4"})
    table = np.loadtxt(place / "own.csv", delimiter=",", skiprows=1, usecols=(1, 2), dtype=np.float32)
    weights = load_file(run / "model.safetensors")  # what is shown must come of all rows' mean, as the audit's did
    centred = torch.from_numpy(table - table.mean(0))[4]
    p = (weights["linear.weight"] @ centred + weights["linear.bias"]).softmax(0)
    told = {one["label"]: one["p"] for one in page["explanation"]["query"]["probabilities"]}
    np.testing.assert_allclose([told["no"], told["yes"]], p.numpy(), atol=1e-5)
    assert answer_page(site, {"cell-0": "1", "cell-1": "0"}, None)["explanation"]["query"]["predicted"] in ("no", "yes")
    decide(site, {"id": "r3", "action": "drop"})
    site.retraining.start()
    told = finished(site)
    assert told["state"] == "failed" and "recipe" in told["error"] and told["outcome"] is None


def test_an_own_model_that_is_not_brought_again_leaves_the_evidence(audits, opened) -> None:
    site = opened(audits("recipe")[0], "--edit")
    page = row_page(site, {"id": "r3"})
    assert page["explanation"] is None and "--model" in page["without"]
    with pytest.raises(Problem, match="--model"):
        answer_page(site, {"cell-0": "1", "cell-1": "0"}, None)
    decide(site, {"id": "r3", "action": "drop"})
    site.retraining.start()
    assert "--model" in finished(site)["error"]


def test_what_the_command_says_of_sources_is_shown_with_the_groups(call: Call, audits, opened) -> None:
    run, spec = audits("recipe")
    site = opened(run, "--model", spec)
    page = next(page for page in PAGES if page.name == "groups")
    assert page.view(site, {})["sources"] is None
    for options in (("--groups", "source"), ("--known", "label"), ()):
        assert call("sources", run, "--model", spec, *options).code == 0
        found = page.view(site, {})
        shown, kept = page_html(site, page, found), json.loads((run / "sources.json").read_text(encoding="utf-8"))
        if options[:1] == ("--groups",):
            effects = np.array([one["effects"] for one in kept["groups"]])
            np.testing.assert_allclose([one["effects"] for one in found["sources"]["groups"]], effects, rtol=1e-5)
            assert "&lt;b&gt;web&lt;/b&gt;" in shown and "<b>web</b>" not in shown
        else:
            assert [one["id"] for one in found["sources"]["rows"]] == [one["id"] for one in kept["listed"]]
            assert f"{found['sources']['changed']}" in shown
    for damaged in ("{", "[]", json.dumps({**kept, "listed": 3}), json.dumps({**kept, "format": 2})):
        (run / "sources.json").write_text(damaged)
        assert page.view(site, {})["sources"] is None


def test_what_cannot_be_served_is_refused_in_one_line(call: Call, audits, audited: Audited, tmp_path: Path) -> None:
    run, spec = audits("recipe")

    def refused(code: int, told: str, *arguments: object) -> None:
        shown = call("serve", *arguments)
        assert shown.code == code and told in shown.one_line(), shown.err

    refused(1, "nowhere", tmp_path / "nowhere")
    refused(2, "--model must be left out", audited.folder, "--model", spec)
    refused(2, "--host must be one address", run, "--host", "0.0.0.0")
    refused(2, "--port must lie in", run, "--port", 70_000)
    refused(1, "none", run, "--against", tmp_path / "none")


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way there")
def test_it_prints_its_address_answers_and_ends_by_ctrl_c(audited: Audited) -> None:
    code = "from whence.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, "serve", str(audited.folder)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith("explorer: http://127.0.0.1:"), line
        address = urlsplit(line.split()[1])
        token = dict(part.split("=") for part in address.query.split("&"))["token"]
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        connection.request("GET", "/queue.json?show=all", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["total"] == audited.rows
        connection.close()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert (process.returncode, told) == (0, "")
    finally:
        process.kill()
        process.communicate()
