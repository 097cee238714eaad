"""Exports of many runs, at first and with nothing new, their start-up, and the memory of a verify.

All are whole processes in processor time, with their workers. The first export shows that the time for a run does not
grow with the number of runs.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.options import ExportOptions
from bridge.sync.export import Options
from bridge.sync.follow import follow
from tests.benchmarks.commands import bridge, measure
from tests.benchmarks.rows import OURS, row
from tests.benchmarks.runs import METRICS, make_run, make_runs
from tests.benchmarks.stores import SQLITE, databases

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = 100
IMPORTS = "import click, numpy, pyarrow.csv"
MOST_IMPORTS = {SQLITE: (3, IMPORTS), "PostgreSQL": (1.5, f"{IMPORTS}, sqlalchemy.dialects.postgresql, psycopg2")}
"""A start with nothing new into MLflow as multiples of imports: only a server's database needs SQLAlchemy for it."""

LARGEST_MIB = 600
LOOKS = 5


def run(quick: bool) -> list[dict[str, Any]]:
    """Return all rows, about 10,000 runs and one of 10 million points; `quick` takes fewer of both."""
    with databases() as (folder, kinds):
        count, large = (300, 100_000) if quick else (10_000, 1_000_000)
        runs, few = make_runs(folder / "runs", count, ROWS), make_runs(folder / "few", 100, ROWS)
        make_run(folder / "large" / "run", large)

        def spent(*command: object, times: int = 3) -> float:
            return min(measure(command, folder).processor for _ in range(times))

        scan = bridge("scan", runs)
        spent(*scan)
        warm = spent(*scan)
        rows = [
            row(f"{count:,} runs with nothing new, processor time", "bridge scan", warm, count, "runs"),
            *_starting(few / "run-00000", folder, spent),
        ]
        for kind, fresh in kinds.items():
            target = ["--to", "mlflow", "--tracking-uri", fresh()]
            times, imports = MOST_IMPORTS[kind]
            seconds = spent(sys.executable, "-c", imports, times=5)
            rows.append(row("start-up, processor time", imports, seconds, 1, "starts"))
            for dry in ([], ["--dry-run"]):
                export = bridge("export", few, *target, "-q", *dry)
                spent(*export)
                work = " ".join([f"start-up: 100 runs with nothing new into MLflow in {kind}", *dry])
                rows.append(row(work, OURS, spent(*export, times=5), 1, "starts", at_most=times * seconds))
        targets = {
            "TensorBoard": lambda name: ["--to", "tensorboard", "--logdir", folder / f"tb-{name}"],
            "MLflow in SQLite": lambda name: [
                *["--to", "mlflow", "--experiment"],
                name,
                "--tracking-uri",
                kinds[SQLITE](),
            ],
        }
        for name, make_target in targets.items():
            target = make_target("many")
            small = spent(*bridge("export", few, *make_target("few"), "-q"), times=1)
            export = bridge("export", runs, *target, "-q")
            first = spent(*export, times=1)
            work = f"{count:,} runs into {name}, processor time"
            rows.append(row(work, OURS, first, count, "runs", at_most=small * count / 100))
            rows.append(row(f"100 runs into {name}, processor time", OURS, small, 100, "runs"))
            spent(*export, times=1)  # what the first one wrote in its last two seconds is read once more
            work = f"{count:,} runs with nothing new into {name}, processor time"
            rows.append(row(work, OURS, spent(*export), count, "runs", at_most=6 * warm))
            measure(bridge("export", folder / "large", *target, "-q"), folder)
            used = measure(bridge("verify", runs, folder / "large", *target, "-q"), folder)
            work = f"verify {count:,} runs and one of {large * METRICS:,} points in {name}, processor time"
            rows.append(row(work, OURS, used.processor, count + 1, "runs", mib=used.mib, at_most_mib=LARGEST_MIB))
        return [*rows, _look(runs, folder / "tb-many", count)]


def _starting(run_dir: Path, folder: Path, spent: Callable[..., float]) -> list[dict[str, Any]]:
    """Measure start-up as multiples of `import numpy`, which tells machines apart: 0.12 s on a usual one."""
    numpy = spent(sys.executable, "-c", "import numpy", times=5)
    asked = spent(*bridge("--help"), times=5)
    one = spent(*bridge("export", run_dir, "--to", "tensorboard", "--logdir", folder / "tb-one", "-q"), times=5)
    return [
        row("start-up, processor time", "import numpy", numpy, 1, "starts"),
        row("start-up: bridge --help", OURS, asked, 1, "starts", at_most=2.1 * numpy),
        row("start-up: export of one small run", OURS, one, 1, "starts", at_most=5 * numpy),
    ]


def _look(runs: Path, logdir: Path, count: int) -> dict[str, Any]:
    """Measure one look of `--follow` at finished runs: at most 2 % of one core for 1,000 at the default interval."""
    spent: list[float] = []

    def pause(_seconds: float) -> None:
        spent.append(time.process_time())
        if len(spent) > LOOKS:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        exporter, how = TensorBoardExporter(logdir), ExportOptions()
        follow([runs], exporter, Options(), how, told=lambda _: None, say=lambda _: None, pause=pause)
    seconds = (spent[-1] - spent[0]) / (len(spent) - 1)
    most = 0.02 * ExportOptions().interval * count / 1_000
    work = f"--follow: a look at {count:,} finished runs, processor time"
    return row(work, OURS, seconds, 1, "looks", at_most=most)
