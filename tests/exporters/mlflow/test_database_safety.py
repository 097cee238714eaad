"""The database writer when killed, beside a server on the same database, and with several runs in a transaction."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import pytest
import sqlalchemy as sa

from bridge.errors import ConflictError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.contract import find_exporter
from bridge.exporters.mlflow import write_db
from bridge.exporters.mlflow.exporter import MlflowExporter
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.runs import RunUpdate, new_run_id
from bridge.exporters.mlflow.tables import SqliteBulk
from bridge.exporters.mlflow.write_db import Database
from bridge.sync.export import export_runs
from bridge.sync.verify import verify_runs
from tests.exporters.mlflow.conftest import Store
from tests.exporters.mlflow.database_help import (
    FACTS,
    NEW,
    make_run,
    open_database,
    table,
    wide_rows,
)
from tests.run_dirs import make_run as make_directory
from tests.zygote import Kill

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlflow import MlflowClient

    from tests.zygote import Zygote


def tags_of(uri: str, run_uuid: str) -> dict[str, str]:
    return {row["key"]: row["value"] for row in table(uri, "tags", run_uuid)}


def rewind_far(uri: str) -> None:
    """Replace more points than one SQLite transaction of this test may delete or insert."""
    SqliteBulk.limit, SqliteBulk.most_deleted = 150, 1000
    database = open_database(uri)
    (run,) = database.runs_with_tag(Tag.CURSOR, None)
    points = wide_rows(4, 100, start=500)
    change = RunUpdate(
        run.tags[Tag.CURSOR],
        points,
        own_keys=[part.key for part in points],
        replace_from=500,
        interim_cursor="interim",
        tags={Tag.CURSOR: "c1"},
    )
    database.write(run.run_id, change)
    database.close()


def test_a_rewind_cut_off_between_transactions_says_so(heavy: Zygote, sqlite_uri: str) -> None:
    """The cursor of a rewind stopped between transactions says so until the rewind is complete."""
    database = open_database(sqlite_uri)
    points = wide_rows(4, 6000)
    ours = make_run(database, rows=points)
    database.close()
    chance = random.Random(7)
    seen = set()
    while heavy.is_killed(Kill(seconds=chance.uniform(0.02, 0.4)), rewind_far, sqlite_uri):
        rows = len(table(sqlite_uri, "metrics", ours))
        cursor = tags_of(sqlite_uri, ours)[Tag.CURSOR]
        assert {"c0": rows == 24_000, "interim": 2000 <= rows < 24_000, "c1": rows == 2400}[cursor.strip()]
        seen.add(cursor)
        if cursor == "c1":
            break
    if tags_of(sqlite_uri, ours)[Tag.CURSOR] != "c1":
        rewind_far(sqlite_uri)
    assert len(table(sqlite_uri, "metrics", ours)) == 2400
    assert [row["step"] for row in table(sqlite_uri, "latest_metrics", ours)] == [599] * 4


def test_two_exports_do_not_go_on_with_one_rewind(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first step of one of them the other stops, so it never deletes what the first inserted."""
    monkeypatch.setattr(SqliteBulk, "limit", 100)
    first, second = open_database(sqlite_uri), open_database(sqlite_uri)
    ours = make_run(first, cursor="interim")
    rewind = RunUpdate("interim", wide_rows(2, 100), replace_from=0, interim_cursor="interim", tags={Tag.CURSOR: "c1"})
    left = first.write_together([(ours, rewind)])
    with pytest.raises(ConflictError):
        second.write(ours, rewind)
    while left:
        left = first.write_together(left)
    assert (len(table(sqlite_uri, "metrics", ours)), tags_of(sqlite_uri, ours)[Tag.CURSOR]) == (200, "c1")
    first.close()
    second.close()


def test_four_writers_of_one_run_make_one_run(uri: str) -> None:
    """Of several writers one writes each part, and the others get a conflict."""
    together, ours = threading.Barrier(4), new_run_id("0", "uid-1")

    def export(_: int) -> int:
        database, conflicts = open_database(uri), 0
        together.wait()
        for part in range(5):
            tags = {Tag.UID: "uid-1", Tag.CURSOR: str(part + 1)}
            points = wide_rows(2, 50, start=50 * part)
            try:
                database.write(ours, RunUpdate(str(part) if part else None, points, tags=tags, row=FACTS, create=NEW))
            except ConflictError:
                conflicts += 1
        database.close()
        return conflicts

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(export, range(4))) == 15
    assert len(table(uri, "metrics", ours)) == 500


def test_a_server_on_the_same_file_gets_its_turn(sqlite_uri: str) -> None:
    """While many points are written MLflow's own store writes too, again and again, and never waits for a second.

    What else the machine does can only make it wait longer, so one round of several has to give it two short turns.
    """
    from mlflow import MlflowClient

    client = MlflowClient(sqlite_uri)
    waits: list[float] = []
    for number in range(_ROUNDS):
        other = client.create_run("0").info.run_id
        done = threading.Event()
        waits = []
        beside = threading.Thread(target=_log_until, args=(done, client, other, waits))
        beside.start()
        try:
            ours = _write_quarter_of_a_million(sqlite_uri, f"uid-{number}")
        finally:
            done.set()
            beside.join()
        assert len(table(sqlite_uri, "metrics", ours)) == 240_000
        assert len(table(sqlite_uri, "metrics", other)) == len(waits)
        if len(waits) >= 2 and max(waits) <= 1.0:
            return
    raise AssertionError(f"{len(waits)} turns, waited {max(waits):.1f} s")


_ROUNDS = 4


def _log_until(done: threading.Event, client: MlflowClient, run_id: str, waits: list[float]) -> None:
    """Log points as a server does for its clients until told to stop; `waits` are the seconds of each."""
    while not done.is_set():
        begun = time.monotonic()
        client.log_metric(run_id, "m", 1.0, timestamp=len(waits), step=len(waits))
        waits.append(time.monotonic() - begun)


def _write_quarter_of_a_million(uri: str, identity: str) -> str:
    """Write a run of that many points in eight changes, and return its id."""
    database = open_database(uri)
    ours = make_run(database, identity, cursor="0")
    for part in range(8):
        tags = {Tag.CURSOR: str(part + 1)}
        database.write(ours, RunUpdate(str(part), wide_rows(10, 3000, start=part * 3000), tags=tags))
    database.close()
    return ours


def test_other_schemas_are_left_alone(sqlite_uri: str, tmp_path: Path) -> None:
    """A database with unknown tables, or with none, is not opened, and the note says why."""
    engine = sa.create_engine(sqlite_uri)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE metrics ADD COLUMN unit VARCHAR(8)"))
    engine.dispose()
    notes: list[str] = []
    for uri in (sqlite_uri, f"sqlite:///{tmp_path}/new.db"):
        assert Database.open(uri, note=notes.append) is None
    assert notes == [
        "Points go through MLflow's API: the database is not written to directly, as the table 'metrics' has an "
        "unknown column 'unit'.",
        "Points go through MLflow's API: the database is not written to directly, as it has no MLflow table 'metrics'.",
    ]


def test_another_versions_schema_is_known_before_mlflow_opens_it(uri: str) -> None:
    """An old database is detected before MLflow would migrate it."""
    database = Database.open(uri, note=print, check_version=True)
    assert database is not None
    database.close()
    engine = sa.create_engine(uri)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'older'"))
    engine.dispose()
    reason = r"was not touched: its schema is of another MLflow version \(older, the installed MLflow makes "
    with pytest.raises(TargetRefusedError, match=reason):
        Database.open(uri, note=print, check_version=True)


def test_an_unreachable_database_is_reported() -> None:
    """An unreachable server is a temporary error that does not show the password."""
    with pytest.raises(TargetUnavailableError, match=r"127\.0\.0\.1:1/") as caught:
        Database.open("postgresql+psycopg2://me:secret@127.0.0.1:1/mlflow", note=print)
    assert "secret" not in str(caught.value)


def test_what_the_database_refuses_is_refused_whole(uri: str) -> None:
    """A change that breaks a database constraint writes nothing."""
    database = open_database(uri)
    ours = make_run(database)
    with pytest.raises(TargetRefusedError):
        database.write(ours, RunUpdate("c0", wide_rows(1, 5), row=replace(FACTS, status="NO SUCH STATUS")))
    assert table(uri, "metrics", ours) == []
    database.close()


def test_a_rebuild_that_is_being_finished_is_not_deleted(postgres_uri: str) -> None:
    """Who deletes an unfinished rebuild waits for one that is being finished, and then looks at its tags."""
    database = open_database(postgres_uri)
    run_uuid = make_run(database, tags={Tag.BUILDING: "old"})
    engine = sa.create_engine(postgres_uri)
    waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with engine.connect() as other, engine.connect() as observer:
        other.execute(sa.text("SELECT 1 FROM runs WHERE run_uuid = :run FOR NO KEY UPDATE"), {"run": run_uuid})
        other.execute(sa.text("DELETE FROM tags WHERE key = :key"), {"key": Tag.BUILDING})
        deleting = threading.Thread(target=database.delete_unfinished, args=(run_uuid,))
        deleting.start()
        while deleting.is_alive() and not observer.execute(waiting).scalar_one():
            observer.rollback()
        other.commit()
        deleting.join()
    engine.dispose()
    assert database.run(run_uuid).deleted is False
    database.close()


def test_growth_needs_no_right_to_make_temporary_tables(postgres_uri: str) -> None:
    """Many databases leave their users no such right, and a run grows there all the same."""
    name = postgres_uri.rpartition("/")[2]
    user = f"limited_{name}"
    engine = sa.create_engine(postgres_uri)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE ROLE {user} LOGIN"))
        connection.execute(sa.text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}"))
        connection.execute(sa.text(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC"))
    engine.dispose()
    database = open_database(postgres_uri.replace("bridge@", f"{user}@"))
    run_uuid = make_run(database, rows=wide_rows(2, 5))
    database.write(run_uuid, RunUpdate("c0", wide_rows(2, 5, start=5), tags={Tag.CURSOR: "c1"}))
    assert len(table(postgres_uri, "metrics", run_uuid)) == 20
    database.close()


# ---------------------------------------------------------------------------------------------------------------------
# Several new runs in one transaction: all or nothing, and one that cannot be written costs no other


RUNS = 5
Updates: TypeAlias = "Sequence[tuple[str, RunUpdate]]"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(RUNS):
        rows = [{"step": step, "loss": 1 / (step + 1)} for step in range(10)]
        make_directory(
            tmp_path / "runs" / f"job-{number}", rows, hparams={"lr": 0.1}, tags=["sweep:s"] if number > 2 else []
        )
    return tmp_path / "runs"


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many runs each transaction wrote."""
    counts: list[int] = []
    write = Database.write_together

    def counted(self: Database, updates: Updates) -> Updates:
        counts.append(len(updates))
        return write(self, updates)

    monkeypatch.setattr(Database, "write_together", counted)
    return counts


def exporter(uri: str) -> MlflowExporter:
    made = find_exporter("mlflow")(tracking_uri=uri, experiment="batch")
    assert isinstance(made, MlflowExporter)
    return made


def verdicts(root: Path, uri: str) -> list[str]:
    return [str(check.verdict) for check in verify_runs([root], exporter(uri)).runs]


# Three runs, the sweep's parent, its two children, its summary; and where other programs would wait for too long.
@pytest.mark.parametrize(("most_points", "runs"), [(50_000, [3, 1, 2, 1]), (20, [2, 1, 1, 2, 1])])
def test_new_runs_share_transactions(
    uri: str, root: Path, transactions: list[int], monkeypatch: pytest.MonkeyPatch, most_points: int, runs: list[int]
) -> None:
    """New runs are written together; what must be read or created in between comes after those that wait."""
    monkeypatch.setattr(write_db, "_POINTS_TOGETHER", most_points)
    report = export_runs([root], exporter(uri))
    assert [line.points for line in report.runs] == [10] * RUNS
    assert transactions == runs
    assert verdicts(root, uri) == ["="] * RUNS


def test_the_first_runs_of_a_new_file_share_them_too(tmp_path: Path, root: Path, transactions: list[int]) -> None:
    """A SQLite file that the export itself creates is no exception."""
    export_runs([root], exporter(f"sqlite:///{tmp_path}/new.db"))
    assert transactions == [3, 1, 2, 1]


def test_a_run_that_is_refused_costs_no_other(uri: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the database refuses one of several runs, the others are written, and that one alone has failed."""
    write = Database.write_together

    def refusing(self: Database, updates: Updates) -> Updates:
        if any(update.row is not None and update.row.name == "job-1" for _, update in updates):
            raise TargetRefusedError("no")
        return write(self, updates)

    monkeypatch.setattr(Database, "write_together", refusing)
    report = export_runs([root], exporter(uri))
    assert [line.reason for line in report.runs if line.failed] == ["no"]
    names = sorted(run.info.run_name for run in Store(uri, experiment="batch").runs())
    assert names == ["job-0", "job-2", "job-3", "job-4", "s"]


def test_another_export_is_faster_with_one_of_them(uri: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that somebody else brings in at the same moment is no error, and it is there once."""
    write = Database.write_together
    others = [True]

    def late(self: Database, updates: Updates) -> Updates:
        if others:
            others.clear()
            export_runs([root / "job-1"], exporter(uri))
        return write(self, updates)

    monkeypatch.setattr(Database, "write_together", late)
    report = export_runs([root], exporter(uri))
    assert [line.reason for line in report.runs if line.failed] == []
    assert verdicts(root, uri) == ["="] * RUNS
    with sa.create_engine(uri).connect() as connection:
        found = connection.execute(sa.text("SELECT count(*) FROM runs WHERE name = 'job-1'")).scalar()
    assert found == 1
