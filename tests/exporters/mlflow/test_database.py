"""The database writer writes what MLflow's own client writes, in SQLite and PostgreSQL."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.rows import KeyRows
from bridge.exporters.mlflow.runs import RunUpdate, new_run_id
from bridge.exporters.mlflow.tables import PostgresBulk, SqliteBulk, artifact_uri
from tests.exporters.mlflow.database_help import (
    NEW,
    START_MS,
    Point,
    make_run,
    open_database,
    rows,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient

    from bridge.exporters.mlflow.write_db import Database


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
    for number, at in enumerate(range(0, len(points), 550)):
        part = rows(points[at : at + 550])
        database.write(ours, RunUpdate(f"c{number}", part, tags={Tag.CURSOR: f"c{number + 1}"}))
    assert len(table(uri, "metrics", ours)) > 1200
    assert table(uri, "metrics", ours) == table(uri, "metrics", twin)
    assert table(uri, "latest_metrics", ours) == table(uri, "latest_metrics", twin)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_postgresql_holds_each_value_bit_for_bit(
    postgres_uri: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any key and any float arrives as it is, over several statements, also if it is sent twice."""
    monkeypatch.setattr(PostgresBulk, "_POINTS_A_STATEMENT", 3)
    uri = postgres_uri.replace("psycopg2", driver)
    keys = ["a'b", 'a"b', "a\\b", "{a,b}", "%s %(a)s :a", "NULL", "k" * 250, "é" * 250]
    greatest = 1.7976931348623157e308
    values = [-0.0, 5e-324, -2.2250738585072011e-308, greatest, -greatest, 0.1 + 0.2, 1e22, 123456789.123456789, -1e-7]
    steps = [-(2**63), -1, 0, 1, 2, 3, 2**53 + 1, 2**62, 2**63 - 1]
    points = [KeyRows.of(key, range(len(steps)), steps, values) for key in keys]
    database = open_database(uri)
    ours = make_run(database, rows=points)
    database.write(ours, RunUpdate(expected_cursor="c0", rows=points, tags={Tag.CURSOR: "c1"}))
    database.close()
    held = {(row["key"], row["timestamp"], row["step"], row["value"].hex()) for row in table(uri, "metrics", ours)}
    wanted = [
        (key, *row) for key in keys for row in zip(range(9), steps, (value.hex() for value in values), strict=True)
    ]
    assert (len(table(uri, "metrics", ours)), held) == (len(wanted), set(wanted))


def test_many_metrics_take_few_statements(database: Database) -> None:
    """Each statement takes the time to the server and back, which may be far."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    points = [KeyRows.of(f"m{number}", [START_MS], [0], [0.5]) for number in range(1000)]
    ours = make_run(database)
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        database.write(ours, RunUpdate("c0", points, tags={Tag.CURSOR: "c1"}))
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(statements) < 30


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


@pytest.mark.parametrize("limits", [(100_000, 25_000), (1, 2)])
def test_a_rewind_replaces_the_points_from_its_step_on(
    client: MlflowClient, database: Database, uri: str, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewind leaves the tables of a run that never held the superseded points, in however many transactions."""
    for name, limit in zip(("limit", "most_deleted"), limits, strict=True):
        monkeypatch.setattr(SqliteBulk, name, limit)
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
        tags={Tag.CURSOR: "c1"},
    )
    database.write(ours, change)
    twin = log_with_client(client, [before[0], before[3], *after])
    assert table(uri, "metrics", ours) == table(uri, "metrics", twin)
    assert table(uri, "latest_metrics", ours) == table(uri, "latest_metrics", twin)


def test_a_rewind_deletes_and_inserts_points_of_the_runs_own_metrics_only(
    client: MlflowClient, database: Database, uri: str
) -> None:
    """Points that people logged stay, and so does a point that is both deleted and sent."""
    points = rows([("loss", 5, 0.5, 5.0)])
    ours = make_run(database, rows=points)
    client.log_metric(ours, "test/acc", 0.9, timestamp=START_MS, step=7)
    before = table(uri, "metrics", ours), table(uri, "latest_metrics", ours)
    change = RunUpdate("c0", points, own_keys=["loss"], replace_from=0, interim_cursor="interim")
    database.write(ours, change)
    assert len(before[0]) == 2
    assert (table(uri, "metrics", ours), table(uri, "latest_metrics", ours)) == before


@pytest.mark.parametrize(
    "location", ["file:///data/a b", "/data/plain", "s3://bucket", "s3://bucket/below?x=y", "mlflow-artifacts:/7"]
)
def test_artifacts_lie_where_mlflow_puts_them(location: str) -> None:
    """A run's artifact location equals MLflow's."""
    from mlflow.utils.uri import append_to_uri_path

    assert artifact_uri(location, "abc") == append_to_uri_path(location, "abc", "artifacts")


def test_a_history_is_that_of_mlflow_itself(database: Database, client: MlflowClient) -> None:
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
