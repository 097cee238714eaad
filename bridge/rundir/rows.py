"""Hold consecutive rows of a table of metrics as columns of numbers.

Compute the digest of their content, and their times: those in the time column, or estimates.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logger.sidecar import YEAR_10000

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bridge.model import NoticeKind, Run
    from bridge.rundir.header import Layout

_SPARSE = 8
"""Empty cells that weigh as much as one point: they take about as much memory and work."""

_LEAST_WEIGHT = 64
"""The least weight of a batch: a file in which header lines and rows alternate makes a batch of each row."""

Words: TypeAlias = NDArray[np.uint64]


# Digests ------------------------------------------------------------------------------------------------------------
#
# The digest of rows adds up: digest(rows 0..m) = digest(0..n) + digest(n..m) modulo 2^64. The digest of one row is the
# sum over its cells of a mix of the value's bits with the column's name, times an odd number made of the row's number.
# So the order of columns, empty columns and the way in which a number is written do not matter, and neither do text and
# bad rows, which are not exported. The digest finds accidents, it does not protect against forgery.

MODULUS = 1 << 64
_CACHED_CELLS = 1 << 15


def to_hex(digest: int) -> str:
    """Return a digest of rows as a cursor keeps it."""
    return f"{digest % MODULUS:016x}"


NO_ROWS = to_hex(0)


@lru_cache(maxsize=1 << 16)
def _name_words(name: str) -> tuple[int, int]:
    """Return two words that stand for a column's name: one to XOR with, and an odd one to multiply by."""
    data = hashlib.blake2b(name.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little") | 1


@lru_cache(maxsize=256)
def _names_words(names: tuple[str, ...]) -> tuple[Words, Words]:
    both = np.array([_name_words(name) for name in names], dtype=np.uint64).reshape(-1, 2)
    return both[:, :1].copy(), both[:, 1:].copy()


@lru_cache(maxsize=8)
def _row_words(first: int, count: int) -> Words:
    """Return an odd word for each of `count` row numbers from `first` on (the mixing steps of splitmix64)."""
    word = np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
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
            odd={what: kept for what, rows in self.odd.items() if len(kept := rows[(rows >= first) & (rows < last)])},
            problems={row: problem for row, problem in self.problems.items() if first <= row < last},
        )

    def split(self, most: int) -> Iterator[tuple[Rows, int]]:
        """Yield these rows in parts that weigh about `most` at most, each with its weight.

        The weight of a row is the number of its points, or more if it is mostly empty. A part that has rows weighs
        something.
        """
        least, empty = min(most, _LEAST_WEIGHT), max(1, len(self.names) // _SPARSE)
        total = max(int(np.count_nonzero(self.present)), empty * len(self))
        if total <= most or len(self) <= 1:
            yield self, max(total, least) if len(self) else 0
            return
        so_far = np.cumsum(np.maximum(np.count_nonzero(self.present, axis=0), empty))
        low = passed = 0
        while low < len(self):
            # so_far rises, so a part ends where so_far passes the limit, but has at least one row.
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
        return int((total * _row_words(self.first, len(self))).sum(dtype=np.uint64)) % MODULUS


# Times --------------------------------------------------------------------------------------------------------------

Anchors: TypeAlias = "tuple[tuple[int, float], ...]"
"""(rows so far, time in seconds since the epoch), rising in both."""

MOST_ANCHORS = 32
"""More anchors are thinned, so that a cursor stays small."""


def is_time(times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each of `times` if a clock can give it: seconds from 1970 up to the year 9999. NaN is no time."""
    good: NDArray[np.bool_] = (times >= 0.0) & (times < YEAR_10000)
    return good


def fill(times: NDArray[np.float64], before: float) -> NDArray[np.float64]:
    """Return `times` with each impossible one replaced by the time before it, the first by `before`."""
    good = is_time(times)
    if good.all():
        return times
    # at[i] is the index of the last good time up to i, or -1: a running maximum carries each good index forward.
    at = np.where(good, np.arange(len(times)), -1)
    np.maximum.accumulate(at, out=at)
    return np.where(at >= 0, times[at], before)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Spread the times of rows evenly between `anchors`."""

    anchors: Anchors

    @classmethod
    def begin(cls, run: Run, anchors: Anchors = ()) -> Estimate:
        """Begin with the anchors of a target's cursor, or with the start of the run."""
        return cls(anchors or ((0, run.start),))

    def reaching(self, rows: int, run: Run) -> Estimate:
        """Return an estimate with one more anchor: `rows` rows at the run's end, or at the mtime of metrics.csv.

        Earlier anchors do not move, and so neither do times that were sent.
        """
        last, then = self.anchors[-1]
        if rows <= last:
            return self
        found = run.files.get("metrics.csv")
        now = run.end if run.end is not None else found.mtime_ns / 1e9 if found is not None else run.last_alive
        return Estimate(_thinned((*self.anchors, (rows, max(round(now, 3), then)))))

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the time of each row number: the moment at which the count of rows reaches it."""
        counts = [count for count, _ in self.anchors]
        return np.interp(rows + 1, counts, [then for _, then in self.anchors])


def _thinned(anchors: Anchors) -> Anchors:
    """Return `anchors`, if they are too many without the one that deviates least from a line between its neighbours."""
    if len(anchors) <= MOST_ANCHORS:
        return anchors

    def deviation(place: int) -> float:
        (low, before), (count, then), (high, after) = anchors[place - 1 : place + 2]
        return abs(before + (after - before) * (count - low) / (high - low) - then)

    least = min(range(1, len(anchors) - 1), key=deviation)
    return anchors[:least] + anchors[least + 1 :]
