"""A signal to a real export with workers ends everything at once, without a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.proxy import Fault
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fixtures.proxy import FaultyProxy

ROOT = Path(__file__).parents[1]

INTERRUPTED = "\nInterrupted.\n"
"""What the command says, below the terminal's ^C."""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield an export in its own process group, whose two workers each have a run that takes a minute."""
    for name in "abcd":
        make_run(tmp_path / "runs" / name, [{"step": 0, "loss": 1.0}])
    at_work = tmp_path / "at work"
    at_work.mkdir()
    command = [sys.executable, "-m", "tests.slow_program", str(at_work), "export", str(tmp_path / "runs")]
    with subprocess.Popen(
        [*command, "--to", "tensorboard", "--workers", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            wait_until(lambda: len(list(at_work.iterdir())) == 2)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def alive(group: int) -> list[str]:
    """Return the running processes of a group; a zombie has ended."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [row[-1] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_an_export_ends_its_workers_too(slow: subprocess.Popen[str], number: signal.Signals) -> None:
    """SIGTERM, SIGINT and SIGHUP end an export and all its processes with 130 within two seconds."""
    slow.send_signal(number)
    began = time.monotonic()
    out, err = slow.communicate(timeout=20)
    assert (slow.returncode, out, err) == (130, "", INTERRUPTED)
    assert time.monotonic() - began < 2
    wait_until(lambda: alive(slow.pid) == [], 2)


def test_ctrl_c_in_a_terminal_prints_no_traceback(slow: subprocess.Popen[str]) -> None:
    """A SIGINT to the whole group, as a terminal sends it, is answered by the command alone."""
    os.killpg(slow.pid, signal.SIGINT)
    out, err = slow.communicate(timeout=20)
    assert (slow.returncode, out, err) == (130, "", INTERRUPTED)
    wait_until(lambda: alive(slow.pid) == [], 2)


def test_workers_end_with_a_parent_that_was_killed(slow: subprocess.Popen[str]) -> None:
    """Workers end after a SIGKILL of the command."""
    slow.kill()
    assert slow.wait(20) == -signal.SIGKILL
    wait_until(lambda: alive(slow.pid) == [], 5)


def test_a_server_that_says_nothing_holds_no_follower_back(tmp_path: Path, faulty_proxy: FaultyProxy) -> None:
    """SIGTERM ends a follow within two seconds while several requests wait."""
    for name in "abc":
        make_run(tmp_path / "runs" / name, [{"step": 0, "loss": 1.0}])
    faulty_proxy.plan(Fault.SILENT, path="log-batch", times=1000)
    command = [sys.executable, "-m", "bridge", "export", "runs", "--to", "mlflow", "--tracking-uri", faulty_proxy.uri]
    with subprocess.Popen(
        [*command, "--experiment", "silent", "--follow"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(lambda: faulty_proxy.seen["runs/log-batch"] >= 2)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, INTERRUPTED)
    assert time.monotonic() - began < 2


DEAF = """
import os, signal, sys
from bridge.sync import follow


class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigpending()  # Python looks for signals between two calls


look = follow._Follower.look
follow._Follower.look = lambda *arguments: (Deaf(), look(*arguments))[1]
from bridge.__main__ import main
main()
"""
"""A follower that is told to stop while Python runs a destructor, which lets no exception out."""


def test_a_signal_that_python_drops_ends_a_follow_too(tmp_path: Path) -> None:
    """A signal whose exception a destructor swallows takes effect before the next pause."""
    make_run(tmp_path / "run", [{"step": 0, "loss": 1.0}])
    command = [sys.executable, "-c", DEAF, "export", "run", "--to", "tensorboard", "--logdir", "tb", "--follow"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert "Exception ignored in: <function Deaf.__del__" in done.stderr
    assert (done.returncode, done.stderr[-len(INTERRUPTED) :]) == (130, INTERRUPTED)
