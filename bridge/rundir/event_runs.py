"""Read the directories of TensorBoardLogger and of any SummaryWriter: a folder of event files is one run.

Each file is one start of the run, a session. The files are read one after another, in the order of their first wall
times, as if they were one long file: `EventTable` gives the rows of all of them under the interface of `MetricsTable`,
and an offset counts the bytes of the files in that order. Each scalar is a row, with its own time.
"""

from __future__ import annotations

import os
import re
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bridge.errors import RunDirectoryError
from bridge.files import Refused, clean, inside, open_raw, shortened
from bridge.model import NoticeKind
from bridge.rundir.event_file import SCALAR, fields, parse_event, read_events

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bridge.model import Cursor, RunFile, Scalar
    from bridge.rundir.event_file import EventBatch
    from bridge.rundir.header import Layout
    from bridge.rundir.metrics import Rows

FRESH = 300.0
"""Seconds after its last write up to which a run counts as running: a SummaryWriter writes every 120 seconds."""

PLACEHOLDER = ("hp_metric", 0, -1.0)
"""The point that Lightning writes when no metric was given for the HPARAMS page. It is no point."""

_FIRST_BYTES = 1 << 16
_MOST_SEARCHED = 1 << 20
_MOST_CELLS = 4 << 20
_WINDOW = 1 << 16
_NUMBERS = re.compile(r"(\d+)")


def is_event_file(name: str) -> bool:
    """Return if a file of this name holds events."""
    return "tfevents" in name and not name.endswith(".profile-empty")


def event_names(folder: Path) -> list[str]:
    """Return the names of the event files in `folder`."""
    try:
        return [name for name in os.listdir(folder) if is_event_file(name)]  # noqa: PTH208 - names are all it takes
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class EventFacts:
    """What event files say of their run: its first and last wall time, and the hyperparameters of the HPARAMS page."""

    start: float | None = None
    end: float | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict)


def event_files(folder: Path, names: Iterable[str]) -> tuple[RunFile, ...]:
    """Return the event files among `names` in `folder`, by their first wall time, then by name with numbers as numbers.

    A file that must not be read, or that holds no record yet, is left out.
    """
    found = []
    for name in names:
        if not is_event_file(name):
            continue
        try:
            file = inside(folder, name)
            first = next(_first_records(file.path), None)
        except (Refused, OSError):
            continue
        if first is not None:
            numbered = [int(part) if part.isdigit() else part for part in _NUMBERS.split(name)]
            found.append((_time_of(first), numbered, file))
    return tuple(file for _, _, file in sorted(found, key=lambda item: item[:2]))


def holds_points(folder: str, names: Iterable[str]) -> bool:
    """Return if an event file among `names` holds a point other than the placeholder, or was written just now."""
    for name in names:
        path = f"{folder}{os.sep}{name}"
        try:
            if time.time() - os.stat(path).st_mtime < FRESH:  # noqa: PTH116 - asked for each folder of a walk
                return True
            for data in _first_records(path, _MOST_SEARCHED):
                _, step, values = parse_event(data)
                if any(kind == SCALAR and (tag, step, value) != PLACEHOLDER for tag, kind, value in values):
                    return True
        except (OSError, ValueError, IndexError, struct.error):
            continue
    return False


def read_event_facts(files: Sequence[RunFile]) -> EventFacts:
    """Return what `files` say of their run; the hyperparameters are those of the last file that has some."""
    start: float | None = None
    end: float | None = None
    params: dict[str, Scalar] = {}
    for file in files:
        try:
            for data in _first_records(file.path):
                then, _, values = parse_event(data)
                start = then if start is None else min(start, then)
                end = then if end is None else max(end, then)
                for _, kind, value in values:
                    if kind == "hparams":
                        params = _session_params(value) or params
        except (OSError, ValueError, IndexError, struct.error):
            continue
        end = max(end or 0.0, _last_time(file))
    return EventFacts(start, end, params)


def _first_records(path: Path | str, size: int = _FIRST_BYTES) -> Iterator[bytes]:
    """Yield the data of the first complete records of a file, as far as they lie in its first `size` bytes."""
    with open(path, "rb") as file:  # noqa: PTH123 - a text or a Path
        data = file.read(size)
    at = 0
    while at + 16 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if length > len(data) - at - 16:
            return
        yield data[at + 12 : at + 12 + length]
        at += 16 + length


def _time_of(data: bytes) -> float:
    try:
        return parse_event(data)[0]
    except (ValueError, IndexError, struct.error):
        return 0.0


def _last_time(file: RunFile) -> float:
    """Return the wall time of the last complete record; for a large file, the time of its last write.

    The records are walked by their lengths, which takes a second for 20 million bytes of scalars.
    """
    if file.size > 4 << 20:
        return file.mtime_ns / 1e9
    last = 0.0
    for data in _first_records(file.path, file.size):
        if len(data) >= 9 and data[0] == 0x09:  # the field `wall_time`, a double, comes first
            last = max(last, struct.unpack_from("<d", data, 1)[0])
    return last


def _session_params(data: bytes) -> dict[str, Scalar]:
    """Return the hyperparameters in the data of the hparams plugin; none if it does not begin a session."""
    params: dict[str, Scalar] = {}
    for number, value in fields(data):
        if number != 3 or not isinstance(value, bytes):
            continue
        for key, entry in fields(value):
            if key == 1 and isinstance(entry, bytes):
                pair = dict(fields(entry))
                name, held = pair.get(1, b""), pair.get(2, b"")
                if isinstance(name, bytes) and isinstance(held, bytes):
                    params[clean(name.decode("utf-8", "replace"))] = _plain_value(dict(fields(held)))
    return params


def _plain_value(value: Mapping[int, int | bytes]) -> Scalar:
    """Return a `google.protobuf.Value`: null, a number, a text or a bool. A number that is whole becomes an int."""
    number, text = value.get(2), value.get(3)
    if isinstance(number, bytes):
        (found,) = struct.unpack("<d", number)
        return int(found) if found.is_integer() and abs(found) < 2**53 else float(found)
    if isinstance(text, bytes):
        return clean(text.decode("utf-8", "replace"))
    return bool(value[4]) if 4 in value else None


class EventTable:
    """The scalars of event files as rows, like those of a metrics.csv.

    `stat` is (bytes, mtime in nanoseconds) of all files together, from before the first byte was read. `session_rows`
    are the rows with which the files begin, as far as they were read.
    """

    def __init__(self, files: Sequence[RunFile]) -> None:
        """Look at the sizes of the files."""
        from bridge.rundir.header import Layout

        self._files: list[RunFile] = []
        self._starts: list[int] = []
        self._sizes: list[int] = []
        newest = total = 0
        for file in files:
            try:
                found = os.stat(file.path)  # noqa: PTH116 - hundreds of files in one folder
            except OSError:
                continue  # deleted just now
            self._files.append(file)
            self._starts.append(total)
            self._sizes.append(found.st_size)
            total += found.st_size
            newest = max(newest, found.st_mtime_ns)
        self.stat = (total, newest)
        self.layout: Layout | None = Layout(("step", "wall_time"), 0, 1, {}) if self._files else None
        self.name = str(files[0].path.parent) if files else ""
        self.total = 0
        self.session_rows: list[int] = []
        self._missing = 0

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return self.stat[0]

    def place(self, offset: int) -> str:
        """Return the name of the file that holds byte `offset`."""
        return self._files[self._file_at(offset + 1)].path.name

    def lines_between(self, begin: int, end: int) -> int:
        """Return 0: no times have to be estimated."""
        return 0

    def marks(self, offset: int, layout: Layout | None) -> dict[str, str | int]:
        """Return what a cursor keeps to find byte `offset` again: its file, how many come before, the bytes before."""
        at = self._file_at(offset)
        here = offset - self._starts[at]
        return {"header": f"{self._digest(at)}:{at}", "window": self._window(at, here), "columns_at": here}

    def find(self, cursor: Cursor) -> tuple[Layout, int] | None:
        """Return the byte at which `cursor` ends; None if the files do not hold what it covers.

        Files that were deleted since do not matter, as long as the file in which the cursor ends is there.
        """
        assert self.layout is not None
        name, _, before = cursor.header.partition(":")
        at = next((number for number in range(len(self._files)) if self._digest(number) == name), None)
        if at is None or not before.isdigit() or at > int(before) or self._sizes[at] < cursor.columns_at:
            return None
        moved = self._starts[at] != cursor.offset - cursor.columns_at
        if (at == int(before) and moved) or cursor.window != self._window(at, cursor.columns_at):
            return None
        offset = self._starts[at] + cursor.columns_at
        if at < int(before):
            rows = sum(len(part) for part in self.rows(stop=offset))
            self._missing = cursor.rows - rows
        return self.layout, offset

    def is_gone(self, cursor: Cursor) -> bool:
        """Return if the file in which `cursor` ends was deleted."""
        name = cursor.header.partition(":")[0]
        return bool(name) and all(self._digest(number) != name for number in range(len(self._files)))

    def rows(
        self,
        layout: Layout | None = None,
        offset: int | None = None,
        first: int | None = None,
        *,
        block: int = 0,
        stop: int | None = None,
        only: frozenset[str] | None = None,
    ) -> Iterator[Rows]:
        """Yield the rows from byte `offset` on, of which the first has the number `first`, up to byte `stop`."""
        number = self._missing if first is None else first
        begin, stop = offset or 0, self.size if stop is None else stop
        for at, file in enumerate(self._files):
            start, size = self._starts[at], self._sizes[at]
            if begin >= start + size or start >= stop:
                continue
            if begin <= start:
                self.session_rows.append(number)
            try:
                with open_raw(file.path) as opened:
                    place = max(begin, start)
                    for batch in read_events(opened, place - start, min(size, stop - start)):
                        for rows in self._batch_rows(batch, start, place, number, only, file.path.name):
                            number += len(rows)
                            self.total = max(self.total, number)
                            yield rows
                        place = start + batch.end
            except OSError as error:
                raise RunDirectoryError(f"{file.path} cannot be read: {error.strerror}.") from error

    def _batch_rows(
        self, batch: EventBatch, start: int, begin: int, first: int, only: frozenset[str] | None, file: str
    ) -> Iterator[Rows]:
        """Yield the scalars of a batch of the file at byte `start` as rows, in parts that make no large tables."""
        import numpy as np

        from bridge.rundir.metrics import Rows

        assert self.layout is not None
        keep = np.ones(len(batch.tag), dtype=bool)
        if PLACEHOLDER[0] in batch.tags:
            mine = batch.tag == batch.tags.index(PLACEHOLDER[0])
            keep &= ~(mine & (batch.step == PLACEHOLDER[1]) & (batch.value == PLACEHOLDER[2]))
        names = sorted({_metric(tag) for tag in batch.tags})
        lines = {name: line for line, name in enumerate(names)}
        # The line of each record in the table: that of its tag's metric.
        line = np.array([lines[_metric(tag)] for tag in batch.tags], dtype=np.int64)[batch.tag[keep]]
        step, ends = batch.step[keep], batch.ends[keep]
        times, values = batch.time[keep], batch.value[keep]
        odd = {(NoticeKind.LEFT_OUT, kind): np.full(count, first) for kind, count in batch.others.items()}
        if batch.problem:
            odd[NoticeKind.BAD_LINE, f"{file}: {batch.problem}"] = np.full(1, first)
        size = max(1, _MOST_CELLS // max(1, len(names)))
        for low in range(0, max(1, len(step)), size):
            part = slice(low, low + size)
            count = len(step[part])
            is_last = low + size >= len(step)
            end = start + batch.end if is_last else start + int(ends[part][-1])
            table = np.zeros((len(names), count))
            present = np.zeros((len(names), count), dtype=bool)
            table[line[part], np.arange(count)] = values[part]
            present[line[part], np.arange(count)] = True
            if only is not None:
                present[[name not in only for name in names]] = False
            yield Rows(
                layout=self.layout,
                first=first,
                start=begin,
                end=end,
                data=b"",
                names=tuple(names),
                step=step[part],
                time=times[part],
                values=table,
                present=present,
                ends=start + ends[part] - begin,
                odd=odd,
            )
            odd = {}
            first, begin = first + count, end

    def _file_at(self, offset: int) -> int:
        """Return the number of the file that ends at byte `offset` or holds the byte before it."""
        at = 0
        while at + 1 < len(self._starts) and self._starts[at + 1] < offset:
            at += 1
        return at

    def _digest(self, at: int) -> str:
        from bridge.rundir.metrics import bytes_digest

        return bytes_digest(os.fsencode(self._files[at].path.name))

    def _window(self, at: int, end: int) -> str:
        """Return a digest of the at most 64 KiB before byte `end` of a file."""
        from bridge.rundir.metrics import bytes_digest

        begin = max(0, end - _WINDOW)
        with open_raw(self._files[at].path) as file:
            file.seek(begin)
            return bytes_digest(file.read(end - begin))


def _metric(tag: str) -> str:
    return shortened(clean(tag.replace("\0", "\ufffd")))
