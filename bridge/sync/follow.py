"""Follow: export again and again, each time only what moved, until told to stop or until every run is done."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bridge.errors import TargetUnavailableError, UsageError
from bridge.model import Status
from bridge.rundir import discover, read_run
from bridge.rundir.discover import stamp
from bridge.sync.export import export_gathered
from bridge.sync.report import Action, NoMatch, exit_code
from bridge.sync.select import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.exporters.contract import Exporter
    from bridge.model import Run
    from bridge.options import ExportOptions
    from bridge.rundir.discover import Stamp
    from bridge.sync.export import Options
    from bridge.sync.report import Progress, Report, RunReport

LONGEST_PAUSE = 300.0
"""The longest wait, in seconds, between two tries at a target that cannot be reached."""


def follow(
    roots: Sequence[Path],
    exporter: Exporter,
    options: Options,
    how: ExportOptions,
    *,
    told: Callable[[Report], None],
    say: Callable[[str], None],
    progress: Callable[[], Progress] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Export what moved at and below `roots`, then `pause` for `how.interval` seconds, again and again.

    `told` gets the report of every pass that did something, `say` a message when the target or the source goes away and
    when it is back, once each; `progress` makes one for each pass, and `pause` may raise to end the follow. A root that
    does not exist yet is waited for, while the others go on.

    With `how.until_done` it returns as soon as every run found has completed or failed, with the exit code of a plain
    export of all runs (0, 1 or 3). A killed or interrupted run counts as done once its last sign of life is older than
    `how.grace` seconds, since it may be requeued; so does a run that cannot be read. Without `until_done` only an
    exception ends it, such as a signal's; what was in flight is sent again by the next export.

    Raises TargetRefusedError if the target refuses for good.
    """
    follower = _Follower(roots, exporter, options, told, progress)
    seconds = how.interval
    lasting: dict[str, bool] = {}

    def note(trouble: str, over: str) -> None:
        """Say a trouble when it begins, and `over` when it has ended; "" stands for none."""
        if bool(trouble) != lasting.get(over, False):
            say(trouble or over)
        lasting[over] = bool(trouble)

    while True:
        absent, unreached = follower.look()
        note(absent and f"The runs cannot be found: {absent} Waiting for them.", "The runs are there.")
        note(unreached and f"{unreached} Trying again until it works.", "It works again.")
        seconds = min(max(seconds, 1.0) * 2, LONGEST_PAUSE) if unreached else how.interval
        if how.until_done and not absent and not unreached and follower.all_done(how.grace):
            return follower.exit_code()
        pause(seconds)


@dataclass(slots=True)
class _Follower:
    """What a follow remembers between two looks. The state of a target stays in the target.

    `read` holds each run with the stamp that its directory had, `settled` the stamp of each run that needs no attention
    until it moves, `said` the reason that was last told of each run or folder, `failed` the runs that failed when they
    were last due.
    """

    roots: Sequence[Path]
    exporter: Exporter
    options: Options
    told: Callable[[Report], None]
    progress: Callable[[], Progress] | None
    read: dict[Path, tuple[Stamp, Run]] = field(default_factory=dict)
    settled: dict[Path, Stamp] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    failed: set[Path] = field(default_factory=set)
    runs: tuple[Run, ...] = ()
    unreadable: tuple[Path, ...] = ()

    def look(self) -> tuple[str, str]:
        """Export what changed. Return what is missing of the source and why the target is out of reach, if so."""
        present, absent = self._present_roots()
        gathered = gather(present, self.exporter, selection=self.options.selection, read=self._read_if_moved)
        self.runs, self.unreadable = gathered.runs, tuple(Path(line.path) for line in gathered.others if line.failed)
        due = replace(
            gathered,
            runs=tuple(run for run in gathered.runs if self._is_due(run)),
            others=tuple(line for line in gathered.others if self.said.get(line.path) != line.reason),
            skipped=tuple(folder for folder in gathered.skipped if self.said.get(folder.path) != folder.reason),
            no_match=NoMatch(),
            warnings=(),
        )
        if not due.runs and not due.others and not due.skipped:
            return absent, ""
        progress = None if self.progress is None else self.progress()
        try:
            report = export_gathered(due, self.exporter, self.options, progress=progress)
        except TargetUnavailableError as error:
            return absent, error.message
        return absent, self._settle(report)

    def _present_roots(self) -> tuple[list[Path], str]:
        """Return the roots that exist, and why the first of the others does not."""
        present = [root for root in self.roots if os.path.isdir(root)]  # noqa: PTH112 - false for any error
        try:
            discover([root for root in self.roots if root not in present])
        except UsageError as error:
            return present, error.message
        return present, ""

    def _settle(self, report: Report) -> str:
        """Remember what became of each run, and tell what is new. Return why the target is out of reach, or "".

        A run that the target refuses is tried again in each pass. The others do not wait for that.
        """
        trouble = ""
        news: list[RunReport] = []
        for line in report.runs:
            path = Path(line.path)
            if line.retry:
                trouble = trouble or ("" if line.refused else f"{line.run_id}: {line.reason}")
            elif path in self.read:
                self.settled[path] = self.read[path][0]
            is_known = line.failed and self.said.get(line.path) == line.reason
            if not is_known and line.action is not Action.UNCHANGED:
                news.append(line)
            self.said[line.path] = line.reason
            (self.failed.add if line.failed else self.failed.discard)(path)
        self.said.update((folder.path, folder.reason) for folder in report.skipped)
        if news or report.skipped:
            self.told(replace(report, runs=tuple(news), exit_code=0))
        return trouble

    def _read_if_moved(self, path: Path) -> Run:
        """Return the run at `path`, read again if a file changed or its liveness may have changed."""
        now = stamp(path)
        known = self.read.get(path)
        if known is not None and known[0] == now and not known[1].running:
            return known[1]
        run = read_run(path, heartbeat_timeout=self.options.heartbeat_timeout)
        self.read[path] = (now, run)
        return run

    def _is_due(self, run: Run) -> bool:
        # A running run may have rows that were held back, so it is due although nothing moved.
        return run.running or self.settled.get(run.path) != self.read[run.path][0]

    def all_done(self, grace: float) -> bool:
        """Return whether there are runs, and each is over for good: nothing happened to it for `grace` seconds."""
        then = time.time() - grace
        return (
            bool(self.runs or self.unreadable)
            and all(_is_over(run, then) for run in self.runs)
            and all(_last_change(path) < then for path in self.unreadable)
        )

    def exit_code(self) -> int:
        """Return the exit code of a report on all runs, with what became of each when it was last due."""
        there = {*self.unreadable, *(run.path for run in self.runs)}
        return exit_code(failed=len(there & self.failed), of=len(there))


def _is_over(run: Run, then: float) -> bool:
    if run.status in (Status.KILLED, Status.INTERRUPTED, Status.UNKNOWN):
        return run.last_alive < then
    return not run.running


def _last_change(path: Path) -> float:
    """Return when the files of a run directory that cannot be read last changed, in seconds since the epoch."""
    return max((found[2] for found in stamp(path) if found is not None), default=0) / 1e9
