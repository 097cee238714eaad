"""The truth about a run directory, read by another road than the one that exports take.

`bridge verify` compares targets with this. It shares nothing with `bridge.rundir`: metrics.csv goes through the
standard library's csv module, and the tables of the format and the overlap rule are written here a second time,
in plain Python. So a fault in one of the two readers shows as a difference instead of hiding in both.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bridge.errors import RunDirectoryError
from bridge.files import MOST_COLUMNS, shortened
from bridge.sync.truth_facts import YEAR_10000, Facts, read_facts
from bridge.sync.truth_files import own_file
from bridge.sync.truth_media import TruthMedia, read_media
from bridge.sync.truth_records import records

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Facts", "Truth", "TruthMedia", "TruthSeries", "read"]

CHUNK = 4096
"""Rows that are turned into columns at once."""


@dataclass(frozen=True, slots=True, eq=False)
class TruthSeries:
    """The points of one metric that count, as columns of one length, sorted by step and then row.

    `step` int64; `time` float64, seconds since the epoch, NaN where it could only be estimated or stands before the first
    time that the file says; `value` float64;
    `row` int64, the row in metrics.csv that the point comes from, counted from 0.
    """

    step: NDArray[np.int64]
    time: NDArray[np.float64]
    value: NDArray[np.float64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What a run directory says, as far as it was asked for (`rows`, `media_lines`).

    `series` by name; `rows` and `media_lines` count all
    complete lines there are, whatever was asked for. `bad_rows` are lines of metrics.csv (from 1, the header's)
    that are no row, `without_step` counts rows that have values and no step.
    """

    path: Path
    facts: Facts
    series: dict[str, TruthSeries] = field(default_factory=dict)
    media: tuple[TruthMedia, ...] = ()
    rows: int = 0
    media_lines: int = 0
    bad_rows: tuple[int, ...] = ()
    without_step: int = 0

    @property
    def points(self) -> int:
        """How many points count."""
        return sum(len(series) for series in self.series.values())


def read(
    path: Path,
    rows: int | None = None,
    *,
    media_lines: int | None = None,
    only: Collection[str] | None = None,
) -> Truth:
    """Read the run directory `path`: the first `rows` rows of metrics.csv and `media_lines` of media.jsonl (None: all).

    `only` limits the metrics that are kept. Takes 16 bytes of memory a point. Raises RunDirectoryError for files that cannot be read at all.
    """
    facts = read_facts(path)
    wanted = None if only is None else frozenset(only)
    columns = facts.time_column, facts.time_column_before
    table = _Table(limit=rows, time_columns=columns, only=wanted, clock=_Clock(facts.start))
    try:
        metrics = own_file(path, "metrics.csv")
        if metrics is not None:
            table.read(metrics)
        media, lines = read_media(path, limit=media_lines)
    except OSError as error:
        raise RunDirectoryError(f"{error.filename or path} cannot be read: {error.strerror}.") from error
    return Truth(
        path=path,
        facts=facts,
        series=table.series(),
        media=media,
        rows=table.rows,
        media_lines=lines,
        bad_rows=tuple(table.bad_rows),
        without_step=table.without_step,
    )


def count(rows: NDArray[np.int64], step: NDArray[np.int64], value: NDArray[np.float64]) -> NDArray[np.int64]:
    """The indices of the points that count, by step; the input is in the order of `rows`.

    Of the values at one step the last unbroken run of equal ones counts, with its first point.
    """
    assert len(rows) == len(step) == len(value)
    order = np.argsort(step, kind="stable")
    ordered = step[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(order))
    counted = order[starts]
    # Only steps that come more than once need the rule.
    for group in np.flatnonzero(ends - starts > 1).tolist():
        indices = order[starts[group] : ends[group]].tolist()
        kept = indices[0]
        for index in indices[1:]:
            if not _equal(value[kept], value[index]):
                kept = index
        counted[group] = kept
    return counted


def _equal(one: float, other: float) -> bool:
    return bool(one == other) or (math.isnan(one) and math.isnan(other))


@dataclass(slots=True)
class _Layout:
    """A header line: `step` and `time` are columns (None: there is none), `metrics` the columns of each name."""

    names: tuple[str, ...]
    step: int | None
    time: int | None
    metrics: dict[str, list[int]]

    @classmethod
    def of(cls, names: Sequence[str], time_column: str | None) -> _Layout:
        columns: dict[str, list[int]] = {}
        for column, name in enumerate(names):
            columns.setdefault(shortened(name.replace("\0", "\ufffd")), []).append(column)
        step = columns.pop("step", [None])[-1]
        time = columns.pop(time_column, [None])[-1] if time_column is not None else None
        return cls(names=tuple(names), step=step, time=time, metrics=columns)

    def is_header(self, cells: Sequence[str]) -> bool:
        """Whether `cells` is a header line again: all filled, with a `step` that is no number in the step's place."""
        if len(cells) > MOST_COLUMNS:
            return False
        if self.step is None:
            return tuple(cells) == self.names
        if "step" not in cells or not all(cells):
            return False
        return self.step >= len(cells) or _int(cells[self.step]) is None


@dataclass(slots=True)
class _Clock:
    """The times of rows in their order: one without a time that a clock can give has that of the row before it.

    `now` is the start of the run at first, and NaN once a row said nothing before any had a time: an export may have had
    to estimate that. `runs`: whether the first header line has a column of times at all.
    """

    now: float
    runs: bool = False
    told: bool = False

    def time(self, cells: list[str], column: int | None) -> float:
        """The time of the next row; `cells` are none for a bad one."""
        if not self.runs:
            return math.nan
        said = math.nan if not cells or column is None else _number(cells[column])
        if said is not None and 0 <= said < YEAR_10000:
            self.now, self.told = said, True
        elif not self.told and (said is None or math.isnan(said)):
            self.now = math.nan
        return self.now


@dataclass(slots=True)
class _Table:
    """metrics.csv, read in chunks of rows into one pair of arrays a metric.

    `time_columns` are the names that the column of times may have: the second until the file follows the sidecar's first.
    """

    limit: int | None
    time_columns: tuple[str | None, str | None]
    only: frozenset[str] | None
    clock: _Clock
    time_column: str | None = None
    rows: int = 0
    bad_rows: list[int] = field(default_factory=list)
    without_step: int = 0
    steps: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))
    found: dict[str, tuple[array[int], array[float]]] = field(default_factory=dict)
    layout: _Layout | None = None
    chunk: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def read(self, path: Path) -> None:
        """Read the file `path`."""
        for cells, line in records(path):
            self._take(cells, line)
        self._flush()

    def _take(self, cells: list[str] | None, line: int) -> None:
        if self.layout is None:
            if cells:
                name, before = self.time_columns
                self.time_column = before if name is not None and name not in cells else name
                self.layout = _Layout.of(cells, self.time_column)
                self.clock.runs = self.layout.time is not None
            return
        if cells is not None and self.layout.is_header(cells):
            self._flush()
            self.layout = _Layout.of(cells, self.time_column)
            return
        self.rows += 1
        if self.limit is not None and self.rows > self.limit:
            return
        if cells is None or len(cells) != len(self.layout.names):
            cells = []
        self.chunk.append(cells)
        self.lines.append(line)
        if len(self.chunk) == CHUNK:
            self._flush()

    def _flush(self) -> None:
        """Turn the rows of the chunk into points. A bad row is an empty list here."""
        chunk, lines = self.chunk, self.lines
        self.chunk, self.lines = [], []
        if not chunk or self.layout is None:
            return
        start = len(self.steps)
        steps = [_step(cells, self.layout.step, start + place) for place, cells in enumerate(chunk)]
        self.steps.extend(0 if step is None else step for step in steps)
        for cells, step, line in zip(chunk, steps, lines, strict=True):
            is_bad = step is None and not self._is_stepless(cells)
            if is_bad:
                self.bad_rows.append(line)
            self.times.append(self.clock.time([] if is_bad else cells, self.layout.time))
        good = [place for place, step in enumerate(steps) if step is not None]
        rows = [start + place for place in good]
        columns = list(zip(*(chunk[place] for place in good), strict=True))
        if columns:
            for name, places in self.layout.metrics.items():
                if self.only is None or name in self.only:
                    self._column(name, rows, _last_filled([columns[place] for place in places]))

    def _is_stepless(self, cells: list[str]) -> bool:
        """Whether a row without a step is otherwise a row; its metrics are counted as lost."""
        assert self.layout is not None
        if not cells or self.layout.step is None or cells[self.layout.step] != "":
            return False
        self.without_step += any(cells[place] for places in self.layout.metrics.values() for place in places)
        return True

    def _column(self, name: str, rows: list[int], cells: Sequence[str]) -> None:
        if not all(cells):
            filled = [(row, cell) for row, cell in zip(rows, cells, strict=True) if cell]
            if not filled:
                return
            rows, cells = [row for row, _ in filled], [cell for _, cell in filled]
        try:
            values = list(map(float, cells))
        except ValueError:
            numbers = [_number(cell) for cell in cells]
            rows = [row for row, number in zip(rows, numbers, strict=True) if number is not None]
            values = [number for number in numbers if number is not None]
        if values:
            row_array, value_array = self.found.setdefault(name, (array("q"), array("d")))
            row_array.extend(rows)
            value_array.extend(values)

    def series(self) -> dict[str, TruthSeries]:
        """The points that count of every metric; lets go of what was read."""
        steps, times = np.array(self.steps, dtype=np.int64), np.array(self.times, dtype=np.float64)
        result = {}
        for name in list(self.found):
            row_array, value_array = self.found.pop(name)
            row, value = np.array(row_array, dtype=np.int64), np.array(value_array, dtype=np.float64)
            step = steps[row]
            order = count(row, step, value)
            row = row[order]
            result[name] = TruthSeries(step=steps[row], time=times[row], value=value[order], row=row)
        return result


def _last_filled(columns: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Columns of one name as one: in each row the last cell that is not empty."""
    merged = columns[0]
    for column in columns[1:]:
        merged = tuple(later or earlier for earlier, later in zip(merged, column, strict=True))
    return merged


def _step(cells: list[str], column: int | None, row: int) -> int | None:
    if not cells:
        return None
    return row if column is None else _int(cells[column])


def _int(cell: str) -> int | None:
    try:
        number = int(cell)
    except ValueError:
        return None
    return number if -(2**63) <= number < 2**63 else None


def _number(cell: str) -> float | None:
    if cell in ("True", "False"):
        return float(cell == "True")
    try:
        return float(cell)
    except ValueError:
        return None
