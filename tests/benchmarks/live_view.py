"""The live view beside `bridge ls` and beside stock servers on an export: lists, filters, charts, memory.

Many small runs, and one of a million rows. Each answer is asked for twice: at first nothing but the registry's cache
is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import psutil

from bridge.exporters.mlflow import MlflowExporter
from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.live import LiveOptions, LiveRuns
from bridge.options import ContentOptions
from bridge.registry import open_registry
from bridge.sync.export import Options, export_runs
from tests.benchmarks.commands import bridge, measure
from tests.benchmarks.rows import OURS, best_of, row
from tests.fixtures.mlflow_server import start_mlflow_server
from tests.fixtures.tensorboard_server import start_tensorboard
from tests.run_dirs import CREATED_S, write_metrics, write_sidecar
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

METRICS = ("train/acc", "train/loss", "val/acc", "val/loss")
CHART_RUNS = 40
LARGEST_MIB = 600
STOCK_MLFLOW = "stock MLflow, exported to SQLite"
API = "ajax-api/2.0/mlflow"


def run(quick: bool) -> list[dict[str, Any]]:
    """List, search and draw 10,000 runs (quick: 1,000), and draw one of a million rows (quick: 100,000)."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        here = Path(folder).resolve()
        with mock.patch.dict(os.environ, {"BRIDGE_CACHE_DIR": str(here / "cache")}):
            count = 1_000 if quick else 10_000
            many = _make_runs(here / "many" / "runs", count, 20)
            rows = [
                *_list(many, count),
                *_charts(here / "few"),
                *_mlflow(many, count),
                *_large(here / "large" / "runs", 100_000 if quick else 1_000_000),
            ]
    # A first request comes once. With few runs most of it is what a server does once, in a tenth of a second.
    for each in rows if quick else ():
        if each["work"].startswith(f"MLflow, {count:,} runs") and each["work"].endswith("first time"):
            each.pop("at_least", None)
    return rows


def _make_runs(root: Path, count: int, rows: int) -> Path:
    """Write finished runs of 4 metrics and 21 params, as RegistryLogger leaves them."""
    for number in range(count):
        path, start = root / f"group-{number // 100:03d}" / f"run-{number:05d}", CREATED_S + number
        hparams = {"lr": 0.1 / (number % 9 + 1), "seed": number}
        hparams |= {f"model.option{option}": number * option % 7 for option in range(19)}
        values = np.sin(number + np.arange(rows)[:, None] + np.arange(len(METRICS)))
        last = dict(zip(METRICS, values[-1].tolist(), strict=True))
        times = {"created_at": start, "ended_at": start + rows, "updated_at": start + rows}
        sessions = [{"user": "ada", "host": "n1", "command": "train.py", "rows": 0}]
        write_sidecar(path, tags=[f"team:{number % 3}"], hparams=hparams, summary=last, sessions=sessions, **times)
        lines = [[*row, step, start + step] for step, row in enumerate(values.tolist())]
        write_metrics(path, [*METRICS, "step", "wall_time"], lines)
        stats = {
            name: {"last": column[-1], "min": min(column), "max": max(column), "count": rows}
            for name, column in zip(METRICS, values.T.tolist(), strict=True)
        }
        (path / "summary.json").write_text(json.dumps({"schema_version": 1, "rows": rows, "metrics": stats}))
        (path / "heartbeat").touch()
    return root


def _ask(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/{path}", data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def _twice(ask: Callable[[], object]) -> list[float]:
    """Return how long requests take, the first and the second time."""
    return [best_of(1, ask) for _ in range(2)]


def _beside(
    work: str, ours: list[float], stock: list[float], who: str, amount: int, unit: str, **memory: float
) -> list[dict[str, Any]]:
    """Return the rows of ours and of the stock server, which may be no faster, for the first and the second time."""
    return [
        made
        for time_, mine, theirs in zip(("first", "second"), ours, stock, strict=True)
        for made in (
            row(f"{work}, {time_} time", OURS, mine, amount, unit, **memory),
            row(f"{work}, {time_} time", who, theirs, amount, unit, at_least=1),
        )
    ]


# TensorBoard


@contextlib.contextmanager
def _live_tensorboard(root: Path) -> Iterator[str]:
    exporter = TensorBoardExporter(root / "none")
    with exporter.serve_live(LiveRuns(LiveOptions(roots=[str(root)])), host="127.0.0.1", port=free_port()) as address:
        yield address.rstrip("/")


def _list(root: Path, count: int) -> list[dict[str, Any]]:
    open_registry(root)
    registry = best_of(3, lambda: open_registry(root))
    seconds = []
    for _ in range(3):
        with _live_tensorboard(root) as address:
            seconds.append(best_of(1, lambda address=address: _ask(address, "data/runs")))
            assert len(_ask(address, "data/runs")) == count
    work = f"TensorBoard: the list of {count:,} runs after a start"
    return [
        row(work, OURS, min(seconds), count, "runs"),
        row(work, "the registry, as bridge ls reads it", registry, count, "runs", at_least=1 / 3),
    ]


def _charts(here: Path) -> list[dict[str, Any]]:
    _make_runs(here / "runs", CHART_RUNS, 1_000)
    with _live_tensorboard(here / "runs") as address:
        names = _ask(address, "data/runs")
        ours = _twice(lambda: _draw(address, names))
    assert not export_runs([here / "runs"], TensorBoardExporter(here / "logs")).failed
    server = start_tensorboard(here / "logs", here)
    try:
        assert server.until(lambda: len(server.get("plugin/scalars/tags") or ()), CHART_RUNS) == CHART_RUNS
        stock = _twice(lambda: _draw(server.uri, _ask(server.uri, "data/runs")))
    finally:
        server.stop()
    work = f"TensorBoard: a chart of {CHART_RUNS} runs of 1,000 rows"
    return _beside(work, ours, stock, "stock TensorBoard, exported and loaded", CHART_RUNS, "curves")


def _draw(address: str, names: Sequence[str]) -> None:
    """Send the requests of one chart, one after another."""
    for name in names:
        query = urllib.parse.urlencode({"run": name, "tag": METRICS[0]})
        assert len(_ask(address, f"data/plugin/scalars/scalars?{query}")) == 1_000


# MLflow


@contextlib.contextmanager
def _live_mlflow(root: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield the address of a live view in MLflow, and a function that returns the memory of its server, in MiB."""
    before = set(psutil.Process().children(recursive=True))
    with MlflowExporter(experiment="runs").serve_live(
        LiveRuns(LiveOptions(roots=[str(root)])), host="127.0.0.1", port=free_port()
    ) as address:
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


def _search(address: str, **query: Any) -> list[Any]:
    path = f"{API}/experiments/get-by-name?experiment_name=runs"
    experiment = _ask(address, path)["experiment"]["experiment_id"]
    runs: list[Any] = _ask(address, f"{API}/runs/search", {"experiment_ids": [experiment], **query})["runs"]
    assert runs
    return runs


def _chart(address: str, run_ids: Sequence[str]) -> list[Any]:
    query = urllib.parse.urlencode({"run_ids": list(run_ids), "metric_key": "val/acc", "max_results": 320}, doseq=True)
    points: list[Any] = _ask(address, f"{API}/metrics/get-history-bulk-interval?{query}")["metrics"]
    assert points
    return points


def _page(address: str) -> dict[str, list[float]]:
    """Return how long each request of MLflow's pages takes, the first and the second time."""
    newest = {"max_results": 100, "order_by": ["attributes.start_time DESC"]}
    metric = {"filter": "metrics.`val/acc` > 0.5 and params.seed != '3'", "order_by": ["metrics.`val/loss` ASC"]}
    queries = {
        "the table": newest,
        "a filter by metric and param": {"max_results": 100, **metric},
        "a filter by tag": {"max_results": 100, "filter": "tags.team = '1'"},
        "1,000 rows": {"max_results": 1_000},
    }
    found = {work: _twice(partial(_search, address, **query)) for work, query in queries.items()}
    ids = [run["info"]["run_id"] for run in _search(address, **newest)[:20]]
    return found | {"a chart of 20 runs": _twice(lambda: _chart(address, ids))}


def _mlflow(root: Path, count: int) -> list[dict[str, Any]]:
    command = bridge("ls", root, "--json")
    ls = min(measure(command, root.parent).seconds for _ in range(3))
    with _live_mlflow(root) as (address, memory):
        listed = best_of(1, lambda: _ask(address, f"{API}/experiments/search", {"max_results": 10}))
        ours, mib = _page(address), memory()
    with _stock_mlflow(root) as address:
        stock = _page(address)
    work = f"MLflow: the experiment of {count:,} runs after a start"
    note = "memory: after all requests below"
    rows = [
        row(work, OURS, listed, count, "runs", mib=mib, at_most_mib=LARGEST_MIB, note=note),
        row(work, "bridge ls, with a warm cache", ls, count, "runs", at_least=1 / 3),
    ]
    for name in ours:
        rows += _beside(f"MLflow, {count:,} runs: {name}", ours[name], stock[name], STOCK_MLFLOW, 1, "requests")
    return rows


def _large(root: Path, rows: int) -> list[dict[str, Any]]:
    _make_runs(root, 1, rows)

    def draw(address: str) -> list[float]:
        (run,) = _search(address)
        return _twice(lambda: _chart(address, [run["info"]["run_id"]]))

    with _live_mlflow(root) as (address, memory):
        ours, mib = draw(address), memory()
    with _stock_mlflow(root) as address:
        stock = draw(address)
    work = f"MLflow: a chart of one run of {rows:,} rows"
    return _beside(work, ours, stock, STOCK_MLFLOW, rows, "points", mib=mib, at_most_mib=LARGEST_MIB)
