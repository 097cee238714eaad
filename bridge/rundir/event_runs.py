"""Read the directories of TensorBoardLogger and of any SummaryWriter: a folder of event files is one run.

Each file is one start of the run, a session. The files are read one after another, in the order of their first wall
times, as if they were one long file: `EventTable` gives the rows of all of them under the interface of `MetricsTable`,
and an offset counts the bytes of the files in that order. Each record with scalars is a row, with its own time.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import RunDirectoryError
from bridge.files import Refused, clean, open_plain, own_file, read_head, shortened
from bridge.model import Notice, NoticeKind, RunFile
from bridge.rundir.header import Layout, bytes_digest
from logger.sidecar import parse_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from bridge.model import Cursor, Scalar
    from bridge.rundir.event_file import EventBatch, Picture
    from bridge.rundir.rows import Rows

FRESH = 300.0
"""Seconds after its last write up to which a run counts as running: a SummaryWriter writes every 120 seconds."""

PLACEHOLDER = ("hp_metric", 0, -1.0)
"""The point that Lightning writes for the HPARAMS page when no metric was given. It is left out."""

_MOST_SEARCHED = 1 << 20
"""Bytes of a file in which a point, tags or hyperparameters are looked for."""

_MOST_TOLD = 1 << 16
"""Bytes of a file that tell if `add_scalars` made its folder. They are read at each scan."""

_MOST_WALKED = 4 << 20
"""Bytes of a file whose records are all looked at for its last time; 20 million bytes of scalars take a second."""

_MOST_KEPT = 40
"""Files whose end a cursor keeps. Older ones are taken to be as they were."""

_NUMBERS = re.compile(r"(\d+)")


# Which files belong to a run, and their facts -----------------------------------------------------------------------


def is_event_file(name: str) -> bool:
    """Return whether a file of this name holds events."""
    return "tfevents" in name and not name.endswith(".profile-empty")


def event_names(folder: Path | str) -> list[str]:
    """Return the event files of the run in `folder`, relative to it, with those of its `add_scalars` folders."""
    names: list[str] = []
    children: list[str] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_event_file(entry.name):
                names.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                children.append(entry.name)
    return names and [*names, *(name for child in children for name in scalars_names(folder, child))]


def scalars_names(folder: Path | str, child: str) -> list[str]:
    """Return the event files in the folder `child` of a run if `add_scalars` of a SummaryWriter made it, else none.

    `add_scalars("loss", {"train": 1})` writes the tag `loss` into the folder `loss_train`. So all points there have one
    tag, and the folder's name begins with it.
    """
    inner = f"{folder}{os.sep}{child}"
    try:
        names = [name for name in os.listdir(inner) if is_event_file(name)]  # noqa: PTH208 - names are all it takes
    except OSError:
        return []
    tags = {tag for file in _own_files(inner, names) for batch in _batches(file, _MOST_TOLD) for tag in batch.tags}
    is_one = len(tags) == 1 and child.startswith(_folder_prefix(next(iter(tags))))
    return [f"{child}/{name}" for name in names] if is_one else []


def _folder_prefix(tag: str) -> str:
    return tag.replace("/", "_") + "_"


def holds_points(folder: str, names: Iterable[str]) -> bool:
    """Return whether an event file among `names` holds a point other than the placeholder, or was written just now."""
    return any(
        time.time() - file.mtime_ns / 1e9 < FRESH or any(len(_points(batch)) for batch in _batches(file))
        for file in _own_files(folder, names)
    )


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


def _batches(file: RunFile, most: int = _MOST_SEARCHED) -> Iterator[EventBatch]:
    """Yield what is in the first `most` bytes of an event file, as far as it can be read."""
    from bridge.rundir.event_file import read_events  # numpy and pyarrow take a while

    with suppress(OSError), open_plain(file.path) as opened:
        yield from read_events(opened, 0, min(file.size, most))


def _points(batch: EventBatch) -> NDArray[np.void]:
    """Return the scalars of a batch without the placeholder."""
    tag, step, value = PLACEHOLDER
    points = batch.points
    if tag in batch.tags:
        is_tag = points["tag"] == batch.tags.index(tag)
        points = points[~(is_tag & (points["step"] == step) & (points["value"] == value))]
    return points


def read_event_facts(
    folder: Path, notices: list[Notice]
) -> tuple[tuple[RunFile, ...], float | None, float | None, dict[str, Scalar]]:
    """Return the event files in `folder`, their first and last wall time if known, and the hyperparameters.

    The files are in the order of their first wall time, then of their names, in which numbers count as numbers. A file
    that holds no record yet is left out, and so is one that must not be read, which is added to `notices`. The
    hyperparameters are those of the HPARAMS page in the last file that has some. Of a large file only the beginning is
    read, and its mtime counts as its last wall time.
    """
    from bridge.rundir.rows import is_time  # numpy takes a while

    found = []
    times: list[float] = []
    for file in _own_files(folder, event_names(folder), notices):
        starts: list[float] = []
        params: dict[str, Scalar] = {}
        is_large = file.size > _MOST_WALKED
        for batch in _batches(file, _MOST_SEARCHED if is_large else file.size):
            starts += batch.times[:1].tolist()
            times += batch.times[is_time(batch.times)].tolist()
            params = batch.params or params
        if starts:
            number = [int(part) if part.isdecimal() else part for part in _NUMBERS.split(str(file.path))]
            found.append((parse_time(starts[0]) or 0.0, number, file, params))
            times += [file.mtime_ns / 1e9] if is_large else []
    found.sort(key=lambda item: item[:2])
    last_params = next((params for *_, params in reversed(found) if params), {})
    return tuple(file for _, _, file, _ in found), min(times, default=None), max(times, default=None), last_params


# Their rows ---------------------------------------------------------------------------------------------------------


class EventTable:
    """The scalars of event files as rows, like those of a metrics.csv.

    `stat` is (bytes, mtime in nanoseconds) of all files together, from before the first byte was read. `session_rows`
    are the rows with which the files begin, as far as they were read. Rows come file by file; with a cursor, first the
    rows that it covers and then those that are new, for several files can grow at once. `pictures` are those among the
    rows that were read. `is_gone` says that all files that the cursor knows were deleted.
    """

    holder = "the event files"
    layout = Layout(("step", "wall_time"), 0, 1, {})

    def __init__(self, folder: Path, files: Sequence[RunFile]) -> None:
        """Look at the sizes of `files`, which lie in the run directory `folder`."""
        self._folder = folder
        self._files: list[RunFile] = []
        for file in files:
            with suppress(OSError):  # deleted just now
                found = os.stat(file.path)  # noqa: PTH116 - hundreds of files in one folder
                self._files.append(RunFile(file.path, found.st_size, found.st_mtime_ns))
        names = [os.path.relpath(file.path, folder) for file in self._files]
        self._digests = [bytes_digest(os.fsencode(name))[:8] for name in names]
        self.size = sum(file.size for file in self._files)
        self.stat = (self.size, max((file.mtime_ns for file in self._files), default=0))
        self.total = 0
        self.session_rows: list[int] = []
        # Deleted files that the cursor covers, and the number of their rows.
        self._deleted = self._missing = 0
        self.is_gone = False
        self._pictures: set[tuple[int, int, RunFile, Picture]] = set()
        # Parts of files as (file, begin, end, byte at which they begin in the order of rows). A part that was read ends
        # with its last complete record; a torn one behind is left for the next time.
        self._parts: list[tuple[int, int, int, int]] = []
        self._arrange((at, 0, file.size) for at, file in enumerate(self._files))

    def _arrange(self, parts: Iterable[tuple[int, int, int]]) -> None:
        """Put parts of files, each (file, begin, end), into the order of rows."""
        self._parts = []
        start = 0
        for file, begin, end in parts:
            self._parts.append((file, begin, end, start))
            start += end - begin

    def place(self, offset: int) -> str:
        """Return the name of the file that holds byte `offset`."""
        file = next(file for file, _, _, start in reversed(self._parts) if start <= offset)
        return self._files[file].path.name

    def goes_back(self, offset: int) -> bool:
        """Return whether byte `offset` is in a file that comes before the file of an earlier byte."""
        files = [file for file, begin, end, start in self._parts if start <= offset and begin < end]
        return files[-1] < max(files)

    def marks(self, offset: int, layout: Layout | None) -> dict[str, Any]:
        """Return what a cursor keeps to find byte `offset` again.

        For each of the newest files these are a digest of its name, the byte up to which it was read, and the four
        bytes before it: the checksum of the last record. Under "" are the numbers of all files and of deleted ones.
        """
        read = dict.fromkeys(range(len(self._files)), 0)
        for file, begin, end, start in self._parts:
            if start < offset:
                read[file] = min(end, begin + offset - start)
        files: dict[str, tuple[int, str]] = {"": (len(read) + self._deleted, f"{self._deleted}")}
        files |= {self._digests[at]: (end, self._witness(at, end)) for at, end in list(read.items())[-_MOST_KEPT:]}
        return {"header": "events", "files": files}

    def find(self, cursor: Cursor) -> tuple[Layout, int] | None:
        """Return the byte at which `cursor` ends; None if the files do not hold what it covers.

        Old files that were deleted since do not matter. If only the newest are gone, somebody took back the last
        starts, whose points count no longer. A new file that comes before a known one matters too.
        """
        known = dict(cursor.files)
        count, deleted = known.pop("", (0, "0"))
        first = next((at for at, digest in enumerate(self._digests) if digest in known), None)
        gone = [digest not in self._digests for digest in known]
        is_taken_back = any(gone) and gone == sorted(gone) and not int(deleted)
        self.is_gone = first is None and bool(known)
        if first is None or is_taken_back:
            return None
        covered: dict[int, int] = {}  # of each file that the cursor covers, the byte up to which it does
        for at, (file, digest) in enumerate(zip(self._files, self._digests, strict=True)):
            if digest in known:
                covered[at], witness = known[digest]
                if file.size < covered[at] or witness != self._witness(at, covered[at]):
                    return None
            elif at < first and count - int(deleted) > len(known):
                covered[at] = file.size
        if max(covered) >= len(covered):
            return None
        new = ((at, covered.get(at, 0), file.size) for at, file in enumerate(self._files))
        self._arrange([*((at, 0, end) for at, end in covered.items()), *(part for part in new if part[1] < part[2])])
        offset = sum(covered.values())
        self._deleted = count - len(covered)
        if self._deleted:
            self._missing = cursor.rows - sum(len(part) for part in self.rows(stop=offset))
        return self.layout, offset

    def _witness(self, at: int, end: int) -> str:
        """Return the four bytes before byte `end` of a file, the checksum of a record, as text."""
        return read_head(self._files[at].path, min(4, end), offset=max(0, end - 4)).hex()

    def pictures(self, stop: int) -> list[tuple[int, int, RunFile, Picture]]:
        """Return the pictures before byte `stop` among the rows that were read, in the order of rows.

        Each is (byte at which it begins, number of its file, file, picture).
        """
        return sorted(item for item in self._pictures if item[0] < stop)

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
        from bridge.rundir.event_file import read_events

        number = self._missing if first is None else first
        stop = self.size if stop is None else stop
        for part, (at, low, high, start) in enumerate(self._parts):
            # A byte of the file and its place in the order of rows lie this far apart.
            shift = start - low
            begin, end = max(low, offset - shift), min(high, stop - shift)
            if begin >= end:
                continue
            if begin == 0:
                self.session_rows.append(number)
            file = self._files[at]
            try:
                with open_plain(file.path) as opened:
                    for batch in read_events(opened, begin, end):
                        self._pictures |= {(shift + each.offset, at, file, each) for each in batch.pictures}
                        rows = self._to_rows(batch, shift, shift + begin, number, file.path)
                        if only is not None:
                            rows.present[[name not in only for name in rows.names]] = False
                        number += len(rows)
                        self.total = max(self.total, number)
                        yield rows
                        begin = batch.end
                    if end == high:
                        self._parts[part] = at, low, begin, start
            except OSError as error:
                raise RunDirectoryError(f"{file.path} cannot be read: {error.strerror}.") from error

    def _to_rows(self, batch: EventBatch, shift: int, begin: int, first: int, file: Path) -> Rows:
        """Return the records of a batch that hold scalars as rows.

        `shift` is added to bytes of `file`, and `begin` is the byte at which the rows begin then.
        """
        import numpy as np

        from bridge.rundir.rows import Rows

        points = _points(batch)
        metrics = [self._metric(tag, file) for tag in batch.tags]
        lines = {name: line for line, name in enumerate(sorted(set(metrics)))}
        # The scalars of one record end at one byte, and are one row. `is_first` says which scalars begin a row.
        is_first = np.diff(points["end"], prepend=-1) != 0
        row = points[is_first]
        values = np.zeros((len(lines), len(row)))
        present = np.zeros(values.shape, dtype=bool)
        # The cell of each scalar: the line of its tag's metric, and its row.
        cells = np.array([lines[name] for name in metrics], np.intp)[points["tag"]], np.cumsum(is_first) - 1
        values[cells], present[cells] = points["value"], True
        odd = {(NoticeKind.LEFT_OUT, kind): np.full(count, first) for kind, count in batch.others.items()}
        if batch.problem:
            odd[NoticeKind.BAD_LINE, f"{file.name}: {batch.problem}"] = np.full(1, first)
        return Rows(
            layout=self.layout,
            first=first,
            start=begin,
            end=shift + batch.end,
            data=b"",
            names=tuple(lines),
            step=np.ascontiguousarray(row["step"]),
            time=np.ascontiguousarray(row["time"]),
            values=values,
            present=present,
            ends=shift + row["end"] - begin,
            odd=odd,
        )

    def _metric(self, tag: str, file: Path) -> str:
        """Return the metric of a tag; in an `add_scalars` folder, the folder's name says which curve it is."""
        if file.parent != self._folder:
            tag = f"{tag}/{file.parent.name.removeprefix(_folder_prefix(tag))}"
        return shortened(clean(tag.replace("\0", "\ufffd")))
