"""Verify: read targets back and compare them, run by run, with their run directories.

The points of the run directory are read by `rundir.read_points`, up to the rows that the target's cursor covers, and
its media up to the cursor's media lines. `read_points` shares the parser and the overlap rule with an export, but does
not resume at a cursor and makes no rewinds. The target is read as people see it (`Target.read`). Both sides are
compared as exactly as the target declares that it can hold values (`Capabilities`), by `bridge.sync.compare`. What the
run directory has gained since the last export is *behind*, and no difference.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from msgspec.structs import replace

from bridge import rundir
from bridge.errors import counted
from bridge.model import as_sent, fitting
from bridge.options import CompareOptions, ContentOptions
from bridge.sync.compare import CSV, MEDIA, Findings, compare_facts, compare_media, compare_metric, facts_behind
from bridge.sync.parallel import Workers, run_batches
from bridge.sync.report import Behind, Compared, Differences, RunCheck, Verdict, VerifyReport, explained, older_copy_of
from bridge.sync.select import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from bridge.exporters.contract import Exporter, TargetContent, TargetState
    from bridge.model import Cursor, MediaEvent, Run
    from bridge.sync.select import Gathered, Selection

CheckTask: TypeAlias = "tuple[Run, TargetState]"
"""A run to verify, with the state of its target."""

READ_AT_ONCE_BYTES = 32 << 20
"""Bytes of metrics.csv up to which a run is compared at once. A larger one is compared in portions."""

PORTION = 2_000_000
"""Points that are compared at once of a large run, unless one series alone has more."""


def verify_runs(
    roots: Sequence[Path],
    exporter: Exporter,
    how: CompareOptions | None = None,
    *,
    selection: Selection | None = None,
    told: Callable[[RunCheck], None] = lambda check: None,
) -> VerifyReport:
    """Compare the runs at and below `roots` with their targets.

    `told` gets each run's check as soon as it is known. Raises UsageError for roots that make no sense, and TargetError
    if the target cannot be reached at all.
    """
    how = how or CompareOptions()
    started = time.perf_counter()
    gathered = gather(
        roots,
        exporter,
        selection=selection,
        new_identity=how.new_identity,
        read=partial(rundir.read_run, heartbeat_timeout=how.heartbeat_timeout),
    )
    checks: list[RunCheck] = []
    with exporter:
        for check in _checks(gathered, exporter, how):
            checks.append(check)
            told(check)
    return VerifyReport(
        exporter=exporter.name,
        runs=tuple(checks),
        exit_code=int(gathered.no_match.unknown),
        no_match=gathered.no_match.text,
        warnings=gathered.warnings,
        skipped=gathered.skipped,
        strict=how.strict,
        sample=how.sample,
        seconds=round(time.perf_counter() - started, 6),
    )


def _checks(gathered: Gathered, exporter: Exporter, how: CompareOptions) -> Iterator[RunCheck]:
    """Check each run, here in the order given, or by several workers, who begin with the largest runs."""
    states = exporter.cursors(gathered.runs) if gathered.runs else {}
    sizes = {run.path: sum(file.size for file in run.row_files) for run in gathered.runs}
    threads = exporter.capabilities.threads
    pool = Workers(processes=how.workers or 1).pool(count=len(sizes), size=sum(sizes.values()), wait=threads)
    runs = gathered.runs if pool is None else sorted(gathered.runs, key=lambda run: sizes[run.path], reverse=True)
    batches = deque([(run, states[run.identity])] for run in runs)
    with closing(run_batches(batches, partial(_check_batch, sample=how.sample), exporter, pool)) as outcomes:
        for (run, state), outcome in outcomes:
            yield _failed_check(run, outcome) if isinstance(outcome, Exception) else outcome
            for extra in state.extras:
                reason = "a second target of this run directory"
                yield RunCheck.of(run, verdict=Verdict.TARGET_ONLY, reason=reason, where=extra)
    for line in filter(lambda line: line.failed, gathered.others):
        yield RunCheck.of(line, verdict=Verdict.UNREADABLE, reason=line.reason, hint=line.hint)


def _check_batch(batch: Sequence[CheckTask], exporter: Exporter, *, sample: int | None) -> list[RunCheck]:
    return [check_run(run, state, exporter, sample=sample) for run, state in batch]


def check_run(run: Run, state: TargetState, exporter: Exporter, *, sample: int | None = None) -> RunCheck:
    """Compare one run with its target.

    A failure of any kind is a verdict; only KeyboardInterrupt and the like come out.
    """
    started = time.perf_counter()
    run = as_sent(run, state.cursor)
    try:
        if state.error is not None:
            raise state.error
        if state.cursor is None or state.deleted:
            check = _without_target(run, state)
        else:
            check = _Comparison(run, state, exporter, sample).compare(state.cursor)
    except Exception as error:  # noqa: BLE001 - one run's failure is its line in the report; the other runs go on
        check = _failed_check(run, error)
    return replace(check, seconds=round(time.perf_counter() - started, 6))


def _failed_check(run: Run, error: Exception) -> RunCheck:
    reason, hint = explained(error, run.path)
    return RunCheck.of(run, verdict=Verdict.UNREADABLE, reason=reason, hint=hint)


def _without_target(run: Run, state: TargetState) -> RunCheck:
    """Return the verdict on a run that has no target to compare with."""
    if state.deleted:
        reason = "a person deleted this run in the target, so it stays deleted"
        return RunCheck.of(
            run, verdict=Verdict.SOURCE_ONLY, reason=reason, hint="bridge export --rebuild exports it again"
        )
    if not state.exists:
        return RunCheck.of(
            run, verdict=Verdict.SOURCE_ONLY, reason="the target does not hold this run", hint="bridge export"
        )
    reason = "what the target remembers of this run cannot be read"
    return RunCheck.of(run, verdict=Verdict.UNREADABLE, reason=reason, hint="bridge export rebuilds it")


@dataclass(slots=True)
class _Comparison:
    """The comparison of one run with its target. `out` collects the differences."""

    run: Run
    state: TargetState
    exporter: Exporter
    sample: int | None
    out: Findings = field(init=False)

    def compare(self, cursor: Cursor) -> RunCheck:
        """Compare what `cursor` covers, a large run in portions."""
        self.out = Findings(self.exporter.capabilities)
        content = ContentOptions.kept(cursor.content)
        target = self.exporter.open(self.run, content)
        names, portions = self._portions(cursor, content)
        compared, behind, reason = Compared(), Behind(), ""
        for number, portion in enumerate(portions):
            held = target.read(only=portion)
            if held.cursor is not None and held.cursor.rows != cursor.rows and names:
                # Somebody exported the run meanwhile, and the new rows may bring metrics.
                names, _ = rundir.count_points(self.run, content, until=held.cursor)
            cursor = held.cursor or cursor
            series, rows = rundir.read_points(self.run, content, until=cursor, only=portion)
            own = names or series.keys()
            if number == 0:
                self.out.deleted, self.out.has_event_files = rows.start, bool(self.run.event_files)
                if rows.stop < cursor.rows and cursor.path != fitting(str(self.run.path)):
                    reason = older_copy_of(cursor.path)
                behind, compared = self._compare_facts_and_media(held, cursor, content, rows.stop)
                if self.sample is None:
                    self._note_others(held, own)
            points = 0
            for name in sorted(series):
                points += compare_metric(series[name], own, held, content, self.out)
            compared = replace(compared, series=compared.series + len(series), points=compared.points + points)
            # While the next portion is read, this one must not take memory.
            del held, series, own
        if self.out.deleted:
            reason = f"the target keeps {counted(self.out.deleted, 'row')} of event files that are deleted"
        return RunCheck.of(
            self.run,
            verdict=Verdict.DIFFERENT if self.out.count else Verdict.SAME,
            reason=reason,
            where=target.where(),
            behind=behind,
            compared=compared,
            differences=Differences(count=self.out.count, first=tuple(self.out.first)),
            edited=tuple(self.state.edited),
        )

    def _portions(self, cursor: Cursor, content: ContentOptions) -> tuple[Collection[str], list[list[str] | None]]:
        """Return the names of all metrics, and those to compare in portions of about PORTION points.

        A small run has one portion, None, that stands for all metrics; its names are not known before it is read.
        """
        if self.sample is None and cursor.offset <= READ_AT_ONCE_BYTES:
            return (), [None]
        counts, _ = rundir.count_points(self.run, content, until=cursor)
        portions: list[list[str] | None] = []
        size = PORTION
        for name in _sampled(counts, self.sample):
            if not portions or size + counts[name] > PORTION:
                portions.append([])
                size = 0
            portions[-1].append(name)  # type: ignore[union-attr]
            size += counts[name]
        return counts, portions or [[]]

    def _compare_facts_and_media(
        self, held: TargetContent, cursor: Cursor, content: ContentOptions, rows: int
    ) -> tuple[Behind, Compared]:
        """Compare all but the points. Return what is behind, and how much was compared. The run has `rows` rows."""
        events: tuple[MediaEvent, ...] = ()
        lines = cursor.media_lines
        if content.media:
            media = rundir.read_media(self.run, None, until=cursor)
            events, lines = media.events, media.lines
        for file, name, there, covered in (
            (CSV, "rows", rows, cursor.rows),
            (MEDIA, "media lines", lines, cursor.media_lines),
        ):
            if there < covered:
                self.out.add(file, name, str(there), str(covered), verdict=Verdict.TARGET_ONLY)
        if not cursor.complete:
            self.out.add("", "the whole target", "complete", "half-filled")
        behind = Behind(
            rows=max(0, rows - cursor.rows),
            media_lines=max(0, lines - cursor.media_lines),
            facts=facts_behind(self.run, self.exporter.stale(self.run, cursor, content), cursor.sent),
        )
        skip = frozenset((*behind.facts, *(name.partition(".")[0] for name in self.state.edited)))
        for one in held.mismatches:
            if one.fact not in skip:
                self.out.add(one.file, one.what, one.expected, one.found)
        params = compare_facts(self.run, held, content, skip, cursor.sent, self.out)
        count = compare_media(events, held.media, held.unsupported, self.out)
        return behind, Compared(media=count, params=params)

    def _note_others(self, held: TargetContent, own: Collection[str]) -> None:
        """Note the metrics that only the target has."""
        for name in sorted({*held.series, *held.names} - set(own)):
            count = len(held.series[name].step) if name in held.series else 1
            found = counted(count, "point") if name in held.series else "a metric"
            if count:
                self.out.add(CSV, name, None, found, count=count)


def _sampled(names: Iterable[str], sample: int | None) -> list[str]:
    """Return at most `sample` of `names`, evenly over their sorted order, the first and the last among them."""
    ordered = sorted(names)
    if sample is None or len(ordered) <= sample:
        return ordered
    if sample == 1:
        return ordered[:1]
    return [ordered[place * (len(ordered) - 1) // (sample - 1)] for place in range(sample)]
