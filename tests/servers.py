"""Helpers shared by the fixtures of servers and databases."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from typing import IO, TYPE_CHECKING

from bridge.locks import file_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pytest

_START_WITHIN_S = 120.0


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Return a server in a new session, so that it can be ended with all its children.

    It runs in the folder of `log`, to which its output goes.
    """
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for_server(process: subprocess.Popen[bytes], log: Path, is_up: Callable[[], bool]) -> None:
    """Wait until `is_up` returns True without an OSError; else end the server and show its log."""
    end = time.monotonic() + _START_WITHIN_S
    try:
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError):
                if is_up():
                    return
            time.sleep(0.05)
        raise AssertionError(f"The server did not start:\n{log.read_text()[-4000:]}")
    except BaseException:
        end_server(process)
        raise


def answers(address: str) -> bool:
    """Return True if the address answers. Raises OSError otherwise."""
    with urllib.request.urlopen(address, timeout=5):
        return True


def end_server(process: subprocess.Popen[bytes]) -> None:
    """End a server and all processes of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str, name: str) -> Iterator[Path]:
    """Yield the folder that all processes of a test run share, for a `name` to one of them at a time."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with file_lock(shared / f"{name}.lock"):
        yield shared


@contextlib.contextmanager
def viewing(
    folder: Path,
    *words: object,
    python: Path | str = sys.executable,
    stderr: IO[str] | None = None,
    **environment: str,
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `bridge view` with these words in `folder` while the block runs; yield its address and its process.

    `python` may be that of another environment. Ctrl-C ends the view, unless it has ended by then.
    """
    command = [str(python), "-m", "bridge", "view", *map(str, words), "--no-open"]
    given = os.environ | {"BRIDGE_CACHE_DIR": str(folder / "cache"), "PYTHONUNBUFFERED": "1"} | environment
    with subprocess.Popen(command, cwd=folder, env=given, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.send_signal(signal.SIGINT)  # a kill would leave its server running
            try:
                code = process.wait(60)
            finally:
                process.kill()
        assert code == 0


def make_schema(uri: str, *, artifacts: str) -> None:
    """Let MLflow make its tables in the empty database `uri`, and close all connections."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(uri, artifacts)
    store.engine.dispose()
    # A cached engine would keep a connection to what is about to be copied.
    SqlAlchemyStore._engine_map.pop(uri, None)
