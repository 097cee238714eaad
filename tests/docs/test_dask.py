"""Run the script of docs/how-to/dask.md with a local cluster in place of SLURM's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.docs.blocks import blocks_of
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from tests.fixtures.dask_cluster import DaskCluster

ROOT = Path(__file__).parents[2]

JOBQUEUE = """
import os


class SLURMCluster:
    def __init__(self, *, cores, processes, memory, walltime):
        pass

    def scale(self, *, jobs):
        self.scheduler_address = os.environ["SCHEDULER_ADDRESS"]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        print("the cluster has ended", flush=True)
"""


def test_the_cluster_lives_as_long_as_the_export(tmp_path: Path, dask_cluster: DaskCluster) -> None:
    """The script exports all runs on its cluster, and only then ends the cluster."""
    (script,) = [block for block in blocks_of(ROOT / "docs" / "how-to" / "dask.md") if block.language == "python"]
    (tmp_path / "script.py").write_text(script.text)
    (tmp_path / "dask_jobqueue.py").write_text(JOBQUEUE)
    for name in "ab":
        make_run(tmp_path / "runs" / name, [{"step": step, "loss": step / 8} for step in range(10)])
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ
        | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        | {"SCHEDULER_ADDRESS": dask_cluster.address},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, totals, _open, last = done.stdout.splitlines()
    assert (totals[:34], last) == ("2 runs exported (2 new): 20 points", "the cluster has ended")
