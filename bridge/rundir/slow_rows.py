"""The exact road for rows that the fast parser refuses: text, True, bad rows, header lines in the middle."""

from __future__ import annotations

import csv
import io
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bridge.rundir.digest import MODULUS, text_bits
from bridge.rundir.header import Layout, no_field_limit, whole
from bridge.rundir.rows import MOST_NAMED, TEXT, BadRow, Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["number", "parse_slowly", "text_value"]

_CELLS = 1 << 18
"""About how many cells are turned into columns at once: each of them is an object here."""


def parse_slowly(data: bytes, *, layout: Layout, start: int, first: int, time_column: str | None) -> Iterator[Rows]:
    """The complete rows `data`, which begin at byte `start` with number `first`, in parts below one header each.

    None only where `data` is empty; a header line at the end has a part without rows.
    """
    records = _records(data)
    part: _Part | None = _Part(layout=layout, first=first, start=start)
    while part is not None:
        following = _fill(part, records, time_column)
        yield part.rows(data[part.start - start : part.end - start])
        part = following


def _fill(part: _Part, records: Iterator[tuple[list[str] | None, int]], time_column: str | None) -> _Part | None:
    """Put records into `part`, up to a header line or until it is full; the part that follows."""
    at = part.start
    with no_field_limit():
        for cells, size in records:
            part.end, at = at, at + size
            if cells is not None and part.layout.is_header(cells):
                return part.next(Layout.of(cells, time_column, at=part.end, end=at), at)
            part.add(cells, part.end, at)
            if part.is_full:
                part.end = at
                return part.next(part.layout, at)
    part.end = at
    return None


def number(cell: str) -> float | None:
    """What `cell` says as Python's float() reads it, True and False as 1 and 0; None for text."""
    try:
        return float(cell)
    except ValueError:
        return {"True": 1.0, "False": 0.0}.get(cell)


def text_value(text: str) -> float:
    """The number that stands for a text: the upper bits of a digest, exact as a float and equal for equal texts only."""
    return float(text_bits(text) >> 11)


def _records(data: bytes) -> Iterator[tuple[list[str] | None, int]]:
    """Each record with its length in bytes; None for one that is no CSV."""
    sizes: list[int] = []

    def lines() -> Iterator[str]:
        for line in io.BytesIO(data):  # which ends lines at a newline and at nothing else
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


@dataclass(slots=True)
class _Part:
    """The rows below one header line, cell by cell."""

    layout: Layout
    first: int
    start: int
    end: int = 0
    count: int = 0
    ends: array[int] = field(default_factory=lambda: array("q"))
    step: array[int] = field(default_factory=lambda: array("q"))
    time: array[float] = field(default_factory=lambda: array("d"))
    invalid: array[int] = field(default_factory=lambda: array("q"))
    bad: list[BadRow] = field(default_factory=list)
    bad_at: array[int] = field(default_factory=lambda: array("q"))
    stepless: list[int] = field(default_factory=list)
    others: array[int] = field(default_factory=lambda: array("Q"))
    texts: dict[tuple[int, str], str] = field(default_factory=dict)
    points: dict[str, tuple[array[int], array[float]]] = field(default_factory=dict)
    cells: int = 0

    @property
    def is_full(self) -> bool:
        """Whether another row would make too many objects, or too large a table."""
        return max(self.cells, self.count * len(self.points) >> 3) >= _CELLS

    def next(self, layout: Layout, start: int) -> _Part:
        """An empty part for the rows after these, which begin at byte `start`."""
        return _Part(layout=layout, first=self.first + self.count, start=start)

    def add(self, cells: list[str] | None, at: int, end: int) -> None:
        """Take one more row, which stands at the bytes from `at` to `end`."""
        row = self.first + self.count
        self.cells += 1 + len(cells or ())
        self.ends.append(end - self.start)
        step, time = self._understand(cells, row, at)
        self.step.append(0 if step is None else step)
        self.time.append(time)
        if step is None:
            self.invalid.append(self.count)
        self.count += 1

    def _understand(self, cells: list[str] | None, row: int, at: int) -> tuple[int | None, float]:
        layout = self.layout
        if cells is None or len(cells) != len(layout.columns):
            have = "is no CSV" if cells is None else f"has {len(cells)} cells, the header {len(layout.columns)}"
            # Without the empty cells that a header which grows puts behind every row.
            return self._bad(row, at, have, text_bits("\x1f".join(cells or []).rstrip("\x1f")))
        step: int | None = row
        if layout.step is not None:
            step = whole(cells[layout.step])
            if step is None and cells[layout.step] != "":
                named = zip(layout.columns, cells, strict=True)
                mixed = sum(text_bits(f"{name}\x1f{cell}") for name, cell in named if cell)
                return self._bad(row, at, f"has the step {cells[layout.step]!r:.40}, no 64-bit integer", mixed)
        time = None if layout.time is None else number(cells[layout.time])
        for name, places in layout.metrics.items():
            cell = next((cells[place] for place in reversed(places) if cells[place]), "")
            if cell:
                self._cell(name, row, cell)
        if step is None and any(cells[place] for places in layout.metrics.values() for place in places):
            self.stepless.append(row)
        return step, np.nan if time is None else time

    def _bad(self, row: int, at: int, why: str, bits: int) -> tuple[None, float]:
        if len(self.bad) < MOST_NAMED:
            self.bad.append(BadRow(row, at, why))
        self.bad_at.append(row)
        self.others.append(bits % MODULUS)
        return None, np.nan

    def _cell(self, name: str, row: int, cell: str) -> None:
        value = number(cell)
        if value is None:
            self.texts[row, name] = cell
            name, value = f"{name}{TEXT}", text_value(cell)
        rows, values = self.points.setdefault(name, (array("q"), array("d")))
        rows.append(self.count)
        values.append(value)

    def rows(self, data: bytes) -> Rows:
        """What was taken, as columns; those without a point are left out."""
        # Not all columns: rows that are none would take the room of as many cells as there are columns.
        names = tuple(sorted(self.points))
        shape = (len(names), self.count)
        values, present = np.zeros(shape), np.zeros(shape, dtype=bool)
        for place, name in enumerate(names):
            if name in self.points:
                rows, cells = self.points[name]
                at = np.frombuffer(rows, dtype=np.int64)
                values[place, at] = np.frombuffer(cells, dtype=np.float64)
                present[place, at] = True
        valid = others = None
        if self.invalid:
            valid = np.ones(self.count, dtype=bool)
            valid[np.frombuffer(self.invalid, dtype=np.int64)] = False
        if self.others:
            others = np.zeros(self.count, dtype=np.uint64)
            others[np.frombuffer(self.bad_at, dtype=np.int64) - self.first] = np.frombuffer(
                self.others, dtype=np.uint64
            )
        return Rows(
            layout=self.layout,
            first=self.first,
            start=self.start,
            end=self.end,
            data=data,
            names=names,
            step=np.array(self.step, dtype=np.int64),
            time=np.array(self.time, dtype=np.float64),
            values=values,
            present=present,
            valid=valid,
            ends=np.array(self.ends, dtype=np.int64),
            others=others,
            texts=self.texts,
            bad=tuple(self.bad),
            bad_at=np.array(self.bad_at, dtype=np.int64),
            stepless=tuple(self.stepless),
        )
