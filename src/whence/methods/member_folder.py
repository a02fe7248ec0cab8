"""A folder of models that were trained alike, one file each, and what they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from whence.errors import RunFormatError
from whence.features import MANIFEST, check_target, read_manifest, read_tensors, write_manifest, write_tensors
from whence.tasks import Recipe
from whence.tasks.describe import describe

__all__ = ["MemberFolder", "recipe_identity", "told"]

_KIND = "members"


@dataclass(frozen=True, kw_only=True, eq=False)
class MemberFolder:
    """Where members lie, so that a killed run resumes.

    Args:
        folder: One safetensors file a member.
    """

    folder: Path

    def path(self, number: int) -> Path:
        """Return where a member lies."""
        return self.folder / f"member-{number:03d}.safetensors"

    def begin(self, identity: dict[str, Any]) -> None:
        """Take the folder for members of this identity, or go on with those that are there.

        Raises:
            RunFormatError: It holds members of another model, data or settings, or something else.
        """
        if (self.folder / MANIFEST).is_file():
            found = read_manifest(self.folder, _KIND)["identity"]
            different = [key for key in sorted({*found, *identity}) if found.get(key) != identity.get(key)]
            if different:
                raise RunFormatError(
                    f"members in {str(self.folder)!r} must be of the same {different[0]}, got "
                    f"{found.get(different[0])!r} there and {identity.get(different[0])!r} now. Name a new folder."
                )
            return
        check_target(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_manifest(self.folder, {"kind": _KIND, "identity": identity})
        except OSError as error:
            raise RunFormatError(f"folder must be writable, got {str(self.folder)!r} ({error.strerror}).") from error

    def note(self, name: str, value: float) -> None:
        """Keep a number beside the members."""
        manifest = read_manifest(self.folder, _KIND)
        write_manifest(self.folder, {**manifest, "noted": {**manifest.get("noted", {}), name: value}})

    def noted(self, name: str) -> float | None:
        """Return a number that was kept, or None."""
        found: dict[str, float] = read_manifest(self.folder, _KIND).get("noted", {})
        return found.get(name)

    def keep(self, number: int, state: Mapping[str, Tensor]) -> None:
        """Write a member's weights, whole or not at all."""
        write_tensors(self.path(number), state)

    def read(self, number: int, into: nn.Module) -> nn.Module:
        """Load a member's weights into a model; return it in evaluation mode.

        Raises:
            RunFormatError: The file is damaged, or of a model of another kind.
        """
        path = self.path(number)
        try:
            into.load_state_dict(read_tensors(path))
        except (RunFormatError, RuntimeError) as error:
            raise RunFormatError(
                f"{path} must hold the weights of a {type(into).__name__} as its model is built, got a damaged file or "
                "other weights. Delete it and run again."
            ) from error
        return into.eval()


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """Return what tells a recipe from others, setting by setting."""
    return {f"recipe's {name}": told(value) for name, value in vars(recipe).items()}


def told(setting: Any) -> str:
    """Return a setting as text that is the same in every process; of functions what they do, not their names.

    Raises:
        ConfigError: It cannot be described.
    """
    if isinstance(setting, (str, int, float, type(None))):
        return repr(setting)
    return f"{getattr(setting, '__qualname__', type(setting).__qualname__)} {describe(setting)[:16]}"
