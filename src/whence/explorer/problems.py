"""What can go wrong with a request, in one shape: {"error": {"code", "message"}}."""

from __future__ import annotations

from typing import Any

from whence.errors import WhenceError

__all__ = ["Problem", "told"]


class Problem(WhenceError):
    """A request that cannot be answered.

    Args:
        status: HTTP status.
        code: One word for a program.
        message: One sentence for a person.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def told(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status of an error, and the one shape in which all of them are told."""
    if isinstance(error, Problem):
        status, code, message = error.status, error.code, str(error)
    elif isinstance(error, WhenceError):
        status, code, message = 400, "bad_request", str(error)
    else:
        status, code, message = 500, "internal", f"something unexpected happened ({type(error).__name__})."
    return status, {"error": {"code": code, "message": message}}
