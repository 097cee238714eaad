"""The command `bridge`, also as `python -m bridge`."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

from bridge.interrupts import listen

__all__ = ["main"]

INTERRUPTED = 130

PATIENCE = 0.5
"""Seconds that threads get, after an interrupt, to end by themselves: one may wait for a server that says nothing."""


def main() -> None:
    """Run the command line of this process and exit with its code.

    SIGTERM and SIGHUP, unless they are ignored (nohup), end it like Ctrl-C: with exit code 130, after everything that
    was started has been ended or let go. What was in flight is abandoned, and sent again by the next export.
    """
    listen()
    try:
        from bridge.cli import bridge

        for stream in (sys.stdout, sys.stderr):
            # A letter that the terminal's encoding lacks shows as its escape and ends nothing.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        bridge(prog_name="bridge")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave_soon()
        raise
    except KeyboardInterrupt:  # before the command line was there, or once more while it ended
        _leave_soon()
        sys.exit(INTERRUPTED)


def _leave_soon() -> None:
    """See to it that this process ends within PATIENCE, although Python waits for threads for as long as they like.

    What is abandoned complains no more: a pool whose workers were just ended may find its pipes closed at the exit.
    """
    sys.unraisablehook = lambda _: None
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

    def leave() -> None:
        time.sleep(PATIENCE)
        os._exit(INTERRUPTED)

    threading.Thread(target=leave, daemon=True).start()


if __name__ == "__main__":
    main()
