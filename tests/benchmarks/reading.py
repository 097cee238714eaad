"""Read run directories: metrics.csv and event files beside other readers, an append, and the walk over many runs."""

from __future__ import annotations

import csv
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.csv as pacsv

from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, discover, read_delta, read_run, read_whole
from tests.benchmarks.commands import measure
from tests.benchmarks.rows import OURS, best_of, row
from tests.benchmarks.runs import METRICS, REWIND, make_run
from tests.rundir.event_writing import START, write_events

if TYPE_CHECKING:
    from bridge.model import Run

WANTED = ReadOptions(ordered=True, limit=10_000_000)
READ_EVENTS = """
import sys
from pathlib import Path
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_run, read_whole
run = read_run(Path(sys.argv[1]))
print(sum(delta.points for delta in read_whole(run, ContentOptions(), ReadOptions(ordered=True))))
"""


def run(quick: bool) -> list[dict[str, Any]]:
    """Return all rows; `quick` makes the large files smaller."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        here = Path(folder)
        return [
            *_parsing(here),
            *_event_files(here, 20_000),
            _memory_of_events(here, 100_000 if quick else 1_000_000),
            _appending(here, 300_000 if quick else 3_000_000),
            *_walking(here, 10_000),
        ]


def _parsing(here: Path) -> list[dict[str, Any]]:
    """Measure parsing; ours includes the overlap rule, digest and times, and the others only parse."""
    run = read_run(make_run(here / "parsing", 100_000, digits=4))
    file, points = run.path / "metrics.csv", 100_000 * METRICS
    work = f"metrics.csv of {points:,} points to columns"

    def dict_reader() -> None:
        with file.open(newline="") as stream:
            for each in csv.DictReader(stream):
                for value in each.values():
                    float(value)

    return [
        row(work, OURS, best_of(7, lambda: read_delta(run, None, ContentOptions(), WANTED)), points, "points"),
        row(work, "csv.DictReader", best_of(1, dict_reader), points, "points", at_least=5),
        row(work, "pandas", best_of(3, lambda: pd.read_csv(file)), points, "points"),
        row(work, "pyarrow.csv, the file at once", best_of(7, lambda: pacsv.read_csv(file)), points, "points"),
    ]


def _event_files(here: Path, points: int) -> list[dict[str, Any]]:
    """Measure event files to columns; ours includes the overlap rule, and the others only parse."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder = here / "events"
    writer = EventFileWriter(str(folder))
    for number in range(points):
        event = Event(wall_time=START + number, step=number // 8)
        event.summary.value.add(tag=f"metric/{number % 8}", simple_value=number / 7)
        writer.add_event(event)
    writer.close()
    (file,) = folder.iterdir()
    run = read_run(folder)
    work = f"event file of {points:,} points to columns"

    def accumulate() -> None:
        EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()

    def raw() -> None:
        for _ in RawEventFileLoader(str(file)).Load():
            pass

    return [
        row(work, OURS, best_of(7, lambda: list(read_whole(run, ContentOptions(), WANTED))), points, "points"),
        row(work, "EventAccumulator", best_of(1, accumulate), points, "points", at_least=15),
        row(work, "RawEventFileLoader", best_of(1, raw), points, "points", at_least=10),
    ]


def _memory_of_events(here: Path, count: int) -> dict[str, Any]:
    points = ((f"metric/{number % 8}", number // 8, number / 7, START + number) for number in range(count))
    os.utime(write_events(here / "many-events", 0, points), (START, START))
    used = measure([sys.executable, "-c", READ_EVENTS, here / "many-events"], here)
    assert int(used.output) == count
    work = f"event file of {count:,} points, in a process of its own"
    return row(work, OURS, used.seconds, count, "points", mib=used.mib, at_most_mib=300)


def _appending(here: Path, rows: int) -> dict[str, Any]:
    """Measure the reading of one new row in a large file."""
    path = make_run(here / "appending", rows, digits=4)
    cursor, wanted = None, ReadOptions(ordered=True)
    run = read_run(path)
    while True:
        delta = read_delta(run, cursor, ContentOptions(), wanted)
        cursor = delta.after
        if not delta.more:
            break
    size = (path / "metrics.csv").stat().st_size
    with (path / "metrics.csv").open("a") as file:
        file.write(REWIND.replace(",0,", f",{rows},"))
    grown: Run = read_run(path)
    seconds = best_of(9, lambda: read_delta(grown, cursor, ContentOptions(), wanted))
    return row(f"one row more in a file of {size >> 20} MiB", OURS, seconds, 1, "appends", at_most=0.05)


def _walking(here: Path, runs: int) -> list[dict[str, Any]]:
    """Find all run directories of a tree."""
    root = here / "tree"
    for number in range(runs):
        folder = root / f"{number // 100:03d}" / f"{number:05d}"
        for inner in ("media/images", "checkpoints"):
            (folder / inner).mkdir(parents=True)
        (folder / "sidecar.json").touch()
    work = f"finding {runs:,} run directories"
    return [
        row(work, OURS, best_of(3, lambda: list(discover([root]))), runs, "runs"),
        row(work, "Path.rglob", best_of(1, lambda: list(root.rglob("sidecar.json"))), runs, "runs", at_least=2),
    ]
