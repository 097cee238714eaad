"""The reports of an export and of a verify, run by run, and their JSON.

The structs that end in `Json` are the documents that `--json` prints; docs/reference/json-export.md and json-verify.md
describe them, and their JSON schemas are made of them.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import msgspec

from bridge.errors import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.model import Notice, Run

REPORT_VERSION = 1
"""The `version` of an export's JSON; it grows when a field changes its meaning or goes away."""

VERIFY_VERSION = 1
"""The `version` of a verify's JSON; it grows when a field changes its meaning or goes away."""

EXAMPLES = 5
"""How many notices of one kind are shown by name; all of them are counted."""


class Action(StrEnum):
    """What was done (or, in a plan, would be done) with one run."""

    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    REBUILD = "rebuild"
    DELETED = "deleted"
    """A person deleted the target; it stays deleted."""
    COPY = "copy"
    """The directory is a copy of a run that lies elsewhere; it was left alone."""
    UNREADABLE = "unreadable"
    FAILED = "failed"


WRITTEN = frozenset({Action.NEW, Action.CHANGED, Action.REBUILD})
"""Actions that wrote into the target."""


class NoMatch(msgspec.Struct, frozen=True):
    """Why no run was selected. `unknown` says that there is no run at all, or that a name was given that no run has."""

    text: str = ""
    unknown: bool = False


class NoticeExample(msgspec.Struct, frozen=True):
    """One notice by name."""

    what: str
    detail: str


class NoticeSummary(msgspec.Struct, frozen=True):
    """All notices of one kind: how many there are, and the first EXAMPLES by name."""

    kind: str
    count: int
    examples: list[NoticeExample]


class _RunFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of one run's report but for its notices.

    `path` is its run directory, `name` the run's name, `where` its target's address ("" before there is one). `points`,
    `media` and `bytes` count what was sent. `reason` says why a run was rebuilt, left alone or failed; `hint` what to
    try. `retry` says that the target was in the way, so that a later export may succeed.
    """

    path: str
    run_id: str
    action: Action
    name: str = ""
    identity: str = ""
    where: str = ""
    reason: str = ""
    hint: str = ""
    retry: bool = False
    points: int = 0
    media: int = 0
    bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class RunReport(_RunFields, frozen=True, kw_only=True):
    """What happened to one run."""

    notices: tuple[Notice, ...] = ()

    @classmethod
    def of(cls, run: Run, action: Action, **fields: Any) -> Self:
        """Return the report of `run` with these fields."""
        return cls(**_names_of(run), action=action, **fields)

    @property
    def failed(self) -> bool:
        """Return whether the export of this run failed."""
        return self.action in (Action.UNREADABLE, Action.FAILED)

    def to_json(self) -> RunReportJson:
        """Return the run's part of the JSON report."""
        fields = {name: getattr(self, name) for name in _RunFields.__struct_fields__}
        fields["seconds"] = round(self.seconds, 6)
        return RunReportJson(**fields, notices=summarise_notices(self.notices))


def _names_of(run: Run) -> dict[str, Any]:
    return {"path": str(run.path), "run_id": run.run_id, "name": run.name, "identity": run.identity}


class RunReportJson(_RunFields, frozen=True, kw_only=True):
    """One run in the JSON of an export."""

    notices: list[NoticeSummary]


class ExportTotals(msgspec.Struct, frozen=True, kw_only=True):
    """How many runs had each action, and the sums over all runs."""

    new: int
    changed: int
    unchanged: int
    rebuild: int
    deleted: int
    copy: int
    unreadable: int
    failed: int
    runs: int
    points: int
    media: int
    bytes: int
    notices: int


class SkippedFolder(msgspec.Struct, frozen=True):
    """A folder that looks like a run directory and is none, with the reason."""

    path: str
    reason: str


class ExportJson(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of an export, or of a plan (`dry_run`)."""

    version: int
    exporter: str
    dry_run: bool
    exit_code: int
    seconds: float
    totals: ExportTotals
    no_match: str
    warnings: list[str]
    notices: list[NoticeSummary]
    runs: list[RunReportJson]
    skipped: list[SkippedFolder]


class _AnyReport(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of both reports.

    `no_match` explains why no run was selected, `warnings` name metrics in the options that no run has and runs that
    were left out, `skipped` are folders that only look like runs.
    """

    exporter: str
    no_match: NoMatch = NoMatch()
    warnings: tuple[str, ...] = ()
    skipped: tuple[SkippedFolder, ...] = ()
    seconds: float = 0.0

    def _common(self) -> dict[str, Any]:
        """Return these fields as both documents have them."""
        return {
            "exporter": self.exporter,
            "no_match": self.no_match.text,
            "warnings": list(self.warnings),
            "skipped": list(self.skipped),
            "seconds": round(self.seconds, 6),
        }


class Report(_AnyReport, frozen=True, kw_only=True):
    """What an export did, or would do (`dry_run`). `notices` concern the export as a whole."""

    runs: tuple[RunReport, ...] = ()
    notices: tuple[Notice, ...] = ()
    dry_run: bool = False

    @property
    def failed(self) -> tuple[RunReport, ...]:
        """Return the runs whose export failed."""
        return tuple(run for run in self.runs if run.failed)

    @property
    def exit_code(self) -> int:
        """Return 0 if all runs are done, 1 if none are or a given name matches no run, 3 if some failed."""
        return 1 if self.no_match.unknown else exit_code(failed=len(self.failed), of=len(self.runs))

    @property
    def totals(self) -> ExportTotals:
        """Return the sums over all runs."""
        actions = Counter(run.action for run in self.runs)
        everywhere = [*self.notices, *(notice for run in self.runs for notice in run.notices)]
        return ExportTotals(
            **{action.value: actions[action] for action in Action},
            runs=len(self.runs),
            points=sum(run.points for run in self.runs),
            media=sum(run.media for run in self.runs),
            bytes=sum(run.bytes for run in self.runs),
            notices=sum(notice.count for notice in everywhere),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON report as plain values."""
        report = ExportJson(
            version=REPORT_VERSION,
            dry_run=self.dry_run,
            exit_code=self.exit_code,
            totals=self.totals,
            notices=summarise_notices(self.notices),
            runs=[run.to_json() for run in self.runs],
            **self._common(),
        )
        data: dict[str, Any] = msgspec.to_builtins(report)
        return data

    def _repr_html_(self) -> str:
        """Return the runs as a table, for a notebook."""
        from bridge.registry.query import html_table

        headers = ("run", "action", "points", "images and videos", "notices", "reason")
        rows = [
            (run.run_id, run.action, f"{run.points:,}", f"{run.media:,}", len(run.notices) or "", run.reason)
            for run in self.runs
        ]
        return html_table(
            headers, rows, caption=self.no_match.text or f"{self.exporter}: {counted(len(self.runs), 'run')}"
        )


def exit_code(*, failed: int, of: int) -> int:
    """Return 0 if none of `of` runs failed, 1 if all did, 3 if some did."""
    if not failed:
        return 0
    return 1 if failed == of else 3


def summarise_notices(notices: Iterable[Notice]) -> list[NoticeSummary]:
    """Return one entry per kind in order of appearance: its count and the first EXAMPLES by name."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[NoticeExample]] = {}
    for notice in notices:
        counts[str(notice.kind)] += notice.count
        shown = examples.setdefault(str(notice.kind), [])
        if len(shown) < EXAMPLES:
            shown.append(NoticeExample(notice.what, notice.detail))
    return [NoticeSummary(kind, count, examples[kind]) for kind, count in counts.items()]


class Verdict(StrEnum):
    """How source and target compare: for a run, and for one thing in it."""

    SAME = "="
    SOURCE_ONLY = "+"
    TARGET_ONLY = "-"
    DIFFERENT = "*"
    UNREADABLE = "!"


class Difference(msgspec.Struct, frozen=True):
    """One difference: in which file of the run directory, of what (`val/acc`, `param lr`, `status`), at which step.

    `expected` is the source's value and `found` the target's, both as text; None means that there is nothing.
    """

    verdict: Verdict
    file: str
    what: str
    step: int | None = None
    expected: str | None = None
    found: str | None = None


class Differences(msgspec.Struct, frozen=True):
    """All differences of one run, counted, and the first of them."""

    count: int = 0
    first: tuple[Difference, ...] = ()


def older_copy_of(path: str) -> str:
    """Return the reason why a run directory, which holds less than was exported from `path`, changes nothing."""
    return f"an older copy: the target holds more rows, exported from {path}"


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """What the run directory holds that the target's cursor does not cover yet; a difference only with --strict."""

    rows: int = 0
    media_lines: int = 0
    facts: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows or self.media_lines or self.facts)

    def __str__(self) -> str:
        parts = [counted(self.rows, "row")] * bool(self.rows) + [f"{self.media_lines:,} media"] * bool(self.media_lines)
        return ", ".join([*parts, *self.facts])


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """How much was compared."""

    series: int = 0
    points: int = 0
    media: int = 0
    params: int = 0


class RunCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What verify found of one run, or of a second target of one run (verdict `-`).

    `path` is the run directory, `where` the target's address. `reason` explains a verdict that has no differences.
    `edited` names what people changed in the target.
    """

    path: str
    run_id: str
    verdict: Verdict
    name: str = ""
    identity: str = ""
    where: str = ""
    reason: str = ""
    hint: str = ""
    behind: Behind = Behind()
    compared: Compared = Compared()
    differences: Differences = Differences()
    edited: tuple[str, ...] = ()
    seconds: float = 0.0

    @classmethod
    def of(cls, run: Run, verdict: Verdict, **fields: Any) -> Self:
        """Return the check of `run` with these fields."""
        return cls(**_names_of(run), verdict=verdict, **fields)


class VerifyTotals(msgspec.Struct, frozen=True, kw_only=True):
    """How many runs had each verdict, and the sums over all runs."""

    runs: int
    same: int
    source_only: int
    target_only: int
    different: int
    unreadable: int
    behind: int
    differences: int
    series: int
    points: int
    media: int
    params: int


class VerifyJson(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of a verify."""

    version: int
    exporter: str
    strict: bool
    sample: int | None
    exit_code: int
    seconds: float
    totals: VerifyTotals
    no_match: str
    warnings: list[str]
    runs: list[RunCheck]
    skipped: list[SkippedFolder]


class VerifyReport(_AnyReport, frozen=True, kw_only=True):
    """What a verify found. With `strict`, being behind is a difference; `sample` limits the series of each run."""

    runs: tuple[RunCheck, ...] = ()
    strict: bool = False
    sample: int | None = None

    @property
    def equal(self) -> bool:
        """Return whether every run is equal in source and target (with `strict`, also up to date)."""
        return all(run.verdict is Verdict.SAME and not (self.strict and run.behind) for run in self.runs)

    @property
    def exit_code(self) -> int:
        """Return 0 if all runs are equal, 4 if not, 1 if there is no run or a given name matches none."""
        if self.no_match.unknown:
            return 1
        return 0 if self.equal else 4

    @property
    def totals(self) -> VerifyTotals:
        """Return the sums over all runs."""
        verdicts = Counter(run.verdict for run in self.runs)
        compared = {name: sum(getattr(run.compared, name) for run in self.runs) for name in Compared.__struct_fields__}
        return VerifyTotals(
            runs=len(self.runs),
            **{verdict.name.lower(): verdicts[verdict] for verdict in Verdict},
            behind=sum(bool(run.behind) for run in self.runs),
            differences=sum(run.differences.count for run in self.runs),
            **compared,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON report as plain values."""
        report = VerifyJson(
            version=VERIFY_VERSION,
            strict=self.strict,
            sample=self.sample,
            exit_code=self.exit_code,
            totals=self.totals,
            runs=[msgspec.structs.replace(run, seconds=round(run.seconds, 6)) for run in self.runs],
            **self._common(),
        )
        data: dict[str, Any] = msgspec.to_builtins(report)
        return data
