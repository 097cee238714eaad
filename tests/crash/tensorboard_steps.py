"""Export one run into a log directory, and die on the way.

python -m tests.crash.tensorboard_steps every FOLDER N       kill an export at each N-th step, and repair it
python -m tests.crash.tensorboard_steps several FOLDER N     the same with an export of three runs
python -m tests.crash.tensorboard_steps export LOGDIR        export in small deltas

Whole exports are compared byte for byte, except for the generation in a file's name.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import sys
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.exporters.tensorboard.events import need_tensorboard
from bridge.model import Status
from bridge.options import ContentOptions
from bridge.sync.export import export_runs
from tests.deltas import make_block, make_delta, make_model_run
from tests.pictures import media_event
from tests.run_dirs import make_run as write_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bridge.model import Block, Delta, Run

SHAPE = ContentOptions()
PICTURE = Path(__file__).parent.parent / "sync" / "picture.png"
STEPS = {"open", "os.rename", "os.remove", "os.truncate", "os.utime", "os.mkdir", "fcntl.flock", "os.scandir"}
SEVERAL = ("red", "green", "blue")
BEFORE_DELTAS = 25_000
"""Rows of `export`, in deltas of `DELTA`."""
DELTA = 2_500


def run_of(status: Status) -> Run:
    return make_model_run(Path("/runs/abc"), status=status, params={"lr": 0.1}, notes="n")


def block(first: int, last: int, factor: float = 1.0) -> Block:
    steps = range(first, last)
    columns = {"loss": [factor / (step + 1) for step in steps], "acc": [None if step % 3 else step for step in steps]}
    return make_block(list(steps), columns, first_row=first)


def export(logdir: Path, rows: int, *, size: int = 30, status: Status = Status.RUNNING, factor: float = 1.0) -> None:
    """Export by the target's cursor, in deltas of `size` rows; another `factor` is a rewind."""
    run = run_of(status)
    exporter = TensorBoardExporter(logdir)
    exporter.prepare([run], SHAPE)
    known = exporter.cursors([run])[run.identity]
    target = exporter.open(run, SHAPE)
    begun = known.cursor is not None and factor == 1.0
    if known.exists and not begun:
        target.rebuild(deltas(status, rows, size, factor))
        return
    for delta in deltas(status, rows, size, factor):
        if known.cursor is None or delta.after.rows > known.cursor.rows:
            target.apply(delta)
    if known.cursor and known.cursor.rows == rows and exporter.stale(run, known.cursor, SHAPE):
        target.apply(make_delta(run, before=known.cursor, metrics=("loss", "acc")))


@cache
def deltas(status: Status, rows: int, size: int, factor: float = 1.0) -> tuple[Delta, ...]:
    """Return the whole run, read once, so that the time of an export is that of its writing."""
    run = run_of(status)
    made: list[Delta] = []
    for first in range(0, rows, size):
        last = min(first + size, rows)
        before = made[-1].after if made else None
        picture = media_event(PICTURE, step=first, caption=f"from {first}")
        made.append(make_delta(run, [block(first, last, factor)], media=[picture], before=before))
    return tuple(made)


def content(logdir: Path, name: str = "abc") -> dict[str, bytes]:
    """Return the event files of the run `name` and their names without the generation."""
    folder = logdir / name
    names = [path.name for path in folder.iterdir()]
    left = [name for name in names if name.endswith(".new")]
    assert not left, left
    events = {re.sub(r"\.g\d+$", "", name): (folder / name).read_bytes() for name in names if "tfevents" in name}
    assert len(events) == len([name for name in names if "tfevents" in name]), sorted(names)
    return events


def die_at(step: int) -> None:
    """End this process without a warning, at the `step`-th time that it does something with a file."""
    seen = 0

    def watch(event: str, _: object) -> None:
        nonlocal seen
        if event not in STEPS:
            return
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def kill_at_steps(
    stride: int, logdir: Path, begin: Callable[[], object], export: Callable[[], object]
) -> Iterator[int]:
    """Kill `export` at each `stride`-th step and repair it. Yield each step; at the last one it ends without a kill.

    `begin` makes `logdir` as it is before each export.
    """
    for step in itertools.count(stride, stride):
        shutil.rmtree(logdir, ignore_errors=True)
        begin()
        child = os.fork()
        if not child:
            die_at(step)
            export()
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        export()
        yield step
        if not killed:
            return


def killed_at_every_step(folder: Path, stride: int) -> int:
    """Kill exports of a new, a grown and a rewound run at each `stride`-th step; return the number of kills."""
    need_tensorboard()
    clean, before, logdir = folder / "clean", folder / "before", folder / "logs"
    phases = (
        {"rows": 60},
        {"rows": 90, "status": Status.COMPLETED},
        {"rows": 90, "status": Status.COMPLETED, "factor": 2.0},
    )
    kills = 0
    before.mkdir()
    for phase in phases:
        shutil.rmtree(clean, ignore_errors=True)
        export(clean, **phase)
        for step in kill_at_steps(
            stride, logdir, partial(shutil.copytree, before, logdir), partial(export, logdir, **phase)
        ):
            assert content(logdir) == content(clean), (phase, step)
            kills += 1
        kills -= 1
        shutil.rmtree(before)
        shutil.copytree(logdir, before)
    return kills


def several_killed(folder: Path, stride: int) -> int:
    """Kill an export of three runs at each `stride`-th step. Return how many were killed."""
    root, clean, logdir = folder / "runs", folder / "clean", folder / "logs"
    for name in SEVERAL:
        write_run(root / name, [{"step": step, "loss": step / 8} for step in range(20)])
    assert export_several(root, clean) == ["new"] * 3
    steps = 0
    for step in kill_at_steps(stride, logdir, lambda: None, partial(export_several, root, logdir)):
        assert [content(logdir, name) for name in SEVERAL] == [content(clean, name) for name in SEVERAL], step
        steps += 1
    return steps - 1


def export_several(root: Path, logdir: Path) -> list[str]:
    return [line.action for line in export_runs([root], TensorBoardExporter(logdir)).runs]


def whole_export(logdir: Path) -> None:
    export(logdir, BEFORE_DELTAS, size=DELTA)


if __name__ == "__main__":
    if sys.argv[1] == "every":
        print(killed_at_every_step(Path(sys.argv[2]), int(sys.argv[3])))
    elif sys.argv[1] == "several":
        print(several_killed(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        need_tensorboard()
        whole_export(Path(sys.argv[2]))
