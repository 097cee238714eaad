"""Append to metrics.csv, extend its header, and repair what a kill left of it.

The file has Lightning's form: a header, one row per log call, CRLF line ends, empty cells. A row that was on disk stays
there, once, whenever the process is killed. The functions below decide what a row is exactly as `bridge.rundir.header`
and `bridge.rundir.metrics` do; `logger` imports nothing of `bridge`.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import re
import shutil
from typing import TYPE_CHECKING, NamedTuple

from logger.files import append_whole, free_beside, keep_access, no_field_limit, replace_file
from logger.values import cell_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from logger.row import Row

__all__ = ["MetricsFile", "Record", "Scan", "header", "records", "scan", "whole_number"]

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_REMEMBERED_PLACES = 256
"""Sets of metric names whose columns are remembered; a training has a handful."""

_SPECIAL = re.compile(r'[",\r\n]')


class MetricsFile:
    """The metrics.csv of one run, open for appending.

    `columns` is the header that new rows follow, `time_column` the column of times (None: rows have none), `rows` the
    number of rows on disk. `warn` is called with a key and a sentence.
    """

    def __init__(self, path: Path, *, time_column: str | None, warn: Callable[[str, str], None] | None = None) -> None:
        self.path = path
        self.time_column = time_column
        self.columns: list[str] = []
        self.rows = 0
        self._warn = warn or (lambda _key, _sentence: None)
        self._descriptor: int | None = None
        self._several_headers = False
        self._places: dict[tuple[str, ...], list[int]] = {}
        self._pending: _PendingWrite | None = None

    def resume(self) -> Scan:
        """Continue the file that is there and return what it holds, after a torn tail is cut off.

        A tail of more than one line is kept beside the file, with a warning. Raises FileNotFoundError if there is no
        file, and other OSErrors if it cannot be written.
        """
        self.close()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        found = scan(self.path)
        if found.end < found.size:
            self._keep_tail(found)
            os.ftruncate(self._descriptor, found.end)
        if found.rows and "step" not in found.columns:
            self._number_rows(found)
            found = scan(self.path)
        self.columns, self.rows = list(found.last_columns), found.rows
        self._several_headers = found.several_headers
        self._places.clear()
        return found

    def append(self, rows: list[Row]) -> None:
        """Move `rows` (the list is emptied) to the end of the file as one write of whole lines.

        New columns go to the right.

        Raises OSError if the disk refuses. After any exception, even one that a signal raises in the middle, a row is
        either in the file or still in the list.
        """
        try:
            present = self._reopen()
            self._settle(rows)
            if not rows:
                return
            new = self._new_columns(rows)
            if new:
                self.columns += new
                self._places.clear()
            if new and present and not self._several_headers:
                self._rewrite(self._with_more_cells(len(new)), rows)
                return
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            # Rows under several headers cannot all be padded: such a file gets one more header line for new columns.
            text = (_join(self.columns) if new or not present else "") + self._lines(rows)
            self._pending = _PendingWrite(rows[0], len(rows), self.rows + len(rows))
            append_whole(self._descriptor, text.encode("utf-8", errors="backslashreplace"))
            self._confirm(rows)
        except BaseException:
            self.close()  # the next append looks at the file afresh
            raise

    def sync(self) -> None:
        """Flush to the disk what was appended. Another thread than that of `append` may call this."""
        descriptor = self._descriptor
        if descriptor is not None:
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno != errno.EBADF:  # closed meanwhile
                    raise

    def close(self) -> None:
        """Close the file; the next append opens and scans it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _reopen(self) -> bool:
        """Return whether there is a file with a header to append to; scan it if it is not the one that is open."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if os.fstat(self._descriptor).st_nlink > 0:
                    return bool(self.columns)
        try:
            self.resume()
        except FileNotFoundError:
            self.columns, self.rows = [], 0
            self._places.clear()
        return bool(self.columns)

    def _new_columns(self, rows: Sequence[Row]) -> list[str]:
        if all(row.names in self._places for row in rows):
            return []
        wanted = dict.fromkeys(["step"] if self.time_column is None else ["step", self.time_column])
        for row in rows:
            wanted.update(dict.fromkeys(row.names))
        known = set(self.columns)
        return [name for name in wanted if name not in known]

    def _rewrite(self, content: Iterable[bytes], rows: list[Row]) -> None:
        """Replace the file by `content` and `rows` at one instant. The next append opens the new one."""
        tail = self._lines(rows).encode("utf-8", errors="backslashreplace")
        if rows:
            self._pending = _PendingWrite(rows[0], len(rows), self.rows + len(rows))
        replace_file(self.path, _chain(content, tail))
        self.close()
        if rows:
            self._confirm(rows)

    def _settle(self, rows: list[Row]) -> None:
        """Take the rows out of the list that reached the disk although an exception interrupted their write.

        The file was closed after the exception, so `self.rows` counts what it holds.
        """
        pending = self._pending
        if pending is not None and rows and rows[0] is pending.first and self.rows >= pending.rows_after:
            del rows[: pending.number]
        self._pending = None

    def _confirm(self, rows: list[Row]) -> None:
        """Take the rows out of the list that were written."""
        assert self._pending is not None
        self.rows = self._pending.rows_after
        del rows[: self._pending.number]
        self._pending = None

    def _with_more_cells(self, more: int) -> Iterator[bytes]:
        """Yield the file with the present header and `more` empty cells at the end of every row."""
        found = scan(self.path)
        yield _join(self.columns).encode("utf-8", errors="backslashreplace")
        for record in _raw_records(self.path, found):
            line = record.rstrip(b"\r\n")
            yield line + b"," * more + record[len(line) :] if line else record

    def _number_rows(self, found: Scan) -> None:
        """Give a file without a `step` column one: each row gets the step that readers gave it, its number.

        A row that readers ignore stays one, with all of its cells.
        """
        self.columns = [*found.columns, "step"]

        def lines() -> Iterator[bytes]:
            yield _join(self.columns).encode("utf-8", errors="backslashreplace")
            for number, record in enumerate(records(self.path, found)):
                cells = [*record.cells, str(number) if record.good else ""]
                if not record.good and len(cells) == len(self.columns):
                    cells.append("")  # its number of cells stays wrong
                yield _join(cells).encode("utf-8", errors="backslashreplace")

        self._rewrite(lines(), [])

    def _keep_tail(self, found: Scan) -> None:
        """Copy the part to be cut off if it is more than one torn line: an unclosed quote swallows all that follows."""
        with self.path.open("rb") as file:
            file.seek(found.end)
            if not any(b"\n" in chunk for chunk in iter(lambda: file.read(_CHUNK), b"")):
                return
            file.seek(found.end)
            aside = free_beside(self.path)
            with aside.open("xb") as copy:
                keep_access(self.path, copy.fileno())
                shutil.copyfileobj(file, copy, _CHUNK)
                copy.flush()
                os.fsync(copy.fileno())
        where = "its header" if not found.columns else f"row {found.rows}"
        self._warn(
            "metrics.csv",
            f"{self.path} cannot be read after {where}, because a quote is never closed; "
            f"the rest is kept as {aside.name}.",
        )

    def _lines(self, rows: Sequence[Row]) -> str:
        return "".join([self._line(row) for row in rows])

    def _line(self, row: Row) -> str:
        # `places` are the columns of the row's names, then those of the step and the time.
        places = self._places.get(row.names)
        if places is None:
            if len(self._places) >= _REMEMBERED_PLACES:
                self._places.clear()
            own = [*row.names, "step"] if self.time_column is None else [*row.names, "step", self.time_column]
            places = self._places[row.names] = [self.columns.index(name) for name in own]
        line = [""] * len(self.columns)
        for place, value in zip(places, row.values, strict=False):
            line[place] = repr(value) if type(value) is float else _cell(value)
        line[places[len(row.names)]] = str(row.step)
        if self.time_column is not None:
            line[places[-1]] = f"{row.time:.6f}"
        return ",".join(line) + "\r\n"


class _PendingWrite(NamedTuple):
    """A write that has begun: its first row, its number of rows, and the rows of the file after it."""

    first: Row
    number: int
    rows_after: int


def _cell(value: object) -> str:
    """Return `value` as the csv module would write it."""
    if value is None:
        return ""
    if type(value) is int:
        return str(value)
    text = repr(value) if isinstance(value, float) else cell_text(value)
    return '"' + text.replace('"', '""') + '"' if _SPECIAL.search(text) else text


def _join(cells: Iterable[str]) -> str:
    return ",".join([_cell(cell) for cell in cells]) + "\r\n"


def _chain(content: Iterable[bytes], tail: bytes) -> Iterator[bytes]:
    yield from content
    yield tail


# Reading what is there


class Scan(NamedTuple):
    """The result of a look through metrics.csv.

    `columns` is the header, which ends at byte `start`; `rows` complete rows follow it, the last of which ends at byte
    `end` of `size`. `last_columns` is the last header line, another one if files were concatenated. If `simple`, every
    line is one row without quotes.
    """

    columns: tuple[str, ...] = ()
    last_columns: tuple[str, ...] = ()
    start: int = 0
    rows: int = 0
    end: int = 0
    size: int = 0
    simple: bool = True
    several_headers: bool = False


class Record(NamedTuple):
    """The cells of one row below the header `columns`.

    Not `good` if readers ignore it (a wrong number of cells, no CSV).
    """

    columns: tuple[str, ...]
    cells: list[str]
    good: bool

    def filled(self) -> dict[str, str]:
        """Return the cells that are not empty, by column.

        Of several columns of one name the last, for steps the last column's.
        """
        found = {name: cell for name, cell in zip(self.columns, self.cells, strict=False) if cell}
        if self.good and self.columns.count("step") > 1:
            found["step"] = self.cells[_last_index(self.columns, "step")]
        return found


def scan(path: Path) -> Scan:
    """Look through the file `path` once, at the speed of the disk if every line is one row.

    Without a complete header nothing counts as complete.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        columns, start = _first_record(file)
        if not columns:
            return Scan(size=size)
        file.seek(start)
        simple, rows, at, end, tail = "step" in columns, 0, start, start, b"\n"
        while simple and (chunk := file.read(_CHUNK)):
            simple = not _may_hold_odd_lines(tail + chunk)
            if ends := chunk.count(b"\n"):  # each ends a row, because nothing is quoted
                rows, end = rows + ends, at + chunk.rfind(b"\n") + 1
            at += len(chunk)
            tail = chunk[-8:]
    if simple:
        return Scan(columns, columns, start, rows, end, size)
    rows, headers, last, end = 0, 1, columns, start
    for raw, cells, good in _complete_records(path, start, size):
        end += len(raw)
        if good and _is_header(cells, last):
            headers, last = headers + 1, tuple(cells)
        elif cells:
            rows += 1
    return Scan(columns, last, start, rows, end, size, simple=False, several_headers=headers > 1)


def header(path: Path) -> tuple[str, ...]:
    """Return the columns of the file `path`, or none if there is no file, or no complete header in it."""
    try:
        with path.open("rb") as file:
            return _first_record(file)[0]
    except FileNotFoundError:
        return ()


def records(path: Path, found: Scan, *, skip: int = 0) -> Iterator[Record]:
    """Yield the complete rows of `path` from row `skip` on.

    A header line among them is no row, and names the columns below it.
    """
    columns, number = found.columns, skip if found.simple else 0
    for _, cells, good in _complete_records(path, found.start, found.end, skip_lines=number):
        if not found.simple and good and _is_header(cells, columns):
            columns = tuple(cells)
            continue
        number += bool(cells)  # a blank line is no row
        if cells and number > skip:
            yield Record(columns, cells, good and len(cells) == len(columns))


def whole_number(cell: str) -> int | None:
    """Return the int64 that `cell` holds as a step, or None if it holds none."""
    try:
        number = int(cell)
    except ValueError:
        return None
    return number if -(2**63) <= number < 2**63 else None


def _first_record(file: BinaryIO) -> tuple[tuple[str, ...], int]:
    """Return the header at the start of `file`, behind blank lines, and the offset after it.

    No columns if it is not complete.
    """
    start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    for raw, cells, good in _records_of(file, start):
        start += len(raw)
        if cells:
            return (tuple(cells), start) if good else ((), 0)
    return (), 0


def _complete_records(
    path: Path, start: int, end: int, *, skip_lines: int = 0
) -> Iterator[tuple[bytes, list[str], bool]]:
    """Yield the complete records between two bytes of the file `path`, after the first `skip_lines` lines."""
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(skip_lines):
            file.readline()
        yield from _records_of(file, file.tell(), end)


def _records_of(file: BinaryIO, start: int, end: int | None = None) -> Iterator[tuple[bytes, list[str], bool]]:
    """Yield each complete record of `file`: its bytes, its cells, and if it is CSV.

    A record that is no CSV has its whole text as its one cell.
    """
    lines: list[bytes] = []
    torn = False

    def read() -> Iterator[str]:
        nonlocal torn
        at = start
        file.seek(at)
        while (end is None or at < end) and (line := file.readline()):
            at += len(line)
            lines.append(line)
            yield line.decode("utf-8", errors="replace")
        torn = True  # the record that asked for another line is not complete: a quote is open

    reader = csv.reader(read())
    while True:
        with no_field_limit():
            try:
                cells, good = next(reader), True
            except StopIteration:
                return
            except csv.Error:
                cells, good = [b"".join(lines).decode("utf-8", errors="replace").rstrip("\r\n")], False
        raw = b"".join(lines)
        if torn or not raw.endswith(b"\n"):
            return
        yield raw, cells, good
        lines.clear()


def _raw_records(path: Path, found: Scan) -> Iterator[bytes]:
    """Yield the bytes of each complete record below the header."""
    if not found.simple:
        yield from (raw for raw, _, _ in _complete_records(path, found.start, found.end))
        return
    with path.open("rb") as file:
        file.seek(found.start)
        left = found.end - found.start
        while left > 0 and (line := file.readline()):
            left -= len(line)
            yield line


def _is_header(cells: Sequence[str], columns: tuple[str, ...]) -> bool:
    """Return whether `cells` name columns: all are filled, one is `step`, and the cell of the step holds no number."""
    if "step" not in columns:
        return tuple(cells) == columns
    if "step" not in cells or not all(cells):
        return False
    place = _last_index(columns, "step")
    return place >= len(cells) or whole_number(cells[place]) is None


def _last_index(columns: tuple[str, ...], name: str) -> int:
    return len(columns) - 1 - columns[::-1].index(name)


def _may_hold_odd_lines(chunk: bytes) -> bool:
    """Return whether a line of `chunk` may be quoted, blank, or a header (a cell is `step`, which may also be text)."""
    if b'"' in chunk or b"\n\n" in chunk or b"\n\r\n" in chunk:
        return True
    at = chunk.find(b"step")
    while at >= 0:
        if chunk[at - 1 : at] in (b",", b"\n", b'"') and chunk[at + 4 : at + 5] in (b",", b"\r", b"\n", b'"'):
            return True
        at = chunk.find(b"step", at + 4)
    return False
