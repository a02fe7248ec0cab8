"""Small pieces of the generated README."""

from __future__ import annotations

from typing import Any


def machine(result: dict[str, Any]) -> str:
    """One sentence on where and with what a result was measured."""
    found = result["machine"]
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"*{found['processor']}, {found['cores']} cores, {threads} used; Python {found['python']}; "
        f"{versions}; {result['date']}.*"
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
