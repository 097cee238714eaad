"""metrics.csv piece by piece: a block of complete rows at a time, by pyarrow's parser where it understands them all."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from bridge.errors import RunDirectoryError
from bridge.source.header import LONGEST_LINE, Layout, complete_rows, read_layout
from bridge.source.rows import Rows
from bridge.source.slow_rows import parse_slowly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bridge.model import Run

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
    _parsers: dict[tuple[int, str | None], _Parser] = field(default_factory=dict)

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
            parser = self._parsers[layout.at, only] = _Parser(layout, only)
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


_ALONE = 1 << 18
_MISREAD = (b"(", b"x", b"X")


class _Parser:
    """pyarrow's CSV parser for one layout, or for the columns of one metric in it."""

    def __init__(self, layout: Layout, only: str | None = None) -> None:
        import pyarrow as pa
        import pyarrow.csv as pacsv

        self._layout = layout
        self._metrics = {name: places for name, places in layout.metrics.items() if only is None or name == only}
        self._names = tuple(self._metrics)
        names = [str(place) for place in range(len(layout.columns))]
        types = dict.fromkeys(names, pa.float64())
        if layout.step is not None:
            types[names[layout.step]] = pa.int64()
        used = {layout.step, layout.time, *(place for places in self._metrics.values() for place in places)}
        wanted = [] if only is None else [name for place, name in enumerate(names) if place in used]
        self._refused = pa.ArrowInvalid
        self._read = pacsv.read_csv
        self._reader = pa.BufferReader
        self._buffer = pa.py_buffer
        # Threads for a small piece would cost more than they give.
        self._ways = [
            pacsv.ReadOptions(column_names=names, block_size=2 * LONGEST_LINE, use_threads=threads)
            for threads in (False, True)
        ]
        self._options: dict[str, Any] = {
            "parse_options": pacsv.ParseOptions(ignore_empty_lines=False, newlines_in_values=True),
            "convert_options": pacsv.ConvertOptions(
                column_types=types,
                null_values=[""],
                strings_can_be_null=True,
                check_utf8=False,
                include_columns=wanted,
            ),
        }

    def parse(self, data: bytes, cut: int, start: int, first: int) -> Rows | None:
        """The first `cut` bytes of `data` as rows, or None where only the exact road gives what Python would read."""
        layout = self._layout
        lines = int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8, count=cut) == 10))
        # pyarrow takes `nan(x)` for a number and `0x1f` for an integer; Python's float() and int() do not. A blank
        # line in a table of one column is a row without a step for pyarrow, and a bad row here.
        if len(layout.columns) < 2 or any(data.find(sign, 0, cut) >= 0 for sign in _MISREAD):
            return None
        try:
            source = self._reader(self._buffer(data).slice(0, cut))
            table = self._read(source, read_options=self._ways[cut > _ALONE], **self._options)
        except self._refused:
            return None
        count = table.num_rows
        if count != lines:  # quoted newlines, stray carriage returns
            return None
        step, valid = _ints(table, layout.step, first, count)
        time = _times(table, layout.time, count)
        values = np.empty((len(self._names), count))
        present = np.ones((len(self._names), count), dtype=bool)
        for line, places in enumerate(self._metrics.values()):
            _floats(table, places, values[line], present[line])
        stepless: tuple[int, ...] = ()
        if valid is not None:
            lost = ~valid & present.any(axis=0)
            stepless = tuple((np.flatnonzero(lost) + first).tolist())
        return Rows(
            layout=layout,
            first=first,
            start=start,
            end=start + cut,
            data=memoryview(data)[:cut],
            names=self._names,
            step=step,
            time=time,
            values=values,
            present=present,
            valid=valid,
            stepless=stepless,
        )


def _column(table: Any, place: int) -> Any:
    column = table.column(str(place))
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _known(column: Any) -> NDArray[np.bool_]:
    """Where an Arrow array has a value."""
    bits = np.frombuffer(column.buffers()[0], dtype=np.uint8)
    every = np.unpackbits(bits, bitorder="little", count=column.offset + len(column))
    known: NDArray[np.bool_] = every[column.offset :].view(np.bool_)
    return known


def _plain(column: Any, kind: type[np.generic]) -> NDArray[Any]:
    """The values of an Arrow array of 64-bit numbers, without a copy."""
    return np.frombuffer(column.buffers()[1], dtype=kind)[column.offset : column.offset + len(column)]


def _ints(table: Any, place: int | None, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    if place is None:
        return np.arange(first, first + count, dtype=np.int64), None
    column = _column(table, place)
    step: NDArray[np.int64] = _plain(column, np.int64)
    if column.null_count == 0:
        return step, None
    known = _known(column)
    return np.where(known, step, 0), known


def _times(table: Any, place: int | None, count: int) -> NDArray[np.float64]:
    if place is None:
        return np.full(count, np.nan)
    column = _column(table, place)
    times: NDArray[np.float64] = _plain(column, np.float64)
    return times if column.null_count == 0 else np.where(_known(column), times, np.nan)


def _floats(table: Any, places: tuple[int, ...], values: NDArray[np.float64], present: NDArray[np.bool_]) -> None:
    """Fill one line of `values` and `present` from the columns of one name: the last cell that is not empty counts."""
    column = _column(table, places[0])
    values[:] = _plain(column, np.float64)
    if column.null_count:
        present[:] = _known(column)
    for place in places[1:]:
        column = _column(table, place)
        known = _known(column) if column.null_count else np.ones(len(values), dtype=bool)
        np.copyto(values, _plain(column, np.float64), where=known)
        present |= known
