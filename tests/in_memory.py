"""Keep the files of a test run in memory, where the machine has room: databases wait for every write to a disk.

No test loses its meaning by that: processes are killed, machines are not. A TMPDIR that is set already counts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Bytes that must be free: several times what the ordinary suite writes."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Let this process and its children make temporary files in memory."""
    if "TMPDIR" in os.environ or not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM:
        return
    for left in MEMORY.glob("bridge-tests.*.*"):
        with contextlib.suppress(ValueError):
            if not Path(f"/proc/{int(left.name.split('.')[1])}").exists():
                shutil.rmtree(left, ignore_errors=True)  # of a run that was killed
    folder = Path(tempfile.mkdtemp(prefix=f"bridge-tests.{os.getpid()}.", dir=MEMORY))
    folder.chmod(0o755)  # a database server of another user has its files in it
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    # multiprocessing removes a folder of its fork server in it, with priority -100, when this process ends.
    Finalize(None, shutil.rmtree, (folder, True), exitpriority=-200)
