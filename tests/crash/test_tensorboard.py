"""After exports to TensorBoard are killed, the next one leaves the files of one clean export, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import tensorboard_steps as program

PROJECT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.crash.tensorboard_steps", *arguments]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def number_of_kills(*arguments: str) -> int:
    with start(*arguments) as process:
        said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return int(said)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of one clean export."""
    folder = tmp_path_factory.mktemp("clean")
    program.whole_export(folder)
    return program.content(folder)


@pytest.mark.parametrize(("stride", "kills"), [(3, 25), pytest.param(1, 80, marks=pytest.mark.slow)])
def test_killed_at_steps_that_it_takes(tmp_path: Path, stride: int, kills: int) -> None:
    """An export killed before any system call, new, growing or rebuilding, is repaired by the next.

    The ordinary suite tries every third.
    """
    assert number_of_kills("every", str(tmp_path), str(stride)) > kills


def test_an_export_of_several_runs_is_killed(tmp_path: Path) -> None:
    """An export of several runs, killed before any call: the next one leaves the files of one clean export."""
    assert number_of_kills("several", str(tmp_path), "3") > 20


def test_two_exports_at_once(tmp_path: Path, clean: dict[str, bytes]) -> None:
    """Two processes that export one new run into one log directory make one complete run without a failure."""
    both = [start("export", str(tmp_path)) for _ in range(2)]
    for process in both:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert program.content(tmp_path) == clean
