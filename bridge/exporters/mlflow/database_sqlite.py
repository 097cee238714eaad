"""Rows into and out of MLflow's metrics table in a SQLite file, by the driver's own calls."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection, Engine

    from bridge.exporters.mlflow.rows import KeyRows

__all__ = ["SqliteBulk"]

_TOGETHER = 20
"""Rows in one statement: SQLite then spends less on each; past some dozens nothing more is gained."""

_ONE = "(?1, ?{0}, ?{1}, ?2, ?{2}, ?3)"
_INSERT = "INSERT OR IGNORE INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES "
_DELETE = (
    "DELETE FROM metrics WHERE key = ? AND timestamp = ? AND step = ? AND run_uuid = ? AND value = ? AND is_nan = ?"
)


def _insert(rows: int) -> str:
    return _INSERT + ", ".join(_ONE.format(at, at + 1, at + 2) for at in range(4, 4 + 3 * rows, 3))


_INSERT_MANY, _INSERT_ONE = _insert(_TOGETHER), _insert(1)


class SqliteBulk:
    """The SQLite side of the database writer.

    SQLite has one writer at a time, and one that waits looks again every 100 ms. So transactions hold at most `limit`
    rows, and when they have held the lock for `_HOLD_S` and for most of the time, with no pause that a waiting MLflow
    server was sure to find, the next one leaves such a pause first.
    """

    limit: int | None = 40_000

    _HOLD_S = 0.35
    _PAUSE_S = 0.11

    def __init__(self) -> None:
        self._held = 0.0
        self._free = 0.0
        self._began = 0.0
        self._ended = 0.0

    def set_up(self, engine: Engine) -> None:
        """Open each connection as MLflow does, with a cache that holds a whole transaction.

        Without it SQLite writes to the file before the end, and readers too are locked out from then on.
        """
        from sqlalchemy import event

        def connected(connection: Any, _record: object) -> None:
            for pragma in ("foreign_keys = ON", "busy_timeout = 20000", "cache_size = -65536"):
                connection.execute(f"PRAGMA {pragma}")

        event.listen(engine, "connect", connected)

    def begin(self, connection: Connection) -> None:
        """Become the one writer, after a pause where it is due."""
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
        """The transaction that `begin` began is over."""
        self._ended = time.monotonic()
        self._held += self._ended - self._began

    def lock_run(self) -> str:
        """What a select of the run's row needs at its end to keep other writers of this run out."""
        return ""

    def insert(self, connection: Connection, run_uuid: str, rows: Sequence[KeyRows]) -> int:
        """Insert rows that are not there yet; how many those were."""
        driver = connection.connection.driver_connection
        assert driver is not None
        before = driver.total_changes
        cursor = driver.cursor()
        for key_rows in rows:
            for is_nan in (False, True):
                which = key_rows.is_nan if is_nan else ~key_rows.is_nan
                if which.any():
                    part = key_rows if which.all() else key_rows.take(which)
                    head = (part.key, run_uuid, int(is_nan))
                    whole = len(part) // _TOGETHER * _TOGETHER
                    flat = _flat(part)
                    cursor.executemany(_INSERT_MANY, _groups(head, flat[: 3 * whole], 3 * _TOGETHER))
                    cursor.executemany(_INSERT_ONE, _groups(head, flat[3 * whole :], 3))
        return int(driver.total_changes - before)

    def delete(self, connection: Connection, run_uuid: str, rows: Sequence[KeyRows]) -> int:
        """Delete exactly these rows, as far as they are there; how many those were."""
        driver = connection.connection.driver_connection
        assert driver is not None
        cursor = driver.cursor()
        gone = 0
        for part in rows:
            columns = (part.timestamp.tolist(), part.step.tolist(), part.value.tolist(), part.is_nan.tolist())
            cursor.executemany(
                _DELETE,
                (
                    (part.key, at, step, run_uuid, value, is_nan)
                    for at, step, value, is_nan in zip(*columns, strict=True)
                ),
            )
            gone += cursor.rowcount
        return gone


def _flat(rows: KeyRows) -> list[float | int]:
    """value, timestamp, step of one row after another."""
    flat: list[float | int] = [0] * (3 * len(rows))
    flat[0::3] = rows.value.tolist()
    flat[1::3] = rows.timestamp.tolist()
    flat[2::3] = rows.step.tolist()
    return flat


def _groups(head: tuple[object, ...], flat: list[float | int], size: int) -> Iterator[tuple[object, ...]]:
    return ((*head, *flat[at : at + size]) for at in range(0, len(flat), size))
