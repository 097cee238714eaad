"""The exact road for rows that the fast parser refuses: text, True, bad rows, header lines in the middle."""

from __future__ import annotations

import contextlib
import csv
import sys
import threading
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bridge.source.digest import MODULUS, text_bits
from bridge.source.header import Layout, whole
from bridge.source.rows import TEXT, BadRow, Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["number", "parse_slowly", "text_value"]

_FIELD_LIMIT = threading.Lock()


def parse_slowly(data: bytes, *, layout: Layout, start: int, first: int, time_column: str | None) -> list[Rows]:
    """The complete rows `data`, which begin at byte `start` with number `first`, one entry for each header in force.

    Never empty where `data` is not; a header line at the end has an entry without rows.
    """
    parts = [_Part(layout=layout, first=first, start=start)]
    at = start
    for cells, size in _records(data):
        part = parts[-1]
        if cells is not None and part.layout.is_header(cells):
            part.end = at
            below = at + size
            part = _Part(
                layout=Layout.of(cells, time_column, at=at, end=below), first=part.first + part.count, start=below
            )
            parts.append(part)
        else:
            part.add(cells, at, at + size)
        at += size
    parts[-1].end = at
    return [part.rows(data[part.start - start : part.end - start]) for part in parts]


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
        for line in data.splitlines(keepends=True) if b"\r" not in data else _lines(data):
            sizes.append(len(line))
            yield line.decode("utf-8", errors="replace")

    with _no_field_limit():
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


def _lines(data: bytes) -> Iterator[bytes]:
    """Lines that end in a newline and nothing else."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end


@contextlib.contextmanager
def _no_field_limit() -> Iterator[None]:
    """Let csv take cells of any length (lines are limited already); the setting is the process's, so put it back."""
    with _FIELD_LIMIT:
        before = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(before)


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
    invalid: list[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    stepless: list[int] = field(default_factory=list)
    others: dict[int, int] = field(default_factory=dict)
    texts: dict[tuple[int, str], str] = field(default_factory=dict)
    points: dict[str, tuple[array[int], array[float]]] = field(default_factory=dict)

    def add(self, cells: list[str] | None, at: int, end: int) -> None:
        """Take one more row, which stands at the bytes from `at` to `end`."""
        row = self.first + self.count
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
        self.bad.append(BadRow(row, at, why))
        self.others[self.count] = bits % MODULUS
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
        """What was taken, as columns."""
        texts = (name for name in self.points if name.endswith(TEXT))
        names = tuple(sorted((*self.layout.names, *texts)))
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
            valid[self.invalid] = False
        if self.others:
            others = np.zeros(self.count, dtype=np.uint64)
            for place, bits in self.others.items():
                others[place] = bits
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
            stepless=tuple(self.stepless),
        )
