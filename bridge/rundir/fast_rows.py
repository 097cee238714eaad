"""The fast road: rows that pyarrow's parser understands. Columns with text in them cost a little more, the others nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.files import LONGEST_ROW
from bridge.rundir.rows import TEXT, Rows
from bridge.rundir.slow_rows import number, text_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from bridge.rundir.header import Layout

__all__ = ["FEW_BYTES", "Parser"]

FEW_BYTES = 1 << 19
"""Bytes that are parsed at once where cells are texts, each of which is an object here."""

_CROWDED = 64
"""With a text for each of so few bytes, a block has too many of them."""

_SHORT = 5
"""So has one whose rows are so short, or blank."""

_ALONE = 1 << 18
"""Bytes up to which threads would cost more than they give."""

_COLUMN = re.compile(r"In CSV column #(\d+): .*conversion error")
_REMEMBERED = 1 << 16


class Parser:
    """pyarrow's CSV parser for one layout, or for the columns of one metric in it.

    Columns in which it met something that is no number are read as texts from then on. `crowded`: it meets too many
    texts for a large block, or does not know yet how many.
    """

    def __init__(self, layout: Layout, only: str | None = None) -> None:
        import pyarrow as pa
        import pyarrow.csv as pacsv

        self._pa, self._csv = pa, pacsv
        self._layout = layout
        self._metrics = {name: places for name, places in layout.metrics.items() if only is None or name == only}
        self._columns = [str(place) for place in range(len(layout.columns))]
        used = {layout.step, layout.time, *(place for places in self._metrics.values() for place in places)}
        self._wanted = [] if only is None else [name for place, name in enumerate(self._columns) if place in used]
        self._parsing = pacsv.ParseOptions(ignore_empty_lines=False, newlines_in_values=True)
        self._reading = [
            pacsv.ReadOptions(column_names=self._columns, block_size=2 * LONGEST_ROW, use_threads=threads)
            for threads in (False, True)
        ]
        self.crowded = False
        self._texts: set[int] = set()
        self._converting: dict[bool, Any] = {}
        self._cells: dict[bytes, tuple[float | None, str]] = {}
        self._said: dict[tuple[int, str], str] = {}

    def parse(self, data: bytes, cut: int, start: int, first: int, *, few: bool = False) -> Rows | None:
        """The first `cut` bytes of `data` as rows, or None where only the exact road gives what Python would read.

        Also None, with `crowded`, where they are too many at once; `few` says that they cannot be fewer.
        """
        lines = data.count(b"\n", 0, cut)
        few = few or cut <= FEW_BYTES
        self.crowded = not few and (self.crowded or lines * _SHORT > cut)
        layout = self._layout
        # A blank line in a table of one column is a row without a step for pyarrow, and a bad row here.
        if self.crowded or len(layout.columns) < 2:
            return None
        # pyarrow takes `0x1f` for an integer and `nan(x)` for a number; Python's int() and float() do not.
        hexadecimal = data.find(b"x", 0, cut) >= 0 or data.find(b"X", 0, cut) >= 0
        table = self._read(data, cut, step_as_text=hexadecimal, few=few)
        if table is None:
            return None
        count = table.num_rows
        if count != lines:
            return None  # newlines in quotes, stray carriage returns
        steps = self._steps(table, first, count)
        # A blank line is a row of empty cells for pyarrow, and a bad row here.
        if steps is None or ((steps[1] is not None or layout.step is None) and _has_blank(data, cut)):
            return None
        names, values, present = self._series(table, first, count)
        self.crowded = len(self._said) * _CROWDED > cut
        if data.find(b"(", 0, cut) >= 0 and bool((np.isnan(values) & present).any()):
            return None
        step, valid = steps
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
            names=names,
            step=step,
            time=self._times(table, count),
            values=values,
            present=present,
            valid=valid,
            texts=self._said,
            stepless=stepless,
        )

    def _read(self, data: bytes, cut: int, *, step_as_text: bool, few: bool) -> Any:
        """An Arrow table, or None where the rows are not all of a kind, or too many to find out about texts."""
        while True:
            source = self._pa.BufferReader(self._pa.py_buffer(data).slice(0, cut))
            try:
                return self._csv.read_csv(
                    source,
                    read_options=self._reading[cut > _ALONE],
                    parse_options=self._parsing,
                    convert_options=self._conversion(step_as_text=step_as_text),
                )
            except self._pa.ArrowInvalid as error:
                place = self._odd_column(str(error))
                if place is None:
                    return None
                self._texts.add(place)
                self._converting.clear()
                if not few:
                    self.crowded = True
                    return None

    def _odd_column(self, error: str) -> int | None:
        """The column of one metric that should be read as text from now on."""
        found = _COLUMN.search(error)
        if found is None or self._wanted:
            return None
        place = int(found.group(1))
        if place in self._texts or not any(places == (place,) for places in self._metrics.values()):
            return None
        return place

    def _conversion(self, *, step_as_text: bool) -> Any:
        if step_as_text not in self._converting:
            types = dict.fromkeys(self._columns, self._pa.float64())
            types.update({self._columns[place]: self._pa.binary() for place in self._texts})
            if self._layout.step is not None:
                kind = self._pa.string() if step_as_text else self._pa.int64()
                types[self._columns[self._layout.step]] = kind
            self._converting[step_as_text] = self._csv.ConvertOptions(
                column_types=types,
                null_values=[""],
                strings_can_be_null=True,
                check_utf8=False,
                include_columns=self._wanted,
            )
        return self._converting[step_as_text]

    def _steps(self, table: Any, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None] | None:
        """Steps and where there are any (None: everywhere); None where one is no plain integer."""
        if self._layout.step is None:
            return np.arange(first, first + count, dtype=np.int64), None
        column = _column(table, self._layout.step)
        if column.type == self._pa.string():
            import pyarrow.compute as pc

            try:
                if pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
                    return None
                column = column.cast(self._pa.int64())
            except self._pa.ArrowInvalid:
                return None
        step: NDArray[np.int64] = _plain(column, np.int64)
        if column.null_count == 0:
            return step, None
        known = _known(column)
        return np.where(known, step, 0), known

    def _times(self, table: Any, count: int) -> NDArray[np.float64]:
        if self._layout.time is None:
            return np.full(count, np.nan)
        column = _column(table, self._layout.time)
        times: NDArray[np.float64] = _plain(column, np.float64)
        return times if column.null_count == 0 else np.where(_known(column), times, np.nan)

    def _series(
        self, table: Any, first: int, count: int
    ) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.bool_]]:
        """The series by name, with their values and where there are any, one series a line."""
        texts = self._text_columns(table, first)
        names = tuple(sorted({*self._metrics, *texts}))
        values = np.empty((len(names), count))
        present = np.ones((len(names), count), dtype=bool)
        for line, name in enumerate(names):
            if name in texts:
                values[line], present[line] = texts[name]
            else:
                _floats(table, self._metrics[name], values[line], present[line])
        return names, values, present

    def _text_columns(self, table: Any, first: int) -> Mapping[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """Values and where there are any, of the metrics whose columns hold texts, numbers and texts as two series."""
        self._said = {}
        found = {}
        for name, places in self._metrics.items():
            if self._texts.isdisjoint(places):
                continue
            cells = _column(table, places[0]).to_pylist()
            values, known = np.zeros((2, len(cells))), np.zeros((2, len(cells)), dtype=bool)
            for row, cell in enumerate(cells):
                if cell is None:
                    continue
                value, text = self._cells.get(cell) or self._understand(cell)
                if value is not None:
                    values[0, row], known[0, row] = value, True
                else:
                    values[1, row], known[1, row] = text_value(text), True
                    self._said[first + row, name] = text
            found[name] = values[0], known[0]
            if known[1].any():
                found[f"{name}{TEXT}"] = values[1], known[1]
        return found

    def _understand(self, cell: bytes) -> tuple[float | None, str]:
        if len(self._cells) >= _REMEMBERED:
            self._cells.clear()
        text = cell.decode("utf-8", errors="replace")
        understood = self._cells[cell] = number(text), text
        return understood


def _has_blank(data: bytes, cut: int) -> bool:
    if data.startswith((b"\n", b"\r\n")):
        return True
    return data.find(b"\n\n", 0, cut) >= 0 or data.find(b"\n\r\n", 0, cut) >= 0


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
