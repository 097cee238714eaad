"""In real trainings with two processes rank zero alone writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docs.running import run_words
from tests.logger.rows import media, read_rows, sidecar, summary

if TYPE_CHECKING:
    from tests.zygote import Zygote

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_two_processes_write_one_run(tmp_path: Path, heaviest: Zygote, strategy: str) -> None:
    """Each row and image is there once, in one session, with a forked and a started second process.

    What the first process logged before the training and logs after it is there too.
    """
    run_dir = tmp_path / "run"
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in ranks}
    environment["PYTHONPATH"] = str(ROOT)
    command = ["python", str(ROOT / "tests" / "logger" / "ddp_program.py"), str(run_dir), strategy]
    (tmp_path / "here").mkdir()
    assert "of 2 in process" in run_words(command, tmp_path / "here", environment, heaviest)
    rows = read_rows(run_dir)
    assert [(row["step"], "loss" in row, "val" in row) for row in rows] == [
        *[(str(step), True, False) for step in range(4)],
        ("3", False, True),
        ("4", False, False),
    ]
    assert [(event["step"], event["path"]) for event in media(run_dir)] == [
        (step, f"media/rank/{step:08d}_0.png") for step in range(4)
    ]
    found = sidecar(run_dir)
    assert (found["status"], len(found["sessions"]), found["hparams"]) == ("completed", 1, {"seed": 1, "width": 4})
    assert found["summary"].keys() >= {"loss", "val", "final"}
    assert found["checkpoint_path"]
    assert summary(run_dir)["metrics"]["loss"]["count"] == 4
    names = "checkpoints heartbeat hparams.yaml media media.jsonl metrics.csv sidecar.json summary.json"
    assert sorted(path.name for path in run_dir.iterdir()) == names.split()
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["output.log"]
