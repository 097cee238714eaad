"""Write runs straight into MLflow's SQLite or PostgreSQL database, and look them up there.

This module and `tables` bypass MLflow's client, but write the same rows as `MlflowClient`. They need SQLAlchemy and
never import mlflow. Databases of other kinds are reached through the client (`write_api`).
"""

from __future__ import annotations

import functools
import os
import re
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bridge.errors import ConflictError, TargetError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.mlflow.address import without_credentials
from bridge.exporters.mlflow.errors import conflict, database_error, missing_driver
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.rows import KeyRows
from bridge.exporters.mlflow.runs import Experiment, FoundRun, RunUpdate
from bridge.exporters.mlflow.tables import PostgresBulk, RunTables, SqliteBulk, Tables, select, statement
from bridge.secrets import hide_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from sqlalchemy import Connection, Engine

# ---------------------------------------------------------------------------------------------------------------------
# Checks before a database is touched

_WRITTEN_TABLES = {
    "metrics": "key value timestamp step is_nan run_uuid",
    "latest_metrics": "key value timestamp step is_nan run_uuid",
    "params": "key value run_uuid",
    "tags": "key value run_uuid",
    "runs": "run_uuid name source_type source_name entry_point_name user_id status start_time end_time deleted_time "
    "source_version lifecycle_stage artifact_uri experiment_id",
}
"""All columns of the tables that are written. They are the same from MLflow 2.22 to 3.17."""


def _columns(connection: Connection, bulk: SqliteBulk | PostgresBulk) -> dict[str, set[str]]:
    """Return the columns of MLflow's tables, as far as they are there, in one select."""
    tables = [*_WRITTEN_TABLES, "experiments", "alembic_version"]
    found: dict[str, set[str]] = {}
    for table, column in select(connection, bulk.columns_of_tables, tables=tables):
        found.setdefault(table, set()).add(column)
    return found


def _unknown_schema(columns: Mapping[str, set[str]]) -> str | None:
    """Return why the database must not be written to directly, None if its tables are the known ones."""
    for table, names in _WRITTEN_TABLES.items():
        if table not in columns:
            return f"it has no MLflow table {table!r}"
        found, known = columns[table], set(names.split())
        for name in sorted(known - found):
            return f"the table {table!r} has no column {name!r}"
        for name in sorted(found - known):
            return f"the table {table!r} has an unknown column {name!r}"
    return None


def _refuse_other_version(connection: Connection, uri: str) -> None:
    """Raise TargetRefusedError if MLflow must not open the database: it may migrate the schema of another version."""
    found = connection.execute(statement("SELECT version_num FROM alembic_version")).scalar()
    newest = newest_revision()
    if found is None or newest is None or found == newest:
        return
    shown = without_credentials(uri)
    raise TargetRefusedError(
        f"{shown} was not touched: its schema is of another MLflow version ({found}, the installed MLflow makes "
        f"{newest}).",
        hint=f"mlflow db upgrade {shown} (make a copy first), or use the MLflow that made it.",
    )


@functools.cache
def newest_revision() -> str | None:
    """Return the schema revision that the installed MLflow makes, None if its migrations are not as expected.

    Read the migration files as text, since importing MLflow takes seconds. The newest one is no other's predecessor.
    """
    package = find_spec("mlflow")
    folders = package.submodule_search_locations if package is not None else None
    revisions: set[str] = set()
    earlier: set[str] = set()
    for folder in folders or ():
        for file in Path(folder, "store", "db_migrations", "versions").glob("*.py"):
            text = file.read_text(encoding="utf-8", errors="replace")
            revisions.update(re.findall(r"^revision\s*(?::\s*str\s*)?=\s*['\"](\w+)", text, re.MULTILINE))
            before = re.search(r"^down_revision\b[^=\n]*=(.*(?:\n[ \t]+.*)*)", text, re.MULTILINE)
            earlier.update(re.findall(r"['\"](\w+)['\"]", before[1]) if before else ())
    heads = revisions - earlier
    return heads.pop() if len(heads) == 1 else None


def _engine(uri: str) -> Engine:
    """Return an engine for `uri`. Raise MissingExtraError if its driver is not installed."""
    import sqlalchemy

    try:
        return sqlalchemy.create_engine(uri, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise missing_driver(without_credentials(uri), error) from error


@contextmanager
def _translate_errors(engine: Engine) -> Iterator[None]:
    """Raise errors of SQLAlchemy and of the driver as errors of the bridge."""
    from sqlalchemy.exc import SQLAlchemyError

    driver = engine.dialect.dbapi
    assert driver is not None
    try:
        yield
    except (SQLAlchemyError, driver.Error) as error:
        raise database_error(engine.url.render_as_string(hide_password=True), error) from hide_in(error)


# ---------------------------------------------------------------------------------------------------------------------
# The database

_PAUSES_S = (0.2, 0.4, 0.8)
"""Seconds before each further try of a transaction."""

_ROWS_AT_ONCE = 50_000
"""Points that are held as rows while a history is read."""

_RUNS_AT_ONCE = 500

_MOST_NAMED = 200
"""Up to this many values of a tag are named in a select. For more, all runs that have the tag are read."""

_POINTS_TOGETHER = 50_000
"""Once new runs with so many points wait, they are written, so that other programs never wait for long."""


class Database:
    """MLflow's database, opened for look-ups and bulk writes. Safe to use from several threads; cannot be pickled."""

    def __init__(self, engine: Engine, bulk: SqliteBulk | PostgresBulk, *, has_workspaces: bool) -> None:
        self._engine = engine
        self._bulk = bulk
        self._has_workspaces = has_workspaces
        self._waiting: list[tuple[str, RunUpdate]] | None = None
        """New runs that wait to be written together, None outside of `batch`."""
        self._waiting_points = 0
        self._waiting_error: TargetError | None = None

    @classmethod
    def open(cls, uri: str, *, note: Callable[[str], None], check_version: bool = False) -> Self | None:
        """Return the SQLite or PostgreSQL database at `uri`. If its schema is unknown, call `note` and return None.

        Never create or migrate a schema. Raise TargetUnavailableError if the database does not answer. With
        `check_version`, raise TargetRefusedError for a schema that the installed MLflow would migrate.
        """
        bulk = SqliteBulk() if uri.startswith("sqlite") else PostgresBulk()
        engine = _engine(uri)
        bulk.set_up(engine)
        try:
            with _translate_errors(engine), engine.connect() as connection:
                columns = _columns(connection, bulk)
                if check_version and "alembic_version" in columns:
                    _refuse_other_version(connection, uri)
        except BaseException:
            engine.dispose()
            raise
        reason = _unknown_schema(columns)
        if reason is None:
            return cls(engine, bulk, has_workspaces="workspace" in columns.get("experiments", ()))
        engine.dispose()
        note(f"Points go through MLflow's API: the database is not written to directly, as {reason}.")
        return None

    @property
    def is_sqlite(self) -> bool:
        """Return True for a SQLite file, which has one writer at a time."""
        return isinstance(self._bulk, SqliteBulk)

    def close(self) -> None:
        """Close all connections. The next call opens new ones."""
        self._engine.dispose()

    # Looking things up

    def experiment(self, name: str) -> Experiment | None:
        """Return the experiment of this name, deleted or not."""
        return self._in_workspace("name = :value", name)

    def experiment_by_id(self, experiment_id: str) -> Experiment | None:
        """Return the experiment with this id."""
        return self._experiment("experiment_id = :value", int(experiment_id))

    def experiment_with_tag(self, key: str, value: str) -> Experiment | None:
        """Return the oldest experiment, deleted or not, whose tag `key` is `value`."""
        condition = "experiment_id IN (SELECT experiment_id FROM experiment_tags WHERE key = :key AND value = :value)"
        return self._in_workspace(condition, value, key=key)

    def _in_workspace(self, condition: str, value: str, **values: object) -> Experiment | None:
        """Return the first experiment that meets `condition`, in the workspace that MLflow's client uses."""
        if self._has_workspaces:
            condition += " AND workspace = :workspace"
            values["workspace"] = os.environ.get("MLFLOW_WORKSPACE", "").strip() or "default"
        return self._experiment(condition, value, **values)

    def _experiment(self, condition: str, value: str | int, **values: object) -> Experiment | None:
        sql = "SELECT experiment_id, name, lifecycle_stage, artifact_location, creation_time FROM experiments WHERE "
        with self._connected() as connection:
            found = select(connection, f"{sql}{condition} ORDER BY experiment_id", value=value, **values)
        if not found:
            return None
        one = found[0]
        return Experiment(str(one[0]), one[1], one[2] == "deleted", one[3] or "", int(one[4] or 0))

    def experiment_tags(self, experiment_id: str) -> dict[str, str]:
        """Return the tags of an experiment."""
        sql = "SELECT key, value FROM experiment_tags WHERE experiment_id = :experiment"
        with self._connected() as connection:
            return {row[0]: row[1] or "" for row in select(connection, sql, experiment=int(experiment_id))}

    def run(self, run_id: str) -> FoundRun:
        """Return one run with its tags, params and latest metrics. Raise ConflictError if it is gone."""
        found = self._runs("r.run_uuid = :run", {"run": run_id})
        if not found:
            raise conflict(run_id, "is gone")
        return found[0]

    def runs_with_tag(
        self,
        key: str,
        values: Collection[str] | None,
        experiment_ids: Sequence[str] | None = None,
        *,
        only: Collection[str] | None = None,
    ) -> list[FoundRun]:
        """Return all runs, deleted ones too, whose tag `key` has one of `values`, or any value for None.

        With `only` they come with the tags of these keys, and nothing else is read.
        """
        condition, bound = "r.run_uuid IN (SELECT run_uuid FROM tags WHERE key = :having", dict[str, Any](having=key)
        if values is not None and len(values) <= _MOST_NAMED:
            condition, bound["values"] = f"{condition} AND value IN :values", list(values)
        condition += ")"
        if experiment_ids is not None:
            condition += " AND r.experiment_id IN :experiments"
            bound["experiments"] = [int(experiment_id) for experiment_id in experiment_ids]
        return self._runs(condition, bound, only)

    def _runs(self, condition: str, bound: dict[str, Any], only: Collection[str] | None = None) -> list[FoundRun]:
        """Return the runs for which `condition` holds: with the tags `only`, else with all that they hold."""
        sql = (
            "SELECT r.run_uuid, r.experiment_id, r.lifecycle_stage, r.status, r.name, r.start_time, r.end_time, "
            f"t.key, t.value FROM runs r JOIN tags t ON r.run_uuid = t.run_uuid WHERE {condition}"
        )
        if only is not None:
            bound = bound | {"keys": sorted(only)}
            sql += " AND t.key IN :keys"
        found: dict[str, FoundRun] = {}
        with self._connected() as connection:
            for run_id, experiment_id, stage, status, name, start, end, key, value in select(connection, sql, **bound):
                if run_id not in found:
                    tags = {Tag.NAME: name} if name else {}
                    found[run_id] = FoundRun(run_id, str(experiment_id), status, stage == "deleted", start, end, tags)
                if key != Tag.NAME or not name:
                    found[run_id].tags[key] = value or ""
            ids = list(found) if only is None else []
            for at in range(0, len(ids), _RUNS_AT_ONCE):
                some = ids[at : at + _RUNS_AT_ONCE]
                sql = "SELECT run_uuid, key, value FROM params WHERE run_uuid IN :runs"
                for run_id, key, value in select(connection, sql, runs=some):
                    found[run_id].params[key] = value
                sql = "SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE run_uuid IN :runs"
                for run_id, key, value, is_nan in select(connection, sql, runs=some):
                    found[run_id].metrics[key] = float("nan") if is_nan else float(value)
        return list(found.values())

    def history(self, run_id: str, key: str) -> KeyRows:
        """Return the points of one key, sorted by step and time. MLflow's own reader makes several objects of each."""
        # Because of the order SQLite takes the index over run and key. Otherwise it reads this key of all runs.
        sql = (
            "SELECT timestamp, step, value, is_nan FROM metrics WHERE run_uuid = :run AND key = :key"
            " ORDER BY step, timestamp"
        )
        # Lists of the columns' parts, in the order of KeyRows.
        kinds = (np.int64, np.int64, np.float64, np.bool_)
        columns: list[list[NDArray[Any]]] = [[np.empty(0, kind)] for kind in kinds]
        with self._connected() as connection:
            rows = connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(
                statement(sql), {"run": run_id, "key": key}
            )
            for some in rows.partitions(_ROWS_AT_ONCE):
                for column, kind, values in zip(columns, kinds, zip(*some, strict=True), strict=True):
                    column.append(np.array(values, kind))
        return KeyRows(key, *map(np.concatenate, columns))

    @contextmanager
    def _connected(self, *, writes_waiting: bool = True) -> Iterator[Connection]:
        """Open a connection, once the new runs that wait are written."""
        if writes_waiting:
            self._write_waiting()
        with _translate_errors(self._engine), self._engine.connect() as connection:
            yield connection

    # Writing

    def set_experiment_tags(self, experiment_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of an experiment."""
        sql = (
            "INSERT INTO experiment_tags (key, value, experiment_id) VALUES (:key, :value, :experiment) "
            "ON CONFLICT (key, experiment_id) DO UPDATE SET value = excluded.value"
        )
        rows = [{"key": key, "value": value, "experiment": int(experiment_id)} for key, value in sorted(tags.items())]
        with self._transaction() as tables:
            tables.execute(sql, rows)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run, whatever its cursor says. Do nothing if it is gone for good."""
        with self._transaction() as tables:
            if tables.rows("SELECT run_uuid FROM runs WHERE run_uuid = :run", run=run_id):
                tables.run(run_id).set_pairs("tags", tags)

    def reopen(self, run_id: str, update: RunUpdate) -> None:
        """Make the next export store the run's files again after `update` met ConflictError (`RunUpdate.reopened`)."""
        # New runs that wait may be the reason for the conflict, so they go on waiting.
        with self._transaction(writes_waiting=False) as tables:
            run = tables.run(run_id)
            # Lock first: a statement that waits for a lock goes on with the tags that it read before the wait.
            if run.lock() == "active":
                found = ((key, run.tag(key)) for key in (Tag.CURSOR, Tag.PENDING_MEDIA))
                run.set_pairs("tags", update.reopened({key: value for key, value in found if value is not None}))

    def soft_delete(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Delete a run as MLflow does, which keeps it in the trash, after setting `tags` that say why."""
        with self._transaction() as tables:
            tables.run(run_id).soft_delete(tags)

    def delete_unfinished(self, run_id: str) -> None:
        """Delete a rebuild, unless it was finished in the meantime."""
        with self._transaction() as tables:
            run = tables.run(run_id)
            # Lock first: a statement that waits for a lock goes on with the tags that it read before the wait.
            if run.lock() == "active" and run.tag(Tag.BUILDING) is not None:
                run.soft_delete({})

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Write the new runs of the block together: at its end, or before anything else is written or read.

        Raise TargetError at its end if some of them are not written.
        """
        self._waiting, self._waiting_points, self._waiting_error = [], 0, None
        try:
            yield
            self._write_waiting()
        finally:
            self._waiting = self._waiting_error = None

    def _write_waiting(self) -> None:
        """Write the new runs of a batch that wait. Raise TargetError, again and again until the batch ends."""
        if self._waiting_error is not None:
            raise self._waiting_error
        if not self._waiting:
            return
        waiting, self._waiting, self._waiting_points = self._waiting, [], 0
        try:
            self.write_together(waiting)
        except TargetError as error:
            if isinstance(error, ConflictError):
                for run_id, update in waiting:
                    self.reopen(run_id, update)
            self._waiting_error = error
            raise

    def create(self, new: FoundRun) -> FoundRun:
        """Create the run `new`, and return it. Raise ConflictError if it exists and has a cursor."""
        self._write_waiting()
        self.write_together([(new.run_id, RunUpdate(create=new))])
        return new

    def write(self, run_id: str, update: RunUpdate, now: FoundRun | None = None) -> None:
        """Bring `update` into the run. In a batch a new run only waits.

        Its errors come when the waiting runs are written: at the batch's end, or before anything else is written or
        read. Otherwise durable on return, and all or nothing: one transaction compares the run's cursor tag with the
        expected one and writes everything, the new cursor included. Raise ConflictError, with nothing written, if the
        cursor differs. Rows that exist already stay as they are.

        A rewind of more points than a SQLite transaction may delete or insert takes several. All but the last set the
        interim cursor, which says that the target is incomplete.
        """
        if self._waiting is not None and update.create is not None:
            self._waiting.append((run_id, update))
            self._waiting_points += sum(map(len, update.rows))
            if self._waiting_points >= _POINTS_TOGETHER:
                self._write_waiting()
            return
        self._write_waiting()
        left: Sequence[tuple[str, RunUpdate]] = [(run_id, update)]
        while left:
            left = self.write_together(left)

    def write_together(self, updates: Sequence[tuple[str, RunUpdate]]) -> Sequence[tuple[str, RunUpdate]]:
        """Bring each update into its run, all in one transaction. Return what is left for the next one.

        Try again if the database lost the transaction to a deadlock, a restart or a full queue.
        """
        # One order for all exports, so that two of them never wait for each other's runs.
        ordered = sorted(updates, key=lambda one: one[0])
        for attempt, pause in enumerate((*_PAUSES_S, None)):
            again = attempt > 0
            try:
                with self._transaction() as tables:
                    rests = [
                        (run_id, _write_one(tables.run(run_id), update, again=again)) for run_id, update in ordered
                    ]
                return [(run_id, rest) for run_id, rest in rests if rest is not None]
            except ConflictError:
                raise
            except TargetUnavailableError:
                if pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("unreachable")

    @contextmanager
    def _transaction(self, *, writes_waiting: bool = True) -> Iterator[Tables]:
        with self._connected(writes_waiting=writes_waiting) as connection:
            self._bulk.begin(connection)
            try:
                tables = Tables(connection, self._bulk)
                yield tables
                tables.write_held()
                connection.commit()
            finally:
                connection.rollback()
                self._bulk.ended()


def _write_one(run: RunTables, update: RunUpdate, *, again: bool) -> RunUpdate | None:
    """Bring `update` into `run`; of a rewind, only what fits one transaction. Return the rest, None if all is done."""
    run.claim(update)
    cursor = run.tag(Tag.CURSOR)
    if again and cursor not in (None, update.expected_cursor) and cursor == update.tags.get(Tag.CURSOR):
        return None  # the commit had arrived, only its answer was lost
    if cursor != update.expected_cursor:
        raise conflict(run.run_id, "was changed by another export at the same time")
    gone: set[str] = set()
    if update.replace_from is not None:
        if not run.delete_points(update):
            return run.set_interim(update)
        gone = run.delete_latest(update)
    rows, left = run.first_batch(update)
    run.delete_keys(update.deleted_keys)
    run.insert(rows)
    run.set_latest(rows)
    run.search_latest(gone - {part.key for part in rows})
    for best_key, (key, sign) in sorted(update.bests.items()):
        logged = next((part for part in rows if part.key == key), None)
        run.set_best(best_key, key, sign, logged, is_rewind=update.replace_from is not None)
    if left:
        return run.set_interim(replace(update, rows=left, replace_from=None, deleted_keys=[]))
    run.set_pairs("params", update.params)
    run.set_row(update.row)
    run.delete_tags(update.deleted_tags)
    run.set_pairs("tags", update.tags)
    return None
