"""Go on reading metrics.csv where a cursor ends.

A cursor is found again by the bytes before it, so only new bytes are read. If they are not the same (the header grew
and the file was rewritten, or somebody changed it) the rows up to the cursor are read once, and a digest of them
decides.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bridge.model import Block, Cursor, Notice, NoticeKind
from bridge.rundir.event_runs import EventTable
from bridge.rundir.header import metric_name
from bridge.rundir.metrics import BAD_ROW, CHUNK, MOST_NAMED, NO_STEP, MetricsTable, open_metrics, to_hex
from bridge.rundir.overlap import LastPoints, LatePoints
from bridge.rundir.times import Estimate, fill, is_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bridge.model import Run
    from bridge.options import ContentOptions
    from bridge.rundir.header import Layout
    from bridge.rundir.metrics import Rows

QUIET = 60.0
"""Seconds without a write after which no rows wait for later ones."""

BAD_TIME = (NoticeKind.BAD_TIME, "")

Table: TypeAlias = MetricsTable | EventTable
"""What rows are read from: one metrics.csv, or event files."""


class Changed(Exception):  # noqa: N818 - an answer, not an error: read_delta makes a delta of it
    """The cursor does not fit the file.

    `evidence` is equal if two looks saw the same file. With `keeps` the target stays as it is all the same.
    """

    def __init__(self, reason: str, evidence: tuple[object, ...], *, keeps: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.evidence = evidence
        self.keeps = keeps


@dataclass(slots=True)
class OddRows:
    """Rows that are odd in one way: how many, and the numbers of the first ones."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, rows: NDArray[np.int64]) -> None:
        """Add the rows with these numbers."""
        self.count += len(rows)
        self.first += rows[: MOST_NAMED - len(self.first)].tolist()

    def __str__(self) -> str:
        return ", ".join(map(str, self.first)) + (", ..." if self.count > len(self.first) else "")


@dataclass(slots=True, eq=False)
class ReadState:
    """How far metrics.csv was read, and what the rows to come depend on. `take` goes on.

    `rows`, `offset`, `digest`, `last_step` and `last_time` are as in a cursor. `estimate` is None if the run has a time
    column. `is_known` is false if the last points of the metrics before this place are not all known; only names are.
    `late` are the late points by metric and `odd` the odd rows since the state was made or resumed.
    """

    run: Run
    content: ContentOptions
    estimate: Estimate | None
    rows: int = 0
    offset: int = 0
    layout: Layout | None = None
    digest: int = 0
    last_step: int | None = None
    last_time: float | None = None
    last_points: LastPoints = field(default_factory=LastPoints)
    is_known: bool = True
    late: dict[str, LatePoints] = field(default_factory=dict)
    odd: dict[tuple[NoticeKind, str], OddRows] = field(default_factory=dict)
    problems: dict[int, tuple[int, str]] = field(default_factory=dict)
    _chosen: dict[tuple[str, ...], NDArray[np.intp] | None] = field(default_factory=dict)

    @classmethod
    def begin(cls, run: Run, content: ContentOptions, anchors: tuple[tuple[int, float], ...] = ()) -> ReadState:
        """Return the state before the first row."""
        return cls(run, content, None if run.time_column is not None else Estimate.begin(run, anchors))

    @classmethod
    def at(cls, run: Run, content: ContentOptions, cursor: Cursor, layout: Layout, offset: int) -> ReadState:
        """Return the state at `cursor`, which ends at byte `offset` of the file, below the header `layout`."""
        state = cls.begin(run, content, cursor.anchors)
        state.rows, state.offset, state.layout = cursor.rows, offset, layout
        state.digest = int(cursor.digest or "0", 16)
        state.last_step, state.last_time = cursor.last_step, cursor.last_time
        if state.estimate is None and state.last_time is None and cursor.anchors:
            state.last_time = cursor.anchors[-1][1]  # the rows so far had no time column
        state.is_known = cursor.last_points is not None or cursor.seen == 0
        state.last_points = LastPoints(cursor.last_points)
        return state

    def take(self, rows: Rows) -> Block | None:
        """Advance by `rows`, which begin at this place, and return the points that are new.

        These are the points of the chosen metrics in rows with a step. Points that just repeat the last point of their
        metric are left out; late points are in, and noted in `late`. The state can become a cursor afterwards.
        """
        self.digest += rows.digest()
        steps = rows.valid_steps
        if len(steps):
            highest = int(steps.max())
            self.last_step = highest if self.last_step is None else max(self.last_step, highest)
        for what, numbers in rows.odd.items():
            if what[0] is not NoticeKind.TEXT_CELL or self.content.wants(what[1]):
                self.odd.setdefault(what, OddRows()).add(numbers)
        for row, problem in rows.problems.items():
            if len(self.problems) < MOST_NAMED:
                self.problems[row] = rows.offset(row - rows.first), problem
        block = self.select(rows)
        if block is None:
            return None
        late = self.last_points.take(block)
        for name, found in late.items():
            self.late[name] = self.late[name] + found if name in self.late else found
        return block.filled()

    def select(self, rows: Rows) -> Block | None:
        """Advance as far as times need it, and return all points of the chosen metrics, repetitions too.

        Unlike `take`, leave digest, steps and last points as they are: the state cannot become a cursor afterwards.
        """
        self.layout, self.offset, self.rows = rows.layout, rows.end, rows.first + len(rows)
        if not len(rows):
            return None
        times = rows.time
        if self.estimate is None:
            times = fill(rows.time, self.run.start if self.last_time is None else self.last_time)
            self.last_time = float(times[-1])
            if times is not rows.time:
                odd = np.flatnonzero(~(is_time(rows.time) | np.isnan(rows.time)))
                if len(odd):
                    self.odd.setdefault(BAD_TIME, OddRows()).add(odd + rows.first)
        names, values, present = rows.names, rows.values, rows.present
        chosen = self._chosen_metrics(names)
        if chosen is not None:
            names = tuple(names[metric] for metric in chosen)
            values, present = values[chosen], present[chosen]
        if rows.valid is not None:
            present = present & rows.valid
        return Block(names, rows.row, rows.step, times, values, present).filled()

    def timed(self, block: Block) -> Block:
        """Return `block` with estimated times if the run has no time column."""
        if self.estimate is None:
            return block
        return Block(block.names, block.row, block.step, self.estimate.of(block.row), block.values, block.present)

    def cursor(self, table: Table, before: Cursor | None) -> Cursor:
        """Return the cursor at this place of `table`, with what an exporter keeps in `before`.

        The caller sets what concerns media, and `stat`.
        """
        base = before or Cursor(identity=self.run.identity, path=str(self.run.path))
        return base.with_(
            path=str(self.run.path),
            rows=self.rows,
            offset=self.offset,
            digest=to_hex(self.digest),
            last_step=self.last_step,
            last_points=self.last_points.points() if self.is_known else None,
            seen=len(self.last_points),
            last_time=self.last_time,
            **table.marks(self.offset, self.layout),
            anchors=() if self.estimate is None else self.estimate.anchors,
            content=self.content.differences(),
            replacing=None,
            complete=True,
            stat=None,
        )

    def notices(self, table: Table) -> list[Notice]:
        """Return notices of the odd rows and cells, the first bad rows by their line."""
        found = [
            Notice(NoticeKind.RENAMED, name, f"its column in metrics.csv has a name of {len(column)} characters")
            for column in (self.layout.columns if self.layout is not None else ())
            if (name := metric_name(column)) != column
        ]
        for at, problem in self.problems.values():
            found.append(Notice(NoticeKind.BAD_ROW, table.place(at), f"the row {problem}"))
        bad = self.odd.get(BAD_ROW, OddRows()).count - len(self.problems)
        if bad:
            found.append(Notice(NoticeKind.BAD_ROW, "metrics.csv", "further bad rows", bad))
        if NO_STEP in self.odd:
            rows = self.odd[NO_STEP]
            found.append(Notice(NoticeKind.NO_STEP, "metrics.csv", f"rows without a step, from 0: {rows}", rows.count))
        found += [
            Notice(NoticeKind.TEXT_CELL, name, "text is not exported; metrics.csv keeps it", rows.count)
            for (kind, name), rows in sorted(self.odd.items())
            if kind is NoticeKind.TEXT_CELL
        ]
        found += [
            Notice(NoticeKind.LEFT_OUT, what, "not exported; the event files keep them", rows.count)
            for (kind, what), rows in sorted(self.odd.items())
            if kind is NoticeKind.LEFT_OUT
        ]
        found += [
            Notice(NoticeKind.BAD_LINE, what, "the rest of this file is not read")
            for (kind, what), rows in sorted(self.odd.items())
            if kind is NoticeKind.BAD_LINE
        ]
        if BAD_TIME in self.odd:
            rows = self.odd[BAD_TIME]
            detail = f"times that no clock gives, rows from 0: {rows}; they have the time of the row before"
            found.append(Notice(NoticeKind.BAD_TIME, "metrics.csv", detail, rows.count))
        return found

    def forget(self) -> None:
        """Forget the late points and odd rows so far, which an earlier export has told of."""
        self.late.clear()
        self.odd.clear()
        self.problems.clear()

    def _chosen_metrics(self, names: tuple[str, ...]) -> NDArray[np.intp] | None:
        """Return the places of the metrics in `names` that the options ask for; None: all."""
        if not (self.content.metrics or self.content.exclude_metrics):
            return None
        if names not in self._chosen:
            places = [place for place, name in enumerate(names) if self.content.wants(name)]
            self._chosen[names] = np.array(places, dtype=np.intp) if len(places) < len(names) else None
        return self._chosen[names]


@contextlib.contextmanager
def open_table(run: Run) -> Iterator[Table | None]:
    """Open the rows of `run`; None if there are none. Raises RunDirectoryError if they cannot be read."""
    if run.event_files:
        yield EventTable(run.path, run.event_files)
    else:
        with open_metrics(run) as table:
            yield table


def last_write(run: Run) -> float | None:
    """Return when rows of `run` were written last, in seconds since the epoch; None if there are none."""
    return max((file.mtime_ns / 1e9 for file in run.row_files), default=None)


def session_starts(run: Run, table: Table) -> NDArray[np.int64] | None:
    """Return the rows with which the sessions of `run` begin; None if a sidecar says nothing of sessions.

    Each event file is a session. A run with a metrics.csv and no sidecar (a CSVLogger's) is one. The original logger
    says nothing of its sessions.
    """
    if isinstance(table, EventTable):
        return np.array(sorted(set(table.session_rows)), dtype=np.int64)
    if "sidecar.json" not in run.files:
        return np.zeros(1, dtype=np.int64)
    # A sidecar can hold any number; beyond int64 there are no rows.
    starts = sorted({min(session.rows, 2**63 - 1) for session in run.sessions if session.rows is not None})
    return np.array(starts, dtype=np.int64) if starts else None


def superseded_notice(count: int) -> list[Notice]:
    """Return the notice of `count` points that were replaced within their session, if there are any."""
    detail = "points replaced by a later value at the same step of the same session; metrics.csv keeps them"
    return [Notice(NoticeKind.SUPERSEDED, "metrics.csv", detail, count)] if count else []


def chunk_size(limit: int) -> int:
    """Return how many bytes to parse at once to get about `limit` points."""
    return min(CHUNK, max(1 << 12, limit * 8))


def locate(
    run: Run, cursor: Cursor | None, content: ContentOptions, table: Table | None, *, chunk: int
) -> tuple[ReadState, Iterator[Rows]]:
    """Return the state at `cursor`, and the rows that follow; `table` is None if there is no metrics.csv.

    Raises Changed if the file does not hold what the cursor covers.
    """
    begin = ReadState.begin(run, content, cursor.anchors if cursor is not None else ())
    if table is None or table.layout is None:
        if cursor is not None and cursor.rows:
            raise Changed("metrics.csv is gone or empty", ("gone", table.stat if table is not None else None))
        return begin, iter(())
    begin.layout, begin.offset = table.layout, table.layout.end
    if cursor is None or not cursor.header:
        return begin, table.rows(chunk=chunk)
    found = table.find(cursor)
    if found is not None:
        state = ReadState.at(run, content, cursor, *found)
        return state, table.rows(found[0], found[1], state.rows, chunk=chunk)
    if isinstance(table, EventTable) and table.is_gone(cursor):
        raise Changed("the event files that the target was made of are gone", ("gone", table.stat), keeps=True)
    return begin, _read_up_to(begin, cursor, table)


def _read_up_to(state: ReadState, cursor: Cursor, table: Table) -> Iterator[Rows]:
    """Advance `state` from the first row to `cursor`, and return the rows that follow.

    Raises Changed if the digest of the rows up to `cursor` is not the cursor's.
    """
    source = table.rows()
    rest: tuple[Rows, ...] = ()
    for rows in source:
        count = min(len(rows), cursor.rows - state.rows)
        state.take(rows.part(0, count))
        if state.rows == cursor.rows:
            rest = (rows.part(count, len(rows)),)
            break
    if state.rows < cursor.rows:
        holder = "metrics.csv has" if isinstance(table, MetricsTable) else "the event files have"
        reason = f"{holder} {state.rows} rows, the target was made of {cursor.rows}"
        raise Changed(reason, (table.stat, state.rows))
    if to_hex(state.digest) != (cursor.digest or to_hex(0)):
        reason = f"metrics.csv: what its first {cursor.rows} rows hold has changed"
        raise Changed(reason, (table.stat, to_hex(state.digest)))
    state.forget()
    return chain(rest, source)


def learn_last_points(state: ReadState, cursor: Cursor, table: Table, rows: Sequence[Rows]) -> None:
    """Let `state`, which is at `cursor`, know the metrics so far, and their last points if `rows` can come before them.

    A cursor has no room for the last points of many metrics. Rows with later steps than any before need only the names,
    for the order of the metrics: then the file is read until each metric was there once.
    """
    steps = [int(part.valid_steps.min()) for part in rows if len(part.valid_steps)]
    needed = bool(steps) and cursor.last_step is not None and min(steps) <= cursor.last_step
    again = ReadState.begin(state.run, state.content)
    for part in table.rows():
        again.take(part.part(0, min(len(part), cursor.rows - part.first)))
        if again.rows >= cursor.rows or (not needed and len(again.last_points) >= cursor.seen):
            break
    state.last_points = again.last_points if needed else LastPoints(names=again.last_points.names)
    state.is_known = needed


def without_last_step(source: Iterator[Rows], run: Run) -> Iterator[Rows]:
    """Yield the rows of `source`, which goes on to the end of the file, without the last rows of a running run.

    Rows that share the last row's step wait until a later step follows, the run ends, or nothing was written for a
    minute: the run may still supersede them. So several values at the newest step are no rewind.
    """
    written = last_write(run)
    if written is None or not run.running or time.time() - written >= QUIET:
        yield from source
        return
    waiting: list[Rows] = []
    last: int | None = None
    for rows in source:
        steps = rows.valid_steps
        if len(steps):
            if (steps != last).any():
                # The last step begins in these rows or later, so the rows before them need not wait any longer.
                yield from waiting
                waiting = []
            last = int(steps[-1])
        waiting.append(rows)
    for rows in waiting:
        others = np.ones(len(rows), dtype=bool) if rows.valid is None else rows.valid.copy()
        mine = np.flatnonzero(others & (rows.step == last))
        others &= rows.step != last
        # The rows with the last step from behind: those after the last row that has another step.
        after = int(np.flatnonzero(others)[-1]) + 1 if others.any() else 0
        begin = mine[mine >= after]
        if len(begin):
            yield rows.part(0, int(begin[0]))
            return
        yield rows
