"""Verify: read targets back and compare them, run by run, with their run directories.

The run directory is read as an export reads it, up to the rows and media lines that the target's cursor covers. The
target is read as people see it (`Target.read`). Both sides are compared as exactly as the target declares that it can
hold values (`Capabilities`). What the run directory has gained since the last export is *behind*, and no difference.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
import warnings
from collections import Counter, defaultdict, deque
from contextlib import closing
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from msgspec.structs import replace as with_fields

from bridge.errors import BridgeError, TargetUnavailableError
from bridge.files import BROKEN_PICTURE, MOST_DECODED_PIXELS, open_file
from bridge.model import Status, as_sent, fitting
from bridge.options import ContentOptions
from bridge.rundir import count_points, read_media, read_points, read_run
from bridge.secrets import Redaction, hide_all, hide_in
from bridge.sync.parallel import Workers, do_tasks, make_pool
from bridge.sync.report import Behind, Compared, Difference, Differences, RunCheck, Verdict, VerifyReport, older_copy_of
from bridge.sync.select import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bridge.exporters.contract import Capabilities, Exporter, TargetContent, TargetMedia, TargetState
    from bridge.model import Cursor, MediaEvent, Run, Scalar, Series
    from bridge.rundir import Clock
    from bridge.sync.select import Gathered, Selection

log = logging.getLogger(__name__)

CheckTask: TypeAlias = "tuple[Run, TargetState]"
"""A run to verify, with the state of its target."""

CSV = "metrics.csv"
MEDIA = "media.jsonl"
SIDECAR = "sidecar.json"

FIRST = 10
"""How many differences of a run are shown; all of them are counted."""

SMALL_BYTES = 32 << 20
"""Bytes of metrics.csv up to which a run is compared at once. A larger one is compared in portions."""

PORTION = 3_000_000
"""Points that are compared at once of a large run, unless one series alone has more."""

MOST_TRIES = 5
"""How often the comparison of one run is begun again because somebody exported the run meanwhile."""

ROUNDING = 1e-6
"""Seconds. A float64 time since the epoch has steps of 0.24 microseconds, so sums and roundings stay below this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """How a verify is done. `heartbeat_timeout` is in seconds, `new_identity` is `--as`.

    `sample` limits the series that are compared to so many a run, evenly over their sorted names, the first and the
    last among them: the same ones each time. `strict` makes being behind a difference.
    """

    selection: Selection | None = None
    sample: int | None = None
    strict: bool = False
    new_identity: str | None = None
    heartbeat_timeout: float = 180.0
    workers: Workers = field(default_factory=Workers)


def verify_runs(
    roots: Sequence[Path],
    exporter: Exporter,
    options: VerifyOptions | None = None,
    *,
    told: Callable[[RunCheck], None] | None = None,
    clock: Clock | None = None,
) -> VerifyReport:
    """Compare the runs at and below `roots` with their targets.

    `told` gets each run's check as soon as it is known. Raises UsageError for roots that make no sense, and TargetError
    if the target cannot be reached at all.
    """
    options = options or VerifyOptions()
    started = time.perf_counter()
    gathered = gather(
        roots,
        selection=options.selection,
        new_identity=options.new_identity,
        read=partial(read_run, clock=clock, heartbeat_timeout=options.heartbeat_timeout),
        capabilities=lambda: exporter.capabilities,
    )
    checks: list[RunCheck] = []
    with exporter:
        states = exporter.cursors(gathered.runs) if gathered.runs else {}
        for check in _all_checks(gathered, states, exporter, options):
            checks.append(check)
            if told is not None:
                told(check)
    return VerifyReport(
        exporter=exporter.name,
        runs=tuple(checks),
        no_match=gathered.no_match,
        warnings=gathered.warnings,
        skipped=gathered.skipped,
        strict=options.strict,
        sample=options.sample,
        seconds=time.perf_counter() - started,
    )


def _all_checks(
    gathered: Gathered, states: Mapping[str, TargetState], exporter: Exporter, options: VerifyOptions
) -> Iterator[RunCheck]:
    tasks = [(run, states[run.identity]) for run in gathered.runs]
    for (run, state), check in _checks(tasks, exporter, options):
        yield check
        for extra in state.extras:
            reason = "a second target of this run directory"
            yield with_fields(_check(run, Verdict.TARGET_ONLY, reason=reason), where=extra)
    for line in gathered.failed:
        yield RunCheck(
            path=line.path,
            run_id=line.run_id,
            name=line.name,
            identity=line.identity,
            verdict=Verdict.UNREADABLE,
            reason=line.reason,
            hint=line.hint,
        )


def _checks(
    tasks: Sequence[CheckTask], exporter: Exporter, options: VerifyOptions
) -> Iterator[tuple[CheckTask, RunCheck]]:
    """Check each run, here in the order given, or by several workers, who begin with the largest runs."""
    sizes = [sum(file.size for file in run.files.values()) for run, _ in tasks]
    pool = make_pool(options.workers, count=len(tasks), size=sum(sizes), threads=exporter.capabilities.threads)
    if pool is not None:
        tasks = [tasks[place] for place in sorted(range(len(tasks)), key=sizes.__getitem__, reverse=True)]
    work = partial(_check_task, sample=options.sample)
    with closing(do_tasks(deque(tasks), work, exporter, pool)) as outcomes:
        for task, outcome in outcomes:
            yield task, _failed_check(task[0], outcome) if isinstance(outcome, Exception) else outcome


def _check_task(task: CheckTask, exporter: Exporter, *, sample: int | None) -> RunCheck:
    return check_run(*task, exporter, sample=sample)


def check_run(run: Run, state: TargetState, exporter: Exporter, *, sample: int | None = None) -> RunCheck:
    """Compare one run with its target.

    A failure of any kind is a verdict; only KeyboardInterrupt and the like come out.
    """
    started = time.perf_counter()
    run = as_sent(run, state.cursor)
    try:
        check = _without_target(run, state) or _Comparison(run, state, exporter, sample).check()
    except Exception as error:  # noqa: BLE001 - one run's failure is its line in the report; the other runs go on
        check = _failed_check(run, error)
    return with_fields(check, seconds=time.perf_counter() - started)


def _failed_check(run: Run, error: Exception) -> RunCheck:
    if isinstance(error, BridgeError):
        return _check(run, Verdict.UNREADABLE, reason=error.message, hint=error.hint or "")
    log.debug("run %s cannot be verified", run.path, exc_info=hide_in(error))
    return _check(run, Verdict.UNREADABLE, reason=hide_all(f"{type(error).__name__}: {error}"))


def _check(run: Run, verdict: Verdict, *, reason: str = "", hint: str = "") -> RunCheck:
    return RunCheck(
        path=str(run.path),
        run_id=run.run_id,
        name=run.name,
        identity=run.identity,
        verdict=verdict,
        reason=reason,
        hint=hint,
    )


def _without_target(run: Run, state: TargetState) -> RunCheck | None:
    """Return the verdict on a run that has no target to compare with, None if it has one."""
    if state.error is not None:
        raise state.error
    if state.deleted:
        reason = "a person deleted this run in the target, so it stays deleted"
        return _check(run, Verdict.SOURCE_ONLY, reason=reason, hint="bridge export --rebuild exports it again")
    if state.cursor is None and not state.exists:
        return _check(run, Verdict.SOURCE_ONLY, reason="the target does not hold this run", hint="bridge export")
    if state.cursor is None:
        reason = "what the target remembers of this run cannot be read"
        return _check(run, Verdict.UNREADABLE, reason=reason, hint="bridge export rebuilds it")
    return None


@dataclass(slots=True)
class Findings:
    """The differences of one run as they are found: all are counted by verdict, the first FIRST are kept.

    `deleted` rows were in event files that are deleted by now. The target keeps them, so what only it has is no
    difference then.
    """

    first: list[Difference] = field(default_factory=list)
    counts: Counter[Verdict] = field(default_factory=Counter)
    deleted: int = 0

    def add(self, difference: Difference, *, count: int = 1) -> None:
        """Note a difference that stands for `count` of its kind."""
        if self.deleted and difference.verdict is Verdict.TARGET_ONLY:
            return
        self.counts[difference.verdict] += count
        if len(self.first) < FIRST:
            self.first.append(difference)

    def add_points(self, differences: Iterator[Difference], verdict: Verdict, count: int) -> None:
        """Count `count` differences; only as many are taken from `differences` as will be shown."""
        if self.deleted and verdict is Verdict.TARGET_ONLY:
            return
        room = FIRST - len(self.first)
        self.first += [difference for difference, _ in zip(differences, range(room), strict=False)]
        self.counts[verdict] += count


class _MovedOn(Exception):  # noqa: N818 - a way back for `_Comparison.check`, never shown
    """The target has another cursor than the one that is being compared."""

    def __init__(self, cursor: Cursor) -> None:
        super().__init__()
        self.cursor = cursor


@dataclass(slots=True)
class _Comparison:
    """The comparison of one run with its target. `out` collects the differences."""

    run: Run
    state: TargetState
    exporter: Exporter
    sample: int | None
    out: Findings = field(default_factory=Findings)

    def check(self) -> RunCheck:
        """Compare the run. If somebody exports it meanwhile, compare again with the newer cursor."""
        assert self.state.cursor is not None
        cursor = self.state.cursor
        for _ in range(MOST_TRIES):
            try:
                return self._compare(cursor)
            except _MovedOn as moved:
                cursor = moved.cursor
                self.out = Findings()
        raise TargetUnavailableError("The target keeps changing.", hint="Verify when nobody exports this run.")

    def _compare(self, cursor: Cursor) -> RunCheck:
        """Compare what `cursor` covers, a large run in portions. Raises _MovedOn if the target has another cursor."""
        content = ContentOptions.kept(cursor.content)
        target = self.exporter.open(self.run, content)
        names, portions = self._portions(cursor, content)
        compared, behind, reason = Compared(), Behind(), ""
        for number, portion in enumerate(portions):
            series, rows = read_points(self.run, content, until=cursor, only=portion)
            held = target.read(only=portion)
            if held.cursor is not None and _covered(held.cursor) != _covered(cursor):
                raise _MovedOn(held.cursor)
            own = names or series.keys()
            if number == 0:
                self.out.deleted = rows.start
                if rows.stop < cursor.rows and cursor.path != fitting(str(self.run.path)):
                    reason = older_copy_of(cursor.path)
                behind, compared = self._compare_facts_and_media(held, cursor, content, rows.stop)
                if self.sample is None:
                    self._note_others(held, own)
            points = self._compare_series(series, own, held, content)
            compared = with_fields(compared, series=compared.series + len(series), points=compared.points + points)
        if self.out.deleted:
            reason = f"the target keeps {self.out.deleted:,} rows of event files that are deleted"
        differences = Differences(count=self.out.counts.total(), first=tuple(self.out.first))
        return with_fields(
            _check(self.run, Verdict.DIFFERENT if differences.count else Verdict.SAME, reason=reason),
            where=target.where(),
            behind=behind,
            compared=compared,
            differences=differences,
            edited=tuple(self.state.edited),
        )

    def _portions(self, cursor: Cursor, content: ContentOptions) -> tuple[Collection[str], list[list[str] | None]]:
        """Return the names of all metrics, and those to compare in portions of about PORTION points.

        A small run has one portion, None, that stands for all metrics; its names are not known before it is read.
        """
        if self.sample is None and cursor.offset <= SMALL_BYTES:
            return (), [None]
        counts, _ = count_points(self.run, content, until=cursor)
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
        lines = 0
        if content.media:
            media = read_media(self.run, None, until=cursor)
            events, lines = media.events, media.lines
        behind = Behind(
            rows=max(0, rows - cursor.rows),
            media_lines=max(0, lines - cursor.media_lines) if content.media else 0,
            facts=facts_behind(self.run, self.exporter.stale(self.run, cursor, content), cursor.sent),
        )
        self._compare_counts(cursor, rows, lines)
        skip = frozenset((*behind.facts, *(name.partition(".")[0] for name in self.state.edited)))
        for one in held.mismatches:
            if one.fact not in skip:
                verdict = Verdict.SOURCE_ONLY if one.found is None else Verdict.DIFFERENT
                self.out.add(Difference(verdict, one.file, one.what, None, one.expected, one.found))
        capabilities = self.exporter.capabilities
        params = FactsComparison(self.run, held, content, capabilities, skip, self.out).compare(cursor.sent)
        count = compare_media(events, held.media, held.unsupported, capabilities, self.out)
        return behind, Compared(media=count, params=params)

    def _compare_counts(self, cursor: Cursor, rows: int, lines: int) -> None:
        """Note a source that has become shorter than what was exported, and a target that was never completed."""
        for file, name, there, covered in (
            (CSV, "rows", rows, cursor.rows),
            (MEDIA, "media lines", lines, cursor.media_lines),
        ):
            if there < covered:
                self.out.add(Difference(Verdict.TARGET_ONLY, file, name, None, str(there), str(covered)))
        if not cursor.complete:
            self.out.add(Difference(Verdict.DIFFERENT, "", "the whole target", None, "complete", "half-filled"))

    def _note_others(self, held: TargetContent, own: Collection[str]) -> None:
        """Note the metrics that only the target has."""
        for name in sorted({*held.series, *held.names} - set(own)):
            count = len(held.series[name].step) if name in held.series else 1
            found = f"{count:,} points" if name in held.series else "a metric"
            if count:
                self.out.add(Difference(Verdict.TARGET_ONLY, CSV, name, None, None, found), count=count)

    def _compare_series(
        self, series: Mapping[str, Series], own: Collection[str], held: TargetContent, content: ContentOptions
    ) -> int:
        """Compare each of `series`, and the best of it. `own` are all metrics of the run.

        Return how many points were expected.
        """
        capabilities, points = self.exporter.capabilities, 0
        for name in sorted(series):
            if f"series.{name}" in held.unsupported:
                continue
            expected = series[name]
            points += len(expected.step)
            compare_series(name, expected, held.series.get(name), capabilities, self.out)
            if name in held.last:
                compare_latest(name, expected, held.last[name], capabilities, self.out)
            # A metric of the run's own that has the name of the best wins.
            if held.bests is not None and not self.out.deleted and name in content.bests and f"{name}.best" not in own:
                self._compare_best(name, expected, content.bests[name], held)
        return points

    def _compare_best(self, name: str, expected: Series, sign: int, held: TargetContent) -> None:
        """Compare the value of `NAME.best`, made for `--best`; `sign` is 1 if greater is better, else -1."""
        value = sign * expected.value
        if np.isnan(value).all():
            return
        place = int(np.nanargmax(value))
        best = _stored(expected.value[[place]], self.exporter.capabilities)
        found = held.last.get(f"{name}.best")
        if found is None or not _same_value(best, found.value).all():
            both = repr(float(best[0])), None if found is None else repr(float(found.value[0]))
            self.out.add(Difference(Verdict.DIFFERENT, CSV, f"{name}.best (last)", int(expected.step[place]), *both))


def _covered(cursor: Cursor) -> tuple[int, int]:
    return cursor.rows, cursor.media_lines


def _sampled(names: Iterable[str], sample: int | None) -> list[str]:
    """Return at most `sample` of `names`, evenly over their sorted order, the first and the last among them."""
    ordered = sorted(names)
    if sample is None or len(ordered) <= sample:
        return ordered
    if sample == 1:
        return ordered[:1]
    return [ordered[place * (len(ordered) - 1) // (sample - 1)] for place in range(sample)]


# Points.

Columns: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]"
"""Step, time and value of the points of one series, as arrays of one length."""


def time_tolerance(capabilities: Capabilities) -> float:
    """Return how far a time may be from the source's, in seconds: the target's resolution, nothing if it is exact."""
    return capabilities.time_step + ROUNDING if capabilities.time_step else 0.0


def compare_series(name: str, expected: Series, held: Series | None, capabilities: Capabilities, out: Findings) -> None:
    """Compare a series point by point: each step is there once, with its value and its time.

    `expected` has one point per step, sorted by step. A time that is NaN there was estimated and is not compared.
    """
    source = (expected.step, expected.time, _stored(expected.value, capabilities))
    if held is None or not len(held.step):
        count = len(expected.step)
        out.add(Difference(Verdict.SOURCE_ONLY, CSV, name, None, f"{count:,} points"), count=count)
        return
    order = np.argsort(held.step, kind="stable")
    value = _stored(np.asarray(held.value, np.float64), capabilities)
    target = (np.asarray(held.step, np.int64)[order], np.asarray(held.time, np.float64)[order], value[order])
    if not np.array_equal(source[0], target[0]):
        # Pair the points of equal steps. `in_source` and `in_target` index the pairs; all other points are on one side
        # only. A step that the target holds twice pairs with the first of its points.
        _, in_source, in_target = np.intersect1d(source[0], target[0], return_indices=True)
        _add_unpaired(Verdict.SOURCE_ONLY, name, source, in_source, out)
        _add_unpaired(Verdict.TARGET_ONLY, name, target, in_target, out)
        source, target = _at(source, in_source), _at(target, in_target)
    wrong = np.flatnonzero(~_same_value(source[2], target[2]))
    _add_pairs(name, source[0], source[2], target[2], wrong, out)
    # NaN compares false with everything, so an estimated time is never further away than the tolerance.
    wrong = np.flatnonzero(np.abs(source[1] - target[1]) > time_tolerance(capabilities))
    _add_pairs(f"{name} (time)", source[0], source[1], target[1], wrong, out)


def compare_latest(name: str, expected: Series, shown: Series, capabilities: Capabilities, out: Findings) -> None:
    """Compare the point that the target shows as the latest of a series with the one at the greatest step."""
    step, values = int(expected.step[-1]), [_stored(one.value[-1:], capabilities) for one in (expected, shown)]
    times = float(expected.time[-1]), float(shown.time[0])

    def note(what: str, wanted: object, found: object) -> None:
        out.add(Difference(Verdict.DIFFERENT, CSV, f"{name} ({what})", step, repr(wanted), repr(found)))

    if not _same_value(*values).all():
        note("last", float(values[0][0]), float(values[1][0]))
    if int(shown.step[0]) != step:
        note("last, step", step, int(shown.step[0]))
    # An estimated time is NaN, which compares false with everything.
    if abs(times[0] - times[1]) > time_tolerance(capabilities):
        note("last, time", *times)


def _stored(value: NDArray[np.float64], capabilities: Capabilities) -> NDArray[np.float64]:
    """Return `value` as the target declares to hold it."""
    if capabilities.value_bits == 32:
        with np.errstate(over="ignore"):
            value = value.astype(np.float32).astype(np.float64)
    if not capabilities.infinities:
        largest = np.finfo(np.float64).max
        value = np.clip(value, -largest, largest)
    return value


def _same_value(one: NDArray[np.float64], other: NDArray[np.float64] | np.float64) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (one == other) | (np.isnan(one) & np.isnan(other))
    return same


def _at(columns: Columns, places: NDArray[np.intp]) -> Columns:
    return columns[0][places], columns[1][places], columns[2][places]


def _add_unpaired(verdict: Verdict, name: str, columns: Columns, paired: NDArray[np.intp], out: Findings) -> None:
    """Add the points that have no partner: all but those at `paired`."""
    alone = np.ones(len(columns[0]), dtype=bool)
    alone[paired] = False
    places = np.flatnonzero(alone)

    def one_by_one() -> Iterator[Difference]:
        for place in places:
            value = repr(float(columns[2][place]))
            both = (value, None) if verdict is Verdict.SOURCE_ONLY else (None, value)
            yield Difference(verdict, CSV, name, int(columns[0][place]), *both)

    out.add_points(one_by_one(), verdict, len(places))


def _add_pairs(
    name: str,
    step: NDArray[np.int64],
    expected: NDArray[np.float64],
    found: NDArray[np.float64],
    places: NDArray[np.intp],
    out: Findings,
) -> None:
    """Add the differences at `places` between two columns over the same steps."""
    differences = (
        Difference(
            Verdict.DIFFERENT, CSV, name, int(step[place]), repr(float(expected[place])), repr(float(found[place]))
        )
        for place in places
    )
    out.add_points(differences, Verdict.DIFFERENT, len(places))


# Media.


@dataclass(frozen=True, slots=True)
class _File:
    """A media event with the sha256 of its file, in hex; `is_kept` says that the target holds it byte for byte."""

    event: MediaEvent
    digest: str
    is_kept: bool

    @property
    def what(self) -> str:
        return f"media {self.event.tag} ({self.event.path})"


def compare_media(
    events: Iterable[MediaEvent],
    held: Iterable[TargetMedia],
    unsupported: frozenset[str],
    capabilities: Capabilities,
    out: Findings,
) -> int:
    """Compare media by tag, step and index, by the digests of their files. Return how many were compared.

    Files of a format that the target converts must be there, whatever their digests; those of a format that it cannot
    hold are not expected. Of a tag in `unsupported` the target may hold less. A picture that nobody can decode may be
    missing. What may be missing, and is, does not count.
    """
    expected: dict[tuple[str, int], list[_File]] = defaultdict(list)
    found: dict[tuple[str, int], list[TargetMedia]] = defaultdict(list)
    for event in events:
        kept, converted = capabilities.media_kept, event.format in capabilities.media_converted
        if converted or kept is None or event.format in kept:
            digest = _digest(event)
            if digest is not None:
                expected[event.tag, event.step].append(_File(event, digest, is_kept=not converted))
    for item in held:
        found[item.tag, item.step].append(item)
    count = sum(map(len, expected.values()))
    for tag, step in sorted({*expected, *found}):
        files = expected.get((tag, step), [])
        items = sorted(found.get((tag, step), ()), key=lambda item: item.index)
        if len(files) == len(items):
            _compare_pairs(files, items, capabilities, out)
            continue
        for file in _compare_unpaired(files, items, out):
            if f"media.{tag}" in unsupported or _is_broken(file.event):
                count -= 1
            else:
                out.add(Difference(Verdict.SOURCE_ONLY, file.event.where, file.what, step, file.digest))
    return count


def _compare_pairs(files: list[_File], items: list[TargetMedia], capabilities: Capabilities, out: Findings) -> None:
    """Compare the media of one tag and step in their order. A time that the run does not say is not compared."""
    for file, item in zip(files, items, strict=True):
        caption = file.event.caption or ""
        if file.is_kept and file.digest != item.digest:
            both = file.digest, item.digest
            out.add(Difference(Verdict.DIFFERENT, file.event.where, file.what, file.event.step, *both))
        elif item.caption is not None and item.caption != caption:
            out.add(Difference(Verdict.DIFFERENT, file.event.where, file.what, file.event.step, caption, item.caption))
        elif (
            item.time is not None
            and file.event.is_time_known
            and not _is_close(item.time, file.event.time, time_tolerance(capabilities))
        ):
            what, times = f"time of {file.what}", (repr(file.event.time), repr(item.time))
            out.add(Difference(Verdict.DIFFERENT, file.event.where, what, file.event.step, *times))


def _compare_unpaired(files: list[_File], items: list[TargetMedia], out: Findings) -> list[_File]:
    """Note which `items` of one tag and step belong to no file. Return the files that the target does not hold."""
    missing = []
    spare = [item.digest for item in items]
    # Converted files have other digests in the target, so any item that is left can be one of them: they come last.
    for file in sorted(files, key=lambda file: not file.is_kept):
        if file.digest in spare:
            spare.remove(file.digest)
        elif spare and not file.is_kept:
            spare.pop()
        else:
            missing.append(file)
    for item in items:
        if item.digest in spare:
            spare.remove(item.digest)
            out.add(Difference(Verdict.TARGET_ONLY, MEDIA, f"media {item.tag}", item.step, None, item.digest))
    return missing


def _digest(event: MediaEvent) -> str | None:
    """Return the sha256 of an event's file in hex, None if the file cannot be read (any more)."""
    try:
        with open_file(event.file) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


_PICTURES = ("png", "jpeg", "gif", "bmp", "webp")


def _is_broken(event: MediaEvent) -> bool:
    """Return whether the event's file only begins like a picture. One that is too large to decode counts as whole."""
    if event.format not in _PICTURES:
        return False
    from PIL import Image

    broken: tuple[type[Exception], ...] = (Image.DecompressionBombError, *BROKEN_PICTURE)
    try:
        with warnings.catch_warnings(), open_file(event.file) as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                if picture.width * picture.height <= MOST_DECODED_PIXELS:
                    picture.load()
    except broken:
        return True
    return False


# The run's own facts: params, tags, notes, name, status, start and end.


def facts_behind(run: Run, stale: Iterable[str], sent: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the facts that the run directory has changed since they were last sent.

    `stale` are those that the exporter finds changed. Status and times are compared here too, so that an exporter that
    misses a change is found.
    """
    behind = set(stale)
    if run.status != sent.get("status", run.status):
        behind.add("status")
    for name, now in (("start", run.start), ("end", run.end)):
        if name in sent and not _is_close(now, _seconds(sent[name]), 0.001):
            behind.add(name)
    return tuple(sorted(behind))


@dataclass(frozen=True, slots=True)
class FactsComparison:
    """The facts of one run beside what its target holds.

    `skip` names those that are not compared: people edited them, or the run directory changed since the last export.
    """

    run: Run
    held: TargetContent
    content: ContentOptions
    capabilities: Capabilities
    skip: frozenset[str]
    out: Findings

    def compare(self, sent: Mapping[str, str]) -> int:
        """Compare all facts, status and times as they were last `sent`. Return how many params were expected."""
        self._compare_text("name", self.run.name, self.held.name)
        self._compare_text("notes", self.run.notes, self.held.notes)
        self._compare_tags()
        status = Status(sent.get("status", self.run.status))
        self._compare_status(status)
        self._compare_time("start", _seconds(sent["start"]) if "start" in sent else self.run.start, self.held.start)
        end = _seconds(sent["end"]) if "end" in sent else self.run.end
        # A target without a word for the status (not even that there is none) need not say when it ended.
        is_silent = not self.capabilities.statuses.get(status) and self.held.end is None
        if (end is not None or self.capabilities.clears_end) and not is_silent:
            self._compare_time("end", end, self.held.end)
        return self._compare_params()

    def _is_skipped(self, name: str) -> bool:
        return name in self.skip or name in self.held.unsupported

    def _add(self, what: str, expected: object, found: object) -> None:
        both = [None if one is None else str(one) for one in (expected, found)]
        verdict = Verdict.DIFFERENT
        if expected is None or found is None:
            verdict = Verdict.TARGET_ONLY if expected is None else Verdict.SOURCE_ONLY
        self.out.add(Difference(verdict, SIDECAR, what, None, *both))

    def _compare_text(self, name: str, expected: str, found: str | None) -> None:
        if found is None or self._is_skipped(name) or found == expected:
            return
        if not (name in self.held.truncated and _is_beginning(found, expected)):
            self._add(name, expected, found)

    def _compare_tags(self) -> None:
        if self.held.tags is None or self._is_skipped("tags"):
            return
        redaction = Redaction(self.content.redact)
        expected, found = ({redaction.tag(tag) for tag in tags} for tags in (self.run.tags, self.held.tags))
        if expected != found:
            self._add("tags", ", ".join(sorted(expected)), ", ".join(sorted(found)))
        if any(redaction.tag(tag) != tag for tag in self.held.tags):
            self._add("tags", "(masked)", "a secret, in clear")

    def _compare_status(self, status: Status) -> None:
        if not self.capabilities.statuses or self._is_skipped("status"):
            return
        expected, found = self.capabilities.statuses[status], self.held.status or ""
        if expected != found:
            self._add("status", f"{expected or 'nothing'} ({status})", found or "nothing")

    def _compare_time(self, name: str, expected: float | None, found: float | None) -> None:
        if self._is_skipped(name) or _is_close(expected, found, time_tolerance(self.capabilities)):
            return
        if name == "start" and found is None:
            return
        self._add(name, expected, found)

    def _compare_params(self) -> int:
        """Compare the params. A secret must be masked; one that is `volatile` may be older, or gone from the run."""
        held, said = self.held.params, self.run.params
        if held is None or self._is_skipped("params"):
            return 0
        compared = 0
        for key in sorted({*said, *held}):
            if self._is_skipped(f"params.{key}"):
                continue
            compared += key in said
            if key in said and key in held:
                self._compare_param(key, said[key], held[key])
            elif key in held and not _matches(key, self.content.volatile):
                self._add(f"param {key}", None, held[key])
            elif key in said and said[key] is not None:
                self._add(f"param {key}", said[key], None)
        return compared

    def _compare_param(self, key: str, said: Scalar, found: Scalar) -> None:
        redaction = Redaction(self.content.redact)
        expected = redaction.value(key, said)
        is_cut = f"params.{key}" in self.held.truncated and _is_beginning(str(found), str(expected))
        if is_cut or _is_same(expected, found):
            return
        if redaction.value(key, found) != found:
            # A secret in clear must not be shown here either.
            self._add(f"param {key}", "(masked)", "the secret, in clear" if _is_same(said, found) else "something else")
        elif not _matches(key, self.content.volatile):
            self._add(f"param {key}", expected, found)


def _is_same(expected: Scalar, found: Scalar) -> bool:
    """Return whether a target that holds typed values, floats for all numbers, or only text, holds `expected`."""
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found or found == str(expected)
    if isinstance(expected, int | float) and isinstance(found, int | float):
        one, other = float(expected), float(found)
        return one == other or (math.isnan(one) and math.isnan(other))
    return found == expected or found == str(expected)


def _is_beginning(held: str, whole: str) -> bool:
    """Return whether `held` is `whole` truncated, with or without an ellipsis at its end."""
    kept = held.rstrip(".\u2026 ")
    return bool(kept) and len(held) < len(whole) and whole.startswith(kept)


def _matches(key: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(key.lower(), glob.lower()) for glob in globs)


def _seconds(text: str) -> float | None:
    return float(text) if text else None


def _is_close(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= tolerance
