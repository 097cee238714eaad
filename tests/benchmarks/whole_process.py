"""Run `bridge export --to tensorboard` as people do: start-up, growth in points and runs, one and two workers.

These are whole processes, with the peak memory of the largest as the operating system accounts it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.sync.export import Options
from bridge.sync.follow import Following, follow
from tests.benchmarks.memory import launched, most_mib
from tests.benchmarks.rows import OURS, row
from tests.benchmarks.source_memory import write_rows
from tests.benchmarks.tensorboard_writer import make_run
from tests.run_dirs import write_sidecar

METRICS = 10
SMALL_RUN_NUMPYS = 5.0
HELP_NUMPYS = 2.1
"""Start-up is promised as a multiple of `import numpy`, which tells machines apart.

0.6 s and 0.25 s where that takes 0.12 s.
"""
LARGEST_MIB = 600
LOOKS = 5


def run(quick: bool) -> list[dict[str, Any]]:
    """Return all rows; `quick` stops at a million points and at a hundred runs."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        here = Path(folder)
        return [
            *_starting(here / "start"),
            *_growing_in_points(here / "points", (1_000, 10_000, 100_000) if quick else (10**3, 10**5, 10**7)),
            *([] if quick else _one_beside_many(here / "mixed")),
            *_growing_in_runs(here / "runs", (10, 100) if quick else (10, 100, 1_000, 10_000)),
            *_idle_follow(here / "idle", 100 if quick else 1_000),
            *_workers(here / "workers", 20 if quick else 100),
        ]


def _starting(here: Path) -> list[dict[str, Any]]:
    run_dir = make_run(here / "one", 20)
    numpy = _best([sys.executable, "-c", "import numpy"], here)
    small = _best([*_export(run_dir, here / "tb", 1)], here)
    asked = _best([sys.executable, "-m", "bridge", "--help"], here)
    return [
        row("start-up", "import numpy", numpy, 1, "starts"),
        row("start-up: export of one small run", OURS, small, 1, "starts", at_most=SMALL_RUN_NUMPYS * numpy),
        row("start-up: bridge --help", OURS, asked, 1, "starts", at_most=HELP_NUMPYS * numpy),
    ]


def _growing_in_points(here: Path, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Export one run of each size, and the largest again with a rewind in its last row, the worst case."""
    made = []
    for rows in sizes:
        path = write_sidecar(here / f"run{rows}")
        write_rows(path / "metrics.csv", rows)
        made.append(_points(f"export of one run, {rows * METRICS:,} points", path, here, rows))
        if rows < max(sizes):
            shutil.rmtree(path)
    with (path / "metrics.csv").open("a") as file:
        file.write("0.5," * METRICS + "0,1775999999.0\n")
    made.append(_points(f"the same, {rows * METRICS:,} points, the last row goes back to step 0", path, here, rows))
    shutil.rmtree(here)
    return made


def _points(work: str, path: Path, here: Path, rows: int) -> dict[str, Any]:
    seconds, mib = _measured(_export(path, here / "tb", 1), here)
    shutil.rmtree(here / "tb")
    return row(work, OURS, seconds, rows * METRICS, "points", mib=mib, at_most_mib=LARGEST_MIB)


def _one_beside_many(here: Path) -> list[dict[str, Any]]:
    """Export one run of 100 million points beside 10,000 small ones, with one worker per core."""
    count = 10_000
    for number in range(count):
        write_rows(write_sidecar(here / "runs" / f"run{number}") / "metrics.csv", 10)
    write_rows(write_sidecar(here / "runs" / "large") / "metrics.csv", 10**7)
    seconds, mib = _measured(_export(here / "runs", here / "tb", os.cpu_count() or 1), here)
    shutil.rmtree(here)
    work = f"one run of {10**7 * METRICS:,} points beside {count:,} small ones"
    return [row(work, OURS, seconds, count + 1, "runs", mib=mib, at_most_mib=LARGEST_MIB)]


def _growing_in_runs(here: Path, counts: tuple[int, ...]) -> list[dict[str, Any]]:
    made = []
    for count in counts:
        root = here / f"{count}"
        for number in range(count):
            write_rows(write_sidecar(root / f"run{number}") / "metrics.csv", 100)
        seconds, _ = _measured(_export(root, here / f"tb{count}", 1), here)
        made.append(row(f"export of {count:,} runs of 1,000 points", OURS, seconds, count, "runs"))
        seconds, _ = _measured(_export(root, here / f"tb{count}", 1), here)
        made.append(row(f"again, {count:,} runs with nothing new", OURS, seconds, count, "runs"))
    return made


def _idle_follow(here: Path, runs: int) -> list[dict[str, Any]]:
    """Measure the processor time of one look of `--follow` at finished runs.

    2 % of one core at the default interval.
    """
    for number in range(runs):
        write_rows(write_sidecar(here / "runs" / f"run{number}") / "metrics.csv", 10)
    spent: list[float] = []

    def pause(_seconds: float) -> None:
        spent.append(time.process_time())
        if len(spent) > LOOKS:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        exporter = TensorBoardExporter(here / "tb")
        following = Following(pause=pause)
        follow([here / "runs"], exporter, Options(), following, told=lambda _: None, say=lambda _: None)
    seconds = (spent[-1] - spent[0]) / (len(spent) - 1)
    most = 0.02 * Following().interval * runs / 1_000
    return [
        row(f"--follow: a look at {runs:,} finished runs (processor time)", OURS, seconds, 1, "looks", at_most=most)
    ]


def _workers(here: Path, runs: int) -> list[dict[str, Any]]:
    for number in range(runs):
        write_rows(write_sidecar(here / "runs" / f"run{number}") / "metrics.csv", 20_000)
    work = f"{runs} runs of 200,000 points"
    who = {2: OURS, 1: "one worker"}
    return [
        row(work, who[count], _measured(_export(here / "runs", here / f"tb{count}", count), here)[0], runs, "runs")
        for count in who
    ]


def _export(root: Path, logdir: Path, workers: int) -> list[str]:
    return [
        *(sys.executable, "-m", "bridge", "export", str(root), "--to", "tensorboard", "--logdir", str(logdir)),
        *("--quiet", "--workers", str(workers)),
    ]


def _best(command: list[str], folder: Path) -> float:
    return min(_measured(command, folder)[0] for _ in range(5))


def _measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Return a command's wall time in seconds and the peak memory of the largest of its processes in MiB.

    The operating system accounts for the command; we sample its workers many times a second.
    """
    most = 0.0
    account = folder / "account"
    began = time.perf_counter()
    process = psutil.Popen(launched(command, account), cwd=folder, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if time.perf_counter() - began < 2:
            time.sleep(0.002)
            continue
        time.sleep(0.05)
        with contextlib.suppress(psutil.Error):
            most = max([most, *(child.memory_info().rss for child in process.children(recursive=True))])
    seconds = time.perf_counter() - began
    assert process.returncode == 0, command
    return seconds, max(most / (1 << 20), most_mib(account))
