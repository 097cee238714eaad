"""Growth of one run, in processor time, and the memory of the largest process, in whole commands."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.commands import bridge, measure
from tests.benchmarks.rows import OURS, row
from tests.benchmarks.runs import METRICS, REWIND, make_run, make_runs

LARGEST_MIB = 600
MANY = 1_000


def run(quick: bool) -> list[dict[str, Any]]:
    """Export runs of 10,000 to 100 million points (`quick`: to a million), the last one in three ways."""
    sizes = (10**3, 10**4, 10**5) if quick else (10**3, 10**5, 10**7)
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        here, rows, before = Path(folder), [], None
        for size in sizes:
            path = make_run(here / f"{size}" / "large", size, digits=4)
            made = _export(f"one run of {size * METRICS:,} points, processor time", path.parent, here, size * METRICS)
            if before:  # a point costs no more in a larger run
                made["at_most"] = before["seconds"] / before["amount"] * made["amount"]
            rows.append(made)
            before = made
        make_runs(path.parent, MANY, 10)
        work = f"one run of {size * METRICS:,} points beside {MANY:,} small ones"
        rows.append(_export(work, path.parent, here, size * METRICS, workers=os.cpu_count() or 1))
        with (path / "metrics.csv").open("a") as file:
            file.write(REWIND)
        work = f"one run of {size * METRICS:,} points whose last row goes back to step 0"
        return [*rows, _export(work, path, here, size * METRICS)]


def _export(work: str, runs: Path, here: Path, points: int, *, workers: int = 1) -> dict[str, Any]:
    used = measure(
        bridge("export", runs, "--to", "tensorboard", "--logdir", here / "tb", "-q", "--workers", workers), here
    )
    shutil.rmtree(here / "tb")
    return row(work, OURS, used.processor, points, "points", mib=used.mib, at_most_mib=LARGEST_MIB)
