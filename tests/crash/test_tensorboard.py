"""Exports into TensorBoard that are killed: the next one ends with the files of one clean export, byte for byte."""

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
    """Kill that many exports of a new run at random instants, each healed by the next; how they were hit."""
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
    """Whichever call of the operating system an export dies before, new, growing or rebuilding: the next heals it.

    Every third is tried here.
    """
    with start("every", str(tmp_path), "3") as process:
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert int(said) > 25


def test_killed_at_random_instants(tmp_path: Path) -> None:
    """Killed in the middle of whatever it does, written half or not."""
    kills = killed_at_random(tmp_path, 20, seed=4)
    assert kills.landed == 20
    assert kills.midway >= 10


def test_two_exports_at_once(tmp_path: Path, clean: dict[str, bytes]) -> None:
    """Two processes that export one new run into one log directory end with one run, whole, and neither fails."""
    both = [start("export", str(tmp_path)) for _ in range(2)]
    for process in both:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert program.content(tmp_path) == clean


@pytest.mark.slow
def test_killed_at_really_every_step(tmp_path: Path) -> None:
    """As above, without leaving steps out."""
    with start("every", str(tmp_path), "1") as process:
        said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert int(said) > 80


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_two_hundred_random_instants(tmp_path: Path) -> None:
    """As above, two hundred times, three in four of them in mid-export, between as many deltas as there are."""
    kills = killed_at_random(tmp_path, 200, seed=200)
    assert kills.landed == 200
    assert kills.midway >= 150
    assert set(kills.places) >= set(range(0, program.BEFORE_DELTAS, program.DELTA))
