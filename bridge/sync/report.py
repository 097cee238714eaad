"""The reports of an export and of a verify, run by run, and their JSON.

`--json` prints these structs as they are. docs/reference/json-export.md and json-verify.md describe them, and the JSON
schemas there are generated from them.
"""

from __future__ import annotations

import logging
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import msgspec

from bridge.errors import BridgeError, counted
from bridge.model import SkippedFolder  # noqa: TC001 - msgspec looks at it
from bridge.secrets import hide_all, hide_in

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.model import Notice

log = logging.getLogger(__name__)

REPORT_VERSION = 1
"""The `version` of both reports' JSON; it grows when a field changes its meaning or goes away."""

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


def explained(error: Exception, run: object) -> tuple[str, str]:
    """Return the `reason` and the `hint` of a report on `run`, which `error` ended. Log any but a BridgeError."""
    if isinstance(error, BridgeError):
        return error.message, error.hint or ""
    log.debug("run %s failed", run, exc_info=hide_in(error))
    return hide_all(f"{type(error).__name__}: {error}"), ""


class NoticeExample(msgspec.Struct, frozen=True):
    """One notice by name."""

    what: str
    detail: str


class NoticeSummary(msgspec.Struct, frozen=True):
    """All notices of one kind: how many there are, and the first EXAMPLES by name."""

    kind: str
    count: int
    examples: tuple[NoticeExample, ...]


def summarise_notices(notices: Iterable[Notice]) -> tuple[NoticeSummary, ...]:
    """Return one entry per kind in order of appearance: its count and the first EXAMPLES by name."""
    by_kind: dict[str, list[Notice]] = {}
    for notice in notices:
        by_kind.setdefault(str(notice.kind), []).append(notice)
    return tuple(
        NoticeSummary(
            kind,
            sum(notice.count for notice in found),
            tuple(NoticeExample(notice.what, notice.detail) for notice in found[:EXAMPLES]),
        )
        for kind, found in by_kind.items()
    )


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """What both reports say of one run.

    `path` is its run directory, `name` the run's name, `where` its target's address ("" before there is one). `reason`
    explains what was done or found, `hint` says what to try.
    """

    path: str
    run_id: str
    name: str = ""
    identity: str = ""
    where: str = ""
    reason: str = ""
    hint: str = ""
    seconds: float = 0.0

    @classmethod
    def of(cls, run: Any, **fields: Any) -> Self:
        """Return the line on `run`, a Run or anything else with its path and names, with these fields."""
        return cls(path=str(run.path), run_id=run.run_id, name=run.name, identity=run.identity, **fields)


class RunReport(_Line, frozen=True, kw_only=True):
    """What happened to one run, as in the JSON of an export.

    `points`, `media` and `bytes` count what was sent. `retry` says that the target was in the way, so that a later
    export may succeed; `refused` that it takes this run only after a person has changed something.
    """

    action: Action
    retry: bool = False
    refused: bool = False
    points: int = 0
    media: int = 0
    bytes: int = 0
    notices: tuple[NoticeSummary, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Return whether the export of this run failed."""
        return self.action in (Action.UNREADABLE, Action.FAILED)


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    """What both reports say of all runs.

    `exit_code` is 1 if a given name matches no run; otherwise it follows from the runs. `no_match` explains why no run
    was selected, `warnings` name metrics in the options that no run has and runs that were left out, `skipped` are
    folders that only look like runs.
    """

    version: int = REPORT_VERSION
    exporter: str
    exit_code: int = 0
    seconds: float = 0.0
    no_match: str = ""
    warnings: tuple[str, ...] = ()
    skipped: tuple[SkippedFolder, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data


class ExportTotals(msgspec.Struct, frozen=True, kw_only=True):
    """How many runs had each action, and the sums over all runs."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    rebuild: int = 0
    deleted: int = 0
    copy: int = 0
    unreadable: int = 0
    failed: int = 0
    runs: int = 0
    points: int = 0
    media: int = 0
    bytes: int = 0
    notices: int = 0


class Report(_Report, frozen=True, kw_only=True):
    """What an export did, or would do (`dry_run`), as in its JSON. `totals` follow from `runs`.

    `notices` concern the export as a whole.
    """

    dry_run: bool = False
    totals: ExportTotals = ExportTotals()
    notices: tuple[NoticeSummary, ...] = ()
    runs: tuple[RunReport, ...] = ()

    def __post_init__(self) -> None:
        """Compute the totals and the exit code."""
        actions = Counter(run.action for run in self.runs)
        everywhere = [*self.notices, *(notice for run in self.runs for notice in run.notices)]
        totals = ExportTotals(
            **{action.value: actions[action] for action in Action},
            runs=len(self.runs),
            points=sum(run.points for run in self.runs),
            media=sum(run.media for run in self.runs),
            bytes=sum(run.bytes for run in self.runs),
            notices=sum(notice.count for notice in everywhere),
        )
        code = self.exit_code or exit_code(failed=len(self.failed), of=len(self.runs))
        msgspec.structs.force_setattr(self, "totals", totals)
        msgspec.structs.force_setattr(self, "exit_code", code)

    @property
    def failed(self) -> tuple[RunReport, ...]:
        """Return the runs whose export failed."""
        return tuple(run for run in self.runs if run.failed)

    def __repr__(self) -> str:
        counts = Counter(run.action for run in self.runs)
        actions = ", ".join(f"{counts[action]} {action}" for action in Action if counts[action])
        return f"<Report {self.exporter}: {counted(len(self.runs), 'run')} ({actions or 'none'})>"


def exit_code(*, failed: int, of: int) -> int:
    """Return 0 if none of `of` runs failed, 1 if all did, 3 if some did."""
    if not failed:
        return 0
    return 1 if failed == of else 3


class Progress:
    """Hear how an export goes on, from one thread. A context manager. This one shows nothing."""

    def start(self, runs: int) -> None:
        """Receive the number of runs that are about to be exported."""

    def moved(self, points: int) -> None:
        """Receive the number of points that have reached their target."""

    def run_done(self, report: RunReport) -> None:
        """Receive the report of a run that is done."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return None


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


class RunCheck(_Line, frozen=True, kw_only=True):
    """What verify found of one run, or of a second target of one run (verdict `-`).

    `edited` names what people changed in the target.
    """

    verdict: Verdict
    behind: Behind = Behind()
    compared: Compared = Compared()
    differences: Differences = Differences()
    edited: tuple[str, ...] = ()


class VerifyTotals(msgspec.Struct, frozen=True, kw_only=True):
    """How many runs had each verdict, and the sums over all runs."""

    runs: int = 0
    same: int = 0
    source_only: int = 0
    target_only: int = 0
    different: int = 0
    unreadable: int = 0
    behind: int = 0
    differences: int = 0
    series: int = 0
    points: int = 0
    media: int = 0
    params: int = 0


class VerifyReport(_Report, frozen=True, kw_only=True):
    """What a verify found, as in its JSON.

    With `strict`, being behind is a difference; `sample` limits the series of each run.
    """

    strict: bool = False
    sample: int | None = None
    totals: VerifyTotals = VerifyTotals()
    runs: tuple[RunCheck, ...] = ()

    def __post_init__(self) -> None:
        """Compute the totals and the exit code."""
        verdicts = Counter(run.verdict for run in self.runs)
        compared = {name: sum(getattr(run.compared, name) for run in self.runs) for name in Compared.__struct_fields__}
        totals = VerifyTotals(
            runs=len(self.runs),
            **{verdict.name.lower(): verdicts[verdict] for verdict in Verdict},
            behind=sum(bool(run.behind) for run in self.runs),
            differences=sum(run.differences.count for run in self.runs),
            **compared,
        )
        msgspec.structs.force_setattr(self, "totals", totals)
        msgspec.structs.force_setattr(self, "exit_code", self.exit_code or (0 if self.equal else 4))

    @property
    def equal(self) -> bool:
        """Return whether every run is equal in source and target (with `strict`, also up to date)."""
        return all(run.verdict is Verdict.SAME and not (self.strict and run.behind) for run in self.runs)
