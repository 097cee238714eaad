"""One writer for a run's folder: a lock of the operating system, which frees itself when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from typing import TYPE_CHECKING

from bridge.errors import TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LOCK_NAME", "locked"]

LOCK_NAME = ".bridge-lock"

_PAUSE = 0.05
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextlib.contextmanager
def locked(folder: Path, *, wait: float) -> Iterator[tuple[str, ...]]:
    """Hold the lock of `folder`, which exists; gives notes for the report.

    The lock file says who holds it and is never removed: a removed one would leave two holders. Where the file
    system has no locks the export goes on, and the note says so. Raises TargetUnavailableError where another
    process still holds it after `wait` seconds.
    """
    path = folder / LOCK_NAME
    with path.open("a+b", buffering=0) as file:
        if not _take(file.fileno(), path, wait):
            yield (f"{folder}: this file system has no locks; two exports at once would not notice each other",)
            return
        try:
            file.truncate(0)
            file.write(f"{socket.gethostname()} {os.getpid()}\n".encode())
            yield ()
        finally:
            file.truncate(0)
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def _take(descriptor: int, path: Path, wait: float) -> bool:
    """Take the lock; False where there are none."""
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TargetUnavailableError(
                    f"{path.parent} is being written by another export ({_holder(path)}).",
                    hint="Wait until it is done and run this one again.",
                ) from None
            time.sleep(_PAUSE)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
        else:
            return True


def _holder(path: Path) -> str:
    words = path.read_text(errors="replace").split()
    return f"host {words[0]}, process {words[1]}" if len(words) == 2 else "which has just begun"
