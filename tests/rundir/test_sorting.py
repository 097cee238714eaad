"""Rewinds in files larger than memory are read by ranges of steps, with the same result."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_run, read_whole
from tests.run_dirs import write_sidecar
from tests.rundir.targets import events_of

if TYPE_CHECKING:
    from pathlib import Path


def write_rows(path: Path, step: np.ndarray, values: np.ndarray) -> None:
    """Write a metrics.csv with these columns and small integer values."""
    import pyarrow as pa
    import pyarrow.csv as pacsv

    names = [*(f"m{line}" for line in range(len(values))), "step", "wall_time"]
    times = 1775822400.0 + np.arange(len(step))
    table = pa.table([*values, step, times], names=names)
    pacsv.write_csv(table, path / "metrics.csv", pacsv.WriteOptions(quoting_header="none"))


@pytest.mark.parametrize("kind", ["late", "zero", "all", "same"])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_small_budget_changes_nothing(tmp_path: Path, kind: str, ordered: bool) -> None:
    """A tiny memory budget gives the same points and rows."""
    count = 1600
    chance = np.random.default_rng(0)
    step = np.arange(count)
    if kind == "late":  # back to a step near the end
        step[1400:] -= 280
    elif kind == "zero":  # the last row goes back to the very first step: all others come behind it
        step[-1] = 0
    elif kind == "all":
        step = chance.integers(0, 80, size=count)
    else:  # a counter that never moved
        step[:] = 5
    path = write_sidecar(tmp_path / "run")
    write_rows(path, step, chance.integers(0, 3, size=(3, count)).astype(float))
    run = read_run(path)
    wanted = ReadOptions(ordered=ordered, limit=400)
    plenty = events_of(read_whole(run, ContentOptions(), wanted))
    for budget in (1, 12_000):
        scarce = list(read_whole(run, ContentOptions(), wanted, budget=budget))
        assert events_of(scarce) == plenty
        assert [delta.after.complete for delta in scarce] == [False] * (len(scarce) - 1) + [True]
        assert max(delta.points for delta in scarce) <= 600 + 3


def test_a_clean_file_streams_with_cursors_that_can_be_continued(tmp_path: Path) -> None:
    """Without rewinds each portion's cursor is complete, also if the file exceeds memory."""
    path = write_sidecar(tmp_path / "run")
    write_rows(path, np.arange(4000), np.zeros((3, 4000)))
    run = read_run(path)
    cursors = []
    for budget in (1, 1 << 27):
        deltas = list(read_whole(run, ContentOptions(), ReadOptions(ordered=True, limit=1000), budget=budget))
        assert all(delta.after.complete for delta in deltas)
        assert len(events_of(deltas)) == 4000
        cursors.append([delta.after for delta in deltas])
    assert cursors[0] == cursors[1]


PROGRAM = """
import resource, sys
from pathlib import Path
from bridge.options import ContentOptions
from bridge.rundir import read_run, read_whole
from bridge.rundir import ReadOptions
run = read_run(Path(sys.argv[1]))
points = sum(delta.points for delta in read_whole(run, ContentOptions(), ReadOptions(ordered=True), budget=8 << 20))
status = Path("/proc/self/status")
if status.exists():  # ru_maxrss there begins at what the process that started this one had
    most = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
else:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(points, most)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Sorting three million points takes no more memory than the budget."""
    count = 300_000
    step = np.arange(count)
    step[-2:] = [10, 20]
    path = write_sidecar(tmp_path / "run")
    write_rows(path, step, np.arange(10.0 * count).reshape(10, count) % 1000)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True)
    points, most = map(int, done.stdout.split())
    assert points == 10 * (count - 2)
    # What numpy and pyarrow take by themselves, a block of rows, and a few times the budget.
    assert most < 300 << 20
