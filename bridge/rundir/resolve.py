"""The overlap rule `last`, and the one order that a scalar file has whatever the exports were.

Of the values at one step the last unbroken run of equal ones counts, with its first point. In an ordered target a point
stands at its own row or, where a lower step of its series was written later, at that later row.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bridge.model import Block
from bridge.rundir.external_sort import BUDGET, Run, Store, merge, sort_by
from bridge.rundir.reading import block_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from bridge.rundir.external_sort import Records

__all__ = ["counting", "counting_rows", "resolved"]

STEP, ROW, TIME, VALUE = range(4)
"""The columns of a point's record."""

POS, SERIES = 4, 5
"""The columns that come to it: where it stands, and in which series."""

_EVENT = (POS, STEP, ROW)

_MOST_CELLS = 4 << 20


def resolved(
    blocks: Callable[[], Iterator[Block]], lows: Mapping[str, int], *, ordered: bool, budget: int = BUDGET
) -> Iterator[Block]:
    """The points that count of `blocks`, in the order of the target.

    `blocks()` gives the same blocks each time it is called, in row order; `lows` are the series with overlaps: only at steps
    from that one on, the rest is taken as it is. A row of a block in the result is one row of the source.
    """
    if not lows:
        yield from blocks()
        return
    sorter = Sorter(ordered=ordered, budget=budget)
    with closing(sorter):
        for block in blocks():
            for line, name in enumerate(block.names):
                if name in lows:
                    sorter.add(name, block, line, block.present[line] & (block.step >= lows[name]))
        yield from _woven(blocks(), lows, sorter)


@dataclass(slots=True)
class Sorter:
    """Sorts the points of overlapping series, in memory or outside of it."""

    ordered: bool
    budget: int
    names: list[str] = field(default_factory=list)
    _waiting: dict[str, list[Records]] = field(default_factory=dict)
    _waiting_bytes: int = 0
    _runs: dict[str, list[Run]] = field(default_factory=dict)
    _store: Store = field(init=False)

    def __post_init__(self) -> None:
        self._store = Store(self.budget // 2)

    def close(self) -> None:
        """Remove the temporary file."""
        self._store.close()

    def add(self, name: str, block: Block, line: int, chosen: NDArray[np.bool_]) -> None:
        """Take the `chosen` points of one series of `block`; blocks come in row order."""
        at = np.flatnonzero(chosen)
        if not len(at):
            return
        records = np.empty((len(at), 4), dtype=np.int64)
        records[:, STEP], records[:, ROW] = block.step[at], block.row[at]
        records[:, TIME] = block.time[at].view(np.int64)
        records[:, VALUE] = block.values[line, at].view(np.int64)
        self._waiting.setdefault(name, []).append(records)
        self._waiting_bytes += records.nbytes
        if self._waiting_bytes > self.budget // 4:
            self._flush()

    def _flush(self) -> None:
        for name, parts in self._waiting.items():
            records = np.concatenate(parts)
            run = Run(self._store)
            # Rows rise already, and a stable sort keeps them so.
            run.append(records[np.argsort(records[:, STEP], kind="stable")])
            self._runs.setdefault(name, []).append(run)
        self._waiting.clear()
        self._waiting_bytes = 0

    def events(self) -> Iterator[Records]:
        """All points that count as records of six columns, by position, step, row; one event is never cut in two."""
        self._flush()
        self.names = list(self._runs)
        placed: list[Run] = []
        for place, name in enumerate(self.names):
            run = Run(self._store)
            highest = np.int64(-1)
            for records in counting(merge(self._runs.pop(name), (STEP, ROW), budget=self.budget // 4)):
                pos = records[:, ROW]
                if self.ordered:
                    pos = np.maximum(np.maximum.accumulate(pos), highest)
                    highest = pos[-1]
                wide = np.column_stack([records, pos, np.full(len(records), place)])
                if self.ordered:
                    run.append(wide)
                else:  # by row: each piece is a run of its own
                    run = Run(self._store)
                    run.append(sort_by(wide, (POS,)))
                    placed.append(run)
            if self.ordered:
                placed.append(run)
        yield from merge(placed, _EVENT, budget=self.budget // 4)


def counting(pieces: Iterator[Records]) -> Iterator[Records]:
    """Of records sorted by step and row those that count: at each step the first of the last run of equal values."""
    carried: Records | None = None  # the last run of equal values so far: its first record
    for piece in pieces:
        records = piece if carried is None else np.concatenate([carried, piece])
        step, value = records[:, STEP], _floats(records[:, VALUE])
        equal = (value[1:] == value[:-1]) | (np.isnan(value[1:]) & np.isnan(value[:-1]))
        starts = np.flatnonzero(np.concatenate([[True], (step[1:] != step[:-1]) | ~equal]))
        firsts = records[starts]
        carried = firsts[-1:]
        counts = firsts[:-1][firsts[1:, STEP] != firsts[:-1, STEP]]
        if len(counts):
            yield counts
    if carried is not None:
        yield carried


def counting_rows(step: NDArray[np.int64], value: NDArray[np.float64]) -> NDArray[np.intp]:
    """The places of the points of one series that count, by step; the input is in row order."""
    order = np.argsort(step, kind="stable")
    records = np.zeros((len(step), 4), dtype=np.int64)
    records[:, STEP], records[:, ROW], records[:, VALUE] = step[order], order, value[order].view(np.int64)
    pieces = list(counting(iter([records] if len(records) else [])))
    return np.concatenate([piece[:, ROW] for piece in pieces]) if pieces else np.empty(0, dtype=np.intp)


def _woven(blocks: Iterator[Block], lows: Mapping[str, int], sorter: Sorter) -> Iterator[Block]:
    """The blocks without the overlapping points, and those that count put where they stand."""
    pieces = _pieces(sorter)
    waiting = next(pieces, None)
    for block in blocks:
        present = block.present.copy()
        for line, name in enumerate(block.names):
            if name in lows:
                present[line] &= block.step < lows[name]
        begin = 0
        while waiting is not None and int(waiting[0, POS]) <= int(block.row[-1]):
            cut = int(np.searchsorted(waiting[:, POS], block.row[-1], side="right"))
            taken, waiting = waiting[:cut], waiting[cut:]
            if not len(waiting):
                waiting = next(pieces, None)
            end = int(np.searchsorted(block.row, taken[-1, POS], side="right"))
            # The events of one position may come in several pieces: its row goes out with the first.
            yield from _mixed(block, present, slice(begin, end), taken, sorter.names)
            begin = max(begin, end)
        rest = slice(begin, len(block.row))
        yield from _mixed(block, present, rest, np.empty((0, 6), dtype=np.int64), sorter.names)


def _pieces(sorter: Sorter) -> Iterator[Records]:
    """The events in pieces that make no large blocks."""
    for records in sorter.events():
        start = 0
        changes = np.flatnonzero((records[1:, _EVENT] != records[:-1, _EVENT]).any(axis=1)) + 1
        ends = np.append(changes, len(records))
        while start < len(records):
            end = len(records)
            while (
                events := int(np.searchsorted(ends, end, side="right") - np.searchsorted(ends, start, side="right"))
            ) > 1:
                series = len(np.unique(records[start:end, SERIES]))
                if events * series <= _MOST_CELLS:
                    break
                first = int(np.searchsorted(ends, start, side="right"))
                end = int(ends[first + max(1, events // 2) - 1])
            yield records[start:end]
            start = end


def _mixed(block: Block, present: NDArray[np.bool_], rows: slice, events: Records, names: list[str]) -> Iterator[Block]:
    """The rows of `block` that are `present`, with `events` at their places: in their own row or as rows of their own."""
    own = events[:, POS] == events[:, ROW]
    if own.any():
        lines = {name: line for line, name in enumerate(block.names)}
        line_of = np.array([lines.get(name, -1) for name in names], dtype=np.intp)
        at = np.searchsorted(block.row, events[own, ROW])
        present[line_of[events[own, SERIES]], at] = True
    base = Block(
        block.names, block.row[rows], block.step[rows], block.time[rows], block.values[:, rows], present[:, rows]
    )
    moved = events[~own]
    if len(moved):
        base = _with_moved(base, moved, names)
    made = block_of(base.names, base.row, base.step, base.time, base.values, base.present)
    if made is not None:
        yield made


def _with_moved(base: Block, moved: Records, names: list[str]) -> Block:
    """`base` with the events that stand behind rows of it (or before its first) as rows of their own."""
    starts = np.concatenate([[True], (moved[1:, _EVENT] != moved[:-1, _EVENT]).any(axis=1)])
    event_of = np.cumsum(starts) - 1
    heads = moved[starts]
    # Events rise by position, and a row stands before what is moved behind it: that has higher steps.
    of_base = np.arange(len(base.row)) + np.searchsorted(heads[:, POS], base.row, side="left")
    of_heads = np.arange(len(heads)) + np.searchsorted(base.row, heads[:, POS], side="right")
    of_moved = (names[series] for series in np.unique(moved[:, SERIES]).tolist())
    every = sorted({*(base.names if len(base.row) else ()), *of_moved})
    lines = {name: line for line, name in enumerate(every)}
    shape = (len(lines), len(base.row) + len(heads))
    values, present = np.zeros(shape), np.zeros(shape, dtype=bool)
    if len(base.row):
        at_base = np.ix_(np.array([lines[name] for name in base.names], dtype=np.intp), of_base)
        values[at_base], present[at_base] = base.values, base.present
    line_of = np.array([lines.get(name, -1) for name in names], dtype=np.intp)
    at = line_of[moved[:, SERIES]], of_heads[event_of]
    values[at], present[at] = _floats(moved[:, VALUE]), True
    row, step, time = np.empty(shape[1], dtype=np.int64), np.empty(shape[1], dtype=np.int64), np.empty(shape[1])
    row[of_base], step[of_base], time[of_base] = base.row, base.step, base.time
    row[of_heads], step[of_heads], time[of_heads] = heads[:, ROW], heads[:, STEP], _floats(heads[:, TIME])
    return Block(tuple(lines), row, step, time, values, present)


def _floats(bits: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.ascontiguousarray(bits).view(np.float64)
