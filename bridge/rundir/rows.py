"""Rows of metrics.csv as columns, as they stand in the file: before the overlap rule, times and globs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bridge.rundir.digest import MODULUS, cells_digest, row_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bridge.rundir.header import Layout

__all__ = ["MOST_NAMED", "TEXT", "BadRow", "Rows"]

MOST_NAMED = 20
"""Bad rows that are named one by one; more are counted."""

TEXT = "\0text"
"""Ends the name of the series that stands for a column's texts; its values are digests, `Rows.texts` has the texts."""


_A_PIECE, _A_TEXT = 2_000, 300
"""Bytes that rows take for themselves, and a text among them beside its characters."""

NO_ROWS = np.zeros(0, dtype=np.int64)


class BadRow(NamedTuple):
    """A row that is none: its number, the byte where it begins, and why."""

    row: int
    at: int
    why: str


@dataclass(slots=True, eq=False, weakref_slot=True)
class Rows:
    """Consecutive rows under one header line: n rows from number `first`, k series.

    `names` are the series; `step` int64 (n,); `time` float64 (n,), NaN where there is none; `values` float64 (k, n) and
    `present` bool (k, n); `valid` bool (n,): rows that have a step (None: all have). `start` and `end` are bytes of the file,
    `data` the bytes between. `ends` are the ends of all rows in `data`, None where each line is a row.
    `others` is a digest (n,) of what is in no column (bad rows), None where there is nothing. `bad_at` are the numbers of
    all bad rows, int64, `bad` says of the first of them what is wrong.
    """

    layout: Layout
    first: int
    start: int
    end: int
    data: bytes | memoryview
    names: tuple[str, ...]
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    values: NDArray[np.float64]
    present: NDArray[np.bool_]
    valid: NDArray[np.bool_] | None = None
    ends: NDArray[np.int64] | None = None
    others: NDArray[np.uint64] | None = None
    texts: dict[tuple[int, str], str] = field(default_factory=dict)
    bad: tuple[BadRow, ...] = ()
    bad_at: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    stepless: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.step)

    @property
    def row(self) -> NDArray[np.int64]:
        """The rows' numbers."""
        return np.arange(self.first, self.first + len(self), dtype=np.int64)

    def offset(self, count: int) -> int:
        """The byte of the file where the first `count` rows end."""
        if count == 0:
            return self.start
        if count == len(self):
            return self.end
        ends = self.ends
        if ends is None:
            ends = np.flatnonzero(np.frombuffer(self.data, dtype=np.uint8) == 10) + 1
        return self.start + int(ends[count - 1])

    def head(self, count: int) -> Rows:
        """The first `count` rows."""
        return self._part(0, count)

    def tail(self, count: int) -> Rows:
        """All but the first `count` rows."""
        return self._part(count, len(self))

    def _part(self, low: int, high: int) -> Rows:
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
            texts={key: text for key, text in self.texts.items() if first <= key[0] < last},
            bad=tuple(bad for bad in self.bad if first <= bad.row < last),
            bad_at=self.bad_at[(self.bad_at >= first) & (self.bad_at < last)],
            stepless=tuple(row for row in self.stepless if first <= row < last),
        )

    def points(self) -> int:
        """How many cells hold a value."""
        return int(np.count_nonzero(self.present))

    def nbytes(self) -> int:
        """About how many bytes of memory these rows take without `data`."""
        arrays = (self.step, self.time, self.values, self.present, self.valid, self.ends, self.others, self.bad_at)
        held = sum(array.nbytes for array in arrays if array is not None)
        return held + _A_PIECE + sum(_A_TEXT + len(text) for text in self.texts.values())

    def digests(self) -> NDArray[np.uint64]:
        """What each row adds to the digest of the rows."""
        total = cells_digest(self.names, self.values.view(np.uint64), self.present)
        one = np.ones((1, len(self)), dtype=bool)
        if self.layout.step is not None:
            known = one if self.valid is None else self.valid[None, :]
            total += cells_digest(("\0step",), self.step.view(np.uint64)[None, :], known)
        if self.layout.time is not None:
            total += cells_digest(("\0time",), self.time.view(np.uint64)[None, :], ~np.isnan(self.time)[None, :])
        if self.others is not None:
            total += self.others
        return total * row_weights(self.row)


def digest_of(digests: NDArray[np.uint64]) -> int:
    """The sum of rows' digests."""
    return int(digests.sum(dtype=np.uint64)) % MODULUS
