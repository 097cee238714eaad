"""Append to metrics.csv, extend its header, and repair what a kill left of it.

The file has Lightning's form: a header, one row per log call, CRLF line ends, empty cells. A row that was on disk stays
there, once, whenever the process is killed. `read_records` decides what a row is exactly as `bridge.rundir.header` and
`bridge.rundir.metrics` do; `logger` imports nothing of `bridge`.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import re
import shutil
import sys
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple

from logger.files import append_whole, free_beside, replace_file, set_aside
from logger.values import cell_text, is_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from logger.row import Row

_BOM = b"\xef\xbb\xbf"
_REMEMBERED_PLACES = 256
"""Sets of metric names whose columns are remembered; a training has a handful."""

_SPECIAL = re.compile(r'[",\r\n]')

csv.field_size_limit(sys.maxsize)  # of the whole process: a text of any length is one cell


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
        self._headers = 0
        self._warn = warn or (lambda _key, _sentence: None)
        self._descriptor: int | None = None
        self._places: dict[tuple[str, ...], list[int]] = {}
        # Of a write that began: the first row, the number of rows, and the rows on disk after it.
        self._pending: tuple[Row, int, int] | None = None

    def resume(self) -> None:
        """Continue the file, if there is one: count what it holds, and cut off a torn tail.

        A tail of more than one line is kept beside the file. A file without steps, which no current logger writes, is
        renamed. Both cause a warning. Raises OSError if the file cannot be written.
        """
        self.close()
        self.columns, self.rows, self._headers = [], 0, 0
        self._places.clear()
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        end = 0
        for record in read_records(self.path):
            end += len(record.raw)
            if record.kind == "header":
                if "step" not in record.columns:
                    self.close()
                    aside = set_aside(self.path)
                    self._warn("metrics.csv", f"{self.path} has no column `step`; it is kept as {aside.name}.")
                    return
                self.columns, self._headers = list(record.columns), self._headers + 1
            elif record.kind == "row":
                self.rows += 1
        if end < os.fstat(self._descriptor).st_size:
            self._keep_tail(end)
            os.ftruncate(self._descriptor, end)

    def append(self, rows: list[Row]) -> None:
        """Move `rows` (the list is emptied) to the end of the file as one write of whole lines.

        New columns go to the right.

        Raises OSError if the disk refuses. After any exception, even one that a signal raises in the middle, a row is
        either in the file or still in the list.
        """
        try:
            if not self._is_open():
                self.resume()
            self._settle(rows)
            if not rows:
                return
            new = self._new_columns(rows)
            # Rows under several headers cannot all be padded: such a file gets one more header line for new columns.
            grows = bool(new) and self._headers == 1
            if new:
                self.columns += new
                self._places.clear()
            lines = [self._line(row) for row in rows]
            data = _encode(lines if grows or not new else [_join(self.columns), *lines])
            self._pending = (rows[0], len(rows), self.rows + len(rows))
            if grows:
                replace_file(self.path, chain(self._padded(len(new)), [data]))
                self.close()
            if self._descriptor is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(self.path, flags, 0o666)
            if not grows:
                append_whole(self._descriptor, data)
            self.rows += len(rows)
            self._headers = self._headers or 1
            self._settle(rows)
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
        """Close the file; the next append opens and reads it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _is_open(self) -> bool:
        """Return whether the file is open and was not removed or replaced."""
        try:
            return self._descriptor is not None and os.fstat(self._descriptor).st_nlink > 0
        except OSError:  # another machine replaced the file in a network file system
            return False

    def _settle(self, rows: list[Row]) -> None:
        """Take the rows out of the list that the last write brought to disk, also if an exception interrupted it.

        The file was read again after an exception, so `self.rows` counts what it holds.
        """
        if self._pending is not None:
            first, number, rows_after = self._pending
            if rows and rows[0] is first and self.rows >= rows_after:
                del rows[:number]
            self._pending = None

    def _new_columns(self, rows: Sequence[Row]) -> list[str]:
        if all(row.names in self._places for row in rows):
            return []
        wanted = dict.fromkeys(["step"] if self.time_column is None else ["step", self.time_column])
        for row in rows:
            wanted.update(dict.fromkeys(row.names))
        known = set(self.columns)
        return [name for name in wanted if name not in known]

    def _padded(self, new: int) -> Iterator[bytes]:
        """Yield the file under the present header, with `new` empty cells at the end of every row."""
        yield _encode([_join(self.columns)])
        for record in read_records(self.path):
            if record.kind == "row":
                line = record.raw.rstrip(b"\r\n")
                yield line + b"," * new + record.raw[len(line) :]
            elif record.kind == "blank":
                yield record.raw

    def _keep_tail(self, end: int) -> None:
        """Copy the part to be cut off if it is more than one torn line: an unclosed quote swallows all that follows."""
        with self.path.open("rb") as file:
            file.seek(end)
            tail = file.read()
        if b"\n" not in tail:
            return
        aside = free_beside(self.path)
        replace_file(aside, tail)
        shutil.copymode(self.path, aside)
        where = f"row {self.rows}" if self.columns else "its header"
        self._warn(
            "metrics.csv",
            f"{self.path} cannot be read after {where}, because a quote is never closed; "
            f"the rest is kept as {aside.name}.",
        )

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


def _encode(lines: Iterable[str]) -> bytes:
    return "".join(lines).encode("utf-8", errors="backslashreplace")


# Reading what is there


class Record(NamedTuple):
    """A complete line (or several, if a quoted cell holds line ends) of metrics.csv.

    `columns` is the header line above it, for a header line its own cells. A file can hold several header lines if
    others were appended to it.
    """

    raw: bytes
    kind: Literal["header", "row", "blank"]
    columns: tuple[str, ...]

    def values(self) -> dict[str, str] | None:
        """Return the cells of a row that are not empty, by column, the last of several columns of one name.

        None for a row that readers ignore: it has a wrong number of cells, or is no CSV.
        """
        _, cells = _next_record(BytesIO(self.raw), self.columns) or (b"", None)
        if cells is None or len(cells) != len(self.columns):
            return None
        return {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell}


def read_records(path: Path) -> Iterator[Record]:
    """Yield the complete lines of `path`, none without a header that is CSV."""
    columns: tuple[str, ...] = ()
    with path.open("rb") as file:
        for line in file:
            # Nearly all lines are rows that end where they end. For the others the csv module decides, which is slow.
            is_odd = b'"' in line or b"step" in line or b"\r" in line[:-2] or line[0] in b"\r\n"
            if columns and not is_odd and line.endswith(b"\n"):
                yield Record(line, "row", columns)
                continue
            found = _next_record(chain([line], file), columns)
            if found is None:
                return
            raw, cells = found
            if cells == []:
                yield Record(raw, "blank", columns)
            elif cells is not None and (not columns or (b"step" in raw and is_header(cells, columns))):
                columns = tuple(cells)
                yield Record(raw, "header", columns)
            elif columns:
                yield Record(raw, "row", columns)
            else:
                return


def _next_record(lines: Iterable[bytes], columns: Sequence[str]) -> tuple[bytes, list[str] | None] | None:
    """Return the first record in `lines` and its cells (None: it is no CSV); None if it is not complete.

    Before the header, where `columns` are empty, byte order marks are ignored.
    """
    taken: list[bytes] = []
    torn = False

    def texts() -> Iterator[str]:
        nonlocal torn
        for line in lines:
            if line.endswith(b"\n"):
                taken.append(line)
                yield (line if columns else line.removeprefix(_BOM)).decode("utf-8", errors="replace")
        torn = True  # the csv module asks for more, so its record is not complete

    cells: list[str] | None
    try:
        cells = next(csv.reader(texts()), None)
    except csv.Error:
        cells = None
    return None if torn else (b"".join(taken), cells)
