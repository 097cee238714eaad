"""Run a command, and measure the processor time and peak memory of its processes as the operating system accounts them.

Until it executes another program, a new process counts as large as its parent, and Linux keeps that in its account.
So we start a small launcher, which starts the command and reports what it used.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
_LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    file.write(f"{used.ru_maxrss} {used.ru_utime + used.ru_stime}")
sys.exit(code)
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command and its workers used, and what it printed: seconds, processor seconds, MiB of the largest."""

    seconds: float
    processor: float
    mib: float
    output: str


def measure(command: Sequence[object], folder: Path) -> Usage:
    """Run a command in `folder`, with its own cache there, and return what it used; it must succeed."""
    account = folder / "account"
    environment = {
        "BRIDGE_CACHE_DIR": str(folder / "cache"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONDONTWRITEBYTECODE": "",  # an installation has its byte code
        "PYTHONPATH": str(ROOT),
    }
    words = [sys.executable, "-S", "-c", _LAUNCHER, str(account), *map(str, command)]
    began = time.perf_counter()
    done = subprocess.run(
        words, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=3000
    )
    seconds = time.perf_counter() - began
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    largest, processor = account.read_text().split()
    return Usage(
        seconds, float(processor), int(largest) / (1 << 20 if sys.platform == "darwin" else 1 << 10), done.stdout
    )


def bridge(*words: object) -> list[object]:
    """Return the command line of `bridge` with these words."""
    return [sys.executable, "-m", "bridge", *words]
