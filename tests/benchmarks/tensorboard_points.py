"""From metrics.csv to event files: ours beside torch's SummaryWriter and tensorboard's own writer."""

from __future__ import annotations

import csv
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.sync.export import export_runs
from tests.benchmarks.commands import bridge, measure
from tests.benchmarks.rows import OURS, best_of, row
from tests.benchmarks.runs import METRICS, SUMMARY_WRITER, make_run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = 100_000
POINTS = ROWS * METRICS
INSIDE = f"one run of {POINTS:,} points, metrics.csv to event file"
WHOLE = f"one run of {POINTS:,} points, the whole process"


def run(quick: bool) -> list[dict[str, Any]]:
    """Return all rows. Ours gets a million points even if `quick`, because the promise is about that."""
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        here = Path(folder)
        made = make_run(here / "runs" / "run", ROWS)
        return [*_inside(made, here, 2_000 if quick else 10_000), *([] if quick else _whole(made, here))]


def _inside(made: Path, here: Path, few: int) -> list[dict[str, Any]]:
    from torch.utils.tensorboard import SummaryWriter

    numbers = count()

    def logdir() -> Path:
        return here / f"logs-{next(numbers)}"

    def ours() -> None:
        report = export_runs([made], TensorBoardExporter(logdir()))
        assert report.runs[0].points == POINTS

    def scalars(writer: Any) -> None:
        for step, seconds, values in _read(made, few):
            for name, value in values:
                writer.add_scalar(name, value, step, seconds)
        writer.close()

    def theirs(who: str, seconds: float, **promised: float) -> dict[str, Any]:
        return row(INSIDE, who, seconds, few * METRICS, "points", **promised)

    return [
        row(INSIDE, OURS, best_of(5, ours), POINTS, "points"),
        theirs("torch SummaryWriter", best_of(1, lambda: scalars(SummaryWriter(str(logdir())))), at_least=200),
        theirs("EventFileWriter, an event a row", best_of(1, lambda: _events(logdir(), made, few)), at_least=25),
        row(INSIDE, "the limit: numpy copies the same bytes", best_of(3, lambda: _copy(here)), POINTS, "points"),
    ]


def _read(made: Path, rows: int) -> Iterator[tuple[int, float, list[tuple[str, float]]]]:
    """Yield step, time and values of the first rows, as a script reads them."""
    with (made / "metrics.csv").open(newline="") as file:
        for _, each in zip(range(rows), csv.DictReader(file), strict=False):
            step, seconds = int(each.pop("step")), float(each.pop("wall_time"))
            yield step, seconds, [(name, float(value)) for name, value in each.items()]


def _events(logdir: Path, made: Path, rows: int) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(logdir))
    for step, seconds, each in _read(made, rows):
        values = [Summary.Value(tag=name, simple_value=value) for name, value in each]
        writer.add_event(Event(wall_time=seconds, step=step, summary=Summary(value=values)))
    writer.close()


def _copy(here: Path) -> None:
    """Write the bytes of the event files from one numpy array into another and to the same disk."""
    for file in (here / "logs-0").rglob("*tfevents*"):
        np.fromfile(file, dtype=np.uint8).copy().tofile(here / "copied")


def _whole(made: Path, here: Path) -> list[dict[str, Any]]:
    numbers = count()

    def ours() -> None:
        measure(bridge("export", made, "--to", "tensorboard", "-q", "--logdir", here / f"whole-{next(numbers)}"), here)

    def theirs() -> None:
        measure([sys.executable, "-W", "ignore", "-c", SUMMARY_WRITER, made.parent, here / "script"], here)

    return [
        row(WHOLE, OURS, best_of(3, ours), POINTS, "points"),
        row(WHOLE, "SummaryWriter script", best_of(1, theirs), POINTS, "points", at_least=20),
    ]
