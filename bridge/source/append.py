"""Read the rows past a cursor into a delta."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.model import Cursor, Delta, DeltaKind
from bridge.source.conflicts import Settled, settle
from bridge.source.csv_rows import opened
from bridge.source.place import begin
from bridge.source.portion import Portion, block_size, hold_back, next_portion
from bridge.source.series_state import metrics_of
from bridge.source.tails import make_known
from bridge.source.texts import split_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.model import Run, Shape
    from bridge.source.csv_rows import Table
    from bridge.source.place import Begun
    from bridge.source.reading import Reading
    from bridge.source.rows import Rows
    from bridge.source.wanted import Wanted

__all__ = ["append"]


def append(run: Run, cursor: Cursor | None, shape: Shape, wanted: Wanted) -> Delta:
    """The delta past `cursor`, of which it is known only that it was made with these options.

    Raises Changed where what it covers is there no more.
    """
    with opened(run) as table:
        begun = begin(run, cursor, shape, table, block=block_size(wanted.limit))
        reading, portion, settled, remember = begun.reading, Portion([]), Settled(()), None
        first = reading.rows
        if table is not None and begun.first_line:
            portion = next_portion(table, begun.source, begin=first, offset=reading.offset, limit=wanted.limit)
            remember = _estimate(table, reading, portion, cursor)
            if wanted.hold_back:
                hold_back(portion, run, first)
            settled = _take(table, reading, portion.rows, cursor, ordered=wanted.ordered)
        after = _after(table, begun, cursor)
        if table is not None and not portion.more and not portion.held:
            after = after.with_(stat=(*table.stat, 0, 0))
        losses = () if table is None else tuple(reading.losses(table))
    texts = {key: text for rows in portion.rows for key, text in rows.texts.items()}
    blocks, found = split_texts(settled.blocks, texts)
    return Delta(
        run=run,
        kind=_kind(cursor, settled, news=reading.rows > first),
        after=after,
        before=cursor,
        blocks=blocks,
        texts=found,
        removed=settled.removed,
        reason=settled.reason,
        more=portion.more,
        metrics=metrics_of(reading.series.names),
        remember=remember,
        lowers=sum(flag.count for flag in reading.flagged.values()),
        losses=losses,
    )


def _kind(cursor: Cursor | None, settled: Settled, *, news: bool) -> DeltaKind:
    if cursor is None:
        return DeltaKind.NEW
    if settled.reason:
        return DeltaKind.CHANGED if settled.removed is None else DeltaKind.REWIND
    return DeltaKind.APPEND if news else DeltaKind.SAME


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
        identity=reading.run.identity, path=str(reading.run.path), shape=reading.shape.differences()
    )
    return base.with_(anchors=reading.estimate.anchors, stat=None)


def _take(table: Table, reading: Reading, portion: Sequence[Rows], cursor: Cursor | None, *, ordered: bool) -> Settled:
    """Let `reading` go through `portion`; its points, the overlap rule applied."""
    if not reading.known and cursor is not None and portion:
        make_known(table, reading, cursor, portion)
    before = reading.series.copy()
    blocks = [made for rows in portion if (made := reading.block(reading.take(rows))) is not None]
    return settle(table, reading, before, portion, blocks, ordered=ordered)


def _after(table: Table | None, begun: Begun, cursor: Cursor | None) -> Cursor:
    reading = begun.reading
    if table is None or not begun.first_line:
        return (cursor or Cursor(identity=reading.run.identity, path="")).with_(
            path=str(reading.run.path), shape=reading.shape.differences(), stat=None
        )
    return reading.cursor(table, first_line=begun.first_line, before=cursor).with_(stat=None)
