"""Looking through a metrics.csv that is there already: where its complete rows end, and what they hold.

What is a row, and what is none, is decided as readers of run directories decide it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["CHUNK", "Quotes", "Record", "Scan", "header", "holds_headers", "records", "scan", "whole_number"]

CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_FIELD_LIMIT = threading.Lock()


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


class Record(NamedTuple):
    """The cells of one row below the header `columns`; not `good` where readers take them for no row (a wrong number, no CSV)."""

    columns: tuple[str, ...]
    cells: list[str]
    good: bool

    def filled(self) -> dict[str, str]:
        """The cells that are not empty, by column; of several columns of one name the last, of steps the last column's."""
        found = {name: cell for name, cell in zip(self.columns, self.cells, strict=False) if cell}
        if self.good and self.columns.count("step") > 1:
            found["step"] = self.cells[_last(self.columns, "step")]
        return found


class Quotes:
    """Follows a CSV file through its bytes, from where a row begins, and tells what stands in quoted cells.

    A quote opens a cell only where a cell begins; anywhere else outside of one it is a letter like others. `inside`: a quoted cell
    is open now; `any`: there was one.
    """

    def __init__(self) -> None:
        self.inside = self.any = False
        self._closed = False  # by the last byte: a quote that follows at once stands for a quote in the cell
        self._before = b"\n"

    def pieces(self, chunk: bytes) -> list[tuple[bytes, bool]]:
        """The next bytes of the file in pieces, each with whether its line ends stand in a quoted cell."""
        first, *others = chunk.split(b'"')
        found = [(first, self.inside)] if first else []
        self._passed(first)
        for other in others:
            if self.inside:
                self.inside, self._closed = False, True
            elif self._closed or self._before in b",\r\n":
                self.inside, self._closed, self.any = True, False, True
            self._before = b'"'
            found.append((b'"' + other, self.inside))
            self._passed(other)
        return found

    def _passed(self, text: bytes) -> None:
        if text:
            self._closed, self._before = False, text[-1:]


def scan(path: Path) -> Scan:
    """Look through the file `path` once, at the speed of the disk. Without a complete header nothing is complete."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        columns, start = _first_record(file)
        if not columns:
            return Scan(size=size)
        file.seek(start)
        quotes, rows, at, end = Quotes(), 0, start, start
        headers, tail = False, b"\n"
        while chunk := file.read(CHUNK):
            for piece, inside in quotes.pieces(chunk):
                ends = 0 if inside else piece.count(b"\n")
                if ends:
                    rows, end = rows + ends, at + piece.rfind(b"\n") + 1
                at += len(piece)
            headers = headers or _may_hold_header(tail + chunk)
            tail = chunk[-8:]
    return Scan(columns, start, rows, end, size, lines=not quotes.any, headers=headers)


def _first_record(file: BinaryIO) -> tuple[tuple[str, ...], int]:
    """The header at the start of `file`, behind blank lines, and the byte after it; no columns where it is not complete yet."""
    lines: list[str] = []
    quotes, end = Quotes(), 0
    for line in file:
        text = line if end else line.removeprefix(_BOM)
        end += len(line)
        if not lines and not text.strip(b"\r\n"):
            continue
        quotes.pieces(text)
        lines.append(text.decode("utf-8", errors="replace"))
        if not quotes.inside and text.endswith(b"\n"):
            try:
                with _no_field_limit():
                    return tuple(next(csv.reader(lines), ())), end
            except csv.Error:
                break
    return (), 0


def header(path: Path) -> tuple[str, ...]:
    """The columns of the file `path`; none where there is no file, or no complete header in it."""
    try:
        with path.open("rb") as file:
            return _first_record(file)[0]
    except FileNotFoundError:
        return ()


def records(path: Path, found: Scan, *, skip: int = 0) -> Iterator[Record]:
    """The complete rows of `path` from row `skip` on.

    A header line among the rows is no row; from there on the columns are its own.
    """
    columns = found.columns
    may_hold = found.headers or "step" not in columns
    number = skip if found.lines and not may_hold else 0
    for cells, good in _cells(path, found, skip_lines=number):
        if may_hold and good and _is_header(cells, columns):
            columns = tuple(cells)
            continue
        number += 1
        if number > skip:
            yield Record(columns, cells, good and len(cells) == len(columns))


def holds_headers(path: Path, found: Scan) -> bool:
    """Whether header lines stand among the rows of `path`."""
    return any(good and _is_header(cells, found.columns) for cells, good in _cells(path, found))


def whole_number(cell: str) -> int | None:
    """The int64 that `cell` says, as a step; None where it says none."""
    try:
        number = int(cell)
    except ValueError:
        return None
    return number if -(2**63) <= number < 2**63 else None


def _cells(path: Path, found: Scan, *, skip_lines: int = 0) -> Iterator[tuple[list[str], bool]]:
    """The cells of each complete record; of one that is no CSV its text as one cell, and false."""
    lines: list[str] = []
    with path.open("rb") as file, _no_field_limit():
        file.seek(found.start)
        part = io.BufferedReader(_Part(file, found.end), CHUNK)
        for _ in range(skip_lines):
            part.readline()

        def read() -> Iterator[str]:
            for line in part:  # which end at a newline and at nothing else
                lines.append(line.decode("utf-8", errors="replace"))
                yield lines[-1]

        reader = csv.reader(read())
        while True:
            try:
                yield next(reader), True
            except StopIteration:
                return
            except csv.Error:
                yield ["".join(lines).rstrip("\r\n")], False
            lines.clear()


def _is_header(cells: Sequence[str], columns: tuple[str, ...]) -> bool:
    """Whether `cells` names columns: all are filled, with a `step`, and no number where the step is."""
    if "step" not in columns:
        return tuple(cells) == columns
    if "step" not in cells or not all(cells):
        return False
    place = _last(columns, "step")
    return place >= len(cells) or whole_number(cells[place]) is None


def _last(columns: tuple[str, ...], name: str) -> int:
    return len(columns) - 1 - columns[::-1].index(name)


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


def _may_hold_header(chunk: bytes) -> bool:
    """Whether a cell of `chunk` is the word `step`, as in a second header line. It may also be a cell of text."""
    at = chunk.find(b"step")
    while at >= 0:
        if chunk[at - 1 : at] in (b",", b"\n", b'"') and chunk[at + 4 : at + 5] in (b",", b"\r", b"\n", b'"'):
            return True
        at = chunk.find(b"step", at + 4)
    return False


@contextlib.contextmanager
def _no_field_limit() -> Iterator[None]:
    """Let csv take cells of any length, as readers do; the setting is the process's, so put it back."""
    with _FIELD_LIMIT:
        before = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(before)
