"""Rows into and out of MLflow's metrics table in PostgreSQL, by COPY in its binary format, built from columns."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

    from bridge.exporters.mlflow.rows import KeyRows

__all__ = ["PostgresBulk"]

_COLUMNS = "key, run_uuid, is_nan, timestamp, step, value"
_STAGE = (
    "CREATE TEMPORARY TABLE bridge_stage (key varchar, run_uuid varchar, is_nan boolean, "
    "timestamp bigint, step bigint, value double precision) ON COMMIT DROP"
)
_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_UNIQUE_VIOLATION = "23505"


class PostgresBulk:
    """The PostgreSQL side of the database writer: rows are locked, never tables, so a transaction may be long."""

    limit: int | None = None

    def set_up(self, engine: Engine) -> None:
        """Nothing: connections are as MLflow makes them."""

    def begin(self, connection: Connection) -> None:
        """Begin a transaction."""
        connection.begin()

    def ended(self) -> None:
        """The transaction that `begin` began is over."""

    def lock_run(self) -> str:
        """What a select of the run's row needs at its end to keep other writers of this run out.

        Not FOR UPDATE: that would hold up a server that inserts rows which refer to the run.
        """
        return " FOR NO KEY UPDATE"

    def insert(self, connection: Connection, run_uuid: str, rows: Sequence[KeyRows]) -> int:
        """Insert rows that are not there yet; how many those were.

        Straight into the table first, which is right for all but repeated writes; where a row is there already,
        by way of a temporary table.
        """
        if not rows:
            return 0
        data = _encode(run_uuid, rows)
        driver_error = connection.dialect.dbapi.Error  # type: ignore[union-attr]
        savepoint = connection.begin_nested()
        try:
            _copy(connection, f"COPY metrics ({_COLUMNS}) FROM STDIN (FORMAT binary)", data)
        except driver_error as error:
            if (
                getattr(error, "sqlstate", None) != _UNIQUE_VIOLATION
                and getattr(error, "pgcode", None) != _UNIQUE_VIOLATION
            ):
                raise
            savepoint.rollback()
        else:
            savepoint.commit()
            return sum(len(part) for part in rows)
        self._stage(connection, data)
        done = connection.exec_driver_sql(
            f"INSERT INTO metrics ({_COLUMNS}) SELECT {_COLUMNS} FROM bridge_stage ON CONFLICT DO NOTHING"  # noqa: S608 - no part comes from outside
        )
        connection.exec_driver_sql("DROP TABLE bridge_stage")
        return int(done.rowcount)

    def delete(self, connection: Connection, run_uuid: str, rows: Sequence[KeyRows]) -> int:
        """Delete exactly these rows, as far as they are there; how many those were."""
        if not rows:
            return 0
        self._stage(connection, _encode(run_uuid, rows))
        same = " AND ".join(f"m.{column} = s.{column}" for column in _COLUMNS.split(", "))
        done = connection.exec_driver_sql(f"DELETE FROM metrics m USING bridge_stage s WHERE {same}")  # noqa: S608 - as above
        connection.exec_driver_sql("DROP TABLE bridge_stage")
        return int(done.rowcount)

    def _stage(self, connection: Connection, data: bytes) -> None:
        connection.exec_driver_sql(_STAGE)
        _copy(connection, f"COPY bridge_stage ({_COLUMNS}) FROM STDIN (FORMAT binary)", data)
        connection.exec_driver_sql("ANALYZE bridge_stage")


def _copy(connection: Connection, statement: str, data: bytes) -> None:
    """Run a COPY FROM STDIN with the driver there is: psycopg (3) or psycopg2."""
    driver = connection.connection.driver_connection
    assert driver is not None
    with driver.cursor() as cursor:
        if hasattr(cursor, "copy_expert"):
            cursor.copy_expert(statement, io.BytesIO(data))
        else:
            with cursor.copy(statement) as copy:
                copy.write(data)


def _encode(run_uuid: str, rows: Sequence[KeyRows]) -> bytes:
    """`rows` in PostgreSQL's binary COPY format: all rows of one key are alike but for four fields of fixed size."""
    run = run_uuid.encode()
    parts = [_HEAD]
    for part in rows:
        key = part.key.encode()
        table = np.zeros(len(part), dtype=_layout(len(key), len(run)))
        table["fields"], table["key"], table["run"] = 6, key, run
        for name, size in (
            ("key", len(key)),
            ("run", len(run)),
            ("is_nan", 1),
            ("timestamp", 8),
            ("step", 8),
            ("value", 8),
        ):
            table[f"{name}_size"] = size
        table["is_nan"], table["timestamp"], table["step"] = part.is_nan, part.timestamp, part.step
        table["value"] = part.value
        parts.append(table.tobytes())
    parts.append(_END)
    return b"".join(parts)


def _layout(key: int, run: int) -> np.dtype[np.void]:
    """One row: the number of fields, then each field after its size, all big-endian."""
    fields = (("key", f"S{key}"), ("run", f"S{run}"), ("is_nan", "u1"), ("timestamp", ">i8"), ("step", ">i8"))
    row = [("fields", ">i2")]
    for name, kind in (*fields, ("value", ">f8")):
        row += [(f"{name}_size", ">i4"), (name, kind)]
    return np.dtype(row)
