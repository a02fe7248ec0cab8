"""``whence words``: which sentences make words lie as they do, and what changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from whence import __version__
from whence.audit import Watch, WordsSettings, count_lists, read_texts, words_data
from whence.cli.console import Stages, plain, print_json, terminal
from whence.cli.options import IdColumn, Quiet, Seed, Text
from whence.cli.pages import check_page
from whence.errors import ConfigError, DataError
from whence.report import render_words
from whence.tasks.words import WordEmbedding, WordSimilarity, load_words, train_words, word_corpus
from whence.uses.weat import WEAT

__all__ = ["words_command"]

_SHOWN = 5
_WIDE = 100


def words_command(
    data: Annotated[str | None, typer.Argument(help="Text: .txt, or a table with a text column.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="Vectors in word2vec's text format, instead of a text.")] = None,
    weat: Annotated[Path | None, typer.Option(help="JSON file of WEAT word lists.")] = None,
    test: Annotated[str | None, typer.Option(help="Name of a test in it.")] = None,
    near: Annotated[tuple[str, str] | None, typer.Option(help="Two words: why are they near each other?")] = None,
    text: Text = None,
    id_column: IdColumn = None,
    unit: Annotated[str, typer.Option(help="What is removed: sentence, window or document.")] = "sentence",
    width: Annotated[int, typer.Option(help="Numbers a vector.")] = 100,
    epochs: Annotated[int, typer.Option(help="Passes over the text.")] = 15,
    min_count: Annotated[int, typer.Option(help="Words that occur less often have no vector.")] = 5,
    k: Annotated[int, typer.Option("-k", help="How many to remove, and to edit by.")] = 50,
    seeds: Annotated[int, typer.Option(help="Trainings without each set; 0 trains nothing again.")] = 3,
    pairs: Annotated[str | None, typer.Option(help="For hard debiasing: he:she,man:woman. Default: gender.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the vectors there.")] = None,
    out: Annotated[Path | None, typer.Option(help="Page to write: an .html file.")] = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train word vectors on a text and find the sentences behind a bias (WEAT), or behind two words being near.

    Example: whence words articles.csv --weat weat.json --test weat6 --out page.html
    """
    check_page(out)
    _check_arguments(data, vectors, (weat, test, near))
    measurement = _measurement(weat, test, near)
    settings = WordsSettings(k=k, seeds=seeds, pairs=_pairs(pairs), seed=seed)
    console = terminal()
    with Stages(quiet=quiet) as stages:
        if vectors is not None:
            words, source = load_words(vectors), str(vectors)
            _counts(console, measurement, words.vocabulary, as_json)
        else:
            assert data is not None
            stages(f"reading {plain(data, 60)}", 0)
            texts = read_texts(data, text=text, id_column=id_column)
            corpus = word_corpus(texts.texts, unit=_unit(unit), ids=texts.ids, min_count=min_count, seed=seed)
            source = texts.source
            _counts(console, measurement, corpus.vocabulary, as_json)
            stages(f"training vectors of {len(corpus.vocabulary):,} words", 0)
            words = train_words(corpus, width=width, epochs=epochs, seed=seed)
        watch = Watch(stage=stages, steps=stages.steps)
        found = words_data(words, measurement, settings, source=source, version=__version__, watch=watch)
    if save is not None:
        _write(save, words)
    if out is not None:
        try:
            out.write_text(render_words(found), encoding="utf-8")
        except OSError as error:
            raise DataError(f"page {str(out)!r} must be writable, got: {error.strerror or error}.") from error
    if as_json:
        print_json("words", found)
        return
    _print(console, found, out)


def _check_arguments(data: str | None, vectors: Path | None, asked: tuple[Any, Any, Any]) -> None:
    """Raise unless there is one source and one question."""
    weat, test, near = asked
    if (data is None) == (vectors is None):
        raise ConfigError("either a text or --vectors must be given, got both or neither. Name one of them.")
    if (weat is None) != (test is None):
        raise ConfigError("--weat and --test must be given together: the file, and the name of a test in it.")
    if (weat is None) == (near is None):
        raise ConfigError("either --weat with --test or --near A B must be given, got both or neither.")


def _measurement(weat: Path | None, test: str | None, near: tuple[str, str] | None) -> WEAT | WordSimilarity:
    """Return what is asked."""
    if near is not None:
        return WordSimilarity(near[0].lower(), near[1].lower())
    assert weat is not None and test is not None
    return WEAT.from_file(weat, test)


def _unit(unit: str) -> Literal["sentence", "window", "document"]:
    """Return what an example is."""
    for known in ("sentence", "window", "document"):
        if unit == known:
            return known
    raise ConfigError(f"--unit must be sentence, window or document, got {unit!r}.")


def _pairs(pairs: str | None) -> tuple[tuple[str, ...], ...] | None:
    """Return the pairs that were named."""
    if pairs is None:
        return None
    found = tuple(tuple(word.strip().lower() for word in pair.split(":")) for pair in pairs.split(",") if pair.strip())
    if not found or any(len(pair) < 2 or not all(pair) for pair in found):
        raise ConfigError(f"--pairs must be like he:she,man:woman, got {pairs!r}.")
    return found


def _write(path: Path, words: WordEmbedding) -> None:
    """Write the vectors."""
    try:
        words.save(path)
    except OSError as error:
        raise DataError(f"vectors {str(path)!r} must be writable, got: {error.strerror or error}.") from error


def _counts(console: Console, measurement: WEAT | WordSimilarity, vocabulary: Any, silent: bool) -> None:
    """Print how often the words of every list occur, before anything is trained."""
    if silent:
        return
    if isinstance(measurement, WordSimilarity):
        for word in (measurement.word, measurement.other):
            times = int(vocabulary.counts[vocabulary.position(word)])
            console.print(f"[bold]{escape(plain(word, 40))}[/] occurs {times:,} times" if times else escape(word))
        return
    for one in count_lists(measurement, vocabulary):
        held = [word for word in one["words"] if word["used"]]
        told = ", ".join(f"{word['word']} {word['count']:,}" if word["count"] else word["word"] for word in held)
        console.print(
            f"[bold]{escape(plain(one['label'], 30))}[/] {len(held)} of {len(one['words'])} words: "
            f"[dim]{escape(plain(told, 2 * _WIDE))}[/]", soft_wrap=True,
        )  # fmt: skip
    measurement.places(vocabulary)


def _print(console: Console, found: dict[str, Any], out: Path | None) -> None:
    """Print the measurement, the sentences, and what changes it."""
    told, removal = found["measurement"], found["removal"]
    name, unit = escape(plain(told["name"], 60)), found["data"]["unit"]
    chance = "" if told["p_value"] is None else f", p = {told['p_value']:.3g}"
    console.print(f"[bold]{name}[/]: [bold]{told['value']:+.3f}[/] {told['unit']}{chance}")
    if told["missing"]:
        console.print(f"[yellow]{escape(plain(told['missing'], 400))}[/]", soft_wrap=True)
    for side in ("raise", "lower") if found["sentences"] else ():
        console.print(f"{unit.capitalize()}s that {side} it:")
        for one in found["sentences"][side][:_SHOWN]:
            console.print(f"  [dim]{one['score']:+.3g}[/] {escape(plain(one['text'], _WIDE))}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "after", "change", "predicted", "p"):
        table.add_column(title, justify="right" if title else "left")
    for row in removal["rows"] if removal else ():
        which = "random" if row["name"] == "random" else f"that {row['name']} it"
        change = _range(row["change"])
        table.add_row(f"without {removal['k']} {which}", f"{row['after'][0]:+.3f}", change, f"{row['predicted']:+.2f}",
                      _share(row["p_value"]))  # fmt: skip
    if found["edit"]:
        edit = found["edit"]
        table.add_row(f"edited, {edit['steps']} steps", f"{edit['after']:+.3f}", "", "", _share(edit["p_value"]))
    if found["debias"]:
        fair = found["debias"]
        table.add_row("hard debiasing", f"{fair['after']:+.3f}", "", "", _share(fair["p_value"]))
    if table.row_count:
        console.print(table)
    if out is not None:
        console.print(f"page: [bold]{escape(str(out))}[/]", soft_wrap=True)


def _range(interval: list[float | None]) -> str:
    """Return a mean with its interval where there is one."""
    value, low, high = interval
    return f"{value:+.3f}" if low is None or high is None else f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def _share(value: float | None) -> str:
    """Return a p-value."""
    return "" if value is None else f"{value:.3f}"
