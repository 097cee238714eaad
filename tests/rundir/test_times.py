"""Start, end and status of runs without recorded times, and of copies that lost their mtimes."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from bridge.model import Status
from bridge.registry import open_registry
from bridge.rundir import read_run
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from pathlib import Path

NOW = CREATED_S + 100 * 86400.0
HOUR = 3600.0


def csv_logger(path: Path, *, hparams: float | None = None, metrics: float = NOW) -> Path:
    """Write a directory as CSVLogger does; the numbers are mtimes."""
    path.mkdir(parents=True)
    write_metrics(path, ("loss", "step"), [[1.0, 0], [0.5, 1]])
    os.utime(path / "metrics.csv", (metrics, metrics))
    if hparams is not None:
        (path / "hparams.yaml").write_text("lr: 0.1\n")
        os.utime(path / "hparams.yaml", (hparams, hparams))
    return path


def touch_all(path: Path, now: float) -> None:
    """Give all files the mtime `now`, as `cp -r` does."""
    for file in path.iterdir():
        os.utime(file, (now, now))


@pytest.mark.parametrize(
    ("name", "hparams", "start"),
    [
        ("version_0", NOW - HOUR, NOW - HOUR),  # written once, at the start
        ("version_0", NOW + 1, None),  # Lightning 2.4 rewrites it at each save
        ("version_0", None, None),
        ("2026-04-11_08-30-00", None, (2026, 4, 11, 8, 30, 0)),
        ("20260411T083000", NOW - HOUR, (2026, 4, 11, 8, 30, 0)),
        ("2026-04-11/08-30-00", None, (2026, 4, 11, 8, 30, 0)),
    ],
)
def test_the_start_of_a_run_that_does_not_say(
    tmp_path: Path, name: str, hparams: float | None, start: float | tuple[int, ...] | None
) -> None:
    """The start is a stamp in a name, else the oldest mtime well before the end, else unknown."""
    run = read_run(csv_logger(tmp_path / name, hparams=hparams))
    expected = time.mktime((*start, 0, 0, -1)) if isinstance(start, tuple) else NOW if start is None else start
    assert (run.start, run.end, run.start_estimated, run.status) == (expected, NOW, True, Status.UNKNOWN)
    (record,) = open_registry(run.path)
    assert record.duration == (None if start is None else NOW - expected)


def test_an_event_file_tells_the_start(tmp_path: Path) -> None:
    """The stamp in an event file's name beside metrics.csv is the start."""
    path = csv_logger(tmp_path / "run")
    (path / f"events.out.tfevents.{int(NOW - HOUR)}.host.1.0").touch()
    assert read_run(path).start == NOW - HOUR


def test_the_end_is_never_before_the_start(tmp_path: Path) -> None:
    """The end is not before the start, even if two clocks disagree."""
    run = read_run(make_run(tmp_path / "run", created_at=CREATED_S, ended_at=CREATED_S - 5))
    assert (run.start, run.end) == (CREATED_S, CREATED_S)


def killed(path: Path, **sidecar: object) -> Path:
    """Write a killed run whose heartbeat holds its last time, as ours does, or nothing."""
    rows = [{"step": 0, "loss": 1.0, "wall_time": NOW - 60}]
    make_run(path, rows, status="running", updated_at=NOW - 120, **sidecar)
    touch_all(path, NOW)
    return path


@pytest.mark.parametrize("ours", [True, False])
def test_a_copy_without_its_times_stays_ended(tmp_path: Path, ours: bool) -> None:
    """The end is the time in the heartbeat, else that of the sidecar or the last row."""
    path = killed(tmp_path / "run", sessions=[{"host": "a"}] if ours else [])
    if ours:
        (path / "heartbeat").write_text(f"{NOW - 30:017.6f}\n")
        os.utime(path / "heartbeat", (NOW - 30, NOW - 30))
    before = read_run(path)
    touch_all(path, time.time())
    after = read_run(path)
    assert (before.status, after.status) == (Status.KILLED, Status.KILLED)
    assert before.end == (NOW - 30 if ours else NOW)
    assert after.end == (NOW - 30 if ours else NOW - 60)


def test_a_run_that_goes_on_is_no_copy(tmp_path: Path) -> None:
    """A fresh heartbeat with an old sidecar is a running run, not a copy."""
    path = killed(tmp_path / "run")
    os.utime(path / "heartbeat")
    os.utime(path / "metrics.csv")
    assert read_run(path).status is Status.RUNNING


def test_a_heartbeat_of_another_clock(tmp_path: Path) -> None:
    """A writer whose clock is minutes behind the file server's is alive."""
    path = killed(tmp_path / "run", sessions=[{"host": "a"}])
    (path / "heartbeat").write_text(f"{time.time() - 600:017.6f}\n")
    assert read_run(path).status is Status.RUNNING


def test_a_copied_run_is_listed_as_it_is_exported(tmp_path: Path) -> None:
    """All commands show the same status and times."""
    shutil.copytree(killed(tmp_path / "original"), tmp_path / "runs" / "copy", copy_function=shutil.copyfile)
    touch_all(tmp_path / "runs" / "copy", time.time())
    (record,) = open_registry(tmp_path / "runs")
    run = read_run(tmp_path / "runs" / "copy")
    assert (record.status, record.end) == (run.status, run.end) == (Status.KILLED, NOW - 60)
