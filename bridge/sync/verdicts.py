"""What a verify found, run by run, and the JSON of it (docs/reference/json-verify.md is its contract)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["VERIFY_VERSION", "Behind", "Compared", "Difference", "Findings", "RunCheck", "Verdict", "VerifyReport"]

VERIFY_VERSION = 1
"""The `version` of the JSON report; it grows when a field changes its meaning or goes away."""

FIRST = 10
"""How many differences of a run are shown; all of them are counted."""


class Verdict(StrEnum):
    """How source and target stand to each other: of a run, and of one thing in it."""

    SAME = "="
    SOURCE_ONLY = "+"
    TARGET_ONLY = "-"
    DIFFERENT = "*"
    UNREADABLE = "!"


_WORDS = {
    Verdict.SAME: "same",
    Verdict.SOURCE_ONLY: "source_only",
    Verdict.TARGET_ONLY: "target_only",
    Verdict.DIFFERENT: "different",
    Verdict.UNREADABLE: "unreadable",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: in which file of the run directory, of what (`val/acc`, `param lr`, `status`), at which step.

    `expected` is what the source says, `found` what the target holds, both as text, None where there is nothing.
    """

    verdict: Verdict
    file: str
    what: str
    step: int | None = None
    expected: str | None = None
    found: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The difference as plain JSON values."""
        return {
            "verdict": str(self.verdict),
            "file": self.file,
            "what": self.what,
            "step": self.step,
            "expected": self.expected,
            "found": self.found,
        }


@dataclass(slots=True)
class Findings:
    """The differences of one run as they are found: all are counted by verdict, the first FIRST are kept."""

    first: list[Difference] = field(default_factory=list)
    counts: Counter[Verdict] = field(default_factory=Counter)

    def add(self, difference: Difference, *, count: int = 1) -> None:
        """Note a difference that stands for `count` of its kind."""
        self.counts[difference.verdict] += count
        if len(self.first) < FIRST:
            self.first.append(difference)

    def more(self, verdict: Verdict, count: int) -> None:
        """Count `count` more differences that nobody would read."""
        self.counts[verdict] += count

    @property
    def room(self) -> int:
        """How many more differences would be kept."""
        return FIRST - len(self.first)


@dataclass(frozen=True, slots=True)
class Behind:
    """What the run directory holds that the target's cursor does not cover yet: no difference, unless --strict."""

    rows: int = 0
    media_lines: int = 0
    facts: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows or self.media_lines or self.facts)

    def __str__(self) -> str:
        parts = [f"{self.rows:,} rows"] * bool(self.rows) + [f"{self.media_lines:,} media"] * bool(self.media_lines)
        return ", ".join([*parts, *self.facts])


@dataclass(frozen=True, slots=True)
class Compared:
    """How much was looked at."""

    series: int = 0
    points: int = 0
    media: int = 0
    params: int = 0

    def __add__(self, other: Compared) -> Compared:
        return Compared(
            series=self.series + other.series,
            points=self.points + other.points,
            media=self.media + other.media,
            params=self.params + other.params,
        )

    def to_dict(self) -> dict[str, int]:
        """The counts as plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class RunCheck:
    """What verify found of one run, or of a second target of one (verdict `-`).

    `path` is the run directory, `where` the target's address. `differences` counts all, `first` are the first of them.
    `reason` says what a verdict without differences comes from. `edited` is what people changed in the target.
    """

    path: str
    run_id: str
    verdict: Verdict
    identity: str = ""
    where: str = ""
    reason: str = ""
    hint: str = ""
    behind: Behind = field(default_factory=Behind)
    compared: Compared = field(default_factory=Compared)
    differences: int = 0
    first: tuple[Difference, ...] = ()
    edited: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The run as plain JSON values."""
        return {
            "path": self.path,
            "run_id": self.run_id,
            "identity": self.identity,
            "verdict": str(self.verdict),
            "where": self.where,
            "reason": self.reason,
            "hint": self.hint,
            "behind": {
                "rows": self.behind.rows,
                "media_lines": self.behind.media_lines,
                "facts": list(self.behind.facts),
            },
            "compared": self.compared.to_dict(),
            "differences": {"count": self.differences, "first": [one.to_dict() for one in self.first]},
            "edited": list(self.edited),
            "seconds": round(self.seconds, 6),
        }


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verify found. With `strict`, being behind is a difference; `sample` is the greatest number of series a run."""

    exporter: str
    runs: tuple[RunCheck, ...] = ()
    strict: bool = False
    sample: int | None = None
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether every run is the same in source and target (with `strict`, also up to date)."""
        return all(run.verdict is Verdict.SAME and not (self.strict and run.behind) for run in self.runs)

    @property
    def exit_code(self) -> int:
        """0 all equal, 4 not all, 1 nothing to compare."""
        if not self.runs:
            return 1
        return 0 if self.equal else 4

    def count(self, verdict: Verdict) -> int:
        """How many runs have this verdict."""
        return sum(run.verdict is verdict for run in self.runs)

    @property
    def compared(self) -> Compared:
        """How much was looked at, over all runs."""
        return sum((run.compared for run in self.runs), Compared())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "version": VERIFY_VERSION,
            "exporter": self.exporter,
            "strict": self.strict,
            "sample": self.sample,
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 6),
            "totals": {
                "runs": len(self.runs),
                **{word: self.count(verdict) for verdict, word in _WORDS.items()},
                "behind": sum(bool(run.behind) for run in self.runs),
                "differences": sum(run.differences for run in self.runs),
                **self.compared.to_dict(),
            },
            "runs": [run.to_dict() for run in self.runs],
        }
