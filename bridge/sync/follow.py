"""Follow: export again and again, each time only what moved, until told to stop or until every run is done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace as with_fields

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
    from bridge.rundir import Clock
    from bridge.rundir.discover import Stamp
    from bridge.sync.export import Options
    from bridge.sync.report import Progress, Report, RunReport
    from bridge.sync.select import Gathered

LONGEST_PAUSE = 300.0
"""The longest wait, in seconds, between two tries at a target that cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """How to follow. `interval` and `grace` are in seconds.

    `until_done` ends when every run found has completed or failed. A killed or interrupted run counts as done once its
    last sign of life is older than `grace`, since it may be requeued, and so does a run that cannot be read. `pause`
    waits for so many seconds; it may raise to end the follow.
    """

    interval: float = 10.0
    until_done: bool = False
    grace: float = 3600.0
    pause: Callable[[float], None] = time.sleep


def follow(
    roots: Sequence[Path],
    exporter: Exporter,
    options: Options,
    following: Following,
    *,
    told: Callable[[Report], None],
    say: Callable[[str], None],
    progress: Callable[[], Progress] | None = None,
    clock: Clock | None = None,
) -> int:
    """Export what moved at and below `roots`, then wait, again and again.

    `told` gets the report of every pass that did something, `say` a message when the target or the source goes away and
    when it is back, once each; `progress` makes one for each pass. A root that does not exist yet is waited for, while
    the others go on. Returns with `until_done` only, the exit code of a plain export of all runs (0, 1 or 3). Otherwise
    a signal's exception ends it, and what was in flight is sent again by the next export. Raises TargetRefusedError if
    the target refuses for good.
    """
    follower = _Follower(roots, exporter, options, following, progress=progress, clock=clock)
    pause = following.interval
    source = _Trouble("The runs are there.", say)
    target = _Trouble("It works again.", say)
    while True:
        absent, unreached = follower.look(told)
        source.note(absent and f"The runs cannot be found: {absent} Waiting for them.")
        target.note(unreached and f"{unreached} Trying again until it works.")
        pause = min(max(pause, 1.0) * 2, LONGEST_PAUSE) if unreached else following.interval
        if following.until_done and not absent and not unreached and follower.all_done():
            return follower.exit_code()
        following.pause(pause)


@dataclass(slots=True)
class _Trouble:
    """Something that comes and goes. It is said once when it comes, and `over` when it is gone."""

    over: str
    say: Callable[[str], None]
    lasting: bool = False

    def note(self, trouble: str) -> None:
        """Say the trouble if it is new, or that it is over; "" stands for none."""
        if bool(trouble) != self.lasting:
            self.say(trouble or self.over)
        self.lasting = bool(trouble)


@dataclass(slots=True)
class _Follower:
    """What a follow remembers between two looks. The state of a target stays in the target.

    `read` holds each run with the stamp that its directory had, `settled` the stamp of each run that needs no attention
    until it moves, `failures` the reason of each run that failed when it was last due, `passed_over` the copies and
    skipped folders that were told.
    """

    roots: Sequence[Path]
    exporter: Exporter
    options: Options
    following: Following
    progress: Callable[[], Progress] | None = None
    clock: Clock | None = None
    read: dict[Path, tuple[Stamp, Run]] = field(default_factory=dict)
    settled: dict[Path, Stamp] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)
    passed_over: set[str] = field(default_factory=set)
    runs: tuple[Run, ...] = ()
    unreadable: tuple[Path, ...] = ()

    def look(self, told: Callable[[Report], None]) -> tuple[str, str]:
        """Export what changed. Return what is missing of the source and why the target is out of reach, if so."""
        present, absent = self._present_roots()
        gathered = gather(present, self.exporter, selection=self.options.selection, read=self._read_if_moved)
        self.runs, self.unreadable = gathered.runs, tuple(Path(line.path) for line in gathered.others if line.failed)
        return absent, self._export(gathered, told)

    def _present_roots(self) -> tuple[list[Path], str]:
        """Return the roots that exist, and why the first of the others does not."""
        present: list[Path] = []
        absent = ""
        for root in self.roots:
            try:
                discover([root])
            except UsageError as error:
                absent = absent or error.message
            else:
                present.append(root)
        return present, absent

    def _export(self, gathered: Gathered, told: Callable[[Report], None]) -> str:
        """Export the runs that are due. Return why the target cannot be reached, "" if it can."""
        due = tuple(run for run in gathered.runs if self._is_due(run))
        others = tuple(line for line in gathered.others if self._is_news(line))
        skipped = tuple(folder for folder in gathered.skipped if folder.path not in self.passed_over)
        if not due and not others and not skipped:
            return ""
        copies = [line.path for line in others if not line.failed]
        self.passed_over.update(copies, [folder.path for folder in skipped])
        progress = None if self.progress is None else self.progress()
        asked = replace(gathered, runs=due, others=others, skipped=skipped, no_match=NoMatch(), warnings=())
        try:
            report = export_gathered(asked, self.exporter, self.options, progress=progress)
        except TargetUnavailableError as error:
            return error.message
        return self._settle(report, told)

    def _is_news(self, line: RunReport) -> bool:
        return self.failures.get(Path(line.path)) != line.reason if line.failed else line.path not in self.passed_over

    def _settle(self, report: Report, told: Callable[[Report], None]) -> str:
        """Remember what became of each run, and tell what is new. Return the first trouble with the target, or ""."""
        trouble = ""
        shown: list[RunReport] = []
        for line in report.runs:
            path = Path(line.path)
            if line.retry:
                trouble = trouble or f"{line.run_id}: {line.reason}"
            elif path in self.read:
                self.settled[path] = self.read[path][0]
            if line.failed and self.failures.get(path) == line.reason:
                continue
            if line.failed:
                self.failures[path] = line.reason
            else:
                self.failures.pop(path, None)
            if line.action is not Action.UNCHANGED:
                shown.append(line)
        if shown or report.skipped:
            told(with_fields(report, runs=tuple(shown), exit_code=0))
        return trouble

    def _read_if_moved(self, path: Path) -> Run:
        """Return the run at `path`, read again if a file changed or its liveness may have changed."""
        now = stamp(path)
        known = self.read.get(path)
        if known is not None and known[0] == now and not known[1].running:
            return known[1]
        run = read_run(path, clock=self.clock, heartbeat_timeout=self.options.heartbeat_timeout)
        self.read[path] = (now, run)
        return run

    def _is_due(self, run: Run) -> bool:
        # A running run may have rows that were held back, so it is due although nothing moved.
        return run.running or self.settled.get(run.path) != self.read[run.path][0]

    def all_done(self) -> bool:
        """Return whether there are runs, and each is over for good."""
        now = time.time()
        return (
            bool(self.runs or self.unreadable)
            and all(self._is_over(run, now) for run in self.runs)
            and all(now - _last_change(path) > self.following.grace for path in self.unreadable)
        )

    def exit_code(self) -> int:
        """Return the exit code of a report on all runs, with what became of each when it was last due."""
        there = {*self.unreadable, *(run.path for run in self.runs)}
        return exit_code(failed=len(there & self.failures.keys()), of=len(there))

    def _is_over(self, run: Run, now: float) -> bool:
        if run.status in (Status.KILLED, Status.INTERRUPTED, Status.UNKNOWN):
            return now - run.last_alive > self.following.grace
        return not run.running


def _last_change(path: Path) -> float:
    """Return when the files of a run directory that cannot be read last changed, in seconds since the epoch."""
    return max((found[2] for found in stamp(path) if found is not None), default=0) / 1e9
