"""Estimated times, and the last rows of a running run, which a later row may supersede."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from bridge.model import DeltaKind, Run
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_run, read_whole
from tests.run_dirs import CREATED_S, write_metrics, write_sidecar
from tests.rundir.targets import events_of, look
from tests.rundir.test_growth import HEADER, points

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.model import Delta


def running(path: Path, rows: list[tuple[float, int]], *, quiet: float = 0.0) -> Run:
    """Make a running run with these (value, step)."""
    write_sidecar(path, status="running")
    write_metrics(path, HEADER, [[value, step, CREATED_S + number] for number, (value, step) in enumerate(rows)])
    (path / "heartbeat").touch()
    then = time.time() - quiet
    os.utime(path / "metrics.csv", (then, then))
    return read_run(path)


def test_the_last_rows_of_a_running_run_are_held_back(tmp_path: Path) -> None:
    """Rows of the last step wait for a later step, a minute of quiet, or the end of the run."""
    path = tmp_path / "run"
    running(path, [(1, 0), (2, 1), (3, 1)])
    first = look(path)
    assert (points(first), first.after.rows, first.after.stat) == ([(0, 1.0)], 1, None)
    assert look(path, first.after).kind is DeltaKind.SAME
    running(path, [(1, 0), (2, 1), (3, 1), (4, 2)])
    second = look(path, first.after)
    assert (points(second), second.after.rows) == ([(1, 3.0)], 3)
    running(path, [(1, 0), (2, 1), (3, 1), (4, 2)], quiet=100)
    third = look(path, second.after)
    assert (points(third), third.after.rows) == ([(2, 4.0)], 4)
    running(path, [(1, 0), (2, 1)])
    write_sidecar(path)
    assert points(look(path)) == [(0, 1.0), (1, 2.0)]
    for limit in (1, 100):
        running(path, [(1, 0), (2, 1), (3, 1)])
        whole = list(read_whole(read_run(path), ContentOptions(), ReadOptions(limit=limit)))
        assert [point for delta in whole for point in points(delta)] == [(0, 1.0)]
        assert whole[-1].after.rows == 1


def test_text_in_waiting_rows_is_reported_when_they_are_sent(tmp_path: Path) -> None:
    """A text cell in a row that is held back causes no notice before the row is exported."""
    path = tmp_path / "run"
    running(path, [(1, 0)])
    columns = ("loss", "acc", "step", "wall_time")
    write_metrics(path, columns, [[1, 1, 0, CREATED_S], ["text", 1, 1, CREATED_S + 1]])
    os.utime(path / "metrics.csv")
    first = look(path)
    assert (first.after.rows, first.notices) == (1, ())
    write_sidecar(path)
    second = look(path, first.after)
    assert [(notice.what, notice.count) for notice in second.notices] == [("loss", 1)]


def times(delta: Delta) -> list[float]:
    """Return the times of the events in seconds from the start of the run."""
    return [then - CREATED_S for _, _, then, _ in events_of([delta])]


def test_estimated_times_of_an_unknown_start_never_go_back(tmp_path: Path) -> None:
    """Where start and end are one moment, which no millisecond hits, each row has that moment as its time."""
    path = tmp_path / "run"
    path.mkdir()
    write_metrics(path, ("loss", "step"), [[0.0, step] for step in range(3)])
    os.utime(path / "metrics.csv", ns=(0, int(CREATED_S) * 10**9 + 170_000))
    found = times(look(path))
    assert min(found) == max(found)


def test_estimated_times_never_move(tmp_path: Path) -> None:
    """Times that were sent stay when the run grows."""
    path = write_sidecar(tmp_path / "run", status="running", time_column=None)
    (path / "heartbeat").touch()

    def grow(rows: int, mtime: float) -> None:
        write_metrics(path, ("loss", "step"), [[0.0, step] for step in range(rows)])
        os.utime(path / "metrics.csv", (CREATED_S + mtime, CREATED_S + mtime))

    grow(4, 40)
    first = look(path)
    assert times(first) == [10, 20, 30, 40]
    assert first.after.anchors == ((0, CREATED_S), (4, CREATED_S + 40))
    assert first.remember is not None
    assert (first.remember.anchors, first.remember.rows) == (first.after.anchors, 0)
    # Killed between the anchor and the points: the same times come again, though the file has grown.
    grow(6, 100)
    again = look(path, first.remember)
    assert times(again) == [10, 20, 30, 40, 70, 100]
    second = look(path, first.after)
    assert times(second) == [70, 100]
    assert second.remember is not None
    assert second.remember.anchors == ((0, CREATED_S), (4, CREATED_S + 40), (6, CREATED_S + 100))
    whole = list(read_whole(read_run(path), ContentOptions(), ReadOptions(), anchors=second.after.anchors))
    assert [then for delta in whole for then in times(delta)] == [10, 20, 30, 40, 70, 100]
    portions = list(read_whole(read_run(path), ContentOptions(), ReadOptions(limit=1), anchors=first.after.anchors))
    assert [then for delta in portions for then in times(delta)] == [10, 20, 30, 40, 70, 100]


def test_anchors_stay_few(tmp_path: Path) -> None:
    """After any number of exports the anchors fit a cursor and keep the first and last."""
    path = write_sidecar(tmp_path / "run", status="running", time_column=None)
    (path / "heartbeat").touch()
    cursor = None
    for rows in range(1, 60):
        write_metrics(path, ("loss", "step"), [[0.0, step] for step in range(rows)])
        os.utime(path / "metrics.csv", (CREATED_S + rows**2, CREATED_S + rows**2))
        cursor = look(path, cursor).after
    assert cursor is not None
    assert len(cursor.anchors) == 32
    assert (cursor.anchors[0], cursor.anchors[-1]) == ((0, CREATED_S), (59, CREATED_S + 59**2))
    assert len(cursor.to_json()) < 4000
