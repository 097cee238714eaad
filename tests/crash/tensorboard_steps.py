"""A program that exports one run into a log directory, and can be killed on the way.

    python -m tests.crash.tensorboard_steps every FOLDER N   kill an export at each N-th step it takes; see that the next heals
    python -m tests.crash.tensorboard_steps export LOGDIR    export in small deltas; says `begin` before the first

Whole exports are compared byte for byte, but for the generation in a file's name.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.cursor import Shape
from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.exporters.tensorboard.protos import need_tensorboard
from bridge.model import Status, Text
from tests.deltas import make_block, make_delta, make_model_run
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from bridge.model import Block, Delta, Run

SHAPE = Shape()
STEPS = {"open", "os.rename", "os.remove", "os.truncate", "os.utime", "os.mkdir", "fcntl.flock", "os.scandir"}
BEFORE_DELTAS = 25_000
"""Rows of `export`, in deltas of 2,500."""


def run_of(status: Status) -> Run:
    return make_model_run(Path("/runs/abc"), status=status, params={"lr": 0.1}, notes="n")


def block(first: int, last: int, factor: float = 1.0) -> Block:
    steps = range(first, last)
    columns = {"loss": [factor / (step + 1) for step in steps], "acc": [None if step % 3 else step for step in steps]}
    return make_block(list(steps), columns, first_row=first)


def export(logdir: Path, rows: int, *, size: int = 30, status: Status = Status.RUNNING, factor: float = 1.0) -> None:
    """As `bridge export` does it: by the target's cursor, in deltas of `size` rows; another `factor` is a rewind."""
    run = run_of(status)
    exporter = TensorBoardExporter(logdir)
    exporter.prepare([run], SHAPE)
    known = exporter.cursors([run])[run.identity]
    target = exporter.open(run, SHAPE)
    begun = known.cursor is not None and factor == 1.0
    if known.exists and not begun:
        target.rebuild(deltas(run, rows, size, factor))
        return
    delta = None
    for delta in deltas(run, rows, size, factor, skip=known.cursor.rows if known.cursor else 0):
        target.apply(delta)
    if known.cursor and delta is None and exporter.stale(run, known.cursor, SHAPE):
        target.apply(make_delta(run, before=known.cursor, metrics=("loss", "acc")))


def deltas(run: Run, rows: int, size: int, factor: float, skip: int = 0) -> list[Delta]:
    made: list[Delta] = []
    for first in range(0, rows, size):
        last = min(first + size, rows)
        text = Text(first, first, CREATED_S + first, "note", f"from {first}")
        made.append(
            make_delta(run, [block(first, last, factor)], before=made[-1].after if made else None, texts=[text])
        )
    return [delta for delta in made if delta.after.rows > skip]


def content(logdir: Path) -> dict[str, bytes]:
    """The event files and their names without the generation."""
    folder = logdir / "abc"
    names = [path.name for path in folder.iterdir()]
    left = [name for name in names if name.endswith(".new")]
    assert not left, left
    events = {re.sub(r"\.g\d+$", "", name): (folder / name).read_bytes() for name in names if "tfevents" in name}
    assert len(events) == len([name for name in names if "tfevents" in name]), sorted(names)
    return events


def die_at(step: int) -> None:
    """End this process as the power would, at the `step`-th time that it does something with a file."""
    seen = 0

    def watch(event: str, _: object) -> None:
        nonlocal seen
        if event not in STEPS:
            return
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def killed_at_every_step(folder: Path, stride: int) -> int:
    """Kill exports of a new run, of a grown and of a rewound one at each `stride`-th step; how many were killed."""
    need_tensorboard()
    clean = folder / "clean"
    phases = (
        {"rows": 60},
        {"rows": 90, "status": Status.COMPLETED},
        {"rows": 90, "status": Status.COMPLETED, "factor": 2.0},
    )
    before, kills = folder / "before", 0
    before.mkdir()
    for phase in phases:
        shutil.rmtree(clean, ignore_errors=True)
        export(clean, **phase)
        step = 0
        while True:
            step += stride
            logdir = folder / "logs"
            shutil.rmtree(logdir, ignore_errors=True)
            shutil.copytree(before, logdir)
            child = os.fork()
            if not child:
                die_at(step)
                export(logdir, **phase)
                os._exit(0)
            killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            export(logdir, **phase)
            assert content(logdir) == content(clean), (phase, step)
            if not killed:
                break
            kills += 1
        shutil.rmtree(before)
        shutil.copytree(logdir, before)
    return kills


if __name__ == "__main__":
    if sys.argv[1] == "every":
        print(killed_at_every_step(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        need_tensorboard()
        print("begin", flush=True)
        export(Path(sys.argv[2]), BEFORE_DELTAS, size=2_500)
