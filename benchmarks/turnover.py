"""Turn-over dropout: what leaks, what it costs, and whether its scores find, track and mend anything.

    python benchmarks/turnover.py [--threads 1] [--parts leaks cost noise curves cleansing loo] [--tiny]

Label noise and leave-one-out on MNIST with perceptrons, learning curves on MNIST, cleansing from sentences of film
reviews (Rotten Tomatoes) to whole reviews (IMDB).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

import support
import tables
import whence as wh
from turnover_models import digits, mlp, networks, reviews
from whence.data import other_class_noise
from whence.scores import Scores, Signal

PARTS = ("leaks", "cost", "noise", "curves", "cleansing", "loo")
PUBLISHED = {"mean": -0.006, "deviation": 1.16}


def main() -> None:
    """Run the parts."""
    arguments = parse()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    folder = support.results_folder(arguments)
    for name in arguments.parts:
        settings: dict[str, Any] = {"tiny": arguments.tiny, "threads": arguments.threads}
        report = support.Report(f"turnover-{name}", settings, judged=not arguments.tiny)
        with support.Clock() as clock:
            {"leaks": leaks, "cost": cost, "noise": noise, "curves": curves, "cleansing": cleansing, "loo": loo}[name](
                report, arguments.tiny
            )
        report.figures |= {"seconds": clock.wall, "cpu_seconds": clock.cpu}
        print(f"  {name}: {clock.wall:.0f} s, {clock.cpu:.0f} s of processor", flush=True)
        report.close(folder, arguments.threads, arguments.strict)
    tables.renew(folder)


def parse() -> argparse.Namespace:
    """Read the command line."""
    made = support.parser(__doc__.splitlines()[0], threads=1)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    return made.parse_args()


def leaks(report: support.Report, tiny: bool) -> None:
    """What autograd finds in the usual conversion and in the strict one, and that training changes nothing there."""
    count = 4 if tiny else 24
    report.settings |= {"rows": count, "trained": 40 if tiny else 800}
    found: dict[str, Any] = {}
    for name, (build, examples) in networks(tiny).items():
        rows = examples.select(np.arange(count))
        torch.manual_seed(0)
        model = build()
        learn = functools.partial(learned, examples, report.settings["trained"], 2 if tiny else 20)
        ordinary = learn(model, None)
        for kind, made in (("usual", wh.turn_over(model)), ("strict", wh.turn_over(model, strict=rows))):
            table = wh.leakage(wh.Task(made), rows)
            frozen = [n for n, value in made.named_parameters() if not value.requires_grad]
            total = sum(value.numel() for value in made.parameters())
            found[f"{name}, {kind}"] = {
                "parameters": total, "leaking": len(table.leaks), "share": table.share, "frozen": len(frozen),
                "frozen_share": sum(made.get_parameter(n).numel() for n in frozen) / total,
                "statistics": len(table.statistics), "largest": str(table).splitlines()[1:4],
                "changed": None if table.statistics else changed(made, rows), "ordinary": ordinary,
                "accuracy": learn(made, wh.turn_over_outputs),
            }  # fmt: skip
            print(f"  {name}, {kind}: {len(table.leaks)} parameters leak, {table.share:.2%} of the used entries; "
                  f"{len(frozen)} frozen; accuracy {found[f'{name}, {kind}']['accuracy']:.3f} ({ordinary:.3f})",
                  flush=True)  # fmt: skip
        few = examples.select(np.arange(4 if tiny else 8))
        listed, truth = set(wh.leakage(wh.Task(wh.turn_over(model)), few).leaks), by_autograd(wh.turn_over(model), few)
        found[f"{name}, usual"]["beside autograd"] = {"listed": sorted(listed), "autograd": sorted(truth)}
        report.gate(f"{name}, usual: parameters listed as leaking that autograd does not, or the other way round",
                    len(listed ^ truth), high=0)  # fmt: skip
        strict = found[f"{name}, strict"]
        report.gate(f"{name}, strict: parameters that leak", strict["leaking"] + strict["statistics"], high=0)
        report.gate(f"{name}, strict: change of a flipped network by training on its example", strict["changed"],
                    high=0)  # fmt: skip
    report.figures["models"] = found


def by_autograd(model: nn.Module, rows: wh.Examples) -> set[str]:
    """Return the parameters of which some entry has a gradient both from an example and in its flipped sub-network."""
    task, leaking = wh.Task(model), set()
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]

    def gradients(number: int, keys: torch.Tensor, flipped: bool) -> list[torch.Tensor]:
        batch = task.place(rows.batch(np.array([number])))
        with wh.masks(model, keys, flipped=flipped):
            loss = task.losses(batch).sum()
        found = torch.autograd.grad(loss, [value for _, value in named], allow_unused=True)
        return [torch.zeros(()) if one is None else one.abs() for one in found]

    with task.evaluating():
        for number in range(len(rows)):
            keys = rows.select(np.array([number])).keys
            own = gradients(number, keys, False)
            used = [sum(parts) for parts in zip(*(gradients(n, keys, True) for n in range(len(rows))), strict=True)]
            both = zip(named, own, used, strict=True)
            leaking |= {name for (name, _), one, other in both if bool(((one != 0) & (other != 0)).any())}
    return leaking


def learned(examples: wh.Examples, count: int, epochs: int, start: nn.Module, outputs: Any) -> float:
    """Return the accuracy of the average network on the next 200 rows after training on some."""
    recipe = wh.Recipe(build=nn.Identity, outputs=outputs, epochs=epochs, batch_size=50)
    model = recipe.train(examples.select(np.arange(count)), start=start)
    test = examples.batch(np.arange(count, min(count + 200, len(examples))))
    with torch.no_grad():
        return float((model(test.inputs).argmax(1) == test.targets).double().mean())


def changed(model: nn.Module, rows: wh.Examples) -> float:
    """Return how much flipped outputs change when the model is trained on the example alone."""
    alone = rows.select(np.arange(1))
    recipe = wh.Recipe(build=nn.Identity, outputs=wh.turn_over_outputs, optimizer="sgd", learning_rate=0.1, epochs=3)
    outputs = []
    for one in (model, recipe.train(alone, start=model)):
        task = wh.Task(one)
        batch = task.place(rows.batch(np.arange(len(rows))))
        with torch.no_grad(), task.evaluating(), wh.masks(one, alone.keys.repeat(len(rows)), flipped=True):
            outputs.append(task.forward(batch))
    return float((outputs[1] - outputs[0]).abs().max())


def cost(report: support.Report, tiny: bool) -> None:
    """One query against all training examples, over two plain forward passes of that many rows."""
    report.settings["repeats"] = repeats = 1 if tiny else 9
    found: dict[str, Any] = {}
    for name, (build, examples) in networks(tiny).items():
        torch.manual_seed(0)
        task = wh.Task(wh.turn_over(build()))
        fitted = wh.TurnOver().fit(task, examples)
        query, times = examples.select(np.arange(1)), []
        batch_size = fitted.config.batch_size
        for _ in range(repeats + 1):
            start = time.perf_counter()
            with torch.no_grad(), task.evaluating():
                for _ in range(2):
                    for batch in examples.batches(batch_size):
                        task.losses(batch)
            middle = time.perf_counter()
            fitted.scores(query)
            times.append((middle - start, time.perf_counter() - middle))
        plain, sweep = np.array(times[1:]).T
        found[name] = {"rows": len(examples), "two_passes": float(np.median(plain)), "sweep": float(np.median(sweep)),
                       "ratio": float(np.median(sweep / plain))}  # fmt: skip
        print(f"  {name}: sweep {found[name]['sweep']:.3f} s, two passes {found[name]['two_passes']:.3f} s", flush=True)
        report.gate(f"{name}: one sweep over two forward passes", found[name]["ratio"], high=2.2)
    report.figures["models"] = found


def noise(report: support.Report, tiny: bool) -> None:
    """Wrong labels: self-scores, unseen loss and harm on a few clean rows, of one mask seed and of several."""
    data = digits(tiny)
    seeds = range(2 if tiny else 8)
    flipped = other_class_noise(data["y"].numpy(), 0.1, 10, 0)
    train = wh.as_examples((data["x"], torch.from_numpy(flipped.labels)))
    references = wh.sample_references((data["xt"], data["yt"]), per_class=1 if tiny else 10)
    recipe = wh.Recipe(build=functools.partial(mlp, (784, 512, 256, 10)), epochs=2 if tiny else 20)
    report.settings |= {"rows": len(train), "noise": 0.1, "members": len(seeds), "references": len(references),
                        "widths": (784, 512, 256, 10), "epochs": recipe.epochs}  # fmt: skip
    fitted = wh.TurnOver(seeds=seeds, batch_size=512, progress=say("members")).fit(recipe, train)
    each = [wh.TurnOver(batch_size=512).fit(task, train) for task in fitted.tasks]
    scores = [one.scores(references) for one in each]
    labels = references.targets.numpy()
    together = mean_of(scores)
    signals = {
        "self-score, 1 seed": each[0].self_scores(), f"self-score, {len(seeds)} seeds": fitted.self_scores(),
        "unseen loss, 1 seed": each[0].unseen_losses(), f"unseen loss, {len(seeds)} seeds": fitted.unseen_losses(),
        "harm, 1 seed": harm(scores[0], labels, "mean"), f"harm, {len(seeds)} seeds": harm(together, labels, "mean"),
        f"class-based harm, {len(seeds)} seeds": harm(together, labels, "class"),
        "loss of the average network": average_loss(fitted.tasks[0], train),
    }  # fmt: skip
    found = wh.detection(flipped.changed, signals, resamples=20 if tiny else 500)
    report.figures["detectors"] = {
        name: {"auc": [d.auc.value, d.auc.low, d.auc.high], "ap": d.average_precision.value}
        for name, d in found.detectors.items()
    }
    for name, d in report.figures["detectors"].items():
        print(f"  {name}: AUC {d['auc'][0]:.4f} [{d['auc'][1]:.4f}, {d['auc'][2]:.4f}], AP {d['ap']:.4f}", flush=True)
    values = torch.stack([one.values for one in scores])
    pairs = [float(torch.corrcoef(torch.stack([a, b]).flatten(1))[0, 1]) for a, b in itertools.pairwise(values)]
    error = values.std(0) / len(seeds) ** 0.5
    report.figures["single"] = {
        "mean": float(values[0].mean()), "deviation": float(values[0].std()), "published": PUBLISHED,
        "r_between_seeds": float(np.mean(pairs)), "beyond_two_errors": float(
            (values.mean(0).abs() > 2 * error).double().mean()),
    }  # fmt: skip
    print(f"  scores: {report.figures['single']}", flush=True)
    for name in (f"self-score, {len(seeds)} seeds", f"harm, {len(seeds)} seeds"):
        report.gate(f"MNIST, 10 % noise, {name}: AUC, lower end of 95 %", found.detectors[name].auc.low, low=0.5)


def harm(scores: Scores, labels: np.ndarray, reduction: Any) -> Signal:
    """Return harm to clean rows."""
    return wh.class_based(scores, labels=labels, reduction=reduction)


def mean_of(scores: list[Scores]) -> Scores:
    """Return the mean over members."""
    values = torch.stack([one.values for one in scores]).mean(0)
    return Scores(values=values, query_ids=scores[0].query_ids, ids=scores[0].ids, unit=None)


def average_loss(task: wh.Task, train: wh.Examples) -> Signal:
    """Return the training loss in the plain average network."""
    with torch.no_grad(), task.evaluating():
        values = torch.cat([task.losses(batch) for batch in train.batches(512)])
    return Signal(values=values.numpy(), ids=train.ids, name="loss", unit="nats")


def curves(report: support.Report, tiny: bool) -> None:
    """Does the loss of what was not seen, on training rows, follow the test loss?"""
    data = digits(tiny)
    rows, seeds = (100, 1) if tiny else (2000, 3)
    train, test = (data["x"][:rows], data["y"][:rows]), (data["xt"], data["yt"])
    build = functools.partial(converted, (784, 512, 256, 10))
    recipe = wh.Recipe(build=build, outputs=wh.turn_over_outputs, epochs=3 if tiny else 40)
    report.settings |= {"rows": rows, "epochs": recipe.epochs, "seeds": seeds}
    found = []
    for seed in range(seeds):
        recorded = wh.SeenUnseen(recipe, train, test)
        recipe.train(wh.as_examples(train), seed=seed, on_epoch=recorded)
        frame = recorded.to_frame()
        found.append({
            "r": recorded.correlation(), "r_average": recorded.correlation("test"),
            "r_seen": float(np.corrcoef(frame["seen"], frame["test_parts"])[0, 1]),
            "ratio": float(frame["unseen"].iloc[-1] / frame["test_parts"].iloc[-1]),
            "best_epochs": {name: int(frame[name].idxmin()) for name in frame},
            "curves": {name: frame[name].tolist() for name in frame},
        })  # fmt: skip
        print(f"  seed {seed}: " + ", ".join(f"{k} {v}" for k, v in found[-1].items() if k != "curves"), flush=True)
    report.figures["runs"] = found
    report.gate("MNIST: r over epochs of unseen loss with the test loss of sub-networks, least of the seeds",
                min(f["r"] for f in found), low=0.9)  # fmt: skip
    report.gate("MNIST: r over epochs of unseen loss with the test loss of the average network (reported), least",
                min(f["r_average"] for f in found), low=-1)  # fmt: skip


def converted(widths: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Return a perceptron with masks."""
    return wh.turn_over(mlp(widths), seed=seed)


def cleansing(report: support.Report, tiny: bool) -> None:
    """Leave out what harms on 300 labelled reviews from elsewhere; accuracy on the rest of them."""
    rows, members, retrainings = (40, 2, 2) if tiny else (4000, 8, 10)
    data = reviews(tiny, rows)
    train = wh.as_examples(data["train"])
    recipe = wh.Recipe(build=functools.partial(mlp, (data["train"][0].shape[1], 64, 2)), epochs=2 if tiny else 10,
                       learning_rate=2e-3, batch_size=64)  # fmt: skip
    report.settings |= {"rows": rows, "members": members, "retrainings": retrainings, "test": len(data["test"][1]),
                        "validation": len(data["validation"][1])}  # fmt: skip
    fitted = wh.TurnOver(seeds=range(members), batch_size=512, progress=say("members")).fit(recipe, train)
    influence = [
        wh.Influence(curvature=wh.EKFAC()).fit(task, train).scores(data["validation"]) for task in fitted.tasks
    ]
    rankings = {"turn-over": fitted.scores(data["validation"]), "EK-FAC influence": mean_of(influence)}
    draw, found = np.random.default_rng(0), {}
    base = accuracies(recipe, train, [], data["test"], retrainings)
    for share in (0.02, 0.05, 0.1, 0.2):
        control = [
            accuracies(recipe, train, train.ids[draw.permutation(rows)[: round(share * rows)]], data["test"], 1, seed)
            for seed in range(retrainings)
        ]
        found[share] = {"random": interval(np.concatenate(control) - base)}
        for name, scores in rankings.items():
            dropped = wh.cleanse(scores, share=share).dropped
            ours = accuracies(recipe, train, dropped, data["test"], retrainings)
            found[share][name] = interval(ours - base) | {"dropped": len(dropped), "accuracy": float(ours.mean())}
        print(f"  {share:.0%} left out: {found[share]}", flush=True)
    report.figures |= {"before": float(base.mean()), "shares": found}
    gain, control_gain = found[0.2]["turn-over"], found[0.2]["random"]
    report.gate("IMDB after Rotten Tomatoes: gain in accuracy, 20 % left out, lower end of 95 %", gain["low"], low=0)
    report.gate("IMDB after Rotten Tomatoes: gain over leaving out at random, 20 %",
                gain["mean"] - control_gain["mean"], low=0)  # fmt: skip


def accuracies(
    recipe: wh.Recipe, train: wh.Examples, exclude: Any, test: Any, count: int, first: int = 0
) -> np.ndarray:
    """Return accuracy on the test rows, a training a seed."""
    found = []
    for seed in range(first, first + count):
        model = recipe.train(train, exclude=exclude, seed=1000 + seed)
        with torch.no_grad():
            found.append(float((model(test[0]).argmax(1) == test[1]).double().mean()))
    return np.array(found)


def loo(report: support.Report, tiny: bool) -> None:
    """Agreement with leaving rows out and training again, with the same masks and ordinary influence beside it."""
    data = digits(tiny)
    rows, count, members, seeds = (60, 5, 2, 1) if tiny else (500, 40, 32, 8)
    train = wh.as_examples((data["x"][:rows], data["y"][:rows]))
    queries = data["xt"][: 10 if tiny else 100], data["yt"][: 10 if tiny else 100]
    recipe = wh.Recipe(build=functools.partial(converted, (784, 64, 10)), outputs=wh.turn_over_outputs, batch_size=50,
                       epochs=2 if tiny else 20, learning_rate=2e-3)  # fmt: skip
    report.settings |= {"rows": rows, "left_out": count, "members": members, "seeds": seeds, "queries": len(queries[1])}
    ids = np.random.default_rng(0).permutation(rows)[:count]
    actual = wh.leave_one_out(wh.Retraining(recipe=recipe, seeds=range(seeds)), train, queries, ids)
    fitted = wh.TurnOver(seeds=range(members), batch_size=512).fit(recipe, train)
    single = wh.TurnOver(batch_size=512).fit(fitted.tasks[0], train)
    influence = [wh.Influence(curvature=wh.EKFAC()).fit(recipe.task(recipe.train(train, seed=s)), train)
                 for s in range(seeds)]  # fmt: skip
    predictions = {
        "turn-over, 1 seed": single.scores(queries), f"turn-over, {members} seeds": fitted.scores(queries),
        f"EK-FAC influence, {seeds} seeds": mean_of([one.scores(queries) for one in influence]),
    }  # fmt: skip
    for name, scores in predictions.items():
        found = wh.agreement(scores, actual, resamples=20 if tiny else 500)
        own = [line.pearson.value for line in found.queries.values()]
        report.figures[name] = {
            "r_pooled": found.pooled.pearson.value, "interval": [found.pooled.pearson.low, found.pooled.pearson.high],
            "r_within": found.within.value, "r_median": float(np.nanmedian(own)), "slope": found.pooled.slope.value,
        }  # fmt: skip
        print(f"  {name}: {report.figures[name]}", flush=True)
    report.gate("MNIST, 500 rows: pooled r of turn-over scores with real leave-one-out (reported)",
                report.figures[f"turn-over, {members} seeds"]["r_pooled"], low=-1)  # fmt: skip


def interval(values: np.ndarray) -> dict[str, float]:
    """Return the mean with a 95 % t-interval."""
    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def say(what: str) -> Any:
    """Return what prints progress."""
    return lambda done, total: print(f"  {what}: {done} of {total}", flush=True)


if __name__ == "__main__":
    main()
