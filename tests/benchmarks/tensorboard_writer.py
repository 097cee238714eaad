"""From metrics.csv to event files: ours beside torch's SummaryWriter, tensorboardX and tensorboard's own writer."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.exporters.tensorboard.events import encode_block
from bridge.rundir import read_run
from bridge.sync.export import export_runs
from tests.benchmarks.rows import best_of, row
from tests.run_dirs import CREATED_S, write_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

METRICS = 10
ROWS = 100_000
WHOLE = "a whole process: 1 run, 10 metrics"
INSIDE = "metrics.csv to event file: 1 run, 10 metrics"
LIMIT = "the limit: numpy copies the same bytes"
LARGE = "one run that grows 10-fold: time per point"


def run(quick: bool) -> list[dict[str, Any]]:
    """Return all rows. Ours gets a million points even if `quick`, because the promise is about that.

    The peers get fewer.
    """
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        here = Path(folder)
        made = make_run(here / "runs" / "one", ROWS)
        return [
            *_inside(made, here, 2_000 if quick else 20_000),
            *([] if quick else _whole(made, here)),
            *_encoding(ROWS),
            *_many(here, 100 if quick else 1000),
            *_growing(here, (10_000, 100_000) if quick else (100_000, 1_000_000)),
        ]


def make_run(path: Path, rows: int) -> Path:
    """Return a finished run of METRICS metrics in every row."""
    write_sidecar(path)
    names = [f"train/metric_{index}" for index in range(METRICS)]
    values = np.random.default_rng(0).standard_normal((rows, METRICS)).tolist()
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "step", "wall_time"])
        writer.writerows([*each, step, CREATED_S + step * 0.1] for step, each in enumerate(values))
    return path


def _inside(made: Path, here: Path, few: int) -> list[dict[str, Any]]:
    points = ROWS * METRICS
    fresh = _numbered(here / "inside")

    def ours() -> None:
        report = export_runs([made], TensorBoardExporter(next(fresh)))
        assert report.runs[0].points == points

    return [
        row(INSIDE, "ours", best_of(5, ours), points, "points"),
        row(
            INSIDE,
            "torch SummaryWriter",
            _summary_writer(made, next(fresh), few),
            few * METRICS,
            "points",
            at_least=200,
        ),
        row(INSIDE, "tensorboardX", _tensorboardx(made, next(fresh), few), few * METRICS, "points"),
        row(
            INSIDE,
            "EventFileWriter, an event a row",
            _event_writer(made, next(fresh), few),
            few * METRICS,
            "points",
            at_least=25,
        ),
        row(INSIDE, LIMIT, best_of(3, lambda: _copied(here / "inside" / "1", here / "copied")), points, "points"),
    ]


def _copied(logdir: Path, copy: Path) -> None:
    """Write the bytes of the event files from one numpy array into another and to the same disk."""
    for file in logdir.rglob("*tfevents*"):
        held = np.fromfile(file, dtype=np.uint8)
        held.copy().tofile(copy)


def _read(made: Path, rows: int) -> Iterator[dict[str, str]]:
    with (made / "metrics.csv").open(newline="") as file:
        for number, each in enumerate(csv.DictReader(file)):
            if number == rows:
                return
            yield each


def _summary_writer(made: Path, logdir: Path, rows: int) -> float:
    from torch.utils.tensorboard import SummaryWriter

    began = time.perf_counter()
    with SummaryWriter(str(logdir)) as writer:
        _add_scalars(writer, made, rows)
    return time.perf_counter() - began


def _tensorboardx(made: Path, logdir: Path, rows: int) -> float:
    from tensorboardX import SummaryWriter

    began = time.perf_counter()
    with SummaryWriter(str(logdir)) as writer:
        _add_scalars(writer, made, rows)
    return time.perf_counter() - began


def _add_scalars(writer: Any, made: Path, rows: int) -> None:
    for each in _read(made, rows):
        step, seconds = int(each.pop("step")), float(each.pop("wall_time"))
        for name, value in each.items():
            writer.add_scalar(name, float(value), step, seconds)


def _event_writer(made: Path, logdir: Path, rows: int) -> float:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    began = time.perf_counter()
    logdir.mkdir(parents=True)
    writer = EventFileWriter(str(logdir))
    for each in _read(made, rows):
        step, seconds = int(each.pop("step")), float(each.pop("wall_time"))
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in each.items()]
        writer.add_event(Event(wall_time=seconds, step=step, summary=Summary(value=values)))
    writer.close()
    return time.perf_counter() - began


SCRIPT = """
    import csv, sys
    from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(sys.argv[2]) as writer, open(sys.argv[1], newline="") as file:
        for number, each in enumerate(csv.DictReader(file)):
            if number == int(sys.argv[3]):
                break
            step, seconds = int(each.pop("step")), float(each.pop("wall_time"))
            for name, value in each.items():
                writer.add_scalar(name, float(value), step, seconds)
"""


def _whole(made: Path, here: Path) -> list[dict[str, Any]]:
    fresh = _numbered(here / "whole")
    points = ROWS * METRICS

    def ours() -> None:
        command = [sys.executable, "-m", "bridge", "export", str(made), "--to", "tensorboard", "-q", "--logdir"]
        subprocess.run([*command, str(next(fresh))], check=True, stdout=subprocess.DEVNULL)

    def theirs() -> None:
        script = textwrap.dedent(SCRIPT)
        arguments = [str(made / "metrics.csv"), str(next(fresh)), str(ROWS)]
        subprocess.run([sys.executable, "-W", "ignore", "-c", script, *arguments], check=True)

    return [
        row(WHOLE, "ours", best_of(3, ours), points, "points"),
        row(WHOLE, "SummaryWriter script", best_of(1, theirs), points, "points", at_least=20),
    ]


def _encoding(rows: int) -> list[dict[str, Any]]:
    from bridge.model import Block

    rng = np.random.default_rng(1)
    made = []
    for work, names, density in (
        ("encoding alone, 10 metrics a row", 10, 1.0),
        ("encoding alone, one metric a row", 1, 1.0),
        ("encoding alone, 50 metrics, half of the cells empty at random", 50, 0.5),
    ):
        block = Block(
            names=tuple(f"train/metric_{index}" for index in range(names)),
            row=np.arange(rows),
            step=np.arange(rows) + 20_000,
            time=CREATED_S + np.arange(rows) * 0.1,
            values=rng.standard_normal((names, rows)),
            present=rng.random((names, rows)) < density,
        )
        tags = [name.encode() for name in block.names]
        seconds = best_of(3, lambda block=block, tags=tags: [None for _ in encode_block(block, tags)])
        made.append(row(work, "ours", seconds, block.points, "points"))
    return made


def _many(here: Path, count: int) -> list[dict[str, Any]]:
    for number in range(count):
        make_run(here / "many" / f"run_{number:04d}", 100)
    logdir = here / "many-logs"

    def export() -> None:
        export_runs([here / "many"], TensorBoardExporter(logdir))

    runs = [read_run(path) for path in sorted((here / "many").iterdir())]
    first = best_of(1, export)
    again = best_of(2, export)
    cursors = best_of(2, lambda: TensorBoardExporter(logdir).cursors(runs))
    assert len(runs) == count
    return [
        row(f"{count:,} runs of 1,000 points", "ours", first, count, "runs"),
        row(f"{count:,} runs with nothing new", "ours", again, count, "runs", at_most=1.5),
        row(f"the cursors of {count:,} runs", "ours", cursors, count, "runs", at_most=0.3),
    ]


def _growing(here: Path, sizes: tuple[int, int]) -> list[dict[str, Any]]:
    fresh = _numbered(here / "grown")
    made = []
    for rows in sizes:
        path = make_run(here / "sizes" / f"rows_{rows}", rows)
        seconds = best_of(1, lambda path=path: export_runs([path], TensorBoardExporter(next(fresh))))
        made.append(row(LARGE, f"{rows * METRICS:,} points", seconds, rows * METRICS, "points"))
    return made


def _numbered(folder: Path) -> Iterator[Path]:
    number = 0
    while True:
        number += 1
        yield folder / str(number)
