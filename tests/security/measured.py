"""Measure the peak memory and time of commands on a hostile run directory.

The process is forked from one that has everything imported. Limits of the operating system make a fault fail the test
without harm to the machine.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.security.scene import Scene
from tests.zygote import Task

if TYPE_CHECKING:
    from pathlib import Path

    from tests.security.scene import Seen
    from tests.zygote import Zygote

MEMORY_MB = 300
"""What a process that exports, lists or verifies hostile runs may need at its peak, its libraries included."""

MLFLOW_MB = 200
"""What MLflow adds to that: 120 MB before it does anything."""

SECONDS = 15.0
"""The processor time that one command may take; each takes a second or two."""

PATIENCE_S = 60
"""After so many seconds a process counts as hanging and is ended."""

_ADDRESSES = 3 << 30


@dataclass(frozen=True)
class Cost:
    """A process's peak memory in megabytes, and the processor seconds of its slowest command."""

    megabytes: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """The results of the commands in order, their cost, and the private files that they touched."""

    seen: tuple[Seen, ...]
    cost: Cost
    touched: tuple[str, ...]


def measure(zygote: Zygote, root: Path, *commands: tuple[object, ...]) -> Measured:
    """Run `commands` in the folder `root`, all in one process. Raises KilledError for one that hangs."""
    (outcome,) = zygote.run(Task(_carry_out, (root, commands)))
    if isinstance(outcome, Exception):
        raise outcome
    assert isinstance(outcome, Measured)
    return outcome


def _carry_out(root: Path, commands: tuple[tuple[object, ...], ...]) -> Measured:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(PATIENCE_S)
    touched: list[str] = []
    private = str(root / "outside")

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.scandir", "os.listdir") and isinstance(arguments[0], str | bytes):
            path = os.fsdecode(arguments[0])
            # Folders are also opened one by one, each by its name alone.
            if path == "outside" or os.path.realpath(path).startswith(private):
                touched.append(f"{event} {path}")

    sys.addaudithook(note)
    scene, seen, slowest = Scene(root), [], 0.0
    for words in commands:
        began = time.process_time()
        seen.append(scene.call(*words))
        slowest = max(slowest, time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return Measured(tuple(seen), Cost(peak, slowest), tuple(touched))


def assert_bounded(measured: Measured, *, megabytes: int = MEMORY_MB) -> None:
    """Assert that memory and time are within bounds."""
    cost = measured.cost
    print(f"{cost.megabytes:.0f} MB, {cost.seconds:.2f} s")
    assert cost.megabytes < megabytes
    assert cost.seconds < SECONDS
