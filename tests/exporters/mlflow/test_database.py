"""The database writer writes what MLflow's own client writes, in SQLite and PostgreSQL."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bridge.errors import ConflictError
from bridge.exporters.mlflow.client import RunRow
from bridge.exporters.mlflow.write_db import (
    Database,
    RunUpdate,
    artifact_uri,
    new_run_id,
    newest_revision,
)
from tests.exporters.mlflow.database_help import (
    FACTS,
    NEW,
    START_MS,
    Point,
    make_run,
    open_database,
    rows,
    table,
    wide_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient


@pytest.fixture(params=["sqlite", "psycopg2", "psycopg"])
def uri(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_uri"))
    return str(request.getfixturevalue("postgres_uri")).replace("psycopg2", request.param)


@pytest.fixture
def database(uri: str) -> Iterator[Database]:
    opened = open_database(uri)
    yield opened
    opened.close()


@pytest.fixture
def client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def log_with_client(client: MlflowClient, points: list[Point], *, at_once: int = 1000) -> str:
    """Write a run with MLflow's own client and return its id."""
    from mlflow.entities import Metric

    run_id = str(client.create_run("0", start_time=START_MS, run_name="a run").info.run_id)
    metrics = [Metric(key, value, START_MS + round(time * 1000), step) for key, step, time, value in points]
    for at in range(0, len(metrics), at_once):
        client.log_batch(run_id, metrics=metrics[at : at + at_once])
    return run_id


def awkward_points(seed: int, count: int) -> list[Point]:
    """Return points with NaN, infinities, ties, exact repetitions, and steps that fall below zero."""
    chance = random.Random(seed)
    values = [0.0, -0.0, 1.0, -1.5, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, 2.0**53 + 2]
    keys = ["loss", "val/acc", "ünï cödé", "epoch", "once"]
    points: list[Point] = []
    for number in range(count):
        if points and chance.random() < 0.1:
            points.append(chance.choice(points[-30:]))
            continue
        step = chance.choice([number, number - 7, number // 3, -number, 2**62 + number])
        value = chance.choice(values) if chance.random() < 0.3 else chance.gauss(0, 1)
        points.append((chance.choice(keys[:4]), step, chance.choice([number / 10, number // 50 / 7, 0.0]), value))
    points.append(("once", 3, 0.25, math.nan))
    return points


def test_metric_rows_equal_log_batch(client: MlflowClient, database: Database, uri: str) -> None:
    """Rows in metrics and latest_metrics equal those of log_batch, over several writes."""
    points = awkward_points(seed=1, count=1600)
    twin = log_with_client(client, points)
    ours = make_run(database)
    expected = "c0"
    for number, at in enumerate(range(0, len(points), 550)):
        part = rows(points[at : at + 550])
        cursor = f"c{number + 1}"
        change = RunUpdate(expected_cursor=expected, rows=part, tags={"mlflow.bridge.cursor": cursor})
        database.write(ours, change)
        expected = cursor
    assert len(table(uri, "metrics", ours)) > 1200
    assert table(uri, "metrics", ours) == table(uri, "metrics", twin)
    assert table(uri, "latest_metrics", ours) == table(uri, "latest_metrics", twin)


def test_run_row_equals_create_run(client: MlflowClient, database: Database, uri: str) -> None:
    """A new run's row, params and tags equal those of MLflow's client."""
    tags = {"mlflow.user": "ada", "a": "1"}
    run = client.create_run("0", start_time=START_MS, tags=tags, run_name="a run")
    client.log_param(run.info.run_id, "lr", "0.1")
    ours = new_run_id("0", "uid-1")
    create = replace(NEW, tags={**NEW.tags, **tags})
    database.write(ours, RunUpdate(expected_cursor=None, create=create, params={"lr": "0.1"}))
    for name in ("params", "tags"):
        assert table(uri, name, ours) == table(uri, name, run.info.run_id)
    theirs = table(uri, "runs", run.info.run_id)[0]
    expected = theirs | {"artifact_uri": theirs["artifact_uri"].replace(run.info.run_id, ours)}
    assert table(uri, "runs", ours) == [expected]
    assert client.get_run(ours).info.run_name == "a run"


def test_writing_twice_changes_nothing(database: Database, uri: str) -> None:
    """Writing the same points again adds no rows and keeps the latest metrics."""
    part = rows(awkward_points(seed=2, count=500))
    ours = make_run(database, rows=part)
    before = table(uri, "metrics", ours), table(uri, "latest_metrics", ours)
    again = RunUpdate(expected_cursor="c0", rows=part, tags={"mlflow.bridge.cursor": "c1"})
    database.write(ours, again)
    assert (table(uri, "metrics", ours), table(uri, "latest_metrics", ours)) == before


def test_a_rewind_replaces_the_points_from_its_step_on(client: MlflowClient, database: Database, uri: str) -> None:
    """A rewind leaves the tables of a run that never held the superseded points."""
    before: list[Point] = [
        ("loss", 1, 0.1, 5.0),
        ("loss", 2, 0.2, math.nan),
        ("loss", 9, 0.9, math.inf),
        ("old", 1, 0.1, 3.0),
        ("old", 7, 0.7, 1.0),
        ("gone", 8, 0.8, 1.0),
    ]
    after: list[Point] = [("loss", 2, 1.2, 3.0), ("loss", 3, 1.3, 2.0)]
    ours = make_run(database, rows=rows(before))
    change = RunUpdate(
        expected_cursor="c0",
        rows=rows(after),
        own_keys=["loss", "old", "gone"],
        replace_from=2,
        interim_cursor="interim",
        tags={"mlflow.bridge.cursor": "c1"},
    )
    database.write(ours, change)
    twin = log_with_client(client, [before[0], before[3], *after])
    assert table(uri, "metrics", ours) == table(uri, "metrics", twin)
    assert table(uri, "latest_metrics", ours) == table(uri, "latest_metrics", twin)


def test_a_rewind_leaves_the_points_that_people_logged(client: MlflowClient, database: Database, uri: str) -> None:
    """A rewind deletes points of the run's own metrics only."""
    points: list[Point] = [("loss", 5, 0.5, 5.0)]
    ours = make_run(database, rows=rows(points))
    client.log_metric(ours, "test/acc", 0.9, timestamp=START_MS, step=7)
    change = RunUpdate("c0", own_keys=["loss"], replace_from=0, interim_cursor="interim")
    database.write(ours, change)
    expected = [{"key": "test/acc", "value": 0.9, "timestamp": START_MS, "step": 7, "is_nan": 0}]
    assert table(uri, "metrics", ours) == table(uri, "latest_metrics", ours) == expected


def test_a_replaced_point_that_comes_again_stays(database: Database, uri: str) -> None:
    """A point that is both deleted and sent is there afterwards."""
    points: list[Point] = [("loss", 1, 0.1, 5.0)]
    ours = make_run(database, rows=rows(points))
    change = RunUpdate("c0", rows(points), own_keys=["loss"], replace_from=1, interim_cursor="i")
    database.write(ours, change)
    expected = [{"key": "loss", "value": 5.0, "timestamp": START_MS + 100, "step": 1, "is_nan": 0}]
    assert table(uri, "metrics", ours) == table(uri, "latest_metrics", ours) == expected


def test_facts_tags_and_params_are_replaced_in_place(client: MlflowClient, database: Database) -> None:
    """Status, name, start, end, tags and params are set, cleared or deleted in place."""
    ours = make_run(database, params={"lr": "0.1", "n": "1"}, tags={"a": "1", "b": "2"})
    ended = RunRow(status="FAILED", name="new name", start=START_MS - 5, end=START_MS + 7)
    change = RunUpdate(
        expected_cursor="c0", row=ended, tags={"b": "3"}, deleted_tags=["a", "never there"], params={"lr": "0.2"}
    )
    database.write(ours, change)
    run = client.get_run(ours)
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FAILED", START_MS - 5, START_MS + 7)
    assert run.info.run_name == run.data.tags["mlflow.runName"] == "new name"
    assert run.data.params == {"lr": "0.2", "n": "1"}
    assert {key: run.data.tags.get(key) for key in "ab"} == {"a": None, "b": "3"}
    database.write(ours, RunUpdate(expected_cursor="c0", row=FACTS))
    assert (client.get_run(ours).info.status, client.get_run(ours).info.end_time) == ("RUNNING", None)


def test_another_cursor_is_a_conflict_and_writes_nothing(database: Database, uri: str) -> None:
    """A run that another export advanced is a conflict and stays unchanged."""
    ours = make_run(database, cursor="newer")
    part = wide_rows(1, 3)
    change = RunUpdate(expected_cursor="older", rows=part, tags={"mlflow.bridge.cursor": "mine"})
    with pytest.raises(ConflictError):
        database.write(ours, change)
    assert table(uri, "metrics", ours) == []
    assert {"key": "mlflow.bridge.cursor", "value": "newer"} in table(uri, "tags", ours)


def test_a_run_made_meanwhile_is_a_conflict(database: Database) -> None:
    """Of two exports that found no run the second makes none."""
    make_run(database)
    with pytest.raises(ConflictError):
        make_run(database, cursor="also first")
    assert len(database.runs_with_tag("mlflow.bridge.uid", None)) == 1


def test_a_deleted_run_is_not_written_to(client: MlflowClient, database: Database) -> None:
    """A run deleted meanwhile stays unchanged."""
    ours = make_run(database)
    client.delete_run(ours)
    with pytest.raises(ConflictError, match="deleted"):
        database.write(ours, RunUpdate(expected_cursor="c0", tags={"a": "1"}))
    assert "a" not in client.get_run(ours).data.tags


@pytest.mark.parametrize(
    "location", ["file:///data/a b", "/data/plain", "s3://bucket", "s3://bucket/below?x=y", "mlflow-artifacts:/7"]
)
def test_artifacts_lie_where_mlflow_puts_them(location: str) -> None:
    """A run's artifact location equals MLflow's."""
    from mlflow.utils.uri import append_to_uri_path

    assert artifact_uri(location, "abc") == append_to_uri_path(location, "abc", "artifacts")


def test_the_newest_schema_is_read_from_the_migrations() -> None:
    """The newest revision is read as text, without importing MLflow, and equals MLflow's."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    assert newest_revision() == _get_latest_schema_revision()


def test_runs_are_found_with_their_tags(client: MlflowClient, database: Database) -> None:
    """One query finds runs by a tag, deleted ones too, by experiment."""
    first, second = make_run(database, "uid-1"), make_run(database, "uid-2", tags={"mlflow.bridge.run_id": "r2"})
    client.create_run("0", run_name="somebody else's")
    client.delete_run(second)
    only = ["mlflow.bridge.uid", "mlflow.bridge.run_id"]
    found = {run.run_id: run for run in database.runs_with_tag(only[0], None, ["0"], only=only)}
    assert {run_id: (run.deleted, run.tags) for run_id, run in found.items()} == {
        first: (False, {"mlflow.bridge.uid": "uid-1"}),
        second: (True, {"mlflow.bridge.uid": "uid-2", "mlflow.bridge.run_id": "r2"}),
    }
    assert (found[first].experiment_id, found[first].status) == ("0", "RUNNING")
    assert (found[first].start, found[first].end) == (START_MS, None)
    assert database.runs_with_tag("mlflow.bridge.uid", None, ["7"]) == []


def test_a_history_is_that_of_mlflow_itself(uri: str, database: Database, client: MlflowClient) -> None:
    """The columns that verify reads hold the points of MLflow's own reader, in the order of their steps and times."""
    run_id = log_with_client(client, awkward_points(7, 300))
    held = database.history(run_id, "loss")
    points = client.get_metric_history(run_id, "loss")
    pairs = list(zip(held.step.tolist(), held.timestamp.tolist(), strict=True))
    assert sorted(zip(pairs, map(str, held.shown.tolist()), strict=True)) == sorted(
        ((point.step, point.timestamp), str(point.value)) for point in points
    )
    assert (len(pairs) > 50, pairs) == (True, sorted(pairs))


def test_a_history_does_not_read_other_runs(sqlite_uri: str) -> None:
    """SQLite looks the points up by run and key, so the runs of a large database do not cost as much as all of it."""
    import sqlalchemy

    said: list[str] = []
    database = open_database(sqlite_uri)
    sqlalchemy.event.listen(database._engine, "before_cursor_execute", lambda *words: said.append(words[2]))
    database.history("a run", "m")
    with database._engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {said[0]}", ("a run", "m")).all()
    database.close()
    assert "(run_uuid=? AND key=?)" in plan[0][-1]
