"""Parse metrics.csv, chunk by chunk, into batches of rows as columns of numbers.

A chunk is a few megabytes of complete rows. pyarrow parses it into one column per metric; msgspec does if the chunk is
small and holds plain numbers only. A column in which pyarrow meets a cell that is no number is read as text from then
on, and only its distinct cells are turned into numbers one by one. A chunk that pyarrow cannot split into rows as
Python's csv module does (a row with too many cells, a newline in a quoted cell, a header line in the middle, a blank
line, ...) is read by the csv module instead, into the same `Rows`.
`bridge.rundir.resume` makes a `Block` of the points among them.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from bridge.errors import RunDirectoryError
from bridge.files import LONGEST_ROW, open_raw
from bridge.model import NoticeKind
from bridge.rundir.header import Layout, complete_rows, parse_int64, read_layout
from logger.files import no_field_limit
from logger.sidecar import parse_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bridge.model import Cursor, Run

CHUNK = 4 << 20
"""Bytes that are parsed at once: they and the columns made of them stay in the processor's cache."""

MOST_NAMED = 20
"""Rows of one kind that are named one by one in notices; more are counted."""

BAD_ROW = (NoticeKind.BAD_ROW, "")
NO_STEP = (NoticeKind.NO_STEP, "")

_FEW_BYTES = 1 << 18
"""Bytes up to which msgspec is tried first, and pyarrow's threads cost more than they gain."""

_MOST_CELLS = 1 << 18
"""Cells that the csv module reads before they become columns; each is a Python object until then."""

_SPARSE = 8
"""Empty cells that weigh as much as one point: they take about as much memory and work."""

_LEAST_WEIGHT = 64
"""The least weight of a batch: a file in which header lines and rows alternate makes a batch of each row."""

_ODD_COLUMN = re.compile(r"In CSV column #(\d+): .*conversion error")

Words: TypeAlias = NDArray[np.uint64]


# Digests ------------------------------------------------------------------------------------------------------------
#
# The digest of rows adds up: digest(rows 0..m) = digest(0..n) + digest(n..m) modulo 2^64. The digest of one row is the
# sum over its cells of a mix of the value's bits with the column's name, times an odd number made of the row's number.
# So the order of columns, empty columns and the way in which a number is written do not matter. The digest finds
# accidents, it does not protect against forgery.

MODULUS = 1 << 64
_CACHED_CELLS = 1 << 15


def bytes_digest(data: bytes) -> str:
    """Return a digest of bytes as text."""
    return hashlib.blake2b(data, digest_size=10).hexdigest()


def to_hex(digest: int) -> str:
    """Return a digest of rows as a cursor keeps it."""
    return f"{digest % MODULUS:016x}"


def text_bits(text: str) -> int:
    """Return 64 bits that stand for a text."""
    data = text.encode("utf-8", errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@lru_cache(maxsize=1 << 16)
def _name_words(name: str) -> tuple[int, int]:
    """Return two words that stand for a column's name: one to XOR with, and an odd one to multiply by."""
    data = hashlib.blake2b(name.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little") | 1


@lru_cache(maxsize=256)
def _names_words(names: tuple[str, ...]) -> tuple[Words, Words]:
    both = np.array([_name_words(name) for name in names], dtype=np.uint64).reshape(-1, 2)
    return both[:, :1].copy(), both[:, 1:].copy()


def _row_words(rows: NDArray[np.int64]) -> Words:
    """Return an odd word for each row number (the mixing steps of splitmix64)."""
    word = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word ^= word >> np.uint64(30)
    word *= np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(27)
    return word | np.uint64(1)


def _cells_digest(names: Sequence[str], bits: Words, present: NDArray[np.bool_]) -> Words:
    """Return for each row (n,) the sum of the mixed cells `bits` (k, n) that are `present`."""
    total = np.zeros(bits.shape[1], dtype=np.uint64)
    marks, factors = _names_words(tuple(names))
    # As many metrics at once as fit into the cache: one at a time would cost calls, all at once memory traffic.
    group = max(1, _CACHED_CELLS // max(1, bits.shape[1]))
    for first in range(0, len(bits), group):
        part = slice(first, first + group)
        # Fold the high half of a float into the low half, where round numbers have only zeros.
        mixed = bits[part] >> np.uint64(32)
        mixed ^= bits[part]
        mixed ^= marks[part]
        mixed *= factors[part]
        if not present[part].all():
            mixed *= present[part]
        total += mixed[0] if len(mixed) == 1 else mixed.sum(axis=0, dtype=np.uint64)
    return total


# Rows ---------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Rows:
    """Consecutive rows below one header line, as they are in the file: n rows, k metrics.

    `first` is the number of the first row, from 0. `start` and `end` are bytes of the file and `data` the bytes
    between. `ends` int64 (n,) are the ends of the rows, counted from `start`; None if each line of `data` is a row.
    `names` are the metrics. `step` is int64 (n,), `time` float64 (n,) with NaN for none, `values` float64 (k, n), and
    `present` bool (k, n) says which cells hold a number. `valid` bool (n,) says which rows have a step (None: all).
    `others` uint64 (n,) is a digest of all cells that are in no column of numbers (None: there are none).
    `odd` holds numbers of rows, int64, by what is odd: BAD_ROW, NO_STEP, or (TEXT_CELL, metric). `problems` says what
    is wrong with the first bad rows, by their number.
    """

    layout: Layout
    first: int
    start: int
    end: int
    data: bytes
    names: tuple[str, ...]
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    values: NDArray[np.float64]
    present: NDArray[np.bool_]
    valid: NDArray[np.bool_] | None = None
    ends: NDArray[np.int64] | None = None
    others: Words | None = None
    odd: Mapping[tuple[NoticeKind, str], NDArray[np.int64]] = field(default_factory=dict)
    problems: Mapping[int, str] = field(default_factory=dict)
    _digest: int | None = None

    def __len__(self) -> int:
        return len(self.step)

    @property
    def row(self) -> NDArray[np.int64]:
        """Return the rows' numbers."""
        return np.arange(self.first, self.first + len(self), dtype=np.int64)

    @property
    def valid_steps(self) -> NDArray[np.int64]:
        """Return the steps of the rows that have one."""
        return self.step if self.valid is None else self.step[self.valid]

    def offset(self, count: int) -> int:
        """Return the byte of the file at which the first `count` rows end."""
        if count == 0:
            return self.start
        if count == len(self):
            return self.end
        if self.ends is None:
            self.ends = np.flatnonzero(np.frombuffer(self.data, dtype=np.uint8) == ord("\n")) + 1
        return self.start + int(self.ends[count - 1])

    def part(self, low: int, high: int) -> Rows:
        """Return the rows from the `low`-th up to the `high`-th."""
        if (low, high) == (0, len(self)):
            return self
        start, end = self.offset(low), self.offset(high)
        first, last = self.first + low, self.first + high
        return Rows(
            layout=self.layout,
            first=first,
            start=start,
            end=end,
            data=self.data[start - self.start : end - self.start],
            names=self.names,
            step=self.step[low:high],
            time=self.time[low:high],
            values=self.values[:, low:high],
            present=self.present[:, low:high],
            valid=None if self.valid is None else self.valid[low:high],
            ends=None if self.ends is None else self.ends[low:high] - (start - self.start),
            others=None if self.others is None else self.others[low:high],
            odd={what: kept for what, rows in self.odd.items() if len(kept := rows[(rows >= first) & (rows < last)])},
            problems={row: problem for row, problem in self.problems.items() if first <= row < last},
        )

    def split(self, most: int) -> Iterator[tuple[Rows, int]]:
        """Yield these rows in parts that weigh about `most` at most, each with its weight.

        The weight of a row is the number of its points, or more if it is mostly empty.
        """
        least, empty = min(most, _LEAST_WEIGHT), max(1, len(self.names) // _SPARSE)
        total = max(int(np.count_nonzero(self.present)), empty * len(self))
        if total <= most or len(self) <= 1:
            yield self, max(total, least)
            return
        so_far = np.cumsum(np.maximum(np.count_nonzero(self.present, axis=0), empty))
        low, passed = 0, 0
        while low < len(self):
            # so_far rises, so the part ends where so_far passes the limit; one row is always taken.
            high = max(low + 1, int(np.searchsorted(so_far, passed + most, side="right")))
            yield self.part(low, high), max(int(so_far[high - 1]) - passed, least)
            low, passed = high, int(so_far[high - 1])

    def digest(self) -> int:
        """Return the digest of these rows."""
        if self._digest is None:
            self._digest = self._sum_up()
        return self._digest

    def _sum_up(self) -> int:
        total = _cells_digest(self.names, self.values.view(np.uint64), self.present)
        if self.layout.step is not None:
            known = np.ones((1, len(self)), dtype=bool) if self.valid is None else self.valid[None, :]
            total += _cells_digest(("\0step",), self.step.view(np.uint64)[None, :], known)
        if self.layout.time is not None:
            total += _cells_digest(("\0time",), self.time.view(np.uint64)[None, :], ~np.isnan(self.time)[None, :])
        if self.others is not None:
            total += self.others
        return int((total * _row_words(self.row)).sum(dtype=np.uint64)) % MODULUS


def parse_number(cell: str) -> float | None:
    """Return what `cell` says as Python's float() reads it, True and False as 1 and 0; None for other text."""
    try:
        return float(cell)
    except ValueError:
        return {"True": 1.0, "False": 0.0}.get(cell)


def _parse_cells(name: str, cells: Sequence[str]) -> tuple[NDArray[np.float64], Words]:
    """Return the numbers in `cells` of the metric `name`, and the bits that stand for text: 0 for each number."""
    numbers = [parse_number(cell) for cell in cells]
    values = np.array([0.0 if number is None else number for number in numbers], dtype=np.float64)
    bits = [
        text_bits(f"{name}\x1f{cell}") | 1 if number is None else 0 for cell, number in zip(cells, numbers, strict=True)
    ]
    return values, np.array(bits, dtype=np.uint64)


# msgspec ------------------------------------------------------------------------------------------------------------

_NUMBERS = msgspec.json.Decoder(list[list[int | float | None]])
_MINUS_ZERO = re.compile(rb"-0[,\r\n]")
"""A float with a sign, which for JSON is the integer 0."""


def parse_plain(data: bytes, *, layout: Layout, start: int, first: int, only: frozenset[str] | None) -> Rows | None:
    """Return the rows `data` if every cell is empty or a number that JSON writes alike; else None.

    Most files hold nothing else. Few rows take less time as a list of lists in JSON than in pyarrow, whose import alone
    takes the time of a hundred runs.
    """
    if layout.step is None or any(len(places) > 1 for places in layout.metrics.values()):
        return None
    if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):  # in JSON a carriage return means nothing
        return None
    text = b"[[%b]]" % data[:-1].replace(b"\n", b"],[")
    try:
        try:
            rows = _NUMBERS.decode(text)
        except msgspec.DecodeError:
            text = text.replace(b"\r", b"").replace(b",,", b",null,").replace(b",,", b",null,")
            rows = _NUMBERS.decode(text.replace(b"[,", b"[null,").replace(b",]", b",null]"))
        # A text with brackets might make a row of its own.
        if len(rows) != data.count(b"\n") or set(map(len, rows)) != {len(layout.columns)}:
            return None
        cells = np.array(rows, dtype=np.float64).T  # (columns, n)
    except (msgspec.MsgspecError, OverflowError):
        return None
    step = np.array([row[layout.step] for row in rows])
    metrics = {name: places[0] for name, places in layout.metrics.items() if only is None or name in only}
    values = cells[list(metrics.values())]
    if step.dtype != np.int64 or (not cells.all() and _MINUS_ZERO.search(data)):
        return None
    return Rows(
        layout=layout,
        first=first,
        start=start,
        end=start + len(data),
        data=data,
        names=tuple(metrics),
        step=step,
        time=np.full(len(rows), np.nan) if layout.time is None else cells[layout.time].copy(),
        values=values,
        present=~np.isnan(values),  # JSON has no NaN, so it stands for an empty cell
    )


# pyarrow ------------------------------------------------------------------------------------------------------------


class _ArrowParser:
    """Parse chunks below one header line with pyarrow; `only` some metrics, if given."""

    def __init__(self, layout: Layout, only: frozenset[str] | None) -> None:
        import pyarrow as pa
        import pyarrow.csv as pacsv

        self._pa, self._csv = pa, pacsv
        self._layout = layout
        self._metrics = {name: places for name, places in layout.metrics.items() if only is None or name in only}
        self._columns = [str(place) for place in range(len(layout.columns))]
        used = {layout.step, layout.time, *(place for places in self._metrics.values() for place in places)}
        self._included = [] if only is None else [name for place, name in enumerate(self._columns) if place in used]
        self._parsing = pacsv.ParseOptions(ignore_empty_lines=False, newlines_in_values=True)
        self._text_columns: set[int] = set()
        self._converting: dict[bool, Any] = {}

    def parse(self, data: bytes, start: int, first: int) -> Rows | None:
        """Return the rows `data`, or None if only the csv module gives what Python reads."""
        layout, count = self._layout, data.count(b"\n")
        # A row has a comma or a newline for each column. With fewer bytes some line is blank or too short, and
        # pyarrow would make a whole row of empty cells of each.
        if count * len(layout.columns) > len(data):
            return None
        # pyarrow takes `0x1f` for an integer, and Python's int() does not.
        table = self._read(data, step_as_text=b"x" in data or b"X" in data)
        if table is None or table.num_rows != count:  # a newline in quotes, or a carriage return alone
            return None
        steps = self._steps(table, first)
        if steps is None:
            return None
        step, valid = steps
        if (valid is not None or layout.step is None) and _has_blank_line(data):
            return None
        names = tuple(self._metrics)
        values, present = np.empty((len(names), count)), np.ones((len(names), count), dtype=bool)
        others: Words | None = None
        odd: dict[tuple[NoticeKind, str], NDArray[np.int64]] = {}
        for metric, (name, places) in enumerate(self._metrics.items()):
            bits = self._fill(table, name, places, values[metric], present[metric])
            if bits is not None and bits.any():
                others = bits if others is None else others + bits
                odd[NoticeKind.TEXT_CELL, name] = np.flatnonzero(bits) + first
        # pyarrow takes `nan(x)` for a number, and Python's float() does not.
        if b"(" in data and bool((np.isnan(values) & present).any()):
            return None
        if valid is not None:
            filled = present.any(axis=0) if others is None else present.any(axis=0) | (others != 0)
            odd[NO_STEP] = np.flatnonzero(~valid & filled) + first
        return Rows(
            layout=layout,
            first=first,
            start=start,
            end=start + len(data),
            data=data,
            names=names,
            step=step,
            time=self._times(table),
            values=values,
            present=present,
            valid=valid,
            others=others,
            odd=odd,
        )

    def _read(self, data: bytes, *, step_as_text: bool) -> Any:
        """Return an Arrow table, or None if pyarrow refuses the rows."""
        while True:
            try:
                return self._csv.read_csv(
                    self._pa.BufferReader(data),
                    read_options=self._csv.ReadOptions(
                        column_names=self._columns, block_size=2 * LONGEST_ROW, use_threads=len(data) > _FEW_BYTES
                    ),
                    parse_options=self._parsing,
                    convert_options=self._conversion(step_as_text=step_as_text),
                )
            except self._pa.ArrowInvalid as error:
                found = _ODD_COLUMN.search(str(error))
                place = int(found.group(1)) if found is not None and not self._included else None
                if place in (None, self._layout.step, self._layout.time) or place in self._text_columns:
                    return None
                self._text_columns.add(place)
                self._converting.clear()

    def _conversion(self, *, step_as_text: bool) -> Any:
        if step_as_text not in self._converting:
            types = dict.fromkeys(self._columns, self._pa.float64())
            types |= {self._columns[place]: self._pa.binary() for place in self._text_columns}
            if self._layout.step is not None:
                kind = self._pa.string() if step_as_text else self._pa.int64()
                types[self._columns[self._layout.step]] = kind
            self._converting[step_as_text] = self._csv.ConvertOptions(
                column_types=types,
                null_values=[""],
                strings_can_be_null=True,
                check_utf8=False,
                include_columns=self._included,
            )
        return self._converting[step_as_text]

    def _steps(self, table: Any, first: int) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None] | None:
        """Return the steps, and which rows have one (None: all); None if one is no plain integer."""
        if self._layout.step is None:
            return np.arange(first, first + table.num_rows, dtype=np.int64), None
        column = _column(table, self._layout.step)
        if column.type == self._pa.string():
            import pyarrow.compute as pc

            try:
                if pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
                    return None
                column = column.cast(self._pa.int64())
            except self._pa.ArrowInvalid:
                return None
        step: NDArray[np.int64] = _numbers(column, np.int64)
        if column.null_count == 0:
            return step, None
        known = _not_null(column)
        return np.where(known, step, 0), known

    def _times(self, table: Any) -> NDArray[np.float64]:
        if self._layout.time is None:
            return np.full(table.num_rows, np.nan)
        column = _column(table, self._layout.time)
        times: NDArray[np.float64] = _numbers(column, np.float64)
        return times if column.null_count == 0 else np.where(_not_null(column), times, np.nan)

    def _fill(
        self,
        table: Any,
        name: str,
        places: tuple[int, ...],
        values: NDArray[np.float64],
        present: NDArray[np.bool_],
    ) -> Words | None:
        """Fill in the values of a metric and where it has any; return the bits of its text cells (None: it has none).

        Of several columns of one name the last cell that is not empty counts.
        """
        bits: Words | None = None
        for number, place in enumerate(places):
            column = _column(table, place)
            known = _not_null(column) if column.null_count else np.ones(len(values), dtype=bool)
            if place in self._text_columns:
                found, text = _decode_cells(name, column)
                bits = np.zeros(len(values), dtype=np.uint64) if bits is None else bits
                np.copyto(bits, text, where=known)
            else:
                found = _numbers(column, np.float64)
                if bits is not None:
                    bits[known] = 0
            if number == 0:
                values[:], present[:] = found, known
            else:
                np.copyto(values, found, where=known)
                present |= known
        if bits is not None:
            present &= bits == 0
        return bits


def _decode_cells(name: str, column: Any) -> tuple[NDArray[np.float64], Words]:
    """Return the numbers in an Arrow column of bytes and the bits of its text cells, both with 0 where there are none.

    Each distinct cell is parsed once: `indices` says for each row which of the distinct cells it holds.
    """
    encoded = column.dictionary_encode()
    cells = [cell.decode("utf-8", errors="replace") for cell in encoded.dictionary.to_pylist()]
    values, bits = _parse_cells(name, cells or [""])
    indices = np.asarray(encoded.indices.fill_null(0))
    return values[indices], bits[indices]


def _has_blank_line(data: bytes) -> bool:
    return data.startswith((b"\n", b"\r\n")) or b"\n\n" in data or b"\n\r\n" in data


def _column(table: Any, place: int) -> Any:
    column = table.column(str(place))
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _not_null(column: Any) -> NDArray[np.bool_]:
    """Return which entries of an Arrow array are not null; its validity bitmap holds one bit for each."""
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
    sizes: list[int] = []

    def lines() -> Iterator[str]:
        for line in io.BytesIO(data):  # ends lines at a newline and at nothing else
            sizes.append(len(line))
            yield line.decode("utf-8", errors="replace")

    reader = csv.reader(lines())
    while True:
        try:
            cells: list[str] | None = next(reader)
        except StopIteration:
            return
        except csv.Error:
            cells = None
        yield cells, sum(sizes)
        sizes.clear()


def parse_records(data: bytes, *, layout: Layout, start: int, first: int, time_column: str | None) -> Iterator[Rows]:
    """Yield the complete rows `data` as the csv module reads them.

    A batch for each header line, and not too large ones.
    The last batch has the layout that is in force at the end, so it may have no rows.
    """
    records = _read_records(data)
    part: _RowBatch | None = _RowBatch(layout, first, start)
    while part is not None:
        with no_field_limit():
            following = part.fill(records, time_column)
        yield part.rows(data[part.start - start : part.end - start])
        part = following


def _parse_time_cell(cell: str) -> float | None:
    """Return a time as a number, or as ISO text in UTC, which test-tube writes (`2019-08-01 12:30:00.5`)."""
    number = parse_number(cell)
    return parse_time(cell) if number is None and cell else number


class _RowBatch:
    """Rows below one header line, cell by cell."""

    def __init__(self, layout: Layout, first: int, start: int) -> None:
        self.layout, self.first, self.start, self.end = layout, first, start, start
        self._ends: list[int] = []
        self._steps: list[int] = []
        self._times: list[float] = []
        self._invalid: list[int] = []
        self._others: dict[int, int] = {}
        self._odd: dict[tuple[NoticeKind, str], list[int]] = {}
        self._problems: dict[int, str] = {}
        self._metrics: dict[str, tuple[list[int], list[str]]] = {}
        self._cells = 0

    @property
    def count(self) -> int:
        """Return the number of rows so far."""
        return len(self._steps)

    @property
    def is_full(self) -> bool:
        """Return if another row would make too many objects, or too large a table."""
        return max(self._cells, self.count * len(self._metrics) >> 3) >= _MOST_CELLS

    def fill(self, records: Iterator[tuple[list[str] | None, int]], time_column: str | None) -> _RowBatch | None:
        """Take records up to a header line or until this part is full; return the part that follows."""
        for cells, size in records:
            begin, end = self.end, self.end + size
            if cells is not None and not cells:
                self.end = end  # a blank line is nothing
            elif cells is not None and self.layout.is_header(cells):
                layout = Layout.of(cells, time_column, at=begin, end=end)
                return _RowBatch(layout, self.first + self.count, end)
            else:
                self._add(cells, end)
                if self.is_full:
                    return _RowBatch(self.layout, self.first + self.count, end)
        return None

    def _add(self, cells: list[str] | None, end: int) -> None:
        """Add a row that ends at byte `end`; None is one that is no CSV."""
        layout, here = self.layout, self.count
        self._cells += 1 + len(cells or ())
        self._ends.append(end - self.start)
        self.end = end
        self._steps.append(0)
        self._times.append(np.nan)
        if cells is None or len(cells) != len(layout.columns):
            have = "is no CSV" if cells is None else f"has {len(cells)} cells, the header {len(layout.columns)}"
            # Without the empty cells that a growing header puts behind every row.
            self._add_bad(here, have, text_bits("\x1f".join(cells or []).rstrip("\x1f")))
            return
        step: int | None = self.first + here
        if layout.step is not None:
            step = parse_int64(cells[layout.step])
            if step is None and cells[layout.step]:
                named = zip(layout.columns, cells, strict=True)
                mixed = sum(text_bits(f"{name}\x1f{cell}") for name, cell in named if cell)
                self._add_bad(here, f"has the step {cells[layout.step]!r:.40}, no 64-bit integer", mixed)
                return
        if layout.time is not None and (time := _parse_time_cell(cells[layout.time])) is not None:
            self._times[here] = time
        filled = False
        for name, places in layout.metrics.items():
            cell = next((cells[place] for place in reversed(places) if cells[place]), "")
            if cell:
                rows, texts = self._metrics.setdefault(name, ([], []))
                rows.append(here)
                texts.append(cell)
                filled = True
        if step is not None:
            self._steps[here] = step
        else:
            self._invalid.append(here)
            if filled:
                self._odd.setdefault(NO_STEP, []).append(self.first + here)

    def _add_bad(self, here: int, problem: str, bits: int) -> None:
        self._invalid.append(here)
        self._others[here] = bits % MODULUS
        bad = self._odd.setdefault(BAD_ROW, [])
        bad.append(self.first + here)
        if len(bad) <= MOST_NAMED:
            self._problems[self.first + here] = problem

    def rows(self, data: bytes) -> Rows:
        """Return these rows as columns, without metrics that have no cells."""
        # Not all columns: bad rows would take the memory of as many cells as there are columns.
        names = tuple(sorted(self._metrics))
        values, present = np.zeros((len(names), self.count)), np.zeros((len(names), self.count), dtype=bool)
        others = np.zeros(self.count, dtype=np.uint64)
        for metric, name in enumerate(names):
            rows, cells = self._metrics[name]
            at = np.array(rows)
            values[metric, at], bits = _parse_cells(name, cells)
            present[metric, at] = bits == 0
            others[at] += bits
            if bits.any():
                self._odd[NoticeKind.TEXT_CELL, name] = (self.first + at[bits != 0]).tolist()
        others[list(self._others)] += np.array(list(self._others.values()), dtype=np.uint64)
        valid = np.ones(self.count, dtype=bool)
        valid[self._invalid] = False
        return Rows(
            layout=self.layout,
            first=self.first,
            start=self.start,
            end=self.start + len(data),
            data=data,
            names=names,
            step=np.array(self._steps, dtype=np.int64),
            time=np.array(self._times, dtype=np.float64),
            values=values,
            present=present,
            valid=valid if self._invalid else None,
            ends=np.array(self._ends, dtype=np.int64),
            others=others if others.any() else None,
            odd={what: np.array(rows, dtype=np.int64) for what, rows in self._odd.items()},
            problems=self._problems,
        )


# The file -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class MetricsTable:
    """An open metrics.csv.

    `stat` is (size, mtime in nanoseconds) from before the first byte was read; what is written later is left for the
    next time. `first_line` are the bytes of the header line and `layout` what it says, None without a header.
    `total` is the number of rows that were parsed so far, counted from the beginning of the file.
    """

    file: BinaryIO
    time_column: str | None
    stat: tuple[int, int] = field(init=False)
    layout: Layout | None = field(init=False)
    first_line: bytes = field(init=False)
    total: int = 0
    _parsers: dict[tuple[int, frozenset[str] | None], _ArrowParser] = field(default_factory=dict)
    _counted: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        """Look at the file's size and read its header."""
        found = os.fstat(self.file.fileno())
        self.stat = (found.st_size, found.st_mtime_ns)
        self.layout, self.first_line = read_layout(self.file, self.time_column) or (None, b"")

    @property
    def size(self) -> int:
        """Return the size in bytes that the file had when it was opened."""
        return self.stat[0]

    def layout_at(self, offset: int) -> Layout | None:
        """Return the layout of the header line at byte `offset`; None if there is no complete one."""
        found = read_layout(self.file, self.time_column, at=offset)
        return found[0] if found is not None else None

    @property
    def name(self) -> str:
        """Return the path of the file."""
        return str(self.file.name)

    def marks(self, offset: int, layout: Layout | None) -> dict[str, Any]:
        """Return what a cursor keeps to find byte `offset`, below the header `layout`, again."""
        at = layout.at if layout is not None else 0
        return {"header": bytes_digest(self.first_line), "window": self._window(offset), "columns_at": at}

    def find(self, cursor: Cursor) -> tuple[Layout, int] | None:
        """Return the layout and the byte at which `cursor` ends; None if the bytes before it are others."""
        if (
            cursor.header != bytes_digest(self.first_line)
            or self.size < cursor.offset
            or cursor.window != self._window(cursor.offset)
        ):
            return None
        layout = self.layout_at(cursor.columns_at) if cursor.columns_at else self.layout
        return None if layout is None else (layout, max(cursor.offset, layout.end))

    def place(self, offset: int) -> str:
        """Return the name of the file with the line that begins at byte `offset`."""
        return f"metrics.csv:{self.lines_before(offset) + 1}"

    def lines_between(self, begin: int, end: int) -> int:
        """Return how many lines end between two bytes."""
        return self.lines_before(end) - self.lines_before(begin)

    def _window(self, end: int, size: int = 1 << 16) -> str:
        """Return a digest of the at most `size` bytes before byte `end`."""
        begin = max(0, end - size)
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
                parser = self._parsers.get((layout.at, only))
                if parser is None:
                    parser = self._parsers[layout.at, only] = _ArrowParser(layout, only)
                parsed = parser.parse(data, start, first)
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


@contextlib.contextmanager
def open_metrics(run: Run) -> Iterator[MetricsTable | None]:
    """Open the metrics.csv of `run`; None if there is none. Raises RunDirectoryError if it cannot be read."""
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
        yield MetricsTable(file, run.time_column)
