"""The database writer when killed, in several processes, and beside a server on the same database."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from bridge.errors import ConflictError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.rows import SqliteBulk
from bridge.exporters.mlflow.write_db import Database, RunUpdate, new_run_id, outdated
from tests.crash.killing import kill_after
from tests.exporters.mlflow.database_help import (
    FACTS,
    NEW,
    make_run,
    open_database,
    settle,
    table,
    wide_rows,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow import MlflowClient

PARTS = 12
ROWS_A_PART = 1500


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("sqlite_uri" if request.param == "sqlite" else "postgres_uri"))


def write_parts(uri: str, identity: str = "uid-1") -> None:
    """Continue from the run's cursor, part by part, as an export does."""
    database = open_database(uri)
    run_uuid = new_run_id("0", identity)
    held = {
        run.run_id: run.tags.get("mlflow.bridge.cursor") for run in database.runs_with_tag("mlflow.bridge.uid", None)
    }
    cursor = held.get(run_uuid)
    for part in range(int(cursor or 0), PARTS):
        points = wide_rows(4, ROWS_A_PART, start=part * ROWS_A_PART)
        change = RunUpdate(
            expected_cursor=cursor,
            rows=points,
            tags={"mlflow.bridge.uid": identity, "mlflow.bridge.cursor": str(part + 1)},
            row=FACTS,
            create=NEW,
        )
        database.write(run_uuid, change)
        cursor = str(part + 1)
    database.close()


def tags_of(uri: str, run_uuid: str) -> dict[str, str]:
    return {row["key"]: row["value"] for row in table(uri, "tags", run_uuid)}


def test_a_kill_leaves_whole_parts(uri: str) -> None:
    """After a kill the run holds exactly what its cursor covers, and continuing equals a clean write."""
    chance = random.Random(5)
    ours = new_run_id("0", "uid-1")
    kills = 0
    # The first kill comes before any machine could have ended, the later ones later.
    while kills < 4 and kill_after(0.04 * (kills + 1) * chance.uniform(0.5, 1.5), write_parts, uri):
        kills += 1
        settle(uri)
        parts = int(tags_of(uri, ours).get("mlflow.bridge.cursor", 0))
        latest = [row["step"] for row in table(uri, "latest_metrics", ours)]
        assert len(table(uri, "metrics", ours)) == parts * ROWS_A_PART * 4
        assert latest == ([parts * ROWS_A_PART - 1] * 4 if parts else [])
    assert kills > 0
    write_parts(uri)
    write_parts(uri, "uid-clean")
    clean = new_run_id("0", "uid-clean")
    for name in ("metrics", "latest_metrics", "params"):
        assert table(uri, name, ours) == table(uri, name, clean)
    assert tags_of(uri, ours) == tags_of(uri, clean) | {"mlflow.bridge.uid": "uid-1"}


def rewind_far(uri: str) -> None:
    """Replace more points than one SQLite transaction of this test may delete or insert."""
    SqliteBulk.limit, SqliteBulk.most_deleted = 150, 1000
    database = open_database(uri)
    (run,) = database.runs_with_tag("mlflow.bridge.cursor", None)
    points = wide_rows(4, 100, start=500)
    change = RunUpdate(
        expected_cursor=run.tags["mlflow.bridge.cursor"],
        rows=points,
        own_keys=[part.key for part in points],
        replace_from=500,
        interim_cursor="interim",
        tags={"mlflow.bridge.cursor": "c1"},
    )
    database.write(run.run_id, change)
    database.close()


def test_a_rewind_cut_off_between_transactions_says_so(sqlite_uri: str) -> None:
    """The cursor of a rewind stopped between transactions says so until the rewind is complete."""
    database = open_database(sqlite_uri)
    points = wide_rows(4, 6000)
    ours = make_run(database, rows=points)
    database.close()
    chance = random.Random(7)
    seen = set()
    while kill_after(chance.uniform(0.02, 0.4), rewind_far, sqlite_uri):
        rows = len(table(sqlite_uri, "metrics", ours))
        cursor = tags_of(sqlite_uri, ours)["mlflow.bridge.cursor"]
        assert {"c0": rows == 24_000, "interim": 2000 <= rows < 24_000, "c1": rows == 2400}[cursor]
        seen.add(cursor)
        if cursor == "c1":
            break
    if tags_of(sqlite_uri, ours)["mlflow.bridge.cursor"] != "c1":
        rewind_far(sqlite_uri)
    assert len(table(sqlite_uri, "metrics", ours)) == 2400
    assert [row["step"] for row in table(sqlite_uri, "latest_metrics", ours)] == [599] * 4


def test_four_writers_of_one_run_make_one_run(uri: str) -> None:
    """Of several writers one writes each part, and the others get a conflict."""
    together = threading.Barrier(4)

    def export(_: int) -> int:
        database = open_database(uri)
        together.wait()
        conflicts = 0
        for part in range(5):
            points = wide_rows(2, 50, start=part * 50)
            change = RunUpdate(
                expected_cursor=str(part) if part else None,
                rows=points,
                tags={"mlflow.bridge.uid": "uid-1", "mlflow.bridge.cursor": str(part + 1)},
                row=FACTS,
                create=NEW,
            )
            try:
                database.write(new_run_id("0", "uid-1"), change)
            except ConflictError:
                conflicts += 1
        database.close()
        return conflicts

    with ThreadPoolExecutor(4) as pool:
        conflicts = sum(pool.map(export, range(4)))
    assert conflicts == 15
    database = open_database(uri)
    assert [run.run_id for run in database.runs_with_tag("mlflow.bridge.uid", None)] == [new_run_id("0", "uid-1")]
    database.close()
    assert len(table(uri, "metrics", new_run_id("0", "uid-1"))) == 500


def test_a_server_on_the_same_file_gets_its_turn(sqlite_uri: str) -> None:
    """While many points are written MLflow's own store writes too, again and again, and never waits for a second.

    What else the machine does can only make it wait longer, so one round of several has to keep within the second.
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
        assert len(table(sqlite_uri, "metrics", other)) == len(waits) >= 2
        if max(waits) <= 1.0:
            return
    raise AssertionError(f"waited {max(waits):.1f} s")


_ROUNDS = 4


def _log_until(done: threading.Event, client: MlflowClient, run_id: str, waits: list[float]) -> None:
    """Log points as a server does for its clients until told to stop; `waits` are the seconds of each."""
    while not done.is_set():
        begun = time.monotonic()
        client.log_metric(run_id, "m", 1.0, timestamp=len(waits), step=len(waits))
        waits.append(time.monotonic() - begun)


def _write_quarter_of_a_million(uri: str, identity: str) -> str:
    """Write a run of that many points in five changes, and return its id."""
    database = open_database(uri)
    ours = make_run(database, identity, cursor="0")
    for part in range(8):
        points = wide_rows(10, 3000, start=part * 3000)
        tags = {"mlflow.bridge.cursor": str(part + 1)}
        change = RunUpdate(expected_cursor=str(part), rows=points, tags=tags)
        database.write(ours, change)
    database.close()
    return ours


def test_pauses_are_left_for_others(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a series of transactions the next one waits to let others in."""
    monkeypatch.setattr(SqliteBulk, "_HOLD_S", 0.0)
    database = open_database(sqlite_uri)
    bulk = database._bulk
    assert isinstance(bulk, SqliteBulk)
    points = wide_rows(10, 2000)
    ours = make_run(database, rows=points)
    ended = bulk._ended
    database.write(ours, RunUpdate(expected_cursor="c0", tags={"a": "1"}))
    assert bulk._began - ended >= SqliteBulk._PAUSE_S
    database.close()


def test_an_unknown_schema_is_left_alone(sqlite_uri: str) -> None:
    """A database with unknown tables is not opened, and the note says why."""
    engine = sa.create_engine(sqlite_uri)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE metrics ADD COLUMN unit VARCHAR(8)"))
    engine.dispose()
    notes: list[str] = []
    assert Database.open(sqlite_uri, note=notes.append) is None
    assert notes == [
        "Points go through MLflow's API: the database is not written to directly, as the table 'metrics' has an "
        "unknown column 'unit'."
    ]


def test_no_schema_and_other_databases_are_left_alone(tmp_path: Path) -> None:
    """An empty file gets no tables, and other kinds of database go through the API."""
    notes: list[str] = []
    assert Database.open(f"sqlite:///{tmp_path}/new.db", note=notes.append) is None
    assert Database.open("mysql://nobody@127.0.0.1/x", note=notes.append) is None
    assert notes == [
        "Points go through MLflow's API: the database is not written to directly, as it has no MLflow table 'metrics'.",
        "Points go through MLflow's API: a mysql database cannot be written to directly.",
    ]


def test_another_versions_schema_is_known_before_mlflow_opens_it(uri: str, tmp_path: Path) -> None:
    """An old database is detected before MLflow would migrate it, and stays unchanged."""
    assert outdated(uri) is None
    engine = sa.create_engine(uri)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'older'"))
    engine.dispose()
    assert str(outdated(uri)).startswith("its schema is of another MLflow version (older, the installed MLflow makes ")
    assert outdated(f"sqlite:///{tmp_path}/none.db") is None
    assert not (tmp_path / "none.db").exists()


def test_an_unreachable_database_is_reported() -> None:
    """An unreachable server is a temporary error that does not show the password."""
    with pytest.raises(TargetUnavailableError, match=r"127\.0\.0\.1:1/") as caught:
        Database.open("postgresql+psycopg2://me:secret@127.0.0.1:1/mlflow", note=print)
    assert "secret" not in str(caught.value)


def test_what_the_database_refuses_is_refused_whole(uri: str) -> None:
    """A change that breaks a database constraint writes nothing."""
    database = open_database(uri)
    ours = make_run(database)
    points = wide_rows(1, 5)
    bad = type(FACTS)(status="NO SUCH STATUS", name="x", start=0, end=None)
    with pytest.raises(TargetRefusedError):
        database.write(ours, RunUpdate(expected_cursor="c0", rows=points, row=bad))
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
