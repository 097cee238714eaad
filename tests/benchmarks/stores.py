"""Fresh databases and servers of MLflow, and exports into them."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.exporters.contract import find_exporter
from bridge.sync.export import Options, export_runs
from bridge.sync.parallel import Workers
from tests.fixtures.mlflow_server import start_mlflow_server
from tests.fixtures.postgres import Cluster, find_programs
from tests.servers import make_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SQLITE = "SQLite"
AT_ONCE = 4
_numbers = count()


@contextlib.contextmanager
def databases() -> Iterator[tuple[Path, dict[str, Callable[[], str]]]]:
    """Yield a folder, and for SQLite and PostgreSQL a function that makes a database with MLflow's schema.

    The folder is the working directory meanwhile: MLflow puts artifacts below it where no server decides.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.disable(logging.WARNING)
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, logging.NOTSET)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-bench-")))
        stack.enter_context(contextlib.chdir(folder))
        template = folder / "template.db"
        make_schema(f"sqlite:///{template}", artifacts=str(folder / "artifacts"))
        kinds = {SQLITE: lambda: f"sqlite:///{shutil.copy(template, folder / f'{next(_numbers)}.db')}"}
        programs = find_programs()
        if programs is None:
            print("PostgreSQL (initdb, pg_ctl) is missing: its rows are left out", file=sys.stderr)
        else:
            cluster = Cluster(programs)
            stack.callback(cluster.stop)
            kinds["PostgreSQL"] = cluster.mlflow_database
        yield folder, kinds


@contextlib.contextmanager
def server(backend: str, folder: Path) -> Iterator[str]:
    """Yield the address of an MLflow server with four workers on the database `backend`."""
    running = start_mlflow_server(backend, folder, workers=AT_ONCE)
    try:
        yield running.uri
    finally:
        running.stop()


def export(uri: str, runs: list[Path], points: int, *, experiment: str = "", threads: int | None = None) -> None:
    """Export run directories, as `bridge export` does it, by default into a new experiment; `points` arrive."""
    exporter = find_exporter("mlflow")(tracking_uri=uri, experiment=experiment or f"ours-{next(_numbers)}")
    report = export_runs(runs, exporter, Options(workers=Workers(threads=threads)))
    assert not [line.reason for line in report.runs if line.failed]
    assert sum(line.points for line in report.runs) == points
