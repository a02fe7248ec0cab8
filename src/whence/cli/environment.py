"""What this machine offers, looked up without changing anything: processors, memory, devices, packages, folders."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["devices", "folder", "memory", "packages", "processors", "system"]

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)[^;]*(?:;.*extra\s*==\s*['\"]([^'\"]+)['\"])?")
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def system() -> dict[str, Any]:
    """Return Python, operating system and whether output goes to a terminal."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "encoding": sys.stdout.encoding,
        "no_color": bool(os.environ.get("NO_COLOR")),
    }


def processors() -> dict[str, Any]:
    """Return how many processors there are, how many this process may use, and how many threads PyTorch takes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"count": os.cpu_count(), "usable": usable, "threads": torch.get_num_threads()}


def memory() -> dict[str, int | None]:
    """Return bytes of memory in all, available now, and the container's limit; None where the system does not say."""
    available = None
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limits = [int(line) for path in _CGROUPS for line in _lines(path) if line.isdigit()]
    total = _pages("SC_PHYS_PAGES")
    limit = min((value for value in limits if total is None or value < total), default=None)
    return {"total_bytes": total, "available_bytes": available, "limit_bytes": limit}


def devices() -> list[dict[str, Any]]:
    """Return every device that PyTorch sees, and whether it multiplies two small matrices without an error."""
    found = [{"name": "cpu", "description": platform.processor() or platform.machine(), "float64": True}]
    if torch.cuda.is_available():
        for place in range(torch.cuda.device_count()):
            known = torch.cuda.get_device_properties(place)
            found.append({"name": f"cuda:{place}", "description": known.name, "float64": True,
                          "memory_bytes": known.total_memory})  # fmt: skip
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "description": "Apple GPU", "float64": False})
    return [{**device, **_tried(str(device["name"]))} for device in found]


def packages() -> tuple[dict[str, str | None], dict[str, dict[str, str | None]]]:
    """Return versions of what whence needs, and of what its extras need, by extra; None for what is missing."""
    needed: dict[str, str | None] = {}
    extras: dict[str, dict[str, str | None]] = {}
    for line in metadata.requires("whence") or ():
        match = _REQUIREMENT.match(line)
        if match is not None:
            name, extra = match.groups()
            (needed if extra is None else extras.setdefault(extra, {}))[name] = _version(name)
    return needed, extras


def folder(path: Path, *, file: bool = False) -> dict[str, Any]:
    """Return whether a folder (or a file's) can be read and written, and its room; it need not have been made yet."""
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    reason = None
    if not there.is_dir():
        reason = None if file and there == path.absolute() else f"{there.name} is a file"
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
    return {
        "path": str(path),
        "exists": path.exists(),
        "readable": os.access(path if path.exists() else there, os.R_OK),
        "writable": reason is None,
        "reason": reason,
        "free_bytes": shutil.disk_usage(there).free,
    }


def _tried(device: str) -> dict[str, Any]:
    """Return whether a device computes."""
    try:
        ones = torch.ones(8, 8, device=device)
        right = float((ones @ ones).sum()) == 512
    except (RuntimeError, AssertionError) as error:
        return {"works": False, "reason": " ".join(str(error).split())[:200]}
    return {"works": right, "reason": None if right else "a product of two matrices was wrong"}


def _version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _lines(path: str) -> list[str]:
    """Return the lines of a file of the system's, none where there is no such file."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _pages(name: str) -> int | None:
    """Return a number of memory pages in bytes, or None where the system does not say."""
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
