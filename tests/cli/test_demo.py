"""`bridge demo` refuses, repeats and stops cleanly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from bridge.demo import train_demo
from tests.cli.calling import spawn

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    """`bridge demo` refuses a folder with other files, changes nothing, and suggests what to do."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    done = spawn("demo", "mine", cwd=tmp_path, code=2)
    assert done.stderr.splitlines()[-2:] == [
        "Error: mine is not empty, and does not hold the demo's runs.",
        "Hint: Name another directory (bridge demo DIR), or remove this one.",
    ]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_second_time_nothing_is_trained(demo_runs: Path) -> None:
    """Where the demo's runs are complete, the command reports that and leaves them unchanged."""
    before = {path: path.stat().st_mtime_ns for path in demo_runs.rglob("*")}
    done = spawn("demo", "demo-runs", "--json", cwd=demo_runs.parent)
    told = json.loads(done.stdout)
    assert (told["trained"], len(told["runs"])) == (False, 7)
    assert "Training" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in demo_runs.rglob("*")} == before


def test_ctrl_c_leaves_nothing_half_done(tmp_path: Path) -> None:
    """Ctrl-C during training ends the processes, removes what was made, and exits with 130."""
    command = [sys.executable, "-m", "bridge", "demo", "runs"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        while not (children := psutil.Process(demo.pid).children()):
            assert demo.poll() is None
            time.sleep(0.05)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=60) == 130
    assert not (tmp_path / "runs").exists()
    assert [child for child in children if child.is_running()] == []


def test_ctrl_c_while_a_training_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C that comes before the new process is known ends it as well."""
    started: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def interrupted(*command: Any, **how: Any) -> subprocess.Popen[str]:
        started.append(start(*command, **how))
        signal.raise_signal(signal.SIGINT)
        return started[-1]

    monkeypatch.setattr("bridge.demo.subprocess.Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_demo(tmp_path / "runs", say=lambda text: None)
    assert [child.returncode for child in started] == [-signal.SIGKILL]
    assert not (tmp_path / "runs").exists()
