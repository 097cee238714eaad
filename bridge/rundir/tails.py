"""The tails of series where a cursor had no room for them: from the rows just before it, else from all of them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from bridge.rundir.reading import Reading
from bridge.rundir.series_state import SeriesState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.cursor import Cursor
    from bridge.rundir.csv_rows import Table
    from bridge.rundir.rows import Rows

__all__ = ["first_names", "make_known"]

_WINDOW = 1 << 16
_REMEMBERED = 64
_names: OrderedDict[tuple[object, ...], tuple[str, ...]] = OrderedDict()


def make_known(table: Table, reading: Reading, cursor: Cursor, portion: Sequence[Rows]) -> None:
    """See to it that `reading`, which stands at `cursor`, knows of each series what the rows `portion` can meet."""
    steps = [rows.step if rows.valid is None else rows.step[rows.valid] for rows in portion]
    low = min((int(step.min()) for step in steps if len(step)), default=None)
    if low is not None and cursor.last_step is not None and low <= cursor.last_step:
        nearby = _nearby(table, reading, cursor, low)
        if nearby is None:
            again = Reading.begin(reading.run, reading.content)
            _read_up_to(table, again, cursor.rows)
            reading.series, reading.known = again.series, True
            return
    else:
        nearby = []
    reading.series = SeriesState(names=first_names(table, reading, cursor))
    for rows in nearby:
        reading.series.take(rows.names, rows.step, rows.values, rows.present, first=rows.first)


def _nearby(table: Table, reading: Reading, cursor: Cursor, low: int) -> list[Rows] | None:
    """The rows just before `cursor` that hold every point at step `low` or later; None where only a full read can tell."""
    if not cursor.rising or reading.layout is None:
        return None
    window = table.window(cursor.offset, _WINDOW)
    begin = window.find(b"\n") + 1
    # In quoted cells a line may look like a row, and rows cannot be numbered from behind.
    if b'"' in window or not begin or reading.layout.step is None:
        return None
    offset = cursor.offset - len(window) + begin
    if offset < reading.layout.end:
        return None
    passing = Reading.begin(reading.run, reading.content)
    found = list(table.rows(reading.layout, offset, 0, stop=cursor.offset))
    if not found or any(len(rows.bad_at) or rows.layout is not found[0].layout for rows in found):
        return None
    first = found[0].step if found[0].valid is None else found[0].step[found[0].valid]
    if not len(first) or int(first[0]) >= low:
        return None
    return [passing.take(rows, drop=False) for rows in found]


def first_names(table: Table, reading: Reading, cursor: Cursor) -> tuple[str, ...]:
    """The first `cursor.seen` series, by the row and name of their first appearance."""
    content = reading.content
    key = (str(reading.run.path), cursor.header, cursor.early, cursor.seen, content.metrics, content.exclude_metrics)
    if key not in _names:
        again = Reading.begin(reading.run, content)
        _read_up_to(table, again, cursor.rows, series=cursor.seen)
        _names[key] = again.series.names
        while len(_names) > _REMEMBERED:
            _names.popitem(last=False)
    return _names[key]


def _read_up_to(table: Table, reading: Reading, rows: int, *, series: int | None = None) -> None:
    """Let `reading` take the first `rows` rows, or fewer once it has seen as many `series`."""
    found = table.layout()
    if found is None:
        return
    for piece in table.rows(found[0], found[0].end, 0):
        reading.take(piece.head(min(len(piece), rows - piece.first)))
        if reading.rows >= rows or (series is not None and len(reading.series) >= series):
            return
