"""Read what a run directory holds: past a cursor (`read_delta`), or from the beginning (`read_whole`)."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from bridge.errors import IdentityError, RunDirectoryError, counted
from bridge.model import Cursor, Delta, DeltaKind, fitting
from bridge.rundir.event_runs import EventTable
from bridge.rundir.media import read_media, read_pictures
from bridge.rundir.metrics import CHUNK
from bridge.rundir.overlap import BUDGET, Replaced, StepRange, resolve
from bridge.rundir.resume import (
    Changed,
    ReadState,
    first_rows,
    learn_last_points,
    locate,
    open_table,
    session_starts,
    superseded_notices,
    without_last_step,
)
from bridge.rundir.rows import MODULUS, NO_ROWS, Estimate
from bridge.rundir.series import other_run_notices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from bridge.model import Block, Run
    from bridge.options import ContentOptions
    from bridge.rundir.resume import Table
    from bridge.rundir.rows import Anchors, Rows

LOOKS = 4
BETWEEN_LOOKS = 1.0
"""Seconds between two looks at a file that became shorter or changed: a program may just be rewriting it."""

Part = TypeVar("Part")


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

    The target at `cursor` is complete and was made with the options `content`. Nothing is opened if size and mtime are
    the cursor's, and of a file that grew only the new bytes are parsed. The kind is CHANGED if the target has to be
    rebuilt, because the file no longer holds what the cursor covers. `budget` is about how many bytes of rows are in
    memory while a rewind is read. Raises IdentityError if the directory moved and holds other rows, and
    RunDirectoryError if a file cannot be read.
    """
    moved = cursor is not None and cursor.path != fitting(str(run.path))
    if cursor is not None and cursor.stat == _file_stats(run, content) and cursor.replacing is None and not moved:
        return _empty_delta(run, cursor)
    seen: Changed | None = None
    for _ in range(LOOKS):
        try:
            return _read_past(run, cursor, content, options, budget)
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
                    return _empty_delta(run, cursor, f"{change.reason}; the target keeps its points")
                return _empty_delta(run, cursor, change.reason, DeltaKind.CHANGED)
            seen = change
        time.sleep(BETWEEN_LOOKS)
    assert cursor is not None
    return _empty_delta(run, cursor, "metrics.csv is being rewritten")


def _empty_delta(run: Run, cursor: Cursor, reason: str = "", kind: DeltaKind = DeltaKind.SAME) -> Delta:
    return Delta(run=run, kind=kind, after=cursor, before=cursor, reason=reason)


def _file_stats(run: Run, content: ContentOptions) -> tuple[int, int, int, int]:
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


def _read_past(run: Run, cursor: Cursor | None, content: ContentOptions, options: ReadOptions, budget: int) -> Delta:
    """Read the delta past `cursor`. Raises Changed if the file does not fit it."""
    with open_table(run) as table:
        state = locate(run, cursor, content, table)
        if table is None or table.layout is None:
            return _without_rows(run, cursor, content)
        first, begin = state.rows, state.offset
        rows: list[Rows] = []
        more = False
        for part, begins_next in _by_weight(_parts(state, table, options), options.limit):
            if begins_next:
                more = True
                break
            rows.append(part)
        remember = _estimate_times(state, table, rows, cursor, more=more)
        if cursor is not None and len(state.last_points) < cursor.seen:
            learn_last_points(state, cursor, table, rows)
        last_points = state.last_points.points()
        blocks = [state.timed(block) for part in rows if (block := state.take(part)) is not None]
        notices = state.notices(table)
        if cursor is None and not more:
            notices += other_run_notices(run, state.last_points.points())
        delta = Delta(
            run=run,
            kind=DeltaKind.NEW if cursor is None else DeltaKind.APPEND if state.rows > first else DeltaKind.SAME,
            after=state.cursor(table, cursor),
            before=cursor,
            blocks=tuple(blocks),
            more=more,
            metrics=state.last_points.names,
            remember=remember,
            notices=tuple(notices),
        )
        waits = not more and state.rows < table.total
        if state.late or (cursor is not None and cursor.replacing is not None):
            delta = _with_overlap(delta, state, table, rows, last_points, options, budget)
        if delta.kind is DeltaKind.REWIND and not options.replaces:
            return delta
        if delta.more and not isinstance(table, EventTable):
            return delta  # pictures in event files come with their rows, other media with the last delta
        return _with_media(delta, None if waits or delta.more else table.stat, table, begin)


def _parts(state: ReadState, table: Table, options: ReadOptions) -> Iterator[tuple[Rows, int]]:
    """Yield the rows after `state` in parts for deltas, each with its weight, without the rows that have to wait."""
    chunk = min(CHUNK, max(1 << 12, options.limit * 8))  # about as many bytes as the points of a delta take
    source = table.rows(state.layout, state.offset, state.rows, chunk=chunk)
    for rows in source if options.newest else without_last_step(source, state.run):
        yield from rows.split(options.limit)


def _by_weight(parts: Iterable[tuple[Part, int]], limit: int) -> Iterator[tuple[Part, bool]]:
    """Yield each of `parts`, given with their weights, and True if it begins a new delta of about `limit`."""
    weight = 0
    for part, added in parts:
        begins = weight > 0 and weight + added > limit + limit // 4
        weight = added if begins else weight + added
        yield part, begins


def _estimate_times(
    state: ReadState, table: Table, rows: Sequence[Rows], cursor: Cursor | None, *, more: bool
) -> Cursor | None:
    """Estimate the times of `rows` if the run has none; return the cursor to remember before they are used."""
    end = rows[-1].first + len(rows[-1]) if rows else state.rows
    if state.estimate is None or isinstance(table, EventTable) or end <= state.estimate.anchors[-1][0]:
        return None
    total = end
    if more:
        total -= table.lines_before(rows[-1].end)  # first, because offsets that rise are counted once
        total += table.lines_before(table.size)
    state.estimate = state.estimate.reaching(total, state.run)
    return (cursor or state.begun()).with_(anchors=state.estimate.anchors, stat=None)


# Rewinds ------------------------------------------------------------------------------------------------------------


def _with_overlap(
    delta: Delta,
    state: ReadState,
    table: Table,
    rows: Sequence[Rows],
    last_points: Mapping[str, tuple[int, float]],
    options: ReadOptions,
    budget: int,
) -> Delta:
    """Return `delta`, the points of the new `rows`, with the overlap rule applied; a REWIND if points must be replaced.

    `last_points` are those of the metrics before these rows. If late points come at or before their steps, the earlier
    rows are read again. A REWIND holds all points from the lowest changed step on. If they do not all fit into memory,
    it holds those of the lowest steps and sets `after.replacing`, where the next delta goes on. While later rows may go
    back once more it holds no points, since they would be replaced a second time.
    """
    first = rows[0].first if rows else state.rows
    replacing = delta.before.replacing if delta.before is not None else None
    touched = {
        name: last_points[name][0]
        for name, late in state.late.items()
        if name in last_points and late.low <= last_points[name][0]
    }
    earlier, again = _Pieces(table, state, budget), ReadState.begin(state.run, state.content)
    for part in first_rows(table, first) if touched or replacing is not None else ():
        earlier.add(part, again)
    blocks = delta.blocks
    replaced = Replaced(session_starts(state.run, table), first)
    added: list[Block] = []
    # The first group of steps in which a point changes: all its points, and the step at which the next group begins.
    lowest: list[Block] = []
    following: int | None = None
    steps = [int(block.step.min()) for block in blocks] + [step for step in (replacing,) if step is not None]
    groups = resolve(lambda steps: chain(earlier.read(steps), blocks), replaced, min(steps), budget=budget)
    for group, high in groups:
        resolved = group if lowest else list(group)
        new = [each for block in resolved if (each := block.where(block.present & (block.row >= first))) is not None]
        added += new
        if not lowest and (new or replaced.gone or replacing is not None):
            lowest, following = list(resolved), high
        del resolved  # the next group takes as much memory
        if lowest and not state.late:
            break  # all new points count, and replace none
    delta = delta.with_(blocks=tuple(added), notices=(*delta.notices, *superseded_notices(replaced, table)))
    is_behind = options.ordered and any(
        int(block.step[present].min()) <= touched[name]
        for block in added
        for name, present in zip(block.names, block.present, strict=True)
        if name in touched
    )
    if replaced.gone or is_behind:
        reason = _reason(state, table, rows, touched, replaced.gone)
    elif replacing is not None:
        reason = "an earlier export was stopped while it replaced points"
    else:
        return delta
    delta = delta.with_(kind=DeltaKind.REWIND, reason=reason)
    if not options.replaces:
        return delta.with_(after=delta.before, blocks=(), notices=())
    # New points of other metrics may come at steps before those that changed.
    lows = (replacing, replaced.low, *(int(block.step.min()) for block in added))
    low = min(step for step in lows if step is not None)
    if isinstance(table, EventTable) and rows and table.goes_back(rows[0].start):
        # The next delta has the rows in the order of files. By this order other points may be the last ones.
        lowest, following, delta = [], low, delta.with_(after=delta.after.with_(last_points=None))
    elif following is not None and state.late and delta.more:
        lowest, following = [], low  # the rows that follow may go back too, and replace all of these points again
    changed = (block.where(block.present & (block.step >= low)) for block in lowest)
    return delta.with_(
        blocks=tuple(block for block in changed if block is not None),
        replace_from=low,
        more=delta.more or following is not None,
        after=delta.after.with_(replacing=following),
    )


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
        words.append(f"; {counted(gone, 'point')} no longer count{'s' if gone == 1 else ''}")
    return "".join(words)


@dataclass(slots=True)
class _Piece:
    """Consecutive rows: how to read them again, their digest, the time before them, and the range of their steps.

    `block` are their points, or None if these are no longer in memory. Without points, `low` is above `high`.
    `before` is the cursor before these rows if they begin a delta.
    """

    rows: Callable[[], Iterator[Rows]]
    digest: int
    last_time: float | None
    low: int
    high: int
    block: Block | None
    before: Cursor | None


class _Pieces:
    """The rows of a file in pieces: in memory if all fit into a budget; else they are read again when asked for."""

    def __init__(self, table: Table, state: ReadState, budget: int) -> None:
        self._table = table
        self._state = state
        self._room = budget
        self._pieces: list[_Piece] = []

    def add(self, rows: Rows, state: ReadState, before: Cursor | None = None) -> None:
        """Add `rows`, which follow `state`, and advance it; `before` is given if a delta begins with them."""
        again = partial(self._table.rows, rows.layout, rows.start, rows.first, stop=rows.end)
        last_time, block = state.last_time, state.take(rows)
        low, high = (int(block.step.min()), int(block.step.max())) if block is not None else (0, -1)
        if block is not None and self._room >= 0:
            self._room -= block.nbytes
            if self._room < 0:
                for piece in self._pieces:
                    piece.block = None
        kept = block if self._room >= 0 else None
        self._pieces.append(_Piece(again, rows.digest(), last_time, low, high, kept, before))

    def read(self, steps: StepRange) -> Iterator[Block]:
        """Yield the points of all pieces that may have some in this range of steps, in row order."""
        again = ReadState.begin(self._state.run, self._state.content)
        for piece in self._pieces:
            if piece.low <= piece.high and steps.may_hold(piece.low, piece.high):
                again.last_time = piece.last_time
                yield from self._points(piece, again.select)

    def in_row_order(self, end: Cursor) -> Iterator[tuple[list[Block], Cursor]]:
        """Yield the points of each delta without repetitions, and the cursor after it; `end` is the last cursor."""
        again = ReadState.begin(self._state.run, self._state.content)
        blocks: list[Block] = []
        for piece in self._pieces:
            if piece.before is not None:
                yield blocks, piece.before
                blocks = []
            blocks += self._points(piece, again.take)
        yield blocks, end

    def _points(self, piece: _Piece, points_of: Callable[[Rows], Block | None]) -> list[Block]:
        """Return the points of a piece; `points_of` gives those of rows that have to be read again.

        Raises RunDirectoryError if these are no longer the same.
        """
        if self._room >= 0:
            blocks = [piece.block]
        else:
            found = list(piece.rows())
            if sum(rows.digest() for rows in found) % MODULUS != piece.digest:
                place = f"{self._state.run.path}: {self._table.holder}"
                raise RunDirectoryError(f"{place} changed while the run was read.", hint="Export again.")
            blocks = [points_of(rows) for rows in found]
        return [self._state.timed(block) for block in blocks if block is not None]


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
            yield _without_rows(run, None, content)
            return
        state = locate(run, None, content, table)
        pieces = _Pieces(table, state, budget)
        for rows, begins in _by_weight(_parts(state, table, options), options.limit):
            pieces.add(rows, state, state.cursor(table, None) if begins else None)
        remember = None
        if state.estimate is not None:
            usable = tuple(anchor for anchor in anchors if anchor[0] <= table.total)
            state.estimate = Estimate.begin(run, usable).reaching(table.total, run)
            remember = state.begun()
        end = state.cursor(table, None)
        replaced = Replaced(session_starts(run, table))
        parts = (
            _by_step(pieces, options.limit, budget, state.begun().with_(complete=False), end, replaced)
            if state.late
            else pieces.in_row_order(end)
        )
        delta = Delta(run=run, kind=DeltaKind.NEW, after=end, metrics=state.last_points.names, remember=remember)
        for blocks, after in parts:
            delta = delta.with_(blocks=tuple(blocks), after=after.with_(anchors=end.anchors), more=after is not end)
            if not delta.more:
                notices = [*state.notices(table), *superseded_notices(replaced, table)]
                notices += other_run_notices(run, state.last_points.points())
                stat = table.stat if state.rows == table.total else None
                delta = _with_media(delta.with_(notices=tuple(notices)), stat, table)
            yield delta
            delta = delta.with_(kind=DeltaKind.APPEND, remember=None)


def _by_step(
    pieces: _Pieces, limit: int, budget: int, unfinished: Cursor, end: Cursor, replaced: Replaced
) -> Iterator[tuple[list[Block], Cursor]]:
    """Yield the points that count, by step; the last ones with the cursor `end`, the others with `unfinished`."""
    blocks: list[Block] = []
    groups = resolve(pieces.read, replaced, budget=budget, most=limit)
    for block, begins in _by_weight(((block, block.points) for group, _ in groups for block in group), limit):
        if begins:
            yield blocks, unfinished
            blocks = []
        blocks.append(block)
    yield blocks, end


# Media --------------------------------------------------------------------------------------------------------------


def _without_rows(run: Run, cursor: Cursor | None, content: ContentOptions) -> Delta:
    """Return the delta of a run that has no rows yet.

    Its cursor has the digest of no rows. A cursor without a digest is that of a target that was created but not filled.
    """
    after = cursor or Cursor(identity=run.identity, path="", digest=NO_ROWS)
    after = after.with_(path=str(run.path), content=content.differences(), stat=None)
    kind = DeltaKind.NEW if cursor is None else DeltaKind.SAME
    return _with_media(Delta(run=run, kind=kind, after=after, before=cursor), None if run.row_files else (0, 0))


def _with_media(delta: Delta, stat: tuple[int, int] | None, table: Table | None = None, begin: int = 0) -> Delta:
    """Return `delta`, which reaches the end of the rows, with the media past its `before`.

    `stat` is that of the files with rows, None if not all of their rows are in the target then. The pictures in event
    files are those of `table` from byte `begin` on. Media that no longer count mean a rebuild. Raises Changed if the
    media lines that `before` covers have changed.
    """
    run, before, after = delta.run, delta.before, delta.after
    if "media" in after.content:
        return delta.with_(after=after.with_(stat=None if stat is None else (*stat, 0, 0)))
    if isinstance(table, EventTable):
        media = read_pictures(run, table, before, begin, after.offset)
    else:
        media = read_media(run, before)
    if media.superseded and before is not None:
        reason = "; ".join(filter(None, (delta.reason, media.superseded)))
        return _empty_delta(run, before, reason, DeltaKind.CHANGED)
    kind = delta.kind
    if kind is DeltaKind.SAME and before is not None and media.lines > before.media_lines:
        kind = DeltaKind.APPEND
    return delta.with_(
        kind=kind,
        after=after.with_(
            stat=None if stat is None else (*stat, *media.stat),
            media_lines=media.lines,
            media_offset=media.offset,
            media_digest=media.digest,
        ),
        media=media.events,
        notices=(*delta.notices, *media.notices),
    )
