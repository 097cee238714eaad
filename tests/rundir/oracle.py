"""Apply the overlap rule and the scalar order again, in plain Python, as literally as the rule's words."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bridge.model import Delta

Event: TypeAlias = "tuple[int, int, float, tuple[tuple[str, str], ...]]"
"""One source row at one place: row, step, time, and (metric, value as float.hex or text) by metric."""


@dataclass(frozen=True)
class Row:
    """A row of metrics.csv; `step` is None without one, and values are floats or text."""

    step: int | None
    time: float
    cells: dict[str, float | str] = field(default_factory=dict)
    bad: bool = False


def equal(one: float | str, other: float | str) -> bool:
    """Return whether the overlap rule takes two values for the same."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return one == other or (math.isnan(one) and math.isnan(other))


def points(rows: Sequence[Row]) -> dict[tuple[str, bool], list[tuple[int, int, float | str]]]:
    """Return all points as logged: (row, step, value) by metric, numbers and texts apart."""
    found = defaultdict(list)
    for number, row in enumerate(rows):
        if row.step is not None and not row.bad:
            for name, value in row.cells.items():
                found[name, isinstance(value, str)].append((number, row.step, value))
    return found


def counting(series: Sequence[tuple[int, int, float | str]]) -> list[tuple[int, int, float | str]]:
    """Return the point that counts at each step: the first of the last unbroken sequence of equal values."""
    by_step = defaultdict(list)
    for point in series:
        by_step[point[1]].append(point)
    result = []
    for step in sorted(by_step):
        at_step = by_step[step]
        first = len(at_step) - 1
        while first > 0 and equal(at_step[first - 1][2], at_step[first][2]):
            first -= 1
        result.append(at_step[first])
    return result


def events(rows: Sequence[Row]) -> list[Event]:
    """Return the points that count by row, one event per row."""
    placed: dict[int, dict[str, float | str]] = defaultdict(dict)
    for (name, _), series in points(rows).items():
        for row, _, value in counting(series):
            placed[row][name] = value
    return [
        (row, step_of(rows[row]), rows[row].time, tuple(sorted((name, shown(value)) for name, value in values.items())))
        for row, values in sorted(placed.items())
    ]


def step_of(row: Row) -> int:
    """Return the step of a row that has one."""
    assert row.step is not None
    return row.step


def shown(value: float | str) -> str:
    """Return a value in a comparable form, NaN included."""
    return value if isinstance(value, str) else float(value).hex()


def events_of(deltas: Iterable[Delta]) -> list[Event]:
    """Return the events in `deltas`, one per row of a block."""
    found: list[Event] = []
    for delta in deltas:
        for block in delta.blocks:
            for column in range(len(block.row)):
                values = tuple(
                    sorted(
                        (name, shown(float(block.values[line, column])))
                        for line, name in enumerate(block.names)
                        if block.present[line, column]
                    )
                )
                assert values, "a row of a block without a point"
                found.append((int(block.row[column]), int(block.step[column]), float(block.time[column]), values))
    return found


def without_texts(found: Iterable[Event], rows: Sequence[Row]) -> list[Event]:
    """Return `found` without the text cells of `rows`."""
    result = []
    for row, step, time, values in found:
        numbers = tuple(item for item in values if not isinstance(rows[row].cells[item[0]], str))
        if numbers:
            result.append((row, step, time, numbers))
    return result
