"""Label errors from every kind of source: ranks, suspicion, suggestions, evidence, duplicates, refusals."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import whence as wh
from whence import EKFAC, Influence, Task, as_examples
from whence.data import LabelledData
from whence.errors import ConfigError, DataError
from whence.uses.label_errors import SIGNALS, Members, find_label_errors

ROWS, CLASSES = 120, 3
FLIPPED = (5, 17, 44, 80, 111)


def three_groups() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three separated clouds [N, 4], with true and given labels."""
    generator = np.random.default_rng(0)
    true = np.arange(ROWS) % CLASSES
    centres = 3 * np.eye(CLASSES, 4)
    given = true.copy()
    given[list(FLIPPED)] = (true[list(FLIPPED)] + 1) % CLASSES
    return centres[true] + generator.normal(0, 0.6, (ROWS, 4)), true, given


X, TRUE, GIVEN = three_groups()


def probabilities(noise: float = 0.3, seed: int = 0) -> np.ndarray:
    logits = 3 * np.eye(CLASSES)[TRUE] + np.random.default_rng(seed).normal(0, noise, (ROWS, CLASSES))
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True)


def texts(
    labels: np.ndarray = GIVEN, order: np.ndarray | None = None, reference: np.ndarray | None = None
) -> LabelledData:
    """The rows as texts; rows 0 and 3 have one text, with labels that agree, and 4 and 5, whose labels conflict."""
    words = [f"row number {i} speaks of {'abc'[TRUE[i]]}" for i in range(ROWS)]
    words[3], words[5] = words[0], words[4]
    data = LabelledData(
        ids=np.array([f"r{i}" for i in range(ROWS)]),
        kind="text",
        content=words,
        labels=labels,
        classes=("ant", "bee", "cat"),
        reference=reference,
    )
    return data if order is None else data.rows(order)


@pytest.fixture(scope="module")
def attribution():
    """Influence of softmax regression that was trained for a while."""
    inputs, targets = torch.from_numpy(X).float(), torch.from_numpy(GIVEN)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, CLASSES)
    optimiser = torch.optim.Adam(model.parameters(), 0.05, weight_decay=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    examples = as_examples((inputs, targets), ids=np.array([f"r{i}" for i in range(ROWS)]))
    return Influence(curvature=EKFAC(), seed=0).fit(Task(model, "cross_entropy", weight_decay=0.01), examples)


SOURCES = ["probabilities", "tensor", "list", "members", "judges", "embeddings", "attribution", "members+attribution"]


def rank(kind: str, attribution, **more):
    p = probabilities()
    logits = np.log(p)
    if kind == "embeddings":
        return find_label_errors(None, data=texts(), embeddings=X, **more)
    sources = {
        "probabilities": p,
        "tensor": torch.from_numpy(p),
        "list": [p, probabilities(seed=1)],
        "members": Members(logits=logits, refit_logits=np.log(probabilities(seed=2))),
        "judges": Members(logits=logits, refit_logits=logits, judges=(50 * np.log(probabilities(seed=3)),)),
        "attribution": attribution,
        "members+attribution": Members(logits=logits, refit_logits=logits, attribution=attribution),
    }
    return find_label_errors(sources[kind], data=texts(), **more)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_a_whole_and_ordered_list(kind: str, attribution) -> None:
    frame = rank(kind, attribution)
    assert sorted(frame["id"]) == sorted(f"r{i}" for i in range(ROWS))
    assert frame["rank"].tolist() == list(range(1, ROWS + 1))
    assert frame["suspicion"].between(0, 1).all() and frame["suspicion"].is_monotonic_decreasing
    assert (frame["label"] != frame["suggested_label"]).all() and set(frame["suggested_label"]) <= {"ant", "bee", "cat"}
    assert set(frame["id"][:5]) == {f"r{i}" for i in FLIPPED}
    true = {f"r{i}": ("ant", "bee", "cat")[TRUE[i]] for i in range(ROWS)}
    assert all(true[row.id] == row.suggested_label for row in frame[:5].itertuples())
    count = int(frame["is_suspect"].sum())
    if kind not in ("embeddings", "attribution"):  # whose models fitted these labels
        assert 3 <= count <= 8
    assert frame["is_suspect"][:count].all()
    for name in set(SIGNALS) & set(frame.columns):
        assert frame[name].dtype.kind == "f" and np.isfinite(frame[name]).all(), name
    assert ("bayes_loss" in frame) == (kind == "judges")
    assert np.allclose(frame["given_probability"], 1 - frame["suspicion"])
    diagnosis = json.loads(json.dumps(frame.attrs["diagnosis"], allow_nan=False))
    assert diagnosis["suspects"] == count and diagnosis["noise_interval"][0] <= diagnosis["noise_rate"]
    assert diagnosis["threshold"] == (pytest.approx(frame["suspicion"][count - 1]) if count else None)


@pytest.mark.parametrize("kind", ["attribution", "members+attribution"])
def test_evidence_opposes_and_never_is_the_row_itself(kind: str, attribution) -> None:
    frame = rank(kind, attribution, evidence=4)
    assert {"self_influence", "class_influence"} <= set(frame)
    labels = dict(zip(frame["id"], frame["label"], strict=True))
    opposed = []
    for row in frame[:5].itertuples():
        assert 1 <= len(row.evidence) <= 4 and row.id not in row.evidence and set(row.evidence) <= set(labels)
        scores = row.evidence_scores
        assert max(scores) < 0 and scores == sorted(scores) and len(scores) == len(row.evidence)
        opposed += [labels[other] != row.label for other in row.evidence]
    assert np.mean(opposed) > 0.8
    none = rank(kind, attribution, evidence=0)
    assert all(row == [] for row in none["evidence"])


def test_more_evidence_than_rows_is_all_there_is(attribution) -> None:
    frame = rank("attribution", attribution, evidence=10 * ROWS)
    assert frame["evidence"].map(len).max() < ROWS


@pytest.mark.parametrize("form", ["positions", "mask", "column", "list"])
def test_reference_rows(form: str, attribution) -> None:
    trusted = np.setdiff1d(np.arange(ROWS), FLIPPED)
    mask = np.isin(np.arange(ROWS), trusted)
    if form == "column":
        frame = find_label_errors(attribution, data=texts(reference=mask))
    else:
        reference = {"positions": trusted, "mask": mask, "list": trusted.tolist()}[form]
        frame = find_label_errors(attribution, data=texts(), reference=reference)
    lowest = frame.sort_values("class_influence")["id"][:5]
    assert len(set(lowest) & {f"r{i}" for i in FLIPPED}) >= 4


def test_reference_rows_from_elsewhere(attribution) -> None:
    trusted = np.setdiff1d(np.arange(ROWS), FLIPPED)
    rows = as_examples((torch.from_numpy(X[trusted]).float(), torch.from_numpy(GIVEN[trusted])))
    frame = find_label_errors(attribution, data=texts(), reference=rows)
    same = find_label_errors(attribution, data=texts(), reference=trusted)
    np.testing.assert_allclose(frame["class_influence"], same["class_influence"], rtol=1e-5, atol=1e-9)
    with pytest.raises(ConfigError, match="must have labels"):
        find_label_errors(attribution, data=texts(), reference=as_examples(torch.from_numpy(X).float()))


def test_duplicates_and_conflicts_are_flagged() -> None:
    frame = find_label_errors(probabilities(), data=texts()).set_index("id")
    assert {frame["duplicate_of"]["r0"], frame["duplicate_of"]["r3"]} & {"r0", "r3"}
    assert {frame["duplicate_of"]["r4"], frame["duplicate_of"]["r5"]} & {"r4", "r5"}
    assert frame["conflict"][["r4", "r5"]].all() and not frame["conflict"][["r0", "r3"]].any()


@pytest.mark.parametrize("kind", ["probabilities", "members", "judges"])
def test_the_order_of_rows_does_not_matter(kind: str) -> None:
    order = np.random.default_rng(7).permutation(ROWS)
    p, q = probabilities(), probabilities(seed=1)
    found = []
    for rows in (np.arange(ROWS), order):
        judges = (30 * np.log(q[rows]),) if kind == "judges" else ()
        source = (
            p[rows]
            if kind == "probabilities"
            else Members(logits=np.log(p[rows]), refit_logits=np.log(q[rows]), judges=judges)
        )
        frame = find_label_errors(source, data=texts(order=rows), embeddings=X[rows])
        found.append(frame.set_index("id").sort_index())
    one, two = found
    assert np.allclose(one["suspicion"], two["suspicion"], atol=1e-4)
    assert (one["is_suspect"] == two["is_suspect"]).all() and (one["suggested_label"] == two["suggested_label"]).all()
    assert np.allclose(one["neighbour_disagreement"], two["neighbour_disagreement"])


def test_labels_alone_and_labels_of_the_attribution(attribution) -> None:
    frame = find_label_errors(probabilities(), labels=torch.from_numpy(GIVEN))
    assert set(frame["id"][:5]) == set(FLIPPED) and set(frame["label"]) == {"0", "1", "2"}
    frame = find_label_errors(attribution)
    assert set(frame["id"][:5]) == {f"r{i}" for i in FLIPPED}
    wide = np.concatenate([probabilities(), np.zeros((ROWS, 2))], 1)  # classes that no row carries
    assert len(find_label_errors(wide, labels=GIVEN)) == ROWS


def test_certain_probabilities_are_fine() -> None:
    frame = find_label_errors(np.eye(CLASSES)[TRUE], labels=GIVEN)
    assert set(frame["id"][:5]) == set(FLIPPED) and int(frame["is_suspect"].sum()) == 5


@pytest.mark.parametrize(
    ("source", "more", "error"),
    [
        (None, {"labels": GIVEN}, ConfigError),
        (probabilities(), {}, ConfigError),
        (probabilities()[:5], {"labels": GIVEN}, DataError),
        (probabilities()[:, 0], {"labels": GIVEN}, DataError),
        (3 * probabilities(), {"labels": GIVEN}, DataError),
        (np.full((ROWS, 3), np.nan), {"labels": GIVEN}, DataError),
        (np.log(probabilities()), {"labels": GIVEN}, DataError),
        (probabilities(), {"labels": GIVEN + 1}, DataError),
        (probabilities(), {"labels": GIVEN - 1}, DataError),
        (probabilities(), {"labels": GIVEN + 0.5}, DataError),
        (probabilities(), {"labels": GIVEN[:, None]}, DataError),
        (probabilities()[:, :2] / probabilities()[:, :2].sum(1, keepdims=True), {"data": texts()}, DataError),
        ([probabilities(), probabilities()[:3]], {"labels": GIVEN}, DataError),
        ([probabilities(), np.full((ROWS, 2), 0.5)], {"labels": GIVEN}, DataError),
        ([], {"labels": GIVEN}, ConfigError),
        ("words", {"labels": GIVEN}, ConfigError),
        (object(), {"labels": GIVEN}, ConfigError),
        (None, {"labels": GIVEN, "embeddings": np.full((ROWS, 3), np.nan)}, DataError),
        (None, {"labels": GIVEN, "embeddings": X[:5]}, DataError),
        (probabilities(), {"labels": GIVEN, "embeddings": X[:7]}, DataError),
        (probabilities(), {"labels": GIVEN, "evidence": -1}, ConfigError),
        (np.zeros((0, 3)), {"labels": np.zeros(0, dtype=np.int64)}, DataError),
        (np.ones((ROWS, 1)), {"labels": np.zeros(ROWS, dtype=np.int64)}, DataError),
        (Members(logits=np.zeros((4, 3)), refit_logits=np.zeros((ROWS, 3))), {"labels": GIVEN}, DataError),
        (Members(logits=np.full((ROWS, 3), np.nan), refit_logits=np.zeros((ROWS, 3))), {"labels": GIVEN}, DataError),
    ],
)
def test_refusals(source, more, error: type[Exception]) -> None:
    with pytest.raises(error, match="must"):
        find_label_errors(source, **more)


@pytest.mark.parametrize(
    "reference", [[], np.zeros(ROWS, dtype=bool), np.ones(3, dtype=bool), [ROWS], [-1], [0.5], ["r1"]]
)
def test_references_that_do_not_fit(reference, attribution) -> None:
    with pytest.raises((ConfigError, DataError), match="must"):
        find_label_errors(attribution, data=texts(), reference=reference)


def test_an_attribution_of_other_rows_is_refused(attribution) -> None:
    with pytest.raises((ConfigError, DataError), match="must"):
        find_label_errors(attribution, data=texts().rows(np.arange(50)))
    with pytest.raises((ConfigError, DataError), match="must"):
        find_label_errors(attribution, data=texts(order=np.arange(ROWS)[::-1]))


def test_leave_one_out_predictions_fade_out_where_leverage_is_large() -> None:
    """A network that fits every row: a hundredth of leverage more or less does not turn the list around."""
    torch.manual_seed(0)
    x = torch.randn(60, 8)
    y = torch.randint(0, 2, (60,))

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

    model = wh.Recipe(build=build, learning_rate=1e-2, epochs=60).train(wh.as_examples((x, y)))
    attribution = wh.Influence(curvature=wh.EKFAC(damping=1e-4)).fit(wh.Task(model), (x, y))
    with pytest.warns(UserWarning, match="the mean leverage is"):
        found = wh.find_label_errors(attribution)
    fitted = attribution.leave_one_out().fitted_outputs.softmax(1)
    assert (found["suspicion"] > 0.99).sum() <= (1 - fitted.gather(1, y[:, None]) > 0.5).sum()


def test_a_curvature_is_a_config_and_a_loss_is_not_any_torch_module() -> None:
    with pytest.raises(ConfigError, match=r"such as EKFAC\(\), got 'ekfac'"):
        wh.Influence(curvature="ekfac")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got 'KFAC'"):
        wh.Influence(curvature=wh.KFAC)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='Say "binary_cross_entropy"'):
        wh.Task(nn.Linear(2, 2), loss=nn.BCEWithLogitsLoss())
    attribution = wh.Influence().fit(wh.Task(nn.Linear(2, 2)), (torch.randn(4, 2), torch.tensor([0, 1, 0, 1])))
    with pytest.raises(ConfigError, match="groups must map names to ids, got list"):
        attribution.group_scores([1, 2])  # type: ignore[arg-type]


def test_ids_keep_the_type_that_they_have_elsewhere(attribution) -> None:
    task, rows = attribution.task, attribution.examples.batch(np.arange(len(GIVEN)))
    numbered = attribution.config.fit(task, (rows.inputs, rows.targets))
    frame = find_label_errors(numbered)
    assert frame["id"].dtype.kind == "i" and set(frame["id"]) == set(numbered.ids.tolist())
    assert {type(other) for ids in frame["evidence"] for other in ids} == {int}
    assert len(numbered.examples.rows_of(frame["evidence"].iloc[0])) > 0, "evidence is found among the examples"
    assert {type(one) for one in find_label_errors(attribution)["id"]} == {str}
