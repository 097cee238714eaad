"""Change the rows of MLflow's tables within one transaction, in the way that is fastest in SQLite or PostgreSQL."""

from __future__ import annotations

import functools
import json
import posixpath
import time
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from bridge.errors import TargetRefusedError
from bridge.exporters.mlflow.errors import conflict
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.rows import KeyRows, LatestValue, batches_of_rows, best_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from bridge.exporters.mlflow.runs import FoundRun, RunRow, RunUpdate

_KEYS_AT_ONCE = 500
_LONGEST_USER = 256
"""Characters of the column. The tag `mlflow.user`, which the UI shows, holds more."""

_NEW_RUN = """
INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time,
                  deleted_time, source_version, lifecycle_stage, artifact_uri, experiment_id)
VALUES (:run, :name, 'UNKNOWN', '', '', :user, :status, :start, :end, NULL, '', 'active', :artifacts, :experiment)
ON CONFLICT DO NOTHING
"""
_SET_COLUMNS = {
    "tags": ("value",),
    "params": ("value",),
    "latest_metrics": ("value", "timestamp", "step", "is_nan"),
}
"""The columns of the tables with one row for each key of a run, beside `key` and `run_uuid`."""

_FIND_LATEST = """
SELECT step, timestamp, value, is_nan FROM metrics WHERE run_uuid = :run AND key = :key
ORDER BY step DESC, timestamp DESC, value DESC, is_nan LIMIT 1
"""
_FIND_BEST = """
SELECT step, timestamp, value FROM metrics WHERE run_uuid = :run AND key = :key AND NOT is_nan
ORDER BY value {order}, step, timestamp LIMIT 1
"""


class Tables:
    """MLflow's tables within the transaction of `connection`.

    Rows that are set are held back, and written for all runs of the transaction together: before anything is read or
    deleted, and at the end.
    """

    def __init__(self, connection: Connection, bulk: SqliteBulk | PostgresBulk) -> None:
        self.connection = connection
        self.bulk = bulk
        self._held: dict[str, dict[tuple[str, str], tuple[object, ...]]] = {}
        self._locations: dict[str, str] = {}

    def run(self, run_id: str) -> RunTables:
        """Return the rows of one run."""
        return RunTables(self, run_id)

    def hold(self, table: str, key: str, run_id: str, values: tuple[object, ...]) -> None:
        """Hold back a row of one of the tables of _SET_COLUMNS. `write_held` sets or replaces it."""
        self._held.setdefault(table, {})[key, run_id] = values

    def write_held(self) -> None:
        """Write the rows that were held back, in the order of their keys: two writers in other orders deadlock."""
        for table, held in self._held.items():
            rows = [(*place, *held[place]) for place in sorted(held)]
            self.bulk.set_rows(self.connection, table, _SET_COLUMNS[table], rows)
        self._held.clear()

    def rows(self, sql: str, **values: object) -> list[Any]:
        """Return the rows of a select."""
        self.write_held()
        return select(self.connection, sql, **values)

    def execute(self, sql: str, rows: Sequence[Mapping[str, object]]) -> int:
        """Execute `sql` for each of `rows`. Return how many rows it changed."""
        if not rows:
            return 0
        self.write_held()
        return int(self.connection.execute(statement(sql), list(rows)).rowcount)

    def artifact_location(self, experiment_id: str) -> str:
        """Return where an experiment keeps its artifacts. Raise TargetRefusedError if the experiment was deleted."""
        if experiment_id not in self._locations:
            sql = "SELECT artifact_location, lifecycle_stage FROM experiments WHERE experiment_id = :experiment"
            found = self.rows(sql, experiment=int(experiment_id))
            if not found or found[0].lifecycle_stage != "active":
                raise TargetRefusedError(
                    f"MLflow experiment {experiment_id} was deleted.",
                    hint=f"mlflow experiments restore -x {experiment_id}",
                )
            self._locations[experiment_id] = found[0].artifact_location
        return self._locations[experiment_id]


class RunTables:
    """The rows of one run in all tables. Nothing is read or deleted of a run that this transaction created."""

    def __init__(self, tables: Tables, run_id: str) -> None:
        self._tables = tables
        self.run_id = run_id
        self._is_new = False

    def claim(self, update: RunUpdate) -> None:
        """Keep other writers of this run out until the transaction ends. Create the run if `update` says so.

        Raise ConflictError for a run that is deleted, or missing and not to be created.
        """
        if update.create is not None and self._create(update.create, update.row):
            return
        if self.lock() != "active":
            raise conflict(self.run_id, "was deleted in the meantime")

    def lock(self) -> str | None:
        """Keep other writers of this run out until the transaction ends. Return its stage, None if there is no run."""
        return self._one(f"SELECT lifecycle_stage FROM runs WHERE run_uuid = :run{self._tables.bulk.lock_clause}")

    def soft_delete(self, tags: Mapping[str, str]) -> None:
        """Delete the run after setting `tags`. Do nothing if it is deleted or gone."""
        sql = "UPDATE runs SET lifecycle_stage = 'deleted', deleted_time = :now WHERE run_uuid = :run "
        if self.execute(f"{sql}AND lifecycle_stage = 'active'", [{"now": int(time.time() * 1000)}]):
            self.set_pairs("tags", tags)

    def _create(self, new: FoundRun, row: RunRow | None) -> bool:
        """Create the run with its row and first tags, and return True; return False if it exists."""
        row = row or new.row
        values = {
            "run": self.run_id,
            "name": row.name,
            "user": new.tags.get(Tag.USER, "unknown")[:_LONGEST_USER],
            "status": row.status,
            "start": row.start,
            "end": row.end,
            "artifacts": artifact_uri(self._tables.artifact_location(new.experiment_id), self.run_id),
            "experiment": int(new.experiment_id),
        }
        # Not `execute`: rows of other runs may go on waiting.
        self._is_new = self._tables.connection.execute(statement(_NEW_RUN), values).rowcount > 0
        if self._is_new:
            self.set_pairs("tags", {**new.tags, Tag.NAME: row.name})
        return self._is_new

    def insert(self, logged: Sequence[KeyRows]) -> None:
        """Insert the points that do not exist yet."""
        rows = [part.distinct() for part in logged]
        self._tables.bulk.insert(self._tables.connection, self.run_id, rows)

    def tag(self, key: str) -> str | None:
        """Return the value of one tag."""
        if self._is_new:
            return None
        return self._one("SELECT value FROM tags WHERE run_uuid = :run AND key = :key", key=key)

    def delete_tags(self, keys: Iterable[str]) -> None:
        """Delete tags, if they exist."""
        if not self._is_new:
            self.execute("DELETE FROM tags WHERE key = :key AND run_uuid = :run", [{"key": key} for key in keys])

    def set_pairs(self, table: str, pairs: Mapping[str, str]) -> None:
        """Set or replace tags or params."""
        for key, value in pairs.items():
            self._tables.hold(table, key, self.run_id, (value,))

    def set_row(self, row: RunRow | None) -> None:
        """Set the run's own row, and the tag that repeats its name."""
        if row is None or self._is_new:
            return
        self.execute(
            "UPDATE runs SET status = :status, name = :name, start_time = :start, end_time = :end "
            "WHERE run_uuid = :run",
            [{"status": row.status, "name": row.name, "start": row.start, "end": row.end}],
        )
        self.set_pairs("tags", {Tag.NAME: row.name})

    def set_latest(self, logged: Sequence[KeyRows]) -> None:
        """Update the latest metrics after `logged` was inserted, as log_batch does."""
        wanted = {rows.key: rows.latest() for rows in logged}
        held = self._latest(sorted(wanted))
        self._set_latest({key: row for key, row in wanted.items() if key not in held or row[0] > held[key]})

    def search_latest(self, keys: Iterable[str]) -> None:
        """Update the latest metrics of `keys` from all points that are left: these keys lost points and got none."""
        found: dict[str, tuple[LatestValue, bool]] = {}
        for key in sorted(keys):
            for row in self._rows(_FIND_LATEST, key=key):
                found[key] = (LatestValue(row.step, row.timestamp, row.value), row.is_nan)
        self._set_latest(found)

    def _set_latest(self, rows: Mapping[str, tuple[LatestValue, bool]]) -> None:
        for key, (row, is_nan) in rows.items():
            values = (row.value, row.timestamp, row.step, bool(is_nan))
            self._tables.hold("latest_metrics", key, self.run_id, values)

    def _latest(self, keys: Sequence[str]) -> dict[str, LatestValue]:
        sql = "SELECT key, step, timestamp, value FROM latest_metrics WHERE run_uuid = :run AND key IN :keys"
        found: dict[str, LatestValue] = {}
        for at in range(0, 0 if self._is_new else len(keys), _KEYS_AT_ONCE):
            rows = self._rows(sql, keys=list(keys[at : at + _KEYS_AT_ONCE]))
            found |= {row.key: LatestValue(row.step, row.timestamp, row.value) for row in rows}
        return found

    def set_best(self, best_key: str, key: str, sign: int, logged: KeyRows | None, *, is_rewind: bool) -> None:
        """Keep one point under `best_key`: the best value of `key` so far.

        The new rows alone decide where a best exists already. Otherwise, and after a rewind, all rows are searched.
        """
        held = self._latest([best_key]).get(best_key)
        if held is None or is_rewind:
            found = self._rows(_FIND_BEST.format(order="DESC" if sign > 0 else "ASC"), key=key)
            best = LatestValue(found[0].step, found[0].timestamp, found[0].value) if found else None
        else:
            best = best_of(sign, held, logged.best(sign) if logged is not None else None)
        if best == held:
            return
        self.delete_keys([best_key])
        if best is not None:
            self.insert([KeyRows.of(best_key, [best.timestamp], [best.step], [best.value])])
            self._set_latest({best_key: (best, False)})

    def delete_keys(self, keys: Iterable[str]) -> None:
        """Delete all points of `keys`."""
        rows: list[dict[str, object]] = [{"key": key} for key in keys]
        for table in ("metrics", "latest_metrics"):
            self.execute(f"DELETE FROM {table} WHERE run_uuid = :run AND key = :key", rows)

    # Rewinds

    def delete_points(self, update: RunUpdate) -> bool:
        """Delete the points that a rewind replaces. Return False if some are left for the next transaction."""
        where, values = self._replaced(update)
        most = self._tables.bulk.most_deleted
        if most is None:
            self.execute(f"DELETE FROM metrics WHERE {where}", [values])
            return True
        some = f"rowid IN (SELECT rowid FROM metrics WHERE {where} LIMIT {most:d})"
        return self.execute(f"DELETE FROM metrics WHERE {some}", [values]) < most

    def first_batch(self, update: RunUpdate) -> tuple[Sequence[KeyRows], list[KeyRows]]:
        """Return the rows that this transaction may insert, and those left for the next; only a rewind is cut."""
        limit = self._tables.bulk.limit
        if update.interim_cursor is None or limit is None or not update.rows:
            return update.rows, []
        first, *others = batches_of_rows(update.rows, limit)
        return first, [part for batch in others for part in batch]

    def set_interim(self, rest: RunUpdate) -> RunUpdate:
        """Set the interim cursor, and return `rest` as the write that goes on from it.

        Each transaction sets another one, a space longer. So of two exports that go on from one interim cursor, the
        second stops before it deletes what the first inserted.
        """
        cursor = rest.interim_cursor
        assert cursor is not None
        if cursor == rest.expected_cursor:
            cursor += " "
        self.set_pairs("tags", {Tag.CURSOR: cursor})
        return replace(rest, expected_cursor=cursor, interim_cursor=cursor)

    def delete_latest(self, update: RunUpdate) -> set[str]:
        """Delete the latest values that were among the points that a rewind replaces. Return their keys."""
        where, values = self._replaced(update)
        keys = {row[0] for row in self._rows(f"SELECT key FROM latest_metrics WHERE {where}", **values)}
        self.execute(f"DELETE FROM latest_metrics WHERE {where}", [values])
        return keys

    def _replaced(self, update: RunUpdate) -> tuple[str, dict[str, object]]:
        """Return the SQL condition and its values for the points that a rewind replaces. People's own points stay."""
        rows = self._rows(
            "SELECT key FROM latest_metrics WHERE run_uuid = :run AND step >= :step", step=update.replace_from
        )
        values: dict[str, object] = {"step": update.replace_from}
        foreign = sorted({row[0] for row in rows}.difference(update.own_keys))
        values |= {f"foreign{number}": key for number, key in enumerate(foreign)}
        names = "".join(f" AND key <> :foreign{number}" for number in range(len(foreign)))
        return f"run_uuid = :run AND step >= :step{names}", values

    # Statements

    def execute(self, sql: str, rows: Sequence[Mapping[str, object]]) -> int:
        """Execute `sql` for each of `rows`. Return how many rows it changed."""
        return self._tables.execute(sql, [{"run": self.run_id, **row} for row in rows])

    def _rows(self, sql: str, **values: object) -> list[Any]:
        return self._tables.rows(sql, run=self.run_id, **values)

    def _one(self, sql: str, **values: object) -> str | None:
        rows = self._rows(sql, **values)
        return None if not rows else rows[0][0]


def select(connection: Connection, sql: str, **values: object) -> list[Any]:
    """Return the rows of a select. A list as value fills an IN clause."""
    lists = tuple(name for name, value in values.items() if isinstance(value, list))
    return list(connection.execute(statement(sql, lists), values))


@functools.lru_cache(maxsize=256)
def statement(sql: str, lists: tuple[str, ...] = ()) -> Any:
    """Return `sql` as a statement of SQLAlchemy, whose parameters `lists` fill IN clauses."""
    import sqlalchemy as sa

    return sa.text(sql).bindparams(*(sa.bindparam(name, expanding=True) for name in lists))


def artifact_uri(location: str, run_id: str) -> str:
    """Return where a run keeps its artifacts, as MLflow composes it: below the path, before a query or fragment."""
    parts = urlsplit(location)
    path = posixpath.join(parts.path, run_id, "artifacts")
    if not parts.scheme:
        return posixpath.join(location, run_id, "artifacts")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, parts.fragment))


# ---------------------------------------------------------------------------------------------------------------------
# What the drivers do differently


class SqliteBulk:
    """Inserts rows into a SQLite file by its driver's `executemany`.

    SQLite has one writer at a time, and a waiting program looks again every 100 ms. So a transaction inserts at most
    `limit` rows of a rewind; other writes are small. After the lock was held for `_HOLD_S`, and for most of the time,
    without a pause long enough for a waiting MLflow server to find it, the next transaction waits that long first.
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
