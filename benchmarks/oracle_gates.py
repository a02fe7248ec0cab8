"""Correctness at full size: EK-FAC against dense computation, influence against real retraining, invariances.

    python benchmarks/oracle_gates.py [--threads 2] [--parts dense loo invariance] [--tiny]
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import oracles
import support
import tables
import whence as wh
from workloads import mlp

PARTS = ("dense", "loo", "invariance")
WEIGHT_DECAY = 0.01
Pair = tuple[Any, Any]
GRADIENT_NORM = 1e-7


def main() -> None:
    """Run the parts that were asked for."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    rows = support.images(arguments.tiny)
    folder = support.results_folder(arguments)
    for part in arguments.parts:
        settings = {"tiny": arguments.tiny, "threads": arguments.threads}
        report = support.Report(f"oracle_{part}", settings, judged=not arguments.tiny)
        with support.Clock() as clock:
            {"dense": dense, "loo": leave_one_out, "invariance": invariance}[part](report, rows, arguments)
        report.figures["seconds"] = clock.wall
        report.close(folder, arguments.threads, arguments.strict)
    tables.renew(folder)


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=2)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--random-queries", type=int, default=2, help="queries of the retraining check drawn at random")
    return made.parse_args()


# --- factored against dense ----------------------------------------------------------------------------------------


def dense(report: support.Report, rows: dict[str, np.ndarray], arguments: argparse.Namespace) -> None:
    """Compare the factored scores of an MLP with products of gradients that are multiplied out, in float64."""
    model = trained_mlp(rows, arguments.tiny)
    double = copy.deepcopy(model).double()
    count = 20 if arguments.tiny else 100
    x, y = torch.from_numpy(rows["x"]), torch.from_numpy(rows["y"])
    xq, yq = torch.from_numpy(rows["xt"][:count]), torch.from_numpy(rows["yt"][:count])
    few = slice(0, count // 5)
    wide = (x.double(), y)
    queries = oracles.per_example(double, xq.double(), yq)
    some = {name: g[few] for name, g in queries.items()}
    ekfac = wh.Influence(curvature=wh.EKFAC()).fit(wh.Task(model), (x, y))
    bases = stored_bases(ekfac)
    truth = dense_scores(double, wide, {
        "EK-FAC, its own grid": oracles.on_grid(queries, bases),
        "EK-FAC, everything recomputed": oracles.EigenGrid(double, *wide).precondition(some),
        "K-FAC": oracles.split_kfac(double, *wide, some),
        "identity": some,
    })  # fmt: skip
    configs = {
        "EK-FAC, everything recomputed": wh.EKFAC(fisher="empirical"),
        "K-FAC": wh.KFAC(fisher="empirical"),
        "identity": wh.Identity(),
    }
    own = compare(report, "EK-FAC, its own grid", ekfac.scores((xq, yq)).values, truth)
    report.figures["EK-FAC ranks"] = ekfac.summary()["curvature"]["layers"]
    report.gate("EK-FAC factored against its dense eigen-grid: median r over queries", own["r_median"], low=0.999)
    for name, curvature in configs.items():
        attribution = wh.Influence(curvature=curvature).fit(wh.Task(model), (x, y))
        found = compare(report, name, attribution.scores((xq[few], yq[few])).values, truth)
        if name.startswith("EK"):
            report.gate(f"{name}: median r over queries", found["r_median"], low=0.999)
        else:
            report.gate(f"{name} against dense, float32, relative error", found["relative_error"], high=1e-5)
            attribution = wh.Influence(curvature=curvature).fit(wh.Task(double), wide)
            scores = attribution.scores((xq[few].double(), yq[few])).values
            found = compare(report, name, scores, truth, "float64")
            worst = found["relative_error_worst"]
            report.gate(f"{name} against dense, float64, relative error of the worst query", worst, high=1e-5)
    self_error(report, ekfac, double, bases, wide)


def self_error(
    report: support.Report, attribution: Any, double: nn.Sequential, bases: dict[str, Any], wide: Pair
) -> None:
    """Compare self-scores with the quadratic form multiplied out, on the first rows."""
    x, y = wide[0][:200], wide[1][:200]
    parts = []
    for _, gradients in oracles.chunked(double, x, y, 50):
        parts.append((oracles.flat(gradients) * oracles.flat(oracles.on_grid(gradients, bases))).sum(1))
    truth = torch.cat(parts).numpy() / len(wide[0])
    ours = np.asarray(attribution.self_scores())[: len(truth)]
    error = float(np.linalg.norm(ours - truth) / np.linalg.norm(truth))
    report.gate("EK-FAC self-scores against dense (first 200 rows), relative error", error, high=1e-4)


def dense_scores(double: nn.Sequential, train: Pair, queries: dict[str, Any]) -> dict[str, Tensor]:
    """Return gᵀ H⁻¹ g / N of every set of preconditioned queries [Q, N]."""
    flattened = {name: oracles.flat(gradients) for name, gradients in queries.items()}
    parts: dict[str, list[Tensor]] = {name: [] for name in queries}
    for _, gradients in oracles.chunked(double, *train):
        g = oracles.flat(gradients)
        for name, query in flattened.items():
            parts[name].append(query @ g.T)
    return {name: torch.cat(found, 1) / len(train[0]) for name, found in parts.items()}


def stored_bases(attribution: Any) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return eigenvectors and grid of every layer, as the attribution would save them."""
    settings, tensors = attribution.preconditioner.state()
    names = settings["layers"]
    return {
        name: tuple(tensors[f"{name}/{key}"].double() for key in ("q_g", "q_a", "grid")) for name in names
    }  # type: ignore[misc]


def compare(
    report: support.Report, name: str, values: Tensor, truth: dict[str, Tensor], kind: str = "float32"
) -> dict[str, float]:
    """Return r per query (median, least) and the relative error of the norm (all, median and worst query)."""
    ours, theirs = values.double(), truth[name]
    r = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(ours.numpy(), theirs.numpy(), strict=True)]
    relative = (ours - theirs).norm(dim=1) / theirs.norm(dim=1)
    found = {
        "queries": len(r),
        "r_median": float(np.median(r)),
        "r_least": min(r),
        "relative_error": float((ours - theirs).norm() / theirs.norm()),
        "relative_error_median": float(relative.median()),
        "relative_error_worst": float(relative.max()),
    }
    report.figures[f"{name}, {kind}"] = found
    print(f"  {name}, {kind}: " + ", ".join(f"{key} {value:.3g}" for key, value in found.items() if key != "r_median"))
    return found


def trained_mlp(rows: dict[str, np.ndarray], tiny: bool) -> nn.Sequential:
    """Return the MLP of the speed benchmark."""
    widths = [784, 32, 32, 10] if tiny else [784, 256, 256, 10]
    recipe = wh.Recipe(build=lambda: mlp(widths), learning_rate=1e-3, epochs=2 if tiny else 5)
    model = recipe.train(wh.as_examples((rows["x"], rows["y"])), seed=0)
    assert isinstance(model, nn.Sequential)
    return model


# --- predicted against real leave-one-out --------------------------------------------------------------------------


def leave_one_out(report: support.Report, rows: dict[str, np.ndarray], arguments: argparse.Namespace) -> None:
    """Compare predicted changes of test losses with retraining softmax regression without single rows."""
    if arguments.tiny:  # 16 pixels: the dense curvature of 170 parameters is instant
        rows = {name: a.reshape(-1, 28, 28)[:, 3::7, 3::7].reshape(len(a), -1) if a.ndim == 2 else a
                for name, a in rows.items()}  # fmt: skip
    width, near = rows["x"].shape[1], 5 if arguments.tiny else 30
    recipe = wh.Recipe(
        build=lambda: nn.Linear(width, 10), optimizer="lbfgs", weight_decay=WEIGHT_DECAY, gradient_norm=GRADIENT_NORM
    )
    examples = wh.as_examples((rows["x"].astype(np.float64), rows["y"]))
    base = recipe.train(examples)
    attribution = wh.Influence(curvature=wh.Exact(damping=0)).fit(recipe.task(base), examples)
    print(f"  fitted: {attribution.summary()['curvature']}, ‖∇J‖ {attribution.gradient_norm:.2g} of a mean gradient")
    chosen = choose_queries(base, rows, arguments.random_queries)
    xq, yq = torch.from_numpy(rows["xt"][chosen]).double(), torch.from_numpy(rows["yt"][chosen])
    predicted = {
        "plain": attribution.scores((xq, yq)).values.numpy(),
        "leverage-corrected": attribution.scores((xq, yq), leverage_corrected=True).values.numpy(),
    }
    generator = np.random.default_rng(0)
    random = generator.choice(len(examples), near, replace=False)
    top = [np.argsort(-np.abs(scores), kind="stable")[:near] for scores in predicted["plain"]]
    wanted = np.unique(np.concatenate([random, *top]))
    newton = Newton(attribution, rows)
    actual, polished = refits(recipe, examples, base, newton, wanted, (xq, yq))
    report.settings |= {"weight_decay": WEIGHT_DECAY, "gradient_norm": GRADIENT_NORM, "refits": len(wanted)}
    for number, query in enumerate(chosen):
        sets = {"top": top[number], "random": np.setdiff1d(random, top[number])}
        sets["all"] = np.concatenate(list(sets.values()))
        name = f"test image {query} (class {rows['yt'][query]}, loss {float(losses(base, xq, yq)[number]):.3g})"
        for kind, scores in predicted.items():
            for part, members in sets.items():
                at = np.searchsorted(wanted, members)
                real = actual[number, at]
                fit = line(scores[number, members], real, polished[number, at])
                report.figures[f"{name}; {kind}; {part}"] = fit
                print(f"  {name}; {kind}; {part}: " + ", ".join(f"{key} {value:.4g}" for key, value in fit.items()))
        for kind, low, high in (("plain", 0.95, 1.08), ("leverage-corrected", 0.98, 1.02)):
            fit = report.figures[f"{name}; {kind}; all"]
            report.gate(f"{name}, {kind}: r with retraining", fit["r"], low=0.99)
            report.gate(f"{name}, {kind}: slope of actual on predicted", fit["slope"], low=low, high=high)


def choose_queries(base: nn.Module, rows: dict[str, np.ndarray], random: int) -> np.ndarray:
    """Return the test image of highest loss among the first 100 (as Koh & Liang 2017 do) and some random ones."""
    values = losses(base, torch.from_numpy(rows["xt"][:100]).double(), torch.from_numpy(rows["yt"][:100]))
    others = np.random.default_rng(1).choice(len(rows["xt"]), random, replace=False)
    return np.array(list(dict.fromkeys([int(values.argmax()), *others.tolist()])))


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return every example's cross-entropy."""
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y, reduction="none")


class Newton:
    """One Newton step with the full data's Hessian: what a refit that stops early still misses."""

    def __init__(self, attribution: Any, rows: dict[str, np.ndarray]) -> None:
        self.inverse = attribution.preconditioner.state()[1]["inverse"]
        self.x, self.y = torch.from_numpy(rows["x"]).double(), torch.from_numpy(rows["y"])

    def step(self, model: nn.Module, without: int | None) -> nn.Module:
        """Return the model after the step on the objective without a row."""
        moved = copy.deepcopy(model)
        weights = torch.ones(len(self.x), dtype=torch.float64)
        if without is not None:
            weights[without] = 0.0
        values = nn.functional.cross_entropy(moved(self.x), self.y, reduction="none")
        parameters = [moved.weight, moved.bias]
        grown = torch.autograd.grad((weights * values).sum() / weights.sum(), parameters)
        full = [g + WEIGHT_DECAY * p.detach() for g, p in zip(grown, parameters, strict=True)]
        joined = torch.cat([full[0], full[1][:, None]], 1)
        change = (self.inverse @ joined.reshape(-1)).reshape(joined.shape)
        with torch.no_grad():
            moved.weight -= change[:, :-1]
            moved.bias -= change[:, -1]
        return moved


def refits(
    recipe: wh.Recipe, examples: Any, base: nn.Module, newton: Newton, wanted: np.ndarray, queries: Pair
) -> tuple[np.ndarray, np.ndarray]:
    """Return the real changes of the queries' losses [Q, rows], as trained and after one more Newton step each."""
    before, exact = losses(base, *queries), losses(newton.step(base, None), *queries)
    actual, polished = [], []
    for done, row in enumerate(wanted.tolist()):
        model = recipe.train(examples, exclude=[row], start=base)
        actual.append((losses(model, *queries) - before).numpy())
        polished.append((losses(newton.step(model, row), *queries) - exact).numpy())
        if (done + 1) % 20 == 0:
            print(f"  {done + 1} of {len(wanted)} refits", flush=True)
    return np.stack(actual, 1), np.stack(polished, 1)


def line(predicted: np.ndarray, actual: np.ndarray, polished: np.ndarray) -> dict[str, float]:
    """Return r, slope and intercept of actual on predicted, and how well the refits resolve the differences."""
    slope, intercept = np.polyfit(predicted, actual, 1)
    return {
        "r": float(np.corrcoef(predicted, actual)[0, 1]),
        "slope": float(slope),
        "intercept": float(intercept),
        "rows": len(actual),
        "largest_actual": float(np.abs(actual).max()),
        "r_converged": float(np.corrcoef(predicted, polished)[0, 1]),
        "slope_converged": float(np.polyfit(predicted, polished, 1)[0]),
        "unresolved": float(np.linalg.norm(actual - polished) / np.linalg.norm(polished)),
    }


# --- batch size and order ------------------------------------------------------------------------------------------


def invariance(report: support.Report, rows: dict[str, np.ndarray], arguments: argparse.Namespace) -> None:
    """Scores by id must not depend on batch size or order, and the model must come back bit-identical."""
    count = 16 if arguments.tiny else 500
    x, y, xq, yq = rows["x"][:count], rows["y"][:count], rows["xt"][: min(count, 20)], rows["yt"][: min(count, 20)]
    square = lambda a: a.reshape(-1, 1, 28, 28)  # noqa: E731
    cases = {
        "MLP": (trained_mlp(rows, arguments.tiny), x, xq),
        "CNN": (trained_cnn(rows, arguments.tiny), square(x), square(xq)),
    }
    curvatures = {
        "EK-FAC": wh.EKFAC(), "K-FAC": wh.KFAC(), "K-FAC, joint damping": wh.KFAC(split=False),
        "identity": wh.Identity(), "exact, last layer": wh.Exact(damping=wh.Relative(0.1)),
    }  # fmt: skip
    if arguments.tiny:
        cases.pop("MLP")
        curvatures = {name: curvatures[name] for name in ("EK-FAC", "exact, last layer")}
    for case, (model, inputs, queries) in cases.items():
        for kind, bound in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
            for name, curvature in curvatures.items():
                exact = name.startswith("exact")
                if exact and kind == torch.float32:
                    continue  # Exact computes in float64 whatever the model
                model = model.to(kind)
                before = {key: value.clone() for key, value in model.state_dict().items()}
                flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
                config = {"curvature": curvature, "layers": "last" if exact else None}
                width = str(kind).removeprefix("torch.")
                worst = spread(model, config, (inputs.astype(width), y), (queries.astype(width), yq))
                same = all(torch.equal(before[key], value) for key, value in model.state_dict().items())
                same = same and flags == [(p.requires_grad, p.grad is None) for p in model.parameters()]
                label = f"{case}, {name}, {width}"
                report.gate(f"{label}: relative difference over batch sizes and orders", worst, high=bound)
                report.gate(f"{label}: model bit-identical", float(same), low=1)


def spread(
    model: nn.Module, config: dict[str, Any], train: Pair, queries: Pair
) -> float:
    """Return the largest relative difference of scores, self-scores and corrected ones from one batch of all rows."""
    count = len(train[0])
    order = np.random.default_rng(0).permutation(count)
    found = []
    for size, rows in ((count, np.arange(count)), (1, np.arange(count)), (7, order), (256, order), (count, order)):
        examples = wh.as_examples((train[0][rows], train[1][rows]), ids=rows)
        attribution = wh.Influence(batch_size=size, **config).fit(wh.Task(model), examples)
        back = np.argsort(rows)
        found.append([
            attribution.scores(queries).values.numpy()[:, back],
            np.asarray(attribution.self_scores())[back],
            np.asarray(attribution.self_scores(leverage_corrected=True))[back],
        ])  # fmt: skip
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b)) for other in found[1:]
        for a, b in zip(other, found[0], strict=True)
    )


def trained_cnn(rows: dict[str, np.ndarray], tiny: bool) -> nn.Module:
    """Return a small convolutional network with batch normalisation."""
    def make() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 6, 5, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 12, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(300, 10),
        )  # fmt: skip

    some = slice(0, 2000)
    examples = wh.as_examples((rows["x"][some].reshape(-1, 1, 28, 28), rows["y"][some]))
    return wh.Recipe(build=make, learning_rate=2e-3, epochs=1 if tiny else 4).train(examples)


if __name__ == "__main__":
    main()
