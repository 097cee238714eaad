"""Find the place where a cursor stands in metrics.csv: by the bytes before it, else by a digest of all rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from bridge.rundir.digest import bytes_digest, to_hex
from bridge.rundir.reading import Reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.cursor import ContentOptions, Cursor
    from bridge.model import Run
    from bridge.rundir.csv_rows import Table
    from bridge.rundir.rows import Rows

__all__ = ["Begun", "Changed", "begin"]


class Changed(Exception):  # noqa: N818 - an answer, not an error: read_delta makes a delta of it
    """What the cursor covers is not what the file holds; `evidence` is equal where two looks saw the same."""

    def __init__(self, reason: str, evidence: tuple[object, ...]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.evidence = evidence


@dataclass(slots=True)
class Begun:
    """A reading where a cursor stands, and the rows that follow."""

    reading: Reading
    source: Iterator[Rows] = field(default_factory=lambda: iter(()))
    first_line: bytes = b""


def begin(run: Run, cursor: Cursor | None, content: ContentOptions, table: Table | None, *, block: int) -> Begun:
    """Find the place of `cursor` in `table` (None: there is no file). Raises Changed where it is not there any more."""
    fresh = cursor is None or not cursor.header
    reading = Reading.begin(run, content, cursor.anchors if cursor is not None else ())
    found = table.layout() if table is not None else None
    if table is None or found is None:
        if cursor is not None and cursor.rows:
            raise Changed("metrics.csv is gone or empty", ("gone", table.stat if table is not None else None))
        return Begun(reading)
    layout, line = found
    reading.layout, reading.offset = layout, layout.end
    if cursor is None or fresh:
        return Begun(reading, table.rows(layout, layout.end, 0, block=block), line)
    if (
        cursor.header == bytes_digest(line)
        and table.size >= cursor.offset
        and cursor.window == bytes_digest(table.window(cursor.offset))
    ):
        below = table.layout(cursor.columns_at) if cursor.columns_at else found
        if below is not None:
            reading = Reading.resume(run, content, cursor, below[0])
            return Begun(reading, table.rows(below[0], reading.offset, reading.rows, block=block), line)
    return Begun(reading, _again(reading, cursor, table), line)


def _again(reading: Reading, cursor: Cursor, table: Table) -> Iterator[Rows]:
    """Read from the first row up to where `cursor` stands; the rows that follow."""
    found = table.layout()
    assert found is not None
    source = table.rows(found[0], found[0].end, 0)
    rest: tuple[Rows, ...] = ()
    for rows in source:
        count = min(len(rows), cursor.rows - reading.rows)
        reading.take(rows.head(count))
        if reading.rows == cursor.rows:
            rest = (rows.tail(count),)
            break
    if reading.rows < cursor.rows:
        reason = f"metrics.csv has {reading.rows} rows, the target was made of {cursor.rows}"
        raise Changed(reason, (table.stat, reading.rows))
    if to_hex(reading.digest) != (cursor.digest or to_hex(0)):
        raise Changed(
            f"metrics.csv: what its first {cursor.rows} rows hold has changed", (table.stat, to_hex(reading.digest))
        )
    reading.forget()
    return chain(rest, source)
