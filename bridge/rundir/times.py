"""Tell the ages of files, and the times of rows: from the time column, or estimated."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from bridge.model import Run

ALLOWANCE = 60.0
"""Seconds by which the file server's clock may be off while it is not known."""

Anchors: TypeAlias = "tuple[tuple[int, float], ...]"
"""(rows so far, time in seconds since the epoch), rising in both."""

MOST_ANCHORS = 32
"""More anchors are thinned, so that a cursor stays small."""

_REFRESH_S = 300.0
_YEAR_10000 = 253402300800.0


class Clock:
    """Tell how old files are.

    `directory`, a cache of ours, may be written to. Files on its file system are judged by the clock that dates a new
    file there. Other files are judged by this machine's clock, a minute in their favour.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._device: int | None = None
        self._ahead = 0.0
        self._asked = -_REFRESH_S
        self._comparing = threading.Lock()

    def age(self, found: os.stat_result, then: float | None = None) -> float:
        """Return the age in seconds, never negative, of the file with the stat result `found`.

        `then`, a time that the file's writer stated, replaces its mtime.
        """
        with self._comparing:
            self._compare()
        now = time.time() - (found.st_mtime if then is None else then)
        if self._device is not None and found.st_dev == self._device:
            return max(0.0, now + self._ahead)
        return max(0.0, now - ALLOWANCE)

    def _compare(self) -> None:
        """Compare the two clocks, again every few minutes, since a long `--follow` sees them drift."""
        if self._directory is None or time.monotonic() - self._asked < _REFRESH_S:
            return
        self._asked = time.monotonic()
        self._device = None
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".clock-") as file:
                before = time.time()
                file.write(b".")
                file.flush()
                os.fsync(file.fileno())
                found = os.fstat(file.fileno())
                self._ahead = found.st_mtime - (before + time.time()) / 2
                self._device = found.st_dev


def is_time(times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each of `times` if a clock can give it: seconds from 1970 up to the year 9999. NaN is no time."""
    good: NDArray[np.bool_] = (times >= 0.0) & (times < _YEAR_10000)
    return good


def fill(times: NDArray[np.float64], before: float) -> NDArray[np.float64]:
    """Return `times` with each impossible one replaced by the time before it, the first by `before`."""
    import numpy as np

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
        import numpy as np

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
