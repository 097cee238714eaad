"""Call a command, in this process or in its own."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from bridge.cli import bridge

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def call(*words: object, **variables: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command; an unexpected exception propagates."""
    result = CliRunner(env=variables).invoke(bridge, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def spawn(
    *words: object, cwd: Path, code: int = 0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in its own process, assert that it exits with `code`, and return its output."""
    command = [sys.executable, "-m", "bridge", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def on_a_terminal(*words: str, stream: str = "stdout", env: Mapping[str, str], **how: Any) -> str:
    """Run `python WORDS`, whose stdout or stderr is a terminal, and return what it draws there; it must succeed."""
    terminal, end = pty.openpty()
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: end}
    drawn = b""
    with subprocess.Popen([sys.executable, *words], env=os.environ | env, **streams, **how) as process:
        os.close(end)
        with contextlib.suppress(OSError):  # a terminal whose other end is closed is an error to read
            while part := os.read(terminal, 65536):
                drawn += part
    os.close(terminal)
    assert process.returncode == 0, drawn.decode()
    return drawn.decode()
