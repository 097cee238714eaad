"""Continue reading the rows of a run where a cursor ends.

A cursor is found again by the bytes before it, so only new bytes are read. If they are not the same (the header grew
and the file was rewritten, or somebody changed it) the rows up to the cursor are read once, and a digest of them
decides.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bridge.errors import RunDirectoryError, counted
from bridge.files import open_raw
from bridge.model import Block, Cursor, Notice, NoticeKind
from bridge.rundir.event_runs import EventTable
from bridge.rundir.metrics import BAD_ROW, MetricsTable
from bridge.rundir.overlap import LastPoints, LatePoints, Replaced
from bridge.rundir.rows import NO_ROWS, Estimate, fill, is_time, to_hex
from bridge.rundir.run import MOST_NAMED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bridge.model import Run
    from bridge.options import ContentOptions
    from bridge.rundir.header import Layout
    from bridge.rundir.rows import Rows

QUIET = 60.0
"""Seconds without a write after which no rows wait for later ones."""

BAD_TIME = (NoticeKind.BAD_TIME, "")

_DETAILS = {
    NoticeKind.NO_STEP: "rows without a step, from 0: {rows}",
    NoticeKind.TEXT_CELL: "text is not exported; metrics.csv keeps it",
    NoticeKind.LEFT_OUT: "not exported; the event files keep them",
    NoticeKind.BAD_LINE: "the rest of this file is not read",
    NoticeKind.BAD_TIME: "times that no clock gives, rows from 0: {rows}; they have the time of the row before",
}
"""What a notice says of odd rows, in the order of the notices."""

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
    """How far the rows of a run were read, and what the next rows depend on. `take` advances it.

    `rows`, `offset`, `digest`, `last_step` and `last_time` are as in a cursor. `estimate` is None if the run has a time
    column. `late` are the late points by metric and `odd` the odd rows since the state was made or resumed.
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

    def begun(self) -> Cursor:
        """Return the cursor before the first row, for a target that is made with these options and anchors."""
        return Cursor(
            identity=self.run.identity,
            path=str(self.run.path),
            anchors=() if self.estimate is None else self.estimate.anchors,
            content=self.content.differences(),
        )

    def cursor(self, table: Table, before: Cursor | None) -> Cursor:
        """Return the cursor at this place of `table`, with what an exporter keeps in `before`.

        The caller sets what concerns media, and `stat`.
        """
        last_points = self.last_points.points()
        return (before or self.begun()).with_(
            path=str(self.run.path),
            rows=self.rows,
            offset=self.offset,
            digest=to_hex(self.digest),
            last_step=self.last_step,
            last_points=last_points if len(last_points) == len(self.last_points) else None,
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
            Notice(NoticeKind.RENAMED, name, f"its column in metrics.csv has a name of {length} characters")
            for name, length in (self.layout.renamed if self.layout is not None else ())
        ]
        for at, problem in self.problems.values():
            found.append(Notice(NoticeKind.BAD_ROW, table.place(at), f"the row {problem}"))
        bad = self.odd.get(BAD_ROW, OddRows()).count - len(self.problems)
        if bad:
            found.append(Notice(NoticeKind.BAD_ROW, "metrics.csv", "further bad rows", bad))
        found += [
            Notice(kind, what or table.holder, detail.format(rows=rows), rows.count)
            for kind, detail in _DETAILS.items()
            for (odd, what), rows in sorted(self.odd.items())
            if odd is kind
        ]
        return found

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
        return
    found = run.files.get("metrics.csv")
    if found is None:
        yield None
        return
    try:
        file = open_raw(found.path)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise RunDirectoryError(f"{found.path} cannot be read: {error.strerror}.") from error
    with file:
        yield MetricsTable(file, run.time_column)


def first_rows(table: Table, count: int) -> Iterator[Rows]:
    """Yield the first `count` rows of `table` in parts."""
    for rows in table.rows():
        part = rows.part(0, min(len(rows), count - rows.first))
        yield part
        if part.first + len(part) >= count:
            return


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


def superseded_notices(replaced: Replaced, table: Table) -> list[Notice]:
    """Return the notice of points of `table` that were replaced within their session, if there are any."""
    detail = f"points replaced by a later value at the same step of the same session; they stay in {table.holder}"
    return [Notice(NoticeKind.SUPERSEDED, table.holder, detail, replaced.superseded)] if replaced.superseded else []


def locate(run: Run, cursor: Cursor | None, content: ContentOptions, table: Table | None) -> ReadState:
    """Return the state at `cursor`; `table` is None if there is no metrics.csv.

    Raises Changed if the file does not hold what the cursor covers.
    """
    state = ReadState.begin(run, content, cursor.anchors if cursor is not None else ())
    if table is None or table.layout is None:
        if cursor is not None and cursor.rows:
            raise Changed("metrics.csv is gone or empty", ("gone", table.stat if table is not None else None))
        return state
    state.layout, state.offset = table.layout, table.layout.end
    if cursor is None or not cursor.header:
        return state
    found = table.find(cursor)
    if found is not None:
        return ReadState.at(run, content, cursor, *found)
    if isinstance(table, EventTable) and table.is_gone:
        raise Changed("the event files that the target was made of are gone", ("gone", table.stat), keeps=True)
    for rows in first_rows(table, cursor.rows):
        state.take(rows)
    if state.rows < cursor.rows:
        reason = f"found {counted(state.rows, 'row')} in {table.holder}, the target was made of {cursor.rows}"
        raise Changed(reason, (table.stat, state.rows))
    if to_hex(state.digest) != (cursor.digest or NO_ROWS):
        reason = f"{table.holder}: the content of the first {counted(cursor.rows, 'row')} has changed"
        raise Changed(reason, (table.stat, to_hex(state.digest)))
    if isinstance(table, EventTable) and cursor.media_lines:  # which pictures the target has is known by files alone
        raise Changed(f"{table.holder} are no longer those that the target was made of", (table.stat,))
    # An earlier export has reported these late points and odd rows.
    state.late, state.odd, state.problems = {}, {}, {}
    return state


def learn_last_points(state: ReadState, cursor: Cursor, table: Table, rows: Sequence[Rows]) -> None:
    """Set the last points of `state`, which is at `cursor`, from the rows that the cursor covers.

    A cursor has no room for the last points of many metrics. If `rows`, the next ones, have only later steps than
    `cursor`, the names of the metrics in their order are enough. Then reading stops once each metric was seen.
    """
    steps = [int(part.valid_steps.min()) for part in rows if len(part.valid_steps)]
    needed = bool(steps) and cursor.last_step is not None and min(steps) <= cursor.last_step
    again = ReadState.begin(state.run, state.content)
    for part in first_rows(table, cursor.rows):
        again.take(part)
        if not needed and len(again.last_points) >= cursor.seen:
            break
    state.last_points = again.last_points if needed else LastPoints(names=again.last_points.names)


def without_last_step(source: Iterator[Rows], run: Run) -> Iterator[Rows]:
    """Yield the rows of `source`, which reaches the end of the file, without those at the last step of a running run.

    The run may still log further values at that step. These rows wait until a later step follows, the run ends, or
    nothing was written for a minute. So several values at the newest step cause no rewind.
    """
    written = max((file.mtime_ns / 1e9 for file in run.row_files), default=None)
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
        valid = np.ones(len(rows), dtype=bool) if rows.valid is None else rows.valid
        # The rows with the last step from behind: those after the last row that has another step.
        others = np.flatnonzero(valid & (rows.step != last))
        after = int(others[-1]) + 1 if len(others) else 0
        mine = np.flatnonzero(valid[after:] & (rows.step[after:] == last))
        if len(mine):
            yield rows.part(0, after + int(mine[0]))
            return
        yield rows
