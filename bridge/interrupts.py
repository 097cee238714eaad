"""Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, and lose none of them.

Python drops what a signal handler raises while a destructor or a weak reference's callback runs. A command that runs
for ever would then never end, so the handler also remembers the signal for the next `pause`.
"""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

AGAIN = 1.0
"""Seconds after a signal within which another one is taken for the same: a scheduler may send two."""

_asked = False
_asked_at = float("-inf")


def listen() -> None:
    """Handle the signals of this process, except those that it was started to ignore (nohup, a shell's `&`)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


def pause(seconds: float) -> None:
    """Sleep. Raises KeyboardInterrupt at a signal, and at once if one came before."""
    if _asked:
        raise KeyboardInterrupt
    time.sleep(seconds)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Let SIGINT wait for the end of the block, if this process has no other thread, which would take it.

    A process that starts in the block never gets it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    global _asked, _asked_at
    is_repeated = time.monotonic() - _asked_at < AGAIN
    _asked, _asked_at = True, time.monotonic()
    if not is_repeated:
        raise KeyboardInterrupt
