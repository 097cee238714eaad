"""`--max-points`: of each bucket of 2^k rows, counted from row 0, the extremes of each metric and its last point."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.rundir.reading import block_of
from bridge.rundir.rows import TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from bridge.model import Block
    from bridge.rundir.rows import Rows

__all__ = ["bucket_bits", "thinned", "whole_buckets"]

_KEPT = 3
"""Points that a bucket keeps of a metric: the least, the greatest, the last (and the first NaN, where there is one)."""


def bucket_bits(rows: int, most: int) -> int:
    """The least k for which buckets of 2^k rows leave at most `most` points of a metric that every one of `rows` has."""
    bits = 0
    while -(-rows >> bits) * min(1 << bits, _KEPT) > most and (1 << bits) < rows:
        bits += 1
    return bits


def whole_buckets(source: Iterator[Rows], bits: int) -> Iterator[Rows]:
    """The rows of `source` up to the last multiple of 2^`bits`."""
    waiting: list[Rows] = []
    for rows in source:
        waiting.append(rows)
        full = rows.first + len(rows) >> bits << bits
        while waiting and waiting[0].first < full:
            head = waiting.pop(0)
            count = min(len(head), full - head.first)
            yield head.head(count)
            if count < len(head):
                waiting.insert(0, head.tail(count))


def thinned(blocks: Callable[[], Iterator[Block]], bits: int) -> Iterator[Block]:
    """The points of `blocks` that their buckets keep; `blocks()` gives the same points each time. Texts all stay."""
    if bits == 0:
        yield from blocks()
        return
    kept: dict[str, _Kept] = {}
    for block in blocks():
        for line, name in enumerate(block.names):
            if not name.endswith(TEXT):
                at = np.flatnonzero(block.present[line])
                if len(at):
                    kept.setdefault(name, _Kept(bits)).add(block.row[at], block.step[at], block.values[line, at])
    for block in blocks():
        present = block.present.copy()
        for line, name in enumerate(block.names):
            if name in kept and present[line].any():
                present[line] &= kept[name].holds(block.row)
        made = block_of(block.names, block.row, block.step, block.time, block.values, present)
        if made is not None:
            yield made


@dataclass(frozen=True, slots=True)
class _Points:
    """Points of one metric by row, in buckets: `here` are the buckets, which begin at `starts` and have `lengths`."""

    row: NDArray[np.int64]
    step: NDArray[np.int64]
    value: NDArray[np.float64]
    here: NDArray[np.int64]
    starts: NDArray[np.intp]
    lengths: NDArray[np.intp]

    @classmethod
    def of(cls, bits: int, row: NDArray[np.int64], step: NDArray[np.int64], value: NDArray[np.float64]) -> _Points:
        if (row[1:] < row[:-1]).any():
            order = np.argsort(row, kind="stable")
            row, step, value = row[order], step[order], value[order]
        bucket = row >> bits
        starts = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]]))
        return cls(row, step, value, bucket[starts], starts, np.diff(starts, append=len(row)))

    def firsts(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """For each bucket the row of its first chosen point, -1 where it has none."""
        places = np.where(chosen, np.arange(len(chosen)), len(chosen))
        first = np.minimum.reduceat(places, self.starts)
        return np.where(first < len(chosen), self.row[np.minimum(first, len(chosen) - 1)], -1)

    def spread(self, of_bucket: NDArray[Any]) -> NDArray[Any]:
        """What is said of a bucket, said of each of its points."""
        return np.repeat(of_bucket, self.lengths)


@dataclass(slots=True)
class _Kept:
    """The rows that the buckets of one metric keep, as columns by bucket number; -1 where there is none."""

    bits: int
    best: NDArray[np.float64] = field(default_factory=lambda: np.empty((2, 0)))
    latest: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty((4, 0), dtype=np.int64))

    def add(self, row: NDArray[np.int64], step: NDArray[np.int64], value: NDArray[np.float64]) -> None:
        """Take points of the metric, in any order."""
        points = _Points.of(self.bits, row, step, value)
        self._grow(int(points.here[-1]) + 1)
        nan = np.isnan(points.value)
        self._extreme(0, points, np.where(nan, np.inf, points.value), ~nan)
        self._extreme(1, points, np.where(nan, np.inf, -points.value), ~nan)
        top = np.maximum.reduceat(points.step, points.starts)
        rows = points.firsts(points.step == points.spread(top))
        self._keep(2, points.here, rows, (self.rows[2, points.here] < 0) | (top > self.latest[points.here]))
        self.latest[points.here] = np.maximum(self.latest[points.here], top)
        if nan.any():
            rows = points.firsts(nan)
            before = self.rows[3, points.here]
            self._keep(3, points.here, rows, (rows >= 0) & ((before < 0) | (rows < before)))

    def holds(self, row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows are kept."""
        place = np.minimum(row >> self.bits, self.rows.shape[1] - 1)
        held: NDArray[np.bool_] = (self.rows[:, place] == row).any(axis=0)
        return held

    def _extreme(self, line: int, points: _Points, value: NDArray[np.float64], number: NDArray[np.bool_]) -> None:
        """Keep the point of the least `value`; of equal ones that of the first row."""
        least = np.minimum.reduceat(value, points.starts)
        rows = points.firsts((value == points.spread(least)) & number)
        before, best = self.rows[line, points.here], self.best[line, points.here]
        better = (rows >= 0) & ((before < 0) | (least < best) | ((least == best) & (rows < before)))
        self.best[line, points.here[better]] = least[better]
        self._keep(line, points.here, rows, better)

    def _keep(self, line: int, here: NDArray[np.int64], rows: NDArray[np.int64], better: NDArray[np.bool_]) -> None:
        self.rows[line, here[better]] = rows[better]

    def _grow(self, buckets: int) -> None:
        known = len(self.latest)
        if buckets > known:
            more = max(buckets, 2 * known) - known
            self.best = np.concatenate([self.best, np.zeros((2, more))], axis=1)
            self.latest = np.concatenate([self.latest, np.full(more, np.iinfo(np.int64).min)])
            self.rows = np.concatenate([self.rows, np.full((4, more), -1, dtype=np.int64)], axis=1)
