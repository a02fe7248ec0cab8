"""Indices of attributions: the same scores, killed at any moment, extended, in 16 bits, searched in two stages."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import whence as wh
import zoo
from whence.curvature import preconditioner_from_state

COUNT = 24
MODELS = ["linear", "mlp", "conv", "text", "sequence", "twice", "norms", "regression"]
EXACT = wh.Exact(damping=wh.Relative(0.1), fisher="empirical")


def fitted(name: str, *, count: int = COUNT, **settings: object) -> tuple[zoo.Case, wh.InfluenceAttribution]:
    case = zoo.make(name, count=count)
    config = wh.Influence(batch_size=7, **settings)  # type: ignore[arg-type]
    examples = wh.as_examples(case.train, ids=[f"e{i}" for i in range(count)])
    return case, config.fit(wh.Task(case.model, case.loss, weight_decay=0.02), examples)


def queries(case: zoo.Case, count: int = 5) -> tuple[object, torch.Tensor]:
    return zoo.subset(case.inputs, slice(0, count)), case.targets[:count]


@pytest.mark.parametrize("curvature", [wh.EKFAC(), EXACT, wh.Identity()], ids=["ekfac", "exact", "identity"])
@pytest.mark.parametrize("name", MODELS)
def test_an_index_answers_as_the_attribution(name: str, curvature: object, tmp_path: Path) -> None:
    case, attribution = fitted(name, curvature=curvature)
    asked = queries(case)
    expected = attribution.scores(asked)
    index = wh.build_index(attribution, tmp_path / "i", dtype="float64", shard_rows=5)
    found = index.scores(attribution.query_features(asked))
    tight = {"rtol": 1e-9, "atol": 1e-9 * float(expected.values.abs().max())}
    torch.testing.assert_close(found.values, expected.values, **tight)
    assert (found.unit, found.ids.tolist()) == (expected.unit, expected.ids.tolist())
    own, stored = attribution.self_scores(), index.self_scores()
    np.testing.assert_allclose(stored, own, rtol=1e-9)
    assert stored.unit == own.unit
    groups = {"a": ["e1", "e5"], "b": ["e20"]}
    both = (index.group_scores(groups, attribution.query_features(asked)), attribution.group_scores(groups, asked))
    torch.testing.assert_close(both[0].values.to(both[1].values), both[1].values, **tight)
    for largest in (True, False):
        frame = expected.top(4) if largest else expected.bottom(4)
        for one in (
            wh.top(attribution, asked, 4, largest=largest),
            wh.top(attribution, asked, 4, largest=largest, index=index),
            wh.top(attribution, asked, 4, largest=largest, index=index, candidates=6),
        ):
            assert one["id"].tolist() == frame["id"].tolist()
            np.testing.assert_allclose(one["score"], frame["score"], **tight)


def test_a_built_index_is_a_saved_attribution(tmp_path: Path) -> None:
    case, attribution = fitted("mlp")
    wh.build_index(attribution, tmp_path / "i", dtype="float64")
    restored = wh.load(tmp_path / "i", attribution.task)
    asked = queries(case)
    torch.testing.assert_close(restored.scores(asked).values, attribution.scores(asked).values)
    attribution.save(tmp_path / "saved")
    saved = wh.open_index(tmp_path / "saved")
    assert saved.top(attribution.query_features(asked), 3)["id"].tolist() == attribution.scores(asked).top(3)[
        "id"
    ].tolist()


@pytest.mark.parametrize("dtype, recall", [("float16", 1.0), ("bfloat16", 0.8)])
def test_two_stages_recall_the_exact_top_k(dtype: str, recall: float, tmp_path: Path) -> None:
    case, attribution = fitted("mlp", count=300)
    index = wh.build_index(attribution, tmp_path / "i", dtype=dtype)
    asked = queries(case, 20)
    exact = attribution.scores(asked).top(10)
    first = wh.top(attribution, asked, 10, index=index)
    two = wh.top(attribution, asked, 10, index=index, candidates=30)
    assert 0 < two.attrs["candidates"] < 300
    shared = [
        len(set(exact[exact["query"] == q]["id"]) & set(first[first["query"] == q]["id"])) / 10
        for q in exact["query"].unique()
    ]
    assert np.mean(shared) >= recall - 0.05
    assert two["id"].tolist() == exact["id"].tolist()
    np.testing.assert_allclose(two["score"], exact["score"], rtol=1e-9)
    with pytest.raises(wh.ConfigError, match="candidates must be at least k"):
        wh.top(attribution, asked, 10, index=index, candidates=5)


def test_extension_is_what_indexing_all_would_give(tmp_path: Path) -> None:
    """Rows are appended, stored bytes stay, scores are those of the fit's curvature; ids may not repeat."""
    case, attribution = fitted("text")
    more_case = zoo.make("text", count=9, seed=5)
    more = wh.as_examples(more_case.train, ids=[f"n{i}" for i in range(9)])
    index = wh.build_index(attribution, tmp_path / "i", dtype="float64", shard_rows=7)
    before = {path.name: path.read_bytes() for path in index.folder.glob("*.safetensors")}
    index = index.remove(["e2"])
    bigger = wh.extend_index(index, attribution, more)
    assert all((index.folder / name).read_bytes() == content for name, content in before.items())
    assert bigger.ids.tolist() == [f"e{i}" for i in range(COUNT) if i != 2] + [f"n{i}" for i in range(9)]
    assert bigger.summary()["extensions"] == 1
    asked = queries(case)
    features = attribution.query_features(asked)
    blocks = attribution.query_blocks(wh.as_examples(asked))
    batch = attribution.task.place(more.batch(np.arange(9)))
    raw = torch.cat([block.inner(attribution.stream.run(batch, np.arange(9)).training()) for block in blocks])
    raw = (raw + features.offsets[:, None]) / COUNT
    torch.testing.assert_close(bigger.scores(features).values[:, -9:], raw, rtol=1e-9, atol=1e-12)
    assert len(np.asarray(bigger.self_scores())) == COUNT - 1 + 9
    with pytest.raises(wh.DataError, match=r"unique, got 'n0'"):
        wh.extend_index(bigger, attribution, more)
    again = wh.build_index(attribution, tmp_path / "i", dtype="float64", shard_rows=7)
    assert again.ids.tolist() == bigger.ids.tolist()
    loaded = wh.load(tmp_path / "i", attribution.task)
    torch.testing.assert_close(loaded.scores(asked).values, attribution.scores(asked).values)


@pytest.mark.parametrize("largest", [True, False])
def test_two_stages_over_an_extended_index(largest: bool, tmp_path: Path) -> None:
    """What the fit has seen is scored by the model, what was appended by its stored features."""
    case, attribution = fitted("mlp")
    more = wh.as_examples(zoo.make("mlp", count=20, seed=5).train, ids=[f"n{i}" for i in range(20)])
    index = wh.build_index(attribution, tmp_path / "i", dtype="bfloat16")
    index = wh.extend_index(index, attribution, more)
    asked = queries(case)
    stored = index.scores(attribution.query_features(asked)).values[:, COUNT:].double()
    whole = torch.cat([attribution.scores(asked).values, stored], 1) * (1 if largest else -1)
    found = wh.top(attribution, asked, 8, largest=largest, index=index, candidates=COUNT + 20)
    best = whole.topk(8)
    ids = np.array([f"e{i}" for i in range(COUNT)] + [f"n{i}" for i in range(20)])
    assert found["id"].tolist() == ids[best.indices.flatten().numpy()].tolist()
    assert found["rank"].tolist() == [*range(1, 9)] * 5
    assert {text[0] for text in found["id"]} == {"e", "n"}
    np.testing.assert_allclose(np.abs(found["score"]), best.values.flatten().abs(), rtol=1e-6)
    assert found.attrs["candidates"] == COUNT


def test_a_stale_index_is_not_extended_twice_by_the_same_ids(tmp_path: Path) -> None:
    _, attribution = fitted("linear")
    stale = wh.build_index(attribution, tmp_path / "i")
    more = wh.as_examples(zoo.make("linear", count=2, seed=5).train, ids=["n0", "n1"])
    wh.extend_index(stale, attribution, more)
    with pytest.raises(wh.DataError, match=r"unique, got 'n0'"):
        wh.extend_index(stale, attribution, wh.as_examples(more.select(np.array([0]))))
    assert len(set(wh.open_index(tmp_path / "i").ids.tolist())) == COUNT + 2


def test_an_index_of_another_loss_data_or_layers_is_refused(tmp_path: Path) -> None:
    case, attribution = fitted("mlp")
    index = wh.build_index(attribution, tmp_path / "i")
    examples = attribution.examples
    config = wh.Influence(batch_size=7)
    cases = {
        "loss": config.fit(wh.Task(case.model, "smooth_hinge", weight_decay=0.02), examples),
        "examples": config.fit(attribution.task, examples.select(np.arange(COUNT - 1))),
        "layers": wh.Influence(batch_size=7, layers="last").fit(attribution.task, examples),
    }
    for name, other in cases.items():
        with pytest.raises(wh.RunFormatError, match=rf"{name} must be that of index .*\(.*\), got "):
            wh.top(other, queries(case), 3, index=index)


def moved(attribution: wh.InfluenceAttribution, size: float) -> wh.InfluenceAttribution:
    """Return the attribution with a curvature that is a little off, as one fitted on other threads is."""
    settings, tensors = attribution.preconditioner.state()
    noise = torch.Generator().manual_seed(0)
    off = {name: t * (1 + size * torch.randn(t.shape, generator=noise).to(t)) for name, t in tensors.items()}
    return replace(attribution, preconditioner=preconditioner_from_state(settings, off, attribution.stream))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupted(attribution: wh.InfluenceAttribution, folder: Path) -> None:
    """Begin an index and stop after some shards."""

    def stop(done: int, _: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wh.build_index(attribution, folder, shard_rows=7, on_progress=stop)


def test_a_fit_that_differs_in_its_last_bits_goes_on_with_the_curvature_of_the_first(tmp_path: Path) -> None:
    case, attribution = fitted("mlp")
    interrupted(attribution, tmp_path / "i")
    before = files(tmp_path / "i")
    again = moved(attribution, 1e-9)
    index = wh.build_index(again, tmp_path / "i", shard_rows=7)
    after = files(tmp_path / "i")
    assert all(after[name] == content for name, content in before.items() if name != "manifest.json")
    whole = wh.build_index(attribution, tmp_path / "whole", shard_rows=7)
    asked = attribution.query_features(queries(case))
    assert torch.equal(index.scores(asked).values, whole.scores(asked).values)
    np.testing.assert_allclose(np.asarray(index.self_scores()), np.asarray(whole.self_scores()), rtol=1e-13)
    other = moved(attribution, 0.5)
    more = wh.as_examples(zoo.make("mlp", count=2, seed=5).train, ids=["n0", "n1"])
    for call in (lambda: wh.build_index(other, tmp_path / "i", shard_rows=7),
                 lambda: wh.extend_index(index, other, more)):  # fmt: skip
        with pytest.raises(wh.RunFormatError, match="curvature must be that of index"):
            call()


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_a_damaged_curvature_is_written_again(damage: str, tmp_path: Path) -> None:
    case, attribution = fitted("mlp")
    interrupted(attribution, tmp_path / "i")
    path = tmp_path / "i" / "curvature.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-1] + b"\1")
    if damage == "missing":
        path.unlink()
    wh.build_index(moved(attribution, 1e-12), tmp_path / "i", shard_rows=7)
    loaded = wh.load(tmp_path / "i", attribution.task, attribution.examples)
    wh.build_index(loaded, tmp_path / "i", shard_rows=7)
    expected = attribution.scores(queries(case)).values
    torch.testing.assert_close(loaded.scores(queries(case)).values.to(expected), expected, rtol=1e-5, atol=1e-8)


def test_what_does_not_belong_is_refused_with_both_sides_named(tmp_path: Path) -> None:
    case, attribution = fitted("mlp")
    index = wh.build_index(attribution, tmp_path / "i", shard_rows=7)
    task = attribution.task
    other = zoo.make("mlp", count=COUNT, seed=1)
    train = wh.as_examples(case.train, ids=[f"e{i}" for i in range(COUNT)])
    cases = {
        "weights": wh.Influence(batch_size=7).fit(task.with_model(other.model), train),
        "data": wh.Influence(batch_size=7).fit(task, case.train),
        "curvature": wh.Influence(curvature=wh.KFAC(), batch_size=7).fit(task, train),
        "seed": wh.Influence(batch_size=7, seed=1, curvature=wh.EKFAC(fisher="exact")).fit(task, train),
        "chunk": wh.Influence(batch_size=8).fit(task, train),
        "weight_decay": wh.Influence(batch_size=7).fit(wh.Task(case.model, weight_decay=0.3), train),
    }
    for name, wrong in cases.items():
        with pytest.raises(wh.RunFormatError, match=rf"{name} must be that of index .*\(.*\), got "):
            wh.build_index(wrong, tmp_path / "i", shard_rows=7)
    with pytest.raises(wh.RunFormatError, match="weights must be"):
        wh.extend_index(index, cases["weights"], other.train)
    with pytest.raises(wh.RunFormatError, match=r"weights must be those of index"):
        wh.top(cases["weights"], queries(case), 3, index=index)
    with pytest.raises(wh.RunFormatError, match="self_scores must be"):
        wh.build_index(attribution, tmp_path / "i", shard_rows=7, self_scores=False)
    index.verify()


def test_progress_and_a_second_call_that_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, attribution = fitted("conv", memory_budget=0)
    seen: list[tuple[int, int]] = []
    wh.build_index(attribution, tmp_path / "i", shard_rows=7, on_progress=lambda done, all_: seen.append((done, all_)))
    assert seen == [(0, 24), (7, 24), (14, 24), (21, 24), (24, 24)]
    bytes_before = {path.name: path.read_bytes() for path in (tmp_path / "i").iterdir()}
    seen.clear()
    wh.build_index(attribution, tmp_path / "i", shard_rows=7, on_progress=lambda done, all_: seen.append((done, all_)))
    assert seen == [(24, 24)]
    assert {path.name: path.read_bytes() for path in (tmp_path / "i").iterdir()} == bytes_before


KILLED = """
import filecmp, os, random, shutil, signal, sys, time
import torch, whence as wh, zoo
torch.set_num_threads(1)
folder, whole, log = sys.argv[1:]
case = zoo.make("mlp", count=50)
attribution = wh.Influence(batch_size=2, memory_budget=0).fit(wh.Task(case.model, weight_decay=0.02), case.train)
wh.build_index(attribution, whole, shard_rows=2)
run = attribution.stream.run

def noted(batch, rows):
    with open(log, "a") as file:
        file.write(f"{batch.ids[0]}\\n")
    return run(batch, rows)

def build(pause):
    child = os.fork()
    if child == 0:
        object.__setattr__(attribution.stream, "run", noted)
        wh.build_index(attribution, folder, shard_rows=2)
        os._exit(0)
    if pause is not None:
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

def compare(kills):
    names = sorted(os.listdir(whole))
    assert sorted(os.listdir(folder)) == names, os.listdir(folder)
    assert filecmp.cmpfiles(folder, whole, names, shallow=False)[0] == names
    rows = [line for line in open(log).read().split() if line != "0"]  # the first row is probed by every run
    assert len(rows) - len(set(rows)) <= kills, (len(rows), kills)
    print("index whole after", kills, "kills")

chance, kills, here = random.Random(0), 0, 0
while kills < 20:
    status = build(chance.uniform(0.002, 0.04))
    if os.WIFSIGNALED(status):
        kills, here = kills + 1, here + 1
        continue
    assert status == 0, status
    compare(here)
    shutil.rmtree(folder)
    os.remove(log)
    here = 0
assert build(None) == 0
compare(here)
"""


def test_killed_at_twenty_random_moments_the_bytes_are_the_same(tmp_path: Path) -> None:
    """kill -9 in the middle, again and again: nothing is computed twice beyond the shard that was begun."""
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    folders = [str(tmp_path / name) for name in ("killed", "whole", "log")]
    done = subprocess.run(
        [sys.executable, str(program), *folders], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("index whole after")
