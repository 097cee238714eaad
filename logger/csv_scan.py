"""Looking through a metrics.csv that is there already: where its complete rows end, and what they hold."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["CHUNK", "Scan", "cells", "first_record", "header", "holds_headers", "scan"]

CHUNK = 1 << 20
_LONGEST_RECORD = 64 * 1024
"""A last record across several lines that is longer than this is taken for a stray quote, not for a cell of text."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a look through metrics.csv found.

    `columns` is the header, which ends at byte `start`; `rows` complete rows follow it, the last ends at byte `end` of `size`.
    `lines`: every line is a record, because no cell is quoted. `headers`: more header lines may stand among the rows.
    """

    columns: tuple[str, ...] = ()
    start: int = 0
    rows: int = 0
    end: int = 0
    size: int = 0
    lines: bool = True
    headers: bool = False


def scan(path: Path) -> Scan:
    """Look through the file `path` once, at the speed of the disk. Without a complete header nothing is complete."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        columns, start = first_record(file)
        if not columns:
            return Scan(size=size)
        file.seek(start)
        count = _Count(start)
        headers, tail = False, b""
        while chunk := file.read(CHUNK):
            count.feed(chunk)
            headers = headers or _may_hold_header(tail + chunk)
            tail = chunk[-8:]
    # A quote that nobody closed would make one endless record of all that follows it.
    lines = count.quotes == 0 or (count.odd and size - count.record_end > _LONGEST_RECORD)
    rows, end = (count.lines, count.line_end) if lines else (count.records, count.record_end)
    return Scan(columns, start, rows, end, size, lines, headers)


def first_record(file: BinaryIO) -> tuple[tuple[str, ...], int]:
    """The header at the start of `file`, and the byte after it; no columns where it is not complete yet."""
    head = b""
    for line in file:
        head += line
        if head.count(b'"') % 2 == 0 and head.endswith(b"\n"):
            text = head.decode("utf-8-sig", errors="replace")
            return tuple(next(csv.reader(io.StringIO(text, newline="")), ())), len(head)
    return (), 0


def header(path: Path) -> tuple[str, ...]:
    """The columns of the file `path`; none where there is no file, or no complete header in it."""
    try:
        with path.open("rb") as file:
            return first_record(file)[0]
    except FileNotFoundError:
        return ()


def cells(path: Path, found: Scan, *, skip: int = 0) -> Iterator[dict[str, str]]:
    """The complete rows of `path` from row `skip` on, as their cells that are not empty, by column.

    A header line among the rows is no row; from there on the columns are its own. What the csv module cannot read ends it.
    """
    columns: tuple[str, ...] = found.columns
    number = skip if found.lines and not found.headers else 0
    for record in _records(path, found, skip_lines=number):
        if found.headers and _is_header(record, columns):
            columns = tuple(record)
            continue
        number += 1
        if number > skip:
            yield {name: cell for name, cell in zip(columns, record, strict=False) if cell}


def holds_headers(path: Path, found: Scan) -> bool:
    """Whether header lines stand among the rows of `path`."""
    return any(_is_header(record, found.columns) for record in _records(path, found))


def _records(path: Path, found: Scan, *, skip_lines: int = 0) -> Iterator[list[str]]:
    with path.open("rb") as file:
        file.seek(found.start)
        part = io.BufferedReader(_Part(file, found.end), CHUNK)
        for _ in range(skip_lines):
            part.readline()
        text = io.TextIOWrapper(part, encoding="utf-8", errors="replace", newline="")
        try:
            yield from csv.reader(text, quoting=csv.QUOTE_NONE if found.lines else csv.QUOTE_MINIMAL)
        except csv.Error:
            return


def _is_header(record: list[str], columns: tuple[str, ...]) -> bool:
    """Whether `record` names columns: it holds `step`, and no number where the step is."""
    if "step" not in record:
        return False
    place = columns.index("step") if "step" in columns else -1
    return not (0 <= place < len(record) and record[place].strip().lstrip("+-").isdigit())


class _Part(io.RawIOBase):
    """A binary file up to byte `end`."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file = file
        self._left = end - file.tell()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Count:
    """Counts line ends, and among them those that end a record: outside of quotes."""

    def __init__(self, start: int) -> None:
        self.lines = self.records = self.quotes = 0
        self.line_end = self.record_end = self._at = start
        self.odd = False

    def feed(self, chunk: bytes) -> None:
        for number, part in enumerate(chunk.split(b'"')):
            if number:
                self.odd = not self.odd
                self.quotes += 1
                self._at += 1
            ends = part.count(b"\n")
            if ends:
                after = self._at + part.rfind(b"\n") + 1
                self.lines += ends
                self.line_end = after
                if not self.odd:
                    self.records += ends
                    self.record_end = after
            self._at += len(part)


def _may_hold_header(chunk: bytes) -> bool:
    """Whether a cell of `chunk` is the word `step`, as in a second header line. It may also be a cell of text."""
    at = chunk.find(b"step")
    while at >= 0:
        if chunk[at - 1 : at] in (b",", b"\n") and chunk[at + 4 : at + 5] in (b",", b"\r", b"\n"):
            return True
        at = chunk.find(b"step", at + 4)
    return False
