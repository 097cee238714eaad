"""Read the header line of metrics.csv, and find where complete rows end. Loads neither numpy nor pyarrow."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

from bridge.errors import RunDirectoryError
from bridge.files import LONGEST_ROW, MOST_COLUMNS, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A row may be one long cell. The limit of the csv module is one for the whole process.
csv.field_size_limit(max(csv.field_size_limit(), LONGEST_ROW))

BOM = b"\xef\xbb\xbf"

_FIRST_PIECE = 1 << 14
_NOT_PLAIN = re.compile(rb'["\r\n\0]|\A\Z')

# A quoted cell: it begins where a cell begins. The last group is empty if the quote is still open.
_QUOTED = re.compile(rb'(?:\A|(?<=[,\r\n]))"[^"]*+(?:""[^"]*+)*+("?)')


@dataclass(frozen=True)
class Layout:
    """The columns below a header line.

    `columns` are the cells of the line at byte `at` of the file; the rows below it begin at byte `end`. `step` and
    `time` are places of columns, None if there is no such column. `metrics` holds the places of the columns of each
    metric, by name in sorted order; a name that is there twice has two places. `renamed` are the metrics whose column
    has another name, with the length of that. `line` are the bytes between `at` and `end` if `read_layout` read them.
    """

    columns: tuple[str, ...]
    step: int | None
    time: int | None
    metrics: dict[str, tuple[int, ...]] = field(hash=False)
    at: int = 0
    end: int = 0
    renamed: tuple[tuple[str, int], ...] = ()
    line: bytes = b""

    @classmethod
    def of(cls, columns: Sequence[str], time_column: str | None, *, at: int, end: int, line: bytes = b"") -> Layout:
        """Return the layout of a header with these cells."""
        places: dict[str, list[int]] = {}
        for place, column in enumerate(columns):
            places.setdefault(metric_name(column), []).append(place)
        step = places.pop("step", [None])[-1]
        time = places.pop(time_column, [None])[-1] if time_column is not None else None
        metrics = {name: tuple(places[name]) for name in sorted(places)}
        renamed = tuple((name, len(column)) for column in columns if (name := metric_name(column)) != column)
        return cls(tuple(columns), step, time, metrics, at, end, renamed, line)


def bytes_digest(data: bytes) -> str:
    """Return a digest of bytes as text."""
    return hashlib.blake2b(data, digest_size=10).hexdigest()


def metric_name(column: str) -> str:
    """Return the name of the metric in `column`: long names are cut, NUL characters replaced (no target takes them)."""
    return shortened(column.replace("\0", "\ufffd") if "\0" in column else column)


def complete_rows(data: bytes) -> int:
    """Return how many bytes of `data`, which begins with a row, are complete rows: up to a newline outside quotes."""
    ends = (data.rfind(b"\n", begin, end) for begin, end in reversed(list(_unquoted(data))))
    return next((end for end in ends if end >= 0), -1) + 1


def first_row(data: bytes) -> int:
    """Return how many bytes the first complete row of `data` has, 0 if none is complete."""
    ends = (data.find(b"\n", begin, end) for begin, end in _unquoted(data))
    return next((end for end in ends if end >= 0), -1) + 1


def _unquoted(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each stretch of `data` before, between and after quoted cells."""
    place = 0
    for match in _QUOTED.finditer(data) if b'"' in data else ():
        yield place, match.start()
        if not match.group(1):
            return  # the quote is still open
        place = match.end()
    yield place, len(data)


def read_layout(file: BinaryIO, time_column: str | None, *, at: int = 0) -> Layout | None:
    """Return what the header line at byte `at` of metrics.csv says; None if no complete one is there yet.

    Raises RunDirectoryError for one that is longer than LONGEST_ROW, has more than MOST_COLUMNS, or is no CSV.
    """
    file.seek(at)
    data = b""
    size = _FIRST_PIECE
    while True:
        piece = file.read(size)
        data += piece
        blank = len(data) - len(data.removeprefix(BOM).lstrip(b"\r\n")) if at == 0 else 0
        length = first_row(data[blank:])
        if length:
            line, row = data[: blank + length], data[blank : blank + length].rstrip(b"\r\n")
            if len(row) <= _FIRST_PIECE and not _NOT_PLAIN.search(row):
                return _short_layout(row, time_column, at, line)
            try:
                cells = cells_of(row)
            except csv.Error as error:
                raise _no_header(file, f"is no CSV ({error})") from error
            if len(cells) > MOST_COLUMNS:
                raise _no_header(file, f"has {len(cells):,} columns, more than {MOST_COLUMNS:,}")
            return Layout.of(cells, time_column, at=at, end=at + len(line), line=line)
        if not piece:
            return None
        if len(data) > LONGEST_ROW:
            raise _no_header(file, f"is longer than {LONGEST_ROW >> 20} MiB")
        size = len(data)


@lru_cache(maxsize=256)
def _short_layout(row: bytes, time_column: str | None, at: int, line: bytes) -> Layout:
    """Return the layout of a short header `line` whose `row` has plain cells. The runs of a sweep share theirs."""
    cells = row.decode("utf-8", errors="replace").split(",")
    return Layout.of(cells, time_column, at=at, end=at + len(line), line=line)


def cells_of(row: bytes) -> list[str]:
    """Return the cells of one row. Raises csv.Error."""
    # BytesIO ends lines at newlines alone, unlike str.splitlines.
    lines = (part.decode("utf-8", errors="replace") for part in io.BytesIO(row.rstrip(b"\r\n")))
    return next(csv.reader(lines), [])


def _no_header(file: BinaryIO, problem: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"{file.name}: the header line {problem}.",
        hint="Repair the file, or move it away to export the run without its metrics.",
    )
