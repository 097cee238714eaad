"""Read what a run directory holds: past a cursor (`read_delta`), or from the beginning (`read_whole`)."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bridge.errors import IdentityError, RunDirectoryError
from bridge.model import Cursor, Delta, DeltaKind, fitting
from bridge.rundir.event_runs import EventTable
from bridge.rundir.media import read_media, read_pictures
from bridge.rundir.metrics import MODULUS, to_hex
from bridge.rundir.overlap import BUDGET, StepRange, Superseded, by_step, counting, merge, resolve
from bridge.rundir.resume import (
    Changed,
    ReadState,
    chunk_size,
    learn_last_points,
    locate,
    open_table,
    session_starts,
    superseded_notice,
    without_last_step,
)
from bridge.rundir.series import other_run_notice
from bridge.rundir.times import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.model import Block, Run
    from bridge.options import ContentOptions
    from bridge.rundir.header import Layout
    from bridge.rundir.metrics import Rows
    from bridge.rundir.resume import Table
    from bridge.rundir.times import Anchors

LOOKS = 4
BETWEEN_LOOKS = 1.0
"""Seconds between two looks at a file that became shorter or changed: a program may just be rewriting it."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read deltas for one kind of target.

    `ordered`: the steps of a metric must rise, so any point at or before its last step is a rewind. `replaces`: the
    target can replace all points from a step on, so a rewind's delta holds them (`Delta.replace_from`).
    `limit`: the number of points in one delta, about. `newest`: the last rows of a running run, which it may still
    supersede, are read at once instead of waiting (see `without_last_step`); for a reader that keeps nothing.
    """

    ordered: bool = False
    replaces: bool = False
    limit: int = 1_000_000
    newest: bool = False


# Past a cursor ------------------------------------------------------------------------------------------------------


def read_delta(
    run: Run, cursor: Cursor | None, content: ContentOptions, options: ReadOptions, *, budget: int = BUDGET
) -> Delta:
    """Read what the run directory of `run` holds past `cursor` (None: everything), up to about `options.limit` points.

    Nothing is opened if size and mtime are the cursor's, and of a file that grew only the new bytes are parsed. The
    kind is CHANGED if the target has to be rebuilt: the file no longer holds what the cursor covers, or the options
    differ. `budget` is about how many bytes of rows are in memory while a rewind is read. Raises IdentityError if the
    directory moved and holds other rows, and RunDirectoryError if a file cannot be read.
    """
    moved = cursor is not None and cursor.path != fitting(str(run.path))
    if cursor is not None:
        reason = _outdated(cursor, content)
        if reason:
            return _changed(run, cursor, reason)
        if cursor.stat == _look(run, content) and cursor.replacing is None and not moved:
            return Delta(run=run, kind=DeltaKind.SAME, after=cursor, before=cursor)
    seen: Changed | None = None
    for _ in range(LOOKS):
        try:
            return _read_on(run, cursor, content, options, budget)
        except Changed as change:
            assert cursor is not None
            if moved:
                raise IdentityError(
                    f"{run.path} has the identity {run.identity} of a run that was exported from {cursor.path}, "
                    f"but not its rows ({change.reason}).",
                    hint=f"Give it its own identity: bridge export {run.path} --as NEW_ID",
                ) from change
            if seen is not None and seen.evidence == change.evidence:
                if change.keeps:
                    reason = f"{change.reason}; the target keeps its points"
                    return Delta(run=run, kind=DeltaKind.SAME, after=cursor, before=cursor, reason=reason)
                return _changed(run, cursor, change.reason)
            seen = change
        time.sleep(BETWEEN_LOOKS)
    assert cursor is not None
    reason = "metrics.csv is being rewritten"
    return Delta(run=run, kind=DeltaKind.SAME, after=cursor, before=cursor, reason=reason)


def _changed(run: Run, cursor: Cursor, reason: str) -> Delta:
    return Delta(run=run, kind=DeltaKind.CHANGED, after=cursor, before=cursor, reason=reason)


def _look(run: Run, content: ContentOptions) -> tuple[int, int, int, int]:
    """Return (size, mtime in nanoseconds) of metrics.csv and of media.jsonl, zeros for an absent file."""
    if run.event_files:
        return (*EventTable(run.path, run.event_files).stat, 0, 0)
    names = ("metrics.csv", "media.jsonl") if content.media else ("metrics.csv",)
    found = [0, 0, 0, 0]
    for place, name in enumerate(names):
        if name in run.files:
            with contextlib.suppress(OSError):
                status = os.stat(run.files[name].path)  # noqa: PTH116 - asked for every run of every export
                found[2 * place : 2 * place + 2] = status.st_size, status.st_mtime_ns
    return found[0], found[1], found[2], found[3]


def _outdated(cursor: Cursor, content: ContentOptions) -> str:
    """Return why a target with `cursor` cannot be continued; "" if it can."""
    if not cursor.complete:
        return "an earlier export was stopped before the target was complete"
    mine, theirs = content.differences(), dict(cursor.content)
    if mine == theirs:
        return ""

    def value(options: Mapping[str, object], key: str) -> str:
        found = options.get(key, "the default")
        return " ".join(map(str, found)) if isinstance(found, list) else str(found)

    differing = [key for key in dict.fromkeys((*mine, *theirs)) if mine.get(key) != theirs.get(key)]
    changes = (f"{key.replace('_', '-')} (was {value(theirs, key)}, is {value(mine, key)})" for key in differing)
    return f"made with other options: {', '.join(changes)}"


def _read_on(run: Run, cursor: Cursor | None, content: ContentOptions, options: ReadOptions, budget: int) -> Delta:
    """Read the delta past `cursor`, which was made with these options. Raises Changed if the file does not fit it."""
    with open_table(run) as table:
        state, source = locate(run, cursor, content, table, chunk=chunk_size(options.limit))
        if table is None or table.layout is None:
            return _with_media(_nothing(run, cursor, content), (0, 0))
        first, begin = state.rows, state.offset
        rows, more = _take_portion(source if options.newest else without_last_step(source, run), options.limit)
        remember = _estimate_times(state, table, rows, cursor, more=more)
        if not state.is_known and cursor is not None:
            learn_last_points(state, cursor, table, rows)
        last_steps = state.last_points.steps()
        blocks = [state.timed(block) for part in rows if (block := state.take(part)) is not None]
        kind = DeltaKind.NEW if cursor is None else DeltaKind.APPEND if state.rows > first else DeltaKind.SAME
        low, reason = None, ""
        notices = state.notices(table)
        if cursor is None and not more and not run.event_files:
            notices += other_run_notice(run, state.last_points.points())
        following: int | None = None
        if state.late:
            found = _apply_overlap(state, table, rows, last_steps, blocks, options, budget)
            blocks, low, reason = found.blocks, found.low, found.reason
            notices += superseded_notice(found.superseded)
        if cursor is not None and cursor.replacing is not None:
            low = cursor.replacing if low is None else min(low, cursor.replacing)
        if low is not None:
            reason = reason or "an earlier export was stopped while it replaced points"
            if cursor is not None and not options.replaces:
                delta = Delta(run=run, kind=DeltaKind.REWIND, after=cursor, before=cursor, reason=reason)
                return replace(delta, metrics=state.last_points.names)
            kind = DeltaKind.REWIND
            # New points of other metrics may come at steps before those that changed.
            low = min(low, *(int(block.step.min()) for block in blocks)) if blocks else low
            blocks, following = _replacement(state, table, low, budget)
        waits = not more and state.rows < table.total
        delta = Delta(
            run=run,
            kind=kind,
            after=state.cursor(table, cursor).with_(replacing=following),
            before=cursor,
            blocks=tuple(blocks),
            replace_from=low,
            reason=reason,
            more=more or following is not None,
            metrics=state.last_points.names,
            remember=remember,
            notices=tuple(notices),
        )
        if isinstance(table, EventTable):  # pictures come with the rows
            return _with_media(delta, (0, 0) if waits or delta.more else table.stat, table, begin)
        return delta if delta.more else _with_media(delta, (0, 0) if waits else table.stat)


def _parts(source: Iterable[Rows], limit: int) -> Iterator[tuple[Rows, int]]:
    """Yield the rows of `source` in parts that weigh about `limit` at most, each with its weight."""
    for rows in source:
        yield from rows.split(limit)


def _take_portion(source: Iterator[Rows], limit: int) -> tuple[list[Rows], bool]:
    """Take rows with about `limit` points from `source`; return them, and if others follow."""
    taken: list[Rows] = []
    weight = 0
    for rows, added in _parts(source, limit):
        if any(map(len, taken)) and weight + added > limit + limit // 4:
            return taken, True
        taken.append(rows)
        weight += added
    return taken, False


def _estimate_times(
    state: ReadState, table: Table, rows: Sequence[Rows], cursor: Cursor | None, *, more: bool
) -> Cursor | None:
    """Estimate the times of `rows` if the run has none; return the cursor to remember before they are used."""
    end = rows[-1].first + len(rows[-1]) if rows else state.rows
    if state.estimate is None or end <= state.estimate.anchors[-1][0]:
        return None
    total = end
    if more:
        total += table.lines_between(rows[-1].end, table.size)
    state.estimate = state.estimate.reaching(total, state.run)
    base = cursor or Cursor(identity=state.run.identity, path=str(state.run.path), content=state.content.differences())
    return base.with_(anchors=state.estimate.anchors, stat=None)


# Rewinds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _NewPoints:
    """New points after the overlap rule.

    `superseded` points were replaced within their session. `low` is the lowest step at which the points of the target
    change, None if the new points only come in addition to those that it holds. `reason` says why they change.
    """

    blocks: list[Block]
    superseded: int
    low: int | None = None
    reason: str = ""


def _apply_overlap(
    state: ReadState,
    table: Table,
    rows: Sequence[Rows],
    last_steps: Mapping[str, int],
    blocks: Sequence[Block],
    options: ReadOptions,
    budget: int,
) -> _NewPoints:
    """Apply the overlap rule to `blocks`, the points of the new `rows`, among them late ones.

    `last_steps` are the last steps of the metrics before these rows. Late points that come at or before them are
    compared with the points of the rows before, which are read again.
    """
    touched = {
        name: last_steps[name]
        for name, late in state.late.items()
        if name in last_steps and late.low <= last_steps[name]
    }
    earlier: list[Block] = []
    if touched:
        earlier = _earlier_points(state, table, rows[0].first, _steps_up_to(blocks, touched), budget)
    both = merge([*earlier, *blocks])
    assert both is not None
    old = sum(len(block.row) for block in earlier)
    # The first `old` rows of `both` are rows that the target knows. `then` are their points that counted without the
    # new rows, `now` the points that count with them.
    superseded = Superseded(session_starts(state.run, table), first=rows[0].first)
    now = counting(both, superseded)
    superseded.close()
    then = counting(both.rows(slice(0, old)))
    gone = then & ~now[:, :old]
    new = now[:, old:]
    added = list(by_step(both.rows(slice(old, None)), new))
    changed = [both.step[:old][gone.any(axis=0)]]
    if options.ordered or gone.any():
        steps = both.step[old:]
        changed += [
            steps[new[metric] & (steps <= touched[name])] for metric, name in enumerate(both.names) if name in touched
        ]
    low = min((int(steps.min()) for steps in changed if len(steps)), default=None)
    if low is None:
        return _NewPoints(added, superseded.count)
    return _NewPoints(added, superseded.count, low, _reason(state, table, rows, touched, int(gone.sum())))


def _steps_up_to(blocks: Sequence[Block], last_steps: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """Return for some metrics the steps of their points in `blocks` up to the last step that is given."""
    found = {}
    for name, last in last_steps.items():
        steps = [block.step[block.present[block.names.index(name)]] for block in blocks if name in block.names]
        every = np.unique(np.concatenate(steps))
        found[name] = every[every <= last]
    return found


def _earlier_points(
    state: ReadState, table: Table, rows: int, steps: Mapping[str, NDArray[np.int64]], budget: int
) -> list[Block]:
    """Return the points of some metrics at some steps in the first `rows` rows; those that count are among them."""
    found: list[Block] = []
    size = 0
    again = ReadState.begin(state.run, state.content)
    again.estimate = state.estimate
    for part in table.rows():
        block = again.select(part.part(0, min(len(part), rows - part.first)))
        if block is not None:
            present = block.present.copy()
            for metric, name in enumerate(block.names):
                present[metric] &= np.isin(block.step, steps[name]) if name in steps else False
            chosen = block.where(present)
            if chosen is not None:
                found.append(state.timed(chosen))
                size += chosen.nbytes
        if size > budget:
            # A point that does not count among these rows does not count with later ones either.
            whole = merge(found)
            assert whole is not None
            kept = whole.where(counting(whole))
            found, size = [kept] if kept is not None else [], 0
        if again.rows >= rows:
            break
    return found


def _reason(state: ReadState, table: Table, rows: Sequence[Rows], touched: Mapping[str, int], gone: int) -> str:
    """Return, for a person, where the rewind is and how far it goes."""
    name, late = min(((name, state.late[name]) for name in touched), key=lambda item: (item[1].row, item[0]))
    part = next(part for part in rows if part.first <= late.row < part.first + len(part))
    place = table.place(part.offset(late.row - part.first))
    words = [f"{place}: {name} goes back from step {touched[name]} to step {late.step}"]
    low = min(state.late[name].low for name in touched)
    if low < late.step:
        words.append(f", then as far as step {low}")
    if len(touched) > 1:
        words.append(
            f", and so do {len(touched) - 1} more metrics" if len(touched) > 2 else ", and so does another metric"
        )
    if gone:
        words.append(f"; {gone} points no longer count" if gone > 1 else "; 1 point no longer counts")
    return "".join(words)


def _replacement(state: ReadState, table: Table, low: int, budget: int) -> tuple[list[Block], int | None]:
    """Return the points at step `low` and later that count in the rows up to `state`, and the step that follows them.

    These are all points (None follows), or those of as many of the lowest steps as fit into memory.
    """
    pieces = _Pieces(table, state, budget)
    again = ReadState.begin(state.run, state.content)
    for rows in table.rows():
        part = rows.part(0, min(len(rows), state.rows - rows.first))
        before = again.last_time
        pieces.add(part, before, again.select(part))
        if again.rows >= state.rows:
            break
    group, following = next(resolve(pieces.read, low, budget=budget))
    return list(group), following


@dataclass(slots=True)
class _Piece:
    """Consecutive rows: their place in the file, their digest, the time before them, and the range of their steps.

    `block` are their points, None if there are none or they are no longer in memory (`low` is above `high` if none).
    """

    layout: Layout
    first: int
    start: int
    end: int
    rows: int
    digest: int
    last_time: float | None
    low: int
    high: int
    block: Block | None


class _Pieces:
    """The rows of a file in pieces: in memory if all fit into a budget; else they are read again when asked for."""

    def __init__(self, table: Table, state: ReadState, budget: int) -> None:
        self._table = table
        self._state = state
        self._room = budget
        self._pieces: list[_Piece] = []

    def add(self, rows: Rows, last_time: float | None, block: Block | None) -> None:
        """Add `rows`, of which `block` are the points; `last_time` is the time before them."""
        low, high = (int(block.step.min()), int(block.step.max())) if block is not None else (0, -1)
        if block is not None and self._room >= 0:
            self._room -= block.nbytes
            if self._room < 0:
                for piece in self._pieces:
                    piece.block = None
        held = block if self._room >= 0 else None
        place = rows.layout, rows.first, rows.start, rows.end, len(rows), rows.digest()
        self._pieces.append(_Piece(*place, last_time, low, high, held))

    def read(self, steps: StepRange) -> Iterator[Block]:
        """Yield the points of all pieces that may have some in this range of steps, in row order."""
        selecting = ReadState.begin(self._state.run, self._state.content)
        for piece in self._pieces:
            if piece.low > piece.high or not steps.may_hold(piece.low, piece.high):
                continue
            if piece.block is not None:
                yield self._state.timed(piece.block)
                continue
            selecting.last_time = piece.last_time
            for rows in self._read_again(piece):
                block = selecting.select(rows)
                if block is not None:
                    yield self._state.timed(block)

    def in_row_order(self) -> Iterator[tuple[Block | None, int]]:
        """Yield the points of each piece without repetitions, and the number of rows so far."""
        again = ReadState.begin(self._state.run, self._state.content)
        for piece in self._pieces:
            if self._room >= 0:
                yield self._timed(piece.block), piece.first + piece.rows
                continue
            for rows in self._read_again(piece):
                yield self._timed(again.take(rows)), rows.first + len(rows)

    def _timed(self, block: Block | None) -> Block | None:
        return None if block is None else self._state.timed(block)

    def _read_again(self, piece: _Piece) -> list[Rows]:
        """Return the rows of a piece. Raises RunDirectoryError if they are no longer the same."""
        found = list(self._table.rows(piece.layout, piece.start, piece.first, stop=piece.end))
        if sum(rows.digest() for rows in found) % MODULUS != piece.digest:
            raise RunDirectoryError(f"{self._table.name} changed while it was read.", hint="Export again.")
        return found


# From the beginning -------------------------------------------------------------------------------------------------


def read_whole(
    run: Run, content: ContentOptions, options: ReadOptions, *, anchors: Anchors = (), budget: int = BUDGET
) -> Iterator[Delta]:
    """Read everything in the run directory of `run`, in deltas of about `options.limit` points; the first is NEW.

    `anchors` are those that a target remembers, for estimated times. If each step of a metric comes once and steps
    rise, points come in row order, and each delta has a cursor that can be continued. Else points come by step, and
    only the last cursor is complete. Memory stays near a few times `budget` bytes: what does not fit is read again.
    Raises RunDirectoryError if a file cannot be read, or changes in the meantime.
    """
    with open_table(run) as table:
        if table is None or table.layout is None:
            yield _with_media(_nothing(run, None, content), (0, 0))
            return
        state = ReadState.begin(run, content)
        state.layout, state.offset = table.layout, table.layout.end
        pieces = _Pieces(table, state, budget)
        marks: list[Cursor] = []
        weight = 0
        source = table.rows(chunk=chunk_size(options.limit))
        if not options.newest:
            source = without_last_step(source, run)
        for rows, added in _parts(source, options.limit):
            if weight and weight + added > options.limit + options.limit // 4:
                marks.append(state.cursor(table, None))
                weight = 0
            before = state.last_time
            pieces.add(rows, before, state.take(rows))
            weight += added
        if state.estimate is not None:
            usable = tuple(anchor for anchor in anchors if anchor[0] <= table.total)
            state.estimate = Estimate.begin(run, usable).reaching(table.total, run)
        end = state.cursor(table, None)
        superseded = Superseded(session_starts(run, table))
        if state.late:
            portions = _by_step(pieces, options.limit, budget, end, superseded)
        else:
            portions = _in_row_order(pieces, [*marks, end])
        delta = Delta(run=run, kind=DeltaKind.NEW, after=end, metrics=state.last_points.names)
        if state.estimate is not None:
            delta = replace(delta, remember=end.with_(**_UNREAD))
        for blocks, after in portions:
            is_last = after is end
            delta = replace(
                delta,
                blocks=tuple(blocks),
                after=after.with_(anchors=end.anchors),
                more=not is_last,
            )
            if is_last:
                notices = (*state.notices(table), *superseded_notice(superseded.count))
                if not run.event_files:
                    notices += tuple(other_run_notice(run, state.last_points.points()))
                delta = replace(delta, notices=notices)
                stat = table.stat if state.rows == table.total else (0, 0)
                delta = _with_media(delta, stat, table if isinstance(table, EventTable) else None)
            yield delta
            delta = replace(delta, kind=DeltaKind.APPEND, remember=None)


def _in_row_order(pieces: _Pieces, cursors: Sequence[Cursor]) -> Iterator[tuple[list[Block], Cursor]]:
    """Yield the points up to each of `cursors`."""
    blocks: list[Block] = []
    waiting = list(cursors)
    for block, rows in pieces.in_row_order():
        if block is not None:
            blocks.append(block)
        if len(waiting) > 1 and rows >= waiting[0].rows:
            yield blocks, waiting.pop(0)
            blocks = []
    yield blocks, cursors[-1]


def _by_step(
    pieces: _Pieces, limit: int, budget: int, end: Cursor, superseded: Superseded
) -> Iterator[tuple[list[Block], Cursor]]:
    """Yield the points that count, by step; the last ones with the cursor `end`, the others with none to go on from."""
    unfinished = end.with_(**_UNREAD, complete=False)
    blocks: list[Block] = []
    weight = 0
    for group, _ in resolve(pieces.read, budget=budget, superseded=superseded):
        for block in group:
            for part in _cut(block, limit):
                if blocks and weight + part.points > limit + limit // 4:
                    yield blocks, unfinished
                    blocks, weight = [], 0
                blocks.append(part)
                weight += part.points
    yield blocks, end


_UNREAD = {"rows": 0, "offset": 0, "header": "", "window": "", "digest": "", "last_step": None} | {
    "last_points": None,
    "seen": 0,
    "last_time": None,
    "columns_at": 0,
    "files": {},
}
"""The fields of a cursor that say how far metrics.csv was read, before its first row."""


def _cut(block: Block, limit: int) -> Iterator[Block]:
    """Yield `block` in parts of about `limit` points at most."""
    if block.points <= limit:
        yield block
        return
    so_far = np.cumsum(np.count_nonzero(block.present, axis=0))
    begin, passed = 0, 0
    while begin < len(so_far):
        end = max(begin + 1, int(np.searchsorted(so_far, passed + limit, side="right")))
        yield block.rows(slice(begin, end))
        begin, passed = end, int(so_far[end - 1])


# Media --------------------------------------------------------------------------------------------------------------


def _nothing(run: Run, cursor: Cursor | None, content: ContentOptions) -> Delta:
    """Return the delta of a run without rows.

    Its digest is that of no rows: a cursor without any digest is of a target that was made and not yet filled.
    """
    after = cursor or Cursor(identity=run.identity, path="", digest=to_hex(0))
    after = after.with_(path=str(run.path), content=content.differences(), stat=None)
    return Delta(run=run, kind=DeltaKind.NEW if cursor is None else DeltaKind.SAME, after=after, before=cursor)


def _with_media(delta: Delta, stat: tuple[int, int], table: EventTable | None = None, begin: int = 0) -> Delta:
    """Return `delta`, the last one for now, with the media past its `before`.

    `stat` is that of metrics.csv, (0, 0) if not all of the file is in the target then. The pictures in event files are
    those of `table` from byte `begin` on. Media that no longer count mean a rebuild. Raises Changed if the media lines
    that `before` covers have changed.
    """
    run, before, after = delta.run, delta.before, delta.after
    if "media" in after.content:
        return replace(delta, after=after.with_(stat=(*stat, 0, 0) if _is_whole(run, stat) else None))
    media = read_media(run, before) if table is None else read_pictures(run, table, before, begin, after.offset)
    if media.removed and before is not None:
        return _changed(run, before, "; ".join(filter(None, (delta.reason, media.reason))))
    kind = delta.kind
    if kind is DeltaKind.SAME and before is not None and media.lines > before.media_lines:
        kind = DeltaKind.APPEND
    return replace(
        delta,
        kind=kind,
        after=after.with_(
            stat=(*stat, *media.stat) if _is_whole(run, stat) else None,
            media_lines=media.lines,
            media_offset=media.offset,
            media_digest=media.digest,
        ),
        media=media.events,
        notices=(*delta.notices, *media.notices),
    )


def _is_whole(run: Run, stat: tuple[int, int]) -> bool:
    return stat != (0, 0) or not (run.event_files or "metrics.csv" in run.files)
