"""Parse metrics.csv, chunk by chunk, into `Rows`: columns of numbers.

A chunk is a few megabytes of complete rows. msgspec parses a small chunk of plain numbers, pyarrow any other chunk. The
csv module parses what pyarrow would read in another way than Python (text, a row with too many cells, a newline in a
quoted cell, a header line in the middle, a blank line, ...). `bridge.rundir.resume` selects a `Block` of points from
the rows.
"""

from __future__ import annotations

import csv
import io
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import numpy as np

from bridge.errors import RunDirectoryError
from bridge.files import LONGEST_ROW, MOST_COLUMNS
from bridge.model import NoticeKind
from bridge.rundir.header import Layout, bytes_digest, complete_rows, read_layout
from bridge.rundir.rows import Rows
from bridge.rundir.run import MOST_NAMED
from logger.sidecar import parse_time
from logger.values import cell_number, is_header, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bridge.model import Cursor

CHUNK = 4 << 20
"""Bytes that are parsed at once: they and the columns made of them stay in the processor's cache."""

BAD_ROW = (NoticeKind.BAD_ROW, "")
NO_STEP = (NoticeKind.NO_STEP, "")

_FEW_BYTES = 1 << 18
"""Bytes up to which msgspec is tried first, and pyarrow's threads cost more than they gain."""

_MANY_ROWS = 1000
"""Rows in a chunk above which hardly one of them is as long as half of it."""

_MOST_CELLS = 1 << 18
"""Cells that the csv module reads before they become columns; each is a Python object until then."""


def _places(layout: Layout, only: frozenset[str] | None) -> dict[str, int] | None:
    """Return the place of each metric's column, of the metrics `only` if given; None if one has two columns."""
    wanted = {name: places for name, places in layout.metrics.items() if only is None or name in only}
    if any(len(places) > 1 for places in wanted.values()):
        return None
    return {name: place for name, (place,) in wanted.items()}


def _parse_cells(cells: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the numbers in `cells`, and which of these hold one; the others hold text."""
    numbers = [cell_number(cell) for cell in cells]
    values = np.array([0.0 if number is None else number for number in numbers], dtype=np.float64)
    return values, np.array([number is not None for number in numbers], dtype=bool)


# msgspec ------------------------------------------------------------------------------------------------------------

_NUMBERS = msgspec.json.Decoder()
_PLAIN = b"0123456789+-.eE,\r\n"
"""The bytes of numbers and what separates them. JSON made of them holds no text, no word, and no nested list."""

_MINUS_ZERO = re.compile(rb"-0[,\r\n]")
"""A float with a sign, which for JSON is the integer 0."""


def parse_plain(data: bytes, *, layout: Layout, start: int, first: int, only: frozenset[str] | None) -> Rows | None:
    """Return the rows `data` if every cell is empty or a number that JSON writes alike; else None.

    Most files hold nothing else. Few rows take less time as a list of lists in JSON than in pyarrow, whose import alone
    takes the time of a hundred runs.
    """
    metrics = _places(layout, only)
    if layout.step is None or metrics is None:
        return None
    # In JSON a carriage return is nothing.
    if data.translate(None, _PLAIN) or (b"\r" in data and data.count(b"\r") != data.count(b"\r\n")):
        return None
    text = b"[[%b]]" % data[:-1].replace(b"\n", b"],[")
    try:
        try:
            rows = _NUMBERS.decode(text)
        except msgspec.DecodeError:
            text = text.replace(b"\r", b"").replace(b",,", b",null,").replace(b",,", b",null,")
            rows = _NUMBERS.decode(text.replace(b"[,", b"[null,").replace(b",]", b",null]"))
        if set(map(len, rows)) != {len(layout.columns)}:
            return None
        cells = np.array(rows, dtype=np.float64).T  # (columns, n)
    except (msgspec.MsgspecError, OverflowError):
        return None
    step = np.array([row[layout.step] for row in rows])
    values = cells[list(metrics.values())]
    time = np.full(len(rows), np.nan) if layout.time is None else cells[layout.time].copy()
    if step.dtype != np.int64 or (not (values.all() and time.all()) and _MINUS_ZERO.search(data)):
        return None
    return Rows(
        layout=layout,
        first=first,
        start=start,
        end=start + len(data),
        data=data,
        names=tuple(metrics),
        step=step,
        time=time,
        values=values,
        present=~np.isnan(values),  # JSON has no NaN, so it stands for an empty cell
    )


# pyarrow ------------------------------------------------------------------------------------------------------------


def parse_arrow(data: bytes, *, layout: Layout, start: int, first: int, only: frozenset[str] | None) -> Rows | None:
    """Return the rows `data`, or None if pyarrow would read them in another way than Python's csv module."""
    import pyarrow as pa
    import pyarrow.csv as pacsv

    count = int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))  # three times as fast as bytes.count
    # A row has a comma or a newline for each column. With fewer bytes some line is blank or too short, and pyarrow
    # would make a whole row of empty cells of each. It takes `0x1f` for an integer, unlike Python's int().
    # One letter is found a hundred times as fast as two bytes of which the first is in every row.
    has_hex = any(letter in data and b"0" + letter in data for letter in (b"x", b"X"))
    metrics = _places(layout, only)
    if metrics is None or has_hex or count * len(layout.columns) > len(data):
        return None
    names = [str(place) for place in range(len(layout.columns))]
    use_threads = len(data) > _FEW_BYTES
    # Two blocks are parsed at once. pyarrow refuses a row that is longer than a block.
    block_size = len(data) // 2 + 1 if use_threads and count > _MANY_ROWS else 2 * LONGEST_ROW
    try:
        table = pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(column_names=names, block_size=block_size, use_threads=use_threads),
            parse_options=pacsv.ParseOptions(ignore_empty_lines=False, newlines_in_values=True),
            convert_options=_conversion(layout, only),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != count:  # a newline in quotes, or a carriage return alone
        return None
    columns = dict(zip(table.column_names, table.combine_chunks().to_batches()[0].columns, strict=True))
    valid: NDArray[np.bool_] | None = None
    if layout.step is None:
        step = np.arange(first, first + count, dtype=np.int64)
    else:
        column = columns[names[layout.step]]
        step = _numbers(column, np.int64)
        if column.null_count:
            valid = _not_null(column)
            step = np.where(valid, step, 0)
    time = np.full(count, np.nan)
    if layout.time is not None:
        column = columns[names[layout.time]]
        time = np.where(_not_null(column), _numbers(column, np.float64), np.nan)
    values, present = np.empty((len(metrics), count)), np.empty((len(metrics), count), dtype=bool)
    for metric, place in enumerate(metrics.values()):
        column = columns[names[place]]
        values[metric], present[metric] = _numbers(column, np.float64), _not_null(column)
    # pyarrow takes `nan(x)` for a number, and Python's float() does not. It makes empty cells of a blank line.
    if b"(" in data and bool((np.isnan(values) & present).any()):
        return None
    if (valid is not None or layout.step is None) and _has_blank_line(data):
        return None
    odd = {} if valid is None else {NO_STEP: np.flatnonzero(~valid & present.any(axis=0)) + first}
    return Rows(
        layout=layout,
        first=first,
        start=start,
        end=start + len(data),
        data=data,
        names=tuple(metrics),
        step=step,
        time=time,
        values=values,
        present=present,
        valid=valid,
        odd=odd,
    )


@lru_cache(maxsize=16)
def _conversion(layout: Layout, only: frozenset[str] | None) -> Any:
    """Return how pyarrow converts the columns below a header line: `only` some metrics, if given."""
    import pyarrow as pa
    import pyarrow.csv as pacsv

    types = {str(place): pa.float64() for place in (_places(layout, only) or {}).values()}
    if layout.time is not None:
        types[str(layout.time)] = pa.float64()
    if layout.step is not None:
        types[str(layout.step)] = pa.int64()
    return pacsv.ConvertOptions(
        column_types=types, null_values=[""], strings_can_be_null=True, check_utf8=False, include_columns=list(types)
    )


def _has_blank_line(data: bytes) -> bool:
    return data.startswith((b"\n", b"\r\n")) or b"\n\n" in data or b"\n\r\n" in data


def _not_null(column: Any) -> NDArray[np.bool_]:
    """Return which entries of an Arrow array are not null; its validity bitmap holds one bit for each."""
    if not column.null_count:
        return np.ones(len(column), dtype=bool)
    bits = np.frombuffer(column.buffers()[0], dtype=np.uint8)
    every = np.unpackbits(bits, bitorder="little", count=column.offset + len(column))
    known: NDArray[np.bool_] = every[column.offset :].view(np.bool_)
    return known


def _numbers(column: Any, kind: type[np.generic]) -> NDArray[Any]:
    """Return the values of an Arrow array of 64-bit numbers without a copy; anything where it is null."""
    return np.frombuffer(column.buffers()[1], dtype=kind)[column.offset : column.offset + len(column)]


# The csv module -----------------------------------------------------------------------------------------------------


def _read_records(data: bytes) -> Iterator[tuple[list[str] | None, int]]:
    """Yield each record of `data` with its length in bytes; None instead of one that is no CSV."""
    size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        for line in io.BytesIO(data):  # ends lines at a newline and at nothing else
            size += len(line)
            yield line.decode("utf-8", errors="replace")

    reader = csv.reader(lines())
    while True:
        cells: list[str] | None = None
        try:
            with suppress(csv.Error):
                cells = next(reader)
        except StopIteration:
            return
        yield cells, size
        size = 0


def parse_records(data: bytes, *, layout: Layout, start: int, first: int, time_column: str | None) -> Iterator[Rows]:
    """Yield the complete rows `data` as the csv module reads them.

    A batch for each header line, and not too large ones.
    The last batch has the layout that is in force at the end, so it may have no rows.
    """
    begin = end = start
    records: list[list[str] | None] = []
    ends: list[int] = []
    weight = widest = 0

    def batch() -> Rows:
        return _to_columns(layout, first, begin, data[begin - start : end - start], records, ends)

    for cells, size in _read_records(data):
        before, end = end, end + size
        if cells is not None and not cells:
            continue  # a blank line is nothing
        if cells is not None and len(cells) <= MOST_COLUMNS and is_header(cells, layout.columns):
            following, end = end, before
            yield batch()
            layout = Layout.of(cells, time_column, at=before, end=following)
            begin = end = following
        else:
            records.append(cells)
            ends.append(end - begin)
            weight += 1 + len(cells or ())
            if cells is not None and len(cells) == len(layout.columns):
                widest = len(cells)
            # `weight` counts the objects that the cells take, the other factor the size of the table made of them.
            if max(weight, len(records) * widest >> 3) < _MOST_CELLS:
                continue
            yield batch()
            begin = end
        first += len(records)
        records, ends, weight, widest = [], [], 0, 0
    yield batch()


def _to_columns(
    layout: Layout, first: int, start: int, data: bytes, records: Sequence[list[str] | None], ends: Sequence[int]
) -> Rows:
    """Return `records`, the cells of rows below one header line, as columns, without metrics that have no cells."""
    count = len(records)
    step, time = np.zeros(count, np.int64), np.full(count, np.nan)
    valid, has_cells = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    good: list[tuple[int, list[str]]] = []
    bad: list[int] = []
    problems: dict[int, str] = {}
    for here, cells in enumerate(records):
        problem = _why_bad(layout, cells)
        if problem or cells is None:
            bad.append(here)
            if len(problems) < MOST_NAMED:
                problems[first + here] = problem
            continue
        good.append((here, cells))
        number = first + here if layout.step is None else whole_number(cells[layout.step])
        valid[here] = number is not None
        step[here] = number or 0
        if layout.time is not None and (then := _parse_time_cell(cells[layout.time])) is not None:
            time[here] = then
    columns: dict[str, tuple[NDArray[np.int64], list[str]]] = {}
    for name, places in layout.metrics.items() if good else ():
        filled = [(here, cell) for here, cells in good if (cell := _last_filled(cells, places))]
        if filled:
            columns[name] = np.array([here for here, _ in filled]), [cell for _, cell in filled]
    # Not all columns: bad rows would take the memory of as many cells as there are columns.
    values, present = np.zeros((len(columns), count)), np.zeros((len(columns), count), dtype=bool)
    odd: dict[tuple[NoticeKind, str], NDArray[np.int64]] = {}
    for metric, (name, (at, texts)) in enumerate(columns.items()):
        values[metric, at], present[metric, at] = _parse_cells(texts)
        has_cells[at] = True
        if not present[metric, at].all():
            odd[NoticeKind.TEXT_CELL, name] = first + at[~present[metric, at]]
    if (~valid & has_cells).any():
        odd[NO_STEP] = first + np.flatnonzero(~valid & has_cells)
    if bad:
        odd[BAD_ROW] = first + np.array(bad)
        valid[bad] = False
    return Rows(
        layout=layout,
        first=first,
        start=start,
        end=start + len(data),
        data=data,
        names=tuple(columns),
        step=step,
        time=time,
        values=values,
        present=present,
        valid=None if valid.all() else valid,
        ends=np.array(ends, dtype=np.int64),
        odd=odd,
        problems=problems,
    )


def _why_bad(layout: Layout, cells: list[str] | None) -> str:
    """Return what is wrong with a row whose cells are `cells` (None: it is no CSV), "" if nothing is."""
    if cells is None:
        return "is no CSV"
    if len(cells) != len(layout.columns):
        return f"has {len(cells)} cells, the header {len(layout.columns)}"
    cell = "" if layout.step is None else cells[layout.step]
    is_good = not cell or whole_number(cell) is not None
    return "" if is_good else f"has the step {cell!r:.40}, no 64-bit integer"


def _last_filled(cells: Sequence[str], places: tuple[int, ...]) -> str:
    """Return the last cell that is not empty among those at `places`."""
    return cells[places[0]] if len(places) == 1 else next((cells[at] for at in reversed(places) if cells[at]), "")


def _parse_time_cell(cell: str) -> float | None:
    """Return a time as a number, or as ISO text in UTC, which test-tube writes (`2019-08-01 12:30:00.5`)."""
    number = cell_number(cell)
    return parse_time(cell) if number is None and cell else number


# The file -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class MetricsTable:
    """An open metrics.csv.

    `stat` is (size, mtime in nanoseconds) from before the first byte was read; what is written later is left for the
    next time. `layout` is what the header line says, None without one, and `header` a digest of that line. `total` is
    the number of rows that were parsed so far, counted from the beginning of the file.
    """

    file: BinaryIO
    time_column: str | None
    stat: tuple[int, int] = field(init=False)
    layout: Layout | None = field(init=False)
    header: str = field(init=False)
    total: int = 0
    holder = "metrics.csv"
    _counted: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        """Look at the file's size and read its header."""
        found = os.fstat(self.file.fileno())
        self.stat = (found.st_size, found.st_mtime_ns)
        self.layout = read_layout(self.file, self.time_column)
        self.header = bytes_digest(b"" if self.layout is None else self.layout.line)

    @property
    def size(self) -> int:
        """Return the size in bytes that the file had when it was opened."""
        return self.stat[0]

    def marks(self, offset: int, layout: Layout | None) -> dict[str, Any]:
        """Return what a cursor keeps to find byte `offset`, below the header `layout`, again."""
        at = layout.at if layout is not None else 0
        return {"header": self.header, "window": self._window(offset), "columns_at": at}

    def find(self, cursor: Cursor) -> tuple[Layout, int] | None:
        """Return the layout and the byte at which `cursor` ends; None if the bytes before it have changed."""
        if cursor.header != self.header or self.size < cursor.offset or cursor.window != self._window(cursor.offset):
            return None
        layout = self.layout
        if cursor.columns_at:
            layout = read_layout(self.file, self.time_column, at=cursor.columns_at)
        return None if layout is None else (layout, max(cursor.offset, layout.end))

    def place(self, offset: int) -> str:
        """Return, for a person, the line that begins at byte `offset`: `metrics.csv:17`."""
        return f"metrics.csv:{self.lines_before(offset) + 1}"

    def _window(self, end: int) -> str:
        """Return a digest of the at most 64 KiB before byte `end`."""
        begin = max(0, end - (1 << 16))
        self.file.seek(begin)
        return bytes_digest(self.file.read(end - begin))

    def lines_before(self, offset: int) -> int:
        """Return how many lines end before byte `offset`; offsets that rise are counted once."""
        place, count = self._counted if self._counted[0] <= offset else (0, 0)
        self.file.seek(place)
        while place < offset:
            piece = self.file.read(min(CHUNK, offset - place))
            if not piece:
                break
            count += piece.count(b"\n")
            place += len(piece)
        self._counted = place, count
        return count

    def rows(
        self,
        layout: Layout | None = None,
        offset: int | None = None,
        first: int = 0,
        *,
        chunk: int = CHUNK,
        stop: int | None = None,
        only: frozenset[str] | None = None,
    ) -> Iterator[Rows]:
        """Yield the complete rows from byte `offset` on, as batches of about `chunk` bytes.

        The row at `offset` has the number `first` and is below the header `layout`; the default is the first row of
        all. `stop` is the byte at which to end (default: the size at the opening). With `only`, a metric, other metrics
        may be missing from the rows. Bytes after the last newline are not there yet. Raises RunDirectoryError for a row
        that is longer than LONGEST_ROW.
        """
        layout = layout or self.layout
        if layout is None:
            return
        begin, stop = layout.end if offset is None else offset, self.size if stop is None else stop
        for start, data in self._chunks(begin, chunk, stop):
            parsed = None
            if len(data) <= _FEW_BYTES:
                parsed = parse_plain(data, layout=layout, start=start, first=first, only=only)
            if parsed is None:
                parsed = parse_arrow(data, layout=layout, start=start, first=first, only=only)
            batches: Iterator[Rows] = (
                parse_records(data, layout=layout, start=start, first=first, time_column=self.time_column)
                if parsed is None
                else iter((parsed,))
            )
            for rows in batches:
                layout, first = rows.layout, rows.first + len(rows)
                self.total = max(self.total, first)
                yield rows

    def _chunks(self, offset: int, chunk: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Yield chunks of complete rows between two bytes, each with the byte at which it begins."""
        wanted = chunk
        while offset < stop:
            self.file.seek(offset)
            data = self.file.read(min(wanted, stop - offset))
            end = complete_rows(data)
            if end:
                yield offset, data[:end]
                offset, wanted = offset + end, chunk
            elif len(data) < wanted:
                return
            elif len(data) > LONGEST_ROW:
                line = self.lines_before(offset) + 1
                raise RunDirectoryError(
                    f"{self.file.name}:{line} is longer than {LONGEST_ROW >> 20} MiB.",
                    hint="A quote that is never closed makes one line of everything after it.",
                )
            else:
                wanted *= 2
