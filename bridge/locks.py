"""Locks between processes, kept by the operating system through filelock: they end with the process that holds them.

A lock file is never removed. If it were, one process could hold the removed file and another one its replacement.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextlib.contextmanager
def file_lock(path: Path | str, *, wait: float = -1) -> Iterator[bool]:
    """Hold the lock on the file `path`, which is created if needed, while the block runs.

    Yield True, or False if the file system has no locks: then the block runs without one.
    Wait at most `wait` seconds for another process or thread, without limit if `wait` is negative.
    Raise TimeoutError if the lock is still held then, and OSError if `path` cannot be opened.
    """
    from filelock import FileLock

    # Without flock, filelock would make lock files that outlive their process; a killed export would block the next.
    lock = FileLock(path, timeout=wait, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def machine_lock(name: str, *, wait: float = -1) -> Iterator[bool]:
    """Hold the lock called `name` among this user's processes on this machine. See `file_lock`.

    Yield False as well if the temporary folder cannot hold lock files. Use it where the lock only saves work.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(tempfile.gettempdir()) / f"bridge-locks-{_user()}"
            folder.mkdir(mode=0o700, exist_ok=True)
            lock = file_lock(folder / hashlib.sha256(name.encode()).hexdigest()[:32], wait=wait)
            held = stack.enter_context(lock)
        except TimeoutError:
            raise
        except OSError:
            held = False
        yield held


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
