"""Whatever way points take into MLflow, its tables hold what MLflow's own client writes."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.rows import KeyRows
from bridge.exporters.mlflow.runs import RunUpdate
from bridge.exporters.mlflow.tables import PostgresBulk, SqliteBulk, artifact_uri
from bridge.model import DeltaKind
from bridge.sync.export import export_runs
from tests import oracle
from tests.deltas import block_of, make_model_run
from tests.exporters.mlflow.conftest import Store
from tests.exporters.mlflow.database_help import START_MS, make_run, open_database, table
from tests.run_dirs import CREATED_S, write_metrics
from tests.run_dirs import make_run as make_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

    from bridge.exporters.mlflow.write_db import Database


def awkward_rows(count: int) -> list[dict[str, Any]]:
    """Return rows with NaN, infinities, equal times, and steps that repeat, fall below zero and end where they can."""
    chance = random.Random(1)
    greatest = 1.7976931348623157e308
    values = [0.0, -0.0, 1.0, -1.5, math.nan, math.inf, -math.inf, greatest, -greatest, 2.0**53 + 2]
    values += [5e-324, -2.2250738585072011e-308, 0.1 + 0.2, 1e22, 123456789.123456789, -1e-7]
    names = ["loss", "val/acc", "ünï cödé", "epoch"]
    found: list[dict[str, Any]] = []
    for number in range(count):
        step = chance.choice([number, number - 7, number // 3, -number, 2**62 + number, 2**63 - 1, -(2**63)])
        time = CREATED_S + chance.choice([number / 10, number // 50 / 7, 0.0])
        row = {
            name: chance.choice(values) if chance.random() < 0.3 else chance.gauss(0, 1)
            for name in chance.sample(names, chance.randint(1, 4))
        }
        found.append({"step": step, "wall_time": time} | row | ({"once": math.nan} if number == count - 1 else {}))
    return found


def log_with_client(client: MlflowClient, ours: MlflowRun, run_dir: Path) -> str:
    """Write a run directory with MLflow's own client, beside `ours` and with its name and tags; return the run's id."""
    from mlflow.entities import Metric

    info = ours.info
    made = client.create_run(info.experiment_id, round(CREATED_S * 1000), ours.data.tags, run_name=info.run_name)
    run_id = str(made.info.run_id)
    metrics = [
        Metric(name, point.value, round(point.time * 1000), point.step)
        for name, points in oracle.read(run_dir).series.items()
        for point in points
    ]
    for at in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[at : at + 1000])
    client.log_param(run_id, "lr", "0.1")
    client.set_terminated(run_id, "FINISHED", round((CREATED_S + 3600) * 1000))
    return run_id


@pytest.fixture(params=["sqlite", "sqlite in many steps", "psycopg2", "psycopg", "server", "client"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Return MLflow's address and its database, into which points go directly or through MLflow."""
    if request.param == "server":
        server = request.getfixturevalue("mlflow_server")
        return server.uri, server.backend
    if request.param.startswith("psycopg"):
        monkeypatch.setattr(PostgresBulk, "_POINTS_A_STATEMENT", 300)
        return (request.getfixturevalue("postgres_uri").replace("psycopg2", request.param),) * 2
    uri = request.getfixturevalue("sqlite_uri")
    if request.param == "client":  # as for each database whose tables are not those that we know
        with sa.create_engine(uri).begin() as connection:
            connection.execute(sa.text("ALTER TABLE metrics ADD COLUMN unit VARCHAR(8)"))
    elif request.param != "sqlite":
        monkeypatch.setattr(SqliteBulk, "limit", 100)
        monkeypatch.setattr(SqliteBulk, "most_deleted", 200)
    return uri, uri


def test_all_rows_equal_those_of_mlflows_client(way: tuple[str, str], tmp_path: Path) -> None:
    """A run that grows and is requeued between exports leaves the rows of one that the client wrote, in every table."""
    address, database = way
    store = Store(address, experiment=tmp_path.name)
    made = awkward_rows(900)
    for end, status in ((300, "running"), (600, "running"), (900, "completed")):
        facts = {"status": status, "hparams": {"lr": 0.1}, "sessions": [{"user": "ada"}]}
        path = make_directory(tmp_path / "run", made[:end], **facts)
        assert not export_runs([path], store.exporter()).failed
    ours = store.run()
    twin = log_with_client(store.client, ours, path)
    assert len(table(database, "metrics", ours.info.run_id)) > 1000
    for name in ("metrics", "latest_metrics", "params", "tags"):
        assert table(database, name, ours.info.run_id) == table(database, name, twin)
    (expected,) = table(database, "runs", twin)
    expected["artifact_uri"] = expected["artifact_uri"].replace(twin, ours.info.run_id)
    assert table(database, "runs", ours.info.run_id) == [expected]


def test_the_latest_value_is_that_of_the_highest_step(any_store: Store) -> None:
    """The order of the points in a delta does not decide."""
    rows = [{"step": step, "loss": step / 8} for step in (3, 9, 5)]
    any_store.export(make_model_run(), rows)
    assert any_store.run().data.metrics == {"loss": 9 / 8}


def test_a_metric_that_loses_points_shows_the_latest_that_is_left(uri: str, tmp_path: Path) -> None:
    """The first of several deltas of a rewind takes back points of metrics that only later ones bring again."""
    store, run = Store(uri), make_model_run()
    store.client.create_experiment("trials", artifact_location=tmp_path.as_uri())
    store.export(run, [{"step": 1, "loss": 5.0, "old": 3.0}, {"step": 7, "loss": math.inf, "old": 1.0, "gone": 1.0}])
    block = block_of([{"step": 2, "loss": 3.0}], first_row=2)
    fields = {"kind": DeltaKind.REWIND, "replace_from": 2, "blocks": (block,), "metrics": ("loss", "old", "gone")}
    store.export(run, [{"step": 2, "loss": 3.0}], **fields)
    assert store.run().data.metrics == {"loss": 3.0, "old": 3.0}
    assert [point[:2] for point in store.points("loss")] == [(1, 5.0), (2, 3.0)]


def test_a_requeue_takes_no_point_of_other_people_back(uri: str, tmp_path: Path) -> None:
    """Points that people logged into our run stay in both tables."""
    store = Store(uri)
    store.client.create_experiment("trials", artifact_location=tmp_path.as_uri())
    path = make_directory(tmp_path / "run", [{"step": 5, "loss": 5.0}, {"step": 6, "loss": 6.0}])
    export_runs([path], store.exporter())
    store.client.log_metric(store.run().info.run_id, "test/acc", 0.9, timestamp=START_MS, step=7)
    write_metrics(path, (), [[4.0, 5, CREATED_S + 9]], append=True)
    (line,) = export_runs([path], store.exporter()).runs
    assert (str(line.action), store.points("test/acc")) == ("changed", [(7, 0.9, START_MS)])
    assert store.run().data.metrics == {"loss": 6.0, "test/acc": 0.9}


@pytest.fixture
def database(uri: str) -> Iterator[Database]:
    opened = open_database(uri)
    yield opened
    opened.close()


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


@pytest.mark.parametrize(
    "location", ["file:///data/a b", "/data/plain", "s3://bucket", "s3://bucket/below?x=y", "mlflow-artifacts:/7"]
)
def test_artifacts_lie_where_mlflow_puts_them(location: str) -> None:
    """A run's artifact location equals MLflow's."""
    from mlflow.utils.uri import append_to_uri_path

    assert artifact_uri(location, "abc") == append_to_uri_path(location, "abc", "artifacts")


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
