"""Decide from the files of a run directory when the run began and ended, whether it is alive, and what its status is.

Files without these times are dated by their mtimes and names, and such a time is an estimate. Ages are measured by the
file server's clock where that is known.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import stat
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from bridge.files import cache_dir, open_plain, read_head
from bridge.model import RunFile, Status
from bridge.rundir.discover import lstat
from bridge.rundir.event_runs import FRESH
from bridge.rundir.header import cells_of, first_row, read_layout
from logger.sidecar import Sidecar, parse_heartbeat, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ENDED = {"completed": Status.COMPLETED, "failed": Status.FAILED, "interrupted": Status.INTERRUPTED}
"""The sidecar's words for runs that ended, and their status."""

_HOUR = 3600.0

_ALLOWANCE = 60.0
"""Seconds by which the file server's clock may be off while it is not known."""

_REFRESH_S = 300.0
_WELL_BEFORE = 60.0
"""Seconds by which a file must be older than the end of its run to tell of the start."""

_TAIL_BYTES = 1 << 16
_STAMP = re.compile(r"(20\d\d)[-_.]?(\d\d)[-_.]?(\d\d)[-_T/ ]?(\d\d)[-_.:h]?(\d\d)[-_.:m]?(\d\d)(?!\d)")
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
_TEST_TUBE_TIME = "created_at"
"""The column of times in a metrics.csv of test-tube, Lightning's first logger."""


@dataclass(frozen=True, slots=True)
class RunTimes:
    """The status of a run and its times, in seconds since the epoch. `end` is None while it runs.

    `last_alive` is its last sign of life, or its start if it never gave one.
    """

    status: Status
    start: float
    start_estimated: bool
    end: float | None
    end_estimated: bool
    last_alive: float


def read_times(
    real: Path,
    sidecar: Sidecar,
    files: Mapping[str, RunFile],
    time_column: str | None,
    *,
    heartbeat_timeout: float,
    events: Sequence[RunFile] = (),
    first: float | None = None,
    last: float | None = None,
) -> RunTimes:
    """Return the status and times of the run in the folder `real`; `files` are its files that are safe to read.

    A run that calls itself running, but has given no sign of life for `heartbeat_timeout` seconds, is killed. `first`
    and `last` are the times of the first and the last event in `events`, the event files of a run that has no other
    files.
    """
    if events:
        life = _last_event(events, last)
        heartbeat_timeout = max(heartbeat_timeout, FRESH)
    else:
        life = _sign_of_life(real, sidecar, files, time_column)
    status = _status(sidecar.status, alive=life.age < heartbeat_timeout)
    start, start_estimated = (first, False) if first is not None else _start(real, sidecar, files, life, time_column)
    end, end_estimated = _end(status, sidecar, life, start)
    last_alive = start if life.last is None else life.last
    return RunTimes(status, start, start_estimated, end, end_estimated, last_alive)


def _status(word: str | None, *, alive: bool) -> Status:
    """Return the status that is shown, by the table in docs/reference/run-directory.md."""
    if word in ENDED:
        return ENDED[word]
    if alive:
        return Status.RUNNING
    return Status.KILLED if word == "running" else Status.UNKNOWN


@lru_cache
def _clock_in(directory: Path | None) -> _Clock:
    return _Clock(directory)


def _age(found: os.stat_result, then: float | None = None) -> float:
    """Return `_Clock.age` by the clock that this process has in its folder for caches."""
    try:
        clock = _clock_in(cache_dir())
    except RuntimeError:  # there is no home folder
        clock = _clock_in(None)
    return clock.age(found, then)


class _Clock:
    """Tell how old files are.

    `directory`, a cache of ours, may be written to. Files on its file system are judged by the clock that dates a new
    file there. Other files are judged by this machine's clock, a minute in their favour.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._device: int | None = None
        self._ahead = 0.0
        self._asked = -_REFRESH_S
        self._comparing = threading.Lock()

    def age(self, found: os.stat_result, then: float | None = None) -> float:
        """Return the age in seconds, never negative, of the file with the stat result `found`.

        `then`, a time that the file's writer stated, replaces its mtime.
        """
        with self._comparing:
            self._compare()
        now = time.time() - (found.st_mtime if then is None else then)
        if self._device is not None and found.st_dev == self._device:
            return max(0.0, now + self._ahead)
        return max(0.0, now - _ALLOWANCE)

    def _compare(self) -> None:
        """Compare the two clocks, again every few minutes, since a long `--follow` sees them drift."""
        if self._directory is None or time.monotonic() - self._asked < _REFRESH_S:
            return
        self._asked = time.monotonic()
        self._device = None
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".clock-") as file:
                before = time.time()
                file.write(b".")
                file.flush()
                os.fsync(file.fileno())
                found = os.fstat(file.fileno())
                self._ahead = found.st_mtime - (before + time.time()) / 2
                self._device = found.st_dev


@dataclass(frozen=True, slots=True)
class _SignOfLife:
    """The last sign of life: its time (None if there never was one), its age in seconds, whether a writer stated it."""

    last: float | None
    age: float
    stated: bool = False


def _sign_of_life(real: Path, sidecar: Sidecar, files: Mapping[str, RunFile], time_column: str | None) -> _SignOfLife:
    """Return the last sign of life.

    Copying a directory without its times makes its files look new. The times that stand inside the files then decide.
    """
    beat = _stat(f"{real}/heartbeat")
    if sidecar.status in ENDED:  # nobody asks how old an ended run is
        written_last = files.get("metrics.csv") or files.get("sidecar.json")
        last = beat.st_mtime if beat else written_last.mtime_ns / 1e9 if written_last else None
        return _SignOfLife(last, float("inf"))
    metrics, own = (_stat(f"{real}/{name}") for name in ("metrics.csv", "sidecar.json"))
    sign = beat or metrics or own
    if sign is None:
        return _SignOfLife(None, float("inf"))
    written = _written_heartbeat(real) if beat is not None and sidecar.sessions else None
    if written is not None:
        copied = sign.st_mtime > written + _HOUR
        return _SignOfLife(written, _age(sign, written if copied else None), stated=True)
    oldest = min(found.st_mtime for found in (beat, metrics, own) if found is not None)
    claims = [sidecar.updated_at]
    if sidecar.updated_at is None or oldest > sidecar.updated_at + _HOUR:
        claims.append(_row_time(files, time_column, last=True))
    known = [claim for claim in claims if claim is not None]
    if known and oldest > max(known) + _HOUR:
        return _SignOfLife(max(known), _age(sign, max(known)), stated=True)
    if beat is None and metrics is None and sidecar.updated_at is not None:
        return _SignOfLife(sidecar.updated_at, _age(sign))
    return _SignOfLife(sign.st_mtime, _age(sign))


def _last_event(events: Sequence[RunFile], last: float | None) -> _SignOfLife:
    """Return the last sign of life of a run that only wrote event files: `last`, the time of its last event."""
    newest = max(events, key=lambda file: file.mtime_ns)
    try:
        age = _age(newest.path.stat())
    except OSError:
        age = float("inf")
    return _SignOfLife(newest.mtime_ns / 1e9 if last is None else last, age, stated=last is not None)


def _stat(path: str) -> os.stat_result | None:
    found = lstat(path)
    return found if found is not None and stat.S_ISREG(found.st_mode) else None


def _written_heartbeat(real: Path) -> float | None:
    try:
        return parse_heartbeat(read_head(real / "heartbeat", 64))
    except OSError:
        return None


def _start(
    real: Path, sidecar: Sidecar, files: Mapping[str, RunFile], life: _SignOfLife, time_column: str | None
) -> tuple[float, bool]:
    """Return the start of the run, and whether it is an estimate. An unknown start is the last sign of life.

    Lightning rewrites hparams.yaml at each save up to version 2.4, so a file's mtime tells of the start only if it is
    well before the end.
    """
    if sidecar.created_at is not None:
        return sidecar.created_at, False
    first = _row_time(files, time_column)
    if first is not None:
        return first, False
    mtimes = [file.mtime_ns / 1e9 for file in files.values()]
    last = life.last if life.last is not None else max(mtimes, default=0.0)
    stamps = [stamp for stamp in _stamps(real) if stamp <= last]
    if stamps:
        return max(stamps), True
    oldest = min(mtimes, default=last)
    return (oldest if oldest < last - _WELL_BEFORE else last), True


def _stamps(real: Path) -> list[float]:
    """Return the times in the names of the run's event files, or else of its folder and the folder above."""
    try:
        names = [entry.name for entry in os.scandir(real)]
    except OSError:
        names = []
    found = [float(match[1]) for name in names if (match := _EVENT_FILE.match(name))]
    if found:
        return [min(found)]
    match = _STAMP.search("/".join(real.parts[-2:]))
    try:
        return [datetime(*map(int, match.groups())).timestamp()] if match else []  # type: ignore[arg-type]
    except ValueError:
        return []


def _end(status: Status, sidecar: Sidecar, life: _SignOfLife, start: float) -> tuple[float | None, bool]:
    """Return the end of the run (None while it runs), and whether it is an estimate. It is never before the start."""
    if status is Status.RUNNING:
        return None, False
    if sidecar.ended_at is not None and status is not Status.KILLED:
        return max(sidecar.ended_at, start), False
    return max(life.last if life.last is not None else start, start), not life.stated


def time_column_of(sidecar: Sidecar, files: Mapping[str, RunFile]) -> str | None:
    """Return the name of the time column, if metrics.csv has it or has no header yet."""
    if "metrics.csv" not in files or ("sidecar.json" in files and sidecar.time_column is None):
        return sidecar.time_column
    try:
        with open_plain(files["metrics.csv"].path) as stream:
            layout = read_layout(stream, None)
    except OSError:
        return None
    if "sidecar.json" in files:
        return sidecar.time_column if layout is None or sidecar.time_column in layout.columns else None
    # test-tube writes no step column, and dates each row.
    columns = set(layout.columns) if layout is not None else set()
    return _TEST_TUBE_TIME if "step" not in columns and {_TEST_TUBE_TIME, "epoch"} <= columns else None


def _row_time(files: Mapping[str, RunFile], time_column: str | None, *, last: bool = False) -> float | None:
    """Return the time of the first or the last complete row of metrics.csv; None if it says none."""
    if time_column is None or "metrics.csv" not in files:
        return None
    try:
        with open_plain(files["metrics.csv"].path) as stream:
            layout = read_layout(stream, None)
            if layout is None:
                return None
            if last:
                stream.seek(-min(_TAIL_BYTES, os.fstat(stream.fileno()).st_size - layout.end), os.SEEK_END)
                lines = stream.read(_TAIL_BYTES).split(b"\n")[:-1]
                row = next((line for line in reversed(lines) if line.strip()), b"")
            else:
                stream.seek(layout.end)
                rows = stream.read(_TAIL_BYTES)
                row = rows[: first_row(rows)]
        cells = cells_of(row)
        return parse_time(cells[layout.columns.index(time_column)]) if len(cells) == len(layout.columns) else None
    except (OSError, csv.Error, ValueError):
        return None
