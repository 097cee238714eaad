"""`bridge demo`: small real trainings, so that there is something to look at.

A sweep over learning rates, a learning rate that grows until the loss is NaN, a run that is preempted and requeued,
and one that is killed. `bridge.demo.training` trains; this module starts its processes, two at once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bridge.errors import BridgeError, MissingExtraError, UsageError
from bridge.interrupts import interrupts_held
from logger.sidecar import read_sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["DEMO_RUNS", "train_demo"]

DEMO_RUNS = {
    "sweep/lr-0.003": "completed",
    "sweep/lr-0.01": "completed",
    "sweep/lr-0.03": "completed",
    "sweep/lr-0.1": "completed",
    "diverged": "completed",
    "preempted": "completed",
    "killed": "running",
}
"""The runs of the demo, each with the status that its sidecar ends with (killed: its process never got to say so)."""

KILLED_AGO = 600.0
"""Seconds by which the clock of the killed run is behind: long enough for the run to be taken for dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training. `signal` (a name such as SIGTERM) is sent to its process at step `signal_at`.

    `clock_behind` are the seconds by which the process sets its clock back before it trains. A run directory with
    `checkpoints/last.ckpt` is resumed from there.
    """

    run_dir: str = ""
    run_id: str
    lr: float
    lr_growth: float = 1.0
    tags: Sequence[str] = ("project:digits",)
    notes: str = ""
    signal: str | None = None
    signal_at: int = 0
    clock_behind: float = 0.0


_SWEEP = tuple(
    Training(
        run_id=f"sweep/lr-{lr}",
        lr=lr,
        tags=("project:digits", "sweep:digits-lr"),
        notes="One of four learning rates. **Look at** `val/acc` of all four in one chart.",
    )
    for lr in (0.003, 0.01, 0.03, 0.1)
)
_DIVERGED = Training(
    run_id="diverged",
    lr=0.01,
    lr_growth=1.05,
    notes="The learning rate grows by 5 % every step until the loss is NaN.",
)
_PREEMPTED = Training(
    run_id="preempted",
    lr=0.05,
    notes="Preempted by SIGTERM at step 80 and requeued: training went on from the checkpoint of step 69, so the steps "
    "in between were logged twice. Their second values count: *one run, no zigzag*.",
)
_KILLED = Training(
    run_id="killed",
    lr=0.02,
    notes="Killed by SIGKILL in mid-training, so nothing could note its end.",
    signal="SIGKILL",
    signal_at=150,
    clock_behind=KILLED_AGO,
)

_PLANS: tuple[tuple[Training, ...], ...] = (
    _SWEEP,
    (_DIVERGED, replace(_PREEMPTED, signal="SIGTERM", signal_at=80)),
    (_PREEMPTED, _KILLED),
)
"""The trainings of each process. The third goes on where the second was preempted."""


def train_demo(folder: Path, *, say: Callable[[str], None]) -> bool:
    """Train the demo's runs into `folder`. Pass each run's id to `say` once it is done.

    Return False and do nothing if all runs are there. A failure or Ctrl-C leaves nothing half done.
    Raise UsageError if `folder` holds anything else, MissingExtraError if a package is missing, and BridgeError if a
    training does not end as it should.
    """
    if _complete(folder):
        return False
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} is not empty, and does not hold the demo's runs.",
            hint="Name another directory (bridge demo DIR), or remove this one.",
        )
    if any(find_spec(package) is None for package in ("lightning", "sklearn", "av")):
        raise MissingExtraError.of("demo", purpose="bridge demo")
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    say(f"Training {len(DEMO_RUNS)} small runs into {folder}; this takes about a minute.")
    try:
        _train(folder, say)
        for path in (folder / "killed").rglob("*"):
            mtime = path.stat().st_mtime - KILLED_AGO
            os.utime(path, (mtime, mtime))
    except BaseException:
        for name in {run_id.partition("/")[0] for run_id in DEMO_RUNS}:
            shutil.rmtree(folder / name, ignore_errors=True)
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return True


def _complete(folder: Path) -> bool:
    found = {run_id: read_sidecar(folder / run_id) for run_id in DEMO_RUNS}
    return {run_id: sidecar.status for run_id, sidecar in found.items() if sidecar is not None} == DEMO_RUNS


def _train(folder: Path, say: Callable[[str], None]) -> None:
    """Train in three processes: the first beside the second, which the third follows."""
    with ExitStack() as ended:
        sweep, preempted = (_Process(plan, folder, ended) for plan in _PLANS[:2])
        preempted.finish(say)
        _Process(_PLANS[2], folder, ended).finish(say)
        sweep.finish(say)


class _Process:
    """A process that does the trainings of `plan`, one after another. It is killed if it still runs at the `end`."""

    def __init__(self, plan: Sequence[Training], folder: Path, end: ExitStack) -> None:
        self._last = plan[-1]
        self._log = end.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - `end` closes it
        # -P: a `bridge` in the working directory is not imported.
        command = [sys.executable, "-P", "-m", "bridge.demo.training"]
        # Inside a SLURM job Lightning would take these processes for tasks of it.
        env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        with interrupts_held():  # Ctrl-C in between would leave a process that nobody knows
            # Not from outside: our own interpreter, our own module, JSON that was made above.
            self._child = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=env
            )
            end.enter_context(self._child)
            end.callback(self._child.wait)
            end.callback(self._child.kill)
        assert self._child.stdin is not None
        json.dump(
            [asdict(replace(each, run_dir=str(folder.resolve() / each.run_id))) for each in plan], self._child.stdin
        )
        self._child.stdin.close()

    def finish(self, say: Callable[[str], None]) -> None:
        """Wait for the end and pass each run's id to `say`. Raises BridgeError for an end that is not as planned."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            say(f"  {line.strip()}")
        code = self._child.wait()
        # A process that gets a signal ends by it (SIGKILL), or as Lightning answers it (SIGTERM).
        expected = -signal.SIGKILL if self._last.signal == "SIGKILL" else 0
        if code != expected:
            self._log.seek(0)
            tail = "".join(self._log.readlines()[-12:])
            raise BridgeError(
                f"The training of {self._last.run_id} ended with code {code} instead of {expected}:\n{tail}"
            )
        if self._last.signal is not None:
            say(f"  {self._last.run_id} ({self._last.signal})")
