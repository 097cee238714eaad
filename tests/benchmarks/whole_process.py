"""`bridge export --to tensorboard` as people start it: start-up, growth in points and in runs, one and two workers.

Whole processes, with the memory of the largest among them as the operating system accounts it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.verbs.export import Options
from bridge.verbs.follow import Following, follow
from tests.benchmarks.rows import OURS, row
from tests.benchmarks.source_memory import write_rows
from tests.benchmarks.tensorboard_writer import make_run
from tests.run_dirs import write_sidecar

METRICS = 10
SMALL_RUN_NUMPYS = 5.0
HELP_NUMPYS = 2.1
"""Start-up is promised as a multiple of `import numpy`, which tells machines apart: 0.6 s and 0.25 s where that takes 0.12 s."""
LARGEST_MIB = 600
LOOKS = 5


def run(quick: bool) -> list[dict[str, Any]]:
    """All rows; `quick` stops at a million points, at a hundred runs."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        here = Path(folder)
        return [
            *_starting(here / "start"),
            *_growing_in_points(here / "points", (1_000, 10_000, 100_000) if quick else (10**3, 10**5, 10**7)),
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
    made = []
    for rows in sizes:
        path = write_sidecar(here / f"run{rows}")
        write_rows(path / "metrics.csv", rows)
        seconds, mib = _measured(_export(path, here / f"tb{rows}", 1), here)
        held = "held" if mib < LARGEST_MIB else "MISSED"
        note = f"{mib:.0f} MiB at most, promised {LARGEST_MIB}: {held}"
        points = rows * METRICS
        made.append(row(f"export of one run, {points:,} points", OURS, seconds, points, "points", note=note, mib=mib))
    return made


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
    """The processor time of one look of `--follow` at finished runs: 2 % of one core at the default interval."""
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
    """Seconds of a command as a whole process, and the most memory of it (not of its children), in MiB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return seconds, usage.ru_maxrss / scale
