"""One series of one run, and the summary of all of them, without a target in mind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.cursor import ContentOptions
from bridge.model import Series
from bridge.rundir.csv_rows import opened
from bridge.rundir.reading import Reading, is_wanted
from bridge.rundir.resolve import counting_rows
from bridge.rundir.rows import TEXT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from bridge.model import Run
    from bridge.rundir.rows import Rows

__all__ = ["read_points", "read_series", "read_summary"]


def read_series(run: Run, name: str) -> Series:
    """The points of the metric `name`: those that count, by step.

    Only its own column is turned into numbers. A metric that the run does not have has no points. Raises
    RunDirectoryError where metrics.csv cannot be read.
    """
    rows: list[NDArray[np.int64]] = []
    steps: list[NDArray[np.int64]] = []
    times: list[NDArray[np.float64]] = []
    values: list[NDArray[np.float64]] = []
    reading = Reading.begin(run, ContentOptions())
    with opened(run) as table:
        found = table.layout() if table is not None else None
        if table is not None and found is not None:
            for piece in table.rows(found[0], found[0].end, 0, only=name):
                reading.pass_by(piece)
                if name in piece.names:
                    at = np.flatnonzero(_points(piece, piece.names.index(name)))
                    rows.append(piece.row[at])
                    steps.append(piece.step[at])
                    times.append(piece.time[at])
                    values.append(piece.values[piece.names.index(name), at])
    row = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    step = np.concatenate(steps) if steps else np.empty(0, dtype=np.int64)
    value = np.concatenate(values) if values else np.empty(0)
    time = np.concatenate(times) if times else np.empty(0)
    if reading.estimate is not None:
        time = reading.estimate.reaching(reading.rows, run).of(row)
    kept = counting_rows(step, value)
    return Series(name=name, step=step[kept], time=time[kept], value=value[kept])


def read_points(run: Run, content: ContentOptions, *, rows: int | None = None) -> tuple[dict[str, Series], int]:
    """Return the points that count among the first `rows` rows (None: all rows), and how many rows there are.

    The series are by name: those that `content` asks for and that have points. Steps are sorted, with one point each.
    Times that could only be estimated are NaN. Raises RunDirectoryError if metrics.csv cannot be read.
    """
    found: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]] = {}
    reading = Reading.begin(run, content)
    total = 0
    with opened(run) as table:
        header = table.layout() if table is not None else None
        if table is not None and header is not None:
            for whole in table.rows(header[0], header[0].end, 0):
                total = whole.first + len(whole)
                if rows is not None and whole.first >= rows:
                    continue
                piece = whole if rows is None else whole.head(min(len(whole), rows - whole.first))
                reading.pass_by(piece)
                for line, name in enumerate(piece.names):
                    at = (
                        np.flatnonzero(_points(piece, line))
                        if is_wanted(name, content) and not name.endswith(TEXT)
                        else ()
                    )
                    if len(at):
                        time = piece.time[at] if reading.estimate is None else np.full(len(at), np.nan)
                        found.setdefault(name, []).append((piece.step[at], time, piece.values[line, at]))
    series = {}
    for name, pieces in found.items():
        step, time, value = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
        kept = counting_rows(step, value)
        series[name] = Series(name=name, step=step[kept], time=time[kept], value=value[kept])
    return series, total


def read_summary(run: Run) -> Mapping[str, Mapping[str, Any]]:
    """For each metric its `last`, `min`, `max`, `count`, `min_step`, `max_step`, `nan_count` and `first_nan_step`.

    As summary.json has it where there is one, else computed from metrics.csv: of all values that were logged, in
    row order, NaN moves neither `min` nor `max`. Raises RunDirectoryError where metrics.csv cannot be read.
    """
    if run.summary_stats:
        return run.summary_stats
    stats: dict[str, dict[str, Any]] = {}
    with opened(run) as table:
        found = table.layout() if table is not None else None
        if table is not None and found is not None:
            for rows in table.rows(found[0], found[0].end, 0):
                for line, name in enumerate(rows.names):
                    at = np.flatnonzero(_points(rows, line))
                    if len(at) and not name.endswith(TEXT):
                        _add(stats.setdefault(name, _nothing()), rows.step[at], rows.values[line, at])
    return stats


def _points(rows: Rows, line: int) -> NDArray[np.bool_]:
    present: NDArray[np.bool_] = rows.present[line]
    return present if rows.valid is None else present & rows.valid


def _nothing() -> dict[str, Any]:
    stats: dict[str, Any] = dict.fromkeys(
        ("last", "min", "max", "count", "min_step", "max_step", "nan_count", "first_nan_step")
    )
    stats["count"] = stats["nan_count"] = 0
    return stats


def _add(stats: dict[str, Any], step: NDArray[np.int64], value: NDArray[np.float64]) -> None:
    """Take in more values, at least one."""
    stats["last"] = float(value[-1])
    stats["count"] += len(value)
    nan = np.isnan(value)
    if nan.any():
        stats["nan_count"] += int(nan.sum())
        if stats["first_nan_step"] is None:
            stats["first_nan_step"] = int(step[nan.argmax()])
        step, value = step[~nan], value[~nan]
    if not len(value):
        return
    least, greatest = int(value.argmin()), int(value.argmax())
    if stats["min"] is None or value[least] < stats["min"]:
        stats["min"], stats["min_step"] = float(value[least]), int(step[least])
    if stats["max"] is None or value[greatest] > stats["max"]:
        stats["max"], stats["max_step"] = float(value[greatest]), int(step[greatest])
