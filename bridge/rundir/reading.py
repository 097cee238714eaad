"""A reading of metrics.csv on its way through the file: what a cursor will say, block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from bridge.cursor import Cursor
from bridge.errors import RunDirectoryError
from bridge.files import MOST_SERIES
from bridge.model import Block, Notice, NoticeKind
from bridge.rundir.digest import bytes_digest, to_hex
from bridge.rundir.header import metric_name
from bridge.rundir.rows import MOST_NAMED, TEXT, digest_of
from bridge.rundir.series_state import Flagged, SeriesState
from bridge.rundir.times import Estimate, fill, is_time

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bridge.cursor import ContentOptions
    from bridge.model import Run
    from bridge.rundir.csv_rows import Table
    from bridge.rundir.header import Layout
    from bridge.rundir.rows import BadRow, Rows

__all__ = ["EARLY", "Reading"]

EARLY = 64
"""Rows that tell a moved run from another one."""


@dataclass(slots=True, eq=False)
class Reading:
    """How far metrics.csv was read, and what of it the rows to come depend on. Goes on by `take`.

    `estimate` is None where the run has a time column. `known` is false where the tails of the series before
    `rows` are not all known.
    """

    run: Run
    content: ContentOptions
    estimate: Estimate | None
    rows: int = 0
    offset: int = 0
    layout: Layout | None = None
    digest: int = 0
    early: int = 0
    early_rows: int = 0
    last_step: int | None = None
    rising: bool = True
    last_time: float | None = None
    series: SeriesState = field(default_factory=SeriesState)
    known: bool = True
    flagged: dict[str, Flagged] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    bad_count: int = 0
    stepless: list[int] = field(default_factory=list)
    stepless_count: int = 0
    texts: dict[str, int] = field(default_factory=dict)
    odd_times: list[int] = field(default_factory=list)
    odd_times_count: int = 0
    _chosen: dict[tuple[str, ...], NDArray[np.intp] | None] = field(default_factory=dict)

    @classmethod
    def begin(cls, run: Run, content: ContentOptions, anchors: tuple[tuple[int, float], ...] = ()) -> Reading:
        """Before the first row."""
        return cls(run, content, None if run.time_column is not None else Estimate.begin(run, anchors))

    @classmethod
    def resume(cls, run: Run, content: ContentOptions, cursor: Cursor, layout: Layout) -> Reading:
        """Where `cursor` stands, below the header `layout`."""
        reading = cls.begin(run, content, cursor.anchors)
        reading.rows, reading.offset, reading.layout = cursor.rows, max(cursor.offset, layout.end), layout
        reading.digest, reading.early = int(cursor.digest or "0", 16), int(cursor.early or "0", 16)
        reading.early_rows = cursor.early_rows
        reading.last_step, reading.rising, reading.last_time = cursor.last_step, cursor.rising, cursor.last_time
        if reading.estimate is None and reading.last_time is None and cursor.anchors:
            reading.last_time = cursor.anchors[-1][1]  # the rows so far had no time column
        reading.known = cursor.tails is not None or cursor.seen == 0
        reading.series = SeriesState(cursor.tails)
        return reading

    def take(self, rows: Rows, *, drop: bool = True) -> Rows:
        """Go on by `rows`, which begin where this reading stands; returns them as they count.

        That is: the chosen series only, no points in rows without a step, bad times filled, repetitions of a
        series' last point dropped (with `drop`). Points that overlap otherwise stay and are noted in `flagged`.
        """
        self._count(rows)
        self._choose(rows)
        for _, name in rows.texts:
            if is_wanted(name, self.content):
                self.texts[name] = self.texts.get(name, 0) + 1
        if rows.valid is not None:
            rows.present &= rows.valid
        if len(self.series) > MOST_SERIES:
            raise RunDirectoryError(
                f"{self.run.path}/metrics.csv has more than {MOST_SERIES:,} series.",
                hint="Was each value logged under a name of its own? Log it under one, with a step.",
            )
        found = self.series.take(rows.names, rows.step, rows.values, rows.present, first=rows.first, drop=drop)
        for name, flag in found.items():
            before = self.flagged.get(name)
            self.flagged[name] = flag if before is None else before.merged(flag)
        return rows

    def block(self, rows: Rows) -> Block | None:
        """What `take` returned, as a block with times; None where there are no points."""
        row, time = rows.row, rows.time
        if self.estimate is not None:
            time = self.estimate.of(row)
        return block_of(rows.names, row, rows.step, time, rows.values, rows.present)

    def cursor(self, table: Table, *, first_line: bytes, before: Cursor | None) -> Cursor:
        """The cursor at this place of `table`; what an exporter keeps in `before` stays.

        `first_line` is the file's header line. The caller sets what concerns media and `stat`.
        """
        base = before or Cursor(identity=self.run.identity, path=str(self.run.path))
        return base.with_(
            path=str(self.run.path),
            rows=self.rows,
            offset=self.offset,
            header=bytes_digest(first_line),
            window=bytes_digest(table.window(self.offset)),
            digest=to_hex(self.digest),
            early_rows=self.early_rows,
            early=to_hex(self.early),
            last_step=self.last_step,
            tails=self.series.tails() if self.known else None,
            seen=len(self.series),
            rising=self.rising,
            last_time=self.last_time,
            columns_at=self.layout.at if self.layout is not None else 0,
            anchors=() if self.estimate is None else self.estimate.anchors,
            content=self.content.differences(),
            complete=True,
        )

    def forget(self) -> None:
        """Let go of what was noted on the way, which is nothing new."""
        self.flagged.clear()
        self.bad.clear()
        self.stepless.clear()
        self.odd_times.clear()
        self.texts.clear()
        self.bad_count = self.stepless_count = self.odd_times_count = 0

    def notices(self, table: Table) -> list[Notice]:
        """The rows that were bad or had no step, the first ones by their line."""
        found = [
            Notice(NoticeKind.RENAMED, name, f"its column in metrics.csv has a name of {len(column)} characters")
            for column in (self.layout.columns if self.layout is not None else ())
            if (name := metric_name(column)) != column
        ]
        for bad in self.bad:
            line = table.lines_before(bad.at) + 1
            found.append(Notice(NoticeKind.BAD_ROW, f"metrics.csv:{line}", f"the row {bad.why}"))
        if self.bad_count > len(self.bad):
            found.append(Notice(NoticeKind.BAD_ROW, "metrics.csv", "further bad rows", self.bad_count - len(self.bad)))
        if self.stepless_count:
            said = f"rows without a step, from 0: {_first(self.stepless, self.stepless_count)}"
            found.append(Notice(NoticeKind.NO_STEP, "metrics.csv", said, self.stepless_count))
        found += [
            Notice(NoticeKind.TEXT_CELL, name, "text is not exported; metrics.csv keeps it", count)
            for name, count in sorted(self.texts.items())
        ]
        if self.odd_times_count:
            rows = _first(self.odd_times, self.odd_times_count)
            said = f"times that no clock gives, rows from 0: {rows}; they have the time of the row before"
            found.append(Notice(NoticeKind.BAD_TIME, "metrics.csv", said, self.odd_times_count))
        return found

    def pass_by(self, rows: Rows) -> None:
        """Go on by `rows` as far as it concerns their number and their times, which are filled."""
        self.layout, self.offset = rows.layout, rows.end
        self.rows = rows.first + len(rows)
        if self.estimate is None and len(rows):
            said = rows.time
            rows.time = fill(said, self.run.start if self.last_time is None else self.last_time)
            self.last_time = float(rows.time[-1])
            if rows.time is not said:
                odd = np.flatnonzero(~(is_time(said) | np.isnan(said))) + rows.first
                self.odd_times += odd[: MOST_NAMED - len(self.odd_times)].tolist()
                self.odd_times_count += len(odd)

    def _count(self, rows: Rows) -> None:
        """What concerns rows whatever series are chosen."""
        if not len(rows):
            self.pass_by(rows)
            return
        digests = rows.digests()
        self.digest += digest_of(digests)
        if self.early_rows < EARLY and rows.first == self.early_rows:
            count = min(EARLY - self.early_rows, len(rows))
            self.early += digest_of(digests[:count])
            self.early_rows += count
        step = rows.step if rows.valid is None else rows.step[rows.valid]
        if len(step):
            low = int(step[0])
            self.rising &= not (step[1:] < step[:-1]).any() and (self.last_step is None or low >= self.last_step)
            top = int(step.max())
            self.last_step = top if self.last_step is None else max(self.last_step, top)
        self.pass_by(rows)
        self.bad += rows.bad[: MOST_NAMED - len(self.bad)]
        self.bad_count += len(rows.bad_at)
        self.stepless += rows.stepless[: MOST_NAMED - len(self.stepless)]
        self.stepless_count += len(rows.stepless)

    def _choose(self, rows: Rows) -> None:
        """Leave the series that the options ask for."""
        if not (self.content.metrics or self.content.exclude_metrics):
            return
        if rows.names not in self._chosen:
            chosen = [place for place, name in enumerate(rows.names) if is_wanted(name, self.content)]
            self._chosen[rows.names] = np.array(chosen, dtype=np.intp) if len(chosen) < len(rows.names) else None
        places = self._chosen[rows.names]
        if places is not None:
            rows.names = tuple(rows.names[place] for place in places)
            rows.values, rows.present = rows.values[places], rows.present[places]


def _first(rows: list[int], count: int) -> str:
    """The numbers of the first of `count` rows."""
    return ", ".join(map(str, rows)) + (", ..." if count > len(rows) else "")


def is_wanted(name: str, content: ContentOptions) -> bool:
    """Whether the options ask for the series `name`."""
    name = name.removesuffix(TEXT)
    if content.metrics and not any(fnmatchcase(name, glob) for glob in content.metrics):
        return False
    return not any(fnmatchcase(name, glob) for glob in content.exclude_metrics)


def block_of(
    names: tuple[str, ...],
    row: NDArray[np.int64],
    step: NDArray[np.int64],
    time: NDArray[np.float64],
    values: NDArray[np.float64],
    present: NDArray[np.bool_],
) -> Block | None:
    """A block without the rows and series that have no point; None where there is none at all."""
    used = present.any(axis=1)
    if not used.all():
        lines = np.flatnonzero(used)
        names = tuple(names[line] for line in lines)
        values, present = values[lines], present[lines]
    if not names:
        return None
    filled = present.any(axis=0)
    if not filled.all():
        row, step, time = row[filled], step[filled], time[filled]
        values, present = values[:, filled], present[:, filled]
    return Block(names=names, row=row, step=step, time=time, values=values, present=present)
