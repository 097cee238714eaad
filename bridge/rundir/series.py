"""Read all points of a run as series, count them, or compute their statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import asdict, replace

from bridge.errors import RunDirectoryError
from bridge.files import open_raw
from bridge.model import Block, Notice, NoticeKind, Series
from bridge.options import ContentOptions
from bridge.rundir.event_runs import read_event_facts
from bridge.rundir.metrics import MetricsTable
from bridge.rundir.overlap import counting
from bridge.rundir.resume import ReadState, open_table
from logger.sidecar import MetricStats

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.model import Cursor, Run

SMALL_BYTES = 1 << 18
"""Bytes of a metrics.csv that is read whole within a millisecond or two."""


def read_points(
    run: Run, content: ContentOptions, *, until: Cursor | None = None, only: Collection[str] | None = None
) -> tuple[dict[str, Series], range]:
    """Return the points that count among the rows that `until` covers (None: all), and the numbers of all rows.

    The numbers begin at 0, unless the first rows that `until` covers were in event files that are deleted by now.

    The series are by name: those that `content` asks for, that are among `only` if it is given, and that have points.
    Steps are sorted, with one point each. Times that could only be estimated are NaN. A point takes about 64 bytes of
    memory; `count_points` says how many there are. Raises RunDirectoryError if metrics.csv cannot be read.
    """
    parts: dict[str, list[tuple[NDArray[Any], ...]]] = {}
    numbers = range(0)
    chosen = None if only is None else frozenset(only)
    for block, part in _blocks(run, content, until, only=chosen):
        numbers = range(numbers.start if numbers else part.start, part.stop)
        for metric, name in enumerate(block.names if block is not None else ()):
            if block is not None and (chosen is None or name in chosen):
                at = np.flatnonzero(block.present[metric])
                time = block.time[at] if run.time_column is not None else np.full(len(at), np.nan)
                parts.setdefault(name, []).append((block.row[at], block.step[at], time, block.values[metric, at]))
    return {name: _counting(name, columns) for name, columns in parts.items()}, numbers


def read_small(run: Run, content: ContentOptions) -> dict[str, Series] | None:
    """Return the points that `content` asks for by metric if metrics.csv is small, and its steps rise; else None.

    No digests and no cursor are made, so this takes a tenth of the time of `read_whole`. `run` may be of a record.
    """
    try:
        with open_raw(run.path / "metrics.csv") as file:
            table = MetricsTable(file, run.time_column)
            if table.layout is None or table.layout.time is None or table.size > SMALL_BYTES:
                return None
            parts = list(table.rows())
    except (OSError, RunDirectoryError):
        return None
    block = ReadState.begin(run, content).select(parts[0]) if len(parts) == 1 else None
    if block is None or not (np.diff(block.step) > 0).all():
        return None
    return {series.name: series for series in block.series()}


def count_points(run: Run, content: ContentOptions, *, until: Cursor | None = None) -> tuple[dict[str, int], int]:
    """Return how many values each metric has in the rows that `until` covers (None: all), and how many rows there are.

    Points that do not count for the overlap rule are among them. So a large run can be read by groups of metrics.
    Raises RunDirectoryError if metrics.csv cannot be read.
    """
    counts: dict[str, int] = {}
    total = 0
    for block, part in _blocks(run, content, until):
        total = part.stop
        if block is not None:
            for name, count in zip(block.names, np.count_nonzero(block.present, axis=1).tolist(), strict=True):
                counts[name] = counts.get(name, 0) + count
    return counts, total


def read_summary(run: Run) -> dict[str, dict[str, Any]]:
    """Return for each metric `last`, `min`, `max`, `count`, `min_step`, `max_step`, `nan_count` and `first_nan_step`.

    They are computed from all values that were logged, in row order, also those that the overlap rule leaves out; NaN
    changes neither `min` nor `max`. Raises RunDirectoryError if metrics.csv cannot be read.
    """
    stats: dict[str, MetricStats] = {}
    for block, _ in _blocks(run, ContentOptions(), None):
        if block is not None:
            for name, present, values in zip(block.names, block.present, block.values, strict=True):
                _add(stats.setdefault(name, MetricStats()), block.step[present], values[present])
    return {name: asdict(of) for name, of in stats.items()}


def other_run_notices(run: Run, last_points: Mapping[str, tuple[int, float]]) -> list[Notice]:
    """Return a notice if the event files beside the metrics.csv of `run` hold another run, since they are not read.

    `last_points` are step and value of the last point of each metric in metrics.csv. The event files hold another run
    if they reach as far and have no such point, or one that differs as float32. Raises RunDirectoryError.
    """
    files = () if run.event_files else read_event_facts(run.path, [])[0]
    if not files:
        return []
    series, _ = read_points(replace(run, event_files=files), ContentOptions(), only=last_points)
    differing = []
    for name, one in series.items():
        step, value = last_points[name]
        found = one.value[one.step == step]
        with np.errstate(over="ignore"):
            is_same = np.array_equal(found, [np.float32(value)], equal_nan=True)
        if one.step[-1] >= step and not is_same:
            differing.append(name)
    detail = f"hold another run than metrics.csv ({', '.join(differing[:3])}), and are not read"
    return [Notice(NoticeKind.LEFT_OUT, "event files", detail, len(files))] if differing else []


def _blocks(
    run: Run, content: ContentOptions, until: Cursor | None, *, only: frozenset[str] | None = None
) -> Iterator[tuple[Block | None, range]]:
    """Yield the points that `content` asks for in parts, each with the numbers of its rows.

    All rows are read, but only those that `until` covers (None: all) give points. With `only` there may be fewer
    metrics.
    """
    with open_table(run) as table:
        if table is None:
            return
        if until is not None and until.files:
            table.find(until)  # the rows that it covers come first
        state = ReadState.begin(run, content)
        for rows in table.rows(only=only):
            covered = len(rows) if until is None else max(0, min(len(rows), until.rows - rows.first))
            block = state.select(rows.part(0, covered)) if covered else None
            yield block, range(rows.first, rows.first + len(rows))


def _counting(name: str, parts: Sequence[tuple[NDArray[Any], ...]]) -> Series:
    """Return the points of a metric that count, by step; `parts` are (row, step, time, value), in row order."""
    row, step, time, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    block = Block((name,), row, step, time, value[None, :], np.ones((1, len(step)), dtype=bool))
    counts = np.flatnonzero(counting(block)[0])
    order = counts[np.argsort(step[counts])]
    return Series(name=name, step=step[order], time=time[order], value=value[order])


def _add(stats: MetricStats, step: NDArray[np.int64], value: NDArray[np.float64]) -> None:
    """Add values, at least one, to `stats`."""
    stats.last = float(value[-1])
    stats.count += len(value)
    nan = np.isnan(value)
    if nan.any():
        stats.nan_count += int(nan.sum())
        if stats.first_nan_step is None:
            stats.first_nan_step = int(step[nan.argmax()])
        step, value = step[~nan], value[~nan]
    if not len(value):
        return
    least, greatest = int(value.argmin()), int(value.argmax())
    if stats.min is None or value[least] < stats.min:
        stats.min, stats.min_step = float(value[least]), int(step[least])
    if stats.max is None or value[greatest] > stats.max:
        stats.max, stats.max_step = float(value[greatest]), int(step[greatest])
