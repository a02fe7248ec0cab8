"""The small frozen values that tell a report what ran: model, method, times, warnings, limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from whence.errors import ConfigError

__all__ = [
    "MethodCard",
    "ModelCard",
    "Notice",
    "ReportLimits",
    "RunCard",
    "SecondsCard",
    "SuspicionCard",
]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The model that the scores are about.

    Args:
        name: Short name, ``"text-mlp"``.
        description: One sentence for a reader who did not build it.
        parameters: How many numbers it has, None if unknown.
        held_out_accuracy: Share in [0, 1] of rows it had not seen that it labels as given.
        majority_accuracy: The same for always answering the most frequent class.
        training_accuracy: The same on the rows it was trained on.
        seconds: Wall-clock seconds of training.
    """

    name: str
    description: str = ""
    parameters: int | None = None
    held_out_accuracy: float | None = None
    majority_accuracy: float | None = None
    training_accuracy: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """The method that gave the scores.

    Args:
        name: Short name, ``"influence, EK-FAC"``.
        description: One sentence.
        unit: Unit of its scores, ``"nats"``; None if it can only rank.
        attributed_share: Share in [0, 1] of the model's parameters that the scores cover.
        seconds: Wall-clock seconds of fitting and scoring.
        signals: What each signal column means, by column name; unknown columns show their name alone.
    """

    name: str
    description: str = ""
    unit: str | None = "nats"
    attributed_share: float = 1.0
    seconds: float | None = None
    signals: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SuspicionCard:
    """Where the line between suspect and not was drawn.

    Args:
        threshold: Rows with suspicion in [0, 1] at or above it are suspects.
        noise_rate: Estimated share of wrong labels in the data.
        noise_interval: Its interval (low, high), None if there is none.
    """

    threshold: float | None = None
    noise_rate: float | None = None
    noise_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A warning in plain words: what it is, and what it means for the reader.

    Args:
        title: A few words, ``"The model has memorised the labels"``.
        text: One to three sentences: the consequence and the remedy.
    """

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class SecondsCard:
    """Wall-clock seconds of the stages of a run; None for a stage that did not run.

    Args:
        read: Reading and preparing the data.
        train: Training.
        score: Everything after training: fitting, scores, evidence.
        total: The whole run.
    """

    read: float | None = None
    train: float | None = None
    score: float | None = None
    total: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunCard:
    """Everything about a run that is not a row of data.

    Args:
        whence: Version of this package.
        created: When, as ISO 8601 text.
        model: The model.
        method: The method.
        suspicion: Threshold and estimated noise.
        seconds: Times.
        warnings: What a reader must know before trusting the list.
    """

    whence: str
    created: str
    model: ModelCard
    method: MethodCard
    suspicion: SuspicionCard = SuspicionCard()
    seconds: SecondsCard = SecondsCard()
    warnings: tuple[Notice, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportLimits:
    """How much of a run goes into its summary.

    Args:
        suspects: At most this many flagged rows are shown; a page of 1,000 stays quick.
        runners_up: Rows just below the threshold that are shown besides, so that a reader can judge it.
        evidence: Training rows named per shown row.
        duplicates: Other members of its duplicate group named per shown row.
        groups: Groups of duplicates shown.
        text_characters: Longer texts of shown rows are cut.
        evidence_characters: The same for texts of evidence, which repeat.
        cells: Columns of a table kept per row.
        bins: Bars of a histogram.

    Raises:
        ConfigError: A limit is negative, or ``bins`` below 2.
    """

    suspects: int = 1000
    runners_up: int = 50
    evidence: int = 5
    duplicates: int = 5
    groups: int = 30
    text_characters: int = 2000
    evidence_characters: int = 600
    cells: int = 64
    bins: int = 40

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            smallest = 2 if name == "bins" else 0
            if value < smallest:
                raise ConfigError(f"{name} must be {smallest} or more, got {value}. Leave it out for the default.")
