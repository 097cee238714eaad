"""Many small runs: into TensorBoard, again with nothing new, start-up, and the memory of a verify.

All rows are whole processes, measured in processor time with their workers. A disk's speed says nothing of either side.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.memory import launched, most_mib, processor_seconds
from tests.benchmarks.rows import OURS, row
from tests.benchmarks.source_memory import write_rows
from tests.benchmarks.tensorboard_writer import make_run
from tests.run_dirs import write_sidecar
from tests.servers import make_schema

ROWS = 100
SMALL_ROWS = 10
LARGE_ROWS = 1_000_000
LARGEST_MIB = 600
SCRIPT = """
import csv, pathlib, sys
from torch.utils.tensorboard import SummaryWriter
for run in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    with SummaryWriter(f"{sys.argv[2]}/{run.name}") as writer, open(run / "metrics.csv", newline="") as file:
        for each in csv.DictReader(file):
            step, seconds = int(each.pop("step")), float(each.pop("wall_time"))
            for name, value in each.items():
                writer.add_scalar(name, float(value), step, seconds)
"""
IMPORTS = "import click, numpy, pyarrow.csv"


def run(quick: bool) -> list[dict[str, Any]]:
    """Return all rows; `quick` takes a hundred runs instead of a thousand, and of ten thousand."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        here = Path(folder)
        measure = partial(_measure, here)
        return [
            *_into_tensorboard(here, measure, 100 if quick else 1_000),
            *_again(here, measure, 100 if quick else 10_000, SMALL_ROWS if quick else LARGE_ROWS),
        ]


def _into_tensorboard(here: Path, measure: Any, count: int) -> list[dict[str, Any]]:
    runs = here / "runs"
    for number in range(count):
        make_run(runs / f"run-{number:05}", ROWS)
    work = f"{count:,} runs of {ROWS * 10:,} points into TensorBoard, processor time"
    ours, _ = measure(_bridge("export", runs, "--to", "tensorboard", "--logdir", here / "tb", "-q"))
    theirs, _ = measure([sys.executable, "-W", "ignore", "-c", SCRIPT, str(runs), str(here / "script")])
    # The start of either process takes as long as hundreds of runs.
    promised = {"at_least": 10} if count >= 1_000 else {}
    return [row(work, OURS, ours, count, "runs"), row(work, "SummaryWriter script", theirs, count, "runs", **promised)]


def _again(here: Path, measure: Any, count: int, large: int) -> list[dict[str, Any]]:
    """Measure exports with nothing new beside a scan and beside imports, then verify these runs and a large one."""
    runs, uri = here / "small", f"sqlite:///{here / 'mlflow.db'}"
    for number in range(count):
        make_run(runs / f"run-{number:05}", SMALL_ROWS)
    _age(runs)
    make_schema(uri, artifacts=str(here / "artifacts"))
    scan = ["scan", runs]
    measure(_bridge(*scan))
    warm = min(measure(_bridge(*scan))[0] for _ in range(3))
    imports = min(measure([sys.executable, "-c", IMPORTS])[0] for _ in range(3))
    rows = [
        row(f"{count:,} runs with nothing new, processor time", "bridge scan", warm, count, "runs"),
        row("start-up, processor time", IMPORTS, imports, 1, "starts"),
    ]
    write_rows(write_sidecar(here / "large" / "run") / "metrics.csv", large)
    for name, target in (
        ("TensorBoard", ["--to", "tensorboard", "--logdir", here / "tb-small"]),
        ("MLflow in SQLite", ["--to", "mlflow", "--tracking-uri", uri]),
    ):
        export = _bridge("export", runs, *target, "-q")
        # What the first one wrote in its last two seconds is read by the second one.
        measure(export)
        measure(export)
        again = min(measure(export)[0] for _ in range(3))
        work = f"{count:,} runs with nothing new into {name}, processor time"
        rows.append(row(work, OURS, again, count, "runs", at_most=6 * warm))
        if name != "TensorBoard":
            rows += _starting(here, measure, target, runs, 3 * imports)
        measure(_bridge("export", here / "large", *target, "-q"))
        seconds, mib = measure(_bridge("verify", runs, here / "large", *target, "-q"))
        work = f"verify {count:,} small runs and one of {large * 10:,} points in {name}, processor time"
        rows.append(row(work, OURS, seconds, count + 1, "runs", mib=mib, at_most_mib=LARGEST_MIB))
    return rows


def _starting(here: Path, measure: Any, target: list[Any], runs: Path, most: float) -> list[dict[str, Any]]:
    """Measure an export of 100 of the runs with nothing new, and the plan of one."""
    some = [runs / f"run-{number:05}" for number in range(100)]
    made = []
    for options in ([], ["--dry-run"]):
        export = _bridge("export", *some, *target, "-q", *options)
        measure(export)
        seconds = min(measure(export)[0] for _ in range(3))
        work = " ".join(["start-up: 100 runs with nothing new into MLflow in SQLite", *options])
        made.append(row(work, OURS, seconds, 1, "starts", at_most=most))
    return made


def _age(folder: Path) -> None:
    """Back-date all files below, since files of the last two seconds are not believed to be unchanged."""
    for path in folder.rglob("*"):
        then = path.stat().st_mtime - 10
        os.utime(path, (then, then))


def _bridge(*words: Any) -> list[str]:
    return [sys.executable, "-m", "bridge", *map(str, words)]


def _measure(here: Path, command: list[str]) -> tuple[float, float]:
    """Return a command's processor time in seconds, and the peak memory of its largest process in MiB."""
    account = here / "account"
    environment = os.environ | {"BRIDGE_CACHE_DIR": str(here / "cache"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run(launched(command, account), check=True, cwd=here, env=environment, stdout=subprocess.DEVNULL)
    return processor_seconds(account), most_mib(account)
