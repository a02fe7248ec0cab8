"""Scores averaged over members, with a standard error."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import whence as wh
import zoo
from whence.errors import ConfigError, NumericalError, RunFormatError
from whence.methods import Ensemble, EnsembleAttribution, load_ensemble

METHOD = wh.Influence(curvature=wh.EKFAC(fisher="exact"))


def tasks(name: str = "mlp", members: int = 3, decay: float = 0.01) -> list[wh.Task]:
    cases = [zoo.make(name, seed=seed) for seed in range(members)]
    return [wh.Task(case.model, case.loss, weight_decay=decay) for case in cases]


@pytest.fixture(scope="module")
def fitted() -> EnsembleAttribution:
    return Ensemble(method=METHOD).fit(tasks(), zoo.make("mlp").train)


@pytest.mark.parametrize("corrected", [False, True])
def test_mean_and_standard_error_are_those_of_the_members(fitted: EnsembleAttribution, corrected: bool) -> None:
    train = zoo.make("mlp").train
    singles = [METHOD.fit(task, train) for task in tasks()]
    each = np.stack([one.scores(train, leverage_corrected=corrected).values.numpy() for one in singles])
    found = fitted.scores(train, leverage_corrected=corrected)
    assert found.standard_error is not None
    np.testing.assert_allclose(found.values, each.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.standard_error, each.std(0, ddof=1) / 3**0.5, rtol=1e-9, atol=1e-12)
    each = np.stack([one.self_scores(leverage_corrected=corrected).values for one in singles])
    signal = fitted.self_scores(leverage_corrected=corrected)
    assert signal.standard_error is not None
    np.testing.assert_allclose(signal.values, each.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(signal.standard_error, each.std(0, ddof=1) / 3**0.5, rtol=1e-9, atol=1e-12)
    assert (found.unit, signal.unit) == ("nats", "nats")
    groups = {"a": [0, 1, 2], "b": [5]}
    each = np.stack([one.group_scores(groups, train).values.numpy() for one in singles])
    grouped = fitted.group_scores(groups, train)
    assert grouped.standard_error is not None
    np.testing.assert_allclose(grouped.standard_error, each.std(0, ddof=1) / 3**0.5, rtol=1e-9, atol=1e-12)
    assert len(fitted) == 3 and len(fitted.summary()["members"]) == 3


def test_equal_members_have_no_error() -> None:
    case = zoo.make("mlp")
    task = wh.Task(case.model)
    scores = Ensemble(method=METHOD).fit([task, task], case.train).scores(case.train)
    assert scores.standard_error is not None and float(scores.standard_error.max()) == 0
    torch.testing.assert_close(scores.values, METHOD.fit(task, case.train).scores(case.train).values)


@pytest.mark.parametrize("size", [1, 7])
def test_batch_size_and_order_do_not_matter(fitted: EnsembleAttribution, size: int) -> None:
    case = zoo.make("mlp")
    order = np.random.default_rng(0).permutation(len(case.targets))
    train = wh.as_examples((case.inputs[order], case.targets[order]), ids=order)
    method = wh.Influence(curvature=wh.EKFAC(fisher="exact"), batch_size=size)
    other = Ensemble(method=method).fit(tasks(), train).scores(case.train)
    one = fitted.scores(case.train)
    back = torch.from_numpy(np.argsort(order))
    assert other.standard_error is not None and one.standard_error is not None
    assert float((other.values[:, back] - one.values).norm() / one.values.norm()) < 1e-9
    error = one.standard_error
    assert float((other.standard_error[:, back] - error).norm() / error.norm()) < 1e-9


def test_a_recipe_makes_the_members() -> None:
    case = zoo.make("linear", dtype=torch.float32, count=20)
    recipe = wh.Recipe(build=lambda: torch.nn.Linear(5, 3), epochs=2, learning_rate=0.1, weight_decay=0.01)
    train = wh.as_examples(case.train)
    found = Ensemble(seeds=(4, 7)).fit(recipe, train)
    for seed, member in zip((4, 7), found.members(), strict=True):
        torch.testing.assert_close(member.task.model.state_dict(), recipe.train(train, seed=seed).state_dict())
        assert member.task.weight_decay == 0.01


def test_the_mean_over_more_members_has_a_smaller_error() -> None:
    """The standard error says how far means of other seeds fall apart."""
    case = zoo.make("linear", dtype=torch.float32, count=30)
    recipe = wh.Recipe(build=lambda: torch.nn.Linear(5, 3), epochs=2, learning_rate=0.05)
    means, errors = [], []
    for first in range(0, 40, 8):
        scores = Ensemble(seeds=range(first, first + 8)).fit(recipe, wh.as_examples(case.train)).scores(case.train)
        means.append(scores.values.numpy())
        errors.append(scores.standard_error.numpy())
    spread = np.stack(means).std(0, ddof=1)
    assert float(np.sqrt((spread**2).mean())) == pytest.approx(float(np.sqrt(np.mean(np.square(errors)))), rel=0.35)


def test_save_and_load(fitted: EnsembleAttribution, tmp_path: Path) -> None:
    train = zoo.make("mlp").train
    fitted.save(tmp_path / "run")
    restored = load_ensemble(tmp_path / "run", tasks(), train)
    one, other = restored.scores(train), fitted.scores(train)
    assert torch.equal(one.values, other.values)
    assert one.standard_error is not None and other.standard_error is not None
    assert torch.equal(one.standard_error, other.standard_error)
    with pytest.raises(RunFormatError, match="members"):
        load_ensemble(tmp_path / "run", tasks(members=2), train)
    swapped = load_ensemble(tmp_path / "run", tasks()[::-1], train)
    with pytest.raises(RunFormatError, match="weights must be those"):
        swapped.scores(train)
    with pytest.raises(RunFormatError, match="kind"):
        load_ensemble(tmp_path / "run" / "member-000", tasks(), train)


def test_a_named_folder_stays_and_a_temporary_one_goes(tmp_path: Path) -> None:
    train = zoo.make("mlp").train
    named = Ensemble(method=METHOD, folder=tmp_path / "kept").fit(tasks(members=2), train)
    temporary = Ensemble(method=METHOD).fit(tasks(members=2), train)
    folder = temporary.folder
    assert folder.is_dir()
    del temporary, named
    gc.collect()
    assert not folder.exists()
    assert load_ensemble(tmp_path / "kept", tasks(members=2), train).scores(train).values.shape == (9, 9)


def test_a_member_that_cannot_be_fitted_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = zoo.make("mlp").train
    broken = tasks(members=2)
    with torch.no_grad():
        next(broken[1].model.parameters()).fill_(float("nan"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(NumericalError):
        Ensemble(method=METHOD).fit(broken, train)
    assert not list(tmp_path.iterdir())


def test_refusals() -> None:
    train = zoo.make("mlp").train
    with pytest.raises(ConfigError, match="at least 2"):
        Ensemble().fit(tasks(members=1), train)
    with pytest.raises(ConfigError, match="weight_decay"):
        Ensemble().fit([tasks()[0], tasks(decay=0.5)[1]], train)
