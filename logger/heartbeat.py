"""Keep the heartbeat of a run, and the thread that beats and saves while the training does something else."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, NamedTuple

from logger.sidecar import HEARTBEAT_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from logger.run_writer import RunWriter

TIMER_INTERVAL = 2.0
"""Seconds after which the thread beats again, and saves what is not on disk: it gets there within ten seconds."""

_log = logging.getLogger(__name__)


class Beat(NamedTuple):
    """The heartbeat file at one moment: its content and its mtime in nanoseconds."""

    content: bytes
    mtime_ns: int


def touch_heartbeat(run_dir: Path) -> None:
    """Write the present time into the heartbeat of `run_dir`, which also moves its mtime.

    Raises OSError if the directory is gone or read-only.
    """
    # One write of always the same length into the open file: a reader never finds a part of it.
    descriptor = os.open(run_dir / HEARTBEAT_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.write(descriptor, f"{time.time():017.6f}\n".encode())
    finally:
        os.close(descriptor)


def read_beat(run_dir: Path) -> Beat | None:
    """Return the heartbeat of `run_dir`, or None without one."""
    path = run_dir / HEARTBEAT_NAME
    try:
        return Beat(path.read_bytes(), path.stat().st_mtime_ns)
    except OSError:
        return None


def restore_beat(run_dir: Path, beat: Beat | None) -> None:
    """Put the heartbeat of `run_dir` back to what `read_beat` returned. Raises OSError."""
    path = run_dir / HEARTBEAT_NAME
    if beat is None:
        path.unlink(missing_ok=True)
        return
    path.write_bytes(beat.content)
    os.utime(path, ns=(beat.mtime_ns, beat.mtime_ns))


class BackgroundTimer:
    """A daemon thread that calls its owner's `on_timer` every TIMER_INTERVAL seconds.

    It ends when it is stopped, or when the owner is gone.
    """

    def __init__(self, owner: RunWriter) -> None:
        self._owner = weakref.ref(owner)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry-logger-heartbeat", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        """Return whether the thread runs; in a forked process it does not."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Let the thread end, without waiting for it."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(TIMER_INTERVAL):
            owner = self._owner()
            if owner is None:
                return
            try:
                owner.on_timer()
            except Exception as error:  # noqa: BLE001 - one failure must not stop the heartbeat
                _log.warning("Saving %s failed: %s: %s", owner.run_dir, type(error).__name__, error)
            del owner
