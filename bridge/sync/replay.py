"""Bring one run into its target, or rehearse that: one road for export, plan and follow."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from msgspec.structs import replace as with_fields

from bridge.errors import BridgeError, ConflictError, RebuildNeededError, RunDirectoryError, TargetError, UsageError
from bridge.exporters.contract import Applied
from bridge.model import Delta, DeltaKind
from bridge.rundir import read_delta, read_whole
from bridge.rundir.wanted import ReadOptions
from bridge.secrets import hide_all, hide_in
from bridge.sync.report import Action, RunReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bridge.cursor import ContentOptions, Cursor
    from bridge.exporters.contract import Capabilities, Exporter, Target, TargetState
    from bridge.model import Run

__all__ = ["Job", "Reading", "Replay", "read", "replay"]

log = logging.getLogger(__name__)


CONFLICTS = 50
"""How often one replay begins again because another export was faster; each time that one has got on."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run to bring into its target, with what the target knows of it.

    `rebuild` asks for a fresh target; without `reshape` one that was made with other options is not replaced.
    """

    run: Run
    known: TargetState
    rebuild: bool = False
    reshape: bool = True


@dataclass(frozen=True, slots=True)
class Reading:
    """What is to be read next for a replay; `read` does it, in whatever process."""

    run: Run
    cursor: Cursor | None
    content: ContentOptions
    wanted: ReadOptions


Step: TypeAlias = "RunReport | Reading"
"""What a replay needs next: nothing more, it is done; or a delta."""

Telling: TypeAlias = "Callable[[int, int], None]"
"""Hears of one run how many bytes were read and how many points sent so far."""


def read(reading: Reading) -> Delta:
    """The delta that `reading` asks for. Raises RunError."""
    return read_delta(reading.run, reading.cursor, reading.content, reading.wanted)


def replay(
    job: Job, exporter: Exporter, content: ContentOptions, *, dry_run: bool = False, tell: Telling | None = None
) -> RunReport:
    """Bring the run of `job` into its target and say what was done; with `dry_run` only say what would be.

    `tell` hears after each delta how many bytes of the run directory were read and points sent, all in all. A failure is the run's report line; only KeyboardInterrupt and the like come out.
    """
    replaying = Replay(job, exporter, content, dry_run=dry_run, tell=tell)
    step = replaying.begin()
    while isinstance(step, Reading):
        step = replaying.take(read, step)
    return step


@dataclass(slots=True)
class Replay:
    """One run on its way into its target, delta by delta; who reads the deltas is the caller's choice.

    `begin`, and then `take` for each Reading that a step asks for, until a step is the run's report. Neither raises
    but for KeyboardInterrupt and the like: a failure of any kind is the report.
    """

    job: Job
    exporter: Exporter
    content: ContentOptions
    dry_run: bool = False
    tell: Telling | None = None
    _target: Target | _Rehearsal = field(init=False)
    _wanted: ReadOptions = field(init=False)
    _stale: tuple[str, ...] = ()
    _action: Action = Action.UNCHANGED
    _reason: str = ""
    _done: Applied = field(default_factory=Applied)
    _sent: int = 0
    _conflicts: int = 0
    _started: float = field(default_factory=time.perf_counter)

    def begin(self) -> Step:
        """Look at what the target knows."""
        return self._guarded(self._begin)

    def take(self, reader: Callable[[Reading], Delta], reading: Reading) -> Step:
        """Bring the delta that `reader` gives for `reading` (or raises RunError) into the target."""
        return self._guarded(lambda: self._take(reader(reading)))

    def fail(self, error: Exception) -> RunReport:
        """The report of this run, which `error` ended elsewhere."""

        def again() -> Step:
            raise error

        step = self._guarded(again)
        assert isinstance(step, RunReport)
        return step

    def _guarded(self, part: Callable[[], Step]) -> Step:
        try:
            step = part()
        except ConflictError as error:
            self._conflicts += 1
            step = self._guarded(self._begin_again) if self._conflicts <= CONFLICTS else self._failed(error)
        except BridgeError as error:
            step = self._failed(error)
        except Exception as error:  # one failure of any kind is this run's report line; the others go on
            log.debug("run %s failed", self.job.run.path, exc_info=hide_in(error))
            step = self._line(Action.FAILED, reason=hide_all(f"{type(error).__name__}: {error}"))
        if isinstance(step, RunReport):
            step = with_fields(step, seconds=time.perf_counter() - self._started)
        return step

    def _failed(self, error: BridgeError) -> RunReport:
        action = Action.UNREADABLE if isinstance(error, RunDirectoryError) else Action.FAILED
        line = self._line(action, reason=error.message, hint=error.hint or "")
        return with_fields(line, retry=isinstance(error, TargetError))

    def _begin_again(self) -> Step:
        """After another export was at this run too: go on from what the target holds now."""
        run = self.job.run
        self.job = replace(self.job, known=self.exporter.cursors([run])[run.identity], rebuild=False)
        if not self._done.points:
            self._action, self._reason = Action.UNCHANGED, ""
        return self._begin()

    def _begin(self) -> Step:
        run, known = self.job.run, self.job.known
        self._wanted = wanted_by(self.exporter.capabilities)
        if known.error is not None:
            raise known.error
        if known.deleted and not self.job.rebuild:
            why = "a person deleted this run in the target, so it stays deleted"
            return self._line(Action.DELETED, reason=why, hint="--rebuild makes it anew")
        if (
            not self.job.reshape
            and known.cursor is not None
            and dict(known.cursor.content) != self.content.differences()
        ):
            raise UsageError("Its target was made with other options.", hint="Give the options that it was made with.")
        if self.dry_run:
            self._target = _Rehearsal()
        else:
            self._target = self.exporter.open(run, self.content)
        reason = self._reason_to_rebuild()
        if reason:
            return self._rebuild(reason)
        if known.cursor is None:
            return self._begin_new()
        self._stale = tuple(self.exporter.stale(run, known.cursor, self.content))
        return self._reading(known.cursor)

    def _reason_to_rebuild(self) -> str:
        known = self.job.known
        if self.job.rebuild and (known.exists or known.deleted):
            return "asked for by --rebuild"
        if known.exists and known.cursor is None:
            return "what the target remembers of this run cannot be trusted"
        if known.cursor is not None and not known.cursor.complete:
            return "an earlier export was stopped before the target was complete"
        return ""

    def _begin_new(self) -> Step:
        self._action = Action.NEW
        if self.exporter.capabilities.removes_points or self.exporter.capabilities.replaces_points:
            return self._reading(None)
        # A rewind would make this target anew, so the whole file is looked at before the first point is sent.
        try:
            for delta in self._watched(read_whole(self.job.run, self.content, self._wanted)):
                self._done = self._done + self._target.apply(delta)
        except RebuildNeededError as error:
            return self._rebuild(error.message)
        return self._report()

    def _reading(self, cursor: Cursor | None) -> Reading:
        return Reading(self.job.run, cursor, self.content, self._wanted)

    def _take(self, delta: Delta) -> Step:
        if _needs_rebuild(delta, self.exporter.capabilities):
            return self._rebuild(delta.reason)
        if delta.kind is not DeltaKind.SAME or self._stale:
            try:
                for one in self._watched((delta,)):
                    self._done = self._done + self._target.apply(one)
            except RebuildNeededError as error:
                return self._rebuild(error.message)
            if self._action is Action.UNCHANGED:
                self._action = Action.CHANGED
                self._reason = delta.reason or (f"changed: {', '.join(self._stale)}" if self._stale else "")
        self._stale = ()
        return self._reading(delta.after) if delta.more else self._report()

    def _rebuild(self, reason: str) -> RunReport:
        cursor = self.job.known.cursor
        deltas = read_whole(self.job.run, self.content, self._wanted, anchors=cursor.anchors if cursor else ())
        self._done = Applied()
        applied = self._target.rebuild(self._watched(deltas))
        self._done = self._done + applied
        self._action, self._reason = Action.REBUILD, reason
        return self._report()

    def _watched(self, deltas: Iterable[Delta]) -> Iterator[Delta]:
        """Pass the deltas on; note what the source lost and tell how far the run is."""
        for delta in deltas:
            self._done = self._done + Applied(notices=delta.notices)
            yield delta
            self._sent += delta.points
            if self.tell is not None:
                self.tell(delta.passed or _place(delta.after) - _place(self.job.known.cursor), self._sent)

    def _report(self) -> RunReport:
        known, done = self.job.known, self._done
        notes = done.notes
        if known.edited:
            notes += (f"edited by people in the target, left as it is: {', '.join(known.edited)}",)
        return with_fields(
            self._line(self._action, reason=self._reason),
            where=self._target.where(),
            points=done.points,
            media=done.media,
            bytes=done.bytes,
            notices=() if self.dry_run or self._action is Action.UNCHANGED else self.job.run.notices + done.notices,
            notes=notes,
        )

    def _line(self, action: Action, *, reason: str = "", hint: str = "") -> RunReport:
        run = self.job.run
        return RunReport(
            path=str(run.path), run_id=run.run_id, identity=run.identity, action=action, reason=reason, hint=hint
        )


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """A target that takes everything and touches nothing: a dry run counts with it."""

    def apply(self, delta: Delta) -> Applied:
        return Applied(points=delta.points, media=len(delta.media))

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        done = Applied()
        for delta in deltas:
            done = done + self.apply(delta)
        return done

    def where(self) -> str:
        return ""


def wanted_by(capabilities: Capabilities) -> ReadOptions:
    """How deltas are to be read for a target of these abilities."""
    return ReadOptions(
        ordered=capabilities.ordered_steps,
        removals=capabilities.removes_points,
        replaces=capabilities.replaces_points,
        hold_back=capabilities.holds_back,
        limit=capabilities.points_a_delta,
    )


def _place(cursor: Cursor | None) -> int:
    """The bytes of the run directory that a cursor covers."""
    return cursor.offset + cursor.media_offset if cursor is not None else 0


def _needs_rebuild(delta: Delta, capabilities: Capabilities) -> bool:
    if delta.kind is DeltaKind.CHANGED:
        return True
    if delta.kind is not DeltaKind.REWIND:
        return False
    if delta.removed_media and not capabilities.removes_media:
        return True
    return not (capabilities.removes_points or capabilities.replaces_points)
