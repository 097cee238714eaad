"""Hold the runs below some folders in memory as they are now, for user interfaces that ask again and again.

Three things are kept, and each is read again when its file has changed:

    records   one per run, from the registry; a scan runs beside the requests, which get the old records meanwhile
    series    the points of the runs that were looked at; a run that grows costs only its new rows
    media     the media events of the runs that were looked at

Nothing is written but the registry's cache.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import numpy as np

from bridge.errors import RunDirectoryError, UsageError
from bridge.model import DeltaKind, Series, digest
from bridge.options import ContentOptions, SelectionOptions
from bridge.registry import look_at_each, open_registry
from bridge.rundir import ReadOptions, file_stamp, read_delta, read_media, read_run, read_small, read_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bridge.model import Cursor, MediaEvent, Run, SkippedFolder
    from bridge.registry import RunRecord

T = TypeVar("T")

SERIES_BYTES = 256 * 2**20
"""How much the series in memory may take together. The runs that were looked at longest ago go first."""

_BYTES_A_SERIES = 600
"""What a series takes in memory beside its points."""

READ_SECONDS = 5.0
"""How long a table reads points for one request. The rows behind show the last values that the records hold."""

SCAN_PERIOD, SCAN_PAUSE = 2.0, 10.0
"""Seconds between two scans, at least, and how many times as long as a scan the pause behind it is."""

STALE_AFTER = 5.0
"""A request that finds the records older than this, in seconds, waits for the scan that goes on."""

SCAN_WAIT = 0.5
"""Seconds after the start of a scan at which no request waits for it any more."""

_WHOLE = ReadOptions(ordered=True, newest=True)
_GROWTH = ReadOptions(ordered=True, newest=True, limit=sys.maxsize)  # in one delta


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

    def to_json(self) -> str:
        """Return the options as JSON text. Unlike msgspec's own it holds an infinite time."""
        return json.dumps(msgspec.to_builtins(self))

    @classmethod
    def from_json(cls, text: str) -> LiveOptions:
        """Return the options that `to_json` wrote."""
        return msgspec.convert(json.loads(text), cls)


class Keeper:
    """Something that a user interface makes things from. They are made once, and go with it when it changes."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self._versions: dict[str, object] = {}

    def keep(self, key: str, make: Callable[[], T], *, version: object = None, within: float = math.inf) -> T:
        """Return what is kept under `key` for `version`, or make it. Keep it if that took up to `within` seconds."""
        if key in self.kept and self._versions.get(key) == version:
            return cast("T", self.kept[key])
        began = time.monotonic()
        made = make()
        if time.monotonic() - began <= within:
            self.kept[key], self._versions[key] = made, version
        return made


class LiveRun(Keeper):
    """One run: its `record` as of the last scan. A run whose record changed is a new LiveRun.

    `id` is 32 hexadecimal digits that follow from the run's identity, so links stay valid.
    """

    def __init__(self, run_id: str, record: RunRecord) -> None:
        super().__init__()
        self.id, self.record = run_id, record


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
        self._runs: RunSet | None = None
        self.skipped: list[SkippedFolder] = []
        self._newest = self._scanned_at = self._scan_began = self._pause = 0.0
        self._scan_lock = threading.Lock()
        self._scan_done = threading.Event()
        self._scan_done.set()
        self._content_lock = threading.Lock()
        self._contents: OrderedDict[str, RunContent] = OrderedDict()
        self._bytes = 0

    # Records

    def runs(self) -> RunSet:
        """Return the runs: the same RunSet as before if none has changed.

        The first call scans. Later ones start a scan beside the request if the last one is some seconds old.
        """
        with self._scan_lock:
            if self._runs is None:
                self.scan()
            age = time.monotonic() - self._scanned_at
            if age > self._pause and self._scan_done.is_set():
                self._scan_done.clear()
                self._scan_began = time.monotonic()
                try:
                    threading.Thread(target=self.scan, daemon=True).start()
                except RuntimeError:  # no thread can be started now; a later request tries again
                    self._scan_done.set()
        if age > STALE_AFTER:
            self._scan_done.wait(max(0.0, self._scan_began + SCAN_WAIT - time.monotonic()))
        return cast("RunSet", self._runs)

    def scan(self) -> None:
        """Look at all run directories now."""
        began, runs = time.monotonic(), self._runs or RunSet()
        try:
            timeout = self.options.heartbeat_timeout
            registries = [open_registry(root, heartbeat_timeout=timeout, statistics=False) for root in self.roots]
            self.skipped = [one for each in registries if each.report is not None for one in each.report.skipped]
            records = {record.run_dir: record for registry in registries for record in registry}
            unique = sorted(records.values(), key=lambda record: (record.start, record.run_id, record.run_dir))
            found = RunSet()
            for record in unique if self._choose is None else self._choose(unique):
                run_id = digest(record.identity, 32)
                if run_id in found:  # a copy of a run directory
                    run_id = digest(f"{record.identity}\n{record.run_dir}", 32)
                before = runs.get(run_id)
                is_same = before is not None and _version(before.record) == _version(record)
                found[run_id] = before if before is not None and is_same else LiveRun(run_id, record)
            if self._runs is None:
                # Else Python looks through all the new records again and again in the middle of requests.
                gc.collect()
                gc.freeze()
            if began >= self._newest:  # after an edit, another scan may have begun later and be done already
                self._newest = began
                if self._runs is None or list(found.items()) != list(self._runs.items()):
                    self._runs = found
        finally:
            self._scanned_at = time.monotonic()
            self._pause = max(SCAN_PERIOD, SCAN_PAUSE * (self._scanned_at - began))
            self._scan_done.set()

    # One run

    def run(self, live: LiveRun) -> Run:
        """Return the run as an export reads it, kept until its record changes. Raise RunDirectoryError."""
        return live.keep("run", lambda: self._read(live))

    def facts(self, live: LiveRun) -> Run:
        """Return the run without its files: as its record says, unless the run was read."""
        return live.kept.get("run") or live.record.to_run()

    def metrics(self, live: LiveRun) -> list[str]:
        """Return the names of the run's metrics that are shown. Read its points only if the record names none."""
        return list(filter(self.content.wants, live.record.metric_names or self.series(live)))

    def series(self, live: LiveRun) -> Mapping[str, Series]:
        """Return the run's points by metric as its files hold them now: the overlap rule applied, steps increasing.

        Return nothing if the run directory cannot be read any more.
        """
        content = self._content_of(live)
        try:
            found = content.series(self.stamp(live), self.facts(live), lambda: self._read(live))
        except RunDirectoryError:
            return {}
        with self._content_lock:
            if self._contents.get(live.id) is content:  # not dropped meanwhile
                self._bytes += content.bytes - content.counted
                content.counted = content.bytes
            while self._bytes > SERIES_BYTES and len(self._contents) > 1:
                self._bytes -= self._contents.popitem(last=False)[1].counted
        return found

    def stamp(self, live: LiveRun) -> object:
        """Return what differs as soon as the files with the run's points have changed."""
        return file_stamp(live.record.run_dir, live.record.kind, "metrics.csv")

    def media(self, live: LiveRun) -> Sequence[MediaEvent]:
        """Return the run's media events that count, as its files are now."""
        version = file_stamp(live.record.run_dir, live.record.kind, "media.jsonl") if self.content.media else ()
        with contextlib.suppress(RunDirectoryError):
            if version:
                content = self._content_of(live)
                return content.keep("media", lambda: read_media(self._read(live), None).events, version=version)
        return ()

    look_at_each = staticmethod(look_at_each)

    def _read(self, live: LiveRun) -> Run:
        return read_run(Path(live.record.run_dir), heartbeat_timeout=self.options.heartbeat_timeout)

    def _content_of(self, live: LiveRun) -> RunContent:
        with self._content_lock:
            content = self._contents.setdefault(live.id, RunContent(self.content))
            self._contents.move_to_end(live.id)
        return content


def _version(record: RunRecord) -> object:
    """Return what differs as soon as a run directory has changed. Comparing whole records would take much longer.

    Two edits can leave one mtime, and summary.json is written after the sidecar. So what people edit, and whether the
    statistics cover all rows, counts too.
    """
    times = (record.run_dir, record.updated, record.last_alive, record.status, record.end, record.covered)
    return (*times, record.name, record.notes, record.tags, record.archived)


class RunContent(Keeper):
    """The series and media of one run.

    `bytes` is the size of its series in memory, and `counted` what LiveRuns has counted of it.
    """

    def __init__(self, content: ContentOptions) -> None:
        super().__init__()
        self._content = content
        self._lock = threading.Lock()
        self._cursor: Cursor | None = None
        self.bytes = self.counted = 0

    def series(self, stamp: object, facts: Run, read: Callable[[], Run]) -> Mapping[str, Series]:
        """Return the series as the run's files hold them now, by their `stamp`. Raise RunDirectoryError.

        `facts` are those of the run, `read` returns it with its files.
        """
        with self._lock:
            known: Mapping[str, Series] = self.kept.get("series", {})
            return self.keep("series", lambda: self._updated(known, facts, read), version=stamp) if stamp else known

    def _updated(self, known: Mapping[str, Series], facts: Run, read: Callable[[], Run]) -> Mapping[str, Series]:
        """Return `known` and the rows behind the cursor. Read all again if files are small or did more than grow."""
        found, cursor = read_small(facts, self._content), None
        if found is None:
            run, grown, parts = read(), None, {name: [series] for name, series in known.items()}
            if self._cursor is not None and self._cursor.complete:
                grown = read_delta(run, self._cursor, self._content, _GROWTH)
            if grown is None or grown.kind not in (DeltaKind.APPEND, DeltaKind.SAME):
                parts, grown = {}, None
            for delta in read_whole(run, self._content, _WHOLE) if grown is None else [grown]:
                cursor = delta.after
                for series in (series for block in delta.blocks for series in block.series()):
                    parts.setdefault(series.name, []).append(series)
            found = {name: _joined(of) for name, of in parts.items()}
        self._cursor = cursor
        self.bytes = sum(24 * len(series.step) + _BYTES_A_SERIES for series in found.values())
        return found


def _joined(parts: Sequence[Series]) -> Series:
    columns = ([getattr(part, column) for part in parts] for column in ("step", "time", "value"))
    return parts[0] if len(parts) == 1 else Series(parts[0].name, *map(np.concatenate, columns))
