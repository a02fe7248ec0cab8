"""Label-error detection: `whence audit` against cleanlab's two scores from 5-fold cross-validation.

Both use the same features, network and recipe (the embedded default of the data's kind), the same rows, labels
and threads, in one process; the time of feature extraction counts for both, imports for neither.

    python benchmarks/label_errors.py [--sets sms mnist …] [--seeds 0 1 2 3 4] [--threads 2] [--fresh] [--tiny]

One result file a set; seeds that it already holds are not repeated unless --fresh.
"""

from __future__ import annotations

import argparse
import time
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, train_test_split

import noisy_sets
import rivals
import support
import tables
import whence as wh
from whence.audit.job import audit
from whence.data import LabelledData
from whence.tasks.defaults import default_for
from whence.uses.label_errors import Members, find_label_errors

LEAST_PRECISION = {"sms": 0.8, "mnist": 0.8}
LEAST_SUGGESTED = {"sms": 0.9, "mnist": 0.9}
LEAST_AP = {"sms": 0.96, "mnist": 0.99, "spambase": 0.89, "ag_news": 0.785}
SUSPICION = ("preparing", "training on all rows", "training on trusted rows")
SCORES = ("self_confidence", "normalized_margin")


# --- the two sides -------------------------------------------------------------------------------------------------


def run_whence(data: LabelledData, seed: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return what `whence audit` finds: every row with its suspicion, and the diagnosis.

    The diagnosis gains the seconds of every stage, so that the training for the held-out accuracy that an audit
    reports (one more fit, which no suspicion needs) can be told apart.
    """
    stages: list[tuple[str, float]] = [("preparing", time.perf_counter())]
    found = audit(data, seed=seed, on_stage=lambda stage, epochs: stages.append((stage, time.perf_counter())))
    stages.append(("end", time.perf_counter()))
    seconds = {name: after - start for (name, start), (_, after) in pairwise(stages)}
    assert found.fits is not None
    members = Members(logits=found.fits.logits, refit_logits=found.fits.refit_logits, judges=found.fits.judges)
    started = time.perf_counter()
    find_label_errors(members, labels=data.labels)
    judging = time.perf_counter() - started
    seconds["suspicion"] = judging + sum(seconds.get(name, 0.0) for name in SUSPICION)
    diagnosis = {key: value for key, value in found.suspects.attrs["diagnosis"].items() if _simple(value)}
    return found.suspects, {**diagnosis, "seconds": seconds}


def _simple(value: Any) -> bool:
    """Whether a value of the diagnosis is short."""
    return value is None or isinstance(value, (bool, int, float, str))


def cross_validate(data: LabelledData, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Return 5-fold out-of-sample probabilities [N, C] of the embedded default, and seconds by stage.

    Features need no labels; they are fitted once, on all rows, which is the cheapest way.
    """
    start = time.perf_counter()
    default = default_for(data, seed=seed)
    inputs = default.preparation.transform(data) if default.inputs is None else default.inputs
    prepared = time.perf_counter() - start
    examples = wh.as_examples((inputs, torch.from_numpy(data.labels)))
    probabilities = np.zeros((len(data), len(data.classes)))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes with fewer rows than folds
        splits = list(folds.split(np.zeros(len(data)), data.labels))
    for train, held in splits:
        model = default.recipe.train(examples.select(train), seed=seed)
        probabilities[held] = predict(default.recipe, model, examples.select(held))
    return probabilities, {"preparing": prepared, "five fits": time.perf_counter() - start - prepared}


def predict(recipe: wh.Recipe, model: torch.nn.Module, examples: wh.Examples) -> np.ndarray:
    """Return a model's probabilities [N, C]."""
    task = recipe.task(model)
    with torch.no_grad():
        parts = [task.forward(task.place(batch)).double().softmax(1).cpu() for batch in examples.batches(1024)]
    return torch.cat(parts).numpy()


def warm_up() -> None:
    """Train and attribute something small: torch imports much of itself at the first optimiser and gradient."""
    toy = wh.as_examples((torch.eye(4), torch.tensor([0, 1, 0, 1])))
    recipe = wh.Recipe(build=lambda: torch.nn.Linear(4, 2), epochs=1)
    wh.Influence().fit(recipe.task(recipe.train(toy)), toy).self_scores()


# --- one seed ------------------------------------------------------------------------------------------------------


def measure(data: LabelledData, noise: noisy_sets.Noisy, seed: int) -> dict[str, Any]:
    """Run both sides on the noisy labels and return all figures of the seed."""
    noisy = data.with_labels(noise.labels)
    clocks = {"whence": support.Clock(), "cross_validation": support.Clock()}
    found: dict[str, Any] = {}
    for side in ("whence", "cross_validation") if seed % 2 == 0 else ("cross_validation", "whence"):
        with clocks[side]:
            found[side] = run_whence(noisy, seed) if side == "whence" else cross_validate(noisy, seed)
    suspects, diagnosis = found["whence"]
    probabilities, stages = found["cross_validation"]
    suspects = by_row(suspects, noisy)
    precision = {"suspicion": average_precision_score(noise.wrong, suspects["suspicion"])}
    for method in SCORES:
        quality = rivals.label_quality(noisy.labels, probabilities, method)
        precision[method] = average_precision_score(noise.wrong, 1 - quality)
    signals = {
        name: average_precision_score(noise.wrong, column)
        for name, column in suspects.select_dtypes("number").items()
        if name not in ("suspicion", "rank") and np.isfinite(column).all()
    }
    return {
        "seed": seed,
        "rows": len(noisy),
        "wrong": int(noise.wrong.sum()),
        "average_precision": precision,
        "average_precision_of_signals": signals,
        **count(suspects, noise, noisy.classes),
        "stages": {"whence": diagnosis.pop("seconds"), "cross_validation": stages},
        "seconds": {side: clock.wall for side, clock in clocks.items()},
        "cpu_seconds": {side: clock.cpu for side, clock in clocks.items()},
        "diagnosis": diagnosis,
        "code": support.code_fingerprint(),
    }


def by_row(suspects: pd.DataFrame, data: LabelledData) -> pd.DataFrame:
    """Return the suspects in the data's row order; every row must be there once."""
    suspects = pd.DataFrame(suspects)
    suspects.attrs = {}
    placed = suspects.set_index("id").loc[data.ids]
    assert len(placed) == len(data) == len(suspects)
    return placed


def count(suspects: pd.DataFrame, noise: noisy_sets.Noisy, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return how many rows were called suspects, and how right that was."""
    called = suspects["is_suspect"].to_numpy(dtype=bool)
    hits = called & noise.wrong
    suggested = suspects["suggested_label"].to_numpy()[hits] == np.array(classes)[noise.true[hits]]
    return {
        "suspects": int(called.sum()),
        "suspect_ratio": called.sum() / max(1, noise.wrong.sum()),
        "precision": hits.sum() / max(1, called.sum()),
        "recall": hits.sum() / max(1, noise.wrong.sum()),
        "suggested_right": suggested.mean() if len(suggested) else None,
    }


def measure_clean(data: LabelledData, seed: int) -> dict[str, Any]:
    """Return how many rows are called suspects where no label was changed."""
    called = by_row(run_whence(data, seed)[0], data)["is_suspect"].to_numpy(dtype=bool)
    return {"seed": seed, "suspects": int(called.sum()), "share": called.mean(), "code": support.code_fingerprint()}


def measure_accuracy(chosen: noisy_sets.NoisySet, seed: int) -> dict[str, Any]:
    """Train the base model and logistic regressions on noisy labels; return their accuracy on clean, held-out rows."""
    data, noise, test = chosen.data, chosen.noise(seed), chosen.test
    train = data.with_labels(noise.labels)
    if test is None:
        kept, held = train_test_split(np.arange(len(data)), test_size=0.2, random_state=seed, stratify=data.labels)
        train, test = train.rows(kept), data.rows(held)
    default = default_for(train, seed=seed)
    inputs, held_inputs = default.preparation.transform(train), default.preparation.transform(test)
    model = default.recipe.train(wh.as_examples((inputs, torch.from_numpy(train.labels))), seed=seed)
    probabilities = predict(default.recipe, model, wh.as_examples((held_inputs, torch.from_numpy(test.labels))))
    accuracy = {"seed": seed, "base_model": (probabilities.argmax(1) == test.labels).mean()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        accuracy |= rivals.logistic_regressions(train, test, (inputs, held_inputs))
    return {**accuracy, "majority": (test.labels == np.bincount(train.labels).argmax()).mean()}


# --- one set -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure the sets that were asked for, one after the other."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    folder = support.results_folder(arguments)
    warm_up()
    failed = 0
    for name in arguments.sets:
        report = one_set(name, arguments)
        report.close(folder, arguments.threads, strict=False)
        failed += report.failed
    tables.renew(folder)
    if arguments.strict and failed:
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=2)
    made.add_argument("--sets", nargs="+", choices=noisy_sets.NAMES, default=None)
    made.add_argument("--seeds", nargs="+", type=int, default=None, help="default 0 1 2 3 4")
    made.add_argument("--fresh", action="store_true", help="measure again what the result files hold")
    made.add_argument("--no-accuracy", action="store_true", help="leave out the held-out accuracies")
    arguments = made.parse_args()
    arguments.sets = arguments.sets or list(noisy_sets.TINY_NAMES if arguments.tiny else noisy_sets.NAMES)
    arguments.seeds = arguments.seeds or ([0] if arguments.tiny else [0, 1, 2, 3, 4])
    return arguments


def one_set(name: str, arguments: argparse.Namespace) -> support.Report:
    """Measure one set; after every seed the result file is renewed."""
    chosen = noisy_sets.load(name, arguments.tiny)
    settings = {"set": name, "seeds": arguments.seeds, "threads": arguments.threads, "noise": chosen.description}
    report = support.Report(f"label_errors-{name}", settings, judged=not arguments.tiny)
    folder = support.results_folder(arguments)
    earlier = None if folder is None or arguments.fresh else support.read_json(folder / f"{report.name}.json")
    figures = report.figures = {"runs": {}, "clean": {}, "accuracy": {}} if earlier is None else earlier["figures"]
    data = chosen.data
    print(f"{name}: {len(data)} rows, {data.kind}, {len(data.classes)} classes; {chosen.description}", flush=True)

    def todo(kind: str, seeds: list[int]) -> list[int]:
        return [seed for seed in seeds if str(seed) not in figures[kind]]

    def keep(kind: str, seed: int, entry: dict[str, Any]) -> None:
        figures[kind][str(seed)] = entry
        if folder is not None:
            support.write_json(folder / f"{report.name}.json", report.content(arguments.threads))

    for seed in todo("runs", arguments.seeds):
        keep("runs", seed, entry := measure(chosen.data, chosen.noise(seed), seed))
        show(entry)
    for seed in todo("clean", arguments.seeds if chosen.injected else arguments.seeds[:1]):
        keep("clean", seed, entry := measure_clean(chosen.data, seed))
        print(f"  seed {seed}, true labels: {entry['suspects']} suspects ({entry['share']:.2%})", flush=True)
    for seed in [] if arguments.no_accuracy else todo("accuracy", arguments.seeds if chosen.injected else [0]):
        keep("accuracy", seed, entry := measure_accuracy(chosen, seed))
        parts = [f"{key} {value:.4f}" for key, value in entry.items() if key != "seed"]
        print(f"  seed {seed}, held-out accuracy: {', '.join(parts)}", flush=True)
    judge(report, name, chosen.injected, arguments.seeds)
    return report


def show(entry: dict[str, Any]) -> None:
    """Print one seed."""
    parts = [f"{name} {value:.4f}" for name, value in entry["average_precision"].items()]
    times = [f"{name} {value:.1f} s" for name, value in entry["seconds"].items()]
    right = "" if entry["suggested_right"] is None else f", suggestions right {entry['suggested_right']:.3f}"
    print(
        f"  seed {entry['seed']}: AP {', '.join(parts)}; {', '.join(times)}; {entry['suspects']} suspects of "
        f"{entry['wrong']} wrong, precision {entry['precision']:.3f}{right}",
        flush=True,
    )


def judge(report: support.Report, name: str, injected: bool, seeds: list[int]) -> None:
    """Hold the figures of the asked seeds against what the library promises."""
    figures = report.figures
    runs = [figures["runs"][str(seed)] for seed in seeds]
    if len({run["code"] for run in runs}) > 1:
        print("  the seeds were measured with different versions of the code; use --fresh for one version")
    ours = np.array([run["average_precision"]["suspicion"] for run in runs])
    report.gate(f"{name}: mean average precision of suspicion", float(ours.mean()), low=LEAST_AP.get(name, 0.0))
    for method in SCORES:
        theirs = np.array([run["average_precision"][method] for run in runs])
        mean, low, high = interval(ours - theirs)
        figures[f"gain over {method}"] = {"mean": mean, "low": low, "high": high, "theirs": theirs.mean()}
        what = f"{name}: suspicion above {method} by {mean:.4f} [{low:.4f}, {high:.4f}], lower end"
        report.gate(what, low if len(runs) > 1 else None, low=0.0)
    totals = {side: sum(run["seconds"][side] for run in runs) for side in ("whence", "cross_validation")}
    judged = sum(run["stages"]["whence"]["suspicion"] for run in runs)
    what = f"{name}: time of the suspicion (features, both fits, judging) over that of cross-validation"
    report.gate(what, judged / totals["cross_validation"], high=0.5)
    figures["time of the whole audit"] = totals["whence"] / totals["cross_validation"]
    print(
        "  the whole audit, with held-out accuracy, influence, evidence, neighbours and duplicates: "
        f"{figures['time of the whole audit']:.3f}"
    )
    ratios = [run["suspect_ratio"] for run in runs]
    report.gate(f"{name}: suspects over wrong labels, least of the seeds", min(ratios), low=0.7)
    report.gate(f"{name}: suspects over wrong labels, most of the seeds", max(ratios), high=1.3)
    for key, bounds in (("precision", LEAST_PRECISION), ("suggested_right", LEAST_SUGGESTED)):
        if name in bounds:
            least = min(float("nan") if run[key] is None else run[key] for run in runs)
            report.gate(f"{name}: {key}, least of the seeds", least, low=bounds[name])
    clean = [entry["share"] for seed, entry in figures["clean"].items() if int(seed) in seeds]
    if injected:
        report.gate(f"{name}: share of suspects among true labels, most of the seeds", max(clean), high=0.02)
    accuracy = list(figures["accuracy"].values())
    if accuracy:
        base = np.mean([entry["base_model"] for entry in accuracy])
        kinds = [key for key in accuracy[0] if key.startswith("logistic")]
        best = max(np.mean([entry[key] for entry in accuracy]) for key in kinds)
        what = f"{name}: held-out accuracy {base:.4f} minus that of the better tuned logistic regression {best:.4f}"
        report.gate(what, float(base - best), low=0.0)


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and its 95 % t-interval; of a single seed the interval is unknown."""
    mean, n = float(differences.mean()), len(differences)
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


if __name__ == "__main__":
    main()
