"""Read what lies past a cursor into a delta."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bridge.cursor import Cursor
from bridge.model import Delta, DeltaKind
from bridge.rundir.conflicts import Settled, replacement, settle
from bridge.rundir.csv_rows import opened
from bridge.rundir.media import MediaDelta, read_media
from bridge.rundir.place import begin
from bridge.rundir.portion import Portion, block_size, hold_back, next_portion
from bridge.rundir.series_state import metrics_of
from bridge.rundir.tails import make_known
from bridge.rundir.texts import without_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.cursor import ContentOptions
    from bridge.model import Run
    from bridge.rundir.csv_rows import Table
    from bridge.rundir.reading import Reading
    from bridge.rundir.rows import Rows
    from bridge.rundir.wanted import ReadOptions

__all__ = ["append", "media_after", "nothing"]


def append(run: Run, cursor: Cursor | None, content: ContentOptions, wanted: ReadOptions) -> Delta:
    """The delta past `cursor`, of which it is known only that it was made with these options.

    Raises Changed where what it covers is there no more, or no longer fits what follows.
    """
    with opened(run) as table:
        begun = begin(run, cursor, content, table, block=block_size(wanted.limit))
        if table is None or not begun.first_line:
            return _with_media(nothing(run, cursor, content), Settled(()), (0, 0))
        reading, first = begun.reading, begun.reading.rows
        portion = next_portion(table, begun.source, begin=first, offset=reading.offset, limit=wanted.limit)
        remember = _estimate(table, reading, portion, cursor)
        if wanted.hold_back:
            hold_back(portion, run, first)
        settled = _take(table, reading, portion.rows, cursor, ordered=wanted.ordered)
        if wanted.replaces:
            settled = _replaced(table, reading, settled, cursor)
        after = reading.cursor(table, first_line=begun.first_line, before=cursor)
        notices = reading.notices(table)
        stat = (0, 0) if portion.held or portion.more else table.stat
    delta = Delta(
        run=run,
        kind=DeltaKind.NEW if cursor is None else DeltaKind.APPEND if reading.rows > first else DeltaKind.SAME,
        after=after.with_(stat=None, replacing=None),
        before=cursor,
        blocks=without_texts(settled.blocks),
        more=portion.more,
        metrics=metrics_of(reading.series.names),
        remember=remember,
        lowers=sum(flag.count for flag in reading.flagged.values()),
        notices=tuple(notices),
    )
    return _with_media(delta, settled, stat)


def nothing(run: Run, cursor: Cursor | None, content: ContentOptions) -> Delta:
    """The delta of a run without rows."""
    after = cursor or Cursor(identity=run.identity, path="")
    after = after.with_(path=str(run.path), content=content.differences(), stat=None)
    return Delta(run=run, kind=DeltaKind.NEW if cursor is None else DeltaKind.SAME, after=after, before=cursor)


def _estimate(table: Table, reading: Reading, portion: Portion, cursor: Cursor | None) -> Cursor | None:
    """Set the anchors that the times of `portion` need; the cursor that must be remembered before they are used."""
    end = portion.end(reading.rows)
    if reading.estimate is None or not portion.rows or end <= reading.estimate.anchors[-1][0]:
        return None
    total = end
    if portion.more:
        last = portion.rows[-1]
        total += sum(map(len, table.rows(last.layout, last.end, end)))
    reading.estimate = reading.estimate.reaching(total, reading.run)
    base = cursor or Cursor(
        identity=reading.run.identity, path=str(reading.run.path), content=reading.content.differences()
    )
    return base.with_(anchors=reading.estimate.anchors, stat=None)


def _take(table: Table, reading: Reading, portion: Sequence[Rows], cursor: Cursor | None, *, ordered: bool) -> Settled:
    """Let `reading` go through `portion`; its points, the overlap rule applied."""
    if not reading.known and cursor is not None:
        make_known(table, reading, cursor, portion)
    before = reading.series.copy()
    blocks = [made for rows in portion if (made := reading.block(reading.take(rows))) is not None]
    return settle(table, reading, before, portion, blocks, ordered=ordered)


def _replaced(table: Table, reading: Reading, settled: Settled, cursor: Cursor | None) -> Settled:
    """Return `settled` as a target takes it that replaces points from a step on."""
    steps = [] if not settled.reason or settled.low is None else [settled.low]
    if cursor is not None and cursor.replacing is not None:
        steps.append(cursor.replacing)
    if not steps or (settled.reason and settled.low is None):
        return settled
    reason = settled.reason or "an earlier export was stopped while it replaced points"
    return Settled(replacement(table, reading, min(steps)), reason, low=min(steps))


def _with_media(delta: Delta, settled: Settled, stat: tuple[int, int]) -> Delta:
    """`delta` with its kind settled and, where it is the last one, with the media."""
    if settled.reason:
        kind = DeltaKind.CHANGED if settled.removed is None and settled.low is None else DeltaKind.REWIND
        delta = replace(delta, kind=kind, reason=settled.reason, removed=settled.removed, bests=settled.bests)
        delta = replace(delta, replace_from=settled.low if settled.removed is None else None)
        if kind is DeltaKind.CHANGED and delta.before is not None:
            return replace(delta, blocks=(), bests=(), after=delta.before, more=False, remember=None)
    if delta.more:
        return delta
    return media_after(delta, stat)


def media_after(delta: Delta, stat: tuple[int, int]) -> Delta:
    """`delta` with the media past its `before`; `stat` is metrics.csv's, (0, 0) where not all of it is in `delta`.

    Raises Changed where media lines that `before` covers are others now.
    """
    run, before, after = delta.run, delta.before, delta.after
    media = MediaDelta()
    if "media" not in after.content:
        media = read_media(run, before)
    whole = stat != (0, 0) or "metrics.csv" not in run.files
    after = after.with_(
        stat=(*stat, *media.stat) if whole else None,
        media_lines=media.lines,
        media_offset=media.offset,
        media_digest=media.digest,
    )
    kind = delta.kind
    if media.removed and kind is not DeltaKind.NEW:
        kind = DeltaKind.REWIND
    elif kind is DeltaKind.SAME and before is not None and media.lines > before.media_lines:
        kind = DeltaKind.APPEND
    return replace(
        delta,
        kind=kind,
        after=after,
        media=media.events,
        removed_media=media.removed,
        reason="; ".join(filter(None, (delta.reason, media.reason))),
        notices=(*delta.notices, *media.notices),
    )
