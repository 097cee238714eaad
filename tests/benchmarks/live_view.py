"""The live view beside `bridge ls` and beside stock servers on an export: lists, filters, charts, memory.

Many small runs, and one of a million rows. Each answer is asked for twice: at first nothing but the registry's cache
is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from bridge.exporters.mlflow import MlflowExporter
from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.live import LiveRuns
from bridge.options import ContentOptions
from bridge.registry import open_registry
from bridge.sync.export import Options, export_runs
from tests.benchmarks.rows import OURS, best_of, row
from tests.benchmarks.scan import make_tree
from tests.benchmarks.tensorboard_writer import make_run
from tests.fixtures.mlflow_server import start_mlflow_server
from tests.fixtures.tensorboard_server import start_tensorboard
from tests.run_dirs import CREATED_S, write_metrics, write_sidecar
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TAG = "train/metric_3"
CHART_RUNS = 40


def run(quick: bool) -> list[dict[str, Any]]:
    """List, search and draw 10,000 runs (quick: 1,000), and draw one of a million rows (quick: 100,000)."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        here = Path(folder).resolve()
        before = os.environ.get("BRIDGE_CACHE_DIR")
        os.environ["BRIDGE_CACHE_DIR"] = str(here / "cache")
        try:
            count = 1_000 if quick else 10_000
            return [
                *_list(here / "many", count),
                *_charts(here),
                *_mlflow(here / "mlflow", count),
                *_large(here / "large", 100_000 if quick else 1_000_000),
            ]
        finally:
            os.environ.pop("BRIDGE_CACHE_DIR")
            if before is not None:
                os.environ["BRIDGE_CACHE_DIR"] = before


def _list(root: Path, count: int) -> list[dict[str, Any]]:
    make_tree(root, count)
    open_registry(root)
    work = f"the list of {count:,} runs and their metrics, warm"
    registry = best_of(3, lambda: open_registry(root))
    seconds = min(_listed(root, count) for _ in range(3))
    return [
        row(work, OURS, seconds, count, "runs"),
        row(work, "the registry, as bridge ls reads it", registry, count, "runs", at_least=1 / 3),
    ]


def _listed(root: Path, count: int) -> float:
    port = free_port()
    live = LiveRuns([root])
    with TensorBoardExporter(root / "none").serve_live(live, host="127.0.0.1", port=port) as address:
        began = time.perf_counter()
        names = _ask(address.rstrip("/"), "data/runs")
        seconds = time.perf_counter() - began
        assert len(names) == count
    return seconds


def _charts(here: Path) -> list[dict[str, Any]]:
    for number in range(CHART_RUNS):
        make_run(here / "runs" / f"model_{number:02d}", 1_000)
    names = [f"model_{number:02d}" for number in range(CHART_RUNS)]
    with TensorBoardExporter(here / "none").serve_live(
        LiveRuns([here / "runs"]), host="127.0.0.1", port=free_port()
    ) as address:
        _ask(address.rstrip("/"), "data/runs")
        ours = [_drawn(address.rstrip("/"), names) for _ in range(2)]
    assert not export_runs([here / "runs"], TensorBoardExporter(here / "logs")).failed
    server = start_tensorboard(here / "logs", here)
    try:
        assert server.until(lambda: sorted(server.get("plugin/scalars/tags") or ()), names) == names
        stock = [_drawn(server.uri, names) for _ in range(2)]
    finally:
        server.stop()
    works = [f"a chart of {CHART_RUNS} runs of 1,000 rows, {time_}" for time_ in ("first time", "second time")]
    return [
        made
        for work, mine, theirs in zip(works, ours, stock, strict=True)
        for made in (
            row(work, OURS, mine, CHART_RUNS, "curves"),
            row(work, "stock TensorBoard, exported and loaded", theirs, CHART_RUNS, "curves", at_least=0.8),
        )
    ]


def _drawn(address: str, names: Sequence[str]) -> float:
    """Return how long the requests of one chart take, one after another."""
    began = time.perf_counter()
    for name in names:
        points = _ask(address, f"data/plugin/scalars/scalars?{urllib.parse.urlencode({'run': name, 'tag': TAG})}")
        assert len(points) == 1_000
    return time.perf_counter() - began


def _ask(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/{path}", data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


# MLflow

_API = "ajax-api/2.0/mlflow"
_METRICS = ("train/acc", "train/loss", "val/acc", "val/loss")


def _make_runs(root: Path, count: int, rows: int) -> None:
    """Write finished runs of 4 metrics and 21 params, as RegistryLogger leaves them."""
    for number in range(count):
        path, start = root / f"group-{number // 100:03d}" / f"run-{number:05d}", CREATED_S + number
        hparams = {"lr": 0.1 / (number % 9 + 1), "seed": number}
        hparams |= {f"model.option{option}": number * option % 7 for option in range(19)}
        values = np.sin(number + np.arange(rows)[:, None] + np.arange(4))
        last = dict(zip(_METRICS, values[-1].tolist(), strict=True))
        times = {"created_at": start, "ended_at": start + rows, "updated_at": start + rows}
        sessions = [{"user": "ada", "host": "n1", "command": "train.py", "rows": 0}]
        write_sidecar(path, tags=[f"team:{number % 3}"], hparams=hparams, summary=last, sessions=sessions, **times)
        lines = [[*row, step, start + step] for step, row in enumerate(values.tolist())]
        write_metrics(path, [*_METRICS, "step", "wall_time"], lines)
        stats = {
            name: {"last": column[-1], "min": min(column), "max": max(column), "count": rows}
            for name, column in zip(_METRICS, values.T.tolist(), strict=True)
        }
        (path / "summary.json").write_text(json.dumps({"schema_version": 1, "rows": rows, "metrics": stats}))
        (path / "heartbeat").touch()


@contextlib.contextmanager
def _live_mlflow(root: Path) -> Iterator[tuple[str, Any]]:
    """Yield the address of a live view in MLflow, and a function that returns the memory of its server, in MiB."""
    before = set(psutil.Process().children(recursive=True))
    with MlflowExporter(experiment="runs").serve_live(LiveRuns([root]), host="127.0.0.1", port=free_port()) as address:
        servers = set(psutil.Process().children(recursive=True)) - before

        def memory() -> float:
            return max(each.memory_info().rss for each in servers) / 2**20  # the others only start it

        yield address.partition("/#")[0], memory


@contextlib.contextmanager
def _stock_mlflow(root: Path) -> Iterator[str]:
    """Yield the address of a stock server on an export of `root`, whose files stay where they are."""
    database = f"sqlite:///{root.parent}/mlflow.db"
    options = Options(content=ContentOptions(artifacts="none"))
    assert not export_runs([root], MlflowExporter(database, "runs"), options).failed
    server = start_mlflow_server(database, root.parent / "server")
    try:
        yield server.uri
    finally:
        server.stop()


def _searched(address: str) -> dict[str, float]:
    """Return how long each request of MLflow's pages takes, the first and the second time."""
    found: dict[str, float] = {}

    def measured(work: str, path: str, body: Any = None) -> Any:
        for time_ in ("first", "second"):
            began = time.perf_counter()
            answer = _ask(address, f"{_API}/{path}", body)
            found[f"{work}, {time_} time"] = time.perf_counter() - began
        return answer

    experiment = _ask(address, f"{_API}/experiments/get-by-name?experiment_name=runs")["experiment"]["experiment_id"]
    ids = {"experiment_ids": [experiment]}
    newest = {**ids, "max_results": 100, "order_by": ["attributes.start_time DESC"]}
    runs = measured("the table", "runs/search", newest)["runs"]
    metric = {"filter": "metrics.`val/acc` > 0.5 and params.seed != '3'", "order_by": ["metrics.`val/loss` ASC"]}
    assert len(measured("a filter by metric and param", "runs/search", {**ids, "max_results": 100, **metric})["runs"])
    tags = {"filter": "tags.team = '1'"}
    assert len(measured("a filter by tag", "runs/search", {**ids, "max_results": 100, **tags})["runs"])
    measured("1,000 rows", "runs/search", {**ids, "max_results": 1_000})
    measured("a chart of 20 runs", _chart_of([run["info"]["run_id"] for run in runs[:20]]))
    return found


def _chart_of(run_ids: Sequence[str]) -> str:
    query = {"run_ids": list(run_ids), "metric_key": "val/acc", "max_results": 320}
    return f"metrics/get-history-bulk-interval?{urllib.parse.urlencode(query, doseq=True)}"


def _mlflow(here: Path, count: int) -> list[dict[str, Any]]:
    _make_runs(here / "runs", count, 20)
    open_registry(here / "runs")
    command = [sys.executable, "-m", "bridge", "ls", str(here / "runs"), "--json"]
    ls = best_of(3, lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))
    with _live_mlflow(here / "runs") as (address, memory):
        began = time.perf_counter()
        assert len(_ask(address, f"{_API}/experiments/search", {"max_results": 10})["experiments"]) == 1
        listed = time.perf_counter() - began
        ours, mib = _searched(address), memory()
    with _stock_mlflow(here / "runs") as address:
        stock = _searched(address)
    work = f"MLflow: the experiment of {count:,} runs after a start"
    rows = [
        row(work, OURS, listed, count, "runs", mib=mib, at_most_mib=600, note="memory: after all requests below"),
        row(work, "bridge ls, with a warm cache", ls, count, "runs", at_least=1 / 3),
    ]
    for name, seconds in ours.items():
        work = f"MLflow, {count:,} runs: {name}"
        rows += [
            row(work, OURS, seconds, 1, "requests"),
            row(work, "stock MLflow, exported to SQLite", stock[name], 1, "requests", at_least=1),
        ]
    return rows


def _large(here: Path, rows: int) -> list[dict[str, Any]]:
    _make_runs(here / "runs", 1, rows)
    with _live_mlflow(here / "runs") as (address, memory):
        ours = _charts_of_one(address)
        mib = memory()
    with _stock_mlflow(here / "runs") as address:
        theirs = _charts_of_one(address)
    made = []
    for number, (mine, stock) in enumerate(zip(ours, theirs, strict=True)):
        work = f"MLflow: a chart of one run of {rows:,} rows, {('first', 'second')[number]} time"
        made += [
            row(work, OURS, mine, rows, "points", mib=mib, at_most_mib=600),
            row(work, "stock MLflow, exported to SQLite", stock, rows, "points", at_least=1),
        ]
    with TensorBoardExporter(here / "none").serve_live(
        LiveRuns([here / "runs"]), host="127.0.0.1", port=free_port()
    ) as address:
        (name,) = _ask(address.rstrip("/"), "data/runs")
        query = urllib.parse.urlencode({"run": name, "tag": "val/acc"})
        for time_ in ("first", "second"):
            began = time.perf_counter()
            assert len(_ask(address.rstrip("/"), f"data/plugin/scalars/scalars?{query}")) > 0
            seconds = time.perf_counter() - began
            made.append(
                row(f"TensorBoard: a chart of one run of {rows:,} rows, {time_} time", OURS, seconds, rows, "points")
            )
    return made


def _charts_of_one(address: str) -> list[float]:
    experiment = _ask(address, f"{_API}/experiments/get-by-name?experiment_name=runs")["experiment"]["experiment_id"]
    (run,) = _ask(address, f"{_API}/runs/search", {"experiment_ids": [experiment]})["runs"]
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        points = _ask(address, f"{_API}/{_chart_of([run['info']['run_id']])}")["metrics"]
        seconds.append(time.perf_counter() - began)
        assert len(points) == 320
    return seconds
