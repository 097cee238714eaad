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
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import RunDirectoryError
from bridge.files import Refused, clean, open_raw, own_file, read_head, shortened
from bridge.model import Notice, NoticeKind
from bridge.rundir.event_file import SCALAR, fields, message, parse_event, read_events, text
from logger.sidecar import parse_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bridge.model import Cursor, RunFile, Scalar
    from bridge.rundir.event_file import EventBatch, Picture
    from bridge.rundir.header import Layout
    from bridge.rundir.metrics import Rows

FRESH = 300.0
"""Seconds after its last write up to which a run counts as running: a SummaryWriter writes every 120 seconds."""

PLACEHOLDER = ("hp_metric", 0, -1.0)
"""The point that Lightning writes when no metric was given for the HPARAMS page. It is no point."""

_FIRST_BYTES = 1 << 16
_MOST_SEARCHED = 1 << 20
_MOST_WALKED = 4 << 20
"""Bytes of a file whose records are all looked at for its last time; 20 million bytes of scalars take a second."""

_MOST_CELLS = 4 << 20
_MOST_KEPT = 40
"""Files whose end a cursor keeps. Older ones are taken to be as they were."""

_NUMBERS = re.compile(r"(\d+)")


def is_event_file(name: str) -> bool:
    """Return if a file of this name holds events."""
    return "tfevents" in name and not name.endswith(".profile-empty")


def event_names(folder: Path | str) -> list[str]:
    """Return the event files of the run in `folder`, relative to it, with those of its `add_scalars` folders."""
    names: list[str] = []
    children: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_event_file(entry.name):
                    names.append(entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    children.append(entry.name)
    except OSError:
        return []
    return names and [*names, *(name for child in children for name in scalars_names(folder, child))]


def scalars_names(folder: Path | str, child: str) -> list[str]:
    """Return the event files in the folder `child` of a run if `add_scalars` of a SummaryWriter made it, else none.

    `add_scalars("loss", {"train": 1})` writes the tag `loss` into the folder `loss_train`. So all points there have one
    tag, and the folder's name begins with it.
    """
    inner = f"{folder}{os.sep}{child}"
    try:
        names = [name for name in os.listdir(inner) if is_event_file(name)]  # noqa: PTH208 - names are all it takes
        tags = {tag for file in _own_files(inner, names) for tag in _tags(file.path)}
    except OSError:
        return []
    is_one = len(tags) == 1 and child.startswith(_folder_prefix(next(iter(tags))))
    return [f"{child}/{name}" for name in names] if is_one else []


def _own_files(folder: Path | str, names: Iterable[str], notices: list[Notice] | None = None) -> Iterator[RunFile]:
    """Yield the files among `names` that may be read: a pipe would never end, and a link can lead out.

    `folder` is a real path. The other files are added to `notices`.
    """
    real = Path(folder)
    for name in names:
        try:
            file = own_file(real, name)
        except Refused as error:
            if notices is not None and not error.missing:
                notices.append(Notice(NoticeKind.REFUSED_PATH, clean(name), str(error)))
        else:
            if file is not None:
                yield file


def _tags(path: Path) -> set[str]:
    """Return the tags of the scalars at the beginning of an event file. Raises OSError."""
    with suppress(ValueError):
        return {tag for data in _first_records(path) for tag, kind, _ in parse_event(data)[2] if kind == SCALAR}
    return set()


def _folder_prefix(tag: str) -> str:
    return tag.replace("/", "_") + "_"


def event_files(folder: Path, names: Iterable[str], notices: list[Notice]) -> tuple[RunFile, ...]:
    """Return the event files among `names` in `folder`, by their first wall time, then by name with numbers as numbers.

    A file that holds no record yet is left out, and so is one that must not be read, which is added to `notices`.
    """
    found = []
    for file in _own_files(folder, names, notices):
        with suppress(OSError):
            for first in islice(_first_records(file.path), 1):
                numbered = [int(part) if part.isdigit() else part for part in _NUMBERS.split(str(file.path))]
                found.append((_wall_time(first) or 0.0, numbered, file))
    return tuple(file for _, _, file in sorted(found, key=lambda item: item[:2]))


def holds_points(folder: str, names: Iterable[str]) -> bool:
    """Return if an event file among `names` holds a point other than the placeholder, or was written just now."""
    for file in _own_files(folder, names):
        if time.time() - file.mtime_ns / 1e9 < FRESH:
            return True
        with suppress(OSError, ValueError):
            for data in _first_records(file.path, _MOST_SEARCHED):
                _, step, values = parse_event(data)
                if any(kind == SCALAR and (tag, step, value) != PLACEHOLDER for tag, kind, value in values):
                    return True
    return False


def read_event_facts(files: Sequence[RunFile]) -> tuple[float | None, float | None, dict[str, Scalar]]:
    """Return the first and the last wall time in `files`, None if there is none, and the hyperparameters.

    These are those of the HPARAMS page in the last file that has some. Of a large file only the beginning is read, and
    its mtime counts as its last wall time.
    """
    times: list[float] = []
    params: dict[str, Scalar] = {}
    for file in files:
        is_large = file.size > _MOST_WALKED
        with suppress(OSError, ValueError, struct.error):
            for data in _first_records(file.path, _FIRST_BYTES if is_large else file.size):
                then = _wall_time(data)
                if then is not None:
                    times.append(then)
                if b"hparams" in data:
                    params = next(filter(None, map(_session_params, parse_event(data)[2])), params)
        if is_large:
            times.append(file.mtime_ns / 1e9)
    return min(times, default=None), max(times, default=None), params


def _first_records(path: Path, size: int = _FIRST_BYTES) -> Iterator[bytes]:
    """Yield the data of the first complete records of a file, as far as they lie in its first `size` bytes."""
    data = read_head(path, size)
    at = 0
    while at + 16 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if length > len(data) - at - 16:
            return
        yield data[at + 12 : at + 12 + length]
        at += 16 + length


def _wall_time(data: bytes) -> float | None:
    """Return the wall time of an event: its first field, a double. None if it has none that a clock can give."""
    return parse_time(struct.unpack_from("<d", data, 1)[0]) if data[:1] == b"\x09" and len(data) >= 9 else None


def _session_params(value: tuple[str, str, Any]) -> dict[str, Scalar]:
    """Return the hyperparameters in a value of an event; none if it does not begin a session of the hparams plugin."""
    _, kind, data = value
    begun = message(data).get(3) if kind == "hparams" else None
    params: dict[str, Scalar] = {}
    for key, entry, _ in fields(begun) if isinstance(begun, bytes) else ():
        if key == 1:
            pair = message(entry)
            params[clean(text(pair.get(1)))] = _plain_value(message(pair.get(2)))
    return params


def _plain_value(value: Mapping[int, int | bytes]) -> Scalar:
    """Return a `google.protobuf.Value`: null, a number, a text or a bool. A number that is whole becomes an int."""
    number = value.get(2)
    if isinstance(number, bytes):
        (found,) = struct.unpack("<d", number)
        return int(found) if found.is_integer() and abs(found) < 2**53 else float(found)
    if 3 in value:
        return clean(text(value[3]))
    return bool(value[4]) if 4 in value else None


@dataclass(slots=True)
class _Segment:
    """Bytes of one file: from `begin` to `end`. In the order of rows they begin at byte `start`.

    `complete` is where the complete records end once they were read; a torn one behind them is left for the next time.
    """

    file: int
    begin: int
    end: int
    start: int
    complete: int

    @property
    def stop(self) -> int:
        """Return the byte in the order of rows at which the segment ends."""
        return self.start + self.end - self.begin


class EventTable:
    """The scalars of event files as rows, like those of a metrics.csv.

    `stat` is (bytes, mtime in nanoseconds) of all files together, from before the first byte was read. `session_rows`
    are the rows with which the files begin, as far as they were read. Rows come file by file; with a cursor, first the
    rows that it covers and then those that are new, for several files can grow at once. `pictures` are those among the
    rows that were read.
    """

    holder = "the event files"

    def __init__(self, folder: Path, files: Sequence[RunFile]) -> None:
        """Look at the sizes of `files`, which lie in the run directory `folder`."""
        from bridge.rundir.header import Layout

        self._folder = folder
        self._files: list[RunFile] = []
        self._sizes: list[int] = []
        newest = 0
        for file in files:
            with suppress(OSError):  # deleted just now
                found = os.stat(file.path)  # noqa: PTH116 - hundreds of files in one folder
                self._files.append(file)
                self._sizes.append(found.st_size)
                newest = max(newest, found.st_mtime_ns)
        self.stat = (sum(self._sizes), newest)
        self.size = self.stat[0]
        self.layout: Layout | None = Layout(("step", "wall_time"), 0, 1, {}) if self._files else None
        self.name = str(folder)
        self.total = 0
        self.session_rows: list[int] = []
        # Deleted files that the cursor covers, and the number of their rows.
        self._deleted = self._missing = 0
        self._segments: list[_Segment] = []
        self._pictures: dict[tuple[int, int], tuple[int, Picture]] = {}
        self._arrange([(at, 0, size) for at, size in enumerate(self._sizes)])

    def place(self, offset: int) -> str:
        """Return the name of the file that holds byte `offset`."""
        segment = next((one for one in reversed(self._segments) if one.start <= offset), self._segments[0])
        return self._files[segment.file].path.name

    def marks(self, offset: int, layout: Layout | None) -> dict[str, Any]:
        """Return what a cursor keeps to find byte `offset` again.

        For each of the newest files these are a digest of its name, the byte up to which it was read, and the four
        bytes before it: the checksum of the last record. Under "" are the numbers of all files and of deleted ones.
        """
        read = dict.fromkeys(range(len(self._files)), 0)
        for one in self._segments:
            if one.stop <= offset:
                read[one.file] = one.complete
            elif one.start < offset:
                read[one.file] = min(one.complete, one.begin + offset - one.start)
        files: dict[str, tuple[int, str]] = {"": (len(read) + self._deleted, f"{self._deleted}")}
        files |= {self._digest(at): (end, self._witness(at, end)) for at, end in list(read.items())[-_MOST_KEPT:]}
        return {"header": "events", "files": files}

    def find(self, cursor: Cursor) -> tuple[Layout, int] | None:
        """Return the byte at which `cursor` ends; None if the files do not hold what it covers.

        Old files that were deleted since do not matter. If only the newest are gone, somebody took back the last
        starts, whose points count no longer. A new file that comes before a known one matters too.
        """
        assert self.layout is not None
        known = dict(cursor.files)
        count, deleted = known.pop("", (0, "0"))
        digests = [self._digest(at) for at in range(len(self._files))]
        first = next((at for at, digest in enumerate(digests) if digest in known), None)
        gone = [digest not in digests for digest in known]
        is_taken_back = any(gone) and gone == sorted(gone) and not int(deleted)
        if first is None or is_taken_back:
            return None
        old: list[tuple[int, int, int]] = []
        new: list[tuple[int, int, int]] = []
        is_behind = False  # a file that the cursor does not know came
        for at, (digest, size) in enumerate(zip(digests, self._sizes, strict=True)):
            if digest in known:
                end, witness = known[digest]
                if is_behind or size < end or witness != self._witness(at, end):
                    return None
                old.append((at, 0, end))
                new += [(at, end, size)] if size > end else []
            elif at < first and count - int(deleted) > len(known):
                old.append((at, 0, size))
            else:
                is_behind = True
                new.append((at, 0, size))
        self._arrange([*old, *new])
        offset = sum(end for _, _, end in old)
        self._deleted = count - len(old)
        if self._deleted:
            self._missing = cursor.rows - sum(len(part) for part in self.rows(stop=offset))
        return self.layout, offset

    def is_gone(self, cursor: Cursor) -> bool:
        """Return if all files that `cursor` knows were deleted."""
        digests = {self._digest(at) for at in range(len(self._files))}
        return bool(cursor.files) and not digests & cursor.files.keys()

    def pictures(self, stop: int) -> list[tuple[int, int, RunFile, Picture]]:
        """Return the pictures up to byte `stop` of the rows that were read, in the order of rows.

        Each is (byte at which its record ends, number of its file, file, picture).
        """
        found = [(end, file, self._files[file], one) for (file, _), (end, one) in self._pictures.items() if end <= stop]
        return sorted(found, key=lambda item: (item[0], item[3].offset))

    def rows(
        self,
        layout: Layout | None = None,
        offset: int = 0,
        first: int | None = None,
        *,
        chunk: int = 0,
        stop: int | None = None,
        only: frozenset[str] | None = None,
    ) -> Iterator[Rows]:
        """Yield the rows from byte `offset` on, of which the first has the number `first`, up to byte `stop`."""
        number = self._missing if first is None else first
        stop = self.size if stop is None else stop
        for one in self._segments:
            if offset >= one.stop or one.start >= stop:
                continue
            if one.begin == 0 and offset <= one.start:
                self.session_rows.append(number)
            # A byte of the file and its place in the order of rows lie this far apart.
            shift = one.start - one.begin
            low, high = max(one.begin, offset - shift), min(one.end, stop - shift)
            file = self._files[one.file].path
            try:
                with open_raw(file) as opened:
                    end = low
                    for batch in read_events(opened, low, high):
                        for picture in batch.pictures:
                            self._pictures[one.file, picture.offset] = shift + picture.end, picture
                        for rows in self._batch_rows(batch, shift, shift + end, number, only, file):
                            number += len(rows)
                            self.total = max(self.total, number)
                            yield rows
                        end = batch.end
                    if high == one.end:
                        one.complete = end
            except OSError as error:
                raise RunDirectoryError(f"{file} cannot be read: {error.strerror}.") from error

    def _batch_rows(
        self, batch: EventBatch, shift: int, begin: int, first: int, only: frozenset[str] | None, file: Path
    ) -> Iterator[Rows]:
        """Yield the scalars of a batch as rows, in parts that make no large tables.

        `shift` is added to bytes of `file`, and `begin` is the byte at which the rows begin then.
        """
        import numpy as np

        from bridge.rundir.metrics import Rows

        assert self.layout is not None
        if PLACEHOLDER[0] in batch.tags:
            mine = batch.tag == batch.tags.index(PLACEHOLDER[0])
            batch = batch.scalars(~(mine & (batch.step == PLACEHOLDER[1]) & (batch.value == PLACEHOLDER[2])))
        metrics = [self._metric(tag, file) for tag in batch.tags]
        names = sorted(set(metrics))
        lines = {name: line for line, name in enumerate(names)}
        # The line of each record in the table: that of its tag's metric.
        line = np.array([lines[name] for name in metrics], dtype=np.int64)[batch.tag]
        total = len(batch.step)
        odd = {(NoticeKind.LEFT_OUT, kind): np.full(count, first) for kind, count in batch.others.items()}
        if batch.problem:
            odd[NoticeKind.BAD_LINE, f"{file.name}: {batch.problem}"] = np.full(1, first)
        size = max(1, _MOST_CELLS // max(1, len(names)))
        for low in range(0, max(1, total), size):
            part = slice(low, low + size)
            count = len(batch.step[part])
            end = shift + (batch.end if low + size >= total else int(batch.ends[part][-1]))
            values, present = np.zeros((len(names), count)), np.zeros((len(names), count), dtype=bool)
            values[line[part], np.arange(count)] = batch.value[part]
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
                step=batch.step[part],
                time=batch.time[part],
                values=values,
                present=present,
                ends=shift + batch.ends[part] - begin,
                odd=odd,
            )
            odd = {}
            first, begin = first + count, end

    def _metric(self, tag: str, file: Path) -> str:
        """Return the metric of a tag; in an `add_scalars` folder, the folder's name says which curve it is."""
        if file.parent != self._folder:
            tag = f"{tag}/{file.parent.name.removeprefix(_folder_prefix(tag))}"
        return shortened(clean(tag.replace("\0", "\ufffd")))

    def _arrange(self, parts: Sequence[tuple[int, int, int]]) -> None:
        """Put parts of files, each (file, begin, end), into the order of rows."""
        self._segments = []
        start = 0
        for file, begin, end in parts:
            self._segments.append(_Segment(file, begin, end, start, end))
            start += end - begin

    def _digest(self, at: int) -> str:
        from bridge.rundir.metrics import bytes_digest

        return bytes_digest(os.fsencode(os.path.relpath(self._files[at].path, self._folder)))[:8]

    def _witness(self, at: int, end: int) -> str:
        """Return the four bytes before byte `end` of a file, the checksum of a record, as text."""
        return read_head(self._files[at].path, min(4, end), offset=max(0, end - 4)).hex()
