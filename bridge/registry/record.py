"""One run as the registry knows it: a flat, frozen record, cheap to keep by the hundred thousand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bridge.model import Status

if TYPE_CHECKING:
    from bridge.model import Run, Scalar

__all__ = ["RunRecord", "iso"]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run directory said at the last scan. Times are seconds since the epoch.

    `run_dir` is the real absolute path. `status` is what is shown (a dead run is `killed`), `status_word` what the
    sidecar says. `start`, `end` and `last_alive` are as in `bridge.model.Run`; `updated` is the mtime of the
    sidecar. `summary` holds the last value of each metric, `stats` what summary.json says of each
    (`max`, `min`, `last`, `count`, ...). `orphaned` means that the last scan did not find it any more.
    """

    run_id: str
    run_dir: str
    identity: str
    status: Status
    status_word: str | None
    start: float
    end: float | None
    last_alive: float
    updated: float
    name: str
    parent: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    archived: bool = False
    hparams: Mapping[str, Scalar] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    stats: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoint_path: str | None = None
    sessions: int = 0
    orphaned: bool = False

    @property
    def alive(self) -> bool:
        """Whether the run was running, with a fresh heartbeat."""
        return self.status is Status.RUNNING

    @property
    def created_at(self) -> str:
        """The start as an ISO time in UTC."""
        return iso(self.start)

    @property
    def ended_at(self) -> str | None:
        """The end as an ISO time in UTC; None while the run is running."""
        return None if self.end is None else iso(self.end)

    @property
    def updated_at(self) -> str:
        """When the sidecar was last written, as an ISO time in UTC."""
        return iso(self.updated)

    @property
    def heartbeat(self) -> str:
        """The last sign of life as an ISO time in UTC."""
        return iso(self.last_alive)

    @property
    def duration(self) -> float:
        """Seconds from the start to the end, of a running run to the last sign of life; never negative."""
        return max(0.0, (self.last_alive if self.end is None else self.end) - self.start)

    def metric(self, name: str, stat: str = "last") -> float | None:
        """A statistic of a metric: the last value, or any number that summary.json keeps; None where unknown."""
        if stat == "last" and name in self.summary:
            return _number(self.summary[name])
        return _number(self.stats.get(name, {}).get(stat))

    def to_dict(self) -> dict[str, Any]:
        """The record as strict JSON values: times as ISO text, numbers that are not finite as text."""
        return {
            "run_id": self.run_id,
            "run_dir": self.run_dir,
            "identity": self.identity,
            "name": self.name,
            "status": str(self.status),
            "status_word": self.status_word,
            "alive": self.alive,
            "created_at": self.created_at,
            "ended_at": self.ended_at,
            "updated_at": self.updated_at,
            "heartbeat": self.heartbeat,
            "duration": self.duration,
            "parent": self.parent,
            "tags": list(self.tags),
            "notes": self.notes,
            "archived": self.archived,
            "checkpoint_path": self.checkpoint_path,
            "sessions": self.sessions,
            "hparams": _strict(self.hparams),
            "summary": _strict(self.summary),
            "metrics": _strict(self.stats),
        }

    @classmethod
    def of(cls, run: Run) -> RunRecord:
        """The record of a run as just read."""
        sidecar = run.files.get("sidecar.json")
        return cls(
            run_id=run.run_id,
            run_dir=str(run.path),
            identity=run.identity,
            status=run.status,
            status_word=run.status_word,
            start=run.start,
            end=run.end,
            last_alive=run.last_alive,
            updated=sidecar.mtime_ns / 1e9 if sidecar else run.last_alive,
            name=run.name,
            parent=run.parent,
            tags=run.tags,
            notes=run.notes,
            archived=run.archived,
            hparams=run.params,
            summary=run.summary,
            stats=run.summary_stats,
            checkpoint_path=run.checkpoint,
            sessions=len(run.sessions),
        )


def iso(seconds: float) -> str:
    """A time as ISO text in UTC; one outside of what a calendar holds as its number."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return str(seconds)


_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _number(value: object) -> float | None:
    if isinstance(value, str):
        return _WORDS.get(value)
    return value if isinstance(value, int | float) else None


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value
