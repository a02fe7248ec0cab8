"""Word corpora, training, files and the space of vectors."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from word_texts import messages, pair_loss, small_corpus

import whence as wh
from whence.tasks.words import split_sentences, split_words

UNITS = ["sentence", "window", "document"]


def losses(corpus: wh.WordCorpus, model: wh.SkipGram, rows: np.ndarray) -> torch.Tensor:
    task = wh.Task(model, wh.WordEmbedding(model=model).task(total_decay=0.0).loss)
    return task.losses(task.place(corpus.examples.batch(rows)))


def random_model(corpus: wh.WordCorpus, width: int = 5) -> wh.SkipGram:
    model = wh.SkipGram(corpus.vocabulary, width=width, window=corpus.window).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for table in (model.inputs.weight, model.outputs.weight):
            table.copy_(torch.randn(table.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("unit", UNITS)
def test_the_loss_is_what_the_paper_writes_pair_by_pair(unit: str) -> None:
    corpus = small_corpus(unit)
    model = random_model(corpus)
    found = losses(corpus, model, np.arange(len(corpus)))
    for row in range(0, len(corpus), 23):
        true = pair_loss(corpus, row, model.inputs.weight, model.outputs.weight)
        torch.testing.assert_close(found[row], true, rtol=1e-12, atol=1e-12)


def test_documents_longer_than_a_pool_take_several_and_never_pair_across_sentences() -> None:
    text = " ".join(f"{sentence.rstrip('.')}." for sentence in messages(40))
    corpus = wh.word_corpus([text, text[:900]], unit="document", min_count=2, subsample=None, negatives=1)
    assert (corpus.spans[:, 1] - corpus.spans[:, 0]).max() > 64
    model = random_model(corpus)
    found = losses(corpus, model, np.array([0, 1]))
    for row in (0, 1):
        true = pair_loss(corpus, row, model.inputs.weight, model.outputs.weight)
        torch.testing.assert_close(found[row], true, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(losses(corpus, model, np.array([row]))[0], true, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unit", UNITS)
def test_an_example_is_the_same_alone_and_in_any_batch(unit: str) -> None:
    corpus = small_corpus(unit)
    model = random_model(corpus)
    rows = np.random.default_rng(0).permutation(len(corpus))[:21]
    together = losses(corpus, model, rows)
    for size in (1, 7):
        parts = torch.cat([losses(corpus, model, rows[i : i + size]) for i in range(0, len(rows), size)])
        torch.testing.assert_close(parts, together, rtol=1e-12, atol=1e-12)


def test_units_hold_the_same_pairs() -> None:
    counted = []
    for unit in UNITS:
        corpus = small_corpus(unit, seed=3, subsample=0.01)
        targets = [batch.targets for batch in corpus.examples.batches(50)]
        counted.append(sum(int((y > 0).sum()) for y in targets if y is not None))
    assert counted[0] == counted[1] == counted[2] > 100


def test_noise_is_keyed_by_id_and_follows_counts_to_the_power_three_quarters() -> None:
    corpus = small_corpus(count=300, negatives=5)
    found = corpus.noise(np.arange(len(corpus)), 1)
    again = corpus.examples.select(np.array([5, 2])).batch(np.array([0, 1])).inputs[1]
    assert (again[:, 0].numpy() == found[[5, 2], 0]).all()
    shares = np.bincount(found.reshape(-1), minlength=len(corpus.vocabulary)) / found.size
    true = corpus.vocabulary.counts**0.75 / (corpus.vocabulary.counts**0.75).sum()
    spread = np.sqrt(true * (1 - true) / found.size)
    assert (np.abs(shares - true) < 5 * spread).all()
    other = small_corpus(count=300, negatives=5, seed=1).noise(np.arange(len(corpus)), 1)
    assert (other != found).mean() > 0.5


def test_ids_and_texts_name_the_source() -> None:
    texts = ["One two three. Two three one!", "three one two"]
    sentences = wh.word_corpus(texts, ids=["a", "b"], min_count=1, subsample=None)
    assert sentences.ids.tolist() == ["a:0", "a:1", "b:0"]
    assert sentences.documents.tolist() == ["a", "a", "b"]
    assert sentences.text("a:1") == "Two three one!"
    documents = wh.word_corpus(texts, unit="document", min_count=1, subsample=None)
    assert documents.ids.tolist() == [0, 1]
    assert documents.texts == ["One two three. Two three one!", "three one two"]
    windows = wh.word_corpus(texts, unit="window", window=1, min_count=1, subsample=None)
    assert windows.ids.tolist()[:3] == ["0:0:0", "0:0:1", "0:0:2"]
    assert (windows.spans[:3] == [[0, 2], [0, 3], [1, 3]]).all()


def test_sentences_end_where_they_end() -> None:
    assert split_sentences("He met Mrs. Dean. “Why?” she said.\nIt was J. R. Poe's… No.") == [
        "He met Mrs. Dean.", "“Why?” she said.", "It was J. R. Poe's…", "No.",
    ]  # fmt: skip
    assert split_sentences("a title\n\nthe text<br /><br />more") == ["a title", "the text", "more"]
    assert [len(one.split()) for one in split_sentences("word " * 250)] == [100, 100, 50]
    assert split_words("Don’t STOP—it's 4:20") == ["don't", "stop", "it's", "4", "20"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=6))
def test_any_text_gives_a_corpus_or_says_why_not(texts: list[str]) -> None:
    try:
        corpus = wh.word_corpus(texts, min_count=1, window=2, negatives=1)
    except wh.DataError:
        return
    for batch in corpus.examples.batches(4):
        assert batch.targets is not None
        assert bool((batch.targets > 0).any(2).any(1).all())


@pytest.mark.parametrize(
    ("texts", "settings", "said"),
    [
        ([], {}, "at least one word"),
        (["", "  "], {}, "at least one word"),
        ("one text", {}, "got one string"),
        (["a b", None], {}, "NoneType at place 1"),
        (["a b c", "d e f"], {"min_count": 2}, "min_count must leave at least two words, got 2"),
        (["a. B. C. D."] * 3, {"min_count": 1}, "two words"),
        (["a b"] * 2, {"ids": ["x", "x"], "min_count": 1}, "ids must be unique, got 'x'"),
        (["a b"], {"ids": [1, 2]}, "one entry a document"),
    ],
)
def test_bad_texts_are_refused(texts: object, settings: dict[str, object], said: str) -> None:
    with pytest.raises(wh.DataError, match=said):
        wh.word_corpus(texts, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [{"unit": "word"}, {"window": 0}, {"negatives": 1.5}, {"min_count": True}, {"subsample": 0}]
)
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(wh.ConfigError):
        wh.word_corpus(["a b"], **settings)  # type: ignore[arg-type]


def test_unknown_words_name_those_spelt_nearly_so() -> None:
    words = wh.train_words(small_corpus(), width=4, epochs=1)
    near = words.vocabulary.words[3]
    with pytest.raises(wh.ConfigError, match=repr(near)):
        words.nearest(near + "q")
    with pytest.raises(wh.ConfigError, match="vocabulary"):
        wh.WordSimilarity(near, "zzzzzz")(words.model)


def test_training_is_the_same_bytes_and_without_an_example_is_weight_zero() -> None:
    corpus = small_corpus()
    settings = {"width": 6, "epochs": 3, "batch_size": 16}
    one, two = (wh.train_words(corpus, **settings, seed=4) for _ in range(2))
    assert torch.equal(one.vectors, two.vectors) and list(one.trace) == list(two.trace)
    weights = torch.ones(len(corpus))
    weights[3] = 0
    without = wh.train_words(corpus, **settings, seed=4, exclude=[corpus.ids[3]])
    assert torch.equal(without.vectors, wh.train_words(corpus, **settings, seed=4, weights=weights).vectors)
    assert not torch.equal(without.vectors, one.vectors)
    replayed = one.recipe().train(corpus.examples, exclude=[corpus.ids[3]], seed=4)
    assert torch.equal(replayed.inputs.weight, without.model.inputs.weight)
    assert not torch.equal(one.recipe(epochs=2).train(corpus.examples, seed=4).inputs.weight, one.vectors)


def test_an_excluded_example_leaves_no_trace_but_its_place() -> None:
    """Words that only the excluded message holds see nothing but decay; vectors cannot depend on its pairs."""
    corpus = small_corpus()
    words, noise = corpus.examples.batch(np.array([5])).inputs
    trained = wh.train_words(corpus, width=6, epochs=2, exclude=[corpus.ids[5]])
    swapped = wh.WordCorpus(**{**vars_of(corpus), "words": corpus.words.copy()})
    start, stop = corpus.spans[5]
    swapped.words[start:stop] = swapped.words[start:stop][::-1]
    again = wh.train_words(swapped, width=6, epochs=2, exclude=[corpus.ids[5]])
    assert words.numel() and noise.numel()
    torch.testing.assert_close(again.vectors, trained.vectors, rtol=1e-5, atol=1e-6)


def vars_of(corpus: wh.WordCorpus) -> dict[str, object]:
    return {name: getattr(corpus, name) for name in corpus.__dataclass_fields__}


def test_training_goes_to_a_minimum_of_what_it_says() -> None:
    corpus = small_corpus()
    words = wh.train_words(corpus, width=4, epochs=400, rate=0.3, total_decay=1.0, batch_size=len(corpus))
    task = words.task()
    attribution = wh.Influence(curvature=wh.Identity()).fit(task, corpus.examples)
    assert attribution.gradient_norm < 0.01
    short = wh.train_words(corpus, width=4, epochs=1)
    assert wh.Influence(curvature=wh.Identity()).fit(short.task(), corpus.examples).gradient_norm > 0.1


def test_going_on_from_vectors_does_not_change_them() -> None:
    corpus = small_corpus()
    first = wh.train_words(corpus, width=4, epochs=2)
    kept = first.vectors.clone()
    second = wh.train_words(corpus, width=4, epochs=2, start=first.model)
    assert torch.equal(first.vectors, kept) and not torch.equal(second.vectors, kept)
    with pytest.raises(wh.ConfigError, match="same corpus"):
        wh.train_words(small_corpus(count=30), width=4, start=first.model)


@pytest.mark.parametrize("settings", [{"width": 0}, {"epochs": 0}, {"rate": -1.0}, {"total_decay": float("nan")}])
def test_bad_training_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(wh.ConfigError, match=next(iter(settings))):
        wh.train_words(small_corpus(), **settings)  # type: ignore[arg-type]


def test_bad_weights_and_ids_are_refused() -> None:
    corpus = small_corpus()
    with pytest.raises(wh.DataError, match="nobody"):
        wh.train_words(corpus, exclude=["nobody"])
    with pytest.raises(wh.ConfigError, match="weights"):
        wh.train_words(corpus, weights=torch.full((len(corpus),), -1.0))
    with pytest.raises(wh.ConfigError, match="positive weight"):
        wh.train_words(corpus, exclude=corpus.ids)


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
def test_vectors_come_back_from_a_file_bit_by_bit(name: str, tmp_path: Path) -> None:
    words = wh.train_words(small_corpus(), width=6, epochs=2)
    words.save(tmp_path / name)
    words.save(tmp_path / f"again-{name}")
    assert (tmp_path / name).read_bytes()[12:] == (tmp_path / f"again-{name}").read_bytes()[12:] or name.endswith("gz")
    loaded = wh.load_words(tmp_path / name)
    assert torch.equal(loaded.vectors, words.vectors)
    assert list(loaded.vocabulary.words) == list(words.vocabulary.words)
    with pytest.raises(wh.ConfigError, match="loaded"):
        loaded.task(wh.WordSimilarity(*words.vocabulary.words[:2]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "first line"),
        ("cat 1 2\n", "first line"),
        ("0 2\n", "first line"),
        ("2 2\ncat 1 2\n", "2 words, as its first line says, got 1"),
        ("1 2\ncat 1 2\ndog 1 2\n", "got more"),
        ("1 2\ncat 1\n", "line 2 of 'v.txt' must have a word and 2 numbers, got 1"),
        ("2 2\ncat 1 2\ndog 1 nan\n", "line 3 of 'v.txt' must have finite numbers, got 'nan'"),
        ("1 2\ncat 1 1e99\n", "finite"),
        ("1 2\ncat 1 x\n", "got 'x'"),
        ("2 2\ncat 1 2\ncat 1 2\n", "'cat' on lines 2 and 3"),
    ],
)
def test_bad_files_are_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text(content)
    with pytest.raises(wh.DataError, match=said):
        wh.load_words(tmp_path / "v.txt")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, zipped: bool) -> None:
    path = tmp_path_factory.mktemp("v") / ("v.gz" if zipped else "v")
    path.write_bytes(content)
    with pytest.raises(wh.DataError):
        wh.load_words(path)
    (path.parent / "w.gz").write_bytes(gzip.compress(b"1 1\n" + content)[:-3])
    with pytest.raises(wh.DataError):
        wh.load_words(path.parent / "w.gz")


def planted() -> wh.WordEmbedding:
    """Return vectors in three bundles."""
    names = [f"{kind}{i}" for i in range(12) for kind in "abc"]
    model = wh.SkipGram(wh.Vocabulary(names, np.arange(36, 0, -1)), width=3, window=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.inputs.weight.copy_(torch.eye(3)[[i % 3 for i in range(36)]])
        model.inputs.weight.add_(0.1 * torch.randn(36, 3, generator=generator))
        model.inputs.weight.mul_(torch.rand(36, 1, generator=generator) + 0.5)  # length must not matter
    return wh.WordEmbedding(model=model)


def test_clusters_find_planted_bundles_and_measure_membership() -> None:
    words = planted()
    found = wh.clusters(words, 3)
    assert found.silhouette > 0.8
    kinds = found.to_frame().assign(kind=lambda frame: frame.word.str[0]).groupby("cluster").kind.nunique()
    assert (kinds == 1).all()
    member = found.membership("a0", typical=5)
    assert {word[0] for word in member.members} == {"a"} and "a0" not in member.members
    assert len({word[0] for word in member.rivals}) == 1
    assert member(words.model).item() > 0.8
    assert words.nearest("b3", 4).word.str[0].eq("b").all()
    assert wh.clusters(words, 3).labels.tolist() == found.labels.tolist()


def test_membership_and_similarity_do_not_see_rotations() -> None:
    words = planted()
    asked = [wh.WordSimilarity("a1", "b2"), wh.clusters(words, 3).membership("c3")]
    before = [one(words.model).item() for one in asked]
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    with torch.no_grad():
        words.model.inputs.weight.copy_(words.model.inputs.weight @ turned)
    assert np.allclose([one(words.model).item() for one in asked], before, atol=1e-6)


def test_a_map_keeps_bundles_together_and_names_bad_words() -> None:
    drawn = wh.word_map(planted(), perplexity=5)
    places = drawn.groupby(drawn.word.str[0])[["x", "y"]]
    spread = places.std().to_numpy().max()
    centres = places.mean().to_numpy()
    assert min(np.linalg.norm(centres[i] - centres[j]) for i, j in [(0, 1), (0, 2), (1, 2)]) > 2 * spread
    with pytest.raises(wh.ConfigError, match="perplexity"):
        wh.word_map(planted(), ["a0", "a1"], perplexity=5)
    with pytest.raises(wh.ConfigError, match="k must"):
        wh.clusters(planted(), 1)
    with pytest.raises(wh.ConfigError, match="another word"):
        wh.WordSimilarity("a", "a")
