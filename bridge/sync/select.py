"""Which runs are meant: find and read run directories, tell copies apart, and select.

All commands select runs here: ls, best, export, verify and view.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections import Counter, defaultdict
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec
from msgspec.structs import replace

from bridge.errors import UsageError, counted
from bridge.model import Run, SkippedFolder, Status
from bridge.options import SelectionOptions
from bridge.registry.record import RunRecord
from bridge.registry.where import Kind, Ref, Where, duration_of, parse, status_of, time_of
from bridge.rundir import discover, read_run, runs_within
from bridge.sync.report import Action, NoMatch, RunReport, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bridge.exporters.contract import Exporter
    from bridge.options import ContentOptions, FilterOptions
    from bridge.sync.unchanged import UnchangedRuns

T = TypeVar("T", Run, RunRecord)


class Top(msgspec.Struct, frozen=True):
    """The `count` best runs by a metric. `mode` is `max` or `min`; `last` ranks by the last value, not by the best."""

    count: int
    metric: str
    mode: str = "max"
    last: bool = False

    @property
    def ref(self) -> Ref:
        """Return the value that ranks a run."""
        return Ref(Kind.METRIC, self.metric, "last" if self.last else self.mode)


class Selection(msgspec.Struct, frozen=True):
    """Which runs are meant. A field that is empty or None selects all runs; a run must match every field.

    Archived runs are left out unless `archived`.

    `run_ids` are ids or globs, one of which must match; `tags` tags or globs, all of which must; `kinds` are those of
    `Run.kind`, one of which must match; `since` is a time in seconds since the epoch, compared with the last sign of
    life. `top` ranks what the rest leaves: completed runs and those of unknown status, unless `statuses` asks for
    others.
    """

    run_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    statuses: tuple[Status, ...] = ()
    kinds: tuple[str, ...] = ()
    since: float | None = None
    where: Where | None = None
    top: Top | None = None
    archived: bool = False

    @classmethod
    def of(cls, options: FilterOptions) -> Self:
        """Return the selection for options as on the command line. Raises UsageError for unknown words."""
        top = None
        if isinstance(options, SelectionOptions):
            if options.last and not options.top:
                raise UsageError("--last says how to rank, so it needs --top.", hint="--top 5 val/acc:max --last")
            top = _top(*options.top, last=options.last) if options.top else None
        return cls(
            run_ids=tuple(options.run_ids),
            tags=tuple(options.tags),
            statuses=tuple(status_of(word) for word in options.statuses),
            kinds=tuple(options.kinds),
            since=None if options.since is None else since_of(options.since),
            where=None if options.where is None else parse(options.where),
            top=top,
            archived=options.archived,
        )

    @property
    def everything(self) -> bool:
        """Return whether all runs are selected, except for archived ones."""
        return replace(self, archived=False) == Selection()

    @property
    def wanted_statuses(self) -> tuple[Status, ...]:
        """Return the statuses that are wanted; () for all. A run that may go on, or broke off, is not ranked."""
        return self.statuses or ((Status.COMPLETED, Status.UNKNOWN) if self.top else ())

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Return the values of a run that the selection asks for."""
        refs = self.where.refs if self.where else ()
        return (*refs, self.top.ref) if self.top else refs

    def wants(self, record: RunRecord) -> bool:
        """Return whether the run is selected, as far as it can be judged by itself (without `top`)."""
        statuses = self.wanted_statuses
        return (
            (self.archived or not record.archived)
            and (not statuses or record.status in statuses)
            and (not self.kinds or record.kind in self.kinds)
            and (self.since is None or record.last_alive >= self.since)
            and (not self.run_ids or any(_matches(record.run_id, glob) for glob in self.run_ids))
            and all(any(_matches(tag, glob) for tag in record.tags) for glob in self.tags)
            and (self.where is None or self.where.holds(record))
        )


def select(runs: Iterable[T], selection: Selection) -> list[T]:
    """Return the selected runs in the order given; with `top` the best first, of equal runs the one that started first.

    If metrics are asked for, the statistics of each run are completed from its metrics.csv where they have to be.
    """
    if selection.everything:
        return [run for run in runs if selection.archived or not run.archived]
    pairs = [(run, run if isinstance(run, RunRecord) else RunRecord.of(run)) for run in runs]
    if any(ref.kind is Kind.METRIC for ref in selection.refs):
        from bridge.registry.store import with_statistics

        others = replace(selection, where=None, top=None, statuses=selection.wanted_statuses)
        pairs = [pair for pair in pairs if others.wants(pair[1])]
        records = with_statistics(record for _, record in pairs)
        pairs = [(run, record) for (run, _), record in zip(pairs, records, strict=True)]
    wanted = [pair for pair in pairs if selection.wants(pair[1])]
    if selection.top:
        wanted = _best(wanted, selection.top)
    return [run for run, _ in wanted]


def describe_left_out(runs: Iterable[T], selection: Selection) -> str:
    """Return a sentence on the runs that `top` leaves out because of their status; "" if there are none."""
    if selection.top is None or selection.statuses:
        return ""
    others = tuple(status for status in Status if status not in selection.wanted_statuses)
    everyone = replace(selection, statuses=others, top=replace(selection.top, count=sys.maxsize))
    counts = Counter(run.status for run in select(runs, everyone))
    if not counts:
        return ""
    total = sum(counts.values())
    statuses = ", ".join(f"{counts[status]} {status}" for status in others if counts[status])
    were = f"{counted(total, 'run')} {'was' if total == 1 else 'were'}"
    return f"{were} left out because of the status ({statuses}); --status includes them."


def explain_none(runs: Sequence[T], selection: Selection, roots: Sequence[Path]) -> NoMatch:
    """Return why `selection` selects none of `runs`, which were found below `roots`."""
    if not runs:
        where = ", ".join(map(str, roots))
        return NoMatch(
            f"No runs in {where}: a run is a folder with sidecar.json, a metrics.csv that has a step column, or event"
            " files that no export wrote.",
            unknown=True,
        )
    shown = [run for run in runs if selection.archived or not run.archived]
    hidden = len(runs) - len(shown)
    if not shown:
        subject = "The only run is" if hidden == 1 else f"All {hidden:,} runs are"
        return NoMatch(f"{subject} archived; --archived includes archived runs.")
    records = [run if isinstance(run, RunRecord) else RunRecord.of(run) for run in shown]
    unknown: list[str] = unknown_names(records, selection)
    lists = {"run-id": selection.run_ids, "tag": selection.tags, "status": selection.statuses, "kind": selection.kinds}
    words = [f"--{option} {value}" for option, values in lists.items() for value in values]
    words += ["--since"] if selection.since is not None else []
    words += [f"--where {selection.where.text!r}"] if selection.where else []
    words += [f"--top {selection.top.count} {selection.top.metric}:{selection.top.mode}"] if selection.top else []
    text = f"0 of {counted(len(shown), 'run')} match {' '.join(words)}"
    left_out = describe_left_out(shown, selection)
    if unknown:
        return NoMatch(sentence("; ".join([text, *unknown])), unknown=True)
    return NoMatch(f"{text}. {left_out}".rstrip())


def unknown_names(records: Sequence[RunRecord], selection: Selection) -> list[str]:
    """Return a sentence for each run id, tag, metric and hyperparameter of `selection` that no run has."""
    from bridge.registry.query import no_run_has, unknown_refs

    ids = {name for record in records for name in (record.run_id, record.name)}
    tags = {tag for record in records for tag in record.tags}
    said = [
        no_run_has(f"the run id {glob!r}", glob, ids)
        for glob in selection.run_ids
        if not any(_matches(record.run_id, glob) for record in records)
    ]
    said += [
        no_run_has(f"the tag {glob!r}", glob, tags)
        for glob in selection.tags
        if not any(_matches(tag, glob) for tag in tags)
    ]
    return said + unknown_refs(records, selection.refs)


def unknown_metrics(runs: Sequence[Run], content: ContentOptions) -> list[str]:
    """Return a sentence for each metric that the content options name and no run has. Globs name none."""
    names = [*content.metrics, *content.exclude_metrics, *content.bests, *(old for old, _ in content.rename)]
    refs = [Ref(Kind.METRIC, name) for name in names if not set("*?[") & set(name)]
    if not refs or not runs:
        return []
    from bridge.registry.query import unknown_refs

    return [sentence(text) for text in unknown_refs([RunRecord.of(run) for run in runs], refs)]


def sentence(text: str) -> str:
    """Return a clause as a sentence."""
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith("?") else ".")


def since_of(text: str, *, now: float | None = None) -> float:
    """Return the time that `3d`, `12h`, `2026-04-10` or an ISO time means; dates are local. Raises UsageError."""
    age = duration_of(text)
    if age is not None and age < 0:
        raise UsageError(f"--since: {text!r} is in the future.", hint=f"--since {text.removeprefix('-')}")
    if age is not None:
        return (time.time() if now is None else now) - age
    at = time_of(text)
    if at is None:
        raise UsageError(
            f"--since: {text!r} is neither an age nor a date.", hint="90m, 12h, 3d, 2w, 2026-04-10, an ISO time"
        )
    return at


def _best(pairs: list[tuple[T, RunRecord]], top: Top) -> list[tuple[T, RunRecord]]:
    # A run without a value, or with NaN, is not ranked.
    ranked = [(value, pair) for pair in pairs if (value := top.ref.of(pair[1])) is not ... and not math.isnan(value)]
    ranked.sort(key=lambda entry: (entry[1][1].start, entry[1][1].run_dir))
    ranked.sort(key=lambda entry: entry[0], reverse=top.mode == "max")
    return [pair for _, pair in ranked[: top.count]]


def _matches(text: str, glob: str) -> bool:
    # Equality first: ids and tags may hold the signs of a glob themselves.
    return text == glob or fnmatchcase(text, glob)


def _top(count: int, text: str, *, last: bool) -> Top:
    metric, _, mode = text.rpartition(":")
    if not metric or mode not in ("max", "min"):
        raise UsageError(f"--top: {text!r} does not say which end is best.", hint=f"--top {count} {text}:max")
    return Top(count=count, metric=metric, mode=mode, last=last)


class Gathered(msgspec.Struct, frozen=True):
    """The runs found below some paths: `runs` are selected and readable, `others` are reports of those left alone.

    Others cannot be read, or they are copies of a run that is exported from another directory. `no_match` explains why
    nothing was selected. `skipped` are folders that only look like run directories. `unchanged` are the reports of runs
    that need not be read. `warnings` say which runs were left out although nobody asked for that.
    """

    runs: tuple[Run, ...]
    others: tuple[RunReport, ...]
    no_match: NoMatch
    skipped: tuple[SkippedFolder, ...]
    unchanged: tuple[RunReport, ...]
    warnings: tuple[str, ...]


def gather(
    roots: Sequence[Path],
    exporter: Exporter,
    *,
    selection: Selection | None = None,
    new_identity: str | None = None,
    read: Callable[[Path], Run] = read_run,
    unchanged: UnchangedRuns | None = None,
) -> Gathered:
    """Read the runs at and below `roots`, and select from them.

    `read` reads one run directory; it raises RunDirectoryError for one that cannot be read. `new_identity` (`--as`)
    replaces the identity of the only run; with several runs it is a UsageError. Of several directories with one
    identity, selected or not, only the original is a run (see `_without_copies`). Runs that `unchanged` knows are not
    read. Runs that are event files are left out if the user interface of the exporter's target reads these by itself,
    unless their own directory is among `roots`.
    """
    runs: list[Run] = []
    unreadable: list[RunReport] = []
    known: dict[str, RunReport] = {}
    discovery = discover(roots)

    def read_one(path: Path) -> None:
        within = runs_within(path)
        discovery.skipped.extend(within)
        if within and unchanged is not None:
            unchanged.stamps.pop(str(path), None)  # not to be remembered: each export names the runs within
        try:
            runs.append(read(path))
        except Exception as error:  # noqa: BLE001 - one run's failure is its line in the report; the other runs go on
            reason, hint = explained(error, path)
            line = RunReport(path=str(path), run_id=path.name, action=Action.UNREADABLE, reason=reason, hint=hint)
            unreadable.append(line)

    for path in discovery.runs:
        report = None if unchanged is None else unchanged.report(path)
        if report is None or report.identity in known:
            read_one(path)
        else:
            known[report.identity] = report
    # An unchanged run that shares its identity with another one is read, so that the two are told apart.
    for identity in {run.identity for run in runs} & known.keys():
        read_one(Path(known.pop(identity).path))
    unique, copies = _without_copies(runs)
    wanted = selection or Selection()
    chosen = select(unique, wanted)
    others = (*copies, *unreadable)
    is_told = chosen or known or (not unique and any(line.failed for line in others))
    no_match = NoMatch() if is_told else explain_none(unique, wanted, roots)
    not_ranked = "" if no_match.text else describe_left_out(unique, wanted)
    named = {root.resolve() for root in roots}
    left_out = [run for run in chosen if run.event_files and run.path not in named]
    if left_out and exporter.capabilities.reads_event_files:
        chosen = [run for run in chosen if not run.event_files or run.path in named]
    else:
        left_out = []
    if new_identity is not None:
        if len(chosen) != 1:
            hint = no_match.text or "Give the one run directory."
            raise UsageError(f"--as names one run, but {len(chosen)} were chosen.", hint=hint)
        chosen = [replace(chosen[0], identity=new_identity)]
    return Gathered(
        runs=tuple(chosen),
        others=others,
        no_match=no_match,
        skipped=tuple(discovery.skipped),
        unchanged=tuple(known.values()),
        warnings=tuple(filter(None, (_describe_event_runs(left_out), not_ranked))),
    )


def _describe_event_runs(runs: Sequence[Run]) -> str:
    """Return a line on runs that are left out because they are event files already; "" if there are none."""
    if not runs:
        return ""
    logdir = os.path.commonpath([run.path.parent for run in runs])
    are, them = ("is", "it") if len(runs) == 1 else ("are", "them")
    what = f"{counted(len(runs), 'run')} of event files"
    return f"{what} {are} left out: `tensorboard --logdir {logdir}` shows {them} already."


def _without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[RunReport]]:
    """Return the runs without copies, and the reports of copies and of runs whose original is unknown.

    Directories with one identity are copies of one run. The original is the one that lies where its `run_dir` says;
    if none does, the one whose path ends in the most parts of `run_dir`. If that decides nothing, none is exported.
    """
    by_identity: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_identity[run.identity].append(run)
    originals: list[Run] = []
    reports: list[RunReport] = []
    for same in by_identity.values():
        ranks: list[float] = [_likeness(run) for run in same] if len(same) > 1 else [0]
        best = max(ranks)
        if ranks.count(best) == 1:
            original = same[ranks.index(best)]
            originals.append(original)
            why = f"a copy of {original.path}"
            reports += [RunReport.of(run, action=Action.COPY, reason=why) for run in same if run is not original]
            continue
        for run in same:
            others = ", ".join(str(other.path) for other in same if other is not run)
            reason = (
                f"{run.path} and {others} hold the same run (identity {run.identity}), and nothing tells which of"
                " them is the original, so none is exported."
            )
            hint = "Remove the copies, or give one of them its own identity: bridge export RUN_DIR --as NEW_ID"
            reports.append(RunReport.of(run, action=Action.FAILED, reason=reason, hint=hint))
    return originals, reports


def _likeness(run: Run) -> float:
    """Return how well the path of `run` fits the `run_dir` in its sidecar: infinite if it is the same directory."""
    if run.run_dir is None:
        return 0
    # `run_dir` may be of another machine, so it need not exist.
    written = PurePath(os.path.realpath(run.run_dir)) if PurePath(run.run_dir).is_absolute() else PurePath(run.run_dir)
    if written == run.path:
        return math.inf
    pairs = zip(reversed(written.parts), reversed(run.path.parts), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
