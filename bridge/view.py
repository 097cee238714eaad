"""A target's own user interface as a child process: choose a port, start it, wait for it, end it."""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

from bridge.errors import TargetUnavailableError, UsageError
from bridge.locks import machine_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bridge.exporters.contract import Interface

START_TIMEOUT = 120.0
"""Seconds within which a user interface must answer; a first start on a slow shared file system takes long."""

_GRACE = 1.0
"""Seconds that a server gets to end by itself. TensorBoard uses half a second to remove the file that lists it for
notebooks. MLflow's server would take longer, which nobody waits for: a database or a sidecar is written whole or not.
"""

_RESERVED = contextlib.ExitStack()
"""The locks of the ports that this process chose. They are held until it ends, so that no other view that starts at
the same moment chooses the same port and takes this one's page for its own."""


def free_port(wanted: int | None, *, usual: int, host: str = "127.0.0.1") -> int:
    """Return a free port of `host`: `wanted`, or without it `usual`, or any if that one is taken.

    Raise UsageError if `wanted` is taken, or `host` is no address of this machine.
    """
    for port in (wanted,) if wanted is not None else (usual, 0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                found = int(probe.getsockname()[1])
                _RESERVED.enter_context(_reservation(found))
                return found
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, None):  # None is that of a lock's TimeoutError
                    problem = f"No page can be shown at {host}:{port}: {error.strerror}."
                    raise UsageError(problem, hint="Check --host and --port.") from error
    raise UsageError(f"Port {wanted} is taken.", hint="Leave out --port to use a free one.")


@contextlib.contextmanager
def _reservation(port: int) -> Iterator[None]:
    """Hold a port among the views on this machine while the block runs. Raise OSError if another view has it."""
    if sys.platform == "linux":
        # A name that begins with a zero byte is no file. All users have these names in common, and they go with the
        # process, while the temporary folder may be one of the user's or the job's own.
        with socket.socket(socket.AF_UNIX) as lock:
            lock.bind(f"\0bridge view {port}")
            yield
    else:
        with machine_lock(f"port {port}", wait=0):
            yield


LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
"""The names under which a machine reaches itself alone."""

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - addresses that somebody may give


def host_names(host: str) -> set[str]:
    """Return the names, in lower case, under which browsers may ask a server at `host`."""
    others = () if host in LOCAL_NAMES else (host, socket.gethostname(), socket.getfqdn(), *_own_addresses())
    return {*LOCAL_NAMES, *map(str.lower, others)}


def _own_addresses() -> set[str]:
    """Return the addresses of this machine, as far as they are known without asking every network card."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        found |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))  # nothing is sent
            found.add(str(probe.getsockname()[0]))
    return found


def page_address(host: str, port: int) -> str:
    """Return the address of a page at `host`."""
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def tunnel(port: int, listens_at: str) -> str:
    """Return the ssh command that makes the page at `listens_at` and `port` reachable from the user's own machine."""
    named = socket.getfqdn()
    # A machine that lists its own name under localhost has that name for nobody else.
    host = socket.gethostname() if named.startswith("localhost") else named
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container runs under a number that has no name
        user = "USER"
    is_local = listens_at in (*LOCAL_NAMES, *_EVERYWHERE)
    there = "127.0.0.1" if is_local else f"[{listens_at}]" if ":" in listens_at else listens_at
    return f"ssh -N -L {port}:{there}:{port} {user}@{host}"


@contextlib.contextmanager
def serve(interface: Interface, log: Path) -> Iterator[None]:
    """Run the server of `interface`, if it has one, while the block runs. Its output goes to the file `log`.

    Raises TargetUnavailableError if the server does not answer within START_TIMEOUT.
    """
    if not interface.argv:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        # A separate session: Ctrl-C reaches only this process, and one signal ends the server with all its children.
        process = subprocess.Popen(  # noqa: S603 - the command line is the exporter's own
            interface.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **interface.environment},
            cwd=interface.folder or None,
            start_new_session=True,
        )
    try:
        _wait_for_answer(interface, process, log)
        yield
    finally:
        _end(process)


def _wait_for_answer(interface: Interface, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    # A proxy, which many clusters name in the environment, cannot reach a page on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), opener.open(interface.probe, timeout=5) as answer:  # a URLError is one too
            if answer.status == 200:
                return
        time.sleep(0.1)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
    raise TargetUnavailableError(
        f"{interface.argv[0]} did not come up at {interface.probe}.", hint=f"Its last output (all in {log}):\n{last}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server with everything that it started, also if a second Ctrl-C comes meanwhile."""
    try:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(_GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
