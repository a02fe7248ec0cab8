"""Configs of curvatures as JSON and back: names of classes with their settings, nothing that is executed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NoReturn

from whence.curvature import (
    CG,
    EKFAC,
    KFAC,
    BlockExact,
    Curvature,
    DataInf,
    Diagonal,
    Exact,
    Identity,
    Lanczos,
    LiSSA,
    Neumann,
    Nystrom,
    Projected,
    Relative,
    RowBlocks,
)
from whence.errors import ConfigError
from whence.gradients import GradientStream

__all__ = ["KNOWN", "Unknown", "curvature_from_json", "curvature_to_json"]

KNOWN: dict[str, type[Any]] = {
    "BlockExact": BlockExact, "CG": CG, "DataInf": DataInf, "Diagonal": Diagonal, "EKFAC": EKFAC, "Exact": Exact,
    "Identity": Identity, "KFAC": KFAC, "Lanczos": Lanczos, "LiSSA": LiSSA, "Neumann": Neumann, "Nystrom": Nystrom,
    "Projected": Projected, "Relative": Relative, "RowBlocks": RowBlocks,
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Unknown:
    """A curvature of the user's own, after loading: what was fitted is there, but it cannot be fitted again.

    Args:
        text: What its config said of itself.
    """

    text: str

    def __repr__(self) -> str:
        """Return what the config said of itself."""
        return self.text

    def fit(self, stream: GradientStream, *, seed: int) -> NoReturn:
        """Refuse.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"curvature must be one of {', '.join(KNOWN)} to be fitted again after loading, got {self.text}. "
            "Pass Influence(curvature=...) your own."
        )


def curvature_to_json(curvature: Curvature) -> dict[str, Any]:
    """Return a config as JSON."""
    if KNOWN.get(type(curvature).__name__) is not type(curvature):
        return {"text": repr(curvature)}
    settings = {entry.name: _to_json(getattr(curvature, entry.name)) for entry in fields(curvature)}  # type: ignore[arg-type]
    return {"name": type(curvature).__name__, "settings": settings}


def curvature_from_json(stored: Any) -> Any:
    """Restore what `curvature_to_json` returned.

    Raises:
        KeyError, TypeError, ConfigError: It is something else.
    """
    if "text" in stored:
        return Unknown(str(stored["text"]))
    return KNOWN[stored["name"]](**{name: _from_json(value) for name, value in stored["settings"].items()})


def _to_json(value: Any) -> Any:
    """Return a setting as JSON: a number, text, a sequence of them or another config."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return [_to_json(item) for item in value] if isinstance(value, (tuple, list)) else curvature_to_json(value)


def _from_json(value: Any) -> Any:
    """Restore a setting."""
    if isinstance(value, list):
        return tuple(_from_json(item) for item in value)
    return curvature_from_json(value) if isinstance(value, dict) else value
