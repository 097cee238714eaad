"""How old files are, by the clock of the file server that dated them where it can be known."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ALLOWANCE", "Clock"]

ALLOWANCE = 60.0
"""Seconds by which the file server's clock may be off while it is not known."""

_REFRESH = 300.0


class Clock:
    """Ages of files.

    `directory` (a cache of ours) may be written to; what lies on its file system is judged by the clock that dates a new
    file there, anything else by this machine's clock, a minute in the file's favour.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._device: int | None = None
        self._ahead = 0.0
        self._asked = -_REFRESH

    def age(self, found: os.stat_result) -> float:
        """The age in seconds of the file that was looked at as `found`, never negative."""
        self._ask()
        now = time.time()
        if self._device is not None and found.st_dev == self._device:
            return max(0.0, now + self._ahead - found.st_mtime)
        return max(0.0, now - found.st_mtime - ALLOWANCE)

    def _ask(self) -> None:
        """Compare the clocks, again every few minutes (a long `--follow` sees them drift)."""
        if self._directory is None or time.monotonic() - self._asked < _REFRESH:
            return
        self._asked = time.monotonic()
        self._device = None
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".clock-") as file:
                before = time.time()
                file.write(b".")
                file.flush()
                os.fsync(file.fileno())
                found = os.fstat(file.fileno())
                self._ahead = found.st_mtime - (before + time.time()) / 2
                self._device = found.st_dev
