"""Many small runs into MLflow, beside a plain script of MLflow's own client that logs the same.

Ours is a whole export of run directories. The script reads the same files, and calls `create_run`, `log_batch`,
`log_artifact` for each file and `set_terminated`. Both take turns, each time in the other order, since the machine's
speed drifts. Databases are compared in processor time, since a disk's speed says nothing of either. Imports do not
count.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.rows import OURS, row
from tests.fixtures.mlflow_server import start_mlflow_server
from tests.fixtures.postgres import Cluster, find_programs
from tests.run_dirs import CREATED_S, make_run
from tests.servers import make_schema

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 100
METRICS = 10
AT_ONCE = 4
SCRIPT = "a plain MlflowClient script"
_numbers = count()


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure SQLite, PostgreSQL and a server."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.disable(logging.WARNING)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stack.callback(os.chdir, Path.cwd())
        os.chdir(folder)  # MLflow puts artifacts below the working directory where no server decides
        template = folder / "template.db"
        make_schema(f"sqlite:///{template}", artifacts=str(folder / "artifacts"))
        runs = _make_runs(folder / "runs", 100 if quick else 1000)

        def sqlite() -> str:
            return f"sqlite:///{shutil.copy(template, folder / f'{next(_numbers)}.db')}"

        rows += _database("SQLite", sqlite, runs, at_least=15)
        programs = find_programs()
        if programs is not None:
            cluster = Cluster(programs)
            stack.callback(cluster.stop)
            rows += _database("PostgreSQL", cluster.mlflow_database, runs, at_least=10)
        server = start_mlflow_server(sqlite(), folder / "server", workers=AT_ONCE)
        stack.callback(server.stop)
        some = _make_runs(folder / "some", 20 if quick else 100)
        ways = {OURS: lambda: _export(server.uri, some, threads=AT_ONCE), SCRIPT: lambda: _script(server.uri, some)}
        work = f"{len(some)} small runs into MLflow through a server"
        # The server's own processor time for a run is nearly the script's, so two cores gain less than twice.
        rows += _in_turn(work, ways, time.perf_counter, len(some), at_least=1)
    logging.disable(logging.NOTSET)
    return rows


def _make_runs(folder: Path, number: int) -> list[Path]:
    """Write finished runs that began an hour apart."""
    paths = [folder / f"run-{at:04}" for at in range(number)]
    for at, path in enumerate(paths):
        start = CREATED_S + 3600 * at
        rows = [
            {"step": step, "wall_time": start + step}
            | {f"train/metric_{number}": 1 / (step + number + 1) for number in range(METRICS)}
            for step in range(ROWS)
        ]
        make_run(path, rows, hparams={"lr": 0.1, "batch": 32, "model.name": "m"}, tags=["project:x"])
    return paths


def _database(kind: str, fresh: Callable[[], str], runs: list[Path], *, at_least: float) -> list[dict[str, Any]]:
    ways = {OURS: lambda: _export(fresh(), runs), SCRIPT: lambda: _script(fresh(), runs)}
    _export(fresh(), runs[:2])  # what is imported and compiled once
    _script(fresh(), runs[:2])
    work = f"{len(runs)} small runs into MLflow in {kind}, processor time"
    return _in_turn(work, ways, time.process_time, len(runs), at_least=at_least)


def _in_turn(
    work: str, ways: dict[str, Callable[[], None]], clock: Callable[[], float], runs: int, *, at_least: float
) -> list[dict[str, Any]]:
    """Measure each way twice by `clock`, once first and once last. The better time counts."""
    best = dict.fromkeys(ways, float("inf"))
    for who in (*ways, *reversed(ways)):
        began = clock()
        ways[who]()
        best[who] = min(best[who], clock() - began)
    promised = {SCRIPT: {"at_least": at_least}}
    return [row(work, who, seconds, runs, "runs", **promised.get(who, {})) for who, seconds in best.items()]


def _export(uri: str, runs: list[Path], *, threads: int | None = None) -> None:
    from bridge.exporters import find_exporter
    from bridge.sync.export import Options, export_runs
    from bridge.sync.parallel import Workers

    exporter = find_exporter("mlflow")(tracking_uri=uri, experiment=f"ours-{next(_numbers)}")
    report = export_runs(runs, exporter, Options(workers=Workers(threads=threads)))
    assert [line.points for line in report.runs] == [ROWS * METRICS] * len(runs), report.runs[0].reason


def _script(uri: str, runs: list[Path]) -> None:
    """Log runs as somebody would who brings them in by hand."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(uri)
    experiment = client.create_experiment(f"script-{next(_numbers)}")
    for path in runs:
        sidecar = json.loads((path / "sidecar.json").read_text())
        metrics = []
        with (path / "metrics.csv").open(newline="") as file:
            for cells in csv.DictReader(file):
                step, timestamp = int(cells.pop("step")), round(float(cells.pop("wall_time")) * 1000)
                metrics += [Metric(key, float(cell), timestamp, step) for key, cell in cells.items() if cell]
        begin, end = metrics[0].timestamp, metrics[-1].timestamp
        run_id = client.create_run(experiment, start_time=begin, run_name=path.name).info.run_id
        params = [Param(key, str(value)) for key, value in sidecar["hparams"].items()]
        client.log_batch(run_id, metrics=metrics, params=params, tags=[RunTag("project", "x")])
        for name in ("hparams.yaml", "metrics.csv", "sidecar.json"):
            client.log_artifact(run_id, str(path / name))
        client.set_terminated(run_id, "FINISHED", end_time=end)
