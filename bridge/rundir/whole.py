"""All that a run directory holds, in the one order that a target has whatever its history was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bridge.cursor import Cursor
from bridge.errors import RunDirectoryError
from bridge.model import Block, Delta, DeltaKind
from bridge.rundir.append import media_after, nothing
from bridge.rundir.csv_rows import opened
from bridge.rundir.digest import to_hex
from bridge.rundir.external_sort import BUDGET
from bridge.rundir.place import begin
from bridge.rundir.portion import block_size, empty_weight, held_back, pieces, text_weight
from bridge.rundir.reading import Reading
from bridge.rundir.resolve import resolved
from bridge.rundir.series_state import metrics_of
from bridge.rundir.texts import without_texts
from bridge.rundir.times import Estimate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bridge.cursor import ContentOptions
    from bridge.model import Notice, Run
    from bridge.rundir.csv_rows import Table
    from bridge.rundir.rows import Rows
    from bridge.rundir.times import Anchors
    from bridge.rundir.wanted import ReadOptions

__all__ = ["read_whole"]


def read_whole(
    run: Run, content: ContentOptions, wanted: ReadOptions, *, anchors: Anchors = (), budget: int = BUDGET
) -> Iterator[Delta]:
    """Everything in the run directory of `run`, in portions of about `wanted.limit` points, the first of kind NEW.

    Points, order and grouping are the same whatever exports there were before. `anchors` are those that a target
    remembers, for estimated times. Memory stays near a few times `budget` bytes however large metrics.csv is: what does
    not fit is read twice, and three times where overlapping points have to be sorted on disk. A cursor that
    cannot be continued is not complete; the last one is what a clean export's would be. Raises RunDirectoryError where
    a file cannot be read, or changes in between.
    """
    with opened(run) as table:
        begun = begin(run, None, content, table, block=block_size(wanted.limit))
        if table is None or not begun.first_line:
            yield media_after(nothing(run, None, content), (0, 0))
            return
        whole = _Whole(run, content, wanted, table, begun.first_line, budget)
        whole.survey(anchors)
        last: Delta | None = None
        for delta in whole.deltas():
            if last is not None:
                yield last
            last = delta
        assert last is not None
        yield media_after(last, (0, 0) if whole.held else table.stat)


@dataclass(slots=True)
class _Whole:
    """All rows of metrics.csv: `survey` goes through them once, `deltas` makes portions of what it found.

    `kept` are the rows as long as they fit into `budget` bytes, `marks` the cursors at which portions of them can end.
    """

    run: Run
    content: ContentOptions
    wanted: ReadOptions
    table: Table
    first_line: bytes
    budget: int
    held: bool = False
    total: int = 0
    reading: Reading = field(init=False)
    kept: list[Rows] | None = field(default_factory=list)
    marks: dict[int, Cursor] = field(default_factory=dict)

    def survey(self, anchors: Anchors) -> None:
        """Find out what overlaps, where the rows end that may be sent, and what time it was at the last one."""
        reading = self.reading = self._begin()
        source = self._counted(reading)
        if self.wanted.hold_back:
            source = held_back(source, self.run)
        size = points = 0
        for rows in source:
            reading.take(rows)
            rows.data = b""
            size += rows.nbytes()
            if size > self.budget:
                self.kept = None
                self.marks.clear()
            if self.kept is not None:
                self.kept.append(rows)
                points += rows.points() + empty_weight(rows.present) + text_weight(rows.texts.values())
                if self._fills(points):
                    self.marks[reading.rows] = self._cursor(reading)
                    points = 0
        self.held = reading.rows < self.total
        if reading.estimate is not None:
            usable = tuple(anchor for anchor in anchors if anchor[0] <= self.total)
            reading.estimate = Estimate.begin(self.run, usable).reaching(self.total, self.run)

    def deltas(self) -> Iterator[Delta]:
        """The portions, without media."""
        lows = {name: flag.low for name, flag in self.reading.flagged.items()}
        if not lows:
            return self._streamed()
        return self._arranged(resolved(self._blocks, lows, ordered=self.wanted.ordered, budget=self.budget))

    def _begin(self) -> Reading:
        reading = Reading.begin(self.run, self.content)
        found = self.table.layout()
        assert found is not None
        reading.layout, reading.offset = found[0], found[0].end
        return reading

    def _counted(self, reading: Reading) -> Iterator[Rows]:
        """The rows for the first pass, in pieces of no more points than a portion; `total` counts them."""
        for rows in pieces(self._parsed(reading, self.table.size), self.wanted.limit):
            self.total = rows.first + len(rows)
            yield rows

    def _parsed(self, reading: Reading, stop: int) -> Iterator[Rows]:
        assert reading.layout is not None
        return self.table.rows(reading.layout, reading.offset, 0, block=block_size(self.wanted.limit), stop=stop)

    def _fills(self, points: int) -> bool:
        return points >= self.wanted.limit - self.wanted.limit // 4

    def _again(self, again: Reading) -> Iterator[Rows]:
        """The rows as `reading` took them, once more; `again` follows where they have to be parsed anew."""
        if self.kept is not None:
            yield from self.kept
            return
        for rows in pieces(self._parsed(again, self.reading.offset), self.wanted.limit):
            yield again.take(rows)
        if to_hex(again.digest) != to_hex(self.reading.digest):
            raise RunDirectoryError(
                f"{self.table.file.name} changed while it was read.", hint="Try again: each export reads it anew."
            )

    def _blocks(self) -> Iterator[Block]:
        """The points of all rows, overlapping ones included, in row order; the same each time."""
        for rows in self._again(self._begin()):
            block = self.reading.block(rows)
            if block is not None:
                yield block

    def _streamed(self) -> Iterator[Delta]:
        """The portions where nothing has to be sorted: each has a cursor that can be continued."""
        again = self._begin()
        again.estimate = self.reading.estimate
        blocks: list[Block] = []
        points, first, end = 0, True, self.reading.rows
        for rows in self._again(again):
            block = self.reading.block(rows)
            if block is not None:
                blocks += without_texts([block])
                points += block.points + empty_weight(block.present) + text_weight(rows.texts.values())
            here = rows.first + len(rows)
            after = self.marks.get(here) if self.kept is not None else None
            if self.kept is None and self._fills(points):
                after = self._cursor(again)
            if after is not None and here < end:
                yield self._delta(blocks, self._anchored(after), first=first)
                blocks, points, first = [], 0, False
        yield self._delta(blocks, self._cursor(self.reading), first=first, last=True)

    def _arranged(self, source: Iterator[Block]) -> Iterator[Delta]:
        """The portions where order or choice concern all rows: a half-filled target can only be made anew."""
        unfinished = self._remembered().with_(complete=False)
        blocks: list[Block] = []
        points, first = 0, True
        for block in source:
            for part in _cut(without_texts([block]), self.wanted.limit):
                weight = part.points + empty_weight(part.present)
                if blocks and points + weight > self.wanted.limit + self.wanted.limit // 2:
                    yield self._delta(blocks, unfinished, first=first)
                    blocks, points, first = [], 0, False
                blocks.append(part)
                points += weight
        yield self._delta(blocks, self._cursor(self.reading), first=first, last=True)

    def _remembered(self) -> Cursor:
        return self._anchored(
            Cursor(identity=self.run.identity, path=str(self.run.path), content=self.content.differences())
        )

    def _anchored(self, cursor: Cursor) -> Cursor:
        estimate = self.reading.estimate
        return cursor.with_(anchors=() if estimate is None else estimate.anchors)

    def _cursor(self, reading: Reading) -> Cursor:
        return reading.cursor(self.table, first_line=self.first_line, before=None)

    def _delta(self, blocks: Sequence[Block], after: Cursor, *, first: bool, last: bool = False) -> Delta:
        notices: tuple[Notice, ...] = ()
        # A cursor that cannot be continued has no place: then it is that of the last row, as far as rows are alike.
        passed = 0 if after.complete or not blocks else int(blocks[-1].row[-1] + 1) / self.reading.rows
        if last:
            notices = tuple(self.reading.notices(self.table))
        return Delta(
            run=self.run,
            kind=DeltaKind.NEW if first else DeltaKind.APPEND,
            after=after,
            blocks=tuple(blocks),
            more=not last,
            metrics=metrics_of(self.reading.series.names),
            remember=self._remembered() if first and self.reading.estimate is not None else None,
            lowers=sum(flag.count for flag in self.reading.flagged.values()) if last else 0,
            notices=notices,
            passed=int(self.reading.offset * passed),
        )


def _cut(blocks: Sequence[Block], limit: int) -> Iterator[Block]:
    """`blocks` in parts of about `limit` points at most."""
    for block in blocks:
        if block.points <= limit:
            yield block
            continue
        so_far = np.cumsum(np.count_nonzero(block.present, axis=0))
        bounds = np.searchsorted(so_far, np.arange(limit, int(so_far[-1]) + limit, limit), side="left") + 1
        begin = 0
        for end in np.unique(np.minimum(bounds, len(block.row))).tolist():
            part = slice(begin, end)
            yield Block(
                block.names,
                block.row[part],
                block.step[part],
                block.time[part],
                block.values[:, part],
                block.present[:, part],
            )
            begin = end
