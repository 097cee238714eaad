"""What an export did, run by run, and the JSON of it (docs/reference/json-export.md is its contract)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.model import Notice

__all__ = ["REPORT_VERSION", "Action", "Report", "RunReport", "exit_code", "summarise_notices"]

REPORT_VERSION = 1
"""The `version` of the JSON report; it grows when a field changes its meaning or goes away."""

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
    UNREADABLE = "unreadable"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RunReport:
    """What happened to one run.

    `path` is its run directory, `where` its target's address ("" before there is one). `points`, `media`, `bytes`
    count what was sent. `reason` says why a run was rebuilt, left alone or failed; `hint` what to try.
    """

    path: str
    run_id: str
    action: Action
    identity: str = ""
    where: str = ""
    reason: str = ""
    hint: str = ""
    retry: bool = False
    points: int = 0
    media: int = 0
    bytes: int = 0
    seconds: float = 0.0
    notices: tuple[Notice, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether this run was not brought into the target."""
        return self.action in (Action.UNREADABLE, Action.FAILED)

    def to_dict(self) -> dict[str, Any]:
        """The run as plain JSON values."""
        return {
            "path": self.path,
            "run_id": self.run_id,
            "identity": self.identity,
            "action": str(self.action),
            "reason": self.reason,
            "hint": self.hint,
            "retry": self.retry,
            "where": self.where,
            "points": self.points,
            "media": self.media,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 6),
            "notices": summarise_notices(self.notices),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What an export did, or would do (`dry_run`)."""

    exporter: str
    runs: tuple[RunReport, ...] = ()
    notices: tuple[Notice, ...] = field(default=())
    seconds: float = 0.0
    dry_run: bool = False

    @property
    def failed(self) -> tuple[RunReport, ...]:
        """The runs that were not brought into the target."""
        return tuple(run for run in self.runs if run.failed)

    @property
    def exit_code(self) -> int:
        """0 all done, 1 none could be done, 3 some failed."""
        return exit_code(failed=len(self.failed), of=len(self.runs))

    def count(self, action: Action) -> int:
        """How many runs had this action."""
        return sum(run.action is action for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "version": REPORT_VERSION,
            "exporter": self.exporter,
            "dry_run": self.dry_run,
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 6),
            "totals": {
                **{str(action): self.count(action) for action in Action},
                "runs": len(self.runs),
                "points": sum(run.points for run in self.runs),
                "media": sum(run.media for run in self.runs),
                "bytes": sum(run.bytes for run in self.runs),
                "notices": sum(notice.count for run in self.runs for notice in run.notices)
                + sum(notice.count for notice in self.notices),
            },
            "notices": summarise_notices(self.notices),
            "runs": [run.to_dict() for run in self.runs],
        }


def exit_code(*, failed: int, of: int) -> int:
    """0 where none of so many runs failed, 1 where all did, 3 where some did."""
    if not failed:
        return 0
    return 1 if failed == of else 3


def summarise_notices(notices: Iterable[Notice]) -> list[dict[str, Any]]:
    """One entry per kind: its count and the first EXAMPLES by name, in order of appearance."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    for notice in notices:
        counts[str(notice.kind)] += notice.count
        shown = examples.setdefault(str(notice.kind), [])
        if len(shown) < EXAMPLES:
            shown.append({"what": notice.what, "detail": notice.detail})
    return [{"kind": kind, "count": count, "examples": examples[kind]} for kind, count in counts.items()]
