"""Hold points as rows of MLflow's metrics table, and insert many of them with a database driver's own calls."""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from sqlalchemy import Connection, Engine

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


# ---------------------------------------------------------------------------------------------------------------------
# What the drivers do differently


class SqliteBulk:
    """Inserts rows into a SQLite file by its driver's `executemany`.

    SQLite has one writer at a time, and a waiting program looks again every 100 ms. So a transaction holds at most
    `limit` rows. After the lock was held for `_HOLD_S`, and for most of the time, without a pause long enough for a
    waiting MLflow server to find it, the next transaction waits that long first.
    """

    limit: int | None = 100_000
    most_deleted: int | None = 25_000  # a row is deleted in the time of several inserts
    lock_clause = ""
    columns_of_tables = (
        "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.name IN :tables"
    )

    _HOLD_S = 0.35
    _PAUSE_S = 0.11
    _ROWS_A_STATEMENT = 50  # one statement costs less a row than fifty do; larger ones gain nothing more

    def __init__(self) -> None:
        self._held = 0.0
        self._free = 0.0
        self._began = 0.0
        self._ended = 0.0

    def set_up(self, engine: Engine) -> None:
        """Set each connection up: a long wait for other writers, a page cache that holds a whole transaction.

        A smaller cache makes SQLite write to the file before the commit, which locks out readers too. Foreign keys are
        not checked row by row, which takes a third of the time: each transaction claims or creates its runs first.
        """
        from sqlalchemy import event

        def connected(connection: Any, _record: object) -> None:
            for pragma in ("busy_timeout = 20000", "cache_size = -65536"):
                connection.execute(f"PRAGMA {pragma}")

        event.listen(engine, "connect", connected)

    def begin(self, connection: Connection) -> None:
        """Become the one writer, after a pause if one is due."""
        gap = time.monotonic() - self._ended
        self._free += gap
        if gap < self._PAUSE_S and self._held >= self._HOLD_S and self._free < self._held:
            time.sleep(self._PAUSE_S - gap)
            gap = self._PAUSE_S
        if gap >= self._PAUSE_S or self._held >= self._HOLD_S:
            self._held = self._free = 0.0
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        self._began = time.monotonic()

    def ended(self) -> None:
        """Note that the transaction is over."""
        self._ended = time.monotonic()
        self._held += self._ended - self._began

    def set_rows(
        self, connection: Connection, table: str, columns: Sequence[str], rows: Sequence[tuple[object, ...]]
    ) -> None:
        """Set or replace rows (key, run_uuid, *columns) of `table`."""
        marks = ", ".join("?" * (2 + len(columns)))
        connection.exec_driver_sql(_set_statement(table, columns, f"({marks})"), list(rows))

    def insert(self, connection: Connection, run_id: str, rows: Sequence[KeyRows]) -> None:
        """Insert the rows that do not exist yet."""
        driver = connection.connection.driver_connection
        assert driver is not None
        cursor = driver.cursor()
        for key_rows in rows:
            kinds = (False, True) if key_rows.is_nan.any() else (False,)
            for is_nan in kinds:
                part = key_rows if len(kinds) == 1 else key_rows.take(key_rows.is_nan == is_nan)
                # One flat list of value, timestamp, step, value, ...: a slice of it is a statement's parameters.
                flat: list[float | int] = [0] * (3 * len(part))
                flat[0::3], flat[1::3], flat[2::3] = part.value.tolist(), part.timestamp.tolist(), part.step.tolist()
                head = (part.key, run_id, int(is_nan))
                together = len(part) // self._ROWS_A_STATEMENT * self._ROWS_A_STATEMENT
                for size, start, stop in ((self._ROWS_A_STATEMENT, 0, together), (1, together, len(part))):
                    places = range(3 * start, 3 * stop, 3 * size)
                    cursor.executemany(
                        _sqlite_insert(size), ((*head, *flat[place : place + 3 * size]) for place in places)
                    )


@functools.cache
def _sqlite_insert(rows: int) -> str:
    """Return the statement that inserts `rows` rows of one key, run and NaN flag (its first three parameters)."""
    values = ", ".join(f"(?1, ?{at}, ?{at + 1}, ?2, ?{at + 2}, ?3)" for at in range(4, 4 + 3 * rows, 3))
    return f"INSERT OR IGNORE INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES {values}"


class PostgresBulk:
    """Inserts rows into PostgreSQL, tens of thousands of points in one statement.

    PostgreSQL locks rows and never tables, so a transaction may be long. The run's row is locked without FOR UPDATE,
    which would block a server that inserts rows referring to the run.
    """

    limit: int | None = None
    most_deleted: int | None = None
    lock_clause = " FOR NO KEY UPDATE"
    columns_of_tables = (
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.relname IN :tables AND pg_table_is_visible(c.oid) AND a.attnum > 0 AND NOT a.attisdropped"
    )

    _ROWS_A_STATEMENT = 500
    _POINTS_A_STATEMENT = 50_000
    _INSERT = (
        "INSERT INTO metrics (run_uuid, key, is_nan, timestamp, step, value) SELECT %s, * "
        "FROM unnest(%s::text[], %s::bool[], %s::bigint[], %s::bigint[], %s::float8[]) ON CONFLICT DO NOTHING"
    )

    def set_up(self, engine: Engine) -> None:
        """Leave the connections as they are."""

    def begin(self, connection: Connection) -> None:
        """Begin a transaction."""
        connection.begin()

    def ended(self) -> None:
        """Note nothing."""

    def set_rows(
        self, connection: Connection, table: str, columns: Sequence[str], rows: Sequence[tuple[object, ...]]
    ) -> None:
        """Set or replace rows (key, run_uuid, *columns) of `table`."""
        marks = f"({', '.join(['%s'] * (2 + len(columns)))})"
        for at in range(0, len(rows), self._ROWS_A_STATEMENT):
            some = rows[at : at + self._ROWS_A_STATEMENT]
            statement = _set_statement(table, columns, ", ".join([marks] * len(some)))
            connection.exec_driver_sql(statement, tuple(chain.from_iterable(some)))

    def insert(self, connection: Connection, run_id: str, rows: Sequence[KeyRows]) -> None:
        """Insert the rows that do not exist yet, of many keys in one statement: each takes the time to the server."""
        for batch in batches_of_rows(rows, self._POINTS_A_STATEMENT):
            # One text for each column, {1, 2, 3}. A driver may write a list as ARRAY[1, 2, 3], for which the server
            # needs more than a hundred bytes an element. Keys are quoted as in JSON.
            keys = ", ".join(", ".join([json.dumps(part.key, ensure_ascii=False)] * len(part)) for part in batch)
            columns = ([part.is_nan, part.timestamp, part.step, part.value] for part in batch)
            texts = [str(np.concatenate(column).tolist())[1:-1] for column in zip(*columns, strict=True)]
            connection.exec_driver_sql(self._INSERT, (run_id, *(f"{{{text}}}" for text in (keys, *texts))))


def _set_statement(table: str, columns: Sequence[str], rows: str) -> str:
    """Return the statement that sets or replaces `rows`, written as SQL, of a table with one row a key and run."""
    names, changes = ", ".join(columns), ", ".join(f"{column} = excluded.{column}" for column in columns)
    return (
        f"INSERT INTO {table} (key, run_uuid, {names}) VALUES {rows} "
        f"ON CONFLICT (key, run_uuid) DO UPDATE SET {changes}"
    )
