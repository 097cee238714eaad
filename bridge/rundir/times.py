"""The times of rows: from the time column, or estimated between anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bridge.model import Run

__all__ = ["MOST_ANCHORS", "Anchors", "Estimate", "fill", "is_time"]

Anchors: TypeAlias = "tuple[tuple[int, float], ...]"

MOST_ANCHORS = 32
"""More are thinned, so that a cursor stays small."""

_YEAR_10000 = 253402300800.0


def is_time(times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where `times` are what a clock can give: seconds from 1970 up to the year 9999. NaN is none."""
    good: NDArray[np.bool_] = (times >= 0.0) & (times < _YEAR_10000)
    return good


def fill(times: NDArray[np.float64], before: float) -> NDArray[np.float64]:
    """`times` with each one that no clock gives replaced by the one before it, the first by `before`."""
    good = is_time(times)
    if good.all():
        return times
    at = np.where(good, np.arange(len(times)), -1)
    np.maximum.accumulate(at, out=at)
    return np.where(at >= 0, times[at], before)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Times spread evenly between `anchors` (rows so far, time), which rise in both."""

    anchors: Anchors

    @classmethod
    def begin(cls, run: Run, anchors: Anchors = ()) -> Estimate:
        """From the anchors that a target remembers, else from the start of the run."""
        return cls(anchors or ((0, run.start),))

    def reaching(self, rows: int, run: Run) -> Estimate:
        """With an anchor at `rows`, the number of rows that metrics.csv holds: its mtime, or the end of the run.

        Anchors that are there already do not move, so times that were sent do not either.
        """
        last, then = self.anchors[-1]
        if rows <= last:
            return self
        found = run.files.get("metrics.csv")
        time = run.end if run.end is not None else found.mtime_ns / 1e9 if found is not None else run.last_alive
        return Estimate(_thinned((*self.anchors, (rows, round(max(time, then), 3)))))

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The time of each row number: a row stands where the count of rows has just reached it."""
        counts = [count for count, _ in self.anchors]
        return np.interp(rows + 1, counts, [time for _, time in self.anchors])


def _thinned(anchors: Anchors) -> Anchors:
    """Without the anchor whose place between its neighbours says the least, where there are too many."""
    if len(anchors) <= MOST_ANCHORS:
        return anchors

    def says(place: int) -> float:
        (low, before), (count, time), (high, after) = anchors[place - 1 : place + 2]
        return abs(before + (after - before) * (count - low) / (high - low) - time)

    least = min(range(1, len(anchors) - 1), key=says)
    return anchors[:least] + anchors[least + 1 :]
