"""Hold points as rows of MLflow's metrics table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.model import Block

GREATEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True, order=True)
class LatestValue:
    """The latest value of a key. The order is MLflow's: (step, timestamp, value)."""

    step: int
    timestamp: int
    value: float


@dataclass(frozen=True, slots=True, eq=False)
class KeyRows:
    """Rows of one key as columns of one length.

    `timestamp` (ms) and `step` are int64, `value` is float64 and finite, `is_nan` bool. MLflow stores NaN as 0 with
    that flag, and an infinity as the greatest float of its sign.
    """

    key: str
    timestamp: NDArray[np.int64]
    step: NDArray[np.int64]
    value: NDArray[np.float64]
    is_nan: NDArray[np.bool_]

    @classmethod
    def of(cls, key: str, timestamp: Sequence[int], step: Sequence[int], value: Sequence[float]) -> KeyRows:
        """Return rows with the given values; NaN and infinities become what MLflow stores instead."""
        values = np.array(value, np.float64)
        is_nan = np.isnan(values)
        return cls(key, np.array(timestamp, np.int64), np.array(step, np.int64), _storable(values, is_nan), is_nan)

    def __len__(self) -> int:
        return len(self.timestamp)

    @property
    def shown(self) -> NDArray[np.float64]:
        """Return the values as MLflow shows them, with NaN."""
        return np.where(self.is_nan, np.nan, self.value)

    def take(self, which: NDArray[np.intp] | NDArray[np.bool_] | slice) -> KeyRows:
        """Return the rows that `which` selects, in its order."""
        return KeyRows(self.key, self.timestamp[which], self.step[which], self.value[which], self.is_nan[which])

    def latest(self) -> tuple[LatestValue, bool]:
        """Return MLflow's latest row and whether it is NaN. Of equal rows the first counts, as in log_batch."""
        at = len(self) - 1
        if at and self.step[at] <= self.step[:at].max():
            left = np.flatnonzero(self.step == self.step.max())
            for column in (self.timestamp, self.value):
                left = left[column[left] == column[left].max()]
            at = int(left[0])
        return LatestValue(int(self.step[at]), int(self.timestamp[at]), float(self.value[at])), bool(self.is_nan[at])

    def best(self, sign: int) -> LatestValue | None:
        """Return the row with the greatest `sign` * value, of equal ones that of the lowest step; NaN never counts."""
        at = np.flatnonzero(~self.is_nan)
        if not len(at):
            return None
        at = at[np.lexsort((self.timestamp[at], self.step[at], -sign * self.value[at]))[:1]]
        return LatestValue(int(self.step[at[0]]), int(self.timestamp[at[0]]), float(self.value[at[0]]))

    def points(self) -> list[tuple[int, int, float, bool]]:
        """Return the rows as (timestamp, step, value, is NaN), with 0 for NaN, which equals nothing."""
        columns = (self.timestamp, self.step, self.value, self.is_nan)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def without(self, held: KeyRows) -> list[KeyRows]:
        """Return the rows that are not among the rows `held`; nothing if none is left."""
        there = set(held.points())
        new = np.array([point not in there for point in self.points()], dtype=np.bool_)
        return [self.take(new)] if new.any() else []

    def distinct(self) -> KeyRows:
        """Return the rows in the order of the table's primary key, equal ones once.

        Sorted rows land on neighbouring pages of the index, which is worth half of the speed.
        """
        # Rows that increase strictly by (timestamp, step) are sorted already, and no two of them are equal.
        later = self.timestamp[1:] > self.timestamp[:-1]
        if (later | ((self.timestamp[1:] == self.timestamp[:-1]) & (self.step[1:] > self.step[:-1]))).all():
            return self
        rows = self.take(np.lexsort((self.is_nan, self.value, self.step, self.timestamp)))
        # A sorted row is new if any column differs from the row before it.
        fresh = np.ones(len(rows), dtype=np.bool_)
        fresh[1:] = (
            (np.diff(rows.timestamp) != 0)
            | (np.diff(rows.step) != 0)
            | (rows.value[1:] != rows.value[:-1])
            | (rows.is_nan[1:] != rows.is_nan[:-1])
        )
        return rows.take(fresh)


def best_of(sign: int, *found: LatestValue | None) -> LatestValue | None:
    """Return the one with the greatest `sign` * value, of equal ones that of the lowest step, then the earliest."""
    known = [one for one in found if one is not None]
    return max(known, key=lambda one: (sign * one.value, -one.step, -one.timestamp), default=None)


def _storable(values: NDArray[np.float64], is_nan: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.clip(np.where(is_nan, 0.0, values), -GREATEST, GREATEST)


def rows_of(blocks: Iterable[Block], keys: Mapping[str, str]) -> list[KeyRows]:
    """Return the present points of `blocks` by key, keys sorted, rows in logged order.

    `keys` maps a metric to its key. Raise KeyError for a metric without one.
    """
    parts: dict[str, list[tuple[NDArray[Any], ...]]] = {}
    for block in blocks:
        # One timestamp a row; flags and values as in the table, (metrics, rows), of which some cells may be absent.
        timestamp = np.rint(block.time * 1000.0).astype(np.int64)
        is_nan = np.isnan(block.values)
        value = _storable(block.values, is_nan)
        counts = block.present.sum(axis=1).tolist()
        for at, (name, count) in enumerate(zip(block.names, counts, strict=True)):
            if count:
                which = slice(None) if count == len(timestamp) else block.present[at]
                columns = (timestamp[which], block.step[which], value[at, which], is_nan[at, which])
                parts.setdefault(keys[name], []).append(columns)
    return [
        KeyRows(key, *(some[0] if len(some) == 1 else map(np.concatenate, zip(*some, strict=True))))
        for key, some in sorted(parts.items())
    ]


def batches_of_rows(rows: Sequence[KeyRows], limit: int) -> Iterator[list[KeyRows]]:
    """Yield `rows` in order, at most `limit` rows at a time. A key that does not fit is cut."""
    batch: list[KeyRows] = []
    room = limit
    for whole in rows:
        start = 0
        while start < len(whole):
            part = whole if start == 0 and len(whole) <= room else whole.take(slice(start, start + room))
            batch.append(part)
            start += len(part)
            room -= len(part)
            if room == 0:
                yield batch
                batch, room = [], limit
    if batch:
        yield batch
