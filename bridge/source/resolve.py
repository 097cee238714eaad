"""The overlap rule `last`, and the one order that a scalar file has whatever the exports were.

Of the values at one step the last unbroken run of equal ones counts, with its first point. In an ordered target a point
stands at its own row or, where a lower step of its series was written later, at that later row.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bridge.source.external_sort import BUDGET, Run, Store, merge, sort_by
from bridge.source.reading import block_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from bridge.model import Block
    from bridge.source.external_sort import Records

__all__ = ["counting", "resolved"]

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
        step, value = records[:, STEP], np.ascontiguousarray(records[:, VALUE]).view(np.float64)
        equal = (value[1:] == value[:-1]) | (np.isnan(value[1:]) & np.isnan(value[:-1]))
        starts = np.flatnonzero(np.concatenate([[True], (step[1:] != step[:-1]) | ~equal]))
        firsts = records[starts]
        carried = firsts[-1:]
        counts = firsts[:-1][firsts[1:, STEP] != firsts[:-1, STEP]]
        if len(counts):
            yield counts
    if carried is not None:
        yield carried


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
    base_row = block.row[rows]
    own = events[:, POS] == events[:, ROW]
    lines = {name: line for line, name in enumerate(block.names)}
    if own.any():
        mine = events[own]
        target = np.array([lines.get(name, -1) for name in names], dtype=np.intp)[mine[:, SERIES]]
        present[target, np.searchsorted(block.row, mine[:, ROW])] = True
    extra = events[~own]
    if not len(extra):
        made = block_of(
            block.names, base_row, block.step[rows], block.time[rows], block.values[:, rows], present[:, rows]
        )
        if made is not None:
            yield made
        return
    new = np.concatenate([[True], (extra[1:, _EVENT] != extra[:-1, _EVENT]).any(axis=1)])
    event = np.cumsum(new) - 1
    heads = extra[new]
    # A row stands before what is moved behind it: those have higher steps.
    keys = np.lexsort(
        (
            np.concatenate([np.zeros(len(base_row), dtype=np.int64), np.arange(1, len(heads) + 1)]),
            np.concatenate([base_row, heads[:, POS]]),
        )
    )
    place = np.empty(len(keys), dtype=np.intp)
    place[keys] = np.arange(len(keys))
    of_base, of_extra = place[: len(base_row)], place[len(base_row) :]
    every = list(block.names) if len(base_row) else []
    known = {name: line for line, name in enumerate(every)}
    for series in np.unique(extra[:, SERIES]).tolist():
        if names[series] not in known:
            known[names[series]] = len(every)
            every.append(names[series])
    values = np.zeros((len(every), len(keys)))
    shown = np.zeros(values.shape, dtype=bool)
    if len(base_row):
        values[: len(block.names), of_base] = block.values[:, rows]
        shown[: len(block.names), of_base] = present[:, rows]
    lines_of = np.array([known.get(name, -1) for name in names], dtype=np.intp)
    at = lines_of[extra[:, SERIES]], of_extra[event]
    values[at] = np.ascontiguousarray(extra[:, VALUE]).view(np.float64)
    shown[at] = True
    row, step, time = (np.empty(len(keys), dtype=kind) for kind in (np.int64, np.int64, np.float64))
    row[of_base], step[of_base], time[of_base] = base_row, block.step[rows], block.time[rows]
    row[of_extra], step[of_extra] = heads[:, ROW], heads[:, STEP]
    time[of_extra] = np.ascontiguousarray(heads[:, TIME]).view(np.float64)
    made = block_of(tuple(every), row, step, time, values, shown)
    if made is not None:
        yield made
