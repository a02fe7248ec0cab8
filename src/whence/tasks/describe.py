"""A fingerprint of settings that holds what functions and objects do, not where they lie in memory."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import ConfigError

__all__ = ["describe"]

_VERSION = "retraining 2"
_PLAIN = (str, bytes, bool, int, float, complex, type(None), type(...), np.generic, np.dtype, torch.dtype, torch.device,
          torch.Size, range, Path)  # fmt: skip
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_CLASS_STATE = ("_abc_impl",)
_HEAP_TYPE = 1 << 9


def describe(*parts: Any) -> str:
    """Return SHA-256 over settings, the same in every process.

    Functions count by bytecode, constants, defaults, and the values of the variables that they close over and of the
    globals that they name; partial functions by function and arguments; dataclasses by fields; other objects by class
    and state; what belongs to an installed package by name. Whatever has a string ``fingerprint`` counts by it.

    Raises:
        ConfigError: Something cannot be described.
    """
    digest = hashlib.sha256(_VERSION.encode())
    for part in parts:
        digest.update(_Describer().text(part).encode() + b"\0")
    return digest.hexdigest()


class _Describer:
    """Turns a value into text; functions and classes that it meets again stand by the number of their first turn."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.within: set[int] = set()

    def text(self, value: Any) -> str:
        """Return a description that does not depend on the process."""
        if isinstance(value, Enum) or (isinstance(value, _PLAIN) and type(value).__repr__ is not object.__repr__):
            return f"{type(value).__qualname__} {value!r}"
        own = getattr(value, "fingerprint", None)
        if isinstance(own, str):
            return f"{_name(value)} fingerprint {own}"
        if isinstance(value, (FunctionType, type)):
            if id(value) in self.numbers:
                return f"#{self.numbers[id(value)]}"
            self.numbers[id(value)] = len(self.numbers)
            return self._function(value) if isinstance(value, FunctionType) else self._class(value)
        if id(value) in self.within:
            return "itself"
        self.within.add(id(value))
        try:
            return self._composed(value)
        finally:
            self.within.discard(id(value))

    def _composed(self, value: Any) -> str:
        """Return the description of something made of other values."""
        if isinstance(value, (Tensor, np.ndarray)):
            return _array(value)
        if isinstance(value, ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, CodeType):
            return self._code(value)
        if callable(value):
            found = self._callable(value)
            if found is not None:
                return found
        kind = self.text(type(value))
        if is_dataclass(value):
            return f"{kind} {self._named({f.name: getattr(value, f.name, None) for f in fields(value)})}"
        if isinstance(value, (Mapping, list, tuple, set, frozenset)):
            return f"{kind} {self._entries(value)}"
        return f"{kind} {self._state(value)}"

    def _callable(self, value: Any) -> str | None:
        """Return the description of what Python itself makes of functions; None for an object of another class."""
        if isinstance(value, functools.partial):
            return f"partial {self.text(value.func)} {self.text(value.args)} {self._named(value.keywords)}"
        if isinstance(value, MethodType):
            return f"method {self.text(value.__func__)} of {self.text(value.__self__)}"
        if isinstance(value, BuiltinFunctionType):
            return f"{_name(value)} of {self.text(value.__self__)}"
        if inspect.isroutine(value) and hasattr(value, "__objclass__"):  # a method of a class written in C
            return f"{_name(value)} of {value.__objclass__.__qualname__}"
        if isinstance(value, np.ufunc):
            return f"ufunc {value.__name__}"
        wrapped = getattr(value, "__wrapped__", None)
        return f"cached {self.text(wrapped)}" if isinstance(wrapped, FunctionType) else None

    def _entries(self, value: Any) -> str:
        """Return a container's entries, and what a user's own kind of container holds besides."""
        if isinstance(value, Mapping):
            entries = [self.text(key) + ": " + self.text(entry) for key, entry in value.items()]
        else:
            entries = [self.text(entry) for entry in value]
        held = getattr(value, "__dict__", {})
        return f"{sorted(entries) if isinstance(value, (set, frozenset)) else entries} {self._named(held)}"

    def _named(self, values: Mapping[str, Any]) -> str:
        """Return the description of named values; their order does not matter."""
        return str([(name, self.text(values[name])) for name in sorted(values)])

    def _state(self, value: Any) -> str:
        """Return the state of an object of a class written in Python, as pickling would take it."""
        written = all(kind.__flags__ & _HEAP_TYPE for kind in type(value).__mro__[:-1])
        try:
            state = value.__getstate__()
        except Exception as error:  # a user's class may raise anything
            raise _refusal(value) from error
        if not written or (state is None and not hasattr(value, "__dict__")):
            raise _refusal(value)
        return self._named(state) if isinstance(state, dict) else self.text(state)

    def _function(self, function: FunctionType) -> str:
        """Return the description of a function written in Python."""
        cells = [self._cell(cell) for cell in function.__closure__ or ()]
        defaults = self.text(function.__defaults__), self._named(function.__kwdefaults__ or {})
        if _installed(function.__module__):
            return f"{_name(function)} of {function.__module__} {defaults if cells else ''} {cells}"
        names = _globals(function.__code__)
        known = {name: function.__globals__[name] for name in names if name in function.__globals__}
        return f"{_name(function)} {self._code(function.__code__)} {defaults} {cells} {self._named(known)}"

    def _cell(self, cell: Any) -> str:
        """Return the description of a variable that is closed over; one that has no value yet is empty."""
        try:
            value = cell.cell_contents
        except ValueError:
            return "empty"
        return self.text(value)

    def _class(self, kind: type) -> str:
        """Return a class by name, a user's own with its bases, functions and constants."""
        name = f"class {kind.__module__ if _installed(kind.__module__) else ''} {kind.__qualname__}"
        if _installed(kind.__module__):
            return name
        own = {key: _plainly(entry) for key, entry in vars(kind).items() if key not in _CLASS_STATE}
        held = {
            key: entry
            for key, entry in own.items()
            if isinstance(entry, FunctionType) or not (key.startswith("__") or hasattr(entry, "__get__"))
        }
        return f"{name} {[self.text(base) for base in kind.__bases__]} {self._named(held)}"

    def _code(self, code: CodeType) -> str:
        """Return a digest of a function's bytecode and constants, functions inside it included."""
        constants = [self.text(constant) for constant in code.co_consts]
        return hashlib.sha256(code.co_code + repr((code.co_names, constants)).encode()).hexdigest()


def _plainly(entry: Any) -> Any:
    """Return the function inside a static or class method, or the getter of a property."""
    if isinstance(entry, property):
        return entry.fget
    if isinstance(entry, (staticmethod, classmethod)):
        return entry.__func__
    return entry.func if isinstance(entry, functools.cached_property) else entry


def _globals(code: CodeType) -> Iterator[str]:
    """Yield the names of globals that a function or one inside it loads."""
    yield from dict.fromkeys(step.argval for step in dis.get_instructions(code) if step.opname in _GLOBAL)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)


def _installed(module: str | None) -> bool:
    """Whether a module belongs to Python, to this library or to another installed package."""
    root = (module or "").partition(".")[0]
    if root in sys.stdlib_module_names or root in ("torch", "numpy", "whence"):
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return file is not None and any(Path(file).is_relative_to(place) for place in places)


def _array(value: Tensor | np.ndarray) -> str:
    """Return type, shape and a digest of the numbers."""
    if isinstance(value, Tensor):
        held = value.detach().cpu()
        held = (held.to_dense() if held.layout != torch.strided else held).contiguous()
        numbers = held.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif value.dtype.hasobject:
        raise _refusal(value)
    else:
        numbers = np.ascontiguousarray(value).tobytes()
    return f"{type(value).__qualname__} {value.dtype} {tuple(value.shape)} {hashlib.sha256(numbers).hexdigest()}"


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _refusal(value: Any) -> ConfigError:
    return ConfigError(
        f"settings that results on disk are known by must be describable, got {_name(value)!r} of {type(value)!r}. "
        "Give what holds it an attribute fingerprint, a string that names what it does, or keep no results on disk."
    )
