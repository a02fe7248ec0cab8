"""The explorer at 60,000 rows: how long every page takes to answer, over the network of this machine.

The rows are MNIST's, one label in 20 wrong; the model is the embedded one, trained on a few: pages are measured.

    python benchmarks/explorer.py [--threads 2] [--requests 15] [--folder RUN] [--tiny]
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

import numpy as np
import torch
import uvicorn
from PIL import Image

import support
import tables
from whence.audit import Audit, write_run
from whence.audit.cards import Finished, run_card
from whence.audit.members import predict
from whence.curvature import EKFAC, Relative
from whence.data import LabelledData, ReadOptions, as_examples, read
from whence.explorer import Door, Site, application, open_site
from whence.methods import Influence
from whence.report import SecondsCard, summarise
from whence.tasks.defaults import default_for
from whence.uses.label_errors import Members, find_label_errors

WRONG = 20  # one label in so many
PART = 20  # one row in so many trains the model
LIMIT = 300  # milliseconds
RUNS = {"run": 0, "other": 1}  # what is shown, and what it is compared with: the model of each begins at another row
TOKEN = "benchmark"


def main() -> None:
    """Make a run, serve it, ask for every page."""
    made = support.parser(__doc__.splitlines()[0], threads=2)
    made.add_argument("--requests", type=int, default=15, help="requests of every page")
    made.add_argument("--folder", type=Path, default=None, help="where data and run are kept, to be used again")
    arguments = made.parse_args()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    report = support.Report("explorer", {"tiny": arguments.tiny, "requests": arguments.requests},
                            judged=not arguments.tiny)  # fmt: skip
    with tempfile.TemporaryDirectory() as spare:
        folder = arguments.folder or Path(spare) / "run"
        for name, start in RUNS.items():
            if not (folder / name / "manifest.json").is_file():
                make_run(folder, name, start, arguments)
        started = time.perf_counter()
        site = open_site(folder / "run", edit=True, against=folder / "other")
        report.figures["rows"] = len(site.opened)
        report.figures["open_s"] = time.perf_counter() - started
        with served(site) as port:
            measure(site, port, arguments.requests, report)
    report.close(support.results_folder(arguments), arguments.threads, arguments.strict)
    tables.renew(support.results_folder(arguments))


def make_run(folder: Path, name: str, start: int, arguments: argparse.Namespace) -> None:
    """Write the data and a run of it by a model that was trained from row ``start`` on."""
    x, y = rows(arguments.tiny)
    wrong = np.random.default_rng(0).permutation(len(y))[: len(y) // WRONG]
    y[wrong] = (y[wrong] + 1 + np.random.default_rng(1).integers(0, 9, len(wrong))) % 10
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "rows.npz"
    np.savez(source, x=x, y=y)
    data = read(source)
    write_run(audited(data, start), folder / name, source=str(source), options=ReadOptions())


def rows(tiny: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 28, 28] and labels [N]: all 60,000 rows of MNIST, or a few bundled ones."""
    if tiny:
        found = support.images(True)
        return (255 * found["x"]).round().astype(np.uint8).reshape(-1, 28, 28), found["y"].astype(np.int64)
    with np.load(support.need(support.data_folder() / "mnist" / "mnist_train.npz")) as train:
        return train["x"], train["y"].astype(np.int64)


def audited(data: LabelledData, start: int) -> Audit:
    """Return an audit of all rows by the embedded model, trained on one in ``PART`` from ``start`` on."""
    default = default_for(data)
    inputs = default.preparation.transform(data) if default.inputs is None else default.inputs
    examples = as_examples((inputs, torch.from_numpy(data.labels)), ids=data.ids)
    task = default.recipe.task(default.recipe.train(examples.select(np.arange(start, len(examples), PART))))
    attribution = Influence(curvature=EKFAC(damping=Relative(default.damping)), layers="last").fit(task, examples)
    logits = predict(task, examples).numpy()
    suspects = find_label_errors(Members(logits=logits, attribution=attribution), data=data)
    seconds = SecondsCard(read=0.0, train=0.0, score=0.0, total=0.0)
    found = Finished(data=data, model=(default.name, default.description), method="ekfac", attribution=attribution,
                     logits=logits, held_out=None, suspects=suspects, seconds=seconds)  # fmt: skip
    return Audit(data=data, suspects=suspects, summary=summarise(data, suspects, run_card(found, "benchmark")),
                 attribution=attribution, default=default, fits=None, layers="last", seed=0)  # fmt: skip


@contextmanager
def served(site: Site) -> Iterator[int]:
    """Answer on a free port meanwhile."""
    config = uvicorn.Config(None, host="127.0.0.1", port=0, log_level="error", lifespan="off")  # type: ignore[arg-type]
    listener = config.bind_socket()
    port = int(listener.getsockname()[1])
    config.app = application(site, Door(host="127.0.0.1", port=port, token=TOKEN))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join(10)


def measure(site: Site, port: int, requests: int, report: support.Report) -> None:
    """Ask for every page several times, other rows each time."""
    drawn = np.random.default_rng(2).permutation(len(site.opened))[:requests]
    ids = [site.opened.ids[row] for row in drawn.tolist()]
    form, kind = upload(site.opened.data, int(drawn[0]))
    asks: dict[str, Callable[[int], tuple[str, str, bytes, str]]] = {
        "queue": lambda i: get("/"),
        "queue, all rows, another page": lambda i: get("/", show="all", page=1 + 97 * i),
        "queue, one class by loss": lambda i: get("/", show="all", given=str(i % 10), sort="loss"),
        "queue, decided": lambda i: get("/", show="decided"),
        "a decision": lambda i: ("POST", "/decisions.json", json.dumps({"id": ids[i], "action": "keep"}).encode(),
                                 "application/json"),
        "a row": lambda i: get("/row", id=ids[i]),
        "a row as JSON": lambda i: get("/row.json", id=ids[i]),
        "a new input": lambda i: ("POST", "/why", form, kind),
        "map": lambda i: get("/map"),
        "points of the map": lambda i: get("/points.json"),
        "classes": lambda i: get("/classes"),
        "groups": lambda i: get("/groups"),
        "two runs compared": lambda i: get("/compare"),
        "export": lambda i: get("/export"),
    }  # fmt: skip
    pages = {}
    for name, make in asks.items():
        first, _ = ask(port, *make(0))
        found = [ask(port, *make(i)) for i in range(requests)]
        times, work = sorted(one[0] for one in found), median(one[1] for one in found)
        pages[name] = {"first_ms": first, "median_ms": median(times), "slowest_ms": times[-1], "work_ms": work}
        report.gate(f"{name}: median ms", pages[name]["median_ms"], high=LIMIT)
    report.figures["pages"] = pages


def get(path: str, **query: Any) -> tuple[str, str, bytes, str]:
    return "GET", f"{path}?{urlencode(query)}" if query else path, b"", ""


def ask(port: int, method: str, path: str, body: bytes, kind: str) -> tuple[float, float]:
    """Return the milliseconds until a whole answer is there, and those that a core worked: others may use it too."""
    headers = {"Authorization": f"Bearer {TOKEN}", **({"Content-Type": kind} if kind else {})}
    started, worked = time.perf_counter(), time.process_time()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    answer.read()
    passed, work = 1e3 * (time.perf_counter() - started), 1e3 * (time.process_time() - worked)
    connection.close()
    if answer.status != 200:
        sys.exit(f"{path}: {answer.status}")
    return passed, work


def upload(data: LabelledData, row: int) -> tuple[bytes, str]:
    """Return a form with an image of the data."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(data.content)[row, :, :, 0]).save(buffer, format="PNG")
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
    return head + buffer.getvalue() + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


if __name__ == "__main__":
    main()
