"""What a user may say about a file before it is read."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from whence.errors import ConfigError

__all__ = ["ReadOptions"]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Which column plays which part; everything left None is worked out from the columns.

    Args:
        label: column (or npz array) with the class of each row; None takes the one column called
            label, labels, target or class, else the one called y or category.
        text: free-text column, or several joined with commas ("title,description").
        image: column with image files, encoded images or arrays (in npz: the array).
        id: column whose values name the rows; None takes a unique column called id, else row numbers.
        split: column that tells train from test; None takes a column called split.
        reference: column that marks the rows the user vouches for (1/0, true/false, yes/no).
        drop: columns that must not be used.
        size: side in pixels that images of a folder or column are resized to; None keeps images that
            are all of one size of at most 64 pixels, and otherwise reduces to at most 64.
        encoding: of a text file, as Python names it ("cp1252", "utf-16"); None for UTF-8, and for csv that is not
            UTF-8 Windows-1252, with a note.

    Raises:
        ConfigError: a column given two parts, a size below 1, or an encoding that Python does not know.

    Example:
        >>> ReadOptions(label="credit", drop=("telephone",)).drop
        ('telephone',)
    """

    label: str | None = None
    text: str | None = None
    image: str | None = None
    id: str | None = None
    split: str | None = None
    reference: str | None = None
    drop: tuple[str, ...] = ()
    size: int | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        drop: object = self.drop
        object.__setattr__(self, "drop", (drop,) if isinstance(drop, str) else tuple(self.drop))
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise ConfigError(f"size must be at least 1 pixel, got {self.size!r}. Try 32.")
        if self.encoding is not None and not _decodes_text(self.encoding):
            raise ConfigError(f"encoding must be one that Python knows, got {self.encoding!r}. Try cp1252 or utf-16.")
        if self.text is not None and self.image is not None:
            raise ConfigError(
                f"only one of text and image may be given, got text {self.text!r} and image {self.image!r}. "
                "Drop one of them."
            )
        taken: dict[str, str] = {}
        for part in ("label", "text", "image", "split", "reference"):
            column = getattr(self, part)
            if column is not None and column in taken:
                raise ConfigError(
                    f"{part} must be another column than {taken[column]}, got {column!r} for both. Name two columns."
                )
            if column is not None:
                taken[column] = part
        clash = [name for name in self.drop if name in taken]
        if clash:
            raise ConfigError(
                f"drop must not hold a column in use, got {clash[0]!r}, which is the {taken[clash[0]]} column. "
                "Remove it from drop."
            )


def _decodes_text(encoding: str) -> bool:
    """Whether Python turns bytes into text by that name (and not text into text, as "rot13" does)."""
    try:
        codecs.lookup(encoding)
        return isinstance(b"a".decode(encoding, "replace"), str)
    except (LookupError, ValueError):
        return False
