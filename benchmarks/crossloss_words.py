"""Bias of word vectors by sentence: does removing the sentences that cause a WEAT effect change it as predicted?

    python benchmarks/crossloss_words.py [--sets npov fiction] [--cache FOLDER] [--threads 1] [--tiny]

Skip-gram with negative sampling on the Wikipedia neutrality corpus and on fifteen novels, an example = a sentence. The
counts of every list of every WEAT test are printed first; tests with a list that the text hardly holds are not asked.
The k sentences whose removal is predicted to lower an effect the most, and the k that raise it, are left out, and the
vectors trained again with the same seed (same first vectors, noise words and order), beside random sentences and
random ones among those that hold a word of the test. Edits and hard debiasing stand beside.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

import support
import tables
import whence as wh
from whence.evaluate.measurements import Several
from whence.uses.debias import GENDER_PAIRS

SETS = ("npov", "fiction")
FEWEST = 4  # words of every list that must be in the vocabulary, which holds words of five occurrences or more
ASKED = {"npov": ("weat6b", "weat8"), "fiction": ("weat6b",)}
REMOVED = {"npov": 100, "fiction": 300}
EPOCHS = {"npov": 6, "fiction": 4}
SEEDS = 5
DRAWS = 2
TINY = wh.WEAT(
    targets=(["i", "me", "my"], ["you", "your", "u"]), attributes=(["free", "call", "txt"], ["love", "home", "good"]),
    name="tiny", labels=("I", "You", "Offers", "Home"),
)  # fmt: skip


def main() -> None:
    """One result a set of texts."""
    parser = support.parser(__doc__.splitlines()[0], threads=1)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--cache", type=Path, default=None, help="folder where trainings are kept")
    arguments = parser.parse_args()
    support.limit_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    folder = support.results_folder(arguments)
    for name in ["tiny"] if arguments.tiny else arguments.sets:
        run(name, arguments, folder)
    tables.renew(folder)


def run(name: str, arguments: Any, folder: Path | None) -> None:
    """Count, train, ask, remove, edit."""
    tiny = arguments.tiny
    settings = {
        "tiny": tiny, "threads": arguments.threads, "set": name, "removed": 10 if tiny else REMOVED[name],
        "epochs": 2 if tiny else EPOCHS[name], "width": 16 if tiny else 100, "window": 3, "negatives": 5,
        "seeds": 2 if tiny else SEEDS, "draws": DRAWS, "fewest": FEWEST,
    }  # fmt: skip
    report = support.Report(f"crossloss_words-{name}", settings, judged=not tiny)
    with support.Clock() as clock:
        corpus = wh.word_corpus(texts(name), window=settings["window"], negatives=settings["negatives"])
        print(f"{name}: {corpus}", flush=True)
        tests = all_tests(tiny)
        report.figures["counts"] = {key: count(test, corpus) for key, test in tests.items()}
        asked = {key: tests[key] for key in (["tiny"] if tiny else ASKED[name])}
        for key, one in report.figures["counts"].items():
            one["asked"] = key in asked
        study(report, corpus, asked, arguments.cache)
    report.figures |= {"sentences": len(corpus), "words": len(corpus.vocabulary), "tokens": len(corpus.words),
                       "seconds": clock.wall, "cpu_seconds": clock.cpu}  # fmt: skip
    report.close(folder, arguments.threads, arguments.strict)


def texts(name: str) -> list[str]:
    """Return the documents of a set."""
    if name == "tiny":
        return pd.read_csv(support.ROOT / "examples" / "data" / "sms_spam.csv.gz")["text"].head(600).tolist()
    if name == "npov":
        path = support.need(support.data_folder() / "wiki_npov" / "wiki_npov.csv.gz")
        return pd.read_csv(path, na_filter=False)["text"].tolist()
    path = support.need(support.data_folder() / "fiction" / "fiction.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def all_tests(tiny: bool) -> dict[str, wh.WEAT]:
    """Return every test by name."""
    if tiny:
        return {"tiny": TINY}
    path = support.need(support.data_folder() / "weat" / "weat_word_lists.json")
    names = json.loads(path.read_text("utf-8"))
    return {key: wh.WEAT.from_file(path, key) for key in names}


def count(test: wh.WEAT, corpus: wh.WordCorpus) -> dict[str, Any]:
    """Print and return how many words of every list there are, and how often."""
    frame = test.counts(corpus.vocabulary)
    lists = {
        label: {"words": len(part), "there": int(part["used"].sum()), "occurrences": int(part["count"].sum()),
                "counts": dict(zip(part["word"], part["count"].astype(int).tolist(), strict=True))}
        for label, part in frame.groupby("list", sort=False)
    }  # fmt: skip
    enough = min(one["there"] for one in lists.values()) >= FEWEST
    told = "; ".join(f"{label} {one['there']}/{one['words']} words, {one['occurrences']:,}×"
                     for label, one in lists.items())  # fmt: skip
    print(f"  {test.name}: {told}: {'enough' if enough else 'NOT frequent enough'}", flush=True)
    return {"lists": lists, "enough": enough}


def study(report: support.Report, corpus: wh.WordCorpus, tests: dict[str, wh.WEAT], cache: Path | None) -> None:
    """Score, remove and train again, edit; all tests on the same trainings."""
    settings = report.settings
    seeds = list(range(settings["seeds"]))
    trained = [
        wh.train_words(corpus, width=settings["width"], epochs=settings["epochs"], seed=seed) for seed in seeds
    ]
    scores = {key: [ask(words, test) for words in trained] for key, test in tests.items()}
    sets: dict[str, np.ndarray] = {f"random {draw}": drawn(corpus.ids, settings["removed"], draw)
                                   for draw in range(DRAWS)}  # fmt: skip
    for key, found in scores.items():
        sets |= {f"{key} {which}": ids for which, ids in chosen(found[0], settings["removed"]).items()}
    measured = retrain(corpus, trained[0], tests, sets, settings, cache)
    report.figures["tests"] = {}
    for place, (key, test) in enumerate(tests.items()):
        values = {name: part[:, 2 * place : 2 * place + 2] for name, part in measured.items()}  # [S, (effect, p)]
        one = removal(report, test, values, scores[key][0], sets)
        one["edits"] = edits(test, trained, scores[key], settings)
        one["stability"] = stability(scores[key])
        one["sentences"] = sentences(corpus, scores[key][0])
        report.figures["tests"][key] = one


def ask(words: wh.WordEmbedding, test: wh.WEAT) -> wh.Scores:
    """Return the scores of all sentences for a test's effect size."""
    attribution = wh.Influence(curvature=wh.RowBlocks()).fit(words.task(test), words.corpus.examples)
    return attribution.scores()


def drawn(ids: np.ndarray, count: int, draw: int) -> np.ndarray:
    """Return random ids."""
    return np.random.default_rng([7, draw]).choice(ids, count, replace=False)


def chosen(scores: wh.Scores, count: int) -> dict[str, np.ndarray]:
    """Return what is removed for a test: by score from both ends, and random among sentences that have a score."""
    some = scores.ids[scores.values[0].numpy() != 0]
    return {
        "lowers": scores.bottom(count)["id"].to_numpy(), "raises": scores.top(count)["id"].to_numpy(),
        **{f"touching {draw}": drawn(some, min(count, len(some)), draw) for draw in range(DRAWS)},
    }  # fmt: skip


def retrain(
    corpus: wh.WordCorpus, words: wh.WordEmbedding, tests: dict[str, wh.WEAT], sets: dict[str, np.ndarray],
    settings: dict[str, Any], cache: Path | None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return effects and p-values of all tests [S, 2·tests] after training without each set; "all" is without none."""
    parts = tuple(part for test in tests.values() for part in (test, wh.WEATPValue(test)))
    retraining = wh.Retraining(
        recipe=words.recipe(), seeds=list(range(settings["seeds"])), measurement=Several(parts), cache=cache,
        progress=lambda done, total: print(f"  trained {done} of {total}", flush=True),
    )  # fmt: skip
    found = retraining.measure(corpus.examples, None, [[], *sets.values()]).numpy()  # [J, S, 2·tests]
    return dict(zip(["all", *sets], found, strict=True))


def removal(
    report: support.Report, test: wh.WEAT, values: dict[str, np.ndarray], scores: wh.Scores,
    sets: dict[str, np.ndarray],
) -> dict[str, Any]:  # fmt: skip
    """Summarise what removal did to an effect, and hold it against random removal."""
    before = values["all"][:, 0]
    ours = {name: name.removeprefix(f"{test.name} ") for name in values
            if name.startswith((f"{test.name} ", "random "))}  # fmt: skip
    changes = {short: values[name][:, 0] - before for name, short in ours.items()}  # [S] each
    controls = {kind: np.mean([part for short, part in changes.items() if short.startswith(kind)], axis=0)
                for kind in ("random", "touching")}  # fmt: skip
    by_id = dict(zip(scores.ids.tolist(), scores.values[0].tolist(), strict=True))
    found: dict[str, Any] = {
        "before": interval(before), "p_before": values["all"][:, 1].tolist(), "removals": {},
    }  # fmt: skip
    for name, short in ours.items():
        found["removals"][short] = {
            "predicted": float(sum(by_id[id_] for id_ in sets[name].tolist())), "change": interval(changes[short]),
            "after": interval(values[name][:, 0]), "p_after": values[name][:, 1].tolist(),
            "sentences": len(sets[name]),
        }  # fmt: skip
        print(f"  {test.name}, without {short}: {found['removals'][short]}", flush=True)
    for which, sign in (("lowers", -1), ("raises", 1)):
        falls = {"lowers": "falls", "raises": "rises"}[which]
        report.gate(f"{test.name}: by how much the effect {falls} without the k that are predicted to make it so, "
                    "lower end of 95 % over seeds", interval(sign * changes[which])["low"], low=0)  # fmt: skip
        for kind, label in (("random", "k random sentences"), ("touching", "k random ones with a word of the test")):
            gain = sign * (changes[which] - controls[kind])
            found[f"{which} over {kind}"] = interval(gain)
            report.gate(f"{test.name}: by how much more it {falls} than without {label}, lower end of 95 % over seeds",
                        interval(gain)["low"], low=0)  # fmt: skip
    return found


def edits(
    test: wh.WEAT, trained: list[wh.WordEmbedding], scores: list[wh.Scores], settings: dict[str, Any]
) -> dict[str, Any]:
    """Edit the vectors of every seed by their own scores, and debias them; return effects and p-values."""
    found: dict[str, list[dict[str, float]]] = {}
    for words, own in zip(trained, scores, strict=True):
        for direction, by in (("undo", "both"), ("undo", "ascent"), ("undo", "descent"), ("raise", "both")):
            how = wh.EditSettings(by=by)
            edited = wh.edit(words, test, own, k=settings["removed"], direction=direction, settings=how)
            first, last = edited.trace.iloc[0], edited.trace.iloc[-1]
            found.setdefault(f"{direction} by {by}", []).append({
                "effect": test.effect(edited.words), "p": test.p_value(edited.words), "steps": int(last["step"]),
                "others_loss_rise": float(last["others"] / first["others"] - 1),
            })  # fmt: skip
        if test.name != "tiny":
            fair = wh.hard_debias(words, GENDER_PAIRS, specific=gendered(test))
            found.setdefault("hard debiasing", []).append({"effect": test.effect(fair), "p": test.p_value(fair)})
    for name, parts in found.items():
        print(f"  {test.name}, {name}: {parts}", flush=True)
    keys = ("effect", "p", "steps", "others_loss_rise")
    return {name: {key: interval(np.array([one[key] for one in parts])) for key in keys if key in parts[0]}
            for name, parts in found.items()}  # fmt: skip


def gendered(test: wh.WEAT) -> list[str]:
    """Return the words of the lists that hold a word of the pairs: they keep their gender."""
    held = {word for pair in GENDER_PAIRS for word in pair}
    return [word.lower() for one in test.lists if held & {word.lower() for word in one} for word in one]


def stability(scores: list[wh.Scores]) -> float:
    """Return the mean rank correlation of the scores of different seeds, over sentences that have one."""
    values = np.stack([one.values[0].numpy() for one in scores])
    values = values[:, (values != 0).all(0)]
    pairs = [stats.spearmanr(values[i], values[j])[0] for i in range(len(values)) for j in range(i)]
    return float(np.mean(pairs))


def sentences(corpus: wh.WordCorpus, scores: wh.Scores) -> dict[str, int]:
    """Return how many sentences have a score; the text itself stays where it is."""
    return {"with a score": int(np.count_nonzero(scores.values[0].numpy())), "all": len(corpus)}


def interval(values: np.ndarray) -> dict[str, float]:
    """Return the mean of one value a seed with a 95 % t-interval."""
    mean, count = float(np.mean(values)), len(values)
    half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half}


if __name__ == "__main__":
    main()
