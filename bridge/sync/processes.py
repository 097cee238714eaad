"""Worker processes that end when their parent is gone, however it went, and that leave Ctrl-C to it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

__all__ = ["Processes"]

P = ParamSpec("P")
R = TypeVar("R")


class Processes(ProcessPoolExecutor):
    """`count` worker processes. Each ends at once when its parent has ended or was killed, whatever it is doing.

    A terminal sends Ctrl-C to every process of a command. Only the parent takes it, and decides what becomes of them.
    `begin`, importable by name, is called first in each.
    """

    def __init__(self, count: int, *, begin: Callable[[], None] | None = None) -> None:
        # Not forked: forking a process that has threads (arrow, a database driver) can hang its child.
        super().__init__(count, mp_context=get_context("spawn"), initializer=_begin, initargs=(begin,))

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Put a task in the queue; workers are started here, by the first tasks."""
        with _interrupts_held():
            return super().submit(fn, *args, **kwargs)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back: a process that is started meanwhile never gets one, and ours comes afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(begin: Callable[[], None] | None) -> None:
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    if begin is not None:
        begin()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    # What was in work is as after a kill, which every target survives.
    os._exit(1)
