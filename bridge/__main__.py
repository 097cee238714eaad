"""The command `bridge`, also as `python -m bridge`."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from typing import Any, TextIO, cast

from bridge.interrupts import listen

INTERRUPTED = 130

PATIENCE = 0.5
"""Seconds that threads get to end after an interrupt; one may wait for a server that does not answer."""


class LossyStream:
    """A text stream that drops what cannot be written, and remembers the first error.

    A closed pipe, a full disk or a terminal that is gone must not end an export in the middle.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self.error = self.error or error
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main() -> None:
    """Run the command line and exit with its code.

    SIGTERM and SIGHUP, unless they are ignored (nohup), end the command like Ctrl-C: with exit code 130, after every
    process that was started has been ended. What was being sent is sent again by the next export.
    """
    listen()
    try:
        out, err = _open_streams()
        from bridge.cli import bridge

        bridge(prog_name="bridge")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave_soon()
            raise
        gc.freeze()  # Python would look through all objects for garbage when it ends, which takes as long as an import
        sys.exit(_flush(out, err, end.code))
    except KeyboardInterrupt:  # before the command line was ready, or once more while it ended
        _leave_soon()
        sys.exit(INTERRUPTED)


def _open_streams() -> tuple[LossyStream, LossyStream]:
    """Replace stdout and stderr by streams that raise nothing; a letter that they cannot encode becomes its escape."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # A file that is opened later must not get the number of a closed stream: others would write into it.
            os.open(os.devnull, os.O_RDWR)
    streams = []
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or os.fdopen(number, "w")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        streams.append(LossyStream(stream))
        setattr(sys, name, cast("TextIO", streams[-1]))
    return streams[0], streams[1]


def _flush(out: LossyStream, err: LossyStream, code: Any) -> Any:
    """Flush both streams and return the exit code: 1 instead of 0 where results were lost.

    A reader that closed its end of a pipe, as `head` does, has seen what it wanted.
    """
    out.flush()
    if out.error is not None:
        if not isinstance(out.error, BrokenPipeError):
            err.write(f"Error: The results could not be printed: {out.error.strerror}.\n")
            code = code or 1
        # Python would try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    err.flush()
    if err.error is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return code


def _leave_soon() -> None:
    """End this process within PATIENCE. Python itself would wait for its threads without limit.

    Silence errors at the exit: a pool whose workers were ended may find its pipes closed.
    """
    sys.unraisablehook = lambda _: None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # When Python ends it gives signals back to the system, and one more would kill the process: 143 instead of 130.
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

    def leave() -> None:
        time.sleep(PATIENCE)
        os._exit(INTERRUPTED)

    threading.Thread(target=leave, daemon=True).start()


if __name__ == "__main__":
    main()
