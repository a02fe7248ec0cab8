"""Saved attributions: what does not fit is refused with both sides named; nothing half-written is taken for whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import whence as wh
import whence.curvature
import zoo
from whence.audit import open_run
from whence.features import FORMAT
from whence.methods.configs import KNOWN

COUNT = 12


@pytest.fixture
def case() -> zoo.Case:
    return zoo.make("text", count=COUNT)


@pytest.fixture
def run(case: zoo.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("whence.methods.saved.SHARD_BYTES", 1)  # a shard a chunk
    attribution = wh.Influence(batch_size=5).fit(wh.Task(case.model, weight_decay=0.1), case.train)
    attribution.save(tmp_path / "run")
    return tmp_path / "run"


def task_of(case: zoo.Case) -> wh.Task:
    return wh.Task(case.model, weight_decay=0.1)


def test_nothing_is_pickled(run: Path) -> None:
    assert sorted({path.suffix for path in run.iterdir()}) == [".json", ".safetensors"]
    assert not list(run.parent.glob(".*"))


def test_other_weights(run: Path, case: zoo.Case) -> None:
    stored = json.loads((run / "manifest.json").read_text())["identity"]["weights"][:12]
    other = zoo.make("text", count=COUNT, seed=1)
    found = wh.Task(other.model).weights_fingerprint()[:12]
    with pytest.raises(wh.RunFormatError, match=f"weights must be those of.*{stored}.*got {found}"):
        wh.load(run, task_of(other))
    with torch.no_grad():
        case.model[4 + 1].weight[0, 0] += 1e-12
    with pytest.raises(wh.RunFormatError, match="weights must be"):
        wh.load(run, task_of(case))


def test_another_model(run: Path) -> None:
    with pytest.raises(wh.WhenceError):
        wh.load(run, wh.Task(zoo.make("mlp").model, weight_decay=0.1))


def test_other_data(run: Path, case: zoo.Case) -> None:
    stored = json.loads((run / "manifest.json").read_text())["identity"]["data"][:12]
    changed = case.inputs.clone()
    changed[3, 1] = (changed[3, 1] + 1) % 9
    relabelled = case.targets.clone()
    relabelled[0] = (relabelled[0] + 1) % 3
    renamed = wh.as_examples(case.train, ids=[f"e{i}" for i in range(COUNT)])
    shuffled = (case.inputs.flip(0), case.targets.flip(0))
    for other in ((changed, case.targets), (case.inputs, relabelled), renamed, shuffled):
        found = wh.as_examples(other).fingerprint[:12]
        with pytest.raises(wh.RunFormatError, match=f"data must be those of.*{stored}.*got {found}"):
            wh.load(run, task_of(case), other)


def test_another_objective(run: Path, case: zoo.Case) -> None:
    with pytest.raises(wh.RunFormatError, match=r"weight_decay must be.*0\.1.*got 0\.0"):
        wh.load(run, wh.Task(case.model))
    with pytest.raises(wh.RunFormatError, match=r"loss must be.*CrossEntropy.*got SmoothHinge"):
        wh.load(run, wh.Task(case.model, "smooth_hinge", weight_decay=0.1))


def test_other_frozen_layers(run: Path, case: zoo.Case) -> None:
    case.model[0].requires_grad_(False)
    with pytest.raises(wh.RunFormatError, match=r"layers must be those of.*Freeze the same"):
        wh.load(run, task_of(case))


def test_a_folder_without_a_run(tmp_path: Path, case: zoo.Case) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(wh.RunFormatError, match="without manifest"):
            wh.load(folder, task_of(case))


DAMAGED = [
    "", "{", "[]", "null", "\x00\xff", "[" * 100_000, '{"format": null}', '{"format": "3", "kind": "index"}',
    *(json.dumps({"format": FORMAT, **more}) for more in ({}, {"kind": "index"}, {"kind": "audit"})),
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_manifest(run: Path, case: zoo.Case, content: str) -> None:
    (run / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(wh.RunFormatError, match="manifest"):
        wh.load(run, task_of(case))


@pytest.mark.parametrize("found, age", [(FORMAT - 1, "an earlier"), (1, "an earlier"), (FORMAT + 1, "a later")])
def test_another_format_names_both_and_the_remedy(run: Path, case: zoo.Case, found: int, age: str) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["format"] == FORMAT
    (run / "manifest.json").write_text(json.dumps({**manifest, "format": found}))
    expected = rf"must be of format {FORMAT},.* got format {found} of {age} version\. Make the run again"
    for read in (lambda: wh.load(run, task_of(case)), lambda: wh.open_index(run), lambda: open_run(run)):
        with pytest.raises(wh.RunFormatError, match=expected):
            read()


WRONG = [
    *((key,) for key in ("dtype", "layers", "shards", "parts", "identity", "extra", "error")),
    *(("identity", key) for key in ("method", "computed_in", "layers", "chunk", "examples", "weight_decay")),
    ("extra", "preconditioner"), ("extra", "config"),
]  # fmt: skip


@pytest.mark.parametrize("keys", WRONG, ids=".".join)
@pytest.mark.parametrize("value", [None, "nonsense", -7])
def test_a_manifest_with_a_wrong_entry(run: Path, case: zoo.Case, keys: tuple[str, ...], value: object) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    holder = manifest if len(keys) == 1 else manifest[keys[0]]
    holder[keys[-1]] = value
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(wh.RunFormatError, match=r"manifest|(weight_decay|layers) must be"):
        wh.load(run, task_of(case))


@pytest.mark.parametrize("name", ["curvature.safetensors", "features-00000.safetensors", "features-00002.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "swapped"])
def test_a_damaged_file(run: Path, case: zoo.Case, name: str, damage: str) -> None:
    path = run / name
    if damage == "missing":
        path.unlink()
    elif damage == "swapped":
        other = "features-00001.safetensors" if name.startswith("curvature") else "curvature.safetensors"
        path.write_bytes((run / other).read_bytes())
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "garbage": b"\xff" * len(whole)}[damage])
    with pytest.raises(wh.RunFormatError, match=name.replace(".", r"\.")):
        wh.load(run, task_of(case))


def test_an_earlier_run_is_replaced_and_other_folders_are_not(run: Path, case: zoo.Case) -> None:
    again = wh.Influence(curvature=wh.KFAC()).fit(wh.Task(case.model), case.train)
    again.save(run)
    loaded = wh.load(run, wh.Task(case.model)).scores(case.train).values
    torch.testing.assert_close(loaded, again.scores(case.train).values, rtol=1e-11, atol=1e-14)
    mine = run.parent / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(wh.RunFormatError, match="holds other files"):
        again.save(mine)
    assert (mine / "thesis.txt").read_text() == "precious"


def test_an_interrupted_save_leaves_the_earlier_run(
    run: Path, case: zoo.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    attribution = wh.Influence().fit(task_of(case), case.train)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whence.index.manifest.write_manifest", full)
    with pytest.raises(wh.RunFormatError, match="No space left on device"):
        attribution.save(run)
    with pytest.raises(wh.RunFormatError, match="No space left on device"):
        attribution.save(run.parent / "new")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("ids", [[5, 3, 9], ["5", "3", "é"]])
def test_ids_keep_their_kind(ids: list[int] | list[str], tmp_path: Path) -> None:
    case = zoo.make("linear", count=3)
    wh.Influence().fit(wh.Task(case.model), wh.as_examples(case.train, ids=ids)).save(tmp_path / "run")
    loaded = wh.load(tmp_path / "run", wh.Task(case.model))
    assert loaded.ids.tolist() == ids
    assert loaded.group_scores({"g": ids[:1]}, case.train).ids.tolist() == ["g"]


def test_a_model_in_another_type_is_the_same_model(tmp_path: Path) -> None:
    """Exact computes in float64; its run loads with the user's float32 model."""
    case = zoo.make("mlp", dtype=torch.float32)
    task = wh.Task(case.model, weight_decay=0.1)
    fitted = wh.Influence(curvature=wh.Exact()).fit(task, case.train)
    fitted.save(tmp_path / "run")
    loaded = wh.load(tmp_path / "run", task)
    torch.testing.assert_close(loaded.scores(case.train).values, fitted.scores(case.train).values)
    assert next(case.model.parameters()).dtype == torch.float32


def test_runs_too_large_for_factors_need_the_data(
    tmp_path: Path, case: zoo.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whence.methods.saved.LARGEST_FEATURES", 10)
    fitted = wh.Influence().fit(task_of(case), case.train)
    fitted.save(tmp_path / "run")
    with pytest.raises(wh.ConfigError, match="train="):
        wh.load(tmp_path / "run", task_of(case))
    loaded = wh.load(tmp_path / "run", task_of(case), case.train)
    torch.testing.assert_close(loaded.scores(case.train).values, fitted.scores(case.train).values)


def test_saving_what_was_loaded_gives_the_same_run(run: Path, case: zoo.Case) -> None:
    wh.load(run, task_of(case), case.train).save(run.parent / "copy")
    for path in run.glob("*.safetensors"):
        assert path.read_bytes() == (run.parent / "copy" / path.name).read_bytes()
    again = wh.load(run.parent / "copy", task_of(case), case.train)
    expected = wh.load(run, task_of(case)).scores(case.train).values
    assert np.array_equal(again.scores(case.train).values, expected)


CONFIGS = [
    wh.KFAC(damping=0.5, split=False),
    wh.EKFAC(damping="auto", fisher="empirical"),
    wh.CG(damping=wh.Relative(1.0), preconditioner=wh.KFAC(damping=0.25)),
    wh.Projected(rank=(2, 3), kind="random"),
]


@pytest.mark.parametrize("curvature", CONFIGS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("layers", [None, "last", ["0", "3"]], ids=str)
def test_the_config_comes_back(curvature: wh.Curvature, layers: str | list[str] | None, tmp_path: Path) -> None:
    """What is loaded says how it was fitted, and fits the same again."""
    case = zoo.make("mlp", count=COUNT)
    config = wh.Influence(curvature=curvature, layers=layers, memory_budget=12345, seed=3)
    fitted = config.fit(wh.Task(case.model), case.train)
    fitted.save(tmp_path / "run")
    loaded = wh.load(tmp_path / "run", fitted.task, case.train)
    resolved = replace(config, batch_size=fitted.stream.chunk, dtype=fitted.task.dtype)
    assert loaded.config == resolved
    assert loaded.stream.budget == 12345
    again = loaded.config.fit(fitted.task, case.train).scores(case.train).values
    torch.testing.assert_close(again, fitted.scores(case.train).values, rtol=1e-6, atol=1e-9)


def test_every_curvature_is_known_by_name() -> None:
    public = {name for name in whence.curvature.__all__ if hasattr(getattr(whence.curvature, name), "fit")}
    assert set(KNOWN) == (public - {"Curvature"}) | {"Relative"}


def test_a_curvature_of_the_users_own_loads_but_is_not_fitted_again(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Mine:
        share: float = 0.5

        def fit(self, stream: Any, *, seed: int) -> Any:
            return wh.KFAC().fit(stream, seed=seed)

    case = zoo.make("mlp", count=COUNT)
    fitted = wh.Influence(curvature=Mine()).fit(wh.Task(case.model), case.train)
    fitted.save(tmp_path / "run")
    loaded = wh.load(tmp_path / "run", fitted.task, case.train)
    torch.testing.assert_close(loaded.scores(case.train).values, fitted.scores(case.train).values)
    assert repr(loaded.config.curvature) == repr(Mine())
    with pytest.raises(wh.ConfigError, match=r"curvature must be one of .*Mine\(share=0.5\)"):
        loaded.config.fit(fitted.task, case.train)


def test_the_error_of_storage_is_in_the_summary(tmp_path: Path, case: zoo.Case) -> None:
    attribution = wh.Influence().fit(task_of(case), case.train)
    for dtype in ("float16", "float64"):
        index = wh.build_index(attribution, tmp_path / dtype, dtype=dtype)
        found = wh.load(tmp_path / dtype, task_of(case)).summary().get("storage_error")
        assert found == (index.summary()["storage_error"] if dtype == "float16" else None)
    assert "storage_error" not in attribution.summary()
