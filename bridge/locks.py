"""Locks between processes, kept by the operating system (flock): they end with the process that holds them.

filelock locks the descriptor. Its class FileLock is not used: before version 4.1 it empties the file, and a TensorBoard
folder's lock file says whose folder it is.

A lock file is never removed. If it were, one process could hold the removed file and another one its replacement.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_POLL_S = 0.05


@contextlib.contextmanager
def file_lock(path: Path | str, *, wait: float = -1) -> Iterator[bool]:
    """Hold the lock on the file `path`, which is created if needed, while the block runs.

    Yield False if the file system has no locks: then nothing is locked.
    Wait at most `wait` seconds for another process or thread, without limit if `wait` is negative.
    Raise TimeoutError if the lock is still held then, and OSError if `path` cannot be opened.
    """
    from filelock import unlock_descriptor  # takes a while, and most commands lock nothing

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        is_held = _lock(descriptor, path, wait)
        try:
            yield is_held
        finally:
            # A process that was forked meanwhile has the descriptor too and would prolong the lock by its own life.
            with contextlib.suppress(OSError):
                unlock_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path | str, wait: float) -> bool:
    """Lock the open file `path`. Return False on a file system without locks; raise TimeoutError after `wait` s."""
    from filelock import lock_descriptor

    end = time.monotonic() + wait
    try:
        while not lock_descriptor(descriptor, blocking=False):
            if wait >= 0 and end <= time.monotonic():
                raise TimeoutError(f"{path} is locked.")
            time.sleep(_POLL_S)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


@contextlib.contextmanager
def machine_lock(name: str, *, wait: float = -1) -> Iterator[bool]:
    """Hold the lock called `name` among this user's processes on this machine. See `file_lock`.

    Yield False as well if the temporary folder cannot hold lock files. Use it where the lock only saves work.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(tempfile.gettempdir()) / f"bridge-locks-{os.getuid()}"
            folder.mkdir(mode=0o700, exist_ok=True)
            lock = file_lock(folder / hashlib.sha256(name.encode()).hexdigest()[:32], wait=wait)
            held = stack.enter_context(lock)
        except TimeoutError:
            raise
        except OSError:
            held = False
        yield held
