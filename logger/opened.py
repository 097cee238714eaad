"""The run directories that this process writes: one writer each, flushed when the process ends, forgotten in a forked child."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from multiprocessing import util
from typing import TYPE_CHECKING

from logger.run_writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logger.settings import Settings

__all__ = ["open_run"]


class _Opened:
    """The writers of one process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.writers: dict[Path, RunWriter] = {}
        self.at_exit = False


_opened = _Opened()


def open_run(settings: Settings, *, announce: Callable[[str], None]) -> RunWriter:
    """The writer of `settings.run_dir` in this process.

    One start of a run has one writer, however many copies of its logger there are. Another start takes the directory
    over: what the earlier one holds is brought to disk first. `announce` is told once that a run is resumed.
    """
    with _opened.lock:
        writer = _opened.writers.get(settings.run_dir)
        if writer is not None and writer.usable():
            if writer.settings.token == settings.token:
                return writer
            writer.release()
        writer = _opened.writers[settings.run_dir] = RunWriter(settings, announce=announce)
        if not _opened.at_exit:
            _opened.at_exit = True
            atexit.register(_release_all)
            # The children of multiprocessing end without atexit.
            util.Finalize(None, _release_all, exitpriority=100)
        return writer


def _release_all() -> None:
    with _opened.lock:
        for writer in list(_opened.writers.values()):
            if writer.usable():
                with contextlib.suppress(OSError):
                    writer.release()


def _forget() -> None:
    """In a forked child the writers, their thread and what they hold belong to the parent."""
    _opened.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
