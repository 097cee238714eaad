"""Simultaneous exports, full disks and read-only folders give clear errors and no damage."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import TargetRefusedError, TargetUnavailableError
from bridge.exporters.tensorboard import TensorBoardExporter, target
from bridge.exporters.tensorboard.state import read_state, write_state
from bridge.options import ContentOptions
from bridge.sync.export import export_runs
from tests.deltas import make_block, make_delta, make_model_run
from tests.exporters.tensorboard.event_files import content, file_of, first_of, second_of
from tests.fixtures.permissions import unprivileged
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.exporters.tensorboard.target import TensorBoardTarget
    from bridge.model import Delta, Run

SHAPE = ContentOptions()
PROJECT = Path(__file__).parents[3]

HOLDER = """
import sys
from pathlib import Path
from bridge.locks import file_lock
with file_lock(Path(sys.argv[1]) / ".bridge-target", wait=0):
    print("held", flush=True)
    sys.stdin.read()
"""


RUNS = 5


class Interrupted(TensorBoardExporter):
    """Raises KeyboardInterrupt at the third run."""

    def open(self, run: Run, content: ContentOptions) -> TensorBoardTarget:
        if run.run_id == "run2":
            raise KeyboardInterrupt
        return super().open(run, content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(RUNS):
        make_run(tmp_path / "runs" / f"run{number}", [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}])
    return tmp_path / "runs"


def one_point(run: Run) -> Delta:
    return make_delta(run, [make_block([0], {"loss": [1.0]})])


def large(run: Run) -> Delta:
    """Return a delta whose event file is too large to be written by one call."""
    return make_delta(run, [make_block(list(range(40_000)), {"loss": [1.0] * 40_000})])


@contextlib.contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield while another process holds the lock of `folder`."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_that_another_export_writes(run: Run, exporter: TensorBoardExporter, folder: Path) -> None:
    """The error names the locked folder, and the lock is free once its holder dies."""
    folder.mkdir(parents=True)
    target = exporter.open(run, SHAPE)
    said = f"{folder} is being written by another export"
    with held_by_another(folder), pytest.raises(TargetUnavailableError, match=said):
        target.apply(one_point(run))
    assert target.apply(one_point(run)).points == 1


def test_a_first_export_that_another_one_is_writing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files whose state another export is about to write are not taken for damage, so nothing is rebuilt."""
    one, other = (TensorBoardExporter(tmp_path / "logs") for _ in range(2))
    writes, may_write = threading.Event(), threading.Event()

    def write_later(*arguments: Any) -> None:
        writes.set()
        assert may_write.wait(60.0)
        write_state(*arguments)

    monkeypatch.setattr(target, "write_state", write_later)
    with ThreadPoolExecutor() as pool:
        written = pool.submit(other.open(run, SHAPE).apply, one_point(run))
        assert writes.wait(60.0)
        states = pool.submit(one.cursors, [run])
        with pytest.raises(TimeoutError):
            states.result(0.2)
        may_write.set()
        assert written.result(60.0).points == 1
        assert states.result(60.0)[run.identity].cursor is not None


def test_a_run_of_the_same_name_that_another_export_writes(tmp_path: Path) -> None:
    """A run whose folder another run took meanwhile is not exported yet: the state there is not its own."""
    runs = [make_model_run(tmp_path / name / "abc", identity=name) for name in "xy"]
    one, other = (TensorBoardExporter(tmp_path / "logs") for _ in runs)
    one.prepare(runs[:1], SHAPE)
    other.open(runs[1], SHAPE).apply(one_point(runs[1]))
    assert not one.cursors(runs[:1])[runs[0].identity].exists
    with pytest.raises(TargetUnavailableError, match="was changed by someone else"):
        one.open(runs[0], SHAPE).apply(one_point(runs[0]))


def test_waiting_for_the_lock(run: Run, folder: Path) -> None:
    """An export waits for a locked folder for a while, and continues once it is free."""
    folder.mkdir(parents=True)
    target = TensorBoardExporter(folder.parent, lock_wait=60.0).open(run, SHAPE)
    with held_by_another(folder) as holder:
        threading.Timer(0.2, holder.kill).start()
        done = target.apply(one_point(run))
    assert (done.points, done.notes) == (1, ())


def test_a_file_system_without_locks(
    run: Run, exporter: TensorBoardExporter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without locks the export warns and continues."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    done = exporter.open(run, SHAPE).apply(one_point(run))
    assert done.notes == (f"{folder}: this file system has no locks; two exports at once would not notice each other",)
    assert done.points == 1


FULL = """
import resource, sys
from pathlib import Path
from bridge.errors import BridgeError
from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.exporters.tensorboard.events import require_tensorboard
from bridge.options import ContentOptions
from tests.deltas import make_block, make_delta, make_model_run
run = make_model_run(Path("/runs/abc"))
target = TensorBoardExporter(Path(sys.argv[1])).open(run, ContentOptions())
first = make_delta(run, [make_block(list(range(1000)), {"loss": [1.0] * 1000})])
target.apply(first)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
rows = range(1000, int(sys.argv[3]))
block = make_block(list(rows), {"loss": [1.0] * len(rows)}, first_row=1000)
try:
    target.apply(make_delta(run, [block], before=first.after))
except BridgeError as error:
    print(type(error).__name__, error, error.hint)
"""


@pytest.mark.parametrize(("room", "rows"), [(60_000, 9_000), (1_200_000, 40_000)], ids=["small", "large"])
def test_a_full_disk(tmp_path: Path, room: int, rows: int) -> None:
    """On a full disk the error says so, and everything is as after the last successful export."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "logs"), str(room), str(rows)]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert said.startswith("TargetRefusedError No space left to write the event files: ")
    assert "What was exported before is whole." in said
    run = make_model_run(Path("/runs/abc"))
    clean = TensorBoardExporter(tmp_path / "clean").open(run, SHAPE)
    clean.apply(make_delta(run, [make_block(list(range(1000)), {"loss": [1.0] * 1000})]))
    assert content(tmp_path / "logs" / "abc") == content(tmp_path / "clean" / "abc")


def test_a_full_disk_that_only_a_flush_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file that a failed export wrote is removed, also if the failure comes as late as the flush."""
    run = make_model_run(Path("/runs/abc"))

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(TargetRefusedError, match="No space left"):
        TensorBoardExporter(tmp_path).open(run, SHAPE).apply(large(run))
    assert [path.name for path in tmp_path.glob("*/*")] == [".bridge-target"]


def test_what_a_power_cut_could_damage_unnoticed_is_flushed(
    run: Run, exporter: TensorBoardExporter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that grows or is written in parts is on the disk before its state.

    A small new file is not flushed: it would be short or empty, which the next export notices.
    """
    flushed: list[tuple[int, int | None]] = []

    def flush(descriptor: int) -> None:
        state = read_state(folder)
        flushed.append((os.fstat(descriptor).st_ino, state.cursor.rows if state and state.cursor else None))

    monkeypatch.setattr(os, "fsync", flush)
    opened = exporter.open(run, SHAPE)
    first = first_of(run)
    opened.apply(first)
    assert flushed == []
    opened.apply(second_of(run, first))
    assert flushed == [(file_of(folder, "scalars").stat().st_ino, 2)]
    opened.rebuild([large(run)])
    assert flushed[1:] == [(file_of(folder, "scalars").stat().st_ino, 4)]


def test_a_disk_that_fails_at_the_end(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If what grew cannot be flushed, each run has failed; the next export brings them all in."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    exporter = TensorBoardExporter(tmp_path / "logs")
    assert export_runs([root], exporter).exit_code == 0
    for path in root.iterdir():
        write_metrics(path, ["loss", "step", "wall_time"], [(0.5, 2, CREATED_S + 2)], append=True)
    with monkeypatch.context() as context:
        context.setattr(os, "fsync", fail)
        report = export_runs([root], exporter)
    assert [line.action for line in report.runs] == ["failed"] * RUNS
    assert all(line.reason.endswith("Input/output error.") and line.retry for line in report.runs)
    report = export_runs([root], exporter)
    assert [(line.action, line.points) for line in report.runs] == [("changed", 1)] * RUNS


def test_an_interrupt_keeps_what_was_written(root: Path, tmp_path: Path) -> None:
    """Ctrl-C between runs: those that were written are acknowledged, and the next export sends the others."""
    with pytest.raises(KeyboardInterrupt):
        export_runs([root], Interrupted(tmp_path / "logs"))
    actions = [line.action for line in export_runs([root], TensorBoardExporter(tmp_path / "logs")).runs]
    assert sorted(actions) == ["new", "new", "new", "unchanged", "unchanged"]


def test_a_log_directory_that_cannot_be_written(public: Path, run: Run) -> None:
    """A read-only log directory is an error that names it before anything is written."""
    target = TensorBoardExporter(public / "logs").open(run, SHAPE)
    (public / "logs").mkdir()
    (public / "logs").chmod(0o555)
    with unprivileged(), pytest.raises(TargetRefusedError, match="The log directory cannot be written") as caught:
        target.apply(one_point(run))
    assert caught.value.hint == "Choose a --logdir that you may write to."


def test_a_log_directory_that_is_a_file(run: Run, exporter: TensorBoardExporter, folder: Path) -> None:
    """A file in place of the log directory is an error before anything else happens."""
    folder.parent.write_text("no folder")
    with pytest.raises(TargetRefusedError, match="logs is not a folder"):
        exporter.prepare([run], SHAPE)


def test_a_file_on_the_way_to_a_folder(tmp_path: Path) -> None:
    """A file in place of a parent of the run's folder is an error of that run."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a").write_text("no folder")
    run = make_model_run(tmp_path / "runs" / "abc", run_id="a/b", name="a/b")
    exporter = TensorBoardExporter(tmp_path / "logs")
    exporter.prepare([run], SHAPE)
    assert not exporter.cursors([run])[run.identity].exists
    with pytest.raises(TargetUnavailableError, match="The event files cannot be written"):
        exporter.open(run, SHAPE).apply(one_point(run))
