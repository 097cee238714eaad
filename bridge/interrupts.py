"""Being told to stop: SIGINT, SIGTERM and SIGHUP all are KeyboardInterrupt, and none is lost.

Python drops what a signal's handler raises while a destructor or a weak reference's callback runs, with a line on
stderr at most. A command that goes on for ever would then have heard nothing, so what was asked is also remembered.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["listen", "pause"]

_asked = False


def listen() -> None:
    """Take the signals of this process; those that it was started to ignore (nohup, a shell's `&`) stay ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


def pause(seconds: float) -> None:
    """Sleep for so many seconds. Raises KeyboardInterrupt as soon as this process is told to stop, or was before."""
    if _asked:
        raise KeyboardInterrupt
    time.sleep(seconds)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    global _asked  # noqa: PLW0603 - signals are the process's
    _asked = True
    raise KeyboardInterrupt
