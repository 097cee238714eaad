"""The next portion of metrics.csv: rows up to a limit of points, cut where a reading can go on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bridge.rundir.csv_rows import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from bridge.model import Run
    from bridge.rundir.csv_rows import Table
    from bridge.rundir.rows import Rows

__all__ = ["Portion", "block_size", "empty_weight", "held_back", "hold_back", "next_portion", "pieces", "text_weight"]

QUIET = 60.0
"""Seconds without a write after which nothing is held back."""

_BYTES_A_POINT = 8
_SPARSE = 8
"""Cells without a value that take the memory of a point and its share of the work."""
_A_TEXT = 8
"""Points that take the memory of a text; a longer one takes another for each of so many characters:"""
_CHARACTERS = 32
_ROWS_AT_MOST = 20_000
"""Of how many pieces a portion is made at most: where header lines alternate with rows, each row is one."""


@dataclass(slots=True)
class Portion:
    """Rows one after another. `more`: others follow that are complete; `held`: others follow that must wait."""

    rows: list[Rows]
    more: bool = False
    held: bool = False

    def end(self, begin: int) -> int:
        """The number of the row after the last; `begin` where there is none."""
        return self.rows[-1].first + len(self.rows[-1]) if self.rows else begin

    def cut(self, end: int) -> None:
        """Leave the rows before number `end`."""
        kept = []
        for rows in self.rows:
            if rows.first >= end and len(rows):
                break
            kept.append(rows.head(min(len(rows), end - rows.first)))
        self.rows = kept


def block_size(limit: int) -> int:
    """How many bytes to parse at once where about `limit` points are wanted."""
    return min(BLOCK, max(1 << 12, limit * _BYTES_A_POINT))


def next_portion(table: Table, source: Iterator[Rows], *, begin: int, offset: int, limit: int) -> Portion:
    """About `limit` points from `source`, whose rows begin with number `begin` at byte `offset` of `table`."""
    portion = Portion([])
    points = 0
    least = begin + 1
    for rows in source:
        beside = empty_weight(rows.present) + text_weight(rows.texts.values())
        more = max(rows.points() + beside, limit // _ROWS_AT_MOST)
        end = rows.first + len(rows)
        if portion.rows and not len(portion.rows[-1]):
            portion.rows.pop()  # a header line alone: the rows that follow know where they stand
        portion.rows.append(rows)
        if points + more > limit + limit // 2 and end > least:
            weights = np.count_nonzero(rows.present, axis=0) + beside // max(1, len(rows))
            fitting = np.searchsorted(np.cumsum(weights), limit - points, side="right")
            portion.cut(max(rows.first + int(fitting), least))
            portion.more = portion.end(begin) < end or has_rows(table, rows.end)
            return portion
        points += more
        if points >= limit - limit // 4 and end >= least and has_rows(table, rows.end):
            portion.cut(end)
            portion.more = True
            return portion
    return portion


def empty_weight(present: NDArray[np.bool_]) -> int:
    """As how many more points a table with values where `present` counts towards a limit, for its empty cells and rows."""
    points = int(np.count_nonzero(present))
    return max(0, int(present.size) // _SPARSE - points, len(present.T) - points)


def text_weight(texts: Iterable[str]) -> int:
    """The same for texts."""
    return sum(_A_TEXT + len(text) // _CHARACTERS for text in texts)


def has_rows(table: Table, offset: int) -> bool:
    """Whether a newline follows byte `offset` (a quoted one is taken for a row that is not there yet, harmlessly)."""
    table.file.seek(offset)
    left = table.size - offset
    while left > 0:
        piece = table.file.read(min(left, 1 << 16))
        if not piece or b"\n" in piece:
            return bool(piece)
        left -= len(piece)
    return False


def hold_back(portion: Portion, run: Run, begin: int) -> None:
    """Leave out the last rows that share the last row's step, for they may still be superseded by the run."""
    found = run.files.get("metrics.csv")
    if portion.more or found is None or not run.running or time.time() - found.mtime_ns / 1e9 >= QUIET:
        return
    last: int | None = None
    cut = portion.end(begin)
    for rows in reversed(portion.rows):
        step = rows.step
        good = np.arange(len(step)) if rows.valid is None else np.flatnonzero(rows.valid)
        if not len(good):
            continue
        last = int(step[good[-1]]) if last is None else last
        other = np.flatnonzero(step[good] != last)
        if len(other):
            after = int(other[-1]) + 1
            cut = rows.first + int(good[after]) if after < len(good) else cut
            break
        cut = rows.first + int(good[0])
    if last is not None and cut < portion.end(begin):
        portion.cut(cut)
        portion.held = True


def held_back(source: Iterator[Rows], run: Run) -> Iterator[Rows]:
    """The rows of `source`, to the end of the file, without those that `hold_back` leaves out."""
    waiting: list[Rows] = []
    for rows in source:
        step = rows.step if rows.valid is None else rows.step[rows.valid]
        if len(step) and (step != step[-1]).any():
            # The last step of these rows begins among them, so nothing before can be held back any more.
            yield from waiting
            waiting = []
        waiting.append(rows)
    portion = Portion(waiting)
    hold_back(portion, run, waiting[0].first if waiting else 0)
    yield from portion.rows


def pieces(source: Iterator[Rows], most: int) -> Iterator[Rows]:
    """The rows of `source`, cut where there are more than `most` points at once and a half."""
    for whole in source:
        rows = whole
        while rows.points() > most + most // 2 and len(rows) > 1:
            fitting = np.searchsorted(np.cumsum(np.count_nonzero(rows.present, axis=0)), most, side="right")
            count = min(max(1, int(fitting)), len(rows) - 1)
            yield rows.head(count)
            rows = rows.tail(count)
        yield rows
