"""metrics.csv: rows are appended, the header grows by rename, a torn tail is mended.

The file is Lightning's: a header, then one row per log call, CRLF line ends, empty cells. Whatever instant the process
is killed at, every row that was on disk stays there, once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from typing import TYPE_CHECKING, NamedTuple

from logger.csv_scan import CHUNK, Quotes, Scan, holds_headers, records, scan
from logger.files import keep_access
from logger.state import free_beside
from logger.values import cell_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

__all__ = ["MetricsFile", "Row"]

_LAYOUTS = 256
"""How many sets of metric names are remembered; a training has a handful."""

_SPECIAL = re.compile(r'[",\r\n]')
_LINE_END = re.compile(rb"\r?\n")


class Row(NamedTuple):
    """One row to be: names and values side by side, without the step and the time, which every row has."""

    names: tuple[str, ...]
    values: Sequence[object]
    step: int
    time: float


class _Unsure(NamedTuple):
    """A write under way: its first row, how many rows it has, and a look at the disk that says whether it got there."""

    first: Row
    number: int
    arrived: Callable[[], bool]


class MetricsFile:
    """The metrics.csv of one run, open for appending.

    `columns` is the header, `time_column` the column that holds the rows' times (None: rows have none), `rows` how many rows
    the file holds. A file whose time column is still called `formerly` has it renamed before anything is appended. `complain` is
    told, by a key and a sentence, what a person should know.
    """

    def __init__(
        self,
        path: Path,
        *,
        time_column: str | None,
        formerly: str | None = None,
        complain: Callable[[str, str], None] = lambda _key, _sentence: None,
    ) -> None:
        self.path = path
        self.time_column = time_column
        self.columns: list[str] = []
        self.rows = 0
        self.formerly = formerly
        self._complain = complain
        self._descriptor: int | None = None
        self._size = 0
        self._layouts: dict[tuple[str, ...], list[int]] = {}
        self._unsure: _Unsure | None = None

    def resume(self) -> Scan:
        """Go on with the file that is there: a torn tail is cut off (more than one line is kept beside the file, and told).

        What the file holds then comes back. Raises FileNotFoundError where there is none, other OSErrors where it cannot be written.
        """
        self.close()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
        found = scan(self.path)
        if found.end < found.size:
            self._keep_tail(found)
            os.ftruncate(self._descriptor, found.end)
        self.columns, self.rows, self._size = list(found.columns), found.rows, found.end
        self._layouts.clear()
        stepless = found.rows > 0 and "step" not in found.columns
        unify = stepless or (found.headers and holds_headers(self.path, found))
        if unify:
            self._unify(found)
        rename = self.formerly in self.columns and self.time_column not in (None, *self.columns)
        if rename:
            self.columns[self.columns.index(str(self.formerly))] = str(self.time_column)
            self._rewrite(self._grown(0), [])
        return scan(self.path) if unify or rename else found

    def append(self, rows: list[Row]) -> None:
        """Move `rows` (the list is emptied) to the end of the file, as one write of whole lines; new columns go behind the old ones.

        Raises OSError where the disk does not take them. After any exception, also one that a signal raised in the middle,
        a row is either in the file or still in the list.
        """
        try:
            self._settle(rows)
            if not rows:
                return
            present = self._open()
            new = self._new_columns(rows)
            if new:
                self.columns += new
                self._layouts.clear()
            if not present:
                self._create(rows)
            elif new:
                self._rewrite(self._grown(len(new)), rows)
            else:
                self._write("".join([self._line(row) for row in rows]), rows)
        except BaseException:
            self.close()  # the next append looks at the file afresh
            raise

    def rename_time_column(self, name: str) -> None:
        """Call the time column `name` from now on; the header on disk, which has the name `formerly`, follows before the next rows."""
        if self.time_column in self.columns or self.formerly not in self.columns:
            self.formerly = self.time_column
        self.time_column = name
        self.close()

    def sync(self) -> None:
        """Flush what was appended to the disk. May be called by another thread than `append`."""
        descriptor = self._descriptor
        if descriptor is not None:
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno != errno.EBADF:  # closed meanwhile
                    raise

    def close(self) -> None:
        """Let go of the file; the next append opens it again, and looks through it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _keep_tail(self, found: Scan) -> None:
        """Copy what is to be cut off, if that is more than one torn line: a quote that nobody closed swallows all that follows."""
        with self.path.open("rb") as file:
            file.seek(found.end)
            if not any(b"\n" in chunk for chunk in iter(lambda: file.read(CHUNK), b"")):
                return
            file.seek(found.end)
            aside = free_beside(self.path)
            with aside.open("xb") as copy:
                keep_access(self.path, copy.fileno())
                shutil.copyfileobj(file, copy, CHUNK)
                copy.flush()
                os.fsync(copy.fileno())
        where = "its header" if not found.columns else f"row {found.rows}"
        self._complain(
            "metrics.csv",
            f"{self.path} cannot be read after {where}, where a quote is never closed: what follows is kept as {aside.name}.",
        )

    def _new_columns(self, rows: Sequence[Row]) -> list[str]:
        if all(row.names in self._layouts for row in rows):
            return []
        wanted = dict.fromkeys(["step"] if self.time_column is None else ["step", self.time_column])
        for row in rows:
            wanted.update(dict.fromkeys(row.names))
        known = set(self.columns)
        return [name for name in wanted if name not in known]

    def _open(self) -> bool:
        """Whether there is a file with a header to append to. One that others put in its place is looked through."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                state = os.fstat(self._descriptor)
                if state.st_nlink > 0:
                    self._size = state.st_size
                    return bool(self.columns)
        try:
            self.resume()
        except FileNotFoundError:
            self.columns, self.rows = [], 0
            self._layouts.clear()
        return bool(self.columns)

    def _create(self, rows: list[Row]) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._size = os.fstat(self._descriptor).st_size
        self._write(_join(self.columns) + "".join([self._line(row) for row in rows]), rows)

    def _write(self, text: str, rows: list[Row]) -> None:
        descriptor, before = self._descriptor, self._size
        assert descriptor is not None
        data = text.encode("utf-8", errors="backslashreplace")
        path, after = self.path, before + len(data)
        self._unsure = _Unsure(rows[0], len(rows), lambda: path.stat().st_size >= after)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
        except BaseException:
            if os.fstat(descriptor).st_size < after:
                os.ftruncate(descriptor, before)
            raise
        self._took(rows)

    def _settle(self, rows: list[Row]) -> None:
        """After an exception in the middle of a write: take out of `rows` what is on disk all the same."""
        unsure = self._unsure
        if unsure is not None and rows and rows[0] is unsure.first and unsure.arrived():
            self._took(rows)
        self._unsure = None

    def _took(self, rows: list[Row]) -> None:
        unsure = self._unsure
        assert unsure is not None
        self.rows += unsure.number
        del rows[: unsure.number]
        self._unsure = None

    def _grown(self, more: int) -> Iterator[bytes]:
        """The file with the present header, every row with `more` empty cells at its end."""
        found = scan(self.path)
        yield _join(self.columns).encode("utf-8", errors="backslashreplace")
        with self.path.open("rb") as file:
            file.seek(found.start)
            left = found.end - found.start
            quotes = Quotes()
            carry = b""
            while left > 0:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    return
                left -= len(chunk)
                chunk = carry + chunk
                carry = b"\r" if chunk.endswith(b"\r") else b""  # never part a line end
                chunk = chunk[: len(chunk) - len(carry)]
                for piece, inside in quotes.pieces(chunk) if more else ((chunk, True),):
                    yield piece if inside else _pad_lines(piece, b"," * more)
            yield carry

    def _rewrite(self, content: Iterable[bytes], rows: list[Row]) -> None:
        """Put `content` and `rows` in the file's place, at one instant."""
        real = self.path.resolve()  # a link stays a link
        temporary = real.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        try:
            keep_access(self.path, descriptor)
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.writelines(content)
                file.write("".join([self._line(row) for row in rows]).encode("utf-8", errors="backslashreplace"))
            os.fsync(descriptor)
            inode = os.fstat(descriptor).st_ino
            if rows:
                self._unsure = _Unsure(rows[0], len(rows), lambda: self.path.stat().st_ino == inode)
            temporary.replace(real)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self.close()
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        if rows:
            self._took(rows)

    def _unify(self, found: Scan) -> None:
        """Bring a file with several header lines (two files put together), or without steps, under one header with `step`.

        Rows without steps get their numbers, as readers count them; what is no row for readers stays none.
        """
        columns = dict.fromkeys(found.columns)
        rows = 0
        for record in records(self.path, found):
            columns.update(dict.fromkeys(record.filled() if record.good else ()))
            rows += 1
        numbered = "step" not in columns
        self.columns, self.rows = [*columns, "step"] if numbered else list(columns), rows

        def lines() -> Iterator[bytes]:
            yield _join(self.columns).encode()
            for number, record in enumerate(records(self.path, found)):
                row = record.filled() | ({"step": str(number)} if numbered else {})
                cells = [row.get(name, "") for name in self.columns] if record.good else record.cells
                bad = not record.good and len(cells) == len(self.columns)
                yield _join([*cells, ""] if bad else cells).encode()

        self._rewrite(lines(), [])

    def _line(self, row: Row) -> str:
        layout = self._layouts.get(row.names)
        if layout is None:
            if len(self._layouts) >= _LAYOUTS:
                self._layouts.clear()
            own = [*row.names, "step"] if self.time_column is None else [*row.names, "step", self.time_column]
            layout = self._layouts[row.names] = [self.columns.index(name) for name in own]
        line = [""] * len(self.columns)
        for position, value in zip(layout, row.values, strict=False):
            line[position] = repr(value) if type(value) is float else _cell(value)
        line[layout[len(row.names)]] = str(row.step)
        if self.time_column is not None:
            line[layout[-1]] = f"{row.time:.6f}"
        return ",".join(line) + "\r\n"


def _cell(value: object) -> str:
    """`value` as the csv module would write it."""
    if value is None:
        return ""
    if type(value) is int:
        return str(value)
    text = repr(value) if isinstance(value, float) else cell_text(value)
    return '"' + text.replace('"', '""') + '"' if _SPECIAL.search(text) else text


def _join(names: Iterable[str]) -> str:
    return ",".join([_cell(name) for name in names]) + "\r\n"


def _pad_lines(part: bytes, commas: bytes) -> bytes:
    if part.count(b"\n") == part.count(b"\r\n"):
        return part.replace(b"\r\n", commas + b"\r\n")
    return _LINE_END.sub(lambda end: commas + end.group(), part)
