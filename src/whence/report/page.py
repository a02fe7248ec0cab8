"""What a page's script needs of a summary, written once per row and per training row, not per mention."""

from typing import Any

from whence.report.formats import MISSING, number, signed

__all__ = ["page_data", "signal_title"]

_TITLES = {
    "self_influence": "Self-influence",
    "el2n": "EL2N",
    "loo_loss": "Leave-one-out loss",
}


def page_data(summary: dict[str, Any]) -> dict[str, Any]:
    """The shown suspects in compact form: labels by number, contents of evidence in one pool.

    Args:
        summary: What ``summarise`` returned.

    Returns:
        A JSON-able dict: ``labels``, ``columns``, ``signals``, ``unit``, ``rows`` and ``pool``. Numbers that are
        only read are already text, so that the script does no formatting. Text is kept word for word, never as
        markup.

    Cost:
        One pass over ``summary["rows"]``.
    """
    packer = _Packer(summary["data"]["classes"])
    rows = [packer.row(row) for row in summary["rows"]]
    signals = [
        {"name": signal_title(signal["name"]), "text": signal["text"]} for signal in summary["method"]["signals"]
    ]
    return {
        "kind": summary["data"]["kind"],
        "unit": summary["method"]["unit"],
        "labels": list(packer.labels),
        "columns": list(packer.columns),
        "signals": signals,
        "rows": rows,
        "pool": packer.pool,
    }


def signal_title(name: str) -> str:
    """A column's name as words: ``self_influence`` is ``Self-influence``."""
    words = name.replace("_", " ")
    return _TITLES.get(name, words[:1].upper() + words[1:])


class _Packer:
    """Numbers labels, columns and training rows in the order in which they first occur."""

    def __init__(self, classes: list[str]) -> None:
        self.labels = {name: place for place, name in enumerate(classes)}
        self.columns: dict[str, int] = {}
        self.pool: list[list[Any]] = []
        self.pooled: dict[str, int] = {}

    def label(self, name: str | None) -> int:
        return -1 if name is None else self.labels.setdefault(name, len(self.labels))

    def content(self, content: dict[str, Any]) -> Any:
        """Text as a string, an image as [png, width, height], cells as {column number: value or null}."""
        if content["kind"] == "text":
            return content["text"]
        if content["kind"] == "image":
            return [content["png"], content["width"], content["height"]]
        places = [self.columns.setdefault(cell["name"], len(self.columns)) for cell in content["cells"]]
        values = [None if cell["missing"] else cell["value"] for cell in content["cells"]]
        packed: dict[str, Any] = {"values": values}
        if places != list(range(len(places))):
            packed["places"] = places
        if content.get("omitted"):
            packed["omitted"] = content["omitted"]
        return packed

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        scores = [abs(argument["score"] or 0.0) for argument in row["evidence"]]
        largest = max(scores, default=0.0) or 1.0
        packed = {
            "id": row["id"],
            "rank": row["rank"],
            "given": self.label(row["label"]),
            "suggested": self.label(row["suggested_label"]),
            "suspicion": row["suspicion"],
            "flagged": row["is_suspect"],
            "content": self.content(row["content"]),
            "signals": [
                [number(value), None if row["places"][name] is None else round(row["places"][name], 3)]
                for name, value in row["signals"].items()
            ],
            "evidence": [
                [self.argument(argument), self.score(argument), round(100 * size / largest)]
                for argument, size in zip(row["evidence"], scores, strict=True)
            ],
        }
        if row["duplicates"]:
            packed["duplicates"] = [
                [other["id"], self.label(other["label"]), other["kind"]] for other in row["duplicates"]
            ]
        if row.get("conflict"):
            packed["conflict"] = True
        return packed

    @staticmethod
    def score(argument: dict[str, Any]) -> str:
        return MISSING if argument["score"] is None else signed(argument["score"])

    def argument(self, argument: dict[str, Any]) -> int:
        name = argument["id"]
        if name not in self.pooled:
            self.pooled[name] = len(self.pool)
            self.pool.append([name, self.label(argument["label"]), self.content(argument["content"])])
        return self.pooled[name]
