"""Hold the runs below some folders in memory as they are now, for user interfaces that ask again and again.

Three things are kept, and each is read again when its file has changed:

    records   one per run, from the registry; a scan runs beside the requests, which get the old records meanwhile
    series    the points of the runs that were looked at; a run that grows costs only its new rows
    media     the media events of the runs that were looked at

Nothing is written but the registry's cache.
"""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import RunDirectoryError, UsageError
from bridge.model import DeltaKind, Series
from bridge.options import ContentOptions, SelectionOptions
from bridge.registry import open_registry
from bridge.rundir import Clock, ReadOptions, media_stamp, read_delta, read_media, read_run, read_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bridge.model import Cursor, Delta, MediaEvent, Run
    from bridge.registry import RunRecord

SERIES_BYTES = 256 * 2**20
"""How much the series in memory may take together. The runs that were looked at longest ago go first."""

_LOOKERS = 16

_PART_BYTES = 600
"""What a series takes in memory beside its points."""

SCAN_PERIOD = 2.0
"""Seconds between two scans, at least. A scan that takes long is followed by a pause ten times as long."""

STALE_AFTER = 5.0
"""A request that finds the records older than this, in seconds, waits for the scan that goes on."""

SCAN_WAIT = 0.5
"""Seconds after the start of a scan at which no request waits for it any more."""


@dataclass(slots=True, eq=False)
class LiveRun:
    """One run: its `record` as of the last scan.

    `id` is 32 hexadecimal digits that follow from the run's identity, so links stay valid. `kept` is for what a user
    interface makes from the record; it is empty again as soon as the record changes.
    """

    id: str
    record: RunRecord
    kept: dict[str, Any] = field(default_factory=dict)


class LiveRuns:
    """The runs at and below `roots`. All methods may be called from several threads.

    `choose` selects among the records; without it all runs are shown. `selection` are the options that `choose`
    follows, for a server in a process of its own. `content` says which metrics and media are shown, what is renamed and
    what is masked. Raises UsageError if a root is not a directory.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        *,
        content: ContentOptions | None = None,
        choose: Callable[[Sequence[RunRecord]], Iterable[RunRecord]] | None = None,
        selection: SelectionOptions | None = None,
        heartbeat_timeout: float = 180.0,
        series_bytes: int = SERIES_BYTES,
    ) -> None:
        self.roots = tuple(Path(os.path.realpath(root)) for root in roots)
        for root in self.roots:
            if not root.is_dir():
                raise UsageError(f"{root} is not a directory.")
        self.content = content or ContentOptions()
        self.selection = selection or SelectionOptions()
        self.heartbeat_timeout = heartbeat_timeout
        self._choose = choose
        self._series_bytes = series_bytes
        self._clock = Clock(None)
        self._runs: dict[str, LiveRun] = {}
        self._scanned_at: float | None = None
        self._pause = SCAN_PERIOD
        self._scan_lock = threading.Lock()
        self._scan: threading.Event | None = None
        self._scan_began = 0.0
        self._lock = threading.Lock()
        self._series: OrderedDict[str, SeriesCache] = OrderedDict()
        self._media: dict[str, tuple[object, tuple[MediaEvent, ...]]] = {}

    # Records

    def runs(self) -> Mapping[str, LiveRun]:
        """Return the runs by id, in the order of their start: the same mapping as before if none has changed.

        The first call scans. Later ones start a scan beside the request if the last one is some seconds old.
        """
        with self._scan_lock:
            if self._scanned_at is None:
                self._rescan()
                return self._runs
            age = time.monotonic() - self._scanned_at
            if age > self._pause and self._scan is None:
                self._scan, self._scan_began = threading.Event(), time.monotonic()
                threading.Thread(target=self._rescan_aside, args=(self._scan,), daemon=True).start()
            scan = self._scan
        if scan is not None and age > STALE_AFTER:
            scan.wait(max(0.0, self._scan_began + SCAN_WAIT - time.monotonic()))
        return self._runs

    def complete(self, runs: Iterable[LiveRun]) -> None:
        """Give the records of ended runs statistics and last values that cover all rows, computed once and cached."""
        from bridge.registry.store import with_statistics

        lacking = [run for run in runs if not run.record.covered and not run.record.alive]
        for run, record in zip(lacking, with_statistics(run.record for run in lacking), strict=True):
            run.record = record
            run.kept.clear()

    def refresh(self) -> None:
        """Scan now, and wait for it: a run directory was changed on behalf of a request."""
        with self._scan_lock:
            self._rescan()

    def _rescan_aside(self, done: threading.Event) -> None:
        try:
            self._rescan()
        finally:
            self._scan = None
            done.set()

    def _rescan(self) -> None:
        began = time.monotonic()
        records = [
            record
            for root in self.roots
            for record in open_registry(root, heartbeat_timeout=self.heartbeat_timeout, statistics=False)
        ]
        unique = list({record.run_dir: record for record in records}.values())
        unique.sort(key=lambda record: (record.start, record.run_id, record.run_dir))
        found: dict[str, LiveRun] = {}
        for record in unique if self._choose is None else self._choose(unique):
            run_id = _id_of(record.identity)
            if run_id in found:  # a copy of a run directory
                run_id = _id_of(f"{record.identity}\n{record.run_dir}")
            before = self._runs.get(run_id)
            same = before is not None and _version(before.record) == _version(record)
            found[run_id] = before if before is not None and same else LiveRun(run_id, record)
        took = time.monotonic() - began
        if list(found.items()) != list(self._runs.items()):
            if not self._runs:
                # Else Python looks through all the new records once in the middle of the next request.
                gc.collect()
            self._runs = found
        self._scanned_at = time.monotonic()
        self._pause = max(SCAN_PERIOD, 10 * took)

    # One run

    def run(self, live: LiveRun) -> Run:
        """Return the run as an export reads it, kept until its record changes. Raise RunDirectoryError."""
        run: Run | None = live.kept.get("run")
        if run is None:
            run = live.kept["run"] = read_run(
                Path(live.record.run_dir), clock=self._clock, heartbeat_timeout=self.heartbeat_timeout
            )
        return run

    def metrics(self, live: LiveRun) -> list[str]:
        """Return the names of the run's metrics that are shown. Read its points only if the record names none."""
        if not (live.record.stats or live.record.summary):
            self.complete([live])
        names = dict.fromkeys((*live.record.stats, *live.record.summary))
        cache = self._series.get(live.id)
        if cache is not None:
            names |= dict.fromkeys(cache.names())
        elif not names:
            names = dict.fromkeys(self.series(live))
        return [name for name in names if self.content.wants(name)]

    def series(self, live: LiveRun) -> Mapping[str, Series]:
        """Return the run's points by metric as its files hold them now: the overlap rule applied, steps increasing.

        Return nothing if the run directory cannot be read any more.
        """
        with self._lock:
            cache = self._series.setdefault(live.id, SeriesCache(self.content))
            self._series.move_to_end(live.id)
        before = cache.bytes
        try:
            found = cache.look(self.run(live))
        except RunDirectoryError:
            return {}
        if cache.bytes != before:  # not at each look: a page shows thousands of runs
            with self._lock:
                excess = sum(kept.bytes for kept in self._series.values()) - self._series_bytes
                while excess > 0 and len(self._series) > 1:
                    excess -= self._series.popitem(last=False)[1].bytes
        return found

    def size(self, live: LiveRun) -> int:
        """Return the bytes of the run's metrics.csv, 0 if it has none."""
        try:
            return os.stat(f"{live.record.run_dir}/metrics.csv").st_size  # noqa: PTH116 - called for thousands of runs
        except OSError:
            return 0

    def media(self, live: LiveRun) -> Sequence[MediaEvent]:
        """Return the run's media events that count, as its files are now."""
        if not self.content.media:
            return ()
        version = media_stamp(live.record.run_dir, live.record.kind)
        if not version:
            return ()
        kept = self._media.get(live.id)
        if kept is None or kept[0] != version:
            try:
                fresh = read_run(Path(live.record.run_dir), clock=self._clock)
                kept = self._media[live.id] = (version, tuple(read_media(fresh, None).events))
            except RunDirectoryError:
                return ()
        return kept[1]

    def media_of(self, runs: Sequence[LiveRun]) -> dict[str, Sequence[MediaEvent]]:
        """Return the media events of many runs by id.

        On a network file system each look takes milliseconds, so _LOOKERS threads share them.
        """
        found: dict[str, Sequence[MediaEvent]] = {}

        def look(part: Sequence[LiveRun]) -> None:
            found.update((live.id, self.media(live)) for live in part)

        with ThreadPoolExecutor(_LOOKERS) as pool:
            list(pool.map(look, (runs[start::_LOOKERS] for start in range(_LOOKERS))))
        return found


class ByteCache:
    """Bytes that are made on demand, one at a time. Beyond `most` bytes the ones that were not used for longest go."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: OrderedDict[object, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: object, make: Callable[[], bytes]) -> bytes:
        """Return the bytes of `key`. Make them, and raise what `make` raises, if they are not here."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
                self._bytes += len(self._made[key])
            self._made.move_to_end(key)
            while self._bytes > self._most and len(self._made) > 1:
                self._bytes -= len(self._made.popitem(last=False)[1])
            return self._made[key]


def _id_of(text: str) -> str:
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def _stat_of_points(run: Run) -> tuple[tuple[int, int], ...]:
    """Return size and mtime of the files with the run's points; nothing if it has none, or they cannot be read."""
    try:
        found = [os.stat(file.path) for file in run.row_files]  # noqa: PTH116 - called at every request
    except OSError:
        return ()
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in found)


def _version(record: RunRecord) -> object:
    """Return what differs as soon as a run directory has changed. Comparing whole records would take much longer."""
    return (record.run_dir, record.updated, record.last_alive, record.status, record.end)


class SeriesCache:
    """The series of one run. `look` returns them up to date; `bytes` is their size in memory."""

    def __init__(self, content: ContentOptions) -> None:
        self._content = content
        self._options = ReadOptions(ordered=True, newest=True)
        self._lock = threading.Lock()
        self._stat: object = None
        self._cursor: Cursor | None = None
        # The parts of each series in order, as arrays of step, time and value. They are joined when they are asked for.
        self._parts: dict[str, list[Series]] = {}
        self.bytes = 0

    def names(self) -> list[str]:
        """Return the names of the series read so far."""
        return list(self._parts)

    def look(self, run: Run) -> Mapping[str, Series]:
        """Return the series as the run's files hold them now. Raise RunDirectoryError."""
        with self._lock:
            stat = _stat_of_points(run)
            if stat and stat != self._stat:
                if not self._grow(run):
                    self._parts, self.bytes, self._cursor = {}, 0, None
                    for delta in read_whole(run, self._content, self._options):
                        self._add(delta)
                self._stat = stat
            return self._joined()

    def _grow(self, run: Run) -> bool:
        """Add the rows behind the cursor. Return False if everything must be read again."""
        while self._cursor is not None and self._cursor.complete:
            delta = read_delta(run, self._cursor, self._content, self._options)
            if delta.kind not in (DeltaKind.APPEND, DeltaKind.SAME):
                return False
            self._add(delta)
            if not delta.more:
                return True
        return False

    def _add(self, delta: Delta) -> None:
        self._cursor = delta.after
        for block in delta.blocks:
            for name, present, values in zip(block.names, block.present, block.values, strict=True):
                part = Series(name, block.step[present], block.time[present], values[present])
                self._parts.setdefault(name, []).append(part)
                self.bytes += 24 * len(part.step) + _PART_BYTES

    def _joined(self) -> Mapping[str, Series]:
        for name, parts in self._parts.items():
            if len(parts) > 1:
                columns = ([getattr(part, column) for part in parts] for column in ("step", "time", "value"))
                parts[:] = [Series(name, *map(np.concatenate, columns))]
        return {name: parts[0] for name, parts in self._parts.items()}
