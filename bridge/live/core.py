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
import math
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from bridge.errors import RunDirectoryError, UsageError
from bridge.model import DeltaKind, Series
from bridge.options import ContentOptions, SelectionOptions
from bridge.registry import look_at_each, open_registry
from bridge.rundir import Clock, ReadOptions, media_stamp, read_delta, read_media, read_run, read_small, read_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bridge.model import Cursor, Delta, MediaEvent, Run, SkippedFolder
    from bridge.registry import RunRecord

T = TypeVar("T")

SERIES_BYTES = 256 * 2**20
"""How much the series in memory may take together. The runs that were looked at longest ago go first."""

_PART_BYTES = 600
"""What a series takes in memory beside its points."""

READ_SECONDS = 5.0
"""How long a table reads points for one request. The rows behind show the last values that the records hold."""

SCAN_PERIOD, SCAN_PAUSE = 2.0, 10.0
"""Seconds between two scans, at least, and how many times as long as a scan the pause behind it is."""

STALE_AFTER = 5.0
"""A request that finds the records older than this, in seconds, waits for the scan that goes on."""

SCAN_WAIT = 0.5
"""Seconds after the start of a scan at which no request waits for it any more."""


class LiveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a live view shows: the selected runs at and below `roots`, with the metrics, media and names of `content`.

    With `edit`, people can change names, notes and tags. `experiment` and `experiment_default` name MLflow's
    experiments.
    """

    roots: list[str]
    selection: SelectionOptions = SelectionOptions()
    content: ContentOptions = ContentOptions()
    heartbeat_timeout: float = 180.0
    edit: bool = False
    experiment: str | None = None
    experiment_default: str | None = None


class Keeper:
    """Something that a user interface makes things from. They are made once, and go with it when it changes."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def keep(self, key: str, make: Callable[[], T], *, within: float = math.inf) -> T:
        """Return what is kept under `key`. Else make it, and keep it if that took `within` seconds at most."""
        if key in self.kept:
            kept: T = self.kept[key]
            return kept
        began = time.monotonic()
        made = make()
        if time.monotonic() - began <= within:
            self.kept[key] = made
        return made


class LiveRun(Keeper):
    """One run: its `record` as of the last scan. A run whose record changed is a new LiveRun.

    `id` is 32 hexadecimal digits that follow from the run's identity, so links stay valid.
    """

    def __init__(self, run_id: str, record: RunRecord) -> None:
        super().__init__()
        self.id = run_id
        self.record = record


class RunSet(Keeper, dict[str, LiveRun]):
    """The runs by id, in the order of their start. After a scan that finds any change it is a new RunSet."""


class LiveRuns:
    """The runs that `options` ask for. All methods may be called from several threads.

    `choose` selects among the records by `options.selection`; without it all runs are shown. `skipped` are the folders
    that look like runs and are none, as of the last scan. Raises UsageError if a root is not a directory.
    """

    def __init__(
        self, options: LiveOptions, choose: Callable[[Sequence[RunRecord]], Iterable[RunRecord]] | None = None
    ) -> None:
        self.options = options
        self.content = options.content
        self.roots = tuple(Path(os.path.realpath(root)) for root in options.roots)
        for root in self.roots:
            if not root.is_dir():
                raise UsageError(f"{root} is not a directory.")
        self._choose = choose
        self._clock = Clock(None)
        self._runs = RunSet()
        self.skipped: list[SkippedFolder] = []
        self._scanned_at: float | None = None
        self._pause = 0.0
        self._scan_lock = threading.Lock()
        self._scan_began = 0.0
        self._scan_done = threading.Event()
        self._scan_done.set()
        self._lock = threading.Lock()
        self._series: OrderedDict[str, RunSeries] = OrderedDict()
        self._series_bytes = 0
        self._media: dict[str, tuple[object, tuple[MediaEvent, ...]]] = {}

    # Records

    def runs(self) -> RunSet:
        """Return the runs: the same RunSet as before if none has changed.

        The first call scans. Later ones start a scan beside the request if the last one is some seconds old.
        """
        with self._scan_lock:
            if self._scanned_at is None:
                self._rescan()
            age = time.monotonic() - (self._scanned_at or 0.0)
            if age > self._pause and self._scan_done.is_set():
                self._scan_done.clear()
                self._scan_began = time.monotonic()
                threading.Thread(target=self._rescan, daemon=True).start()
        if age > STALE_AFTER:
            self._scan_done.wait(max(0.0, self._scan_began + SCAN_WAIT - time.monotonic()))
        return self._runs

    def refresh(self) -> None:
        """Scan now, and wait for it: a run directory was changed on behalf of a request."""
        with self._scan_lock:
            self._rescan()

    def _rescan(self) -> None:
        began = time.monotonic()
        try:
            timeout = self.options.heartbeat_timeout
            registries = [open_registry(root, heartbeat_timeout=timeout, statistics=False) for root in self.roots]
            self.skipped = [one for each in registries if each.report is not None for one in each.report.skipped]
            records = {record.run_dir: record for registry in registries for record in registry}
            unique = sorted(records.values(), key=lambda record: (record.start, record.run_id, record.run_dir))
            found = RunSet()
            for record in unique if self._choose is None else self._choose(unique):
                run_id = digest_id(record.identity)
                if run_id in found:  # a copy of a run directory
                    run_id = digest_id(f"{record.identity}\n{record.run_dir}")
                before = self._runs.get(run_id)
                is_same = before is not None and _version(before.record) == _version(record)
                found[run_id] = before if before is not None and is_same else LiveRun(run_id, record)
            if list(found.items()) != list(self._runs.items()):
                if not self._runs:
                    # Else Python looks through all the new records again and again in the middle of requests.
                    gc.collect()
                    gc.freeze()
                self._runs = found
        finally:
            self._scanned_at = time.monotonic()
            self._pause = max(SCAN_PERIOD, SCAN_PAUSE * (self._scanned_at - began))
            self._scan_done.set()

    # One run

    def run(self, live: LiveRun) -> Run:
        """Return the run as an export reads it, kept until its record changes. Raise RunDirectoryError."""
        path, timeout = Path(live.record.run_dir), self.options.heartbeat_timeout
        return live.keep("run", lambda: read_run(path, clock=self._clock, heartbeat_timeout=timeout))

    def facts(self, live: LiveRun) -> Run:
        """Return the run without its files: as its record says, unless the run was read."""
        read: Run | None = live.kept.get("run")
        return read or live.record.to_run()

    def metrics(self, live: LiveRun) -> list[str]:
        """Return the names of the run's metrics that are shown. Read its points only if the record names none."""
        names = dict.fromkeys((*live.record.stats, *live.record.summary)) or self.series(live)
        return [name for name in names if self.content.wants(name)]

    def series(self, live: LiveRun) -> Mapping[str, Series]:
        """Return the run's points by metric as its files hold them now: the overlap rule applied, steps increasing.

        Return nothing if the run directory cannot be read any more.
        """
        with self._lock:
            kept = self._series.setdefault(live.id, RunSeries(self.content))
            self._series.move_to_end(live.id)
        before = kept.bytes
        try:
            found = kept.look(self.stamp(live), self.facts(live), lambda: self.run(live))
        except RunDirectoryError:
            return {}
        with self._lock:
            self._series_bytes += kept.bytes - before
            while self._series_bytes > SERIES_BYTES and len(self._series) > 1:
                self._series_bytes -= self._series.popitem(last=False)[1].bytes
        return found

    def stamp(self, live: LiveRun) -> tuple[tuple[int, int], ...]:
        """Return size and mtime of the files with the run's points; nothing if there are none, or they are gone."""
        is_csv = live.record.kind != "TensorBoardLogger"
        try:
            files = [f"{live.record.run_dir}/metrics.csv"] if is_csv else [f.path for f in self.run(live).row_files]
            found = [os.stat(file) for file in files]  # noqa: PTH116 - called at every request
        except (OSError, RunDirectoryError):
            return ()
        return tuple((stat.st_size, stat.st_mtime_ns) for stat in found)

    def media(self, live: LiveRun) -> Sequence[MediaEvent]:
        """Return the run's media events that count, as its files are now."""
        version = media_stamp(live.record.run_dir, live.record.kind) if self.content.media else ()
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

    def map(self, look: Callable[[LiveRun], T], runs: Sequence[LiveRun]) -> list[T]:
        """Return what `look` gives for each run, several at once where the file system is slow."""
        return look_at_each(look, runs)


def digest_id(text: str) -> str:
    """Return 32 hexadecimal digits that follow from `text`, as the ids of runs look in MLflow."""
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def _version(record: RunRecord) -> object:
    """Return what differs as soon as a run directory has changed. Comparing whole records would take much longer."""
    return (record.run_dir, record.updated, record.last_alive, record.status, record.end)


class RunSeries:
    """The series of one run. `look` returns them up to date; `bytes` is their size in memory."""

    def __init__(self, content: ContentOptions) -> None:
        self._content = content
        self._options = ReadOptions(ordered=True, newest=True)
        self._lock = threading.Lock()
        self._stamp: object = None
        self._cursor: Cursor | None = None
        # The parts of each series in order, as arrays of step, time and value. They are joined when they are asked for.
        self._parts: dict[str, list[Series]] = {}
        self.bytes = 0

    def look(self, stamp: object, facts: Run, read: Callable[[], Run]) -> Mapping[str, Series]:
        """Return the series as the run's files hold them now, by their `stamp`. Raise RunDirectoryError.

        `facts` are those of the run, `read` returns it with its files.
        """
        with self._lock:
            if stamp and stamp != self._stamp:
                small = read_small(facts, self._content)
                if small is not None or not self._grow(read()):
                    self._parts, self.bytes, self._cursor = {}, 0, None
                    for name, series in (small or {}).items():
                        self._add_part(name, series)
                    for delta in read_whole(read(), self._content, self._options) if small is None else ():
                        self._add(delta)
                self._stamp = stamp
            for name, parts in self._parts.items():
                if len(parts) > 1:
                    columns = ([getattr(part, column) for part in parts] for column in ("step", "time", "value"))
                    parts[:] = [Series(name, *map(np.concatenate, columns))]
            return {name: part for name, (part,) in self._parts.items()}

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
                self._add_part(name, Series(name, block.step[present], block.time[present], values[present]))

    def _add_part(self, name: str, part: Series) -> None:
        self._parts.setdefault(name, []).append(part)
        self.bytes += 24 * len(part.step) + _PART_BYTES
