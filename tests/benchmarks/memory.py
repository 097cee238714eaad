"""The most memory that a command took, as the operating system accounts it: of the command alone.

A process that is started counts, until it becomes another program, as large as the one that starts it, and Linux keeps
that in its account. So a small launcher, itself started by whoever measures, starts the command and tells.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def launched(command: list[str], account: Path) -> list[str]:
    """Return the command line that runs `command` and leaves its account in the file `account`."""
    return [sys.executable, "-S", "-c", _LAUNCHER, str(account), *command]


def most_mib(account: Path) -> float:
    """Return the most memory of the command, or of the largest process that it waited for, in MiB."""
    return int(account.read_text()) / (1 << 20 if sys.platform == "darwin" else 1 << 10)
