"""The plainest possible targets: they apply deltas as the contract says, and can be compared with what was logged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bridge.model import Cursor, Delta, DeltaKind, Series
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_delta, read_points, read_run, read_whole
from tests.oracle import OraclePoint, counting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bridge.model import Run

Event: TypeAlias = "tuple[int, int, float, tuple[tuple[str, str], ...]]"
"""One source row at one place: row, step, time, and (metric, value as float.hex) by metric."""

Points: TypeAlias = "dict[tuple[str, int], list[tuple[float, str]]]"
"""Time and value, as float.hex, of the points by metric and step."""


@dataclass(frozen=True)
class Row:
    """A row of metrics.csv; `step` is None without one, and values are floats or text."""

    step: int | None
    time: float
    cells: dict[str, float | str] = field(default_factory=dict)
    bad: bool = False


def expected(rows: Sequence[Row]) -> Points:
    """Return the points of `rows` that count, by the oracle's overlap rule."""
    logged: dict[str, list[OraclePoint]] = {}
    for number, row in enumerate(rows):
        for name, value in row.cells.items():
            if row.step is not None and not row.bad and not isinstance(value, str):
                logged.setdefault(name, []).append(OraclePoint(number, row.step, row.time, value))
    return {
        (name, point.step): [(point.time, float(point.value).hex())]
        for name, points in logged.items()
        for point in counting(points)
    }


def events_of(deltas: Iterable[Delta]) -> list[Event]:
    """Return the events in `deltas`, one per row of a block."""
    found: list[Event] = []
    for delta in deltas:
        for block in delta.blocks:
            for column in range(len(block.row)):
                values = tuple(
                    (name, float(block.values[line, column]).hex())
                    for line, name in enumerate(block.names)
                    if block.present[line, column]
                )
                assert values, "a row of a block without a point"
                found.append((int(block.row[column]), int(block.step[column]), float(block.time[column]), values))
    return found


def look(path: Path, cursor: Cursor | None = None, content: ContentOptions | None = None, **options: Any) -> Delta:
    """Look at the run directory `path` from a cursor as a target gives it back; `options` are those of ReadOptions."""
    kept = None if cursor is None else Cursor.from_json(cursor.to_json(), where="here")
    return read_delta(read_run(path), kept, content or ContentOptions(), ReadOptions(**options))


@dataclass
class Target:
    """Applies deltas, starts over where it must, and stores its cursor as text."""

    wanted: ReadOptions
    keeps_last_points: bool = True
    budget: int = 1 << 20
    text: str | None = None
    events: list[Event] = field(default_factory=list)
    points: Points = field(default_factory=dict)
    metrics: tuple[str, ...] = ()

    @property
    def cursor(self) -> Cursor | None:
        """Return the stored cursor, parsed from its text."""
        return None if self.text is None else Cursor.from_json(self.text, where="here")

    def export(self, path: Path) -> None:
        """Export the run directory `path`."""
        run = read_run(path)
        while True:
            delta = read_delta(run, self.cursor, ContentOptions(), self.wanted, budget=self.budget)
            changed = delta.kind is DeltaKind.CHANGED
            if changed or (delta.kind is DeltaKind.REWIND and not self.wanted.replaces):
                self.rebuild(path)
                return
            self.apply(delta)
            if not delta.more:
                return

    def rebuild(self, path: Path) -> None:
        """Start over with everything."""
        anchors = self.cursor.anchors if self.cursor else ()
        self.events, self.points = [], {}
        for delta in read_whole(read_run(path), ContentOptions(), self.wanted, anchors=anchors, budget=self.budget):
            self.apply(delta)

    def apply(self, delta: Delta) -> None:
        """Remove superseded points, add new ones, and store the cursor."""
        if delta.replace_from is not None:
            self.points = {key: held for key, held in self.points.items() if key[1] < delta.replace_from}
            self.events.clear()
        new = events_of([delta])
        self.events += new
        for _, step, time, values in new:
            for name, value in values:
                self.points.setdefault((name, step), []).append((time, value))
        after = delta.after if self.keeps_last_points else delta.after.with_(last_points=None)
        self.text = after.to_json()
        self.metrics = delta.metrics


def series_of(run: Run, name: str) -> Series:
    """Return the points of one metric that count; without any where the run does not have it."""
    none = Series(name, np.empty(0, np.int64), np.empty(0), np.empty(0))
    return read_points(run, ContentOptions(), only=[name])[0].get(name, none)


def rising(events: list[Event]) -> bool:
    """Return whether the steps of each metric rise in the order of `events`."""
    last: dict[str, int] = {}
    for _, step, _, values in events:
        for name, _ in values:
            if step <= last.get(name, step - 1):
                return False
            last[name] = step
    return True
