"""A target's own user interface as a child process: started, waited for, ended."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import TargetUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.exporters.contract import Interface

__all__ = ["free_port", "serve", "tunnel"]

START_TIMEOUT = 120.0
"""Seconds within which a user interface must answer; a first start on a slow shared file system takes long."""

END_TIMEOUT = 10.0
"""Seconds that a user interface gets to end by itself before it is killed."""


def free_port(wanted: int | None, *, usual: int) -> int:
    """`wanted`, which must be free (else a UsageError); without it `usual`, or any free port where that is taken."""
    for port in (wanted,) if wanted is not None else (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found = int(probe.getsockname()[1])
                _reserve(found)
                return found
    raise UsageError(f"Port {wanted} is taken.", hint="Leave --port out to take a free one.")


_RESERVED: list[int] = []
"""The locks of this process's ports, held for as long as it lives."""


def _reserve(port: int) -> None:
    """Keep `port` from other views that start at this moment: each would take the other's page for its own.

    Raises OSError where another one has it.
    """
    if sys.platform == "win32":
        return
    import fcntl

    lock = os.open(
        Path(tempfile.gettempdir()) / f"registry-bridge-{os.getuid()}-port-{port}", os.O_RDWR | os.O_CREAT, 0o600
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    _RESERVED.append(lock)


def tunnel(port: int) -> str:
    """The line that makes `port` of this machine reachable from a person's own one."""
    named = socket.getfqdn()
    # Where the machine's own list of names puts it under localhost, that is its name for nobody else.
    host = socket.gethostname() if named.startswith("localhost") else named
    return f"ssh -N -L {port}:127.0.0.1:{port} {getpass.getuser()}@{host}"


@contextlib.contextmanager
def serve(interface: Interface, log: Path) -> Iterator[None]:
    """Start the server of `interface`, wait until it answers, and end it with all its children afterwards.

    What it prints goes to the file `log`. Raises TargetUnavailableError, with its last words, where it does not come up.
    """
    if not interface.argv:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches us alone, and we can end it with everything that it started.
        process = subprocess.Popen(  # noqa: S603 - the command line is the exporter's own
            interface.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **interface.environment},
            start_new_session=True,
        )
    try:
        _await(interface, process, log)
        yield
    finally:
        _end(process)


def _await(interface: Interface, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if _answers(interface.probe):
            return
        time.sleep(0.1)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
    raise TargetUnavailableError(
        f"{interface.argv[0]} did not come up at {interface.probe}.", hint=f"Its last words (all in {log}):\n{last}"
    )


def _answers(probe: str) -> bool:
    try:
        with urllib.request.urlopen(probe, timeout=5) as answer:  # noqa: S310 - an http address of ours
            return bool(answer.status == 200)
    except OSError:  # a URLError is one too
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT)
            break
    # The server itself is gone; what it had started and left behind goes with it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
