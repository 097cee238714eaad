"""The command `bridge`, also as `python -m bridge`."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

from bridge.interrupts import listen

INTERRUPTED = 130

PATIENCE = 0.5
"""Seconds that threads get to end after an interrupt; one may wait for a server that does not answer."""


def main() -> None:
    """Run the command line and exit with its code.

    SIGTERM and SIGHUP, unless they are ignored (nohup), end the command like Ctrl-C: with exit code 130, after every
    process that was started has been ended. What was being sent is sent again by the next export.
    """
    listen()
    try:
        from bridge.cli import bridge

        for stream in (sys.stdout, sys.stderr):
            # A letter that the terminal's encoding lacks is shown as its escape.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        bridge(prog_name="bridge")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave_soon()
        raise
    except KeyboardInterrupt:  # before the command line was ready, or once more while it ended
        _leave_soon()
        sys.exit(INTERRUPTED)


def _leave_soon() -> None:
    """End this process within PATIENCE. Python itself would wait for its threads without limit.

    Silence errors at the exit: a pool whose workers were ended may find its pipes closed.
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
