"""Run the recipes of docs/how-to/slurm.md in bash with SLURM's variables and an `srun`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.calling import call
from tests.docs.blocks import blocks_of

ROOT = Path(__file__).parents[2]

TRAINING = """
import sys, time
from pathlib import Path
from tests.run_dirs import make_run, write_metrics, write_sidecar

run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
uid = "-".join(run.parts)
make_run(run, [{"step": step, "loss": step / 8} for step in range(4)], status="running", uid=uid)
end = time.monotonic() + 60
while "--follow" in sys.argv and not list(Path("tb_logs").rglob(f"{run.name}/**/*tfevents*")):
    assert time.monotonic() < end, "nobody follows"
    time.sleep(0.05)
write_metrics(run, (), [[step / 8, step, 1775822400.0 + step] for step in range(4, 7)], append=True)
write_sidecar(run, status="completed", uid=uid)
sys.exit(7 if "--fail" in sys.argv else 0)
"""
"""A training that goes on once its first rows have been exported, if it is followed, and logs three more at its end."""


INTERRUPTED = "\nInterrupted.\n"
"""What a follower says when it is told to end."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the page's scripts, a training, and an `srun` that runs its arguments."""
    for block in blocks_of(ROOT / "docs" / "how-to" / "slurm.md"):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
    (tmp_path / "train.py").write_text(TRAINING)
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/bash\nexec "$@" $TRAINING_OPTIONS\n')
    srun.chmod(0o755)
    return tmp_path


def start(folder: Path, script: str, **variables: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    mine = {
        key: value for key, value in os.environ.items() if not key.startswith(("BRIDGE_", "SLURM_", "MLFLOW_TRACK"))
    }
    return subprocess.Popen(
        ["bash", script],
        cwd=folder,
        env=mine | {"PATH": path, "PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, script: str, **variables: str) -> tuple[int, str]:
    with start(folder, script, **variables) as process:
        out, _ = process.communicate(timeout=120)
    return process.returncode, out


def verified(folder: Path, *target: str) -> str:
    """Return the totals of a strict verify."""
    with contextlib.chdir(folder):
        code, out, err = call("verify", "runs", *target, "--strict", BRIDGE_CACHE_DIR=str(folder / "cache"))
    assert code == 0, err
    return out.splitlines()[-1]


def test_a_job_that_is_followed_arrives_whole(folder: Path) -> None:
    """The follower waits for the run and sends its rows, and the last export sends its end.

    The exit code is the training's.
    """
    options = {"TRAINING_OPTIONS": "--follow --fail"}
    assert run(folder, "train-and-follow.sbatch", SLURM_JOB_ID="55", **options) == (7, INTERRUPTED)
    assert "1 =" in verified(folder, "--to", "tensorboard", "--logdir", "tb_logs")


def test_the_tasks_of_an_array_follow_at_once(folder: Path) -> None:
    """Each task's run directory arrives complete in one target."""
    tasks = [
        start(
            folder, "train-and-follow.sbatch", TRAINING_OPTIONS="--follow",
            SLURM_JOB_ID=f"7{task}", SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID=str(task),
        )
        for task in range(2)
    ]  # fmt: skip
    assert [(task.communicate(timeout=120)[0], task.returncode) for task in tasks] == [(INTERRUPTED, 0)] * 2
    assert sorted(path.name for path in (folder / "runs" / "70").iterdir()) == ["0", "1"]
    assert "2 =" in verified(folder, "--to", "tensorboard", "--logdir", "tb_logs")


def test_an_epilog_sends_its_own_run_and_a_follower_all_others(folder: Path, sqlite_template: Path) -> None:
    """The epilog of an array's task exports its run to MLflow.

    The job that follows ends when each run has completed.
    """
    uri = f"sqlite:///{shutil.copy(sqlite_template, folder / 'mlflow.db')}"
    task = {"SLURM_JOB_ID": "71", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "1"}
    assert run(folder, "train.sbatch", SLURM_JOB_ID="55") == (0, "")
    assert run(folder, "train.sbatch", **task) == (0, "")
    code, sent = run(folder, "epilog.sh", MLFLOW_TRACKING_URI=uri, **task)
    assert (code, "55" in sent) == (0, False), sent
    code, sent = run(folder, "follow.sbatch", MLFLOW_TRACKING_URI=uri)
    assert (code, "/55: new, 7 points" in sent, "/1:" in sent) == (0, True, False), sent
    assert "2 =" in verified(folder, "--to", "mlflow", "--tracking-uri", uri, "--experiment", "digits")


def test_an_epilog_fails_for_a_mistake_alone(folder: Path) -> None:
    """An unreachable target fails no job, and a wrong option does."""
    run(folder, "train.sbatch", SLURM_JOB_ID="55")
    away = {"SLURM_JOB_ID": "55", "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'nowhere' / 'mlflow.db'}"}
    code, out = run(folder, "epilog.sh", **away)
    assert (code, "Error" in out) == (0, True)
    script = folder / "epilog.sh"
    script.write_text(script.read_text().replace("--experiment", "--experimnt"))
    assert run(folder, "epilog.sh", **away)[0] == 1
