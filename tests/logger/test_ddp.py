"""In real trainings with two processes rank zero alone writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.logger.rows import media, read_rows, sidecar, summary

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_two_processes_write_one_run(tmp_path: Path, strategy: str) -> None:
    """Each row and image is there once, in one session, with a forked and a started second process."""
    run_dir = tmp_path / "run"
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in ranks}
    command = [sys.executable, "-m", "tests.logger.ddp_program", run_dir, strategy]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of 2 in process" in done.stdout
    rows = read_rows(run_dir)
    assert [(row["step"], "loss" in row, "val" in row) for row in rows] == [
        *[(str(step), True, False) for step in range(4)],
        ("3", False, True),
    ]
    assert [(event["step"], event["path"]) for event in media(run_dir)] == [
        (step, f"media/rank/{step:08d}_0.png") for step in range(4)
    ]
    found = sidecar(run_dir)
    assert (found["status"], len(found["sessions"]), found["hparams"]) == ("completed", 1, {"width": 4})
    assert summary(run_dir)["metrics"]["loss"]["count"] == 4
    names = "checkpoints heartbeat hparams.yaml media media.jsonl metrics.csv sidecar.json summary.json"
    assert sorted(path.name for path in run_dir.iterdir()) == names.split()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
