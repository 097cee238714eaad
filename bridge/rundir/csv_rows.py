"""metrics.csv piece by piece: a block of complete rows at a time, by pyarrow's parser where it understands them all."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from bridge.errors import RunDirectoryError
from bridge.files import LONGEST_ROW, MOST_HEADERS, open_raw
from bridge.rundir.fast_rows import FEW_BYTES, Parser
from bridge.rundir.header import complete_rows, read_layout
from bridge.rundir.slow_rows import parse_slowly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.model import Run
    from bridge.rundir.header import Layout
    from bridge.rundir.rows import Rows

__all__ = ["BLOCK", "Table", "opened"]

BLOCK = 4 << 20
"""Bytes that are parsed at once: they stay in the cache, and so does what is made of them."""


@dataclass(slots=True)
class Table:
    """An open metrics.csv. `size` is as of the opening: what is written later is for the next time.

    `stat` is (size, mtime in nanoseconds) from before the first byte was read.
    """

    file: BinaryIO
    time_column: str | None
    stat: tuple[int, int] = field(init=False)
    _parsers: dict[tuple[int, str | None], Parser] = field(default_factory=dict)
    _counted: tuple[int, int] = (0, 0)
    _headers: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        found = os.fstat(self.file.fileno())
        self.stat = (found.st_size, found.st_mtime_ns)

    @property
    def size(self) -> int:
        """How many bytes the file had when it was opened."""
        return self.stat[0]

    def layout(self, at: int = 0) -> tuple[Layout, bytes] | None:
        """The header line at byte `at` and its bytes; None where there is no complete one."""
        return read_layout(self.file, self.time_column, at=at)

    def window(self, end: int, size: int = 1 << 16) -> bytes:
        """The at most `size` bytes before byte `end`; fewer where the file is shorter."""
        begin = max(0, end - size)
        self.file.seek(begin)
        return self.file.read(end - begin)

    def lines_before(self, offset: int) -> int:
        """How many lines end before byte `offset`; the nearer it is to the place last asked for the quicker."""
        place, count = self._counted if self._counted[0] <= offset else (0, 0)
        self.file.seek(place)
        while place < offset:
            piece = self.file.read(min(BLOCK, offset - place))
            if not piece:
                break
            count += piece.count(b"\n")
            place += len(piece)
        self._counted = place, count
        return count

    def rows(
        self,
        layout: Layout,
        offset: int,
        first: int,
        *,
        block: int = BLOCK,
        stop: int | None = None,
        only: str | None = None,
    ) -> Iterator[Rows]:
        """The complete rows from byte `offset` on, which have numbers from `first` on, below the header `layout`.

        `block` is about how many bytes are taken at once, `stop` where to end (default: the size at the opening); with `only`
        (a metric) other metrics may be missing from the rows. What follows the last newline is not there yet. Raises RunDirectoryError for a line longer than LONGEST_ROW.
        """
        for start, data, cut in self._pieces(offset, block, self.size if stop is None else stop):
            for rows in self._parse(layout, data, cut, start, first, only):
                if rows.layout.at != layout.at:
                    self._count_header(rows.layout.at)
                layout, first = rows.layout, rows.first + len(rows)
                yield rows

    def _count_header(self, at: int) -> None:
        self._headers.add(at)
        if len(self._headers) > MOST_HEADERS:
            raise RunDirectoryError(
                f"{self.file.name} has more than {MOST_HEADERS:,} header lines.",
                hint="Mend the file: the first line names the columns.",
            )

    def _pieces(self, offset: int, block: int, stop: int) -> Iterator[tuple[int, bytes, int]]:
        """Byte offset, data, and how much of the data is complete rows; what is not is read again, which is no copy."""
        wanted = block
        while offset < stop:
            self.file.seek(offset)
            data = self.file.read(min(wanted, stop - offset))
            cut = complete_rows(data)
            if cut:
                yield offset, data, cut
                offset, wanted = offset + cut, block
            elif len(data) < wanted:
                return
            elif len(data) > LONGEST_ROW:
                line = self.lines_before(offset) + 1
                raise RunDirectoryError(
                    f"{self.file.name}:{line} is longer than {LONGEST_ROW >> 20} MiB.",
                    hint="A quote that is never closed makes one line of all that follows.",
                )
            else:
                wanted *= 2

    def _parse(
        self, layout: Layout, data: bytes, cut: int, start: int, first: int, only: str | None, *, few: bool = False
    ) -> Iterator[Rows]:
        parser = self._parsers.get((layout.at, only))
        if parser is None:
            parser = self._parsers[layout.at, only] = Parser(layout, only)
        rows = parser.parse(data, cut, start, first, few=few)
        if rows is not None:
            yield rows
        elif parser.crowded:
            for offset, piece in _small_pieces(data[:cut]):
                for rows in self._parse(layout, piece, len(piece), start + offset, first, only, few=True):
                    layout, first = rows.layout, rows.first + len(rows)
                    yield rows
        else:
            yield from parse_slowly(data[:cut], layout=layout, start=start, first=first, time_column=self.time_column)


def _small_pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Complete rows of `data`, about FEW_BYTES at once, with their place in it."""
    offset, wanted = 0, FEW_BYTES
    while offset < len(data):
        piece = data[offset : offset + wanted]
        cut = len(piece) if len(piece) < wanted else complete_rows(piece)
        if cut:
            yield offset, piece[:cut]
            offset, wanted = offset + cut, FEW_BYTES
        else:
            wanted *= 2


@contextlib.contextmanager
def opened(run: Run) -> Iterator[Table | None]:
    """The metrics.csv of `run`, open for reading; None where there is none. Raises RunDirectoryError where it cannot be."""
    found = run.files.get("metrics.csv")
    if found is None:
        yield None
        return
    try:
        file = open_raw(found.path)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise RunDirectoryError(f"{found.path} cannot be read: {error.strerror}.") from error
    with file:
        yield Table(file, run.time_column)
