"""`bridge view`: real user interfaces, started, asked over HTTP, and ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def view(folder: Path, runs: Path, to: str) -> Iterator[tuple[str, str]]:
    """A running `bridge view`: the address and the second line that it prints. Ended with Ctrl-C, which is no failure."""
    command = [sys.executable, "-m", "bridge", "view", str(runs), "--to", to, "--no-open"]
    environment = os.environ | {"BRIDGE_CACHE_DIR": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.stdout.readline().strip()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()


def ask(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def is_gone(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return True
    return False


def test_tensorboard_shows_the_runs_and_ends_with_the_command(tmp_path: Path, demo_runs: Path) -> None:
    """The page answers with the demo's runs; after Ctrl-C nothing listens any more."""
    with view(tmp_path, demo_runs, "tensorboard") as (address, tunnel):
        runs = ask(address, "data/runs")
    assert {"preempted", "killed", "diverged", "sweep/lr-0.1"} <= set(runs)
    port = urlsplit(address).port
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in tunnel
    assert is_gone(address)


def test_mlflow_shows_the_runs_in_the_view_for_training(tmp_path: Path, demo_runs: Path) -> None:
    """The link leads to the experiment's runs, the server answers with all of them, and ends with the command."""
    with view(tmp_path, demo_runs, "mlflow") as (link, _):
        address, _, page = link.partition("#")
        experiment = page.split("/")[2]
        found = ask(address, "api/2.0/mlflow/runs/search", {"experiment_ids": [experiment], "max_results": 100})
    names = {run["info"]["run_name"] for run in found["runs"]}
    assert {"preempted", "killed", "diverged", "lr-0.1"} <= names
    assert page.endswith("workflowType=machine_learning")
    assert is_gone(address)


def test_a_second_view_sends_only_what_is_new(tmp_path: Path, demo_runs: Path) -> None:
    """The target is kept in the cache, one for these runs and this selection."""
    for _ in range(2):
        with view(tmp_path, demo_runs, "tensorboard") as (address, _):
            assert ask(address, "data/environment")
    assert len(list((tmp_path / "cache" / "view").iterdir())) == 1


def test_a_port_that_cannot_be_had_is_wrong_usage(tmp_path: Path, demo_runs: Path) -> None:
    """A port that was asked for and is not free stops before a server is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "bridge", "view", str(demo_runs), "--to", "tensorboard", "--port", port]
        environment = os.environ | {"BRIDGE_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"Port {port} is taken." in done.stderr
