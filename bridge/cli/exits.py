"""The exit codes of `bridge`, and the one place that chooses them for errors."""

from __future__ import annotations

from enum import IntEnum

from bridge.errors import BridgeError, RunError, UsageError

__all__ = ["Exit", "exit_of"]


class Exit(IntEnum):
    """What the shell is told; a command returns one of these (None is DONE)."""

    DONE = 0
    NOTHING_DONE = 1
    USAGE = 2
    SOME_FAILED = 3
    DIFFERENCES = 4
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """The code in words, as help pages say it."""
        return _MEANINGS[self]


_MEANINGS = {
    Exit.DONE: "done",
    Exit.NOTHING_DONE: "nothing could be done",
    Exit.USAGE: "wrong usage",
    Exit.SOME_FAILED: "some runs failed, the others are done",
    Exit.DIFFERENCES: "verify found differences",
    Exit.INTERRUPTED: "interrupted",
}


def exit_of(error: BridgeError) -> Exit:
    """The exit code for an error that ended a command."""
    if isinstance(error, UsageError):
        return Exit.USAGE
    return Exit.SOME_FAILED if isinstance(error, RunError) else Exit.NOTHING_DONE
