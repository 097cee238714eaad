"""Many points into MLflow: straight into SQLite and PostgreSQL, and through a server, beside MLflow's own client.

Ours is a whole export with params, tags, status and files; the clients log only points. Both write into copies of the
same fresh database, in the same minute. A client gets fewer points where it would take minutes: its speed does not
depend on how many there are.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from bridge.cli.export import REQUESTS_AT_ONCE
from tests.benchmarks.rows import OURS, best_in_turn, best_of, row
from tests.benchmarks.runs import METRICS, NAMES, REWIND, make_run
from tests.benchmarks.stores import AT_ONCE, SQLITE, databases, export, server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow import MlflowClient
    from mlflow.entities import Metric

START_MS = 1775822400000
PROMISED = {SQLITE: 10, "PostgreSQL": 5}
SERVER_RUNS = 8
SEQUENTIAL = "log_batch client, sequential"
FOUR = "four log_batch clients"


def run(quick: bool) -> list[dict[str, Any]]:
    """Return the rows for SQLite, PostgreSQL and a server."""
    rows: list[dict[str, Any]] = []
    with databases() as (folder, kinds):
        points, theirs = (200_000, 10_000) if quick else (1_000_000, 30_000)
        made = make_run(folder / "run", points // METRICS)
        for kind, fresh in kinds.items():
            rows += _database(kind, fresh, made, points, theirs)
        rows += _waits(kinds[SQLITE](), made, points)
        rows += _server(kinds[SQLITE](), folder, quick=quick)
    return rows


def _database(kind: str, fresh: Callable[[], str], made: Path, points: int, theirs: int) -> list[dict[str, Any]]:
    """Write one run of many points. The limit is the driver's own executemany of prepared rows in one transaction."""
    work = f"one run of many points into {kind}"
    seconds = best_of(2, lambda: export(fresh(), [made], points))
    client = _client(fresh())
    run_id = client.create_run("0").info.run_id
    metrics = _metrics(theirs)
    log_batch = best_of(1, lambda: _log(client, run_id, metrics))
    rows = [(each.key, each.value, each.timestamp, run_id, each.step + points, False) for each in _metrics(2 * theirs)]
    raw = best_of(1, lambda: _executemany(client, rows))
    return [
        row(work, OURS, seconds, points, "points"),
        row(work, "MlflowClient.log_batch(1000)", log_batch, theirs, "points", at_least=PROMISED[kind]),
        row(work, "the limit: raw executemany", raw, len(rows), "points"),
    ]


def _executemany(client: MlflowClient, rows: list[tuple[Any, ...]]) -> None:
    engine = client._tracking_client.store.engine
    mark = "?" if engine.dialect.name == "sqlite" else "%s"
    statement = f"INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES ({', '.join([mark] * 6)})"
    connection = engine.raw_connection()
    try:
        connection.cursor().executemany(statement, rows)
        connection.commit()
    finally:
        connection.close()


def _waits(uri: str, made: Path, points: int) -> list[dict[str, Any]]:
    """Measure how long MLflow's own store waits for a turn at most, while we write points and while we replace them."""
    rows = []
    client = _client(uri)
    other = client.create_run("0").info.run_id
    for work in ("points are written", "a rewind replaces them"):
        done = threading.Event()
        waits: list[float] = []

        def beside(done: threading.Event = done, waits: list[float] = waits) -> None:
            while not done.is_set():
                began = time.perf_counter()
                client.log_metric(other, "m", 1.0, timestamp=len(waits), step=len(waits))
                waits.append(time.perf_counter() - began)

        thread = threading.Thread(target=beside)
        thread.start()
        try:
            export(uri, [made], points, experiment="waits")
        finally:
            done.set()
            thread.join()
        text = f"longest wait of an MLflow server for a SQLite file while {work}"
        rows.append(row(text, OURS, max(waits), 1, "wait", at_most=1.0, note=f"of {len(waits)} calls"))
        with (made / "metrics.csv").open("a") as file:
            file.write(REWIND)
    return rows


def _server(backend: str, folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Export eight runs through a local server, in turn with clients that log fewer."""
    points = 4_000 if quick else 25_000
    runs = [
        make_run(folder / "many" / f"run-{number}", points // METRICS, number=number) for number in range(SERVER_RUNS)
    ]
    metrics = _metrics(points)
    with server(backend, folder / "server") as uri:
        client = _client(uri)
        logged = {OURS: SERVER_RUNS, FOUR: AT_ONCE, SEQUENTIAL: 2}

        def clients(who: str, at_once: int) -> None:
            def one(_: int) -> None:
                _log(client, client.create_run("0").info.run_id, metrics)

            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(one, range(logged[who])))

        ways: dict[str, Callable[[], None]] = {
            OURS: lambda: export(uri, runs, SERVER_RUNS * points, threads=REQUESTS_AT_ONCE),
            FOUR: lambda: clients(FOUR, AT_ONCE),
            SEQUENTIAL: lambda: clients(SEQUENTIAL, 1),
        }
        best = best_in_turn(1 if quick else 2, ways)
    work = f"runs of {points:,} points through a server"
    # A short run is mostly facts and files, which the clients do not send: what is promised is asked of long ones.
    promised = {} if quick else {SEQUENTIAL: {"at_least": 1.2}, FOUR: {"at_least": 1.0}}
    return [
        row(work, who, seconds, logged[who] * points, "points", **promised.get(who, {}))
        for who, seconds in best.items()
    ]


def _log(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    for at in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[at : at + 1000])


def _metrics(points: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [
        Metric(name, 1 / (step + 1), START_MS + 100 * step, step) for step in range(points // METRICS) for name in NAMES
    ]


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(uri)
