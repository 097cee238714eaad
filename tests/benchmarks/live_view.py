"""The live view in TensorBoard: the list of many runs beside `bridge ls`, and charts beside a stock TensorBoard."""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.live import LiveRuns
from bridge.registry import open_registry
from bridge.sync.export import export_runs
from tests.benchmarks.rows import OURS, best_of, row
from tests.benchmarks.scan import make_tree
from tests.benchmarks.tensorboard_writer import make_run
from tests.fixtures.tensorboard_server import start_tensorboard
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

TAG = "train/metric_3"
CHART_RUNS = 40


def run(quick: bool) -> list[dict[str, Any]]:
    """List 10,000 runs (quick: 1,000), and draw one metric of 40 runs of 1,000 rows, twice."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        here = Path(folder).resolve()
        before = os.environ.get("BRIDGE_CACHE_DIR")
        os.environ["BRIDGE_CACHE_DIR"] = str(here / "cache")
        try:
            return [*_list(here / "many", 1_000 if quick else 10_000), *_charts(here)]
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


def _ask(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"{address}/{path}", timeout=300) as answer:
        return json.load(answer)
