"""Follow: export again and again, only what moved, until told to stop or until every run is done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import TargetUnavailableError, UsageError
from bridge.model import Status
from bridge.report import Action
from bridge.source import read_run
from bridge.source.stamp import stamp
from bridge.verbs.export import export_gathered
from bridge.verbs.gather import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bridge.exporters.contract import Exporter
    from bridge.model import Run
    from bridge.report import Report, RunReport
    from bridge.source import Clock
    from bridge.source.stamp import Stamp
    from bridge.verbs.export import Options

__all__ = ["Following", "follow"]

LONGEST_PAUSE = 300.0
"""The longest wait, in seconds, between two tries at a target that cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """How to follow. `interval` and `grace` are in seconds.

    `until_done` ends when every run found has completed or failed; a killed or interrupted run counts as done once its
    last sign of life is older than `grace`, since it may be requeued. `pause` waits so many seconds (a seam for those
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
    clock: Clock | None = None,
) -> None:
    """Export what moved at and below `roots`, then wait, again and again.

    `told` gets the report of every pass that did something, `say` a message when the target or the source goes away
    and when it is back, once each. Returns with `until_done` only; otherwise a signal's exception ends it, and what
    was in flight is sent again by the next export. A target that refuses for good raises TargetRefusedError.
    """
    follower = _Follower(roots, exporter, options, following, clock=clock)
    pause = following.interval
    trouble = ""
    while True:
        new_trouble = follower.look(told)
        if new_trouble and not trouble:
            say(f"{new_trouble} Trying again until it works.")
        if trouble and not new_trouble:
            say("It works again.")
        pause = min(max(pause, 1.0) * 2, LONGEST_PAUSE) if new_trouble else following.interval
        trouble = new_trouble
        if following.until_done and not trouble and follower.all_done():
            return
        following.pause(pause)


@dataclass(slots=True)
class _Follower:
    """What one follow remembers between two looks; the truth about a target stays in the target."""

    roots: Sequence[Path]
    exporter: Exporter
    options: Options
    following: Following
    clock: Clock | None = None
    read: dict[Path, tuple[Stamp, Run]] = field(default_factory=dict)
    settled: dict[Path, Stamp] = field(default_factory=dict)
    told: dict[Path, str] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()

    def look(self, told: Callable[[Report], None]) -> str:
        """One pass. The trouble met, as a sentence; "" where there was none."""
        try:
            gathered = gather(self.roots, selection=self.options.selection, read=self._read)
        except UsageError as error:
            return f"The runs cannot be found: {error.message}"
        self.runs = gathered.runs
        due = tuple(run for run in gathered.runs if self._is_due(run))
        news = tuple(line for line in gathered.failed if self.told.get(Path(line.path)) != line.reason)
        if not due and not news:
            return ""
        try:
            report = export_gathered(replace(gathered, runs=due, failed=news), self.exporter, self.options)
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
            told(replace(report, runs=tuple(shown)))
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
        return bool(self.runs) and all(self._is_over(run, now) for run in self.runs)

    def _is_over(self, run: Run, now: float) -> bool:
        if run.status in (Status.KILLED, Status.INTERRUPTED, Status.UNKNOWN):
            return now - run.last_alive > self.following.grace
        return not run.running
