"""Every error that whence raises on purpose, on one page.

Messages read ``"<what> must be <expected>, got <value>. <Remedy>."`` so that the command line can print
them as they are.
"""

__all__ = [
    "ConfigError",
    "DataError",
    "MissingExtraError",
    "NumericalError",
    "RunFormatError",
    "WhenceError",
]


class WhenceError(Exception):
    """Base of all errors raised by whence."""


class ConfigError(WhenceError, ValueError):
    """An argument or option has a value that cannot work."""


class DataError(WhenceError):
    """The data cannot be read, or cannot be used for what was asked."""


class NumericalError(WhenceError):
    """A computation gave non-finite numbers or did not converge."""


class RunFormatError(WhenceError):
    """A run folder is incomplete, of another version, or belongs to another model or data set."""


class MissingExtraError(WhenceError):
    """An optional dependency is needed; the message names the extra to install."""
