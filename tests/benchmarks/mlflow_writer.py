"""Points into MLflow: straight into SQLite and PostgreSQL, and through a server, beside MLflow's own client.

Both sides write the same points into copies of the same fresh database, in the same minute. MLflow's own client, and
what sends row by row, get fewer of them where it would take minutes: their speed does not depend on how many there are.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.exporters.mlflow.write_db import Database, NewRun, RunRow, RunUpdate, new_run_id
from bridge.model import Block
from tests.benchmarks.rows import OURS, best_of, row
from tests.fixtures.mlflow_server import start_mlflow_server
from tests.fixtures.postgres import Cluster, find_programs
from tests.run_dirs import make_run
from tests.servers import make_schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow import MlflowClient
    from mlflow.entities import Metric

METRICS = 10
START_MS = 1775822400000
SERVER_RUNS = 8
AT_ONCE = 4
LIMIT = "the limit: raw executemany"
SEQUENTIAL = "log_batch client, sequential"
FOUR = "four log_batch clients"
ALONE = "ours, without facts and files"


def run(quick: bool) -> list[dict[str, Any]]:
    """Return the rows for SQLite, PostgreSQL, the look-up of many runs, and a server."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.disable(logging.WARNING)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        template = folder / "template.db"
        make_schema(f"sqlite:///{template}", artifacts=str(folder / "artifacts"))

        def sqlite() -> str:
            copy = tempfile.mkstemp(dir=folder, suffix=".db")
            os.close(copy[0])
            return f"sqlite:///{shutil.copy(template, copy[1])}"

        rows += _database("sqlite", sqlite, at_least=10, quick=quick)
        rows += _lock_out(sqlite(), quick=quick)
        rows += _look_up(sqlite(), quick=quick)
        rows += _nothing_new(sqlite(), folder / "runs", quick=quick)
        programs = find_programs()
        if programs is not None:
            cluster = Cluster(programs)
            stack.callback(cluster.stop)
            rows += _database("postgresql", cluster.mlflow_database, at_least=5, quick=quick)
        rows += _server(sqlite(), folder / "server", quick=quick)
    logging.disable(logging.NOTSET)
    return rows


def _database(kind: str, fresh: Callable[[], str], *, at_least: float, quick: bool) -> list[dict[str, Any]]:
    """Return one run of a million points, in the deltas that an export would hand over."""
    work = f"points into {kind}"
    points, theirs = (200_000, 10_000) if quick else (1_000_000, 50_000)
    uris = [fresh() for _ in range(2)]
    seconds = best_of(2, lambda: _write(uris.pop(), points))
    client = _client(fresh())
    run_id = client.create_run("0").info.run_id
    metrics = _metrics(theirs)
    theirs_seconds = best_of(1, lambda: _log(client, run_id, metrics))
    again = _metrics(2000)
    return [
        row(work, OURS, seconds, points, "points"),
        row(work, "MlflowClient.log_batch(1000)", theirs_seconds, theirs, "points", at_least=at_least),
        row(
            work,
            "the same, sent again",
            best_of(1, lambda: _log(client, run_id, again)),
            len(again),
            "points",
        ),
        row(work, LIMIT, best_of(1, lambda: _raw(client, run_id, 2 * theirs)), 2 * theirs, "points"),
    ]


def _raw(client: MlflowClient, run_id: str, points: int) -> None:
    """Write prepared rows with the driver's own executemany in one transaction, as the lower bound."""
    part = _block(1 << 40, points // METRICS)
    rows = [
        (name, value, START_MS + 100 * at, run_id, at, False)
        for name, values in zip(part.names, part.values.tolist(), strict=True)
        for at, value in zip(part.step.tolist(), values, strict=True)
    ]
    engine = client._tracking_client.store.engine
    mark = "?" if engine.dialect.name == "sqlite" else "%s"
    statement = f"INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES ({', '.join([mark] * 6)})"
    connection = engine.raw_connection()
    try:
        connection.cursor().executemany(statement, rows)
        connection.commit()
    finally:
        connection.close()


def _lock_out(uri: str, *, quick: bool) -> list[dict[str, Any]]:
    """Return the longest time that MLflow's own store waits for a turn while we write points."""
    client = _client(uri)
    other = client.create_run("0").info.run_id
    done = threading.Event()
    waits: list[float] = []

    def beside() -> None:
        while not done.is_set():
            began = time.perf_counter()
            client.log_metric(other, "m", 1.0, timestamp=len(waits), step=len(waits))
            waits.append(time.perf_counter() - began)

    thread = threading.Thread(target=beside)
    thread.start()
    try:
        _write(uri, 200_000 if quick else 1_000_000)
    finally:
        done.set()
        thread.join()
    work = "longest wait of an MLflow server for a SQLite file that is written to"
    return [row(work, OURS, max(waits), 1, "wait", at_most=1.0, note=f"of {len(waits)} calls")]


def _look_up(uri: str, *, quick: bool) -> list[dict[str, Any]]:
    """Measure reading the cursors of many runs."""
    runs = 100 if quick else 1000
    database = _open(uri)
    for number in range(runs):
        tags = {"mlflow.bridge.uid": f"uid-{number}", "mlflow.bridge.cursor": "{}"}
        database.write(new_run_id("0", f"uid-{number}"), RunUpdate(expected_cursor=None, create=_new(), tags=tags))
    client = _client(uri)
    keys = ["mlflow.bridge.uid", "mlflow.bridge.cursor"]
    work = "cursors of many runs"
    rows = [
        row(work, OURS, best_of(5, lambda: database.runs(keys, experiment_ids=["0"])), runs, "runs"),
        row(work, "MlflowClient.search_runs", best_of(2, lambda: client.search_runs(["0"])), runs, "runs"),
    ]
    database.close()
    return rows


def _nothing_new(uri: str, folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Measure an export of many runs that are all in MLflow already, without the start of MLflow's client."""
    from bridge.exporters import find_exporter
    from bridge.sync.export import export_runs

    runs = 100 if quick else 1000
    for number in range(runs):
        rows = [{"step": step, "loss": 1 / (step + 1)} for step in range(10)]
        make_run(folder / f"run-{number:04}", rows, hparams={"lr": 0.1}, tags=["project:x"])
    _client(uri).search_experiments()

    def export() -> None:
        report = export_runs([folder], find_exporter("mlflow")(tracking_uri=uri, experiment="many"))
        assert not [line for line in report.runs if line.failed]

    export()
    return [row("an export with nothing new", OURS, best_of(3, export), runs, "runs", at_most=1.0)]


def _server(backend: str, folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Export eight runs through a local server, in turn with four clients.

    Ours is a whole export with params, tags, status and files; the clients log only points. The order alternates,
    because the database grows and whoever comes later writes into a larger one.
    """
    points, rounds = (4000, 1) if quick else (25_000, 4)
    total = SERVER_RUNS * points
    runs = folder / "runs"
    for number in range(SERVER_RUNS):
        part = _block(0, points // METRICS)
        rows = [
            {"step": at, **{name: repr(float(part.values[column, at])) for column, name in enumerate(part.names)}}
            for at in range(points // METRICS)
        ]
        make_run(runs / f"run-{number}", rows, hparams={"lr": 0.1})
    server = start_mlflow_server(backend, folder, workers=4)
    best: dict[str, float] = {}
    try:
        client = _client(server.uri)
        metrics = _metrics(points)
        _log(client, client.create_run("0").info.run_id, metrics[:1000])
        ways: dict[str, Callable[[], object]] = {
            OURS: lambda: _export_through(server.uri, runs),
            FOUR: lambda: _clients(server.uri, metrics, AT_ONCE),
            ALONE: lambda: _write_through(server.uri, points),
            SEQUENTIAL: lambda: _clients(server.uri, metrics, 1),
        }
        for number in range(rounds):
            for who in reversed(ways) if number % 2 else ways:
                if number == 0 or who in (OURS, FOUR):
                    best[who] = min(best.get(who, float("inf")), best_of(1, ways[who]))
    finally:
        server.stop()
    work = f"eight runs of {points:,} points through a server"
    # A short run is mostly facts and files, which the clients do not send: what is promised is asked of long ones.
    promised = {} if quick else {SEQUENTIAL: {"at_least": 1.2}, FOUR: {"at_least": 1.0}}
    return [row(work, who, seconds, total, "points", **promised.get(who, {})) for who, seconds in best.items()]


def _write_through(uri: str, points: int) -> None:
    """Measure the exporter's writer on what the clients write: eight runs with only points."""
    from bridge.exporters.mlflow.client import Address, MlflowApi
    from bridge.exporters.mlflow.write_api import ApiWriter

    api = MlflowApi(Address.of(uri))

    def one(_: int) -> None:
        run_id = api.create_run("0", name="a run", start=START_MS, tags={}).run_id
        part = _block(0, points // METRICS)
        names = {name: name for name in part.names}
        change = RunUpdate(expected_cursor=None, blocks=[part], names=names, tags={"mlflow.bridge.cursor": "{}"})
        ApiWriter(api).write(run_id, change)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(SERVER_RUNS)))


def _export_through(uri: str, folder: Path) -> None:
    """Measure a whole export with files and facts, as `bridge export --workers 4` does it."""
    from bridge.exporters import find_exporter
    from bridge.sync.export import Options, export_runs
    from bridge.sync.parallel import Workers

    exporter = find_exporter("mlflow")(tracking_uri=uri, experiment=f"bench-{time.monotonic_ns()}")
    report = export_runs([folder], exporter, Options(workers=Workers(threads=AT_ONCE)))
    assert len(report.runs) == SERVER_RUNS
    assert not [line for line in report.runs if line.failed]


def _clients(uri: str, metrics: list[Metric], at_once: int) -> None:
    client = _client(uri)

    def one(_: int) -> None:
        _log(client, client.create_run("0").info.run_id, metrics)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, range(SERVER_RUNS)))


def _log(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    for at in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[at : at + 1000])


def _write(uri: str, points: int) -> None:
    database = _open(uri)
    run_uuid = new_run_id("0", "uid")
    cursor = None
    rows = (30_000 if database.is_sqlite else 1_000_000) // METRICS
    for start in range(0, points // METRICS, rows):
        part = _block(start, min(rows, points // METRICS - start))
        change = RunUpdate(
            expected_cursor=cursor,
            blocks=[part],
            names={name: name for name in part.names},
            tags={"mlflow.bridge.uid": "uid", "mlflow.bridge.cursor": str(start)},
            create=_new(),
            row=RunRow(status="RUNNING", name="a run", start=START_MS, end=None),
        )
        database.write(run_uuid, change)
        cursor = str(start)
    database.close()


def _block(start: int, rows: int) -> Block:
    step = np.arange(start, start + rows, dtype=np.int64)
    return Block(
        names=tuple(f"train/metric_{number}" for number in range(METRICS)),
        row=step,
        step=step,
        time=START_MS / 1000 + step / 10,
        values=np.random.default_rng(start).random((METRICS, rows)),
        present=np.ones((METRICS, rows), dtype=np.bool_),
    )


def _metrics(points: int) -> list[Metric]:
    from mlflow.entities import Metric

    part = _block(0, points // METRICS)
    return [
        Metric(name, float(part.values[column, at]), START_MS + 100 * at, at)
        for at in range(points // METRICS)
        for column, name in enumerate(part.names)
    ]


def _new() -> NewRun:
    return NewRun(experiment_id="0", name="a run", start=START_MS)


def _open(uri: str) -> Database:
    notes: list[str] = []
    database = Database.open(uri, note=notes.append)
    assert database is not None, notes
    return database


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(uri)
