"""The records of a csv or jsonl text as they stand in it, so that what did not change is written back byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from json import JSONDecoder

__all__ = ["Delimited", "JsonLines"]


@dataclass(frozen=True, kw_only=True)
class Delimited:
    r"""Rows of cells, as ``pandas.read_csv`` takes them: quotes doubled, any line end, blank lines passed over.

    Args:
        text: The whole text, header first.
        separator: One character.

    Example:
        >>> rows = Delimited(text='a;label\r\n"x;y";no\r\n', separator=";")
        >>> rows.records, rows.cells(1)
        (['a;label\r\n', '"x;y";no\r\n'], ['label', 'no'])
        >>> rows.replaced(1, 1, "yes")
        '"x;y";yes\r\n'
    """

    text: str
    separator: str

    @cached_property
    def _field(self) -> str:
        plain = rf"[^{re.escape(self.separator)}\r\n]*+"
        return rf'(?>"(?:[^"]++|"")*+"{plain}|{plain})'  # atomic: a cell in quotes is never read as one without

    @cached_property
    def records(self) -> list[str]:
        """The records with their line ends and the blank lines that follow, the header's first."""
        mark = re.escape(self.separator)
        pattern = re.compile(rf"{self._field}(?:{mark}{self._field})*+(?:\r\n|\r|\n|\Z)")
        blank = " \t\r\n".replace(self.separator, "")
        found: list[str] = []
        ahead = ""
        for match in pattern.finditer(self.text):
            record = match.group()
            if record.strip(blank):
                found.append(ahead + record)
                ahead = ""
            elif found:
                found[-1] += record
            else:
                ahead += record
        return found

    @property
    def names(self) -> list[str]:
        """The cells of the header."""
        return [unquoted(match.group()) for match in self._matches(self.records[0])]

    def _cell_at(self, place: int) -> re.Pattern[str]:
        mark, blank = re.escape(self.separator), " \t".replace(self.separator, "")
        return re.compile(rf"(?:[{blank}]*[\r\n])*(?:{self._field}{mark}){{{place}}}({self._field})")

    def cells(self, place: int) -> list[str]:
        """Return the cells of one column, header included; a record too short for it has an empty one."""
        pattern = self._cell_at(place)
        found = (pattern.match(record) for record in self.records)
        return ["" if match is None else unquoted(match.group(1)) for match in found]

    def replaced(self, row: int, place: int, cell: str) -> str:
        """Return a record with another cell in one column, quoted where it must be or where the old one was."""
        record = self.records[row]
        match = self._cell_at(place).match(record)
        assert match is not None
        quoted = match.group(1).startswith('"') or re.search(rf'[{re.escape(self.separator)}"\r\n]', cell) is not None
        written = '"' + cell.replace('"', '""') + '"' if quoted else cell
        return record[: match.start(1)] + written + record[match.end(1) :]

    def guarded(self, row: int, runs: Callable[[str], bool]) -> str:
        """Return a record with an apostrophe before the cells that begin as formulas do and of which ``runs`` holds."""
        record, parts, end = self.records[row], [], 0
        if not self._begins_as_formula.search(record.rstrip("\r\n")):
            return record
        for match in self._matches(record):
            if runs(unquoted(match.group())):
                start = match.start() + match.group().startswith('"')
                parts.append(record[end:start] + "'")
                end = start
        return "".join(parts) + record[end:]

    @cached_property
    def _begins_as_formula(self) -> re.Pattern[str]:
        return re.compile(rf'(?:\A|[{re.escape(self.separator)}\r\n])"?[=+\-@\t\r]')

    def _matches(self, record: str) -> Iterator[re.Match[str]]:
        """Yield the cells of a record, as they stand in it."""
        pattern, start = re.compile(self._field), len(record) - len(record.lstrip("\r\n"))
        while match := pattern.match(record, start):
            yield match
            start = match.end() + 1
            if record[match.end() : start] != self.separator:
                return


def unquoted(raw: str) -> str:
    """Return what a cell holds, of its text in the file."""
    match = re.match(r'"((?:[^"]++|"")*+)"', raw)
    return raw if match is None else match.group(1).replace('""', '"') + raw[match.end() :]


@dataclass(frozen=True, kw_only=True)
class JsonLines:
    r"""One JSON object a line.

    Args:
        text: The whole text.

    Example:
        >>> rows = JsonLines(text='{"x":1,  "label":"no"}\n')
        >>> rows.replaced(0, "label", "yes")
        '{"x":1,  "label":"yes"}\n'
    """

    text: str

    @cached_property
    def records(self) -> list[str]:
        """The lines that hold an object, with their line ends."""
        lines = self.text.split("\n")
        ended = [*(f"{line}\n" for line in lines[:-1]), lines[-1]]
        return [line for line in ended if line.strip()]

    def replaced(self, row: int, name: str, value: object) -> str:
        """Return a line with another value of one key, which is added where it is missing."""
        line = self.records[row]
        found = _value(line, name)
        written = json.dumps(value, ensure_ascii=line.isascii())
        if found is not None:
            return line[: found[0]] + written + line[found[1] :]
        end = line.rindex("}")
        return f"{line[:end].rstrip()}, {json.dumps(name, ensure_ascii=line.isascii())}: {written}{line[end:]}"


def _value(line: str, name: str) -> tuple[int, int] | None:
    """Return where the value of a key of the outermost object begins and ends, of the last such key."""
    decoder, found = JSONDecoder(), None
    place = _after(line, line.index("{") + 1)
    while line[place] == '"':
        key, place = decoder.raw_decode(line, place)
        start = _after(line, _after(line, place) + 1)
        _, end = decoder.raw_decode(line, start)
        found = (start, end) if key == name else found
        place = _after(line, end)
        place = _after(line, place + 1) if line[place] == "," else place
    return found


def _after(line: str, place: int) -> int:
    """Return where the white space ends that begins at a place."""
    while place < len(line) and line[place] in " \t\r":
        place += 1
    return place
