"""Read 100 million points of metrics.csv and a million of event files, and measure the time and the peak memory.

The second file rewinds in its last row and so supersedes everything after it: the worst case for an ordered target.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.memory import launched, most_mib
from tests.benchmarks.rows import OURS, row
from tests.run_dirs import write_sidecar
from tests.rundir.event_writing import START, write_events

METRICS = 10
PROMISED_MIB = 600
PROMISED_EVENTS_MIB = 300

_PROGRAM = """
import sys
from pathlib import Path
from bridge.options import ContentOptions
from bridge.rundir import read_run, read_whole
from bridge.rundir import ReadOptions
points = 0
for delta in read_whole(read_run(Path(sys.argv[1])), ContentOptions(), ReadOptions(ordered=True)):
    points += delta.points
print(points)
"""


def run(quick: bool) -> list[dict[str, Any]]:
    """Return three rows; `quick` reads a twentieth."""
    rows = 500_000 if quick else 10_000_000
    made = []
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        path = write_sidecar(Path(folder) / "run")
        write_rows(path / "metrics.csv", rows)
        made.append(_measure(f"{rows * METRICS:,} points, nothing overlaps", path))
        with (path / "metrics.csv").open("a") as file:
            file.write("0.5," * METRICS + "0,1775999999.0\n")
        made.append(_measure(f"{rows * METRICS:,} points, the last row goes back to step 0", path))
        count = rows // 10
        points = ((f"metric/{number % 8}", number // 8, number / 7, START + number) for number in range(count))
        write_events(Path(folder) / "events", 0, points)
        made.append(_measure(f"{count:,} points of event files", Path(folder) / "events", PROMISED_EVENTS_MIB))
    return made


def write_rows(path: Path, rows: int) -> None:
    """Write `rows` rows of METRICS metrics in pieces."""
    import pyarrow as pa
    import pyarrow.csv as pacsv

    names = [*(f"m{line}" for line in range(METRICS)), "step", "wall_time"]
    chance = np.random.default_rng(0)
    schema = pa.schema(
        [*((name, pa.float64()) for name in names[:METRICS]), ("step", pa.int64()), ("wall_time", pa.float64())]
    )
    with pacsv.CSVWriter(path, schema, write_options=pacsv.WriteOptions(quoting_header="none")) as writer:
        for first in range(0, rows, 500_000):
            step = np.arange(first, min(rows, first + 500_000))
            values = [np.round(chance.random(len(step)), 4) for _ in range(METRICS)]
            writer.write_table(pa.table([*values, step, 1775822400.0 + step], schema=schema))


def _measure(work: str, path: Path, at_most_mib: int = PROMISED_MIB) -> dict[str, Any]:
    account = path.parent / "account"
    command = launched([sys.executable, "-c", _PROGRAM, str(path)], account)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    return row(work, OURS, seconds, int(done.stdout), "points", mib=most_mib(account), at_most_mib=at_most_mib)
