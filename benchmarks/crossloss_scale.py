"""Which of 100,000 sentences moved two words towards each other: one measurement, one streamed pass, flat memory.

    python benchmarks/crossloss_scale.py [--threads 1] [--tiny]

Skip-gram (width 100, window 3, 5 noise words a pair) on the sentences of wiki_npov, the fiction and the IMDB training
reviews together. Every sentence gets a score for the similarity of two words. Counted are the sentences that go through
the model; memory is the peak of the scoring above what the process held before, for an eighth of the sentences and for
all. Twenty sentences' scores are compared with those of dense gradients by plain autograd.
"""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import support
import tables
import whence as wh
from measure import memory

PAIRS = (("woman", "family"), ("man", "war"), ("love", "money"))
TINY_PAIRS = (("you", "call"), ("free", "txt"))
CHECKED = 20
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Size:
    """Epochs of training, numbers a vector, and the most documents of each source."""

    epochs: int = 8
    width: int = 100
    documents: int | None = None


TINY = Size(epochs=2, width=16, documents=400)


def main() -> None:
    """Train, score all sentences, count passes and memory, check some scores."""
    arguments = support.parser(__doc__.splitlines()[0], threads=1).parse_args()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    size = TINY if arguments.tiny else Size()
    settings = {"tiny": arguments.tiny, "threads": arguments.threads, **vars(size)}
    report = support.Report("crossloss_scale", settings, judged=not arguments.tiny)
    with support.Clock() as reading:
        corpus = wh.word_corpus(texts(arguments.tiny)[: size.documents])
    with support.Clock() as training:
        words = wh.train_words(corpus, width=size.width, epochs=size.epochs)
    report.figures |= {
        "sentences": len(corpus), "words": len(corpus.vocabulary), "occurrences": len(corpus.words),
        "reading_seconds": reading.wall, "training_seconds": training.wall,
        "training_cpu_seconds": training.cpu, "loss": words.trace[-1], "questions": [],
    }  # fmt: skip
    print(f"  {corpus}, {words}: read in {reading.wall:.1f} s, trained in {training.wall:.1f} s", flush=True)
    for pair in TINY_PAIRS if arguments.tiny else PAIRS:
        found = asked(words, wh.WordSimilarity(*pair))
        report.figures["questions"].append(found)
        print(f"  {found}", flush=True)
        for id_ in (*found["raise"], *found["lower"]):
            print(f"    {(found['raise'] | found['lower'])[id_]:+.5f}  {corpus.text(id_)[:100]}", flush=True)
    judge(report)
    report.close(support.results_folder(arguments), arguments.threads, arguments.strict)
    tables.renew(support.results_folder(arguments))


def texts(tiny: bool) -> list[str]:
    """Return all documents: wiki_npov, fiction, IMDB training reviews; tiny: bundled SMS."""
    if tiny:
        with gzip.open(support.ROOT / "examples" / "data" / "sms_spam.csv.gz", "rt", encoding="utf-8") as file:
            return [row["text"] for row in csv.DictReader(file)]
    folder, found = support.data_folder(), list[str]()
    for name in ("wiki_npov", "imdb"):
        with gzip.open(support.need(folder / name / f"{name}.csv.gz"), "rt", encoding="utf-8", newline="") as file:
            found += [row["text"] for row in csv.DictReader(file) if row.get("split", "train") == "train"]
    with gzip.open(support.need(folder / "fiction" / "fiction.jsonl.gz"), "rt", encoding="utf-8") as file:
        found += [json.loads(line)["text"] for line in file]
    return found


def asked(words: wh.WordEmbedding, measurement: wh.WordSimilarity) -> dict[str, Any]:
    """Score all sentences for one measurement, and an eighth of them, and check some."""
    corpus = words.corpus
    assert corpus is not None
    task = words.task(measurement)
    small, _, _ = scored(task, corpus.examples.select(np.arange(len(corpus) // 8)))
    large, attribution, values = scored(task, corpus.examples)
    order = np.argsort(-values)
    return {
        "measurement": measurement.name, "before": float(measurement(words.model).detach()),
        "all": large, "eighth": small, "error": error(attribution, corpus, values),
        "touched": float((values != 0).mean()),
        "raise": {corpus.ids.tolist()[i]: values[i] for i in order[:SHOWN]},
        "lower": {corpus.ids.tolist()[i]: values[i] for i in order[: -SHOWN - 1 : -1]},
    }  # fmt: skip


def scored(
    task: wh.Task, examples: wh.Examples
) -> tuple[dict[str, float], wh.InfluenceAttribution, np.ndarray]:  # fmt: skip
    """Return seconds, passes and mebibytes above what was held before, of fit and scores; and both."""
    counted = [0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counted[0] += len(output)

    hook = task.model.register_forward_hook(count)
    before = memory(fresh=True)
    with support.Clock() as clock:
        attribution = wh.Influence(curvature=wh.RowBlocks(), memory_budget=0).fit(task, examples)
        values = attribution.scores().values[0].double().numpy()
    hook.remove()
    figures = {
        "seconds": clock.wall, "cpu_seconds": clock.cpu, "passes": counted[0] / len(examples),
        "memory_mib": memory() - before,
    }  # fmt: skip
    return figures, attribution, values


def error(attribution: wh.InfluenceAttribution, corpus: wh.WordCorpus, values: np.ndarray) -> float:
    """Return the largest error of some scores, relative to the largest: x·∇ℓ_i / N with ℓ_i pair by pair, in float64.

    The sentences of largest score, and as many at random.
    """
    rng = np.random.default_rng(0)
    rows = np.unique([*np.argsort(-np.abs(values))[: CHECKED // 2], *rng.choice(len(values), CHECKED // 2, False)])
    direction = next(attribution.query_blocks(None)).layers["inputs"].matrix()[0].T.double()  # [V, d]
    model, truth = attribution.task.model, []
    for row in rows:
        table = model.inputs.weight.detach().double().requires_grad_()
        loss = pair_by_pair(corpus, int(row), table, model.outputs.weight.detach().double())
        truth.append(float((torch.autograd.grad(loss, table)[0] * direction).sum()) / len(corpus))
    return float(np.abs(np.array(truth) - values[rows]).max() / np.abs(truth).max())


def pair_by_pair(corpus: wh.WordCorpus, row: int, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return one sentence's training loss, as the paper writes it."""
    start, stop = corpus.spans[row]
    words = corpus.words[start:stop].tolist()
    noise = corpus.noise(np.array([row]), -(-len(words) // 32))[0]
    total = inputs.new_zeros(())
    for place, word in enumerate(words):
        near = [*words[max(0, place - corpus.window) : place], *words[place + 1 : place + corpus.window + 1]]
        pool = outputs[torch.from_numpy(noise[place // 32])]
        total = total - F.logsigmoid(outputs[near] @ inputs[word]).sum()
        total = total - len(near) * corpus.negatives * F.logsigmoid(-(pool @ inputs[word])).mean()
    return total


def judge(report: support.Report) -> None:
    """At least 100,000 sentences, each through the model once, in memory that does not grow with them."""
    asked = report.figures["questions"]
    report.gate("sentences", report.figures["sentences"], low=100_000)
    report.gate("passes of all sentences through the model, of fit and scores together",
                max(one["all"]["passes"] for one in asked), high=1.25)  # fmt: skip
    report.gate("peak memory of scoring all sentences, above an eighth of them, MiB",
                max(one["all"]["memory_mib"] - one["eighth"]["memory_mib"] for one in asked), high=64)  # fmt: skip
    report.gate("largest relative error against plain autograd, pair by pair",
                max(one["error"] for one in asked), high=1e-4)  # fmt: skip
    report.gate("processor minutes of training", report.figures["training_cpu_seconds"] / 60, high=10)


if __name__ == "__main__":
    main()
