"""Exports into TensorBoard that are killed: the next one ends with the files of one clean export, byte for byte."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crash import tensorboard_steps as program

PROJECT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.crash.tensorboard_steps", *arguments]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_and_heal(folder: Path, clean: dict[str, bytes], instant: float) -> bool:
    """Kill an export `instant` seconds after it began, then export again; whether it was killed in time."""
    with start("export", str(folder)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        # The instant is the point of the test, so it is waited for by the clock.
        end = time.perf_counter() + instant
        while time.perf_counter() < end and process.poll() is None:
            pass
        process.kill()
    program.export(folder, program.BEFORE_DELTAS, size=2_500)
    assert program.content(folder) == clean
    return process.returncode != 0


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one clean export."""
    folder = tmp_path_factory.mktemp("clean")
    program.export(folder, program.BEFORE_DELTAS, size=2_500)
    return program.content(folder)


def test_killed_at_steps_that_it_takes(tmp_path: Path) -> None:
    """Whichever call of the operating system an export dies before, new, growing or rebuilding: the next heals it.

    Every third is tried here.
    """
    with start("every", str(tmp_path), "3") as process:
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert int(said) > 25


def test_killed_at_random_instants(tmp_path: Path, clean: dict[str, bytes]) -> None:
    """Killed in the middle of whatever it does, written half or not."""
    instants = random.Random(4)
    killed = [kill_and_heal(tmp_path / str(number), clean, instants.uniform(0.0, 0.1)) for number in range(6)]
    assert any(killed)


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
def test_killed_at_two_hundred_random_instants(tmp_path: Path, clean: dict[str, bytes]) -> None:
    """As above, two hundred times."""
    instants = random.Random(200)
    killed = [kill_and_heal(tmp_path / str(number), clean, instants.uniform(0.0, 0.1)) for number in range(200)]
    assert sum(killed) > 40
