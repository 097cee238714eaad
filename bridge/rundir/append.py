"""Read what lies past a cursor into a delta."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bridge.cursor import Cursor
from bridge.model import Delta, DeltaKind, Notice, NoticeKind
from bridge.rundir.conflicts import Settled, settle
from bridge.rundir.csv_rows import opened
from bridge.rundir.media import MediaDelta, read_media
from bridge.rundir.place import Changed, begin
from bridge.rundir.portion import Portion, block_size, hold_back, next_portion
from bridge.rundir.series_state import metrics_of
from bridge.rundir.tails import make_known
from bridge.rundir.texts import split_texts
from bridge.rundir.thin import bucket_bits, thinned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.cursor import ContentOptions
    from bridge.model import Block, Run
    from bridge.rundir.csv_rows import Table
    from bridge.rundir.place import Begun
    from bridge.rundir.reading import Reading
    from bridge.rundir.rows import Rows
    from bridge.rundir.wanted import ReadOptions

__all__ = ["append", "count_rows", "media_after", "nothing", "thinning_loss"]


def append(run: Run, cursor: Cursor | None, content: ContentOptions, wanted: ReadOptions) -> Delta:
    """The delta past `cursor`, of which it is known only that it was made with these options.

    Raises Changed where what it covers is there no more, or no longer fits what follows.
    """
    with opened(run) as table:
        begun = begin(run, cursor, content, table, block=block_size(wanted.limit))
        if table is None or not begun.first_line:
            return _with_media(nothing(run, cursor, content), Settled(()), (0, 0))
        reading, first = begun.reading, begun.reading.rows
        bits = _bits(table, begun, cursor)
        portion = next_portion(table, begun.source, begin=first, offset=reading.offset, limit=wanted.limit, bucket=bits)
        remember = _estimate(table, reading, portion, cursor)
        if wanted.hold_back:
            hold_back(portion, run, first)
        if run.running and not portion.more:
            portion.align(first, bits)
        settled = _take(table, reading, portion.rows, cursor, ordered=wanted.ordered)
        after = reading.cursor(table, first_line=begun.first_line, before=cursor)
        notices = reading.notices(table)
        stat = (0, 0) if portion.held or portion.more else table.stat
    blocks, left_out = _thin(settled, bits, content)
    texts = {key: text for rows in portion.rows for key, text in rows.texts.items()}
    numbers, found = split_texts(blocks, texts)
    delta = Delta(
        run=run,
        kind=DeltaKind.NEW if cursor is None else DeltaKind.APPEND if reading.rows > first else DeltaKind.SAME,
        after=after.with_(stat=None, bucket=bits),
        before=cursor,
        blocks=numbers,
        texts=found,
        more=portion.more,
        metrics=metrics_of(reading.series.names),
        remember=remember,
        lowers=sum(flag.count for flag in reading.flagged.values()),
        notices=(*notices, *left_out),
    )
    return _with_media(delta, settled, stat)


def nothing(run: Run, cursor: Cursor | None, content: ContentOptions) -> Delta:
    """The delta of a run without rows."""
    after = cursor or Cursor(identity=run.identity, path="")
    after = after.with_(path=str(run.path), content=content.differences(), stat=None)
    return Delta(run=run, kind=DeltaKind.NEW if cursor is None else DeltaKind.SAME, after=after, before=cursor)


def _bits(table: Table, begun: Begun, cursor: Cursor | None) -> int:
    """The k of `--max-points` for all rows there are by now. Raises Changed where what was sent does not fit it."""
    most = begun.reading.content.max_points
    if most is None or begun.reading.layout is None:
        return 0
    reading = begun.reading
    rows = count_rows(table, reading)
    bits = bucket_bits(rows, most)
    if cursor is None or not cursor.rows or rows == cursor.rows:
        return bits
    evidence = (table.stat, rows)
    if bits != cursor.bucket:
        was, now = 1 << cursor.bucket, 1 << bits
        raise Changed(f"{rows} rows need buckets of {now} for --max-points {most}, not of {was}", evidence)
    if cursor.rows % (1 << bits):
        raise Changed(f"the run went on within a bucket of --max-points {most} that was sent at its end", evidence)
    return bits


def count_rows(table: Table, reading: Reading) -> int:
    """How many complete rows `table` has, of which `reading` has taken some."""
    assert reading.layout is not None
    rows = reading.rows
    for piece in table.rows(reading.layout, reading.offset, reading.rows):
        rows = piece.first + len(piece)
    return rows


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


def _thin(settled: Settled, bits: int, content: ContentOptions) -> tuple[Sequence[Block], list[Notice]]:
    if not bits or settled.reason:
        return settled.blocks, []
    blocks = list(thinned(lambda: iter(settled.blocks), bits))
    lost = sum(block.points for block in settled.blocks) - sum(block.points for block in blocks)
    return blocks, thinning_loss(lost, bits, content)


def thinning_loss(points: int, bits: int, content: ContentOptions) -> list[Notice]:
    """What is said of `points` that were left out for `--max-points`."""
    if not points:
        return []
    detail = f"left out by --max-points {content.max_points}, which keeps the extremes of each {1 << bits} rows"
    return [Notice(NoticeKind.LEFT_OUT, "points", detail, points)]


def _with_media(delta: Delta, settled: Settled, stat: tuple[int, int]) -> Delta:
    """`delta` with its kind settled and, where it is the last one, with the media."""
    if settled.reason:
        thin = delta.after.bucket > 0
        kind = DeltaKind.CHANGED if settled.removed is None or thin else DeltaKind.REWIND
        delta = replace(
            delta, kind=kind, reason=settled.reason, removed=None if thin else settled.removed, bests=settled.bests
        )
        if kind is DeltaKind.CHANGED and delta.before is not None:
            return replace(delta, blocks=(), texts=(), bests=(), after=delta.before, more=False, remember=None)
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
