"""The run's status from what Lightning says when it finalizes a logger, and from what is happening at that moment."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["status_of"]

_WORDS = {
    "success": "completed",
    "completed": "completed",
    "finished": "completed",
    "interrupted": "interrupted",
    "preempted": "interrupted",
    "killed": "interrupted",
}
_REQUEUE_HANDLER = "_slurm_sigusr_handler_fn"
"""Lightning's handler of SLURM's requeue signal: it finalizes loggers with "finished" in the middle of a training."""


def status_of(word: str) -> str:
    """The sidecar's status (completed, failed, interrupted) for Lightning's `word`.

    Lightning says "failed" also for a preemption and for Ctrl-C: then the exception in flight tells. A word that is not known is a
    failure if there is an exception in flight, else a completion.
    """
    if word in ("finished", "success") and _called_by(_REQUEUE_HANDLER):
        return "interrupted"
    if word in _WORDS:
        return _WORDS[word]
    error = sys.exc_info()[1]
    if error is not None and _interrupts(error):
        return "interrupted"
    return "failed" if word in ("failed", "aborted") or error is not None else "completed"


def _interrupts(error: BaseException) -> bool:
    if isinstance(error, KeyboardInterrupt):
        return True
    # Lightning has one SIGTERMException for each of its two packages.
    if any(kind.__name__ == "SIGTERMException" for kind in type(error).__mro__):
        return True
    return isinstance(error, SystemExit) and error.code in (None, 0)


def _called_by(name: str) -> bool:
    frame: FrameType | None = sys._getframe(1)
    for _ in range(12):
        if frame is None:
            return False
        if frame.f_code.co_name == name:
            return True
        frame = frame.f_back
    return False
