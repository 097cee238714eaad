"""metrics.csv piece by piece: a block of complete rows at a time, by pyarrow's parser where it understands them all."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from bridge.errors import RunDirectoryError
from bridge.source.fast_rows import Parser
from bridge.source.header import LONGEST_LINE, complete_rows, read_layout
from bridge.source.slow_rows import parse_slowly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.model import Run
    from bridge.source.header import Layout
    from bridge.source.rows import Rows

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
        """How many lines end before byte `offset`."""
        self.file.seek(0)
        count = 0
        while offset > 0:
            piece = self.file.read(min(BLOCK, offset))
            if not piece:
                break
            count += piece.count(b"\n")
            offset -= len(piece)
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
        (a metric) other metrics may be missing from the rows. What follows the last newline is not there yet. Raises RunDirectoryError for a line longer than LONGEST_LINE.
        """
        for start, data, cut in self._pieces(offset, block, self.size if stop is None else stop):
            for rows in self._parse(layout, data, cut, start, first, only):
                layout, first = rows.layout, rows.first + len(rows)
                yield rows

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
            elif len(data) > LONGEST_LINE:
                line = self.lines_before(offset) + 1
                raise RunDirectoryError(
                    f"{self.file.name}:{line} is longer than {LONGEST_LINE >> 20} MiB.",
                    hint="A quote that is never closed makes one line of all that follows.",
                )
            else:
                wanted *= 2

    def _parse(self, layout: Layout, data: bytes, cut: int, start: int, first: int, only: str | None) -> list[Rows]:
        parser = self._parsers.get((layout.at, only))
        if parser is None:
            parser = self._parsers[layout.at, only] = Parser(layout, only)
        rows = parser.parse(data, cut, start, first)
        if rows is not None:
            return [rows]
        return parse_slowly(data[:cut], layout=layout, start=start, first=first, time_column=self.time_column)


@contextlib.contextmanager
def opened(run: Run) -> Iterator[Table | None]:
    """The metrics.csv of `run`, open for reading; None where there is none. Raises RunDirectoryError where it cannot be."""
    found = run.files.get("metrics.csv")
    if found is None:
        yield None
        return
    try:
        file = found.path.open("rb", buffering=0)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise RunDirectoryError(f"{found.path} cannot be read: {error.strerror}.") from error
    with file:
        yield Table(file, run.time_column)
