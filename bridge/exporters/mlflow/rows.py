"""Points as the columns of MLflow's metrics table, key by key: what the database writer inserts.

Values are stored as MLflow stores them: NaN as 0 with a flag, an infinity as the greatest float of its sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.model import Block, Points

__all__ = ["KeyRows", "Latest", "milliseconds", "rows_of_blocks", "rows_of_points", "slices"]

_GREATEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True, order=True)
class Latest:
    """A key's latest value; the order is MLflow's: (step, timestamp, value), and the flag takes no part in it."""

    step: int
    timestamp: int
    value: float


@dataclass(frozen=True, slots=True, eq=False)
class KeyRows:
    """Rows of one key as columns of one length n > 0.

    `timestamp` (ms) and `step` int64, `value` float64 (finite, 0 where `is_nan`), `is_nan` bool.
    """

    key: str
    timestamp: NDArray[np.int64]
    step: NDArray[np.int64]
    value: NDArray[np.float64]
    is_nan: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.timestamp)

    def take(self, which: NDArray[np.intp] | NDArray[np.bool_] | slice) -> KeyRows:
        """The rows that `which` selects, in its order."""
        return KeyRows(self.key, self.timestamp[which], self.step[which], self.value[which], self.is_nan[which])

    def latest(self) -> tuple[Latest, bool]:
        """The row that MLflow calls latest, and whether it is NaN; of equal ones the first, as log_batch keeps it."""
        left = np.flatnonzero(self.step == self.step.max())
        for column in (self.timestamp, self.value):
            if len(left) == 1:
                break
            left = left[column[left] == column[left].max()]
        at = int(left[0])
        return Latest(int(self.step[at]), int(self.timestamp[at]), float(self.value[at])), bool(self.is_nan[at])

    def distinct(self) -> KeyRows:
        """The rows in the order of the table's primary key, of equal ones the first alone.

        Sorted rows land on neighbouring pages of the index, which is half of the speed.
        """
        if _increases(self.timestamp, self.step):
            return self
        rows = self.take(np.lexsort((self.is_nan, self.value, self.step, self.timestamp)))
        fresh = np.ones(len(rows), dtype=np.bool_)
        fresh[1:] = (
            (np.diff(rows.timestamp) != 0)
            | (np.diff(rows.step) != 0)
            | (rows.value[1:] != rows.value[:-1])
            | (rows.is_nan[1:] != rows.is_nan[:-1])
        )
        return rows.take(fresh)


def milliseconds(time: NDArray[np.float64]) -> NDArray[np.int64]:
    """Seconds since the epoch as MLflow's whole milliseconds, to the nearest."""
    return np.rint(time * 1000.0).astype(np.int64)


def rows_of_blocks(blocks: Iterable[Block], names: Mapping[str, str]) -> list[KeyRows]:
    """The present points of `blocks` by key, keys sorted, rows in logged order; `names` maps a metric to its key.

    Raises KeyError for a metric that has points and no key.
    """
    parts: dict[str, list[KeyRows]] = {}
    for block in blocks:
        timestamp = milliseconds(block.time)
        for name, value, present in zip(block.names, block.values, block.present, strict=True):
            if present.all():
                rows = _rows(names[name], timestamp, block.step, value) if len(value) else None
            else:
                at = np.flatnonzero(present)
                rows = _rows(names[name], timestamp[at], block.step[at], value[at]) if len(at) else None
            if rows is not None:
                parts.setdefault(rows.key, []).append(rows)
    return [_join(key, parts[key]) for key in sorted(parts)]


def rows_of_points(points: Points, names: Mapping[str, str]) -> list[KeyRows]:
    """`points` by key, keys sorted; of rows that the table cannot tell apart the first alone."""
    order = np.argsort(points.name, kind="stable")
    edges = np.flatnonzero(np.diff(points.name[order])) + 1
    found = []
    for at in np.split(order, edges) if len(order) else ():
        name = points.names[int(points.name[at[0]])]
        found.append(_rows(names[name], milliseconds(points.time[at]), points.step[at], points.value[at]).distinct())
    return sorted(found, key=lambda rows: rows.key)


def slices(rows: Sequence[KeyRows], limit: int) -> Iterator[list[KeyRows]]:
    """`rows` in order, in pieces of at most `limit` rows; a key that does not fit is cut. No rows, no piece."""
    piece: list[KeyRows] = []
    room = limit
    for whole in rows:
        start = 0
        while start < len(whole):
            part = whole if start == 0 and len(whole) <= room else whole.take(slice(start, start + room))
            piece.append(part)
            start += len(part)
            room -= len(part)
            if room == 0:
                yield piece
                piece, room = [], limit
    if piece:
        yield piece


def _rows(key: str, timestamp: NDArray[np.int64], step: NDArray[np.int64], value: NDArray[np.float64]) -> KeyRows:
    is_nan = np.isnan(value)
    finite = np.clip(np.where(is_nan, 0.0, value), -_GREATEST, _GREATEST)
    return KeyRows(key, timestamp, step, finite, is_nan)


def _join(key: str, parts: list[KeyRows]) -> KeyRows:
    if len(parts) == 1:
        return parts[0]
    return KeyRows(
        key,
        np.concatenate([part.timestamp for part in parts]),
        np.concatenate([part.step for part in parts]),
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.is_nan for part in parts]),
    )


def _increases(timestamp: NDArray[np.int64], step: NDArray[np.int64]) -> bool:
    """Whether (timestamp, step) increases strictly: then the rows are sorted and no two are equal."""
    later = timestamp[1:] > timestamp[:-1]
    if later.all():
        return True
    return bool((later | ((timestamp[1:] == timestamp[:-1]) & (step[1:] > step[:-1]))).all())
