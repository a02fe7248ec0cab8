"""Show files of the repository as pages: ``{{ file; PATH }}`` is replaced by the text below the file's own heading."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
CALL = re.compile(r"\{\{\s*file;\s*(\S+)\s*\}\}")


def on_files(files: Any, *, config: Any) -> Any:
    """Add the charts of the benchmarks."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.svg")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Put the files in."""

    def fill(call: re.Match[str]) -> str:
        text = (ROOT / call[1]).read_text("utf-8")
        return re.sub(r"\A(?:<!--.*?-->\s*)?# [^\n]*\n", "", text, flags=re.DOTALL)

    return CALL.sub(fill, markdown)
