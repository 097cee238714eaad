"""The one module that goes past MLflow's API: many points, and all that belongs to them, straight into its database.

It writes through an engine made by MLflow itself, into the columns of MLflow's tables, and what it leaves there cannot
be told from what `MlflowClient.log_batch` leaves. SQLite and PostgreSQL only; others go through the API.
"""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from bridge.errors import ConflictError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.mlflow.database_postgresql import PostgresBulk
from bridge.exporters.mlflow.database_sqlite import SqliteBulk
from bridge.exporters.mlflow.rows import rows_of_blocks, rows_of_points, slices
from bridge.exporters.mlflow.run_rows import CURSOR_TAG, PENDING_TAG, NewRun, RunFacts, RunRows
from bridge.exporters.mlflow.schema import unknown_schema
from bridge.secrets import hide_all, hide_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from bridge.exporters.mlflow.rows import KeyRows
    from bridge.model import Block, Points

__all__ = ["Change", "ConflictError", "Database", "HeldRun", "NewRun", "RunFacts", "new_run_id", "points_a_change"]

_ATTEMPTS = 4
_NAMESPACE = uuid.UUID("6f0b6a7e-0e0c-5d0e-9a53-4b1c7ac2d0b1")


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run as the database has it; `tags` holds those of the tags asked for that the run has. Times in ms."""

    run_uuid: str
    experiment_id: str
    lifecycle_stage: str
    status: str
    name: str
    start_ms: int | None
    end_ms: int | None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What is to become of one run.

    `expected_cursor` is the cursor tag that the run has now, None where it has none (or is made now). `names` maps
    each metric of `blocks` and `removed` to its key; `removed` rows are deleted before new ones come in. `tags`,
    the new cursor among them, and `params` are set or replaced in place. `facts` None leaves the run's row as
    it is. With `create` a run that does not exist is made first.
    """

    expected_cursor: str | None
    blocks: Sequence[Block] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    removed: Points | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    deleted_tags: Sequence[str] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    facts: RunFacts | None = None
    create: NewRun | None = None


class Bulk(Protocol):
    """What differs between the databases. `limit` is the most rows of one transaction, None for any number."""

    limit: int | None

    def set_up(self, engine: Engine) -> None: ...
    def begin(self, connection: Connection) -> None: ...
    def ended(self) -> None: ...
    def lock_run(self) -> str: ...
    def insert(self, connection: Connection, run_uuid: str, rows: Sequence[KeyRows]) -> int: ...
    def delete(self, connection: Connection, run_uuid: str, rows: Sequence[KeyRows]) -> int: ...


def points_a_change(limit: int | None) -> int:
    """At most this many points go into one change where a transaction holds at most `limit` rows."""
    return 1_000_000 if limit is None else limit - 10_000


def new_run_id(experiment_id: str, identity: str, *, replaces: str | None = None) -> str:
    """The id of the MLflow run to be made for `identity`; `replaces` is the run before it (deleted, or rebuilt).

    It follows from its arguments: two exports at once that both find no run make the same one, and the table's
    primary key lets one of them be the first.
    """
    return uuid.uuid5(_NAMESPACE, "\n".join((experiment_id, identity, replaces or ""))).hex


class Database:
    """MLflow's database, opened for bulk writing. Safe to use from several threads; cannot be pickled."""

    def __init__(self, engine: Engine, bulk: Bulk) -> None:
        self._engine = engine
        self._bulk = bulk

    @classmethod
    def open(cls, uri: str, *, note: Callable[[str], None]) -> Self | None:
        """The database at `uri`, where it is of a kind and a schema that is known; else None, and `note` is told why.

        Never makes or migrates a schema. Raises TargetUnavailableError where the database does not answer.
        """
        bulk: Bulk
        kind = uri.partition(":")[0].partition("+")[0]
        if kind == "sqlite":
            bulk = SqliteBulk()
        elif kind in ("postgresql", "postgres"):
            bulk = PostgresBulk()
        else:
            note(f"Points go through MLflow's API: a {kind} database cannot be written to directly.")
            return None
        from mlflow.store.db.utils import create_sqlalchemy_engine

        engine = create_sqlalchemy_engine(uri)
        bulk.set_up(engine)
        try:
            with _translated(engine):
                reason = unknown_schema(engine)
        except BaseException:
            engine.dispose()
            raise
        if reason is None:
            return cls(engine, bulk)
        engine.dispose()
        note(f"Points go through MLflow's API: the database is not written to directly, as {reason}.")
        return None

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a SQLite file: one writer at a time."""
        return isinstance(self._bulk, SqliteBulk)

    @property
    def points_a_change(self) -> int:
        """At most this many points in one change are written in one transaction, and fast."""
        return points_a_change(self._bulk.limit)

    def close(self) -> None:
        """Let go of all connections; the next call opens new ones."""
        self._engine.dispose()

    def runs(
        self,
        keys: Sequence[str],
        *,
        experiment_ids: Sequence[str] | None = None,
        having: tuple[str, Sequence[str]] | None = None,
    ) -> list[HeldRun]:
        """All runs, deleted ones too, that have at least one tag of `keys`, with these tags, in one select.

        Only those of `experiment_ids` and those whose tag `having` has one of its values, where given.
        """
        import sqlalchemy as sa

        sql = (
            "SELECT r.run_uuid, r.experiment_id, r.lifecycle_stage, r.status, r.name, r.start_time, r.end_time, "
            "t.key, t.value FROM tags t JOIN runs r ON r.run_uuid = t.run_uuid WHERE t.key IN :keys"
        )
        values: dict[str, object] = {"keys": list(keys)}
        parameters: list[sa.BindParameter[object]] = [sa.bindparam("keys", expanding=True)]
        if experiment_ids is not None:
            sql += " AND r.experiment_id IN :experiments"
            values["experiments"] = [int(experiment_id) for experiment_id in experiment_ids]
            parameters.append(sa.bindparam("experiments", expanding=True))
        if having is not None:
            sql += " AND r.run_uuid IN (SELECT run_uuid FROM tags WHERE key = :having AND value IN :values)"
            values |= {"having": having[0], "values": list(having[1])}
            parameters.append(sa.bindparam("values", expanding=True))
        found: dict[str, HeldRun] = {}
        tags: dict[str, dict[str, str]] = {}
        with _translated(self._engine), self._engine.connect() as connection:
            for row in connection.execute(sa.text(sql).bindparams(*parameters), values):
                run_uuid = row[0]
                if run_uuid not in found:
                    tags[run_uuid] = {}
                    found[run_uuid] = HeldRun(
                        run_uuid, str(row[1]), row[2], row[3], row[4] or "", row[5], row[6], tags[run_uuid]
                    )
                tags[run_uuid][row[7]] = row[8] or ""
        return list(found.values())

    def experiment(self, experiment_id: str) -> tuple[str, int] | None:
        """The name of an experiment and when it was made (ms); None where there is none of this id."""
        import sqlalchemy as sa

        sql = sa.text("SELECT name, creation_time FROM experiments WHERE experiment_id = :experiment")
        with _translated(self._engine), self._engine.connect() as connection:
            row = connection.execute(sql, {"experiment": int(experiment_id)}).first()
        return None if row is None else (str(row[0]), int(row[1] or 0))

    def unmake(self, run_uuid: str) -> None:
        """Take back a run that was made by `write` a moment ago, and has tags at most."""
        import sqlalchemy as sa

        with _translated(self._engine), self._transaction() as connection:
            for table in ("tags", "runs"):
                sql = sa.text(f"DELETE FROM {table} WHERE run_uuid = :run")  # noqa: S608 - constants
                connection.execute(sql, {"run": run_uuid})

    def write(self, run_uuid: str, change: Change) -> int:
        """Bring `change` into run `run_uuid`; how many metric rows were new.

        Durable on return, and all or nothing: one transaction, in which the run's cursor tag is first compared with
        the expected one, else ConflictError and nothing is written. Rows that are there already stay as they are.

        On SQLite more rows than one transaction may hold are written in several. Then the first sets the tag
        `bridge.pending` and the last, which also holds the cursor and the latest metrics, takes it away: a run
        that has it was cut off in between and holds rows past its cursor.
        """
        logged = rows_of_blocks(change.blocks, change.names)
        insert = [rows.distinct() for rows in logged]
        pieces = list(slices(insert, self._bulk.limit)) if self._bulk.limit else [insert]
        work = _Work(
            run_uuid=run_uuid,
            change=change,
            logged=logged,
            delete=rows_of_points(change.removed, change.names) if change.removed is not None else [],
        )
        new = 0
        early, last = pieces[:-1], pieces[-1] if pieces else []
        for number, piece in enumerate(early):
            new += self._persist(work, piece, first=number == 0, last=False)
        return new + self._persist(work, last, first=not early, last=True)

    def _persist(self, work: _Work, piece: list[KeyRows], *, first: bool, last: bool) -> int:
        """One transaction, tried again where the database lost it: to a deadlock, a restart, a full queue."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with _translated(self._engine), self._transaction() as connection:
                    return self._step(work, piece, connection, first=first, last=last, again=attempt > 1)
            except ConflictError:
                raise
            except TargetUnavailableError:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    def _step(
        self, work: _Work, piece: list[KeyRows], connection: Connection, *, first: bool, last: bool, again: bool
    ) -> int:
        run, change = RunRows(connection, work.run_uuid), work.change
        created = run.claim(change.create, lock=self._bulk.lock_run())
        cursor = run.tag(CURSOR_TAG)
        if again and last and cursor is not None and cursor == change.tags.get(CURSOR_TAG):
            return 0  # the commit had arrived, only its answer was lost
        if cursor != change.expected_cursor:
            raise ConflictError(
                f"MLflow run {work.run_uuid} was changed by another export at the same time.",
                hint="run the export again",
            )
        if first and work.delete:
            self._bulk.delete(connection, work.run_uuid, work.delete)
        new = self._bulk.insert(connection, work.run_uuid, piece)
        if last:
            run.set_latest(work.logged, again={rows.key for rows in work.delete})
            run.set_params(change.params)
            run.set_facts(change.facts)
            # Tags alone, without a cursor, end nothing: rows past the cursor are so still.
            run.delete_tags([*change.deleted_tags, *([PENDING_TAG] if CURSOR_TAG in change.tags else [])])
            run.set_tags(change.tags)
        else:
            # What others find the run by must be there from its first moment, the cursor only with all of its rows.
            early = {key: value for key, value in change.tags.items() if key != CURSOR_TAG} if created else {}
            run.set_tags(early | {PENDING_TAG: "true"})
        return new

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            self._bulk.begin(connection)
            try:
                yield connection
                connection.commit()
            finally:
                connection.rollback()
                self._bulk.ended()


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A change with its points as rows: `logged` in logged order, `delete` those to be deleted."""

    run_uuid: str
    change: Change
    logged: list[KeyRows]
    delete: list[KeyRows]


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    """The errors of SQLAlchemy and of the driver as ours."""
    from sqlalchemy.exc import SQLAlchemyError

    driver = engine.dialect.dbapi
    assert driver is not None
    try:
        yield
    except (SQLAlchemyError, driver.Error) as error:
        cause = getattr(error, "orig", None) or error
        where = engine.url.render_as_string(hide_password=True)
        said = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        message = f"The database {where} did not do it: {hide_all(said)}."
        if "full" in said or not isinstance(cause, driver.OperationalError | driver.InterfaceError):
            raise TargetRefusedError(message) from hide_in(error)
        raise TargetUnavailableError(
            message, hint="is the database reachable, and not locked by another program?"
        ) from hide_in(error)
