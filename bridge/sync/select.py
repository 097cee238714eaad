"""Selection: which runs are meant; the one module that ls, export, verify and view ask."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Self, TypeVar

from bridge.errors import RunDirectoryError, UsageError
from bridge.model import Run, Status
from bridge.registry.record import RunRecord
from bridge.registry.refs import status_of
from bridge.registry.summary import with_summary
from bridge.registry.tokens import duration_of, time_of
from bridge.registry.where import Where, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Selection", "Top", "select", "since_of"]

T = TypeVar("T", Run, RunRecord)


@dataclass(frozen=True, slots=True)
class Top:
    """The `count` best runs by a metric: `mode` is `max` or `min`, `last` takes the last value, not the best ever."""

    count: int
    metric: str
    mode: str = "max"
    last: bool = False

    def of(self, record: RunRecord) -> float | None:
        """The value that ranks the run; None where it has none, or NaN."""
        value = record.metric(self.metric, "last" if self.last else self.mode)
        return None if value is None or math.isnan(value) else value


@dataclass(frozen=True, slots=True)
class Selection:
    """Which runs are meant; what is empty or None selects all. All that is given must hold.

    `run_ids` are ids or globs, one of which must match; `tags` tags or globs, all of which must; `since` is a time in
    seconds since the epoch, compared with the last sign of life. `top` ranks what the rest leaves: completed runs
    only, unless `statuses` asks for others.
    """

    run_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    statuses: tuple[Status, ...] = ()
    since: float | None = None
    where: Where | None = None
    top: Top | None = None

    @classmethod
    def of(
        cls,
        *,
        run_ids: Sequence[str] = (),
        tags: Sequence[str] = (),
        statuses: Sequence[str] = (),
        since: str | None = None,
        where: str | None = None,
        top: tuple[int, str] | None = None,
        last: bool = False,
    ) -> Self:
        """The selection in words, as on the command line. Raises UsageError for words that it does not know."""
        if last and not top:
            raise UsageError("--last says how to rank, so it needs --top.", hint="--top 5 val/acc:max --last")
        return cls(
            run_ids=tuple(run_ids),
            tags=tuple(tags),
            statuses=tuple(status_of(word) for word in statuses),
            since=None if since is None else since_of(since),
            where=None if where is None else parse(where),
            top=_top(*top, last=last) if top else None,
        )

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()

    def wants(self, record: RunRecord) -> bool:
        """Whether the run is meant, as far as one run alone can say (without `top`)."""
        statuses = self.statuses or ((Status.COMPLETED,) if self.top else ())
        return (
            (not statuses or record.status in statuses)
            and (self.since is None or record.last_alive >= self.since)
            and (not self.run_ids or any(_matches(record.run_id, glob) for glob in self.run_ids))
            and all(any(_matches(tag, glob) for tag in record.tags) for glob in self.tags)
            and (self.where is None or self.where.holds(record))
        )


def select(runs: Iterable[T], selection: Selection) -> list[T]:
    """The runs that are meant, in the order given; with `top` the best first, of equal ones the earlier started."""
    if selection.everything:
        return list(runs)
    pairs = [(run, _record(run, selection)) for run in runs]
    wanted = [pair for pair in pairs if selection.wants(pair[1])]
    if selection.top:
        wanted = _best(wanted, selection.top)
    return [run for run, _ in wanted]


def since_of(text: str, *, now: float | None = None) -> float:
    """The time that `3d`, `12h`, `2026-04-10` or an ISO time means; dates are local. Raises UsageError."""
    age = duration_of(text)
    if age is not None and age < 0:
        raise UsageError(f"--since: {text!r} lies in the future.", hint=f"--since {text.removeprefix('-')}")
    if age is not None:
        return (time.time() if now is None else now) - age
    at = time_of(text)
    if at is None:
        raise UsageError(f"--since: {text!r} is no age and no date.", hint="90m, 12h, 3d, 2w, 2026-04-10, an ISO time")
    return at


def _record(run: Run | RunRecord, selection: Selection) -> RunRecord:
    if isinstance(run, RunRecord):
        return run
    asks_metrics = selection.top is not None or (selection.where is not None and selection.where.metrics)
    if asks_metrics:
        # A run whose metrics cannot be read has none here; it must not keep the others from being chosen.
        with contextlib.suppress(RunDirectoryError):
            run = with_summary(run)
    return RunRecord.of(run)


def _best(pairs: list[tuple[T, RunRecord]], top: Top) -> list[tuple[T, RunRecord]]:
    sign = -1.0 if top.mode == "max" else 1.0
    ranked = [(sign * value, pair) for pair in pairs if (value := top.of(pair[1])) is not None]
    ranked.sort(key=lambda entry: (entry[0], entry[1][1].start, entry[1][1].run_dir))
    return [pair for _, pair in ranked[: top.count]]


def _matches(text: str, glob: str) -> bool:
    # Equality first: ids and tags may hold the signs of a glob themselves.
    return text == glob or fnmatchcase(text, glob)


def _top(count: int, text: str, *, last: bool) -> Top:
    metric, _, mode = text.rpartition(":")
    if not metric or mode not in ("max", "min"):
        raise UsageError(f"--top: {text!r} does not say which end is best.", hint=f"--top {count} {text}:max")
    return Top(count=count, metric=metric, mode=mode, last=last)
