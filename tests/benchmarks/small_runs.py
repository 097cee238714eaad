"""Many small runs, beside plain scripts that log the same with SummaryWriter and with MLflow's own client.

Ours is a whole export of run directories. MLflow's script reads the same files, and calls `create_run`, `log_batch`,
`log_artifact` for each file and `set_terminated`. Files and databases are compared in processor time, since a disk's
speed says nothing of either. MLflow's imports do not count.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from itertools import count
from typing import TYPE_CHECKING, Any

from bridge.cli.export import REQUESTS_AT_ONCE
from tests.benchmarks.commands import bridge, measure
from tests.benchmarks.rows import OURS, best_in_turn, row
from tests.benchmarks.runs import METRICS, SUMMARY_WRITER, make_runs
from tests.benchmarks.stores import SQLITE, databases, export, server
from tests.fixtures.proxy import proxy_to

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = 100
POINTS = ROWS * METRICS
PROMISED = {"TensorBoard": 15, SQLITE: 15, "PostgreSQL": 10}
"""Less than is measured on most machines: four new files a run take ten times as much system time on some."""

PROMISED_BY_A_SERVER = 2
"""Most of both times is MLflow's own work on a run's 1,000 points, so several runs at once gain what the cores give."""

CLIENT = "a plain MlflowClient script"
_numbers = count()


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure TensorBoard, both databases and a server on each; `quick` takes a tenth of the runs."""
    with databases() as (folder, kinds):
        runs = make_runs(folder / "runs", 100 if quick else 1_000, ROWS)
        paths = sorted(runs.iterdir())
        rows = _tensorboard(folder, runs, len(paths))
        for kind, fresh in kinds.items():
            export(fresh(), paths[:2], 2 * POINTS)  # what is imported and compiled once
            rows += _database(kind, fresh, paths)
        for kind, fresh in kinds.items():
            rows += _server(kind, fresh(), folder / f"server-{kind}", paths[: len(paths) // 10])
    # What an export does once takes as long as hundreds of runs.
    for each in rows if quick else ():
        each.pop("at_least", None)
    return rows


def _tensorboard(folder: Path, runs: Path, number: int) -> list[dict[str, Any]]:
    work = f"{number:,} small runs into TensorBoard, whole processes, processor time"
    best = dict.fromkeys((OURS, "SummaryWriter script"), float("inf"))
    for turn in ("first", "second"):
        there = folder / turn
        commands = {
            OURS: bridge("export", runs, "--to", "tensorboard", "--logdir", there / "tb", "-q"),
            "SummaryWriter script": [sys.executable, "-W", "ignore", "-c", SUMMARY_WRITER, runs, there / "script"],
        }
        for who, command in commands.items():
            best[who] = min(best[who], measure(command, folder).processor)
    return [
        row(work, OURS, best[OURS], number, "runs"),
        row(
            work, "SummaryWriter script", best["SummaryWriter script"], number, "runs", at_least=PROMISED["TensorBoard"]
        ),
    ]


def _database(kind: str, fresh: Callable[[], str], paths: list[Path]) -> list[dict[str, Any]]:
    """Measure all runs for ours; the script gets a tenth, since its time for a run does not depend on their number."""
    some = paths[: len(paths) // 10]
    ways = {OURS: lambda: export(fresh(), paths, len(paths) * POINTS), CLIENT: lambda: _script(fresh(), some)}
    best = best_in_turn(2, ways, time.process_time)
    work = f"{len(paths):,} small runs into MLflow in {kind}, processor time"
    return [
        row(work, OURS, best[OURS], len(paths), "runs"),
        row(work, CLIENT, best[CLIENT], len(some), "runs", at_least=PROMISED[kind]),
    ]


def _server(kind: str, backend: str, folder: Path, paths: list[Path]) -> list[dict[str, Any]]:
    """Measure through a server, in wall time, and count the requests of ours in an export that is not measured."""
    with server(backend, folder) as uri:
        with proxy_to(uri) as proxy:
            export(proxy.uri, paths, len(paths) * POINTS, threads=REQUESTS_AT_ONCE)
            requests = sum(proxy.seen.values()) / len(paths)
        ways = {
            OURS: lambda: export(uri, paths, len(paths) * POINTS, threads=REQUESTS_AT_ONCE),
            CLIENT: lambda: _script(uri, paths),
        }
        best = best_in_turn(2, ways)
    work = f"{len(paths)} small runs into MLflow through a server on {kind}"
    return [
        row(work, OURS, best[OURS], len(paths), "runs", note=f"{requests:.1f} requests a run"),
        row(work, f"{CLIENT}, one run after another", best[CLIENT], len(paths), "runs", at_least=PROMISED_BY_A_SERVER),
    ]


def _script(uri: str, paths: list[Path]) -> None:
    """Log runs as somebody would who brings them in by hand."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(uri)
    experiment = client.create_experiment(f"script-{next(_numbers)}")
    for path in paths:
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
