"""Runs that an earlier export left complete and unchanged, so that the next one need not read them.

The user's cache holds, for each run, what stat said of its files and what its target's fingerprint was. While both are
the same, the run is unchanged. When either moved, content decides: the run is read, and its target is asked. The cache
is derived and can be deleted at any time; it only saves time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import msgspec

from bridge.files import SETTLED_S, cache_dir, clean
from bridge.options import ContentOptions
from bridge.rundir.discover import stamp
from bridge.sync.report import WRITTEN, Action, RunReport
from bridge.sync.select import Selection
from logger.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bridge.exporters.contract import Exporter
    from bridge.rundir.discover import Stamp
    from bridge.sync.export import ExportTask, Options


class UnchangedRun(msgspec.Struct, frozen=True, array_like=True):
    """A run as it was when an export found it unchanged. `content` are its target's content options."""

    path: str
    run_id: str
    name: str
    identity: str
    where: str
    stamp: tuple[tuple[int, int, int] | None, ...]
    fingerprint: str
    content: dict[str, Any]


class UnchangedRuns(msgspec.Struct):
    """The unchanged runs of one target, as the cache holds them; `file` is None where nothing is to be remembered.

    `stamps` holds what stat said of each run directory before it was read, and after `begun` (nanoseconds).
    """

    exporter: Exporter
    options: Options
    file: Path | None
    begun: int = msgspec.field(default_factory=time.time_ns)
    known: dict[str, UnchangedRun] = {}
    stamps: dict[str, Stamp] = {}

    @classmethod
    def load(cls, exporter: Exporter, options: Options) -> UnchangedRuns:
        """Read the cache. A rebuild, another identity and a selection of runs do without it."""
        selects = options.selection not in (None, Selection())
        if options.rebuild or options.new_identity is not None or selects:
            return cls(exporter, options, None)
        try:
            found = cls(exporter, options, _file(exporter, options))
        except RuntimeError:  # there is no home folder
            return cls(exporter, options, None)
        with contextlib.suppress(OSError, msgspec.DecodeError):
            assert found.file is not None
            runs = msgspec.msgpack.decode(found.file.read_bytes(), type=list[UnchangedRun])
            found.known = {run.path: run for run in runs}
        return found

    def report(self, path: Path) -> RunReport | None:
        """Return the report of the run at `path` if nothing moved since it was found unchanged, else None."""
        if self.file is None:
            return None
        now = self.stamps[str(path)] = stamp(path)
        run = self.known.get(str(path))
        if run is None or run.stamp != now or self.exporter.fingerprint(run.where) != run.fingerprint:
            return None
        if self.options.content_over(ContentOptions.kept(run.content)).differences() != run.content:
            return None
        return RunReport.of(run, action=Action.UNCHANGED, where=run.where)

    def remember(self, tasks: Sequence[ExportTask], reports: Iterable[RunReport], unread: Iterable[RunReport]) -> None:
        """Write the runs that are unchanged, and that cannot change without a file's mtime telling it, to the cache.

        `unread` are the reports of those that were not read.
        """
        if self.file is None or self.options.dry_run:
            return
        by_path = {str(task.run.path): task for task in tasks}
        found = [run for report in reports if (run := self._unchanged(report, by_path.get(report.path))) is not None]
        still = [self.known[report.path] for report in unread]
        # Those of other RUNS were not looked at; without them each of two exports in turn would read all of its runs.
        still += [run for path, run in self.known.items() if path not in self.stamps and os.path.isdir(path)]  # noqa: PTH112
        if not found and len(still) == len(self.known):
            return
        # The cache is a convenience: without room or rights for it the next export reads the runs again.
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.file, msgspec.msgpack.encode([*still, *found]), durable=False)

    def _unchanged(self, report: RunReport, task: ExportTask | None) -> UnchangedRun | None:
        if task is None or task.run.running or report.notes:
            return None
        # A notice of a run that was written may stand for files that are to be sent again.
        if report.action is not Action.UNCHANGED and (report.action not in WRITTEN or report.notices):
            return None
        seen = self.stamps.get(report.path)
        settled = self.begun - int(SETTLED_S * 1e9)
        if seen is None or any(file is not None and file[2] > settled for file in seen):
            return None
        fingerprint = self.exporter.fingerprint(report.where)
        if fingerprint is None or clean(report.path) != report.path:  # the cache holds UTF-8, and a path need not be
            return None
        content = task.content.differences()
        names = (report.path, report.run_id, report.name, report.identity, report.where)
        return UnchangedRun(*names, seen, fingerprint, content)


def _file(exporter: Exporter, options: Options) -> Path:
    """Return the cache file of a target; anything else that decides what is sent is part of its name."""
    try:
        release = version("registry-bridge")
    except PackageNotFoundError:
        release = ""
    key = hashlib.blake2b(pickle.dumps(exporter), digest_size=16)
    key.update(repr((release, options.heartbeat_timeout)).encode())
    return cache_dir() / "unchanged" / f"{exporter.name}-{key.hexdigest()}.msgpack"
