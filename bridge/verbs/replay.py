"""Bring one run into its target, or rehearse that: one road for export, plan and follow."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bridge.errors import BridgeError, RunDirectoryError, TargetError
from bridge.model import Applied, DeltaKind
from bridge.report import Action, RunReport
from bridge.source import read_delta, read_whole
from bridge.source.wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bridge.exporters.contract import Abilities, Exporter, Known, Target
    from bridge.model import Cursor, Delta, Held, Loss, Run, Shape
    from bridge.progress import Progress

__all__ = ["Job", "replay"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One run to bring into its target, with what the target knows of it; `rebuild` asks for a fresh target."""

    run: Run
    known: Known
    rebuild: bool = False


def replay(
    job: Job, exporter: Exporter, shape: Shape, *, dry_run: bool = False, progress: Progress | None = None
) -> RunReport:
    """Bring the run of `job` into its target and say what was done; with `dry_run` only say what would be.

    Never raises but for KeyboardInterrupt and the like: a failure is the run's report line, and the others go on.
    """
    started = time.perf_counter()
    try:
        report = _Replay(job, exporter, shape, dry_run=dry_run, progress=progress).carry_out()
    except BridgeError as error:
        action = Action.UNREADABLE if isinstance(error, RunDirectoryError) else Action.FAILED
        retry = isinstance(error, TargetError)
        report = replace(_line(job.run, action, reason=error.message, hint=error.hint or ""), retry=retry)
    except Exception as error:  # one failure of any kind is this run's report line; the others go on
        log.debug("run %s failed", job.run.path, exc_info=True)
        report = _line(job.run, Action.FAILED, reason=f"{type(error).__name__}: {error}")
    return replace(report, seconds=time.perf_counter() - started)


def _line(run: Run, action: Action, *, reason: str = "", hint: str = "") -> RunReport:
    return RunReport(
        path=str(run.path), run_id=run.run_id, identity=run.identity, action=action, reason=reason, hint=hint
    )


@dataclass(slots=True)
class _Replay:
    """The state of one run's replay: what was applied so far."""

    job: Job
    exporter: Exporter
    shape: Shape
    dry_run: bool
    progress: Progress | None
    target: Target = field(init=False)
    wanted: Wanted = field(init=False)
    done: Applied = field(default_factory=Applied)

    def __post_init__(self) -> None:
        self.wanted = _wanted(self.exporter.abilities)

    def carry_out(self) -> RunReport:
        run, known = self.job.run, self.job.known
        if known.error is not None:
            raise known.error
        if known.deleted and not self.job.rebuild:
            return _line(
                run,
                Action.DELETED,
                reason="a person deleted this run in the target, so it stays deleted",
                hint="--rebuild makes it anew",
            )
        if self.dry_run:
            self.target = _Rehearsal(self.exporter, self.shape)
        else:
            self.target = self.exporter.open(run, self.shape)
        why = self._reason_to_rebuild()
        if why:
            return self._rebuild(why)
        if known.cursor is None:
            for delta in self._watched(read_whole(run, self.shape, self.wanted)):
                self._apply(delta)
            return self._report(Action.NEW)
        return self._follow_up(known.cursor)

    def _reason_to_rebuild(self) -> str:
        known = self.job.known
        if self.job.rebuild:
            return "asked for by --rebuild"
        if known.exists and known.cursor is None:
            return "what the target remembers of this run cannot be trusted"
        if known.cursor is not None and not known.cursor.complete:
            return "an earlier export was stopped before the target was complete"
        return ""

    def _follow_up(self, cursor: Cursor) -> RunReport:
        """Send what lies past `cursor`, delta by delta."""
        run = self.job.run
        stale = tuple(self.exporter.stale(run, cursor, self.shape))
        action, reason = Action.UNCHANGED, ""
        while True:
            delta = read_delta(run, cursor, self.shape, self.wanted)
            if _needs_rebuild(delta, self.exporter.abilities):
                return self._rebuild(delta.reason, anchors=cursor.anchors)
            if delta.kind is not DeltaKind.SAME or stale:
                for one in self._watched((delta,)):
                    self._apply(one)
                action = Action.CHANGED
                reason = reason or delta.reason or (f"changed: {', '.join(stale)}" if stale else "")
            if not delta.more:
                return self._report(action, reason)
            cursor, stale = delta.after, ()

    def _rebuild(self, reason: str, *, anchors: tuple[tuple[int, float], ...] = ()) -> RunReport:
        if not anchors and self.job.known.cursor is not None:
            anchors = self.job.known.cursor.anchors
        deltas = read_whole(self.job.run, self.shape, self.wanted, anchors=anchors)
        self.done = Applied()
        self._add(self.target.rebuild(self._watched(deltas)))
        return self._report(Action.REBUILD, reason)

    def _apply(self, delta: Delta) -> None:
        self._add(self.target.apply(delta))

    def _watched(self, deltas: Iterable[Delta]) -> Iterator[Delta]:
        """Pass the deltas on; note what the source lost and tell the progress."""
        for delta in deltas:
            self._add(Applied(losses=delta.losses))
            yield delta
            if self.progress is not None:
                self.progress.points(delta.points)

    def _add(self, applied: Applied) -> None:
        self.done = self.done + applied

    def _report(self, action: Action, reason: str = "") -> RunReport:
        run, known, done = self.job.run, self.job.known, self.done
        notes = done.notes
        if known.edited:
            notes += (f"edited by people in the target, left as it is: {', '.join(known.edited)}",)
        return replace(
            _line(run, action, reason=reason),
            where=self.target.where(),
            points=done.points,
            media=done.media,
            bytes=done.bytes,
            losses=() if action is Action.UNCHANGED else run.losses + done.losses,
            notes=notes,
        )


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """A target that takes everything and touches nothing: what a dry run carries its plan out on."""

    exporter: Exporter
    shape: Shape

    def apply(self, delta: Delta) -> Applied:
        losses: tuple[Loss, ...] = tuple(self.exporter.foresee(delta, self.shape))
        return Applied(points=delta.points, media=len(delta.media), losses=losses)

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        done = Applied()
        for delta in deltas:
            done = done + self.apply(delta)
        return done

    def read(self) -> Held:
        raise NotImplementedError("a rehearsal holds nothing")

    def where(self) -> str:
        return ""


def _wanted(abilities: Abilities) -> Wanted:
    return Wanted(
        ordered=abilities.ordered_steps,
        removals=abilities.removes_points,
        hold_back=abilities.holds_back,
        limit=abilities.points_a_delta,
    )


def _needs_rebuild(delta: Delta, abilities: Abilities) -> bool:
    if delta.kind is DeltaKind.CHANGED:
        return True
    if delta.kind is not DeltaKind.REWIND:
        return False
    if delta.removed_media and not abilities.removes_media:
        return True
    return not abilities.removes_points
