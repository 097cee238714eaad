"""After exports to TensorBoard are killed, the next one leaves the files of one clean export, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import tensorboard_steps as program

PROJECT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.crash.tensorboard_steps", *arguments]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def killed_at_random(folder: Path, count: int, seed: int) -> program.Kills:
    """Kill that many exports of a new run at random instants, each repaired by the next, and return the kills."""
    with start("random", str(folder), str(count), str(seed)) as process:
        said, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, said
    return program.Kills(**json.loads(said))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of one clean export."""
    folder = tmp_path_factory.mktemp("clean")
    program.whole_export(folder)
    return program.content(folder)


def test_killed_at_steps_that_it_takes(tmp_path: Path) -> None:
    """An export killed before any system call, new, growing or rebuilding, is repaired by the next.

    This run tries every third.
    """
    with start("every", str(tmp_path), "3") as process:
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert int(said) > 25


def test_killed_while_several_runs_are_written_together(tmp_path: Path) -> None:
    """Runs of one batch, killed before any call: the next export ends with the files of one clean export."""
    with start("together", str(tmp_path), "3") as process:
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert int(said) > 20


def test_killed_at_random_instants(tmp_path: Path) -> None:
    """An export killed at a random instant is repaired by the next."""
    kills = killed_at_random(tmp_path, 20, seed=4)
    assert kills.landed == 20
    assert kills.midway >= 10


def test_two_exports_at_once(tmp_path: Path, clean: dict[str, bytes]) -> None:
    """Two processes that export one new run into one log directory make one complete run without a failure."""
    both = [start("export", str(tmp_path)) for _ in range(2)]
    for process in both:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert program.content(tmp_path) == clean


@pytest.mark.slow
def test_killed_at_really_every_step(tmp_path: Path) -> None:
    """An export killed before every single system call is repaired by the next."""
    with start("every", str(tmp_path), "1") as process:
        said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert int(said) > 80


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_two_hundred_random_instants(tmp_path: Path) -> None:
    """Two hundred exports killed at random instants, three quarters in mid-export, are repaired by the next."""
    kills = killed_at_random(tmp_path, 200, seed=200)
    assert kills.landed == 200
    assert kills.midway >= 150
    assert set(kills.places) >= set(range(0, program.BEFORE_DELTAS, program.DELTA))
