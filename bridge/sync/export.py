"""Export: bring runs into a target, and each time only what is new.

`export_runs` gathers the runs, asks the target for the state of each, and exports them with `bridge.sync.parallel`, in
batches of one run, or of several small ones if that is faster for the target (`Exporter.batch`). Runs that are known to
be unchanged are not even read (`bridge.sync.unchanged`). `export_run` exports one run: it reads the run directory past
the target's cursor, delta by delta, and passes each delta to the target. A dry run does the same with a target that
touches nothing.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from bridge import rundir
from bridge.errors import (
    ConflictError,
    IdentityError,
    RebuildNeededError,
    RunDirectoryError,
    TargetError,
    TargetRefusedError,
    TargetUnavailableError,
)
from bridge.exporters.contract import Applied
from bridge.model import DeltaKind, as_sent, fitting
from bridge.options import ContentOptions, as_written
from bridge.sync.parallel import Workers, run_batches
from bridge.sync.report import WRITTEN, Action, Progress, Report, RunReport, explained, older_copy_of, summarise_notices
from bridge.sync.select import gather, unknown_metrics
from bridge.sync.unchanged import UnchangedRuns

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bridge.exporters.contract import Exporter, Target, TargetState
    from bridge.model import Cursor, Delta, Notice, Run
    from bridge.sync.select import Gathered, Selection

SMALL_RUN = 1 << 20
"""Bytes of a run directory up to which a run shares a batch with others. They become one delta."""

MOST_FAULTS = 3
"""Runs in a row that may fail because of the same fault of the target before the others are given up."""

MOST_CONFLICTS = 50
"""Attempts at one run while other exports change its target. Each of these exports gets further meanwhile."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How an export is done. `heartbeat_timeout` is in seconds.

    Of `content` the options in `given` count (None: all of them). In those that were not given, a run keeps what its
    target was made with. `dry_run` plans and touches nothing; `rebuild` replaces every target; `new_identity` is
    `--as`.
    """

    content: ContentOptions = msgspec.field(default_factory=ContentOptions)
    given: frozenset[str] | None = None
    selection: Selection | None = None
    dry_run: bool = False
    rebuild: bool = False
    new_identity: str | None = None
    heartbeat_timeout: float = 180.0
    workers: Workers = msgspec.field(default_factory=Workers)

    def content_over(self, kept: ContentOptions) -> ContentOptions:
        """Return the content options of a run: those that were given, else those that its target keeps."""
        if self.given is None:
            return self.content
        return replace(kept, **{name: getattr(self.content, name) for name in self.given})

    def task(self, run: Run, state: TargetState) -> ExportTask:
        """Return what is to be done with one run."""
        kept = ContentOptions() if state.cursor is None else ContentOptions.kept(state.cursor.content)
        return ExportTask(run, state, self.content_over(kept), rebuild=self.rebuild)


def export_runs(
    roots: Sequence[Path],
    exporter: Exporter,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
) -> Report:
    """Bring the runs at and below `roots` into the target of `exporter`. The report has a line for each run.

    A run that fails does not stop the others. Raises UsageError for roots or options that make no sense, and
    TargetError if the target cannot be reached at all.
    """
    options = options or Options()
    started = time.perf_counter()
    unchanged = UnchangedRuns.load(exporter, options)
    gathered = gather(
        roots,
        exporter,
        selection=options.selection,
        new_identity=options.new_identity,
        read=partial(rundir.read_run, heartbeat_timeout=options.heartbeat_timeout, is_real=True),
        unchanged=unchanged,
    )
    # Runs that were not read are of no help in telling which metrics there are; their options did not change.
    warnings = [] if gathered.unchanged else unknown_metrics(gathered.runs, options.content)
    gathered = replace(gathered, warnings=(*gathered.warnings, *warnings))
    return export_gathered(gathered, exporter, options, progress=progress, unchanged=unchanged, started=started)


def export_gathered(
    gathered: Gathered,
    exporter: Exporter,
    options: Options,
    *,
    progress: Progress | None = None,
    unchanged: UnchangedRuns | None = None,
    started: float | None = None,
) -> Report:
    """Bring runs that were already read into the target of `exporter`. Raises TargetError as `export_runs` does.

    A target whose runs are all known to be unchanged is not opened. `started` is the export's begin by
    `time.perf_counter`, if that was before this call.
    """
    started = time.perf_counter() if started is None else started
    runs = gathered.runs
    lines: list[RunReport] = []
    notices: tuple[Notice, ...] = ()
    if runs or not gathered.unchanged:
        with progress or Progress() as shown, exporter:
            exporter.prepare(runs, options.content)
            states = exporter.cursors(runs)
            tasks = [options.task(run, states[run.identity]) for run in runs]
            shown.start(len(tasks))
            with closing(_export_all(tasks, exporter, options, shown)) as reports:
                for line in reports:
                    lines.append(line)
                    shown.run_done(line)
            notices = () if options.dry_run else _finish(tasks, exporter)
        if unchanged is not None:
            unchanged.remember(tasks, lines, gathered.unchanged)
    return Report(
        exporter=exporter.name,
        runs=(*gathered.unchanged, *lines, *gathered.others),
        notices=summarise_notices(notices),
        seconds=round(time.perf_counter() - started, 6),
        dry_run=options.dry_run,
        exit_code=int(gathered.no_match.unknown),
        no_match=gathered.no_match.text,
        warnings=gathered.warnings,
        skipped=gathered.skipped,
    )


def _finish(tasks: Sequence[ExportTask], exporter: Exporter) -> tuple[Notice, ...]:
    """Let the exporter finish the runs, those with equal content options together. Return its notices."""
    groups: dict[ContentOptions, list[Run]] = {}
    for task in tasks:
        groups.setdefault(task.content, []).append(task.run)
    return tuple(notice for content, runs in groups.items() for notice in exporter.finish(runs, content))


class ExportTask(msgspec.Struct, frozen=True):
    """One run to bring into its target, with the state of the target and the content options.

    `rebuild` asks for a fresh target.
    """

    run: Run
    state: TargetState
    content: ContentOptions
    rebuild: bool = False

    @property
    def backlog(self) -> int:
        """Estimate the bytes of the run directory that the target does not have."""
        run, cursor = self.run, self.state.cursor
        size = sum(file.size for file in run.row_files)
        size += run.files["media.jsonl"].size if "media.jsonl" in run.files else 0
        return max(0, size - (cursor.offset + cursor.media_offset if cursor is not None else 0))

    def failed(self, error: Exception) -> RunReport:
        """Return the report of this run, which `error` ended."""
        action = Action.UNREADABLE if isinstance(error, RunDirectoryError) else Action.FAILED
        retry, refused = isinstance(error, TargetError), isinstance(error, TargetRefusedError)
        reason, hint = explained(error, self.run.path)
        return RunReport.of(self.run, action=action, reason=reason, hint=hint, retry=retry, refused=refused)


def _export_all(
    tasks: Sequence[ExportTask], exporter: Exporter, options: Options, progress: Progress
) -> Generator[RunReport, None, None]:
    """Export the runs of `tasks`, and yield the reports in the order in which they are done.

    A target with a single writer is written by this process alone. When MOST_FAULTS runs in a row fail because of the
    same fault of the target, the runs that have not begun fail with it too, so that they do not all wait for it. Raises
    MissingExtraError and TargetUnavailableError if the Dask cluster cannot be reached at first.
    """
    capabilities = exporter.capabilities
    pool = None
    if not capabilities.single_writer:
        size = sum(task.backlog for task in tasks)
        pool = options.workers.pool(count=len(tasks), size=size, wait=capabilities.threads)
    most = capabilities.batch_runs
    work = partial(export_batch, dry_run=options.dry_run)
    if pool is None:
        work = partial(work, moved=progress.moved)
    else:
        tasks = sorted(tasks, key=lambda task: task.backlog, reverse=True)
        # Each worker gets several batches, so that none is idle while another one has many runs left.
        most = min(most, len(tasks) // (4 * pool[1]))
    waiting = deque(_batches(tasks, most))
    fault, in_a_row = "", 0
    with closing(run_batches(waiting, work, exporter, pool)) as outcomes:
        for task, outcome in outcomes:
            report = task.failed(outcome) if isinstance(outcome, Exception) else outcome
            if pool is not None:
                progress.moved(report.points)
            yield report
            if not (report.failed and report.retry):
                in_a_row = 0
                continue
            in_a_row = in_a_row + 1 if report.reason == fault else 1
            fault = report.reason
            if in_a_row >= MOST_FAULTS:
                kind = TargetRefusedError if report.refused else TargetUnavailableError
                error = kind(report.reason, hint=report.hint)
                left = [task for batch in waiting for task in batch]
                waiting.clear()
                yield from (task.failed(error) for task in left)


def _batches(tasks: Iterable[ExportTask], most: int) -> Iterator[list[ExportTask]]:
    """Yield consecutive small tasks in batches of up to `most`, and each larger task alone."""
    batch: list[ExportTask] = []
    for task in tasks:
        is_small = task.backlog <= SMALL_RUN
        if batch and (len(batch) >= most or not is_small):
            yield batch
            batch = []
        if is_small:
            batch.append(task)
        else:
            yield [task]
    if batch:
        yield batch


def export_batch(
    tasks: Sequence[ExportTask],
    exporter: Exporter,
    *,
    dry_run: bool = False,
    moved: Callable[[int], None] = lambda points: None,
) -> list[RunReport]:
    """Bring some runs into their targets together, and report on each as `export_run` does."""
    reports: list[RunReport] = []
    try:
        with exporter.batch():
            for task in tasks:
                reports.append(export_run(task, exporter, dry_run=dry_run, moved=moved))  # noqa: PERF401 - used if it ends
    except (ConflictError, TargetRefusedError):
        # One of them is the reason, and the others must not fail with it.
        return [export_run(task, exporter, dry_run=dry_run, moved=moved) for task in tasks]
    except TargetError as error:
        pairs = zip(tasks, reports, strict=True)
        return [task.failed(error) if report.action in WRITTEN else report for task, report in pairs]
    return reports


def export_run(
    task: ExportTask,
    exporter: Exporter,
    *,
    dry_run: bool = False,
    moved: Callable[[int], None] = lambda points: None,
) -> RunReport:
    """Bring one run into its target and report what was done, or with `dry_run` what would be done.

    `moved` is called with the number of points of each delta that the target has. A failure of any kind is the run's
    report; only KeyboardInterrupt and the like come out.
    """
    started = time.perf_counter()
    try:
        report = _RunExport(task, exporter, dry_run, moved).carry_out()
    except Exception as error:  # noqa: BLE001 - one run's failure is its line in the report; the other runs go on
        report = task.failed(error)
    return replace(report, seconds=round(time.perf_counter() - started, 6))


@dataclass(slots=True)
class _RunExport:
    """The export of one run.

    `done` sums up what was sent so far. `action` and `reason` are for the report. `moved` is as in `export_run`.
    """

    task: ExportTask
    exporter: Exporter
    dry_run: bool
    moved: Callable[[int], None]
    target: Target | _DryRunTarget = field(init=False)
    done: Applied = field(default_factory=Applied)
    action: Action = Action.UNCHANGED
    reason: str = ""

    def carry_out(self) -> RunReport:
        """Export the run; if another export changes its target meanwhile, go on from what the target holds then.

        Raises BridgeError.
        """
        for _ in range(MOST_CONFLICTS):
            with suppress(ConflictError):
                return self._attempt()
            run = self.task.run
            self.task = replace(self.task, state=self.exporter.cursors([run])[run.identity], rebuild=False)
            if not self.done.points:
                self.action, self.reason = Action.UNCHANGED, ""
        return self._attempt()

    def _attempt(self) -> RunReport:
        """Send what is new, or rebuild the target, and return the report. Raises ConflictError as the target does."""
        state = self.task.state
        if state.error is not None:
            raise state.error
        run = as_sent(self.task.run, state.cursor)
        self.task = replace(self.task, run=run)
        if state.deleted and not self.task.rebuild:
            why = "a person deleted this run in the target, so it stays deleted"
            return RunReport.of(run, action=Action.DELETED, reason=why, hint="--rebuild exports it again")
        if state.cursor is not None and not self.task.rebuild and self._is_older_copy(state.cursor):
            why = older_copy_of(state.cursor.path)
            hint = "Give it its own identity: bridge export RUN_DIR --as NEW_ID, or replace the target's run: --rebuild"
            return RunReport.of(run, action=Action.COPY, reason=why, hint=hint)
        self.target = _DryRunTarget() if self.dry_run else self.exporter.open(run, self.task.content)
        try:
            reason = self._reason_to_rebuild() or (
                self._send_new() if state.cursor is None else self._send_changes(state.cursor)
            )
        except RebuildNeededError as error:
            reason = error.message
        if reason:
            self._rebuild(reason)
        return self._report()

    def _is_older_copy(self, cursor: Cursor) -> bool:
        """Return whether the run directory lies elsewhere than the exported one, and lacks rows or media that it had.

        A moved run holds everything that the target holds.
        """
        if cursor.path == fitting(str(self.task.run.path)):
            return False
        try:
            if self._delta_past(cursor).kind is not DeltaKind.CHANGED:
                return False
        except IdentityError:
            pass
        *_, last = self._whole()
        return last.after.rows < cursor.rows or last.after.media_lines < cursor.media_lines

    def _changed_options(self, cursor: Cursor) -> dict[str, str]:
        """Return the content options that differ from those of the target, each with words for people."""
        now, then = self.task.content.differences(), dict(cursor.content)
        names = [name for name in dict.fromkeys((*now, *then)) if now.get(name) != then.get(name)]
        return {
            name: f"{name.replace('_', '-')} (was {_in_words(then, name)}, is {_in_words(now, name)})" for name in names
        }

    def _reason_to_rebuild(self) -> str:
        """Return why the target must be rebuilt whatever the run directory holds, "" if it need not be."""
        state = self.task.state
        if self.task.rebuild and (state.exists or state.deleted):
            return "asked for by --rebuild"
        if state.exists and state.cursor is None:
            return "what the target remembers of this run cannot be trusted"
        if state.cursor is not None and not state.cursor.complete:
            return "an earlier export was stopped before the target was complete"
        changed = self._changed_options(state.cursor) if state.cursor is not None else {}
        if changed.keys() - self.exporter.capabilities.adjusts:
            return f"made with other options: {', '.join(changed.values())}"
        return ""

    def _send_new(self) -> str:
        """Fill a new target. Return why it must be rebuilt all the same, "" if it is complete."""
        self.action = Action.NEW
        if self.exporter.capabilities.replaces_points:
            return self._send_deltas(None)
        # This target can only be rebuilt when a rewind comes, so all rows are looked at before the first point is sent.
        for delta in self._watch(self._whole()):
            self.done += self.target.apply(delta)
        return ""

    def _send_changes(self, cursor: Cursor) -> str:
        """Send what lies past `cursor`, and facts that changed. Return why the target must be rebuilt, or ""."""
        stale = dict.fromkeys(
            (*self._changed_options(cursor), *self.exporter.stale(self.task.run, cursor, self.task.content))
        )
        # The target takes these options without a rebuild, so for the reader they are those that it was made with.
        return self._send_deltas(cursor.with_(content=self.task.content.differences()), tuple(stale))

    def _send_deltas(self, cursor: Cursor | None, stale: tuple[str, ...] = ()) -> str:
        replaces = self.exporter.capabilities.replaces_points
        while True:
            delta = self._delta_past(cursor)
            if delta.kind is DeltaKind.CHANGED or (delta.kind is DeltaKind.REWIND and not replaces):
                return delta.reason
            if delta.kind is not DeltaKind.SAME or stale:
                for one in self._watch((delta,)):
                    self.done += self.target.apply(one)
                if self.action is Action.UNCHANGED:
                    self.action = Action.CHANGED
                    self.reason = delta.reason or (f"changed: {', '.join(stale)}" if stale else "")
            if not delta.more:
                return ""
            cursor, stale = delta.after, ()

    def _rebuild(self, reason: str) -> None:
        """Replace the target by a fresh one."""
        cursor = self.task.state.cursor
        deltas = self._whole(anchors=cursor.anchors if cursor is not None else ())
        self.done = Applied()
        # First `rebuild`, which reads the deltas, and so adds to `done` through `_watch`.
        applied = self.target.rebuild(self._watch(deltas))
        self.done += applied
        self.action, self.reason = Action.REBUILD, reason

    def _delta_past(self, cursor: Cursor | None) -> Delta:
        return rundir.read_delta(self.task.run, cursor, self.task.content, self._read_options())

    def _whole(self, *, anchors: tuple[tuple[int, float], ...] = ()) -> Iterator[Delta]:
        return rundir.read_whole(self.task.run, self.task.content, self._read_options(), anchors=anchors)

    def _watch(self, deltas: Iterable[Delta]) -> Iterator[Delta]:
        """Pass deltas on. Add the notices of each to the report, and call `moved` when the target asks for the next."""
        for delta in deltas:
            self.done += Applied(notices=delta.notices)
            yield delta
            self.moved(delta.points)

    def _read_options(self) -> rundir.ReadOptions:
        capabilities = self.exporter.capabilities
        return rundir.ReadOptions(
            ordered=capabilities.ordered_steps,
            replaces=capabilities.replaces_points,
            limit=capabilities.points_a_delta,
        )

    def _report(self) -> RunReport:
        done, edited = self.done, self.task.state.edited
        notes = done.notes
        if edited:
            notes += (f"edited in the target, and left unchanged: {', '.join(edited)}",)
        says_nothing = self.dry_run or self.action is Action.UNCHANGED
        return RunReport.of(
            self.task.run,
            action=self.action,
            reason=self.reason,
            where=self.target.where(),
            points=done.points,
            media=done.media,
            bytes=done.bytes,
            notices=() if says_nothing else summarise_notices(self.task.run.notices + done.notices),
            notes=notes,
        )


def _in_words(options: Mapping[str, Any], name: str) -> str:
    """Return an option's value for people; `options` holds those that differ from their defaults."""
    if name not in options:
        return "the default"
    value = options[name]
    return as_written(value) if isinstance(value, list) else str(value)


class _DryRunTarget:
    """A target that takes everything and touches nothing."""

    def apply(self, delta: Delta) -> Applied:
        """Count the points and media of `delta`."""
        return Applied(points=delta.points, media=len(delta.media))

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Count the points and media of `deltas`."""
        return sum(map(self.apply, deltas), Applied())

    def where(self) -> str:
        """Return no address: nothing is made."""
        return ""
