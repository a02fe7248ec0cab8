"""Turn the result files into benchmarks/README.md.

    python benchmarks/tables.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import support
from attack_tables import attacks
from crossloss_model_tables import crossloss_models
from crossloss_word_tables import crossloss_words
from detector_tables import detectors
from explorer_tables import explorers
from influence_tables import influences
from matrix_tables import brittleness, matrix
from pieces import machine, table
from predicted_tables import predicted
from speed_tables import speed
from truth_tables import truth
from turnover_tables import turnover

_HEAD = """\
<!-- Written by benchmarks/tables.py from benchmarks/results/*.json. Do not edit. -->
# Benchmarks

Every figure below comes from a command of this folder, on real data, side by side in one run. Peers are not a
dependency of the library: they have their own `requirements.txt`, and whatever is not installed is left out.

```
pip install -r benchmarks/requirements.txt
export WHENCE_DATA=…/data                       # the folder with mnist/, sms_spam/, …
make bench THREADS=1                            # speed beside five libraries (2-3 hours), then THREADS=2
python benchmarks/speed.py --models mlp --only whence-ekfac     # one entry of it, merged into the results
python benchmarks/matrix.py                     # task × method × metric: whence, baselines, peers (15 minutes)
make reproduce                                  # oracle checks, retraining, label errors against cleanlab's scores
python benchmarks/label_errors.py --sets sms    # one part alone
```

`--tiny` runs any script on a few hundred bundled rows, to see that it works; nothing is judged then.
"""


def renew(folder: Path | None) -> None:
    """Write the README next to a folder of results."""
    if folder is None or not folder.is_dir():
        return
    results = {path.stem: support.read_json(path) for path in sorted(folder.glob("*.json"))}
    truths = [*_oracles(results), *truth(results), *matrix(results, folder), *brittleness(results)]
    truths += [*influences(results), *attacks(results), *detectors(results)]
    truths += [*turnover(results), *crossloss_models(results), *crossloss_words(results)]
    parts = [_HEAD, *speed(results, folder), *truths, *_label_errors(results)]
    parts += [*explorers(results), *predicted(results)]
    parts += _gates(results)
    (folder.parent / "README.md").write_text("\n".join(parts).rstrip() + "\n", "utf-8")


def _oracles(results: dict[str, Any]) -> Iterable[str]:
    """Correctness tables."""
    if dense := results.get("oracle_dense"):
        yield "## Factored scores against dense computation\n"
        yield (
            "The MLP above; the dense side multiplies every gradient out in float64 with plain autograd. "
            f"{machine(dense)}\n"
        )
        header = ["", "queries", "median r", "least r", "relative error", "median query's", "worst query's"]
        keys = ("r_median", "r_least", "relative_error", "relative_error_median", "relative_error_worst")
        found = {name: f for name, f in dense["figures"].items() if isinstance(f, dict) and "r_median" in f}
        formats = [lambda v: f"{v:.5f}"] * 2 + [lambda v: f"{v:.2g}"] * 3
        yield table(header, [
            [name, str(f["queries"]), *(show(f[key]) for key, show in zip(keys, formats, strict=True))]
            for name, f in found.items()
        ])  # fmt: skip
        ranks = ", ".join(
            f"layer {name}: {layer['rank']} (residual {layer['rank_residual']:.3f})"
            for name, layer in dense["figures"]["EK-FAC ranks"].items()
        )
        yield f"\nRanks of the factored grid: {ranks}.\n"
    if loo := results.get("oracle_loo"):
        yield "## Predicted against real leave-one-out\n"
        s = loo["settings"]
        yield (
            f"Softmax regression on 10,000 MNIST rows, weight decay {s['weight_decay']}, `Exact(damping=0)`; "
            f"{s['refits']} rows left out one at a time and the model trained again by warm-started L-BFGS to a "
            f"gradient norm of {s['gradient_norm']:g}. Slope and intercept (nats) are of actual on predicted. "
            "*Unresolved* is the relative change of the actual differences by one more Newton step of every refit. "
            f"{machine(loo)}\n"
        )
        header = ["query; score; rows", "n", "r", "slope", "intercept", "largest change, nats", "unresolved"]
        yield table(header, [
            [name, str(f["rows"]), f"{f['r']:.5f}", f"{f['slope']:.4f}", f"{f['intercept']:.2g}",
             f"{f['largest_actual']:.3g}", f"{f['unresolved']:.1g}"]
            for name, f in loo["figures"].items() if isinstance(f, dict)
        ]) + "\n"  # fmt: skip
    if found := results.get("oracle_invariance"):
        yield "## Batch size and order\n"
        worst = {
            kind: max(g["value"] for g in found["gates"] if f"{kind}:" in g["gate"] and "relative" in g["gate"])
            for kind in ("float64", "float32")
        }
        yield (
            "Scores, self-scores and leverage-corrected self-scores by id, for batches of 1, 7, 256 and all rows and "
            "shuffled rows, MLP and CNN, all curvatures: the largest relative difference is "
            f"{worst['float64']:.1g} in float64 and {worst['float32']:.1g} in float32.\n"
        )


def _label_errors(results: dict[str, Any]) -> Iterable[str]:
    """One row a set."""
    found = {name.partition("-")[2]: r for name, r in results.items() if name.startswith("label_errors")}
    if not found:
        return
    yield "## Label errors\n"
    yield (
        "`whence audit` against cleanlab's two scores from 5-fold out-of-sample probabilities of the same features, "
        "network and recipe. 10 % of the labels flipped to another class; for CIFAR-10N the errors are human. Average "
        "precision against the wrong labels, mean over the seeds; gains are paired over the seeds with a 95 % "
        f"t-interval. {machine(next(iter(found.values())))}\n"
    )
    rows, counts = [], []
    for name, result in found.items():
        figures = result["figures"]
        runs = list(figures["runs"].values())
        if not runs:
            continue
        rows.append([name, str(len(runs)), f"{_mean(runs, 'average_precision', 'suspicion'):.4f}",
                     *(_gain(figures, runs, method) for method in ("self_confidence", "normalized_margin")),
                     _seconds(runs)])  # fmt: skip
        ratios = [run["suspect_ratio"] for run in runs]
        clean = [entry["share"] for entry in figures["clean"].values()]
        accuracy = list(figures["accuracy"].values())
        logistic = [f"{np.mean([a[key] for a in accuracy]):.4f}" for key in (accuracy[0] if accuracy else {})
                    if key.startswith("logistic")]  # fmt: skip
        counts.append([
            name, f"{runs[0]['wrong']}", f"{min(ratios):.2f} – {max(ratios):.2f}",
            *(_known(run[key] for run in runs) for key in ("precision", "recall", "suggested_right")),
            f"{max(clean):.2%}" if clean else "",
            f"{np.mean([a['base_model'] for a in accuracy]):.4f}" if accuracy else "", " / ".join(logistic),
        ])  # fmt: skip
    header = ["", "seeds", "suspicion", "5-fold self-confidence (gain)", "5-fold normalised margin (gain)", "seconds"]
    yield table(header, rows)
    yield (
        "\nThe suspects above the threshold: their number over the number of wrong labels (least and most of the "
        "seeds), their precision and recall, how often the suggested label of a found error is the true one, and the "
        "largest share of rows called suspects when no label is changed. Last, accuracy on clean held-out rows after "
        "training on the noisy ones: the base model, and tuned logistic regression on the usual features / on the "
        "base model's features.\n"
    )
    header = ["", "wrong", "suspects / wrong", "precision", "recall", "suggestion right", "suspects at 0 % noise",
              "base model", "logistic regression"]  # fmt: skip
    yield table(header, counts) + "\n"


def _gain(figures: dict[str, Any], runs: list[dict[str, Any]], method: str) -> str:
    """The rival's mean and the paired gain over it."""
    theirs = f"{_mean(runs, 'average_precision', method):.4f}"
    gain = figures.get(f"gain over {method}")
    if gain is None or gain["low"] is None:
        return theirs
    return f"{theirs} ({gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}])"


def _seconds(runs: list[dict[str, Any]]) -> str:
    """Mean seconds of both sides."""
    ours, theirs = (_mean(runs, "seconds", side) for side in ("whence", "cross_validation"))
    return f"{ours:.1f} / {theirs:.1f} ({ours / theirs:.2f})"


def _known(values: Iterable[float | None]) -> str:
    """Mean of the values that are known: without a suspect, no suggestion is right or wrong."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f}" if known else ""


def _mean(runs: list[dict[str, Any]], group: str, key: str) -> float:
    """Mean of one entry over the runs."""
    return float(np.mean([run[group][key] for run in runs]))


def _gates(results: dict[str, Any]) -> Iterable[str]:
    """Every gate, failures first."""
    entries = [(name, gate) for name, result in results.items() for gate in result["gates"]]
    if not entries:
        return
    yield "## Gates\n"
    failed = [(name, gate) for name, gate in entries if gate["verdict"] == "FAIL"]
    passed = sum(gate["verdict"] == "PASS" for _, gate in entries)
    yield f"{passed} pass, {len(failed)} fail, {len(entries) - passed - len(failed)} were not judged.\n"
    if failed:
        yield table(["failed", "measured", "at least", "at most"], [
            [gate["gate"], *("" if gate[key] is None else f"{gate[key]:.4g}" for key in ("value", "low", "high"))]
            for _, gate in failed
        ])  # fmt: skip


if __name__ == "__main__":
    renew(support.RESULTS)
