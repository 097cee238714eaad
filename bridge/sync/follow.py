"""Follow: export again and again, only what moved, until told to stop or until every run is done."""

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
from bridge.sync.gather import gather
from bridge.sync.report import Action, exit_code

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.exporters.contract import Exporter
    from bridge.model import Run
    from bridge.rundir import Clock
    from bridge.rundir.discover import Stamp
    from bridge.sync.export import Options
    from bridge.sync.gather import Gathered
    from bridge.sync.progress import Progress
    from bridge.sync.report import Report, RunReport

__all__ = ["Following", "follow"]

LONGEST_PAUSE = 300.0
"""The longest wait, in seconds, between two tries at a target that cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """How to follow. `interval` and `grace` are in seconds.

    `until_done` ends when every run found has completed or failed; a killed or interrupted run counts as done once its
    last sign of life is older than `grace`, since it may be requeued, and so does one that cannot be read. `pause` waits so many seconds (a seam for those
    who need to be woken: it may raise).
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

    `told` gets the report of every pass that did something, `say` a message when the target or the source goes away
    and when it is back, once each; `progress` makes one for each pass; a root that is not there yet is waited for, while the others go on. Returns with
    `until_done` only: the exit code that a plain export of all runs would end with then (0, 1 or 3). Otherwise a
    signal's exception ends it, and what was in flight is sent again by the next export. A target that refuses for good
    raises TargetRefusedError.
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
    """Something that comes and goes, said when it comes (with the words of that moment) and when it is `over`."""

    over: str
    say: Callable[[str], None]
    lasting: bool = False

    def note(self, trouble: str) -> None:
        """What there is now; "" for none."""
        if bool(trouble) != self.lasting:
            self.say(trouble or self.over)
        self.lasting = bool(trouble)


@dataclass(slots=True)
class _Follower:
    """What one follow remembers between two looks; the truth about a target stays in the target."""

    roots: Sequence[Path]
    exporter: Exporter
    options: Options
    following: Following
    progress: Callable[[], Progress] | None = None
    clock: Clock | None = None
    read: dict[Path, tuple[Stamp, Run]] = field(default_factory=dict)
    settled: dict[Path, Stamp] = field(default_factory=dict)
    told: dict[Path, str] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    unreadable: tuple[Path, ...] = ()

    def look(self, told: Callable[[Report], None]) -> tuple[str, str]:
        """One pass. What is missing of the source, and why the target could not be reached; "" where all is well."""
        present, absent = self._present()
        gathered = gather(present, selection=self.options.selection, read=self._read)
        self.runs, self.unreadable = gathered.runs, tuple(Path(line.path) for line in gathered.failed)
        return absent, self._export(gathered, told)

    def _present(self) -> tuple[list[Path], str]:
        """The roots that are there, and why the first of the others is not."""
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
        due = tuple(run for run in gathered.runs if self._is_due(run))
        news = tuple(line for line in gathered.failed if self.told.get(Path(line.path)) != line.reason)
        if not due and not news:
            return ""
        try:
            shown = None if self.progress is None else self.progress()
            asked = replace(gathered, runs=due, failed=news)
            report = export_gathered(asked, self.exporter, self.options, progress=shown)
        except TargetUnavailableError as error:
            return error.message
        return self._settle(report, told)

    def _settle(self, report: Report, told: Callable[[Report], None]) -> str:
        """Remember which runs need no more attention until they move; tell what is new; the first trouble, if any."""
        trouble = ""
        shown: list[RunReport] = []
        for line in report.runs:
            path = Path(line.path)
            if line.retry:
                trouble = trouble or f"{line.run_id}: {line.reason}"
            elif path in self.read:
                self.settled[path] = self.read[path][0]
            if line.failed and self.told.get(path) == line.reason:
                continue
            if line.failed:
                self.told[path] = line.reason
            else:
                self.told.pop(path, None)
            if line.action is not Action.UNCHANGED:
                shown.append(line)
        if shown:
            told(with_fields(report, runs=tuple(shown)))
        return trouble

    def _read(self, path: Path) -> Run:
        """The run at `path`, read again only where stat says that something moved, or where its liveness may have."""
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
        """Whether there are runs and each of them is over for good (the design's `--until-done`)."""
        now = time.time()
        return (
            bool(self.runs or self.unreadable)
            and all(self._is_over(run, now) for run in self.runs)
            and all(now - _last_change(path) > self.following.grace for path in self.unreadable)
        )

    def exit_code(self) -> int:
        """As of a report on all runs that there are now, with what became of each the last time that it was due."""
        there = {*self.unreadable, *(run.path for run in self.runs)}
        return exit_code(failed=len(there & self.told.keys()), of=len(there))

    def _is_over(self, run: Run, now: float) -> bool:
        if run.status in (Status.KILLED, Status.INTERRUPTED, Status.UNKNOWN):
            return now - run.last_alive > self.following.grace
        return not run.running


def _last_change(path: Path) -> float:
    """When a run directory that cannot be read was last written to, in seconds since the epoch."""
    return max((found[2] for found in stamp(path) if found is not None), default=0) / 1e9
