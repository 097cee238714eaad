"""Small real trainings, so that there is something to look at: `bridge demo`.

A sweep over learning rates, a learning rate that grows until the loss is NaN, a run that is preempted and requeued, and
one that is killed. `bridge.demo.training` trains; this module starts its processes, two at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError, MissingExtraError, UsageError
from logger.sidecar import SIDECAR_NAME, SidecarError, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

DEMO_RUNS = {
    "sweep/lr-0.003": "completed",
    "sweep/lr-0.01": "completed",
    "sweep/lr-0.03": "completed",
    "sweep/lr-0.1": "completed",
    "diverged": "completed",
    "preempted": "completed",
    "killed": "running",
}
"""The runs of the demo, each with the last status in its sidecar; the process of the killed one could not change it."""

KILLED_AGO = 600.0
"""Seconds by which the clock of the killed run is set back, so that its heartbeat is too old for a running run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """One training of a process: the fields of `bridge.demo.training.Training` without the run directory."""

    run_id: str
    lr: float
    lr_growth: float = 1.0
    tags: tuple[str, ...] = ("project:digits",)
    notes: str = ""
    signal: str | None = None
    signal_at: int = 0
    started_ago: float = 0.0


_SWEEP = tuple(
    TrainingStep(
        run_id=f"sweep/lr-{lr}",
        lr=lr,
        tags=("project:digits", "sweep:digits-lr"),
        notes="One of four learning rates. **Compare** `val/acc` of all four in one chart.",
    )
    for lr in (0.003, 0.01, 0.03, 0.1)
)
_DIVERGED = TrainingStep(
    run_id="diverged",
    lr=0.01,
    lr_growth=1.05,
    notes="The learning rate grows by 5 % every step until the loss is NaN.",
)
_PREEMPTED = TrainingStep(
    run_id="preempted",
    lr=0.05,
    notes="Preempted by SIGTERM at step 80 and requeued: training resumed from the checkpoint of step 69, so the steps "
    "in between were logged twice. The second values count: *one run, no zigzag*.",
)
_KILLED = TrainingStep(
    run_id="killed",
    lr=0.02,
    notes="Killed by SIGKILL in the middle of training, so nothing could record its end.",
    signal="SIGKILL",
    signal_at=150,
    started_ago=KILLED_AGO,
)

_LANES: tuple[tuple[tuple[TrainingStep, ...], ...], ...] = (
    (_SWEEP,),
    ((_DIVERGED, replace(_PREEMPTED, signal="SIGTERM", signal_at=80)), (_PREEMPTED, _KILLED)),
)
"""Lanes run side by side. The processes of a lane run one after another, and so do the steps of a process."""


def train_demo(folder: Path, *, say: Callable[[str], None]) -> bool:
    """Train the demo's runs into `folder` and tell `say` the id of each finished run.

    Return False, and do nothing, where they are all there. A failure or Ctrl-C removes what was made so far. Raises
    UsageError where `folder` holds anything else, MissingExtraError where a package is missing, and BridgeError where a
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
    try:
        paths = {run_id: folder / run_id / SIDECAR_NAME for run_id in DEMO_RUNS}
        found = {run_id: parse_json(path.read_bytes(), path).get("status") for run_id, path in paths.items()}
    except (OSError, SidecarError):
        return False
    return found == DEMO_RUNS


def _train(folder: Path, say: Callable[[str], None]) -> None:
    children = TrainingProcesses()
    with ThreadPoolExecutor(len(_LANES)) as pool:
        try:
            lanes = [pool.submit(_train_lane, lane, folder, children, say) for lane in _LANES]
            for lane in lanes:
                lane.result()
        finally:
            children.kill()


def _train_lane(
    lane: Sequence[Sequence[TrainingStep]], folder: Path, children: TrainingProcesses, say: Callable[[str], None]
) -> None:
    """Run the processes of one lane. Raises BridgeError for one that ends with another code than it should."""
    for steps in lane:
        plan = [{"run_dir": str(folder.resolve() / step.run_id)} | asdict(step) for step in steps]
        with tempfile.TemporaryFile("w+") as log, children.start(log) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            json.dump(plan, child.stdin)
            child.stdin.close()
            for line in child.stdout:
                say(f"  {line.strip()}")
            code = child.wait()
            # SIGKILL ends the process itself; Lightning answers SIGTERM and the process exits as usual.
            expected = -signal.SIGKILL if steps[-1].signal == "SIGKILL" else 0
            if code != expected:
                log.seek(0)
                tail = "".join(log.readlines()[-12:])
                raise BridgeError(
                    f"The training of {steps[-1].run_id} ended with code {code} instead of {expected}:\n{tail}"
                )
        if steps[-1].signal is not None:
            say(f"  {steps[-1].run_id} ({steps[-1].signal})")


class TrainingProcesses:
    """The processes that train. After `kill` all of them are gone and none can be started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[str]] = []
        self._ended = False

    def start(self, log: Any) -> subprocess.Popen[str]:
        """Start a process that reads its trainings from stdin and writes messages to the file `log`."""
        # -P: a `bridge` in the working directory is not imported.
        command = [sys.executable, "-P", "-m", "bridge.demo.training"]
        # Inside a SLURM job Lightning would take these processes for tasks of that job.
        env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        with self._lock:
            if self._ended:
                raise BridgeError("The demo was interrupted.")
            # Our own interpreter and module, and JSON that was made above.
            child = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env
            )
            self._running.append(child)
        return child

    def kill(self) -> None:
        """Kill the processes that still run."""
        with self._lock:
            self._ended = True
            for child in self._running:
                if child.poll() is None:
                    child.kill()
