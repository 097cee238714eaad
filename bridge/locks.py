"""Locks between processes, kept by the operating system (flock): they end with the process that holds them.

A lock file is never removed. If it were, one process could hold the removed file and another one its replacement.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_HELD = {errno.EAGAIN, errno.EACCES}
"""The errors for a lock that another process holds: Linux raises the first, some other file systems the second."""
_POLL_S = 0.05


def open_locked(path: Path | str, *, wait: float = -1) -> tuple[int, bool]:
    """Open the file `path`, which is created if needed, and lock it until `unlock` gets the returned descriptor.

    Return False beside it if the file system has no locks: then nothing is locked.
    Wait at most `wait` seconds for another process or thread, without limit if `wait` is negative.
    Raise TimeoutError if the lock is still held then, and OSError if `path` cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    end = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return descriptor, False
                if error.errno not in _HELD:
                    raise
            else:
                return descriptor, True
            if wait >= 0 and end <= time.monotonic():
                raise TimeoutError(f"{path} is locked.")
            time.sleep(_POLL_S)
    except BaseException:
        os.close(descriptor)
        raise


def unlock(descriptor: int) -> None:
    """Release the lock of a descriptor that `open_locked` returned, and close it."""
    try:
        # A process that was forked meanwhile has the descriptor too; without this the lock would last as long as it.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def file_lock(path: Path | str, *, wait: float = -1) -> Iterator[bool]:
    """Hold the lock on the file `path` while the block runs. Yield and raise what `open_locked` returns and raises."""
    descriptor, is_held = open_locked(path, wait=wait)
    try:
        yield is_held
    finally:
        unlock(descriptor)


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
