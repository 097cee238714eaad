"""A run reaches the disk in time, and survives the end of the process, threads, forks and signals."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logger import RegistryLoggerWarning, heartbeat, run_writer
from logger.media import Encoded
from logger.run_writer import open_writer
from tests.logger.rows import edit_sidecar, in_child, read_rows, sidecar, start, steps, summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logger import RunWriter
    from logger.open_run import Settings

    Alarm = Callable[[Callable[[], None]], Callable[[float], object]]

ROOT = Path(__file__).parents[2]
INTERVAL, JSON_PAUSE = heartbeat.TIMER_INTERVAL, run_writer.JSON_PAUSE


@pytest.fixture(autouse=True)
def _no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the writers' threads sleep, so that tests say when they do something: all of it, without a pause."""
    monkeypatch.setattr(heartbeat, "TIMER_INTERVAL", 3600.0)
    monkeypatch.setattr(run_writer, "JSON_PAUSE", 0.0)


def wait_for(true: Callable[[], bool]) -> None:
    """Wait until `true()`, and fail after a minute."""
    end = time.perf_counter() + 60
    while not true():
        assert time.perf_counter() < end
        time.sleep(0.02)


def background_threads() -> set[threading.Thread]:
    """Return the writers' threads that run in this process."""
    return {thread for thread in threading.enumerate() if thread.name == "registry-logger-heartbeat"}


def test_rows_do_not_wait_for_the_json_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are logged and saved while the thread writes the JSON files to a slow disk."""
    writer = start(tmp_path)
    writer.log_metrics({"a": 1.0}, 0)
    slow, done, sync = threading.Event(), threading.Event(), os.fsync

    def slow_sync(descriptor: int) -> None:
        slow.set()
        assert done.wait(60)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_sync)
    thread = threading.Thread(target=writer.on_timer, daemon=True)
    thread.start()
    assert slow.wait(60)
    writer.log_metrics({"a": 2.0}, 1)
    writer.save()
    assert (steps(tmp_path), summary(tmp_path)["step"]) == ([0, 1], None)
    done.set()
    thread.join()
    assert (summary(tmp_path)["step"], sidecar(tmp_path)["summary"]) == (0, {"a": 1.0})
    writer.release()
    assert summary(tmp_path)["step"] == 1


def test_rows_are_on_disk_after_so_many_without_a_save(tmp_path: Path) -> None:
    """Without a save rows are written after every `flush_logs_every_n_steps` of them."""
    writer = start(tmp_path, flush_every=3)
    for step in (0, 100):
        writer.log_metrics({"a": 1.0}, step)
    assert writer.rows == 2
    assert not (tmp_path / "metrics.csv").exists()
    writer.log_metrics({"a": 1.0}, 200)
    assert steps(tmp_path) == [0, 100, 200]
    writer.release()


def test_the_last_state_is_on_disk_within_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread touches the heartbeat and writes what was logged, without a further call, until the run ends."""
    assert JSON_PAUSE + 2 * INTERVAL < 10
    monkeypatch.setattr(heartbeat, "TIMER_INTERVAL", 0.1)
    monkeypatch.setattr(run_writer, "JSON_PAUSE", 0.3)
    others = background_threads()
    writer = start(tmp_path)
    writer.log_metrics({"a": 2.0}, 7)
    os.utime(tmp_path / "heartbeat", (1.0, 1.0))
    wait_for(lambda: summary(tmp_path)["step"] == 7)
    assert steps(tmp_path) == [7]
    wait_for(lambda: (tmp_path / "heartbeat").stat().st_mtime > 1.0)
    writer.finalize("completed")
    wait_for(lambda: background_threads() <= others)
    os.utime(tmp_path / "heartbeat", (1.0, 1.0))
    writer.log_metrics({"a": 3.0}, 8)
    wait_for(lambda: summary(tmp_path)["step"] == 8)
    assert (tmp_path / "heartbeat").stat().st_mtime == 1.0
    wait_for(lambda: background_threads() <= others)


PROGRAM = """
import sys
from logger import RunWriter
writer = RunWriter.open(sys.argv[1], "r")
for step in range(60):
    writer.log_metrics({"a": 1.0}, step)
"""


@pytest.mark.parametrize(
    ("ending", "code"), [("", 0), ("sys.exit(3)", 3), ("raise RuntimeError", 1), ("import os; os._exit(0)", 0)]
)
def test_the_end_of_the_process_loses_nothing(tmp_path: Path, ending: str, code: int) -> None:
    """However the interpreter ends, every row and the last state are on disk.

    After os._exit, which runs no handlers, the saved rows are there.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + ending, tmp_path], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == code
    rows = 50 if "_exit" in ending else 60
    assert len(read_rows(tmp_path)) == rows
    assert (summary(tmp_path)["step"], sidecar(tmp_path)["status"]) == (None if rows == 50 else 59, "running")


def _child(settings: Settings) -> None:
    writer = open_writer(settings)
    for _ in range(3):
        writer.log_metrics({"child": 1.0})
    assert len(background_threads()) == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_goes_on_in_the_same_session(tmp_path: Path, method: str) -> None:
    """A forked or spawned child writes in the same session, and the parent's rows stay single."""
    writer = start(tmp_path)
    writer.log_metrics({"parent": 1.0}, 0)
    writer.save()
    writer.log_metrics({"parent": 1.0}, 1)
    in_child(_child, writer.settings, method=method)
    writer.release()
    found = read_rows(tmp_path)
    assert sorted(next(iter(row.keys() - {"step", "wall_time"})) for row in found) == ["child"] * 3 + ["parent"] * 2
    assert len(sidecar(tmp_path)["sessions"]) == 1


def _train(settings: Settings) -> None:
    writer = open_writer(settings)
    for step in range(3):
        writer.log_metrics({"acc": step / 2}, step)
    writer.log_hparams({"lr": 0.1})
    writer.set_checkpoint("/best.ckpt")
    writer.finalize("completed")


@pytest.mark.parametrize("tick", [False, True])
@pytest.mark.parametrize("late", ["", "a row", "an end"])
def test_a_parent_goes_on_from_what_its_child_wrote(tmp_path: Path, late: str, tick: bool) -> None:
    """A parent that opened the run before its child trained in it keeps the child's state, whatever it does then."""
    writer = start(tmp_path)
    writer.log_hparams({"seed": 1})
    writer.log_metrics({"before": 1.0}, 0)
    writer.save()
    in_child(_train, writer.settings)
    if tick:
        writer.on_timer()
    if late == "a row":
        writer.log_metrics({"test": 4.0})
    elif late == "an end":
        writer.finalize("failed")
    writer.release()
    found, held = sidecar(tmp_path), summary(tmp_path)
    assert (found["hparams"], found["checkpoint_path"]) == ({"seed": 1, "lr": 0.1}, "/best.ckpt")
    assert found["summary"] == {"before": 1.0, "acc": 1.0} | ({"test": 4.0} if late == "a row" else {})
    assert found["status"] == ("failed" if late == "an end" else "completed")
    assert (held["metrics"]["acc"]["count"], held["step"], held["rows"]) == (
        3,
        steps(tmp_path)[-1],
        len(steps(tmp_path)),
    )
    assert steps(tmp_path) == [0, 0, 1, 2] + [3] * (late == "a row")
    assert len(found["sessions"]) == 1


def test_a_fork_that_writes_nothing_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the fork of a data loader's worker the run is not read again, even if a person edited it."""
    writer = start(tmp_path)
    writer.log_metrics({"a": 1.0}, 0)
    monkeypatch.setattr(run_writer, "open_directory", None)
    in_child(os.getpid)
    edit_sidecar(tmp_path, notes="mine")
    writer.log_metrics({"a": 2.0}, 1)
    writer.finalize("completed")
    assert (steps(tmp_path), sidecar(tmp_path)["notes"]) == ([0, 1], "mine")


def _in_the_background(writer: RunWriter) -> None:
    (writer.run_dir / "heartbeat").unlink()
    writer.log_metrics({"a": 2.0}, 1)
    wait_for(lambda: summary(writer.run_dir)["step"] == 1 and (writer.run_dir / "heartbeat").exists())


def test_a_program_may_fork_itself_into_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process that goes on with its parent's writer beats and writes the JSON files."""
    writer = start(tmp_path)
    writer.log_metrics({"a": 1.0}, 0)
    writer.save()
    monkeypatch.setattr(heartbeat, "TIMER_INTERVAL", 0.05)
    in_child(_in_the_background, writer)
    writer.release()


def _leave(run: RunWriter) -> None:
    with run:
        pass


def test_a_forked_child_that_leaves_the_block_ends_nothing(tmp_path: Path) -> None:
    """Only the process that opened a RunWriter block ends its run, and its rows are there once."""
    with start(tmp_path) as run:
        run.log_metrics({"a": 1.0}, 0)
        in_child(_leave, run)
        assert sidecar(tmp_path)["status"] == "running"
    assert (steps(tmp_path), sidecar(tmp_path)["status"]) == ([0], "completed")


def test_without_a_thread_log_calls_bring_everything_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, as at the end of the process, a run is written and ended all the same."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.warns(RegistryLoggerWarning, match="no thread can be started"):
        writer = start(tmp_path)
    for step in range(2):
        writer.log_metrics({"a": float(step)}, step)  # a second warning would be an error
    assert (steps(tmp_path), summary(tmp_path)["step"]) == ([0, 1], 1)
    writer.finalize("completed")
    assert sidecar(tmp_path)["status"] == "completed"


def test_threads_that_log_together_lose_nothing(tmp_path: Path) -> None:
    """Rows logged by several threads are all there and whole."""
    writer = start(tmp_path)

    def log(name: str) -> None:
        for number in range(200):
            writer.log_metrics({name: float(number)}, number)
            writer.save()

    threads = [threading.Thread(target=log, args=(f"thread_{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.finalize("completed")
    found = read_rows(tmp_path)
    for number in range(4):
        values = [row[f"thread_{number}"] for row in found if f"thread_{number}" in row]
        assert values == [repr(float(value)) for value in range(200)]


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    """Return a function that makes its argument the handler of a timer, and returns how to set the timer in seconds."""
    before = signal.getsignal(signal.SIGALRM)

    def handle(handler: Callable[[], None]) -> Callable[[float], None]:
        signal.signal(signal.SIGALRM, lambda *_: handler())
        return functools.partial(signal.setitimer, signal.ITIMER_REAL)

    yield handle
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_may_finalize_in_the_middle_of_anything(tmp_path: Path, alarm: Alarm) -> None:
    """A signal handler can finalize at any instant without deadlock, loss or duplicates."""
    writer = start(tmp_path)
    calls = armed = step = 0

    def handler() -> None:
        nonlocal calls
        calls += 1
        writer.log_metrics({"handler": 1.0}, 0)
        writer.finalize("interrupted")

    set_timer = alarm(handler)
    while calls < 60:
        if calls == armed:
            armed += 1
            set_timer(0.0005 + 0.00005 * calls)
        writer.log_metrics({"a": float(step)}, step)
        writer.save()
        step += 1
    writer.finalize("completed")
    found = read_rows(tmp_path)
    assert [float(row["a"]) for row in found if "a" in row] == [float(number) for number in range(step)]
    assert sum("handler" in row for row in found) == calls
    assert sidecar(tmp_path)["status"] == "completed"


# The exception may come between the opening of a file and the first line that would close it; Python closes it then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_instant_loses_and_doubles_nothing(tmp_path: Path, alarm: Alarm) -> None:
    """A KeyboardInterrupt anywhere in a log call keeps accepted rows once and the writer usable."""
    writer = start(tmp_path, flush_every=1)

    def handler() -> None:
        raise KeyboardInterrupt

    set_timer = alarm(handler)
    interrupts = lost = step = 0
    while interrupts < 60:
        try:
            set_timer(0.0005 + 0.00003 * interrupts)
            for _ in range(2_000):
                step += 1
                writer.log_metrics({"a": float(step), f"m{step // 50}": 1.0}, step)
                writer.save()
            lost += 1  # Python drops an exception that is raised while it destroys an object
            assert lost < 4, "a Ctrl-C is lost again and again"
        except KeyboardInterrupt:
            interrupts += 1
    writer.finalize("interrupted")
    values = [int(float(row["a"])) for row in read_rows(tmp_path)]
    assert sorted(set(values)) == values
    assert len(values) >= step - interrupts  # the call that was interrupted may not have taken its row
    assert sidecar(tmp_path)["status"] == "interrupted"


def test_a_refusing_disk_is_reported_once_and_tried_again(tmp_path: Path) -> None:
    """While the directory is away no call raises, and once it is back all rows are written."""
    run_dir = tmp_path / "run"
    writer = start(run_dir, flush_every=1)
    writer.log_metrics({"a": 1.0}, 0)
    run_dir.rename(tmp_path / "away")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in (1, 2):
            writer.log_metrics({"b": 1.0}, step)
            writer.log_image("i", [np.zeros((2, 2))], step)
            writer.log_hparams({"lr": step})
            writer.set_checkpoint("last.ckpt")
            writer.tags = ["a"]
            writer.finalize("completed")
    sentences = [str(warning.message) for warning in told]
    for part in ("is kept in memory", "'i' at step 1 could not be stored", "1 row of"):
        assert sum(part in sentence for sentence in sentences) == 1
    assert not run_dir.exists()
    (tmp_path / "away").rename(run_dir)
    writer.finalize("completed")
    assert (steps(run_dir), summary(run_dir)["rows"]) == ([0, 1, 2], 3)
    assert (sidecar(run_dir)["status"], sidecar(run_dir)["tags"]) == ("completed", ["a"])


def test_rows_in_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds a million values while the disk refuses; later rows are dropped and counted."""
    monkeypatch.setattr(run_writer, "_MAX_WAITING_VALUES", 100)
    writer = start(tmp_path / "run", flush_every=10)
    writer.log_metrics({"a": 0.0}, 0)
    writer.save()
    (tmp_path / "run").rename(tmp_path / "away")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(1, 301):
            writer.log_metrics({"a": 1.0, "b": 2.0}, step)
        writer.finalize("completed")
    assert "300 rows of" in str(told[-1].message)
    (tmp_path / "away").rename(tmp_path / "run")
    writer.release()
    assert steps(tmp_path / "run") == list(range(51))
    assert sidecar(tmp_path / "run")["summary"] == {"a": 1.0, "b": 2.0}


def refused_rows(run_dir: Path, limit_files: Callable[[int | None], None]) -> RunWriter:
    """Return a writer with 20 rows on disk and 300 refused ones, whose JSON files were written."""
    limit_files(4000)
    writer = start(run_dir, flush_every=1000)
    for step in range(320):
        writer.log_metrics({"a": float(step)}, step)
        if step == 19:
            writer.set_checkpoint("last.ckpt")
    with pytest.warns(RegistryLoggerWarning, match="tried again"):
        writer.set_checkpoint("last.ckpt")
    assert (len(read_rows(run_dir)), sidecar(run_dir)["summary"]["a"]) == (20, 319.0)
    return writer


@pytest.mark.parametrize("by", ["the thread", "save", "the end of the process", "the thread after finalize"])
def test_rows_that_the_disk_refused_get_there_when_it_takes_them(
    tmp_path: Path, by: str, limit_files: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused rows are written later, even though the JSON files were written before, and then the thread ends."""
    monkeypatch.setattr(run_writer, "_RETRY_AFTER", 0.0)
    others = background_threads()
    writer = refused_rows(tmp_path, limit_files)
    if by == "the thread after finalize":
        writer.finalize("completed")
        assert len(read_rows(tmp_path)) == 20
    limit_files(None)
    if by == "save":
        writer.save()
    elif by == "the end of the process":
        writer.release()
    else:
        writer.on_timer()
    assert steps(tmp_path) == list(range(320))
    if by == "the thread after finalize":
        writer.on_timer()
    else:
        writer.release()
    assert summary(tmp_path)["rows"] == 320
    wait_for(lambda: background_threads() <= others)


@pytest.mark.parametrize("rows", [20, 0])
def test_a_kill_while_the_disk_refuses_leaves_statistics_of_the_rows_on_disk(
    tmp_path: Path, rows: int, limit_files: Callable[[int | None], None]
) -> None:
    """The next start ignores statistics of rows that never reached the disk."""
    writer = refused_rows(tmp_path / "run", limit_files)
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    limit_files(None)
    writer.release()
    if not rows:
        (tmp_path / "killed" / "metrics.csv").unlink()
    resumed = start(tmp_path / "killed")
    assert (resumed.stats["a"].count if rows else len(resumed.stats), resumed.rows) == (rows, rows)
    resumed.release()


def test_the_heartbeat_goes_on_while_a_call_of_the_training_takes_long(tmp_path: Path) -> None:
    """The heartbeat continues during a call that takes minutes, such as a large video."""
    writer = start(tmp_path)
    writer.log_metrics({"a": 1.0}, 0)

    def encode() -> Encoded:
        os.utime(tmp_path / "heartbeat", (1.0, 1.0))
        thread = threading.Thread(target=writer.on_timer, daemon=True)
        thread.start()
        thread.join(20)
        return Encoded("png", b"\x89PNG")

    writer.log_media("video", "video", encode, step=0, caption=None)
    assert (tmp_path / "heartbeat").stat().st_mtime > 1.0
    writer.release()


def test_a_directory_that_cannot_be_made_raises_at_once(tmp_path: Path) -> None:
    """A directory that cannot be made raises before the first row."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        start(tmp_path / "file" / "run")


def test_edits_of_others_are_taken_over_at_every_write(tmp_path: Path) -> None:
    """Each write keeps people's edits of notes, tags, names and unknown fields.

    Fields of the training are overwritten.
    """
    writer = start(tmp_path, tags=("given",), notes="first")
    for number in range(3):
        mine = {"notes": f"edit {number}", "tags": ["mine"], "display_name": "best", "archived": True}
        mine |= {"unknown": {"number": number}}
        edit_sidecar(tmp_path, **mine, status="failed", hparams={"lr": 1})
        writer.log_hparams({"depth": 2})
        found = sidecar(tmp_path)
        assert {name: found[name] for name in mine} == mine
        assert (found["status"], found["hparams"]) == ("running", {"depth": 2})
    edit_sidecar(tmp_path, display_name=None)
    writer.finalize("completed")
    assert "display_name" not in sidecar(tmp_path)


def test_an_edit_that_comes_while_the_sidecar_is_written_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit between reading and renaming is found before the rename, and kept."""
    writer = start(tmp_path)
    real, edits = os.fsync, []

    def fsync(descriptor: int) -> None:
        if not edits:
            edits.append(1)
            edit_sidecar(tmp_path, notes="just now")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    writer.finalize("completed")
    assert (sidecar(tmp_path)["notes"], sidecar(tmp_path)["status"]) == ("just now", "completed")


def test_a_sidecar_broken_by_an_editor_is_kept_aside(tmp_path: Path) -> None:
    """A sidecar that is no JSON is renamed, and the run keeps what it knew."""
    writer = start(tmp_path, tags=("a",))
    (tmp_path / "sidecar.json").write_text('{"notes": "half an ed')
    writer.finalize("completed")
    assert (tmp_path / "sidecar.json.1").read_text() == '{"notes": "half an ed'
    assert (sidecar(tmp_path)["tags"], sidecar(tmp_path)["status"]) == (["a"], "completed")
