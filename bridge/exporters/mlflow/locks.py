"""Locks between the exports of one machine, kept by the operating system: they free themselves with their holder."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["machine_lock"]


@contextlib.contextmanager
def machine_lock(name: str) -> Iterator[None]:
    """Hold the lock `name`; wait for it while another process or thread has it.

    Where the temporary folder takes no locks the block runs without one: what is locked here is only made cheaper
    by it, other means keep it right.
    """
    import fcntl

    file = None
    try:
        folder = Path(tempfile.gettempdir()) / f"bridge-locks-{_user()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        file = os.open(folder / hashlib.sha256(name.encode()).hexdigest()[:32], flags, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        if file is not None:
            os.close(file)
        file = None
    try:
        yield
    finally:
        if file is not None:
            os.close(file)


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
