"""Measure the peak memory of a command alone, as the operating system accounts it.

Until it executes another program, a new process counts as large as its parent, and Linux keeps that in its account.
So we start a small launcher, which starts the command and reports its peak.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    file.write(f"{used.ru_maxrss} {used.ru_utime + used.ru_stime}")
sys.exit(code)
"""


def launched(command: list[str], account: Path) -> list[str]:
    """Return the command line that runs `command` and writes its account to the file `account`."""
    return [sys.executable, "-S", "-c", _LAUNCHER, str(account), *command]


def most_mib(account: Path) -> float:
    """Return the peak memory in MiB of the command, or of the largest process that it waited for."""
    return int(account.read_text().split()[0]) / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def processor_seconds(account: Path) -> float:
    """Return the processor time of the command and of all processes that it waited for."""
    return float(account.read_text().split()[1])
