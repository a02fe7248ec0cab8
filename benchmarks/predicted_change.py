"""What training again after decisions changes, and what was predicted: the last layer's response and first order.

Bundled rows with 6 % of the labels flipped, audited by the embedded model; then suspects or random rows are relabelled
or left out, the model is trained again, and the change of held-out accuracy is compared.

    python benchmarks/predicted_change.py [--seeds 5] [--threads 2] [--tiny]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import support
import tables
from whence.audit import AgainSettings, Run, audit, open_run, write_run
from whence.audit.again import again
from whence.audit.decided import DecidedSettings, retrain_run
from whence.audit.decisions import Decision
from whence.data import Examples, LabelledData, ReadOptions, read
from whence.evaluate import Margin

WRONG = 0.06
SETS = {"adult": ("adult_1000.csv.gz", "label", 1_000), "sms": ("sms_spam.csv.gz", "label", 1_500)}
MANY, FEW = 94, 20


def main() -> None:
    made = support.parser("Predicted and measured change of accuracy after decisions", threads=2)
    made.add_argument("--seeds", type=int, default=5, help="trainings of every set of rows")
    arguments = made.parse_args()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    seeds = 1 if arguments.tiny else arguments.seeds
    report = support.Report("predicted_change", {"tiny": arguments.tiny, "seeds": seeds, "wrong": WRONG},
                            judged=not arguments.tiny)  # fmt: skip
    for name in ("adult",) if arguments.tiny else SETS:
        with tempfile.TemporaryDirectory() as folder:
            report.figures[name] = measured(name, Path(folder), seeds, arguments.tiny)
    for name, cases in report.figures.items():
        errors = {by: float(np.mean([abs(one[by] - one["change"][0]) for one in cases.values()]))
                  for by in ("response", "first order")}  # fmt: skip
        print(f"{name}: mean error in points", {by: round(100 * error, 2) for by, error in errors.items()})
        report.gate(f"{name}: mean error of the response over that of first order",
                    errors["response"] / errors["first order"], high=1)  # fmt: skip
    report.close(support.results_folder(arguments), arguments.threads, arguments.strict)
    tables.renew(support.results_folder(arguments))


def measured(name: str, folder: Path, seeds: int, tiny: bool) -> dict[str, Any]:
    """Return every case of one set: measured change with its interval, both predictions."""
    run, data, wrong = audited(name, folder, tiny)
    training = AgainSettings(seeds=seeds, cache=folder / "cache")
    found = {}
    for case, decisions in cases(run, data, wrong, tiny).items():
        told = retrain_run(run, data, DecidedSettings(decisions=decisions, training=training))
        found[case] = {"rows": len(decisions), "change": told["ways"][1]["change"], "response": told["predicted"],
                       "first order": first_order(run, data, decisions, training)}  # fmt: skip
        print(f"  {case}: {found[case]}", flush=True)
    return found


def audited(name: str, folder: Path, tiny: bool) -> tuple[Run, LabelledData, np.ndarray]:
    """Return a run of the set, its data, and which labels are wrong [N]."""
    file, label, count = SETS[name]
    frame = pd.read_csv(support.ROOT / "examples" / "data" / file)
    frame = frame.sample(300 if tiny else count, random_state=0).reset_index(drop=True)
    one, other = sorted(frame[label].unique())
    wrong = np.random.default_rng(0).random(len(frame)) < WRONG
    frame.loc[wrong, label] = frame.loc[wrong, label].map({one: other, other: one})
    source, options = folder / "rows.csv", ReadOptions(label=label)
    frame.to_csv(source, index=False)
    data = read(source, options)
    write_run(audit(data, version="benchmark"), folder / "run", source=str(source), options=options)
    return open_run(folder / "run"), data, wrong


def cases(run: Run, data: LabelledData, wrong: np.ndarray, tiny: bool) -> dict[str, tuple[Decision, ...]]:
    """Return decisions by what they are."""
    suspects = np.flatnonzero(np.isin(data.ids.astype(str), run.suspects.query("is_suspect")["id"].astype(str)))
    drawn = np.random.default_rng(1).permutation(len(data))[:MANY]
    found = {
        "suspects relabelled": decided(data, suspects, "relabel"), "suspects left out": decided(data, suspects, "drop"),
        "wrong labels corrected": decided(data, np.flatnonzero(wrong), "relabel"),
        f"{FEW} random rows relabelled": decided(data, drawn[:FEW], "relabel"),
        f"{MANY} random rows relabelled": decided(data, drawn, "relabel"),
        f"{MANY} random rows left out": decided(data, drawn, "drop"),
    }  # fmt: skip
    return dict(list(found.items())[-2:]) if tiny else found


def decided(data: LabelledData, rows: np.ndarray, action: str) -> tuple[Decision, ...]:
    """Return the same decision about some rows; with two classes a new label is the other one."""
    names = data.classes
    return tuple(
        Decision(id=str(data.ids[row]), action=action, given=names[data.labels[row]],
                 label=names[1 - data.labels[row]] if action == "relabel" else None)
        for row in rows.tolist()
    )  # fmt: skip


def first_order(run: Run, data: LabelledData, decisions: tuple[Decision, ...], training: AgainSettings) -> float:
    """Return the change of accuracy by the sum of every decision's predicted change of every margin."""
    prepared = again(run, data, training)
    train, queries = prepared.bench.train, prepared.bench.queries
    assert queries is not None
    model = prepared.recipe.train(train, seed=int(run.manifest["seed"]))
    task = prepared.recipe.task(model, measurement=Margin())
    attribution = prepared.own.attribution.config.fit(task, train)
    places = {str(name): row for row, name in enumerate(data.ids.tolist())}
    new, kept = data.labels.copy(), np.ones(len(data), dtype=bool)
    for one in decisions:
        kept[places[one.id]] = one.action != "drop"
        new[places[one.id]] = data.labels[places[one.id]] if one.label is None else data.classes.index(one.label)
    own = np.array([places[str(name)] for name in train.ids.tolist()])
    asked = np.array([places[str(name)] for name in queries.ids.tolist()])
    queries = queries.with_targets(torch.from_numpy(new[asked])).select(np.flatnonzero(kept[asked]))
    now = margins(task, queries)
    after = now.clone()
    if not kept[own].all():
        after += attribution.group_scores({"gone": train.ids[~kept[own]]}, queries).values[:, 0].double()
    changed = np.flatnonzero((new != data.labels)[own])
    if len(changed):
        right = train.with_targets(torch.from_numpy(new[own])).select(changed)
        after += attribution.replacement_scores(train.ids[changed], right, queries).values.double().sum(1)
    return float(((after > 0).double() - (now > 0).double()).mean())


def margins(task: Any, queries: Examples) -> torch.Tensor:
    with task.evaluating(), torch.no_grad():
        return torch.cat([task.measurements(batch).double() for batch in queries.batches(1024)])


if __name__ == "__main__":
    main()
