"""Verify: read targets back and compare them, run by run, with what the run directories say."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from bridge.cursor import ContentOptions
from bridge.errors import BridgeError
from bridge.rundir import read_run
from bridge.secrets import hide_all, hide_in
from bridge.sync import truth as truth_of
from bridge.sync.compare import compare_kept, compare_last, compare_media, compare_shown
from bridge.sync.compare_facts import FactsCheck, facts_behind
from bridge.sync.gather import gather
from bridge.sync.truth_best import running_bests
from bridge.sync.verdicts import Behind, Compared, Difference, Findings, RunCheck, Verdict, VerifyReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from bridge.cursor import Cursor
    from bridge.exporters.contract import Exporter, TargetContent, TargetState
    from bridge.model import Run
    from bridge.rundir import Clock
    from bridge.sync.gather import Gathered
    from bridge.sync.select import Selection
    from bridge.sync.truth import Truth, TruthSeries

__all__ = ["VerifyOptions", "check_run", "verify_runs"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """How a verify is done. `heartbeat_timeout` is in seconds, `new_identity` is `--as`.

    `sample` limits the series that are read back and compared to so many a run, evenly over their sorted names, the
    first and the last among them: the same ones each time. `strict` makes being behind a difference.
    """

    selection: Selection | None = None
    sample: int | None = None
    strict: bool = False
    new_identity: str | None = None
    heartbeat_timeout: float = 180.0


def verify_runs(
    roots: Sequence[Path],
    exporter: Exporter,
    options: VerifyOptions | None = None,
    *,
    told: Callable[[RunCheck], None] | None = None,
    clock: Clock | None = None,
) -> VerifyReport:
    """Compare the runs at and below `roots` with their targets; the report has a line for each.

    `told` gets each line as soon as it is known. Raises UsageError for roots that make no sense, and TargetError where
    the target cannot be reached at all.
    """
    options = options or VerifyOptions()
    started = time.perf_counter()
    gathered = gather(
        roots,
        selection=options.selection,
        new_identity=options.new_identity,
        read=partial(read_run, clock=clock, heartbeat_timeout=options.heartbeat_timeout),
    )
    lines: list[RunCheck] = []
    with exporter:
        known = exporter.cursors(gathered.runs) if gathered.runs else {}
        for line in _all_checks(gathered, known, exporter, options):
            lines.append(line)
            if told is not None:
                told(line)
    return VerifyReport(
        exporter=exporter.name,
        runs=tuple(lines),
        strict=options.strict,
        sample=options.sample,
        seconds=time.perf_counter() - started,
    )


def _all_checks(
    gathered: Gathered, known: Mapping[str, TargetState], exporter: Exporter, options: VerifyOptions
) -> Iterator[RunCheck]:
    for run in gathered.runs:
        yield check_run(run, known[run.identity], exporter, sample=options.sample)
        for extra in known[run.identity].extras:
            reason = "a second target of this run directory"
            yield replace(_line(run, Verdict.TARGET_ONLY, reason=reason), where=extra)
    for line in gathered.failed:
        yield RunCheck(
            path=line.path,
            run_id=line.run_id,
            identity=line.identity,
            verdict=Verdict.UNREADABLE,
            reason=line.reason,
            hint=line.hint,
        )


def check_run(run: Run, known: TargetState, exporter: Exporter, *, sample: int | None = None) -> RunCheck:
    """Compare one run with its target. Never raises but for KeyboardInterrupt and the like: a failure is a verdict."""
    started = time.perf_counter()
    try:
        check = _absent(run, known) or _Check(run, known, exporter, sample).carry_out()
    except BridgeError as error:
        check = _line(run, Verdict.UNREADABLE, reason=error.message, hint=error.hint or "")
    except Exception as error:  # one failure of any kind is this run's line; the others go on
        log.debug("run %s cannot be verified", run.path, exc_info=hide_in(error))
        check = _line(run, Verdict.UNREADABLE, reason=hide_all(f"{type(error).__name__}: {error}"))
    return replace(check, seconds=time.perf_counter() - started)


def _line(run: Run, verdict: Verdict, *, reason: str = "", hint: str = "") -> RunCheck:
    return RunCheck(
        path=str(run.path), run_id=run.run_id, identity=run.identity, verdict=verdict, reason=reason, hint=hint
    )


def _absent(run: Run, known: TargetState) -> RunCheck | None:
    """The verdict on a run that has no target to compare with; None where there is one."""
    if known.error is not None:
        raise known.error
    if known.deleted:
        reason = "a person deleted this run in the target, so it stays deleted"
        return _line(run, Verdict.SOURCE_ONLY, reason=reason, hint="bridge export --rebuild makes it anew")
    if known.cursor is None and not known.exists:
        return _line(run, Verdict.SOURCE_ONLY, reason="the target does not hold this run", hint="bridge export")
    if known.cursor is None:
        reason = "what the target remembers of this run cannot be read"
        return _line(run, Verdict.UNREADABLE, reason=reason, hint="bridge export rebuilds it")
    return None


@dataclass(slots=True)
class _Check:
    """The comparison of one run with the target that there is."""

    run: Run
    known: TargetState
    exporter: Exporter
    sample: int | None
    out: Findings = field(default_factory=Findings)

    def carry_out(self) -> RunCheck:
        known, run = self.known, self.run
        assert known.cursor is not None
        cursor = known.cursor
        content = shape_of(cursor)
        target = self.exporter.open(run, content)
        truth = _read(run, cursor, content)
        names = _sampled([name for name in truth.series if _is_wanted(name, content)], self.sample)
        held = target.read() if self.sample is None else target.read(only=names)
        if held.cursor is not None and _covers(held.cursor) != _covers(cursor):
            # Somebody exported in between: what was read back belongs to the newer cursor.
            cursor = held.cursor
            truth = _read(run, cursor, content)
        behind = self._behind(truth, cursor, content)
        compared = self._compare(truth, held, cursor, content, names, frozenset((*behind.facts, *_edited(known))))
        differences = self.out.counts.total()
        return replace(
            _line(run, Verdict.DIFFERENT if differences else Verdict.SAME),
            where=target.where(),
            behind=behind,
            compared=compared,
            differences=differences,
            first=tuple(self.out.first),
            edited=tuple(known.edited),
        )

    def _behind(self, truth: Truth, cursor: Cursor, content: ContentOptions) -> Behind:
        stale = self.exporter.stale(self.run, cursor, content)
        return Behind(
            rows=max(0, truth.rows - cursor.rows),
            media_lines=max(0, truth.media_lines - cursor.media_lines) if content.media else 0,
            facts=facts_behind(stale, truth.facts, cursor.sent, self.exporter.capabilities),
        )

    def _compare(
        self,
        truth: Truth,
        held: TargetContent,
        cursor: Cursor,
        content: ContentOptions,
        names: Sequence[str],
        skip: frozenset[str],
    ) -> Compared:
        capabilities = self.exporter.capabilities
        self._counts(truth, cursor)
        check = FactsCheck(truth.facts, held, content, capabilities, skip, self.out)
        params = check.compare(cursor.sent, self.run.status)
        points = self._series(truth, held, content, names)
        events = truth.media if content.media else ()
        media = compare_media(events, held.media, held.unsupported, capabilities, self.out)
        return Compared(series=len(names), points=points, media=media, params=params)

    def _counts(self, truth: Truth, cursor: Cursor) -> None:
        """A source that has become shorter than what was exported, and a target that was never completed."""
        for file, name, there, covered in (
            ("metrics.csv", "rows", truth.rows, cursor.rows),
            ("media.jsonl", "media lines", truth.media_lines, cursor.media_lines),
        ):
            if there < covered:
                self.out.add(Difference(Verdict.TARGET_ONLY, file, name, None, str(there), str(covered)))
        if not cursor.complete:
            self.out.add(Difference(Verdict.DIFFERENT, "", "the whole target", None, "complete", "half-filled"))

    def _series(self, truth: Truth, held: TargetContent, content: ContentOptions, names: Sequence[str]) -> int:
        """Compare the series of these names, and see that there is no other; returns how many points were expected."""
        capabilities = self.exporter.capabilities
        points = 0
        for name in names:
            if f"series.{name}" in held.unsupported:
                continue
            expected = truth.series[name]
            points += len(expected)
            compare_last(name, expected, held.series.get(name), capabilities, self.out)
            if name in held.last:
                compare_shown(name, expected, held.last[name], capabilities, self.out)
            if held.bests is not None and name in content.bests:
                self._bests(name, running_bests(expected, content.bests[name]), held)
        for name, series in sorted({**(held.bests or {}), **held.series}.items()):
            count, logged = len(series.step), name if name in held.series else name.partition("/")[2]
            if count and not (logged in truth.series and _is_wanted(logged, content)):
                found = f"{count:,} points"
                self.out.add(Difference(Verdict.TARGET_ONLY, "metrics.csv", name, None, None, found), count=count)
        return points

    def _bests(self, name: str, bests: tuple[TruthSeries, TruthSeries], held: TargetContent) -> None:
        """Compare what the target made of the series `name`."""
        capabilities, made = self.exporter.capabilities, held.bests or {}
        for made_name, expected in zip((f"best/{name}", f"best_step/{name}"), bests, strict=True):
            compare_kept(made_name, expected, made.get(made_name), capabilities, self.out)
            if made_name in held.last and len(expected):
                compare_shown(made_name, expected, held.last[made_name], capabilities, self.out)


def shape_of(cursor: Cursor) -> ContentOptions:
    """The options that shaped the target, as its cursor remembers them."""
    known = set(ContentOptions.__struct_fields__)
    return ContentOptions(**{key: _tuples(value) for key, value in cursor.content.items() if key in known})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _read(run: Run, cursor: Cursor, content: ContentOptions) -> Truth:
    return truth_of.read(run.path, cursor.rows, media_lines=cursor.media_lines)


def _covers(cursor: Cursor) -> tuple[int, int]:
    return cursor.rows, cursor.media_lines


def _edited(known: TargetState) -> Iterator[str]:
    return (name.partition(".")[0] for name in known.edited)


def _is_wanted(name: str, content: ContentOptions) -> bool:
    if any(fnmatchcase(name, glob) for glob in content.exclude_metrics):
        return False
    return not content.metrics or any(fnmatchcase(name, glob) for glob in content.metrics)


def _sampled(names: Sequence[str], sample: int | None) -> list[str]:
    """At most `sample` of `names`, evenly over their sorted order, the first and the last among them."""
    ordered = sorted(names)
    if sample is None or len(ordered) <= sample:
        return ordered
    if sample == 1:
        return ordered[:1]
    return [ordered[place * (len(ordered) - 1) // (sample - 1)] for place in range(sample)]
